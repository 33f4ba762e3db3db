"""Masks and quantizers that let gradients through: what training on a graph and training in torch
have in common.

*Source:* clipped straight-through estimation (gradient 1 inside the range, 0 outside); learned
step sizes, LSQ (arXiv 1902.08153); SR-STE (arXiv 2102.04010).
"""

from __future__ import annotations

import math
from typing import Any

from onnx24.recovery._torch import torch
from onnx24.recovery.node import Tensor

__all__ = [
    "INT8",
    "LEAST_RATIO",
    "along",
    "fake_quantize",
    "least_scale",
    "round_in_range",
    "slowed",
    "step_factor",
    "straight",
]

INT8 = (-128, 127)


def along(parameter: Tensor, axis: int, rank: int) -> Tensor:
    """A scale or zero point of one or of each index of an axis, shaped to meet values of that
    rank."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


class _RoundInRange(torch.autograd.Function):
    """Round and clamp; the gradient is 1 where nothing was clamped and 0 elsewhere."""

    @staticmethod
    def forward(ctx, y: Tensor, low: float, high: float) -> Tensor:  # type: ignore[override]
        rounded = torch.round(y)
        ctx.save_for_backward((rounded >= low) & (rounded <= high))
        return rounded.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


def round_in_range(y: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """To the nearest integer, ties to even, within [low, high]; see `_RoundInRange`."""
    return _RoundInRange.apply(y, low, high)


def fake_quantize(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """round(x / scale) in [low, high], times scale. The scale, in a shape that meets `x`, gets
    the gradient of LSQ where it wants one: q − x / scale inside the range, the limit outside."""
    return round_in_range(x / scale, low, high) * scale


def step_factor(elements: int, high: float) -> float:
    """What a learned scale's gradient is multiplied by, 1 / √(N · q_max), so that it moves about
    as fast as weights do. elements: quantized with one scale; of an activation, in one sample."""
    return 1.0 / math.sqrt(max(elements, 1) * high)


class _Slowed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient * ctx.factor, None


def slowed(value: Tensor, factor: float) -> Tensor:
    """The same value, whose gradient is `factor` times as large."""
    return _Slowed.apply(value, factor)


LEAST_RATIO = 1e-3
"""Of a learned scale to where it started."""


def least_scale(dtype: Any) -> float:
    """The smallest scale that a file of that type holds without losing digits."""
    return float(torch.finfo(dtype).smallest_normal)


class _Straight(torch.autograd.Function):
    """W·M whose gradient reaches all of W, with the decay λ·(1 − M)·W (SR-STE)."""

    @staticmethod
    def forward(ctx, weight: Tensor, mask: Tensor, decay: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return torch.where(mask, weight, torch.zeros_like(weight))

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        weight, mask = ctx.saved_tensors
        pruned = torch.where(mask, torch.zeros_like(weight), weight)
        return gradient + ctx.decay * pruned, None, None


def straight(weight: Tensor, mask: Tensor, decay: float) -> Tensor:
    """The weight under a mask, as `_Straight` has it."""
    return _Straight.apply(weight, mask, decay)
