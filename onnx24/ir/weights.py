"""The values of a model's tensors: read-only views on the file they are in, and an overlay for
what passes replace.

The document (`Model.proto`) is lean: a TensorProto whose payload is larger than INLINE_BYTES
carries only a reference, in ONNX's own `external_data` fields. The location says where:
`/onnx24/embedded` (offset and length in the model file), `/onnx24/overlay` (in a temporary file
that holds replaced values), or a relative path (ONNX external data, as the model has it).
Absolute locations are refused in input files, so the two of ours can't be forged.

Source: onnx/onnx.proto (TensorProto), onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey, as_key

INLINE_BYTES = 1024
EMBEDDED = "/onnx24/embedded"
OVERLAY = "/onnx24/overlay"

_PACKED_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (
        ("UINT4", 4),
        ("INT4", 4),
        ("FLOAT4E2M1", 4),
        ("UINT2", 2),
        ("INT2", 2),
    )
    if hasattr(TensorProto, name)
}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class Reference:
    """Where a payload lies: `location` as in external_data, `offset` and `length` in bytes."""

    location: str
    offset: int
    length: int


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


class Weights:
    """Access to every tensor of one model. Keys are a main-graph name or a ValueKey."""

    def __init__(
        self,
        source: memoryview,
        base_dir: Path | None,
        initializers: Callable[[], dict[ValueKey, TensorProto]],
        on_replace: Callable[[], None],
    ) -> None:
        self._source = source
        self._base_dir = base_dir
        self._initializers = initializers
        self._on_replace = on_replace
        self._external: dict[str, memoryview] = {}
        self._overlay = _Overlay()
        self._digests: dict[Reference, str] = {}

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
        self._store(tensor, new)
        self._on_replace()

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
            data: Any = b"\0".join(tensor.string_data)
        else:
            data = self.payload(tensor)
        digest = hashlib.sha256(data).hexdigest()
        if ref is not None:
            self._digests[ref] = digest
        return digest

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

    def _store(self, tensor: TensorProto, data: memoryview) -> None:
        if len(data) > INLINE_BYTES:
            offset = self._overlay.append(data)
            set_reference(tensor, Reference(OVERLAY, offset, len(data)))
            return
        for name in (*_TYPED_FIELDS, "external_data", "data_location"):
            tensor.ClearField(name)  # type: ignore[arg-type]
        tensor.raw_data = bytes(data)

    # --- references ----------------------------------------------------------------------
    def resolve(self, ref: Reference, name: str = "") -> memoryview:
        """A mapped view of what `ref` names."""
        if ref.location == EMBEDDED:
            return self._source[ref.offset : ref.offset + ref.length]
        if ref.location == OVERLAY:
            return self._overlay.view(ref.offset, ref.length)
        data = self._external.get(ref.location)
        if data is None:
            with open(self.external_path(ref.location, name), "rb") as file:
                data = map_file(file)
            self._external[ref.location] = data
        self._check_bounds(ref, len(data), name)
        return data[ref.offset : ref.offset + ref.length]

    def open(self, ref: Reference) -> tuple[IO[bytes], int] | None:
        """The file that holds a payload and where in it, for copying without mapping it; None
        where the payload is in memory or in the model file itself."""
        if ref.location == EMBEDDED:
            return None
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
        """The file of an external tensor, which must lie in the model's folder."""
        if "\0" in location:
            raise InputError.of("O24-006", f"{location!r} is no file name", tensor=name)
        if self._base_dir is None:
            raise InputError.of("O24-042", "the model has external data but no folder", tensor=name)
        relative = PurePosixPath(location)
        base = self._base_dir.resolve()
        path = (base / relative).resolve()
        if not location or relative.is_absolute() or not path.is_relative_to(base):
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


class _Overlay:
    """Replaced payloads: in memory up to MEMORY_BYTES in all, the rest appended to an unlinked
    temporary file, so that memory stays bounded. Offsets number both as one space."""

    MEMORY_BYTES = 128 << 20

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._file: IO[bytes] | None = None
        self._size = 0
        self._file_start = 0
        self._mapped = memoryview(b"")

    def append(self, data: memoryview) -> int:
        offset = self._size
        self._size += len(data)
        if self._file is None and self._size <= self.MEMORY_BYTES:
            self._blocks[offset] = bytes(data)
            return offset
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="onnx24-")  # noqa: SIM115
            self._file_start = offset
        self._file.seek(offset - self._file_start)
        self._file.write(data)
        self._file.flush()
        return offset

    def view(self, offset: int, length: int) -> memoryview:
        if offset in self._blocks:
            return memoryview(self._blocks[offset])[:length]
        start = offset - self._file_start
        if start + length > len(self._mapped):
            assert self._file is not None
            self._mapped = map_file(self._file)
        return self._mapped[start : start + length]

    def open(self, offset: int) -> tuple[IO[bytes], int] | None:
        """A file and the position in it where the payload at `offset` begins; None where it is in
        memory."""
        if offset in self._blocks:
            return None
        assert self._file is not None
        return os.fdopen(os.dup(self._file.fileno()), "rb"), offset - self._file_start


def map_file(file: IO[bytes]) -> memoryview:
    """A read-only view of a whole file; empty files can't be mapped and give an empty view."""
    if os.fstat(file.fileno()).st_size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _equal_bytes(a: memoryview, b: memoryview, chunk: int = 1 << 20) -> bool:
    if len(a) != len(b):
        return False
    x, y = np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)
    return all(np.array_equal(x[i : i + chunk], y[i : i + chunk]) for i in range(0, len(x), chunk))
