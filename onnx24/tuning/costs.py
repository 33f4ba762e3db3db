"""What a layer costs in each of its forms: estimates from data-sheet rates, never measurements.

Forms are those of the ledger's estimate: `dense` (16-bit floats), `sparse` (the same, 2:4), `int8`
and `sparse-int8`; and `int4`, of weights alone, which are computed with in 16-bit floats.
*Source:* for latency see ledger.estimate. Energy: M. Horowitz, Computing's energy problem, ISSCC
2014, table of 45 nm (an 8-bit multiplication and addition 0.23 pJ, 16-bit floats 1.5 pJ; 32 bits
from DRAM 640 pJ, so 20 pJ a bit): a proxy that orders forms, no figure of any GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx24.ledger.estimate import COMPRESSED, VARIANTS, bound
from onnx24.ledger.model_layers import ModelLayer
from onnx24.targets import Target
from onnx24.targets.gpus import Gpu

__all__ = [
    "DENSE",
    "FORMATS",
    "FORMS",
    "INT4",
    "INT4_OPSET",
    "OBJECTIVES",
    "UNITS",
    "Unit",
    "has_int4",
    "units_of",
]

INT4 = "int4"
FORMS = (*VARIANTS, INT4)
FORMATS = ("int8", INT4)
"""What may be chosen from besides 16-bit floats."""
DENSE = "dense"
OBJECTIVES = ("latency", "size", "energy-proxy")
UNITS = {"latency": "µs", "size": "bytes", "energy-proxy": "µJ"}
_MAC_PJ = {2: 1.5, 1: 0.23}
"""Bytes of an operand → pJ of one multiplication and addition."""
_DRAM_PJ_A_BYTE = 160.0
_INT4_BYTES = 0.5 + 2 / 128
"""Of a weight in INT4, with its share of the 16-bit scale that a block of 128 has."""
INT4_OPSET = 21


@dataclass(frozen=True)
class Unit:
    """What is chosen together: one weight with all the products that read it. costs: form → cost,
    of those that the target has kernels for. weight: the initializer."""

    weight: str
    nodes: tuple[str, ...]
    costs: Mapping[str, float]

    @property
    def saving(self) -> float:
        """The most that another form can save."""
        return self.costs[DENSE] - min(self.costs.values())


def units_of(
    layers: Sequence[ModelLayer],
    target: Target,
    gpu: Gpu,
    objective: str,
    formats: Sequence[str] = ("int8",),
) -> list[Unit]:
    """Units in document order; layers of two activations, and those of which some size is not
    known, are in none, since nothing is chosen for them. formats: of FORMATS, those that may be
    chosen."""
    by_weight: dict[str, list[ModelLayer]] = {}
    for layer in layers:
        if layer.weight:
            by_weight.setdefault(layer.weight, []).append(layer)
    units = []
    for weight, group in by_weight.items():
        if any(layer.flops is None or layer.activation_bytes is None for layer in group):
            continue
        costs = {form: _cost(group, form, target, gpu, objective) for form in FORMS}
        known = {form: cost for form, cost in costs.items() if _has(group, form, target, formats)}
        units.append(Unit(weight, tuple(layer.name for layer in group), known))
    return units


def has_int4(target: Target) -> bool:
    """Whether the target takes weights in INT4, which opset 21 brought."""
    return target.int8_initializers and target.opset_max >= INT4_OPSET


def _has(group: Sequence[ModelLayer], form: str, target: Target, formats: Sequence[str]) -> bool:
    if form == INT4:
        products = all(layer.op in ("MatMul", "Gemm") for layer in group)
        return INT4 in formats and has_int4(target) and products
    if "int8" in form and not (target.int8 and "int8" in formats):
        return False
    kind = "int8" if "int8" in form else "fp16"
    if "sparse" not in form:
        return True
    return kind in target.sparse_dtypes and all(layer.eligible for layer in group)


def _cost(
    group: Sequence[ModelLayer], form: str, target: Target, gpu: Gpu, objective: str
) -> float:
    if objective == "latency" and form == INT4:
        return sum(_int4_us(layer, gpu) for layer in group)
    if objective == "latency":
        return sum(bound(layer, target, gpu, form).us for layer in group)
    itemsize = 1 if "int8" in form else 2
    kept = COMPRESSED[itemsize] if "sparse" in form else 1.0
    each = _INT4_BYTES if form == INT4 else itemsize * kept
    weights = math.prod(group[0].shape) * each
    if objective == "size":
        return weights
    macs = sum((layer.flops or 0) / 2 for layer in group) * (0.5 if "sparse" in form else 1.0)
    moved = weights + sum(
        (layer.activation_bytes or 0) / layer.itemsize * itemsize for layer in group
    )
    return (macs * _MAC_PJ[itemsize] + moved * _DRAM_PJ_A_BYTE) / 1e6


def _int4_us(layer: ModelLayer, gpu: Gpu) -> float:
    """As `ledger.estimate.bound`: arithmetic in 16-bit floats, weights read in INT4."""
    assert layer.flops is not None and layer.activation_bytes is not None
    moved = math.prod(layer.shape) * _INT4_BYTES + layer.activation_bytes / layer.itemsize * 2
    return 1e6 * max(layer.flops / (gpu.fp16_tflops * 1e12), moved / (gpu.bandwidth_gbs * 1e9))
