"""Optimization profiles from data: the sizes that the samples have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from onnx24.backends.base import Profile, check_names
from onnx24.backends.onnx_file import Input
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration, chosen_shapes


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
    *,
    batch: int | None = None,
) -> tuple[dict[str, Profile], list[Diagnostic]]:
    """(`shapes`, and for dynamic inputs that they leave out what the data show, else the sizes of
    `runtime.sizes`; what to say of those, O24-053). batch: the size of each dynamic first
    dimension; all profiles are then static.

    Raises: InputError O24-036, O24-505.
    """
    inputs = list(inputs)
    found = dict(shapes)
    if data is not None:
        found = {**profiles_from_data(inputs, data, model), **shapes}
    given: dict[str, tuple[int, ...]] = {}
    if batch is not None:
        given = {i.name: _of_batch(i, found.get(i.name), batch) for i in inputs if i.shape}
        found = {n: Profile.static(given.get(n, p.opt)) for n, p in found.items()} | {
            i.name: Profile.static(given[i.name])
            for i in inputs
            if i.dynamic and i.shape and min(given[i.name]) >= 0
        }
    check_names(inputs, found)
    missing = [i.name for i in inputs if i.dynamic and i.name not in found]
    if not missing:
        return found, []
    sizes = chosen_shapes(model, given | {name: profile.opt for name, profile in found.items()})
    for name in missing:
        found[name] = _like_named(inputs, name, sizes[name], found)
    text = " ".join(f"{name}:{found[name]}" for name in missing)
    message = f"nothing says how large dynamic dimensions are: they are taken as {text}"
    return found, [diagnostic("O24-053", message, hint=f"pass --shapes {text}, with other sizes")]


def _of_batch(given: Input, profile: Profile | None, batch: int) -> tuple[int, ...]:
    """The input's sizes with `batch` for a dynamic first dimension; -1 where one is not known."""
    assert given.shape
    first, *rest = given.shape
    known = profile.opt[1:] if profile is not None else rest
    sizes = [first if isinstance(first, int) else batch, *known]
    return tuple(size if isinstance(size, int) else -1 for size in sizes)


def _like_named(
    inputs: Iterable[Input], name: str, sizes: tuple[int, ...], found: Mapping[str, Profile]
) -> Profile:
    """The sizes as a profile; a dimension whose name has a range elsewhere has that."""
    ranges: dict[str, tuple[int, int, int]] = {}
    own: tuple[int | str | None, ...] = ()
    for given in inputs:
        if given.name == name:
            own = given.shape or ()
        elif given.name in found:
            profile = found[given.name]
            for dim, low, opt, high in zip(
                given.shape or (), profile.min, profile.opt, profile.max, strict=False
            ):
                if isinstance(dim, str):
                    ranges.setdefault(dim, (low, opt, high))
    each = [
        ranges.get(dim, (size,) * 3) if isinstance(dim, str) else (size,) * 3
        for dim, size in zip(own, sizes, strict=True)
    ]
    return Profile(*(tuple(column) for column in zip(*each, strict=True)))
