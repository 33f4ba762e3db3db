"""Ranges of activations as files: our JSON, and TensorRT's calibration cache.

A file whose name ends in `.json` is ours: it holds digests of the model and of the samples, and is
refused for others. Any other name is TensorRT's text, a header and one line a tensor,
`name: 3d8d4c66`: the scale (range / 127) as a big-endian float32 in hex. It holds no digest.

*Source:* TensorRT developer guide, IInt8Calibrator (writeCalibrationCache).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx24.errors import InputError
from onnx24.ir.archives import UNREADABLE
from onnx24.ir.files import atomic_write
from onnx24.ir.inputs import protect, regular
from onnx24.ir.model import Model
from onnx24.ir.scopes import tensors
from onnx24.quant.calibrators import Range
from onnx24.quant.scales import INT8_MAX

__all__ = ["RangeCache", "model_digest"]

FORMAT = "onnx24 activation ranges"
VERSION = 1
TENSORRT_HEADER = "TRT-8601-EntropyCalibration2"
_HEADER = re.compile(r"TRT-\d+-\w+")


@dataclass
class RangeCache:
    """`ranges`: by activation. `options`: those of the pass that decide the ranges. model, data:
    digests, "" where unknown (TensorRT's format)."""

    ranges: dict[str, Range]
    model: str = ""
    data: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RangeCache:
        """Raises: InputError O24-223 for a file that cannot be read or is neither format."""
        try:
            text = regular(path).read_text(encoding="utf-8")
            protect(path)
            return _from_json(text) if _is_json(path) else _from_tensorrt(text)
        except UNREADABLE as err:
            reason = os.strerror(err.errno) if isinstance(err, OSError) and err.errno else str(err)
            raise InputError.of("O24-223", f"no cache of ranges: {reason}", file=str(path)) from err

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all. Raises: InputError O24-040, O24-041, O24-223."""
        text = self.to_json() if _is_json(path) else self.to_tensorrt()
        with atomic_write(path) as file:
            file.write(text.encode("utf-8"))
        protect(path)

    def check(self, path: str, *, model: str, data: str | None, options: Mapping[str, Any]) -> None:
        """That the ranges are of this model, these samples (None: there are none) and these
        options. Raises: InputError O24-223 with what was expected and found."""
        if not self.model:
            return
        wanted: list[tuple[str, Any, Any]] = [("the model", model, self.model)]
        if data is not None:
            wanted.append(("the samples", data, self.data))
        wanted += [(name, value, self.options.get(name)) for name, value in options.items()]
        for what, expected, found in wanted:
            if expected != found:
                raise InputError.of(
                    "O24-223",
                    f"{what}: expected {_short(expected)}, the cache was made with {_short(found)}",
                    file=path,
                    facts={"expected": expected, "found": found},
                )

    def require(self, path: str, names: Sequence[str]) -> None:
        """Raises: InputError O24-223 where activations are missing."""
        missing = [name for name in names if name not in self.ranges]
        if missing:
            raise InputError.of(
                "O24-223",
                f"{len(missing)} of {len(names)} activations have no range in it, {missing[0]!r} "
                "for one",
                file=path,
                facts={"missing": missing},
            )

    def to_json(self) -> str:
        document = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "data": self.data,
            "options": self.options,
            "ranges": {name: vars(found) for name, found in self.ranges.items()},
        }
        return json.dumps(document, indent=1) + "\n"

    def to_tensorrt(self, header: str = TENSORRT_HEADER) -> str:
        lines = [header]
        for name, found in self.ranges.items():
            if found.amax > 0 and not found.overflowed:  # TensorRT keeps the others in float
                lines.append(f"{name}: {struct.pack('>f', found.amax / INT8_MAX).hex()}")
        return "\n".join(lines) + "\n"


def model_digest(model: Model) -> str:
    """sha256 of the model's structure and weights, wherever the weights are stored."""
    digest = hashlib.sha256()
    bare = model.skeleton()
    for tensor, stub in zip(tensors(model.proto), tensors(bare), strict=True):
        digest.update(model.weights.digest_of(tensor).encode())
        dims, data_type, name = list(stub.dims), stub.data_type, stub.name
        stub.Clear()
        stub.dims.extend(dims)
        stub.data_type, stub.name = data_type, name
    digest.update(bare.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _is_json(path: str | os.PathLike[str]) -> bool:
    return str(path).lower().endswith(".json")


def _from_json(text: str) -> RangeCache:
    document = json.loads(text)
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise ValueError(
            f"expected {FORMAT!r} in version {VERSION}, found {document.get('format')!r} in "
            f"version {document.get('version')!r}"
        )
    entries = document["ranges"]
    ranges = {name: _range(name, **entry) for name, entry in entries.items()}
    return RangeCache(ranges, document["model"], document["data"], dict(document["options"]))


def _from_tensorrt(text: str) -> RangeCache:
    lines = text.splitlines()
    if not lines or not _HEADER.fullmatch(lines[0].strip()):
        raise ValueError(f"expected a first line like {TENSORRT_HEADER!r}")
    ranges = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        name, separator, value = line.rpartition(":")
        if not separator or not re.fullmatch(r"[0-9a-fA-F]{1,8}", value.strip()):
            raise ValueError(f"line {number}: expected `name: hex`, found {line[:40]!r}")
        (scale,) = struct.unpack(">f", bytes.fromhex(value.strip().zfill(8)))
        ranges[name] = _range(name, scale * INT8_MAX, "cache")
    return RangeCache(ranges)


def _range(name: str, amax: float, method: str = "", values: int = 0, overflowed: int = 0) -> Range:
    if not (math.isfinite(amax) and amax >= 0):
        raise ValueError(f"{name!r} has the range {amax}")
    return Range(float(amax), str(method), int(values), int(overflowed))


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
