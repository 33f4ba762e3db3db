"""Sizes for dynamic dimensions that nobody gave: what trtexec takes to be 1.

Given sizes first, then those of the same name elsewhere, then 1 for a first dimension, which is the
batch. What is left takes the smallest size of SIZES at which ONNX Runtime runs the model, all at
once, or where none does, each by itself; where that fails too, with 2 for the first dimensions,
which are the nodes of a graph that its edges name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx24.errors import InputError
from onnx24.ir.shapes import Dim
from onnx24.runtime.inputs import InputSpec

__all__ = ["SIZES", "concrete_shapes"]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 224, 256, 320, 384, 512, 640)
MAX_TRIES = 64
MAX_ELEMENTS = 1 << 24
"""Of one input: larger ones are not tried."""

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Runs = Callable[[Mapping[str, Shape]], int]


def concrete_shapes(
    specs: Sequence[InputSpec], given: Mapping[str, Sequence[int]], runs: Runs
) -> tuple[Shapes, tuple[str, ...]]:
    """(a size for every dimension of every input, the inputs that have one from the search).

    given: sizes by input; a negative one gives none. runs: 2 where the model runs at these sizes, 1
    where one of its outputs is empty, as a pooling's is that is larger than its image, 0 where it
    fails; asked only where something is left to search, or several first dimensions and integers
    may be a graph's.
    Raises: InputError O24-505 for sizes that contradict the model or each other; O24-036 for an
    input of no known rank, and where no size runs.
    """
    known = {spec.name for spec in specs}
    if unknown := sorted(set(given) - known):
        raise InputError.of(
            "O24-505", f"shapes for {unknown}: expected names of inputs, {sorted(known)}"
        )
    wanted = {spec.name: _merged(spec, given.get(spec.name)) for spec in specs}
    named = _named(specs, wanted)
    free: dict[str, None] = {}
    first: set[str] = set()
    keys: dict[str, list[int | str]] = {}
    for spec in specs:
        keys[spec.name] = []
        for axis, dim in enumerate(wanted[spec.name]):
            if isinstance(dim, str) and dim in named and dim not in first:
                dim = named[dim]
            if not isinstance(dim, int):
                key = dim or f"{spec.name}[{axis}]"
                if axis == 0:
                    named.setdefault(key, 1)
                    first.add(key)
                elif key not in first:
                    free[key] = None
                dim = key
            keys[spec.name].append(dim)
    free = {key: None for key in free if key not in named}  # a batch's name at another axis
    empty: Shapes | None = None
    for batch, sizes in itertools.product((1, 2) if first else (1,), _choices(list(free))):
        if batch == 2 and empty is not None:
            break
        every = {**named, **dict.fromkeys(first, batch), **sizes}
        found = free if batch == 1 else {**free, **dict.fromkeys(first)}
        searched = tuple(n for n, dims in keys.items() if any(d in found for d in dims))
        shapes = {
            name: tuple(dim if isinstance(dim, int) else every[dim] for dim in dims)
            for name, dims in keys.items()
        }
        if not (free or (len(first) > 1 and any(spec.dtype.kind in "iu" for spec in specs))):
            return shapes, ()
        small = all(math.prod(shape) <= MAX_ELEMENTS for shape in shapes.values())
        done = runs(shapes) if small else 0
        if done == 2:
            return shapes, searched
        empty = empty or (shapes if done else None)
    if empty is not None:  # a detector that finds nothing in random numbers
        return empty, searched
    spec = next(s for s in specs if any(d in found for d in keys[s.name]))
    axis, dim = next((i, d) for i, d in enumerate(keys[spec.name]) if d in found)
    raise InputError.of(
        "O24-036",
        f"input {spec.name!r} is {spec.dims_text}: nothing says how large dimension {axis} ({dim}) "
        f"is, and ONNX Runtime runs the model at none of {', '.join(map(str, SIZES))}",
        tensor=spec.name,
    )


def _choices(names: list[str]) -> Iterator[dict[str, int]]:
    """One size for all, then each combination from the smallest sum on; MAX_TRIES at most."""
    if not names:
        yield {}
        return
    for size in SIZES:
        yield dict.fromkeys(names, size)
    if len(names) > 3:
        return
    combined = sorted(itertools.product(SIZES, repeat=len(names)), key=lambda c: (sum(c), c))
    mixed = [c for c in combined if len(set(c)) > 1]
    for sizes in mixed[: MAX_TRIES - len(SIZES)]:
        yield dict(zip(names, sizes, strict=True))


def _named(specs: Sequence[InputSpec], wanted: Mapping[str, tuple[Dim, ...]]) -> dict[str, int]:
    """Sizes of dimensions' names. Raises: InputError O24-505 where one name gets two."""
    found: dict[str, int] = {}
    for spec in specs:
        for dim, size in zip(spec.dims or (), wanted[spec.name], strict=False):
            if not isinstance(dim, str) or not isinstance(size, int):
                continue
            if found.setdefault(dim, size) != size:
                raise InputError.of(
                    "O24-505",
                    f"shape of {spec.name!r} is {spec.dims_text}: the dimensions named {dim!r} are "
                    f"of one size, found {found[dim]} and {size}",
                    tensor=spec.name,
                )
    return found


def _merged(spec: InputSpec, given: Sequence[int] | None) -> tuple[Dim, ...]:
    """The input's dimensions with the sizes that are given. Raises: InputError O24-505, O24-036."""
    if given is None:
        if spec.dims is None:
            raise InputError.of(
                "O24-036",
                f"input {spec.name!r} has no known rank: expected its shape, found none",
                tensor=spec.name,
            )
        return spec.dims
    dims: tuple[Dim, ...] = (None,) * len(given) if spec.dims is None else spec.dims
    if len(dims) == len(given) and all(
        size < 0 or not isinstance(dim, int) or dim == size
        for dim, size in zip(dims, given, strict=True)
    ):
        return tuple(dim if size < 0 else int(size) for dim, size in zip(dims, given, strict=True))
    raise InputError.of(
        "O24-505",
        f"shape of {spec.name!r}: expected {spec.dims_text}, found {list(given)}",
        tensor=spec.name,
    )
