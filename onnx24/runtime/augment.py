"""More calibration samples from those at hand: shifted and mirrored images.

A layer with few rows is fitted to those rows; shifted copies of the same images are new rows to
every layer behind the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.inputs import input_specs

__all__ = ["Augmentation", "Augmented", "parse_augmentation"]

_FORM = re.compile(r"shift(\d*)(\+flip)?(?:x(\d+))?(?:@(\d+(?:x\d+){1,2}))?")
_FACTOR, _SHIFT = 8, 2


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """shift: largest shift [pixels] along each axis; flip: mirror left and right as well; factor:
    copies of each sample, the sample itself among them; image: the sizes of the image that a flat
    input holds, None for inputs that are images already."""

    shift: int = _SHIFT
    flip: bool = False
    factor: int = _FACTOR
    image: tuple[int, ...] | None = None


def parse_augmentation(text: str) -> Augmentation | None:
    """`shift[PIXELS][+flip][xFACTOR][@HxW or @CxHxW]`; None for "off".

    Raises: ValueError for anything else.
    """
    if text in ("", "off"):
        return None
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no augmentation: expected off or shift[PIXELS][+flip][xFACTOR][@HxW], "
            "such as shift2, shift3+flip, shift2x16@28x28"
        )
    pixels, flip, factor, image = match.groups()
    sizes = image.split("x") if image else []
    if any(int(n) == 0 for n in (*sizes, factor or "1")):
        raise ValueError(f"{text!r}: the factor and the sizes of an image are 1 or more")
    return Augmentation(
        shift=int(pixels) if pixels else _SHIFT,
        flip=flip is not None,
        factor=int(factor) if factor else _FACTOR,
        image=tuple(int(n) for n in sizes) or None,
    )


class Augmented:
    """Calibration data with `augmentation.factor` times the runs: what it is asked for by those
    who only want `runs` and `batches`.

    Raises: InputError O24-032 where no input of the model is an image of that size.
    """

    def __init__(self, data: Calibration, augmentation: Augmentation, model: Model) -> None:
        self._data, self._how = data, augmentation
        self._axes: dict[str, tuple[tuple[int, ...] | None, int, int]] = {}
        for spec in input_specs(model):
            sizes = spec.dims or ()
            pixels = spec.dtype.kind in "fV" or spec.dtype == np.uint8
            if spec.name in data.names and pixels:
                axes = _image_axes(sizes, augmentation.image)
                if axes is not None:
                    self._axes[spec.name] = axes
        if not self._axes:
            raise InputError.of(
                "O24-032",
                "augment: expected an input with an image's four dimensions, found "
                + ", ".join(f"{s.name} {s.dims_text}" for s in input_specs(model)),
                hint="name the image's size where the input is flat: augment=shift2@28x28",
            )

    @property
    def runs(self) -> int:
        return self._data.runs * self._how.factor

    def __len__(self) -> int:
        return len(self._data) * self._how.factor

    def batches(self, model: Model) -> Iterator[dict[str, np.ndarray]]:
        for number, feeds in enumerate(self._data.batches(model)):
            rng = np.random.default_rng(number)
            yield feeds
            for _ in range(self._how.factor - 1):
                yield {name: self._changed(name, array, rng) for name, array in feeds.items()}

    def _changed(self, name: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if name not in self._axes:
            return array
        view, h, w = self._axes[name]
        shape = array.shape
        if view is not None:
            array = array.reshape(-1, *view)
        images = array.reshape(-1, *array.shape[1:])
        out = np.empty_like(images)
        for i, image in enumerate(images):
            dy, dx = rng.integers(-self._how.shift, self._how.shift + 1, 2)
            mirrored = self._how.flip and bool(rng.integers(2))
            moved = _shifted(_shifted(image, int(dy), h - 1), int(dx), w - 1)
            out[i] = np.flip(moved, w - 1) if mirrored else moved
        return out.reshape(shape)


def _image_axes(
    dims: tuple[object, ...], image: tuple[int, ...] | None
) -> tuple[tuple[int, ...] | None, int, int] | None:
    """(the sample's view of a flat input or None, axis of the height, axis of the width)."""
    if image is not None:
        total = int(np.prod(image))
        known = [d for d in dims if isinstance(d, int)]
        if int(np.prod(known, dtype=np.int64)) % total:
            return None
        return image, len(image) - 1, len(image)
    if len(dims) != 4:
        return None
    last = dims[3]
    channels_last = isinstance(last, int) and last <= 4 and dims[1] not in (1, 3, 4)
    return (None, 1, 2) if channels_last else (None, 2, 3)


def _shifted(image: np.ndarray, by: int, axis: int) -> np.ndarray:
    """Moved along an axis, the border repeated."""
    if not by:
        return image
    size = image.shape[axis]
    source = np.clip(np.arange(size) - by, 0, size - 1)
    return np.take(image, source, axis)
