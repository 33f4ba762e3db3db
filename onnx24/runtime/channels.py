"""Norms of activation channels, found by running the model on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnx24.analysis.forms import product_axes
from onnx24.analysis.weight_uses import WeightUse
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import activations

__all__ = ["channel_norms", "data_axis"]


def channel_norms(
    model: Model,
    uses: Sequence[WeightUse],
    data: Calibration,
    progress: Callable[..., Iterator[Any]],
) -> dict[str, np.ndarray]:
    """The L2 norm of each channel that the weights are multiplied with, `[K]` in float64, by the
    name of the value, over all samples and positions. The data are run once; what is held is one
    run's activations and the sums.

    Values of nested bodies are left out, and those that two products read along different axes.
    progress: as `Context.progress`. Raises: InputError O24-016, also where a value has another
    number of channels than its weight, O24-030 to O24-033.
    """
    sizes = {use.data: use.K for use in uses}
    axes: dict[str, set[int | None]] = {}
    for use in uses:
        if use.scope == "" and use.data:
            axes.setdefault(use.data, set()).add(data_axis(use))
    chosen = {name: axis for name, (axis, *more) in axes.items() if axis is not None and not more}
    sums: dict[str, np.ndarray] = {}
    if not chosen:
        return {}
    runs = activations(model, list(chosen), data.batches(model))
    for values in progress(runs, "channels", total=data.runs):
        for name, axis in chosen.items():
            channels = np.moveaxis(values[name], axis, 0)
            if len(channels) != sizes[name]:
                shape = list(values[name].shape)
                message = f"{name!r} of shape {shape} does not fit a weight of K = {sizes[name]}"
                raise InputError.of("O24-016", message)
            rows = channels.astype(np.float64).reshape(len(channels), -1)
            squares = np.einsum("kn,kn->k", rows, rows)
            sums[name] = sums[name] + squares if name in sums else squares
    return {name: np.sqrt(total) for name, total in sums.items()}


def data_axis(use: WeightUse) -> int | None:
    """The axis of the other operand that a product sums over, from the end; None where that is not
    known, or where each group of channels is summed by itself."""
    assert use.consumer is not None
    if use.groups > 1 or not use.shape or use.op == "Einsum":
        return None
    axes = product_axes(use.consumer, use.input, len(use.shape))
    return None if axes is None else axes.k_data
