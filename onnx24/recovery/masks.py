"""Which weights are held to 2:4 while they are trained, and their masks.

A group is four values `stride` elements apart in the flat array, as in onnx24.sparsity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility, SparseTarget
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.weights import numpy_dtype
from onnx24.sparsity.masks import is_24_by_stride, mask_24

__all__ = ["Site", "mask_of", "sites"]


@dataclass(frozen=True)
class Site:
    """A weight whose groups of four are pruned. `is_sparse`: the stored values are 2:4 already."""

    key: ValueKey
    stride: int
    is_sparse: bool


def sites(model: Model, target: SparseTarget, *, prune: bool) -> list[Site]:
    """The initializers of floats or INT8 that are 2:4, recorded or not, in the model's order; with
    `prune`, those of floats too that could be on this target."""
    cache = AnalysisCache()
    uses = cache.get(model, WeightUses)
    verdicts = cache.get(model, Eligibility).judge(model, target)
    claims = set(model.claims.keys())
    found = []
    for key in model.weights:
        if not _has_values(model, key):
            continue
        verdict = verdicts.get(key)
        strides: set[int | None] = set()
        if key in claims:
            strides = {use.k_stride for use in uses.products(key)}
        elif verdict is not None and verdict.eligible:
            strides = {verdict.k_stride}
        known = [stride for stride in strides if stride is not None]
        if len(known) != 1:
            continue
        is_sparse = is_24_by_stride(model.weights[key], known[0])
        is_float = numpy_dtype(model.weights.tensor(key).data_type).kind != "i"
        if is_sparse or (prune and is_float):
            found.append(Site(key, known[0], is_sparse))
    return found


def _has_values(model: Model, key: ValueKey) -> bool:
    """Floats, or integers that may be rounded from some."""
    dtype = numpy_dtype(model.weights.tensor(key).data_type)
    return dtype.name in ("float16", "bfloat16", "float32", "float64", "int8")


def mask_of(weight: np.ndarray, stride: int, sparsity: float = 0.5) -> np.ndarray:
    """True for what stays, by magnitude, in the weight's own shape.

    sparsity: 0.5 leaves two of each four and 0.25 three. Between them, as many groups as it takes
    lose their second value, those first whose second smallest magnitude is smallest; below 0.25,
    likewise with the first value.
    Raises: ValueError outside [0, 0.5], or where groups do not fill the array.
    """
    if not 0 <= sparsity <= 0.5:
        raise ValueError(f"sparsity {sparsity} is not in 0 to 0.5")
    grid = np.ascontiguousarray(weight).reshape(-1, 4, stride)
    if sparsity == 0.5:
        return mask_24(grid, 1).reshape(weight.shape)
    magnitudes = np.abs(grid).transpose(0, 2, 1).reshape(-1, 4)
    order = np.argsort(magnitudes, axis=1, kind="stable")
    keep = np.ones_like(magnitudes, dtype=np.bool_)
    groups = len(keep)
    lost = round(sparsity * 4 * groups)
    for which, count in ((0, min(lost, groups)), (1, max(lost - groups, 0))):
        nth = order[:, which]
        cost = magnitudes[np.arange(groups), nth]
        chosen = np.argsort(cost, kind="stable")[: math.floor(count)]
        keep[chosen, nth[chosen]] = False
    return keep.reshape(len(grid), stride, 4).transpose(0, 2, 1).reshape(weight.shape)
