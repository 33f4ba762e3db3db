"""Where the values that passes replace are kept until the model is written.

Small ones stay in memory, up to MEMORY_BYTES in all; the rest lies in files that have no name and
go with the process. Where the output's place is known (`stage`), a replaced payload is written at
once to where it will lie in the output's data file, into a file in the output's folder; saving then
gives that file its name, so that a large model is written once and not copied. Payloads are never
overwritten: snapshots refer to them.

Source: open(2), O_TMPFILE, on giving an unnamed file a name.
"""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from onnx24.errors import InputError

INLINE_BYTES = 1024
EMBEDDED = "/onnx24/embedded"
OVERLAY = "/onnx24/overlay"

_FILE_SHIFT = 48
"""An overlay's offset is a position in its file number `offset >> 48`; number 0 is memory."""


@dataclass(frozen=True)
class Reference:
    """Where a payload lies: `location` as in external_data, `offset` and `length` in bytes."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class DataLayout:
    """Where payloads lie in a data file: `positions` [bytes], and the file's size."""

    positions: dict[Reference, int]
    nbytes: int

    @classmethod
    def of(cls, references: Iterable[Reference]) -> DataLayout:
        """In the order given, each payload once."""
        positions: dict[Reference, int] = {}
        end = 0
        for ref in references:
            if ref in positions:
                continue
            # Source: onnxruntime maps external data only at page-aligned offsets.
            align = 4096 if ref.length >= 1 << 16 else 64
            positions[ref] = end + -end % align
            end = positions[ref] + ref.length
        return cls(positions, end)


@dataclass
class _Spill:
    """A file of the overlay. `taken`: the positions that were handed out."""

    number: int
    file: IO[bytes]
    size: int = 0
    taken: set[int] = field(default_factory=set)
    mapped: memoryview = field(default_factory=lambda: memoryview(b""))


class Overlay:
    """Replaced payloads. Offsets number memory and all files as one space."""

    MEMORY_BYTES = 64 << 20

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}
        self._memory_bytes = 0
        self._numbers = itertools.count(1)
        self._files: dict[int, _Spill] = {}
        self._spill: _Spill | None = None
        self._staged: _Spill | None = None
        self._target: Path | None = None
        self._layout = DataLayout({}, 0)

    def stage(self, target: Path, layout: DataLayout) -> None:
        """From now on, keep what replaces a payload of `layout` at that payload's position in a
        file that can become the data file `target`. Small models stay in memory all the same."""
        self._staged = None
        self._target, self._layout = target, layout

    # --- writing -------------------------------------------------------------------------
    def append(self, data: memoryview, replaces: Reference | None = None) -> int:
        offset = self.reserve(len(data), replaces)
        self.write(offset, 0, data)
        return offset

    def reserve(self, length: int, replaces: Reference | None = None) -> int:
        """Room for a payload, all of which must be written; `replaces` says which one it takes the
        place of. Raises: OSError."""
        if (slot := self._slot(length, replaces)) is not None:
            return slot
        if self._memory_bytes + length <= self.MEMORY_BYTES:
            offset = self._memory_bytes
            self._memory_bytes += length
            self._blocks[offset] = np.empty(length, np.uint8)
            return offset
        if self._spill is None:
            self._spill = self._add(tempfile.TemporaryFile(prefix="onnx24-"))  # noqa: SIM115
        position = self._spill.size
        self._spill.size += length
        return self._spill.number << _FILE_SHIFT | position

    def _slot(self, length: int, replaces: Reference | None) -> int | None:
        """The place of `replaces` in the staged file, where it is free and of that length."""
        if replaces is None or replaces.length != length or self._target is None:
            return None
        position = self._layout.positions.get(replaces)
        if position is None or self._layout.nbytes <= self.MEMORY_BYTES:
            return None
        if self._staged is None:
            file = _unnamed(self._target.parent)
            if file is None:
                self._target = None
                return None
            os.truncate(file.fileno(), self._layout.nbytes)
            self._staged = self._add(file, self._layout.nbytes)
        if position in self._staged.taken:
            return None
        self._staged.taken.add(position)
        return self._staged.number << _FILE_SHIFT | position

    def _add(self, file: IO[bytes], size: int = 0) -> _Spill:
        spill = _Spill(next(self._numbers), file, size)
        self._files[spill.number] = spill
        weakref.finalize(self, file.close)
        return spill

    def write(self, offset: int, start: int, data: memoryview) -> None:
        """Put `data` at `start` of the payload at `offset`. Safe in several threads."""
        spill = self._files.get(offset >> _FILE_SHIFT)
        if spill is None:
            self._blocks[offset].data[start : start + len(data)] = data
            return
        write_at(spill.file, _position(offset) + start, data)

    def block(self, offset: int) -> np.ndarray | None:
        """The payload at `offset` to be written in place, uint8; None where it is in a file."""
        return self._blocks.get(offset)

    # --- reading -------------------------------------------------------------------------
    def view(self, offset: int, length: int) -> memoryview:
        spill = self._files.get(offset >> _FILE_SHIFT)
        if spill is None:
            return self._blocks[offset].data[:length].toreadonly()
        start = _position(offset)
        if start + length > len(spill.mapped):
            spill.mapped = map_file(spill.file)
        return spill.mapped[start : start + length]

    def open(self, offset: int) -> tuple[IO[bytes], int] | None:
        """A file and the position in it where the payload at `offset` begins; None where it is in
        memory."""
        spill = self._files.get(offset >> _FILE_SHIFT)
        if spill is None:
            return None
        return os.fdopen(os.dup(spill.file.fileno()), "rb"), _position(offset)

    def maps(self) -> list[memoryview]:
        return [spill.mapped for spill in self._files.values()]

    # --- saving --------------------------------------------------------------------------
    def is_in_place(self, ref: Reference, position: int) -> bool:
        """Whether the staged file holds this payload at `position`."""
        return (
            self._staged is not None
            and ref.location == OVERLAY
            and ref.offset == self._staged.number << _FILE_SHIFT | position
        )

    def staged_for(self, target: Path, layout: DataLayout) -> IO[bytes] | None:
        """The staged file, if it needs only the other payloads to be the data file `target`."""
        staged = self._staged
        if staged is None or self._target != target or staged.size != layout.nbytes:
            return None
        in_place = {p for ref, p in layout.positions.items() if self.is_in_place(ref, p)}
        return staged.file if staged.taken == in_place else None

    def seal(self) -> None:
        """Write no more to the staged file; it has become somebody's output."""
        self._staged, self._target = None, None


def _position(offset: int) -> int:
    return offset & ((1 << _FILE_SHIFT) - 1)


def _unnamed(folder: Path) -> IO[bytes] | None:
    """A new file without a name in `folder`; None where the system can't give it one later."""
    flags = getattr(os, "O_TMPFILE", None)
    if flags is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.fdopen(os.open(folder, flags | os.O_RDWR, 0o666), "r+b", buffering=0)
    except OSError:
        return None  # another file system, or a folder that save will complain about


def map_file(file: IO[bytes]) -> memoryview:
    """A read-only view of a whole file; empty files can't be mapped and give an empty view."""
    if os.fstat(file.fileno()).st_size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def release_pages(view: memoryview) -> None:
    """Let go of the pages of a mapped file that were touched; views of it stay valid.

    Source: madvise(2), MADV_DONTNEED: the next access reads the file again.
    """
    if isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        view.obj.madvise(mmap.MADV_DONTNEED)


def became_shorter(path: str = "") -> InputError:
    return InputError.of("O24-073", "it became shorter while it was read", file=path)


def read_at(file: IO[bytes], position: int, buffer: memoryview) -> None:
    """Fill `buffer`. Raises: OSError; InputError O24-073 where the file ends early."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file.fileno(), [buffer[done:]], position + done)
        if not count:
            raise became_shorter()
        done += count


def write_at(file: IO[bytes], position: int, data: memoryview) -> None:
    """Raises: OSError."""
    done = 0
    while done < len(data):
        done += os.pwrite(file.fileno(), data[done:], position + done)
