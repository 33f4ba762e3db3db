"""What a model is fed when two versions of it are held against each other.

A transformation that is wrong shows only where the values let it: with all dimensions equal a
wrong axis hides, with positive values a dropped Relu does, with values of size one a changed
epsilon does. So there are several probes: real samples where there are any, normal values with
zeros among them, heavy tails, small values; and two sizes of each dimension that is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration, load_data
from onnx24.runtime.difference import is_float
from onnx24.runtime.inputs import InputSpec, input_specs

__all__ = ["Feeds", "candidates"]

Feeds = dict[str, np.ndarray]

SAMPLES = 2
"""Real samples that are run."""

_SIZES = ((2, 8), (1, 16), (1, 32), (1, 64), (1, 1), (1, 128), (1, 224), (1, 512))
_OTHER_SIZES = ((3, 12), (1, 24), (1, 40), (1, 96), (1, 160), (1, 256))
"""(first dimension, each other one) of dimensions that are open, in the order in which they are
tried until the model runs."""


def candidates(
    model: Model, data: Calibration | None, *, seed: int = 0
) -> Iterator[Iterator[Feeds]]:
    """For each probe what may be fed, the best first; who asks takes the first that runs.

    Raises: InputError O24-030 for inputs that can't be made up (strings, sequences).
    """
    if data is not None:
        samples = list(islice(data.with_units_per_run(1).batches(model), SAMPLES))
        yield from (iter([feeds]) for feeds in samples)
        yield iter([_styled(samples[0], "normal", seed)])
        yield iter([_styled(samples[0], "small", seed)])
        return
    specs = [spec for spec in input_specs(model) if spec.required]
    if not _is_open(specs):
        for style in ("normal", "wide", "small"):
            yield _made(model, specs, (_SIZES[0],), style, seed)
        return
    yield _made(model, specs, _SIZES, "normal", seed)
    yield _made(model, specs, (*_OTHER_SIZES, *_SIZES), "wide", seed)
    yield _made(model, specs, _SIZES, "small", seed)


def _is_open(specs: Sequence[InputSpec]) -> bool:
    return any(not isinstance(dim, int) for spec in specs for dim in spec.dims or (None,))


def _made(
    model: Model,
    specs: Sequence[InputSpec],
    sizes: Sequence[tuple[int, int]],
    style: str,
    seed: int,
) -> Iterator[Feeds]:
    first = {spec.dims[0] for spec in specs if spec.dims} - {None}
    for batch, other in sizes:
        shapes = {
            spec.name: [
                dim if isinstance(dim, int) else batch if axis == 0 or dim in first else other
                for axis, dim in enumerate(spec.dims)
            ]
            for spec in specs
            if spec.dims is not None
        }
        data = load_data("random:1", model, shapes=shapes, seed=seed)
        for feeds in data.batches(model):
            yield _styled(feeds, style, seed)
            if any(
                array.dtype.kind in "iu" and array.dtype.itemsize > 1 for array in feeds.values()
            ):
                yield {k: np.ones_like(a) if a.dtype.kind in "iu" else a for k, a in feeds.items()}


def _styled(feeds: Feeds, style: str, seed: int) -> Feeds:
    """Floats of the style in the shapes of `feeds`; what is no float stays."""
    out = {}
    for position, (name, array) in enumerate(feeds.items()):
        if not is_float(array):
            out[name] = array
            continue
        rng = np.random.default_rng([seed, position, array.size])
        values = rng.standard_normal(array.shape)
        if style == "normal":
            values *= rng.random(array.shape) > 1 / 8
        elif style == "wide":
            values *= np.exp(rng.standard_normal(array.shape))
        else:
            values *= 0.02
        out[name] = values.astype(array.dtype)
    return out
