"""A product's weight as a matrix whose rows are summed over, whatever form the product gives it.

Weights alone: a row runs along the axis of the 2:4 groups, and a kernel's positions are rows of
their own. `layerwise.sites` and `quant.rows` also read activations, so that a convolution's row is
a whole patch; the latter knows no graph, and takes transposed convolutions, which are never 2:4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx24.analysis.weight_uses import WeightUse

__all__ = ["as_rows", "from_rows", "has_alpha"]


def as_rows(view: np.ndarray, use: WeightUse) -> np.ndarray:
    """[outputs and positions, K], of the weight as the consumer sees it."""
    assert use.k_axis_consumer is not None
    return np.moveaxis(view, use.k_axis_consumer, -1).reshape(-1, view.shape[use.k_axis_consumer])


def from_rows(rows: np.ndarray, use: WeightUse, shape: Sequence[int]) -> np.ndarray:
    """The inverse, for a consumer that sees `shape`. Raises: ValueError where the rows do not fill
    it."""
    assert use.k_axis_consumer is not None
    axis = use.k_axis_consumer % len(shape)
    moved = [size for i, size in enumerate(shape) if i != axis] + [shape[axis]]
    if rows.shape[1] != shape[axis] or math.prod(shape) != rows.size:
        raise ValueError(f"{list(rows.shape)} rows do not fill {list(shape)}")
    return np.moveaxis(rows.reshape(moved), -1, axis)


def has_alpha(*uses: WeightUse) -> bool:
    """Whether one of the products is a Gemm whose alpha is not 1."""
    return any(
        attribute.name == "alpha" and attribute.f != 1.0
        for use in uses
        if use.consumer is not None
        for attribute in use.consumer.proto.attribute
    )
