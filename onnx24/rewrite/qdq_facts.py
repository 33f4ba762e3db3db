"""What is said of each quantized layer: numbers for the report, and a sentence."""

from __future__ import annotations

import math
from typing import Any

from onnx24.analysis.formats import BLOCK, Format
from onnx24.analysis.placement import Layer
from onnx24.ir.index import NodeSite
from onnx24.rewrite.protection import Protection
from onnx24.rewrite.quantizer import Quantizer, Written

__all__ = ["facts_of", "likeness_facts", "product_facts", "reason_of"]


def facts_of(
    layer: Layer, wanted: Format, quantizer: Quantizer, written: Written
) -> dict[str, Any]:
    """The numbers of a layer, in the format that it has now."""
    facts: dict[str, Any] = {"K": layer.use.K, "N": layer.use.N}
    if wanted is Format.INT4:
        return {**facts, "block": BLOCK}
    pairs = written.fp8 if wanted is Format.FP8 else written.int8
    placement = pairs.placement
    value = placement.read_by(layer)
    facts |= {"activation": value, "amax": pairs.amax[value], "rules": placement.rules[value]}
    if wanted is Format.FP8:
        return facts
    facts |= {"calibrator": quantizer.ranges[layer.data].method, "axis": layer.pair[1]}
    sqnr = quantizer.sqnr_db(layer, pairs.amax[value])
    if sqnr is not None and math.isfinite(sqnr):
        facts["sqnr_db"] = round(sqnr, 2)
    if layer in placement.results:
        facts["output"] = placement.results[layer]
    return facts


def reason_of(layer: Layer, facts: dict[str, Any]) -> str:
    if "block" in facts:
        return f"weight by blocks of {facts['block']} along K = {layer.use.K}"
    text = f"activation {facts['activation']!r} up to {facts['amax']:.4g}"
    if "sqnr_db" in facts:
        text += f", {facts['sqnr_db']:.1f} dB"
    return f"{text}, INT8 out at {facts['output']!r}" if "output" in facts else text


def likeness_facts(found: Protection) -> dict[str, Any]:
    """What was measured of the model's outputs: the relative error and, of a classifier, the share
    of samples that keep their class."""
    facts: dict[str, Any] = {}
    for when, likeness in (("before", found.before), ("", found.after)):
        if likeness is None or (when and not found.layers):
            continue
        suffix = f"_{when}" if when else ""
        facts[f"output_error{suffix}"] = round(likeness.rel_l2, 5)
        if likeness.top1 is not None:
            facts[f"agreement{suffix}"] = round(100 * likeness.top1, 2)
    if found.layers:
        facts |= {"protected": len(found.layers), "predicted_error": round(found.predicted, 5)}
    return facts


def product_facts(site: NodeSite, written: Written) -> dict[str, Any]:
    """The numbers of a quantized product of two activations."""
    seats = [written.int8.placement.seat(name) for name in site.proto.input]
    return {"activations": seats, "amax": [written.int8.amax[seat] for seat in seats]}
