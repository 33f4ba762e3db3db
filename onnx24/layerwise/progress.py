"""What a killed run leaves behind, so that the next one goes on with the layers it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnx24.ir.archives import UNREADABLE, reading
from onnx24.ir.keys import ValueKey
from onnx24.layerwise.arrays import packed, plain, unpacked, write_arrays
from onnx24.layerwise.results import LayerResult

__all__ = ["Saved"]


class Saved:
    """Solved layers in a folder. `identity`: everything that the result depends on; a folder that
    was made for another is not read, each has a sub-folder of its own. folder None: nothing is
    kept."""

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.found = 0
        self._folder: Path | None = None
        if folder is not None:
            name = hashlib.sha256(identity.encode()).hexdigest()[:16]
            self._folder = folder / f"layers-{name}"
            self._folder.mkdir(parents=True, exist_ok=True)

    def within(self, identity: str) -> Saved:
        """What was solved under one more condition, in a folder of its own."""
        return Saved(self._folder, identity)

    def load(
        self, keys: Sequence[ValueKey], like: Mapping[str, np.ndarray]
    ) -> list[LayerResult] | None:
        """The layers as they were stored; None where one was not, or can't be read. like: the dense
        weights by name, whose shapes and dtypes they have."""
        found = []
        for key in keys:
            result, dense = self._load(key), like[key.name]
            if result is None or result.stored.shape != dense.shape:
                return None
            if result.stored.dtype != dense.dtype:
                return None
            found.append(result)
        self.found += len(found)
        return found

    def _load(self, key: ValueKey) -> LayerResult | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with reading(path) as file:
                stored = unpacked(file, "stored")
                bias = unpacked(file, "bias") if "bias" in file else None
                head = json.loads(str(file["head"]))
            result = LayerResult(
                stored=stored, bias=bias, magnitude=head["magnitude"], facts=head["facts"]
            )
            is_whole = head["sha256"] == _digest(key, result)
        except UNREADABLE:
            return None  # damaged since; it is solved again
        return result if is_whole else None

    def store(self, key: ValueKey, result: LayerResult) -> None:
        path = self._path(key)
        if path is None:
            return
        head = json.dumps(
            {
                "magnitude": result.magnitude,
                "facts": result.facts,
                "sha256": _digest(key, result),
            }
        )
        arrays = {"head": np.array(head), **packed("stored", result.stored)}
        if result.bias is not None:
            arrays |= packed("bias", result.bias)
        write_arrays(path, arrays)

    def _path(self, key: ValueKey) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{hashlib.sha256(str(key).encode()).hexdigest()[:24]}.npz"


def _digest(key: ValueKey, result: LayerResult) -> str:
    """Of all that a file says: one that was cut, edited or renamed does not have it."""
    said = json.dumps([str(key), result.magnitude, result.facts], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for array in (result.stored, result.bias):
        if array is not None:
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(plain(array)).data)
    return digest.hexdigest()
