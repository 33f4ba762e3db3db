"""Rewriting a serialized model without parsing its weights.

A protobuf message is a sequence of (tag, payload) fields, so the bytes of a tensor can be found,
skipped, or replaced by walking the length prefixes alone. `rewrite` does that for every
TensorProto of a model, wherever it hangs; loading uses it to leave the weights in the file,
saving uses it to put them back.

Source: protobuf.dev/programming-guides/encoding; the field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_DEPTH = 200

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Children = dict[str, dict[int, str]]
"""Kind of message → number of a field that holds messages → their kind."""

TENSOR = "TensorProto"
NUMBER = "number"
CHILDREN: Children = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR, 15: "SparseTensorProto"},
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: TENSOR,
        6: "GraphProto",
        10: TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
}

DENSE = {**CHILDREN, "SparseTensorProto": {}}
"""Without the halves of sparse tensors: onnx's checker and inference read the indices, which
therefore stay in the document."""


class WireError(ValueError):
    """The bytes are no protobuf message. `truncated`: a field runs past the end of the file."""

    def __init__(self, message: str, *, truncated: bool = False, too_deep: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated
        self.too_deep = too_deep


@dataclass(frozen=True)
class Payload:
    """Bytes that are not in the message yet: `length` bytes that `reference` names."""

    reference: tuple[str, int]
    length: int

    def __len__(self) -> int:
        return self.length


Piece = bytes | memoryview | Payload
Rope = list[Piece]


def rope_length(rope: Rope) -> int:
    return sum(len(piece) for piece in rope)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(buf: memoryview, pos: int, end: int) -> tuple[int, int]:
    """The value at `pos` and the position after it."""
    result = shift = 0
    while True:
        if pos >= end:
            raise WireError("a number is cut off", truncated=end == len(buf))
        byte = buf[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, pos
        shift += 7
        if shift > 63:
            raise WireError("a number is longer than 64 bits")


def skip(buf: memoryview, pos: int, end: int, wire_type: int) -> tuple[int, int]:
    """(start of the field's content, position after the field)."""
    if wire_type == _BYTES:
        length, start = read_varint(buf, pos, end)
        stop = start + length
    elif wire_type == _VARINT:
        start = pos
        _, stop = read_varint(buf, pos, end)
    elif wire_type == _FIXED32:
        start, stop = pos, pos + 4
    elif wire_type == _FIXED64:
        start, stop = pos, pos + 8
    else:
        raise WireError(f"wire type {wire_type} does not occur in ONNX")
    if stop > end:
        raise WireError("a field is longer than what holds it", truncated=end == len(buf))
    return start, stop


OnTensor = Callable[[memoryview, int, int], "Rope | None"]
OnField = Callable[["str | None"], None]


def rewrite(
    buf: memoryview,
    on_tensor: OnTensor,
    kind: str = "ModelProto",
    children: Children = CHILDREN,
    on_field: OnField | None = None,
) -> Rope | None:
    """Replace every TensorProto of a message for which `on_tensor(buf, start, end)` returns a
    rope; None means that nothing was replaced. children: what is looked into. on_field: is told of
    each field, those of tensors included, and which kind of message it is (None: of no message;
    NUMBER).

    Raises: WireError, also for messages nested deeper than MAX_DEPTH.
    """
    return _Walk(buf, on_tensor, children, on_field).message(0, len(buf), kind, 0)


@dataclass(frozen=True)
class _Walk:
    buf: memoryview
    on_tensor: OnTensor
    fields: Children
    on_field: OnField | None

    def message(self, start: int, end: int, kind: str, depth: int) -> Rope | None:
        if depth > MAX_DEPTH:
            raise WireError(f"nested deeper than {MAX_DEPTH} levels", too_deep=True)
        buf, children, on_field = self.buf, self.fields[kind], self.on_field
        out: Rope = []
        copied = pos = start
        while pos < end:
            field_start = pos
            tag, pos = read_varint(buf, pos, end)
            child = children.get(tag >> 3) if tag & 7 == _BYTES else None
            body, pos = skip(buf, pos, end, tag & 7)
            if on_field is not None:
                on_field(child if tag & 7 == _BYTES else NUMBER)
            if child is None:
                continue
            if child == TENSOR:
                if on_field is not None:
                    self._count(body, pos, on_field)
                new = self.on_tensor(buf, body, pos)
            else:
                new = self.message(body, pos, child, depth + 1)
            if new is None:
                continue
            out.append(buf[copied:field_start])
            out.append(varint(tag) + varint(rope_length(new)))
            out.extend(new)
            copied = pos
        if not out:
            return None
        out.append(buf[copied:end])
        return out

    def _count(self, pos: int, end: int, on_field: OnField) -> None:
        while pos < end:
            tag, pos = read_varint(self.buf, pos, end)
            _, pos = skip(self.buf, pos, end, tag & 7)
            on_field(None if tag & 7 == _BYTES else NUMBER)


_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
RAW_DATA_TAG = varint(_RAW_DATA << 3 | _BYTES)


def find_raw_data(buf: memoryview, start: int, end: int) -> tuple[int, int, int] | None:
    """(start of the field, start of the payload, end) of a TensorProto's only raw_data, or None
    where there is none, several, or the tensor is external."""
    found: tuple[int, int, int] | None = None
    pos = start
    while pos < end:
        field_start = pos
        tag, pos = read_varint(buf, pos, end)
        body, pos = skip(buf, pos, end, tag & 7)
        field = tag >> 3
        if field in (_EXTERNAL_DATA, _DATA_LOCATION) or (field == _RAW_DATA and found):
            return None
        if field == _RAW_DATA:
            found = (field_start, body, pos)
    return found
