"""Optimization profiles from data: the sizes that the samples have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from onnx24.backends.base import Profile
from onnx24.backends.onnx_file import Input
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration


def profiles_from_data(
    inputs: Iterable[Input], data: Calibration, model: Model
) -> dict[str, Profile]:
    """One profile for each dynamic input that the data feed: per dimension the smallest, the most
    frequent (of several the largest) and the largest size of its runs.

    A dynamic first dimension counts samples, of which one at a time must be possible: its smallest
    size is 1.
    """
    sizes: dict[str, list[Counter[int]]] = {}
    for feeds in data.batches(model):
        for name, array in feeds.items():
            counted = sizes.setdefault(name, [Counter() for _ in array.shape])
            for counter, size in zip(counted, array.shape, strict=True):
                counter[size] += 1
    return {i.name: _profile(i, sizes[i.name]) for i in inputs if i.dynamic and i.name in sizes}


def _profile(given: Input, counted: list[Counter[int]]) -> Profile:
    low = [min(counter) for counter in counted]
    opt = [max(counter, key=lambda size: (counter[size], size)) for counter in counted]
    high = [max(counter) for counter in counted]
    if low and given.shape is not None and not isinstance(given.shape[0], int):
        low[0] = min(1, low[0])
    return Profile(tuple(low), tuple(opt), tuple(high))


def completed(
    inputs: Iterable[Input],
    shapes: Mapping[str, Profile],
    data: Calibration | None,
    model: Model,
) -> dict[str, Profile]:
    """`shapes`, and for dynamic inputs that they leave out what the data show."""
    if data is None:
        return dict(shapes)
    return {**profiles_from_data(inputs, data, model), **shapes}
