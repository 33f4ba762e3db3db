"""A first look at a file that may be hostile: how much of it there is, before anything parses it.

A model of 100 MB can be one weight, or ten million nodes whose objects fill a machine. The walk
follows the length prefixes as ir.wire does, counts nodes and parts, and gives up as soon as there
are more than an honest model has; payloads are skipped and never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx24.errors import InputError
from onnx24.ir import wire
from onnx24.ir.weights import map_file

_BYTES = 2


@dataclass(frozen=True)
class Bounds:
    """The largest file that is read. nodes: in all graphs; messages: parts that are visited."""

    nodes: int = 100_000
    messages: int = 1_000_000


def scan(path: str | Path, bounds: Bounds) -> tuple[int, int]:
    """(nodes, parts) of a file. Raises: InputError O24-001; O24-017 for more than the bounds."""
    try:
        with open(path, "rb") as file:
            source = map_file(file)
    except OSError as err:
        raise InputError.of("O24-001", err.strerror or str(err), file=str(path)) from err
    walk = _Walk(source, bounds, str(path))
    try:
        walk.message(0, len(source), "ModelProto", 0)
    except wire.WireError as err:
        if err.too_deep:
            raise InputError.of("O24-017", str(err), file=str(path)) from err
        # Not ours to name: loading says what is wrong with the bytes.
    return walk.nodes, walk.messages


class _Walk:
    def __init__(self, buf: memoryview, bounds: Bounds, path: str) -> None:
        self.buf = buf
        self.bounds = bounds
        self.path = path
        self.nodes = self.messages = 0

    def message(self, start: int, end: int, kind: str, depth: int) -> None:
        if depth > wire.MAX_DEPTH:
            raise wire.WireError(f"nested deeper than {wire.MAX_DEPTH} levels", too_deep=True)
        buf, children = self.buf, wire.CHILDREN.get(kind, {})
        pos = start
        while pos < end:
            tag, pos = wire.read_varint(buf, pos, end)
            body, pos = wire.skip(buf, pos, end, tag & 7)
            self.messages += 1
            child = children.get(tag >> 3) if tag & 7 == _BYTES else None
            if child == "NodeProto":
                self.nodes += 1
            if self.nodes > self.bounds.nodes or self.messages > self.bounds.messages:
                self._refuse()
            if child is not None:
                self.message(body, pos, child, depth + 1)

    def _refuse(self) -> None:
        many = (
            f"more than {self.bounds.nodes:,} nodes"
            if self.nodes > self.bounds.nodes
            else f"more than {self.bounds.messages:,} parts"
        )
        raise InputError.of(
            "O24-017",
            f"the file holds {many}",
            file=self.path,
            hint="raise limits.nodes or limits.messages in the policy for a file you trust",
        )
