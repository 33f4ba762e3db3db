"""Arrays of any of the types that models have in one .npz, which appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnx24.ir.files import atomic_write

__all__ = ["packed", "plain", "unpacked", "write_arrays"]


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Two runs may write the same. Raises: InputError O24-040."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def packed(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Entries of the file from which `unpacked` makes the array again."""
    return {name: plain(array), f"{name}_dtype": np.array(array.dtype.name)}


def unpacked(file: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Raises: KeyError where it is not in the file."""
    array, dtype = file[name], str(file[f"{name}_dtype"])
    if array.dtype.name == dtype:
        return array
    import ml_dtypes

    return array.view(np.dtype(getattr(ml_dtypes, dtype)))


def plain(array: np.ndarray) -> np.ndarray:
    """.npy has no name for bfloat16 and the like: their bits."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")
