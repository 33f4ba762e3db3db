"""A roofline estimate: the least time that a layer's arithmetic and its traffic allow.

It is a lower bound from data-sheet peaks, no measurement, and is called an estimate wherever it is
shown. Products with a weight only: everything else in a model is left out.
*Source:* S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52 (2009); compressed weights as in
cuSPARSELt (9/16 of the dense bytes in 16 bit, 10/16 in 8 bit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx24.ledger.model_layers import ModelLayer
from onnx24.lines import Block, block
from onnx24.report.jsontext import plain
from onnx24.report.table import shape_text, table
from onnx24.targets import Target
from onnx24.targets.gpus import Gpu

VARIANTS = ("dense", "sparse", "int8", "sparse-int8")
"""fp16, fp16 with 2:4 weights, INT8, INT8 with 2:4 weights."""
COMPRESSED = {2: 9 / 16, 1: 10 / 16}
"""Bytes an element → what is left of the weight's bytes."""


@dataclass(frozen=True)
class Bound:
    """A lower bound [µs] and what sets it."""

    us: float
    by: str

    def to_json(self) -> dict[str, Any]:
        return {"us": self.us, "bound_by": self.by}


@dataclass(frozen=True, kw_only=True)
class LayerEstimate:
    """One layer's bounds, by variant; a variant that the layer cannot have is that of its dense
    form."""

    layer: ModelLayer
    bounds: dict[str, Bound]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """All layers at one batch size. `left_out`: layers whose sizes are not known."""

    batch: str
    gpu: Gpu
    layers: tuple[LayerEstimate, ...]
    left_out: tuple[str, ...]

    def total_us(self, variant: str) -> float:
        return sum(layer.bounds[variant].us for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "batch": self.batch,
                "total_us": {v: self.total_us(v) for v in VARIANTS},
                "left_out": list(self.left_out),
                "layers": [
                    {
                        "name": item.layer.name,
                        "shape": item.layer.shape,
                        "flops": item.layer.flops,
                        "eligible": item.layer.eligible,
                        "code": item.layer.code,
                        "bounds": {v: b.to_json() for v, b in item.bounds.items()},
                    }
                    for item in self.layers
                ],
            }
        )


def estimate(layers: Sequence[ModelLayer], target: Target, gpu: Gpu, batch: str) -> Estimate:
    """The bounds of every layer whose sizes are known. batch: a label."""
    known = [layer for layer in layers if layer.flops is not None]
    return Estimate(
        batch=batch,
        gpu=gpu,
        layers=tuple(
            LayerEstimate(layer=layer, bounds={v: bound(layer, target, gpu, v) for v in VARIANTS})
            for layer in known
        ),
        left_out=tuple(layer.name for layer in layers if layer.flops is None),
    )


def bound(layer: ModelLayer, target: Target, gpu: Gpu, variant: str) -> Bound:
    """max(arithmetic at peak, bytes at full bandwidth), weights read once."""
    assert layer.flops is not None and layer.activation_bytes is not None
    int8 = "int8" in variant and target.int8
    itemsize = 1 if int8 else 2
    sparse = (
        "sparse" in variant
        and layer.eligible
        and ("int8" if int8 else "fp16") in target.sparse_dtypes
    )
    peak = (gpu.int8_tops if int8 else gpu.fp16_tflops) * 1e12 * (2 if sparse else 1)
    elements = layer.weight_bytes / layer.itemsize
    weights = elements * itemsize * (COMPRESSED[itemsize] if sparse else 1)
    moved = weights + layer.activation_bytes / layer.itemsize * itemsize
    compute, memory = layer.flops / peak, moved / (gpu.bandwidth_gbs * 1e9)
    return Bound(1e6 * max(compute, memory), "compute" if compute >= memory else "memory")


def render_estimates(model: str, target: Target, gpu: Gpu, found: Sequence[Estimate]) -> Block:
    """A table of layers for each batch, with what it is and is not."""
    lines = [
        f"ESTIMATE, not a measurement: {model} on {gpu.name} ({target.name})",
        f"  roofline bounds from data-sheet peaks: {gpu.fp16_tflops:g} TFLOPS fp16, "
        f"{gpu.int8_tops:g} TOPS int8, {gpu.bandwidth_gbs:g} GB/s",
        f"  source: {gpu.source}, checked {gpu.checked.isoformat()}",
        "  products with a weight only; no kernel is faster than its bound, and measured gains are",
        "  usually smaller than the ratio of two bounds",
    ]
    if target.sparse_dtypes and not target.confirmed("sparse_dtypes"):
        lines.append(f"  no public log shows TensorRT choosing sparse kernels on {target.name}")
    for item in found:
        rows = [
            (
                entry.layer.name,
                shape_text(entry.layer.shape),
                *(f"{entry.bounds[v].us:.3g}" for v in VARIANTS),
                entry.bounds["dense"].by,
                "yes" if entry.layer.eligible else entry.layer.code,
            )
            for entry in item.layers
        ]
        header = ("layer", "weight", *VARIANTS, "bound by", "2:4 possible")
        lines += ["", f"  batch {item.batch}, estimated bounds in µs"]
        lines.append(table(header, rows, right=(2, 3, 4, 5), whole=(6, 7)))
        dense = item.total_us("dense")
        parts = [f"{v} {item.total_us(v):.4g}" for v in VARIANTS]
        lines.append(f"  estimated sum [µs]: {', '.join(parts)}")
        if dense:
            ratios = [f"{v} {dense / item.total_us(v):.2f}" for v in VARIANTS[1:]]
            lines.append(f"  dense bound over the others' (estimate): {', '.join(ratios)}")
        if item.left_out:
            lines.append(
                f"  {len(item.left_out)} layers of unknown size are left out, for instance "
                f"{item.left_out[0]}; pass --shapes"
            )
    return block(lines)
