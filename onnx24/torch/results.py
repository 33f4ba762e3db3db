"""Pairs behind the 2:4 layers of a traced file whose results would stay in float.

*Source:* TensorRT takes a sparse INT8 kernel only INT8-in and INT8-out (O24-639).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.crossing import crosses, is_quantized_ahead
from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.placement import Flow, find_layers
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.quant.calibrators import Percentile
from onnx24.quant.scales import INT8_MAX
from onnx24.runtime.session import Session

__all__ = ["float_results", "insert_result_pairs", "ranges"]


def float_results(model: Model) -> dict[str, str]:
    """What leaves the kernel of each recorded layer behind DequantizeLinear, and is no output and
    read by something else than QuantizeLinear → the scale of the quantizer that it meets next, ""
    where there is none: with that scale a pair changes nothing."""
    cache = AnalysisCache()
    uses = cache.get(model, WeightUses)
    flow = Flow(uses, cache.get(model, Shapes), model.opset)
    claimed = set(model.claims.keys())
    found: dict[str, str] = {}
    for layer in find_layers(uses):
        if layer.weight not in claimed or not flow.is_dequantized(layer.data):
            continue
        value = flow.result(layer)
        if not flow.is_output(value) and not is_quantized_ahead(flow.index, value):
            found[value] = _next_scale(flow, value)
    return found


def _next_scale(flow: Flow, value: str) -> str:
    use = flow.only_reader(value)
    while use is not None and crosses(flow.index, use.site):
        use = flow.only_reader(use.site.proto.output[0])
    is_quantized = use is not None and ops.is_onnx(use.site, "QuantizeLinear")
    return use.site.proto.input[1] if use is not None and is_quantized else ""


def ranges(
    model: Model, values: Iterable[str], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Value → the magnitude that 99.99 % of its non-zero elements do not exceed."""
    observers = {value: Percentile() for value in values}
    if not observers:
        return {}
    session = Session(model, list(observers), optimize=False)
    for feeds in batches:
        for name, array in session.run(feeds).items():
            observers[name].observe(np.asarray(array))
    return {name: seen.amax for name, seen in observers.items()}


def insert_result_pairs(
    graph: onnx.GraphProto, scales: Mapping[str, str], amax: Mapping[str, float]
) -> int:
    """A pair behind each value, for all of its readers but QuantizeLinear. Returns: pairs."""
    zero = "onnx24.result.zero_point"
    done = 0
    for value, scale in scales.items():
        if not scale and not amax[value]:
            continue
        if not scale:
            scale = f"{value}.scale"
            step = np.array(amax[value] / INT8_MAX, np.float32)
            graph.initializer.append(numpy_helper.from_array(step, scale))
        pair = [
            helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}.int8"]),
            helper.make_node("DequantizeLinear", [f"{value}.int8", scale, zero], [f"{value}.real"]),
        ]
        for node in pair:
            node.name = f"{value}.{node.op_type}"
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == value and not ops.is_onnx(node, "QuantizeLinear"):
                    node.input[position] = f"{value}.real"
        place = next(i for i, node in enumerate(graph.node) if value in node.output)
        for node in reversed(pair):
            graph.node.insert(place + 1, node)
        done += 1
    if done:
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
    return done
