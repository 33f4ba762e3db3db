"""Activations between segments: in memory up to a bound, in a temporary folder beyond it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Store"]


class Store:
    """Arrays by (run, side, name). The two sides are the dense and the compressed model; where
    they agree one array is held. `spilled_bytes`: what went to disk in all.

    memory_bytes: what may be held; what comes after goes to files, and is mapped when asked for.
    folder: where the temporary folder is made; the system's where None.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self._memory = memory_bytes
        self._parent = folder
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._held: dict[tuple[int, str], tuple[Any, Any]] = {}
        self._bytes = 0
        self._count = 0
        self.spilled_bytes = 0

    def put(self, run: int, name: str, dense: np.ndarray, compressed: np.ndarray) -> None:
        """Keep a value of one run; `compressed is dense` says that they agree."""
        first = self._keep(dense)
        second = first if compressed is dense else self._keep(compressed)
        self._held[run, name] = (first, second)

    def get(self, run: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(dense, compressed); the same array where they agree. Raises: KeyError."""
        first, second = self._held[run, name]
        dense = _loaded(first)
        return dense, dense if second is first else _loaded(second)

    def drop(self, name: str, runs: int) -> None:
        """Forget a value of all runs."""
        for run in range(runs):
            for kept in {id(x): x for x in self._held.pop((run, name), ())}.values():
                if isinstance(kept, Path):
                    kept.unlink()
                else:
                    self._bytes -= kept.nbytes

    def close(self) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, array: np.ndarray) -> np.ndarray | Path:
        # Types that .npy can't name stay in memory: strings, bfloat16 and the like.
        fits = self._bytes + array.nbytes <= self._memory
        if fits or not array.nbytes or array.dtype.isbuiltin != 1:
            self._bytes += array.nbytes
            return array
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnx24-", dir=self._parent)
        self._count += 1
        path = Path(self._folder.name, f"{self._count}.npy")
        np.save(path, array, allow_pickle=False)
        self.spilled_bytes += array.nbytes
        return path


def _loaded(kept: np.ndarray | Path) -> np.ndarray:
    return np.load(kept, mmap_mode="r") if isinstance(kept, Path) else kept
