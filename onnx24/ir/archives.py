"""Numpy archives (.npz) that may be cut, damaged or made by a stranger."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from onnx24.ir.inputs import regular

UNREADABLE = (
    OSError,
    EOFError,
    ArithmeticError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, numpy and a reader of what they give raise for files that are cut, encrypted,
pickled or garbage."""


@dataclass(frozen=True)
class Header:
    """Of one array. In an archive: its member, and where its values begin in that [bytes]."""

    shape: tuple[int, ...]
    dtype: np.dtype
    member: str = ""
    fortran: bool = False
    start: int = 0


def headers(path: str | Path) -> dict[str, Header]:
    """Name → header of every array; no values are read.

    Raises: one of UNREADABLE, also for shapes that the member has no room for: to make room for
    what a header says would take any memory.
    """
    found = {}
    with zipfile.ZipFile(regular(path)) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = read(file)
                if dtype.hasobject:
                    raise ValueError(f"{info.filename} holds Python objects (a pickle)")
                room = info.file_size - file.tell()
                if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > room:
                    raise ValueError(
                        f"{info.filename} is {dtype}{list(shape)} by its header and holds {room} "
                        "bytes"
                    )
                name = info.filename.removesuffix(".npy")
                found[name] = Header(shape, dtype, info.filename, fortran, file.tell())
    return found


@contextmanager
def reading(path: str | Path) -> Iterator[NpzFile]:
    """The arrays of an archive whose headers hold. Raises: one of UNREADABLE."""
    headers(path)
    with np.load(path, allow_pickle=False) as file:
        yield file
