"""The few facts about an ONNX file that a build needs, read without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx24.analysis.crossing import is_qdq, is_trt_fp8
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir import ops
from onnx24.ir.index import Index
from onnx24.ir.model import Model
from onnx24.ir.packed import unpacked


@dataclass(frozen=True)
class Input:
    """A graph input. A dimension is its size, its name, or None; `shape` None: not even a rank."""

    name: str
    shape: tuple[int | str | None, ...] | None

    @property
    def dynamic(self) -> bool:
        return self.shape is None or any(not isinstance(s, int) for s in self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} of unknown shape"
        return f"{self.name}: [{', '.join('?' if s is None else str(s) for s in self.shape)}]"


@dataclass(frozen=True)
class OnnxFile:
    """`nodes`: (name, op, first output) of the main graph in order. `precisions`: reduced
    precisions that the model is written in: "int8" (Q/DQ), "fp16", "bf16", "fp8"."""

    inputs: tuple[Input, ...]
    nodes: tuple[tuple[str, str, str], ...]
    precisions: frozenset[str]
    packed: bool = False
    """Whether it holds weights of pack24, which no builder reads: they are unpacked for it."""
    read_as_int8: tuple[str, ...] = ()
    """QuantizeLinear nodes that make UINT8 and are read as INT8, by name."""

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """Raises: InputError O24-001 to O24-004 and O24-017."""
        loaded = Model.load(path, check=False)
        whole = unpacked(loaded)
        model = whole.proto
        return cls(
            inputs=inputs_of(model),
            nodes=tuple((n.name, n.op_type, next(iter(n.output), "")) for n in model.graph.node),
            precisions=frozenset(_precisions(model)),
            packed=whole is not loaded,
            read_as_int8=tuple(_read_as_int8(whole)),
        )

    def warnings(self) -> list[Diagnostic]:
        """What a builder takes, and reads otherwise than ONNX says."""
        if not (names := self.read_as_int8):
            return []
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        message = f"{names[0]!r}{more} makes UINT8, which is read as INT8"
        return [diagnostic("O24-259", message, node=names[0], facts={"count": len(names)})]

    def handed_over(self, path: Path, scratch: Path) -> Path:
        """What a builder is given, absolute: the file at `path`, or, where weights are packed, a
        copy in `scratch` with whole ones."""
        if not self.packed:
            return path.absolute()
        whole = scratch / "model.onnx"
        unpacked(Model.load(path, check=False)).save(whole)
        return whole

    def node_name(self, index: int | None, op: str, output: str = "") -> str:
        """The name of the node that a parser means: its name, else its first output, else ""."""
        for name, _, first in self.nodes:
            if output and first == output:
                return name or first
        if index is not None and 0 <= index < len(self.nodes):
            name, kind, first = self.nodes[index]
            if not op or kind == op:  # the index of a subgraph's node would name another operator
                return name or first
        return ""

    def nodes_of(self, op: str) -> list[str]:
        """The names of an operator's nodes: first outputs where they have none."""
        return [name or first for name, kind, first in self.nodes if kind == op]

    def parser_names(self) -> dict[str, str]:
        """The names that TensorRT's parser makes up for unnamed nodes → first output.

        *Source:* experiment with tensorrt-rtx 1.7.1: `node_of_<first output>`.
        """
        taken = {name for name, _, _ in self.nodes}
        made = {f"node_of_{first}": first for name, _, first in self.nodes if not name}
        return {k: v for k, v in made.items() if k not in taken}


def _read_as_int8(model: Model) -> Iterator[str]:
    """*Source:* experiment with tensorrt-rtx 1.7.1: UINT8 with zero point 0, written out or
    implied, is built as INT8, so that what is above 127 steps is lost; others do not parse."""
    index = Index.of(model.proto)
    index.graph_inputs -= index.initializers.keys()  # the parser takes these for constants
    for site in index.nodes:
        if not is_qdq(site, "QuantizeLinear") or is_trt_fp8(site):
            continue
        name = site.proto.input[2] if len(site.proto.input) > 2 else ""
        if not name:
            made = ops.attribute(site, "output_dtype", 0) or onnx.TensorProto.UINT8
            if made == onnx.TensorProto.UINT8:
                yield site.name
            continue
        zero = ops.constant_behind(model, index, name, site.scope)
        if zero is not None and zero.dtype == "uint8" and not zero.any():
            yield site.name


def inputs_of(model: onnx.ModelProto) -> tuple[Input, ...]:
    """What a caller feeds: the graph's inputs that no initializer fills."""
    initialized = {t.name for t in model.graph.initializer}
    return tuple(_input(v) for v in model.graph.input if v.name not in initialized)


def _input(value: onnx.ValueInfoProto) -> Input:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Input(value.name, None)
    return Input(value.name, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
}


def _precisions(model: onnx.ModelProto) -> Iterator[str]:
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        kinds = {t.name: t.data_type for t in graph.initializer}
        for kind in kinds.values():
            yield from _named(kind)
        for value in (*graph.input, *graph.output):
            yield from _named(value.type.tensor_type.elem_type)
        for node in graph.node:
            if ops.is_onnx(node, "QuantizeLinear", "DequantizeLinear"):
                fp8 = onnx.TensorProto.FLOAT8E4M3FN in (kinds.get(name) for name in node.input)
                yield "fp8" if fp8 else "int8"
            for attribute in node.attribute:
                if ops.is_onnx(node, "Cast") and attribute.name == "to":
                    yield from _named(attribute.i)
                graphs += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _named(kind: int) -> Iterator[str]:
    if kind in _TYPES:
        yield _TYPES[kind]
