"""The dense values of pruned weights, kept until it is known what 2:4 gained.

`prune24` keeps them in `dense/` of its work dir, one file a weight, `gate` takes them from there.
They are the values right before pruning: with channels scaled and permuted as earlier
passes left them, where those of the original file would no longer fit.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx24.ir.archives import UNREADABLE, reading
from onnx24.layerwise.arrays import packed, plain, unpacked, write_arrays

__all__ = ["KEPT_BYTES", "DenseLayer", "KeptDense"]

KEPT_BYTES = 4 << 30
"""All files of one folder together; a weight that would exceed it is not kept."""
_NORM_RATIO = 1.33
"""INT8 moves the norm of a channel by a few per cent, a scale by a power of two at least by 2."""
_WEAK_CHANNEL = 0.1
"""Channels below this share of the largest norm are not compared: INT8 may round them away."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseLayer:
    """A weight before it was pruned. rows: [outputs and positions, K] as its product, an `op`,
    sees them. has_alpha: whether that is a Gemm whose alpha is not 1. bias: [N] of its layer,
    and what pruning moved it to; None where it stayed."""

    rows: np.ndarray
    op: str
    has_alpha: bool = False
    bias: np.ndarray | None = None
    bias_moved: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Of its file, about."""
        return self.rows.nbytes + self.rows.size // 8


class KeptDense:
    """The folder `dense` of a work dir."""

    def __init__(self, work_dir: Path, *, limit_bytes: int = KEPT_BYTES) -> None:
        self.folder = work_dir / "dense"
        self._limit_bytes = limit_bytes
        self._names: dict[Path, str] = {}

    def room_bytes(self) -> int:
        if not self.folder.is_dir():
            return self._limit_bytes
        used = sum(path.stat().st_size for path in self.folder.glob("*.npz"))
        return max(0, self._limit_bytes - used)

    def store(self, name: str, layer: DenseLayer, pruned: np.ndarray) -> Path | None:
        """Keep a weight and what tells it again: where it is not zero after pruning, and the norms
        of its channels then. None where there is no room. The same content is the same file.

        pruned: as `layer.rows`.
        """
        digest = hashlib.sha256(name.encode())
        for array in (layer.rows, pruned, layer.bias, layer.bias_moved):
            digest.update(b"-" if array is None else np.ascontiguousarray(plain(array)).data)
        path = self.folder / f"{_safe(name)}.{digest.hexdigest()[:16]}.npz"
        if path.exists():
            return path
        if layer.nbytes > self.room_bytes():
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            "name": np.array(name),
            "op": np.array(layer.op),
            "has_alpha": np.array(layer.has_alpha),
            "mask": np.packbits(pruned != 0, axis=-1),
            "row_norms": _norms(pruned, 1),
            "column_norms": _norms(pruned, 0),
        }
        for key in ("rows", "bias", "bias_moved"):
            array = getattr(layer, key)
            if array is not None:
                arrays |= packed(key, array)
        write_arrays(path, arrays)
        return path

    def find(self, name: str, pruned: np.ndarray) -> list[DenseLayer]:
        """Every kept weight which this one is the pruned form of, perhaps quantized since: it is
        zero where that was, and its channels have the norms they had. Its name is that of then, or
        one that a later pass made of that, with an ending (`w_int8`)."""
        known = {path: self._name(path) for path in sorted(self.folder.glob("*.npz"))}
        earlier = {was for was in known.values() if was and name.startswith(was)}
        for was in sorted(earlier, key=len, reverse=True):
            paths = [path for path, kept in known.items() if kept == was]
            if found := [layer for path in paths if (layer := _load(path, pruned)) is not None]:
                return found
        return []

    def _name(self, path: Path) -> str:
        """Of the weight, read once; "" where the file is damaged."""
        if path not in self._names:
            try:
                with reading(path) as file:
                    self._names[path] = str(file["name"])
            except UNREADABLE:
                return ""
        return self._names[path]


def _load(path: Path, pruned: np.ndarray) -> DenseLayer | None:
    """None for another weight, and for a file that is damaged."""
    try:
        with reading(path) as file:
            if not _is_pruned_form(file, pruned):
                return None

            def array(key: str) -> np.ndarray | None:
                return unpacked(file, key) if key in file else None

            rows = array("rows")
            if rows is None or rows.shape != pruned.shape:
                return None
            return DenseLayer(
                rows=rows,
                op=str(file["op"]),
                has_alpha=bool(file["has_alpha"]),
                bias=array("bias"),
                bias_moved=array("bias_moved"),
            )
    except UNREADABLE:
        return None


def _is_pruned_form(file: Any, pruned: np.ndarray) -> bool:
    n, k = pruned.shape
    packed = file["mask"]
    if packed.shape != (n, -(-k // 8)):
        return False
    if (packed & np.packbits(pruned != 0, axis=-1) != np.packbits(pruned != 0, axis=-1)).any():
        return False
    return all(
        _same_norms(file[key], _norms(pruned, axis))
        for key, axis in (("row_norms", 1), ("column_norms", 0))
    )


def _same_norms(was: np.ndarray, now: np.ndarray) -> bool:
    if was.shape != now.shape:
        return False
    strong = was > _WEAK_CHANNEL * was.max(initial=0.0)
    ratio = now[strong] / was[strong]
    return bool(((ratio < _NORM_RATIO) & (ratio > 1 / _NORM_RATIO)).all())


def _norms(rows: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(np.sum(np.square(rows.astype(np.float32)), axis=axis, dtype=np.float64))


def _safe(name: str) -> str:
    """A name that every file system takes; different ones may become the same."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80] or "_"
