"""Samples from a folder of images, decoded by pillow (the extra `images`).

An image becomes `(pixels / 255 − mean) / std`, in RGB for an input of 3 channels and in grey for
one of 1, stretched to the input's height and width (bilinear), without cropping. Inputs of uint8
get the pixels themselves. What the model does not say (layout, size) the caller does.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import BackendError, InputError
from onnx24.ir.archives import Header
from onnx24.ir.shapes import Dim
from onnx24.runtime.data import RowReader, Stacked, sorted_paths, unreadable
from onnx24.runtime.inputs import InputSpec

__all__ = ["ENDINGS", "Images", "image_files"]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
KEPT_BYTES = 1 << 30
"""Of decoded pixels, so that they need not be decoded for each pass over the samples."""
_CHANNELS = {1: "L", 3: "RGB"}
_MODES = Literal["nchw", "nhwc"]


@dataclass(frozen=True, kw_only=True)
class _Options:
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    layout: _MODES | None = None
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Images(_Options):
    """The images of a folder and the folders in it, as samples of a model of one image input.

    mean, std: of values in 0 to 1, one number or one for each channel; 0 and 1 where None, which is
    said, as the model was trained with some. layout: "nchw" or "nhwc", where the model does not
    tell it by a dimension of 3 or 1. size: height and width, or one number for both, where the
    model leaves them open.

    >>> import onnx24
    >>> onnx24.Images("photos", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).size
    """

    folder: str | os.PathLike[str]

    def __post_init__(self) -> None:
        """Raises: InputError O24-043 for values that make no sense."""
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                values = np.atleast_1d(np.asarray(1.0 if given is None else given, np.float64))
            except (TypeError, ValueError) as err:
                raise _wrong(f"{name} {given!r}: one number, or three") from err
            if values.ndim != 1 or len(values) not in (1, 3) or not np.isfinite(values).all():
                raise _wrong(f"{name} {given!r}: one number, or three")
            if name == "std" and not (values > 0).all():
                raise _wrong(f"std {given!r}: more than 0")
        if self.layout not in (None, "nchw", "nhwc"):
            raise _wrong(f"layout {self.layout!r}: nchw or nhwc")
        try:
            sides = (1, 1) if self.size is None else _pair(self.size)
        except (TypeError, ValueError):
            sides = (0, 0)
        if not all(1 <= n <= 1 << 15 for n in sides):
            raise _wrong(f"size {self.size!r}: height and width, of 1 to 32768")

    def source(self, specs: list[InputSpec], shapes: Mapping[str, Sequence[int]]) -> Stacked:
        """shapes: sizes of dynamic inputs by name. Raises: InputError O24-030, O24-032, O24-033,
        O24-068; BackendError O24-069 without pillow."""
        paths = image_files(Path(self.folder))
        if not paths:
            kinds = ", ".join(ending[1:] for ending in ENDINGS)
            raise unreadable(os.fspath(self.folder), f"the folder holds no images ({kinds})")
        return _Pictures(paths, self, specs, shapes)


def image_files(folder: Path) -> list[Path]:
    """By name, those of folders in it too."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    return sorted_paths(path for path in found if path.is_file())


def _wrong(message: str) -> InputError:
    return InputError.of("O24-043", f"images: {message}")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Raises: TypeError, ValueError for another thing."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return operator.index(height), operator.index(width)


def numbers_of(text: str, flag: str) -> tuple[float, ...]:
    """`0.5` or `0.485,0.456,0.406`. Raises: InputError O24-043."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise _wrong(f"{flag} {text}: one number, or three joined by commas") from err


def size_of(text: str) -> tuple[int, int]:
    """`224` or `HEIGHTxWIDTH`. Raises: InputError O24-043."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if match is None:
        raise _wrong(f"--image-size {text}: a number, or HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


# --- what the model wants -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """channels, height and width of one image, and whether channels come first."""

    channels: int
    height: int
    width: int
    is_first: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        if self.is_first:
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels


def _form(spec: InputSpec, options: Images, shapes: Mapping[str, Sequence[int]]) -> _Form:
    """Raises: InputError O24-068 where neither the model nor the caller tells it."""
    dims = spec.dims
    if dims is None or len(dims) not in (3, 4):
        raise _untold(spec, f"expected three or four dimensions, found {spec.dims_text}", "")
    given = shapes.get(spec.name)
    if given is not None and len(given) == len(dims):
        dims = tuple(d if isinstance(d, int) else n for d, n in zip(dims, given, strict=True))
    image = dims[-3:]
    first, last = image[0] in _CHANNELS, image[2] in _CHANNELS
    layout = options.layout
    if layout is None:
        if first == last:
            raise _untold(
                spec,
                f"{spec.dims_text} does not tell which dimension is that of channels",
                "--image-layout nchw, or nhwc, says it",
            )
        layout = "nchw" if first else "nhwc"
    channels, height, width = image if layout == "nchw" else (image[2], image[0], image[1])
    if isinstance(channels, int) and channels not in _CHANNELS:
        raise _untold(spec, f"{layout}: expected 3 or 1 channels, found {channels}", "")
    rows, columns = _pair(options.size or 0)
    return _Form(
        channels if isinstance(channels, int) else 3,
        _side(spec, height, rows),
        _side(spec, width, columns),
        layout == "nchw",
    )


def _side(spec: InputSpec, side: Dim, wanted: int) -> int:
    """The model's, or what the caller wants."""
    if not isinstance(side, int):
        if not wanted:
            why = f"{spec.dims_text} leaves the height or width open"
            raise _untold(spec, why, "--image-size 224 says it")
        return wanted
    if wanted and side != wanted:
        raise _untold(spec, f"expected images of {side}, found a size of {wanted}", "")
    return side


def _untold(spec: InputSpec, why: str, hint: str) -> InputError:
    return InputError.of("O24-068", why, tensor=spec.name, **({"hint": hint} if hint else {}))


def _scaling(options: Images) -> tuple[np.ndarray, np.ndarray]:
    """mean and std, of one channel or of each [float32]"""
    mean, std = (
        np.atleast_1d(np.asarray(default if given is None else given, np.float32))
        for given, default in ((options.mean, 0.0), (options.std, 1.0))
    )
    return mean, std


class _Pictures(Stacked):
    """One row an image, decoded when it is read."""

    noun = "image"

    def __init__(
        self,
        paths: list[Path],
        options: Images,
        specs: list[InputSpec],
        shapes: Mapping[str, Sequence[int]],
        kept: dict[int, np.ndarray] | None = None,
    ) -> None:
        _pillow()
        required = [spec for spec in specs if spec.required]
        if len(required) != 1:
            names = ", ".join(spec.name for spec in required)
            raise InputError.of(
                "O24-031",
                f"expected a model of one input, found {names or 'none'}",
                file=os.fspath(options.folder),
                hint="images feed one input; stack the arrays of all in an .npz",
            )
        (spec,) = required
        if spec.dtype.name not in ("float32", "float16", "bfloat16", "float64", "uint8"):
            raise InputError.of(
                "O24-033",
                f"expected floats or uint8, found {spec.dtype_text}",
                file=os.fspath(options.folder),
                tensor=spec.name,
            )
        self._paths, self._options, self._shapes = paths, options, shapes
        self._spec, self._form = spec, _form(spec, options, shapes)
        if any(len(values) not in (1, self._form.channels) for values in _scaling(options)):
            raise _wrong(f"mean and std: the model takes {self._form.channels} channel")
        self._kept: dict[int, np.ndarray] = {} if kept is None else kept
        header = Header((len(paths), *self._form.shape), spec.dtype)
        super().__init__({spec.name: header}, f"{options.folder} ({self._words()})", specs)

    def _words(self) -> str:
        form, options = self._form, self._options
        size = f"{form.height}x{form.width} {'RGB' if form.channels == 3 else 'grey'}"
        if self._spec.dtype == np.uint8:
            return f"{size}, 0 to 255"
        texts = [
            f"{name} {', '.join(f'{n:g}' for n in values)}"
            for name, values in zip(("mean", "std"), _scaling(options), strict=True)
        ]
        return f"{size}, 0 to 1, {', '.join(texts)}"

    @property
    def doubts(self) -> list[Diagnostic]:
        """O24-070 where nobody said how pixels become numbers."""
        options = self._options
        if self._spec.dtype == np.uint8 or (options.mean, options.std) != (None, None):
            return []
        return [diagnostic("O24-070", f"images as {self._words()}", tensor=self._spec.name)]

    def of(self, specs: list[InputSpec]) -> Stacked:
        form = {self._spec.name: (1, *self._form.shape)}
        return _Pictures(self._paths, self._options, specs, form, self._kept)

    def readers(self, stack: ExitStack) -> Mapping[str, RowReader]:
        return {self._spec.name: self}

    def read(self, start: int, count: int) -> np.ndarray:
        """Images as the model takes them. Raises: InputError O24-030."""
        pixels = np.stack([self._pixels(i) for i in range(start, start + count)])
        if self._form.is_first:
            pixels = pixels.transpose(0, 3, 1, 2)
        if self._spec.dtype == np.uint8:
            return pixels
        shape = (-1, 1, 1) if self._form.is_first else (-1,)
        mean, std = _scaling(self._options)
        scaled = pixels.astype(np.float32) / np.float32(255)
        found = (scaled - mean.reshape(shape)) / std.reshape(shape)
        return found.astype(self._spec.dtype)

    def _pixels(self, i: int) -> np.ndarray:
        """[height, width, channels] uint8"""
        if i in self._kept:
            return self._kept[i]
        form, path, image = self._form, self._paths[i], _pillow()
        try:
            with image.open(path) as opened:
                upright = _upright(opened)
                flat = _8_bit(upright).convert(_CHANNELS[form.channels])
                resized = flat.resize((form.width, form.height), image.Resampling.BILINEAR)
            pixels = np.asarray(resized).reshape(form.height, form.width, form.channels)
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as err:
            raise unreadable(str(path), f"expected an image: {err}") from err
        if (len(self._kept) + 1) * math.prod(form.shape) <= KEPT_BYTES:
            self._kept[i] = pixels
        return pixels


def _upright(opened: Any) -> Any:
    """As viewers show it: phones store how they were held."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(opened)


def _8_bit(opened: Any) -> Any:
    """Grey of 16 bits with its upper 8, as pillow reads colours; its own conversion clips at 255.
    Raises: ValueError for floats, and for more bits."""
    if opened.mode.split(";")[0] not in ("I", "F"):
        return opened
    values = np.asarray(opened)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() >= 1 << 16:
        raise ValueError(f"8 or 16 bits a channel, found mode {opened.mode}")
    return _pillow().fromarray((values >> 8).astype(np.uint8))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as err:
        raise BackendError.of(
            "O24-069", "images need pillow, which is not installed: pip install 'onnx24[images]'"
        ) from err
    return Image
