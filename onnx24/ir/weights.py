"""The values of a model's tensors: read-only views on the file they are in, and an overlay for
what passes replace.

The document (`Model.proto`) is lean: a TensorProto whose payload is larger than INLINE_BYTES
carries only a reference, in ONNX's own `external_data` fields. The location says where:
`/onnx24/embedded` (offset and length in the model file), `/onnx24/overlay` (replaced values, see
ir/overlay.py), or a relative path (ONNX external data, as the model has it). Absolute locations are
refused in input files, so the two of ours can't be forged.

Large weights are read as views of mapped files, whose pages are let go of every MAPPED_BYTES, or,
where even one weight may be too large, piece by piece (`scan`, `draft`) into buffers.

Source: onnx/onnx.proto (TensorProto), onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Generic, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnx24.errors import InputError
from onnx24.ir.checksum import BLOCK_BYTES, checksum_part, total_of
from onnx24.ir.keys import ValueKey, as_key
from onnx24.ir.overlay import (
    EMBEDDED,
    INLINE_BYTES,
    OVERLAY,
    Overlay,
    Reference,
    map_file,
    read_at,
    release_pages,
)
from onnx24.ir.pieces import Piece, pieces
from onnx24.sparsity import _numba
from onnx24.sparsity.masks import Violations, violations_by_stride
from onnx24.sparsity.metrics import count_violating

__all__ = [
    "EMBEDDED",
    "INLINE_BYTES",
    "OVERLAY",
    "Draft",
    "Reference",
    "WeightInfo",
    "Weights",
    "data_folders",
    "element_count",
    "map_file",
    "numpy_dtype",
    "payload_bytes",
    "reference_of",
    "set_reference",
]

T = TypeVar("T")

MAPPED_BYTES = 32 << 20
"""Views of mapped files that are given out before the pages of all are let go of [bytes]."""
_THREADS = 4
"""No more than so many read and write one weight: memory is what limits them."""
_BATCH = 8
"""Pieces that a thread takes at a time: to hand one over costs a tenth of the work on it."""
_DIGEST_BYTES = 1 << 20
_MAPPED_FILES = 64

_PACKED_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (
        ("UINT4", 4),
        ("INT4", 4),
        ("FLOAT4E2M1", 4),
        ("UINT2", 2),
        ("INT2", 2),
        ("FLOAT6E2M3", 6),
        ("FLOAT6E3M2", 6),
    )
    if hasattr(TensorProto, name)
}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class WeightInfo:
    dtype: np.dtype
    shape: tuple[int, ...]
    nbytes: int
    external: bool


def reference_of(tensor: TensorProto) -> Reference | None:
    """The reference of a lean tensor; None where the values are in the document.

    Raises: InputError O24-007 for an offset or length that is no number.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not isinstance(location, str):  # protobuf hands out bytes where they are not UTF-8
        raise InputError.of("O24-006", f"{location!r} is no file name", tensor=tensor.name)
    offset, length = entries.get("offset") or "0", entries.get("length")
    try:
        return Reference(
            location,
            int(offset),
            payload_bytes(tensor) if length is None else int(length),
        )
    except ValueError as err:
        raise InputError.of(
            "O24-007",
            f"offset {offset!r} and length {length!r} of external data must be numbers",
            tensor=tensor.name,
        ) from err
    except KeyError as err:
        raise InputError.of(
            "O24-014", f"data type {tensor.data_type} is not known", tensor=tensor.name
        ) from err


def set_reference(tensor: TensorProto, ref: Reference) -> None:
    """Make `tensor` a stub that refers to `ref`."""
    for name in ("raw_data", *_TYPED_FIELDS, "string_data"):
        tensor.ClearField(name)  # type: ignore[arg-type]
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", ref.location), ("offset", ref.offset), ("length", ref.length)):
        tensor.external_data.add(key=key, value=str(value))


def element_count(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def numpy_dtype(data_type: int) -> np.dtype:
    """The numpy (or ml_dtypes) dtype of an onnx.TensorProto.DataType."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def payload_bytes(tensor: TensorProto) -> int:
    """Size of the tensor's raw little-endian payload [bytes]; sub-byte types are packed."""
    count = element_count(tensor)
    if bits := _PACKED_BITS.get(tensor.data_type):
        return (count * bits + 7) // 8
    return count * numpy_dtype(tensor.data_type).itemsize


def data_folders(path: Path | None, base_dir: Path | None) -> list[Path]:
    """Where the data files of a model may lie: in the folder of the path that was opened or, where
    that is a link, of the file itself. A Hugging Face cache needs the second: in its snapshots
    model and data are links to files beside each other in `blobs`."""
    folders = [] if base_dir is None else [base_dir]
    if path is not None and path.is_symlink():
        folders.append(path.resolve().parent)
    return folders


class Weights:
    """Access to every tensor of one model. Keys are a main-graph name or a ValueKey."""

    def __init__(
        self,
        source: memoryview,
        folders: Sequence[Path],
        initializers: Callable[[], dict[ValueKey, TensorProto]],
        on_replace: Callable[[ValueKey], None],
        file: IO[bytes] | None = None,
    ) -> None:
        """source: the model file's bytes, and `file` that file where there is one. folders: where
        its data files may lie."""
        self._source = source
        self._file = file
        if file is not None:
            weakref.finalize(self, file.close)
        self._folders = [folder.resolve() for folder in folders]
        self._initializers = initializers
        self._on_replace = on_replace
        self._external: dict[str, memoryview] = {}
        self._mapped_bytes = 0
        self._overlay = Overlay()
        self._digests: dict[Reference, str] = {}
        self._checksums: dict[Reference, str] = {}
        self.sums_drafts = False
        """Whether `draft` takes the checksums of what it reads and writes on the way."""
        self._violations: dict[tuple[Any, ...], Violations] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._buffers = threading.local()
        self._origin: Weights | None = None

    def named_by(self, initializers: Callable[[], dict[ValueKey, TensorProto]]) -> Weights:
        """The same payloads under another document's names; that document replaces none."""
        other = copy.copy(self)
        other._initializers = initializers
        other._origin = self  # which closes the file when it goes
        return other

    # --- by name -------------------------------------------------------------------------
    def keys(self) -> list[ValueKey]:
        return list(self._initializers())

    def __iter__(self) -> Iterator[ValueKey]:
        return iter(self._initializers())

    def __contains__(self, key: str | ValueKey) -> bool:
        return as_key(key) in self._initializers()

    def tensor(self, key: str | ValueKey) -> TensorProto:
        """The lean TensorProto. Raises: KeyError."""
        return self._initializers()[as_key(key)]

    def __getitem__(self, key: str | ValueKey) -> np.ndarray:
        """A read-only array of the logical shape and dtype. Raises: KeyError."""
        return self.read(self.tensor(key))

    def info(self, key: str | ValueKey) -> WeightInfo:
        tensor = self.tensor(key)
        ref = reference_of(tensor)
        if tensor.data_type == TensorProto.STRING:
            nbytes = sum(len(s) for s in tensor.string_data)
        else:
            nbytes = payload_bytes(tensor)
        return WeightInfo(
            dtype=numpy_dtype(tensor.data_type),
            shape=tuple(tensor.dims),
            nbytes=nbytes,
            external=ref is not None and ref.location not in (EMBEDDED, OVERLAY),
        )

    def digest(self, key: str | ValueKey) -> str:
        """sha256 of the little-endian payload, in hex."""
        return self.digest_of(self.tensor(key))

    def replace(self, key: str | ValueKey, array: np.ndarray) -> None:
        """Put new values under an existing name.

        Raises: KeyError; ValueError for another shape or dtype. Equal values change nothing.
        """
        tensor = self.tensor(key)
        want = (tuple(tensor.dims), numpy_dtype(tensor.data_type))
        if (array.shape, array.dtype) != want:
            raise ValueError(
                f"{key} is {want[1]}{list(want[0])}, the replacement is "
                f"{array.dtype}{list(array.shape)}"
            )
        new = self._to_payload(tensor.data_type, array)
        if _equal_bytes(self.payload(tensor), new):
            return
        self._store(tensor, new, reference_of(tensor))
        self._on_replace(as_key(key))

    # --- by tensor -----------------------------------------------------------------------
    def read(self, tensor: TensorProto) -> np.ndarray:
        """The values of any TensorProto of the document, as a read-only array."""
        ref = reference_of(tensor)
        if ref is None and not tensor.HasField("raw_data"):
            array = numpy_helper.to_array(tensor)
        elif tensor.data_type in _PACKED_BITS:
            whole = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
            whole.raw_data = bytes(self.payload(tensor))
            array = numpy_helper.to_array(whole)
        else:
            array = np.frombuffer(self.payload(tensor), dtype=numpy_dtype(tensor.data_type))
            array = array.reshape(tuple(tensor.dims))
        array.flags.writeable = False
        return array

    def payload(self, tensor: TensorProto) -> memoryview:
        """The raw little-endian bytes. Raises: InputError O24-005 to 007, O24-014."""
        ref = reference_of(tensor)
        if ref is not None:
            data = self.resolve(ref, tensor.name)
        elif tensor.HasField("raw_data"):
            data = memoryview(tensor.raw_data)
        else:
            data = self._to_payload(tensor.data_type, numpy_helper.to_array(tensor))
        if len(data) != payload_bytes(tensor):
            raise InputError.of(
                "O24-014",
                f"{numpy_dtype(tensor.data_type)}{list(tensor.dims)} needs "
                f"{payload_bytes(tensor)} bytes, the model has {len(data)}",
                tensor=tensor.name,
            )
        return data

    def digest_of(self, tensor: TensorProto) -> str:
        ref = reference_of(tensor)
        if ref is not None and ref in self._digests:
            return self._digests[ref]
        if tensor.data_type == TensorProto.STRING:
            return hashlib.sha256(b"\0".join(tensor.string_data)).hexdigest()
        hasher = hashlib.sha256()
        for part in self._parts(tensor):
            hasher.update(part)
        digest = hasher.hexdigest()
        if ref is not None:
            self._digests[ref] = digest
        return digest

    def digest_at(self, ref: Reference) -> str:
        """sha256 of what a reference names, in hex."""
        return self.digest_of(self._stub(ref))

    def checksum_of(self, tensor: TensorProto, *, compiled: bool = False) -> str:
        """The checksum (ir/checksum.py) of the little-endian payload, in hex; not for strings.
        compiled: by numba."""
        ref = reference_of(tensor)
        if ref is not None and ref in self._checksums:
            return self._checksums[ref]
        sums, at = [], 0
        for part in self._parts(tensor):
            sums.append(checksum_part(np.frombuffer(part, np.uint8), at, compiled=compiled))
            at += len(part)
        found = total_of(sums)
        if ref is not None:
            self._checksums[ref] = found
        return found

    def checksum_at(self, ref: Reference, *, compiled: bool = False) -> str:
        """The same of what a reference names."""
        return self.checksum_of(self._stub(ref), compiled=compiled)

    def violations(self, tensor: TensorProto, stride: int) -> Violations:
        """How far the stored values are from 2:4, for groups whose members lie `stride` elements
        apart in the flat tensor. Values that a reference names never change, so each is looked at
        once.

        Raises: ValueError where the groups do not fill the tensor.
        """
        known = self._violations.get(_looked_at(tensor, stride))
        if known is not None:
            return known
        if tensor.data_type in _PACKED_BITS:
            return violations_by_stride(self.read(tensor), stride)
        parts = list(pieces(element_count(tensor), stride))
        found = _sum_violations(tensor, parts, list(self.scan(tensor, parts, _look)))
        self.remember(tensor, stride, found)
        return found

    def set_values(self, tensor: TensorProto, array: np.ndarray) -> None:
        """Fill a new TensorProto (dims and data_type included) that is about to enter the
        document."""
        data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.dtype.kind in "OSU":
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            return
        del tensor.dims[:]
        tensor.dims.extend(array.shape)
        tensor.data_type = data_type
        self._store(tensor, self._to_payload(data_type, array))

    def _to_payload(self, data_type: int, array: np.ndarray) -> memoryview:
        if data_type in _PACKED_BITS:
            return memoryview(numpy_helper.from_array(array).raw_data)
        flat = np.ascontiguousarray(array).reshape(-1)
        return memoryview(flat.view(np.uint8).data)

    def _store(
        self, tensor: TensorProto, data: memoryview, replaces: Reference | None = None
    ) -> None:
        if len(data) > INLINE_BYTES:
            offset = self._overlay.append(data, replaces)
            set_reference(tensor, Reference(OVERLAY, offset, len(data)))
            return
        for name in (*_TYPED_FIELDS, "external_data", "data_location"):
            tensor.ClearField(name)  # type: ignore[arg-type]
        tensor.raw_data = bytes(data)

    # --- piece by piece ------------------------------------------------------------------
    def scan(
        self, tensor: TensorProto, parts: Sequence[Piece], look: Callable[[Piece, np.ndarray], T]
    ) -> Iterator[T]:
        """look(piece, values) of every piece, in order. `values` is flat, and scratch. For dtypes
        whose values fill bytes.

        The first piece is looked at alone, later ones in ever larger batches, in several threads:
        who has seen enough stops asking.
        """
        dtype = numpy_dtype(tensor.data_type)
        with self._reader(tensor) as read:

            def task(piece: Piece) -> T:
                values = self._buffer(piece.size, dtype)
                _transfer(piece, values, read)
                return look(piece, values)

            begin, count = 0, 1
            while begin < len(parts):
                yield from self._each(task, parts[begin : begin + count])
                begin, count = begin + count, min(8 * count, 512)

    def draft(
        self,
        tensor: TensorProto,
        parts: Sequence[Piece],
        change: Callable[[Piece, np.ndarray], T],
    ) -> Draft[T]:
        """New values for a tensor, written where they will stay but not yet part of the model.

        change(piece, values): changes the flat `values`, a copy, in place and says something, in
        several threads. Every element must be in one piece. Raises: OSError for a full disk.
        """
        dtype, length = numpy_dtype(tensor.data_type), payload_bytes(tensor)
        offset = self._overlay.reserve(length, reference_of(tensor))
        block = self._overlay.block(offset)
        final = None if block is None else block.view(dtype)
        drafted = Reference(OVERLAY, offset, length)
        summed = self.sums_drafts and _are_blocks(parts, dtype)
        with self._reader(tensor) as read:

            def task(piece: Piece) -> tuple[T, list[np.ndarray]]:
                stays = final is not None and piece.runs == 1
                if final is not None and stays:
                    values = final[piece.start : piece.start + piece.size]
                else:
                    values = self._buffer(piece.size, dtype)
                _transfer(piece, values, read)
                sums = [_checksum_of_piece(piece, values)] if summed else []
                said = change(piece, values)
                sums += [_checksum_of_piece(piece, values)] if summed else []
                if not stays:
                    _transfer(piece, values, lambda at, data: self._overlay.write(offset, at, data))
                return said, sums

            outcomes = self._each(task, parts)
        if summed:
            for ref, n in ((reference_of(tensor), 0), (drafted, 1)):
                if ref is not None:
                    self._checksums[ref] = total_of([sums[n] for _, sums in outcomes])
        said = [said for said, _ in outcomes]
        return Draft(tensor, drafted, said)

    def commit(self, draft: Draft[Any]) -> None:
        """Make a draft the values of its tensor; the caller touches the document."""
        ref = draft.reference
        if ref.length > INLINE_BYTES:
            set_reference(draft.tensor, ref)
        else:
            self._store(draft.tensor, self.resolve(ref))

    def remember(self, tensor: TensorProto, stride: int, found: Violations) -> None:
        """What `violations` would find in the stored values, by who has just looked at them."""
        if reference_of(tensor) is not None:  # values in the document may be edited
            self._violations[_looked_at(tensor, stride)] = found

    def _each(self, task: Callable[[Piece], T], parts: Sequence[Piece]) -> list[T]:
        if len(parts) < 2 or (threads := _threads()) < 2:
            return [task(piece) for piece in parts]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx24-weights")
        size = max(1, min(_BATCH, len(parts) // (4 * threads)))
        batches = [parts[i : i + size] for i in range(0, len(parts), size)]
        futures = [self._pool.submit(lambda b: [task(p) for p in b], batch) for batch in batches]
        try:
            return [outcome for future in futures for outcome in future.result()]
        finally:  # after an error nothing may still read or write
            for future in futures:
                future.cancel()
            wait(futures)

    def _buffer(self, size: int, dtype: np.dtype) -> np.ndarray:
        """Scratch of this thread, used again and again: fresh memory costs a page fault a page."""
        nbytes = size * dtype.itemsize
        kept = self._buffers.__dict__.get("values")
        if kept is None or len(kept) < nbytes:
            kept = self._buffers.values = np.empty(nbytes, np.uint8)
        return kept[:nbytes].view(dtype)

    @contextmanager
    def _reader(self, tensor: TensorProto) -> Iterator[Callable[[int, memoryview], None]]:
        """read(at, buffer): fill a buffer with the payload's bytes from `at` on."""
        self.check(tensor)
        ref = reference_of(tensor)
        source = self.open(ref) if ref is not None else None
        if source is None:
            payload = self.payload(tensor)

            def copy(at: int, buffer: memoryview) -> None:
                buffer[:] = payload[at : at + len(buffer)]

            yield copy
            return
        file, start = source
        with file:
            yield lambda at, buffer: read_at(file, start + at, buffer)

    def _parts(self, tensor: TensorProto) -> Iterator[memoryview]:
        """The payload in parts, each valid until the next."""
        length = payload_bytes(tensor)
        if reference_of(tensor) is None or length <= _DIGEST_BYTES:
            yield self.payload(tensor)
            return
        buffer = memoryview(bytearray(_DIGEST_BYTES))
        with self._reader(tensor) as read:
            for start in range(0, length, len(buffer)):
                part = buffer[: length - start]
                read(start, part)
                yield part

    def is_equal(self, a: Reference, b: Reference) -> bool:
        """Whether two references name the same bytes; the first difference decides. Raises:
        InputError O24-005 to O24-007."""
        if a == b:
            return True
        if a.length != b.length:
            return False
        x, y = self._stub(a), self._stub(b)
        return all(p == q for p, q in zip(self._parts(x), self._parts(y), strict=True))

    @staticmethod
    def _stub(ref: Reference) -> TensorProto:
        tensor = TensorProto(data_type=TensorProto.UINT8, dims=[ref.length])
        set_reference(tensor, ref)
        return tensor

    @property
    def overlay(self) -> Overlay:
        """Where replaced values are, for `Model.stage` and `Model.save`."""
        return self._overlay

    # --- references ----------------------------------------------------------------------
    def resolve(self, ref: Reference, name: str = "") -> memoryview:
        """A mapped view of what `ref` names."""
        self._mapped_bytes += ref.length
        if self._mapped_bytes > MAPPED_BYTES:
            self._mapped_bytes = ref.length
            self.release_pages()
        if ref.location == EMBEDDED:
            return self._source[ref.offset : ref.offset + ref.length]
        if ref.location == OVERLAY:
            return self._overlay.view(ref.offset, ref.length)
        data = self._external.get(ref.location)
        if data is None:
            if len(self._external) >= _MAPPED_FILES:  # each map holds a file descriptor
                self._external.clear()
            with open(self.external_path(ref.location, name), "rb") as file:
                data = map_file(file)
            self._external[ref.location] = data
        self._check_bounds(ref, len(data), name)
        return data[ref.offset : ref.offset + ref.length]

    def release_pages(self) -> None:
        """Let go of all pages of mapped files; every view stays valid."""
        for view in (self._source, *self._external.values(), *self._overlay.maps()):
            release_pages(view)

    def open(self, ref: Reference) -> tuple[IO[bytes], int] | None:
        """The file that holds a payload and where in it, for copying without mapping it; None
        where the payload is in memory."""
        if ref.location == EMBEDDED:
            if self._file is None:
                return None
            return os.fdopen(os.dup(self._file.fileno()), "rb"), ref.offset
        if ref.location == OVERLAY:
            return self._overlay.open(ref.offset)
        return open(self.external_path(ref.location, ""), "rb"), ref.offset

    def check(self, tensor: TensorProto) -> None:
        """That an external or embedded tensor lies where it says. Raises: InputError O24-005 to
        O24-007, O24-014."""
        ref = reference_of(tensor)
        if ref is None:
            return
        if ref.location not in (EMBEDDED, OVERLAY):
            path = self.external_path(ref.location, tensor.name)
            self._check_bounds(ref, path.stat().st_size, tensor.name)
        if ref.length != payload_bytes(tensor):
            raise InputError.of(
                "O24-014",
                f"{numpy_dtype(tensor.data_type)}{list(tensor.dims)} needs "
                f"{payload_bytes(tensor)} bytes, the model has {ref.length}",
                tensor=tensor.name,
            )

    def external_path(self, location: str, name: str) -> Path:
        """The file of an external tensor. Once links are followed it must lie in the folder of the
        model (see data_folders)."""
        if "\0" in location:
            raise InputError.of("O24-006", f"{location!r} is no file name", tensor=name)
        if not self._folders:
            raise InputError.of("O24-042", "the model has external data but no folder", tensor=name)
        relative = PurePosixPath(location)
        folders = self._folders
        found = ((folder / relative).resolve() for folder in folders)
        path = next((p for p in found if os.path.isfile(p)), (folders[0] / relative).resolve())
        is_inside = any(path.is_relative_to(folder) for folder in folders)
        if not location or relative.is_absolute() or not is_inside:
            raise InputError.of(
                "O24-006",
                f"external data {location!r} leads to {path.name!r} outside the model's folder"
                if location
                else "external data has no location",
                tensor=name,
            )
        if not os.path.isfile(path):  # false for names that no file system takes
            raise InputError.of(
                "O24-005",
                f"external data file {location!r} is not there",
                file=str(path),
                tensor=name,
            )
        return path

    @staticmethod
    def _check_bounds(ref: Reference, size: int, name: str) -> None:
        if ref.offset < 0 or ref.length < 0 or ref.offset + ref.length > size:
            raise InputError.of(
                "O24-007",
                f"bytes {ref.offset} to {ref.offset + ref.length} are asked of {ref.location!r}, "
                f"which has {size}",
                tensor=name,
            )


@dataclass(frozen=True)
class Draft(Generic[T]):
    """New values of a tensor. `said`: what the change said of each piece, in order."""

    tensor: TensorProto
    reference: Reference
    said: list[T]


def _transfer(piece: Piece, values: np.ndarray, move: Callable[[int, memoryview], None]) -> None:
    """move(at, bytes) for every run of a piece."""
    size = values.itemsize
    data = memoryview(values.view(np.uint8).data)
    for run in range(piece.runs):
        at = (piece.start + run * piece.apart) * size
        move(at, data[run * piece.width * size : (run + 1) * piece.width * size])


def _are_blocks(parts: Sequence[Piece], dtype: np.dtype) -> bool:
    """Whether a checksum can be taken piece by piece."""
    return all(p.runs == 1 and p.start * dtype.itemsize % BLOCK_BYTES == 0 for p in parts)


def _checksum_of_piece(piece: Piece, values: np.ndarray) -> np.ndarray:
    return checksum_part(values, piece.start * values.itemsize, compiled=_numba.loaded())


def _looked_at(tensor: TensorProto, stride: int) -> tuple[Any, ...]:
    return reference_of(tensor), tensor.data_type, tuple(tensor.dims), stride


def _look(piece: Piece, values: np.ndarray) -> Violations:
    if not count_violating(values, piece.stride):
        return Violations(piece.size // 4, 0, None)
    return violations_by_stride(values, piece.stride)


def _sum_violations(
    tensor: TensorProto, parts: Sequence[Piece], found: Sequence[Violations]
) -> Violations:
    first = None
    for piece, part in zip(parts, found, strict=True):
        if part.first is not None:
            flat = piece.position(part.first[0])
            first = tuple(int(i) for i in np.unravel_index(flat, tuple(tensor.dims)))
            break
    total = sum(part.violating for part in found)
    return Violations(groups=element_count(tensor) // 4, violating=total, first=first)


def _threads() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _THREADS)


def _equal_bytes(a: memoryview, b: memoryview, chunk: int = 1 << 20) -> bool:
    if len(a) != len(b):
        return False
    x, y = np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)
    return all(np.array_equal(x[i : i + chunk], y[i : i + chunk]) for i in range(0, len(x), chunk))
