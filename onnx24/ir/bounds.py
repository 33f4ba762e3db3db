"""How much a model may become: the one place where every command and the Python API bound what a
file makes of itself.

A file of a kilobyte can mean a billion nodes (functions that call each other twice a level) or a
terabyte (a size that it declares, a value that is joined with itself forty times). The tools that
read it, onnx's inliner and shape inference and ONNX Runtime, make that real without asking. So it
is counted here first, in time that is linear in what is allowed:

- nodes and parts of the file, before it is parsed (`Count`, which ir.wire drives);
- nodes and bytes after inlining (`_require_inlinable`), exact;
- sizes that follow from constants alone (`_require_small`), at the least: what is not known counts
  as one element. Sizes that need ONNX's shape inference are runtime.peak's business, before a
  session is made.

What a model may become grows with what it brings: BYTES_PER_BYTE times its weights and inputs.
`within` holds native code to a budget where even that is not known beforehand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx24.errors import InputError
from onnx24.ir import ops, wire
from onnx24.ir.scopes import bodies, function_path, node_label, nodes_of, tensors
from onnx24.ir.weights import element_count, payload_bytes, reference_of

if TYPE_CHECKING:
    from onnx24.ir.model import Model

ENVIRONMENT = "ONNX24_LIMITS"
BYTES_PER_BYTE = 256
"""Honest activations and masks: 32-fold attention scores of small models are the most seen."""
_ITEMS = 1 << 20
"""Elements of a joined vector that shape inference holds as a message each, some 150 bytes."""
_VALUES = 256
"""Constants of more elements than that are no sizes, and are not read."""


@dataclass(frozen=True)
class Bounds:
    """The most that is read. nodes: of all graphs, with the functions inlined too; messages:
    parts of the file that are visited; mib: of what a model makes beyond what it brings [MiB]."""

    nodes: int = 100_000
    messages: int = 1_000_000
    mib: int = 1024

    @classmethod
    def default(cls) -> Bounds:
        """Raised by the environment: `ONNX24_LIMITS=nodes=500000,mib=8192`. Raises: InputError
        O24-043."""
        text = os.environ.get(ENVIRONMENT, "")
        names = {field.name for field in fields(cls)}
        given = {}
        for entry in filter(None, text.split(",")):
            name, _, value = entry.partition("=")
            if name.strip() not in names or not value.strip().isdecimal():
                raise InputError.of(
                    "O24-043",
                    f"{ENVIRONMENT}={text!r}: expected NAME=NUMBER, found {entry!r}",
                    hint=f"names are {', '.join(sorted(names))}",
                )
            given[name.strip()] = int(value)
        return dataclasses.replace(cls(), **given)

    @property
    def nbytes(self) -> int:
        return self.mib << 20


def beyond(what: str, name: str, **where: Any) -> InputError:
    """O24-017, with the name of the bound."""
    hint = f"for a file that you trust: {ENVIRONMENT}={name}=NUMBER in the environment" + (
        f", or limits.{name} in the policy" if name != "mib" else ""
    )
    return InputError.of("O24-017", what, hint=hint, **where)


_NUMBER = 1 / 4
"""Of a part: of the numbers that ONNX does not pack, an honest forest of trees has millions."""


class Count:
    """Nodes and parts of a file so far. Raises: InputError O24-017 for more than the bounds."""

    def __init__(self, bounds: Bounds, file: str) -> None:
        self.nodes, self.messages = 0, 0.0
        self._bounds, self._file = bounds, file

    def message(self, kind: str | None) -> None:
        self.messages += _NUMBER if kind == wire.NUMBER else 1
        self.nodes += kind == "NodeProto"
        if self.nodes > self._bounds.nodes:
            raise beyond(
                f"the file holds more than {self._bounds.nodes:,} nodes", "nodes", file=self._file
            )
        if self.messages > self._bounds.messages:
            most = f"{self._bounds.messages:,} parts"
            raise beyond(f"the file holds more than {most}", "messages", file=self._file)


def require_bounded(model: Model) -> None:
    """That the model stays small when its functions are inlined and its constants are computed.
    No native code is asked. Raises: InputError O24-017."""
    if model.proto.functions:
        _require_inlinable(model)
    _Least(model).run()


def brought(proto: ModelProto) -> int:
    """Bytes of the weights and the declared inputs; an open dimension counts as one."""
    stored = sum(payload_bytes(t) for t in tensors(proto))
    fed = sum(4 * math.prod(d or 1 for d in _dims(v) or ()) for v in proto.graph.input)
    return stored + fed


# --- functions --------------------------------------------------------------------------------


_INLINED_SHARE, _NODES_PER_NODE = 5, 30
"""A fifth of the nodes that a file may hold, or 30 for each that it holds: transformers whose layer
is a function reach that of 96 layers."""


@dataclass
class _Extent:
    nodes: int = 0
    nbytes: int = 0
    depth: int = 0

    def add(self, callee: _Extent) -> None:
        self.nodes += callee.nodes
        self.nbytes += callee.nbytes
        self.depth = max(self.depth, callee.depth + 1)


def _callable(proto: ModelProto) -> dict[ops.FunctionId, FunctionProto]:
    """The functions that onnx's tools go into: not those that ONNX itself has an operator for."""
    found = {ops.function_id(f): f for f in proto.functions}
    return {identity: f for identity, f in found.items() if identity.domain not in _ONNX_ITSELF}


_ONNX_ITSELF = ("", "ai.onnx.ml")


def _require_inlinable(model: Model) -> None:
    proto, file = model.proto, str(model.path or "-")
    found = _callable(proto)
    calls = {identity: _calls(f, found) for identity, f in found.items()}
    extents: dict[ops.FunctionId, _Extent] = {}
    begun: set[ops.FunctionId] = set()
    left = list(found)
    while left:  # callees first; no recursion, which a long chain would exhaust
        identity = left[-1]
        missing = [c for c in dict.fromkeys(calls[identity]) if c not in extents]
        if identity not in begun:
            begun.add(identity)
            left += [c for c in missing if c not in begun]
        elif identity in extents:
            left.pop()
        elif missing:
            path = function_path(found[identity])
            raise InputError.of("O24-012", f"{path} calls itself, perhaps by others", file=file)
        else:
            function = found[left.pop()]
            extent = _Extent(_count(function) - len(calls[identity]), _own_bytes(function))
            for callee in calls[identity]:
                extent.add(extents[callee])
            extents[identity] = extent
    called = _calls(proto.graph, found)
    whole = _Extent(_count(proto.graph) - len(called))
    for callee in called:
        whole.add(extents[callee])
    bounds = model.bounds
    own = _count(proto.graph) + sum(_count(function) for function in found.values())
    nodes = min(bounds.nodes, max(bounds.nodes // _INLINED_SHARE, _NODES_PER_NODE * own))
    inlined = "with its functions inlined it is"
    if whole.nodes > nodes:
        raise beyond(f"{inlined} more than {nodes:,} nodes", "nodes", file=file)
    if whole.nbytes > bounds.nbytes:
        raise beyond(f"{inlined} more than {bounds.mib:,} MiB larger", "mib", file=file)
    if whole.depth > wire.MAX_DEPTH:
        levels = f"more than {wire.MAX_DEPTH} levels"
        raise InputError.of("O24-017", f"functions call each other over {levels}", file=file)


def _calls(
    graph: FunctionProto | GraphProto, found: Mapping[ops.FunctionId, FunctionProto]
) -> list[ops.FunctionId]:
    """Each call, as often as it occurs."""
    called = (ops.called(node) for node in nodes_of(graph))
    return [identity for identity in called if identity in found]


def _own_bytes(function: FunctionProto) -> int:
    """With the payloads that are not in the document."""
    stored = 0
    for node in nodes_of(function):
        for attr in node.attribute:
            for tensor in (attr.t, *attr.tensors):
                stored += payload_bytes(tensor) if reference_of(tensor) is not None else 0
    return function.ByteSize() + stored


def _count(graph: GraphProto | FunctionProto) -> int:
    return sum(1 for _ in nodes_of(graph))


# --- sizes ------------------------------------------------------------------------------------

_Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class _Known:
    """What is certain of a value: at least so many elements; its shape and numbers where known."""

    least: int = 1
    shape: _Shape | None = None
    data: tuple[float, ...] | None = None


_NOTHING = _Known()
_SAME = frozenset({"Identity", "Cast", "Relu", "Neg", "Abs", "Sqrt", "Exp", "Floor", "Ceil"})
_MOVED = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose"})
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Where", "Pow"})


class _Least:
    """The least sizes of the values that follow from constants, in the order of the nodes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        allowed = max(model.bounds.nbytes, BYTES_PER_BYTE * brought(model.proto))
        self._elements = allowed // 4
        self._items = min(self._elements, _ITEMS + 16 * brought(model.proto))
        self._functions = _callable(model.proto)

    def run(self) -> None:
        self._graph(self._model.proto.graph, ChainMap())

    def _graph(self, graph: GraphProto, outer: ChainMap[str, _Known]) -> None:
        values = outer.new_child()
        for value in graph.input:
            shape = _dims(value)
            values[value.name] = _Known(math.prod(d or 1 for d in shape or ()), shape)
        for tensor in graph.initializer:
            values[tensor.name] = self._constant(tensor)
        self._walk(graph.node, values)

    def _walk(self, nodes: Sequence[NodeProto], values: ChainMap[str, _Known]) -> None:
        for node in nodes:
            for _, body in bodies(node):
                self._graph(body, values)
            given = [values.get(name, _NOTHING) for name in node.input]
            function = self._functions.get(ops.called(node))
            if function is not None:
                inner = ChainMap(dict(zip(function.input, given, strict=False)))
                self._walk(function.node, inner)
                found = [inner.get(name, _NOTHING) for name in function.output]
                values.update(zip(node.output, found, strict=False))
            elif node.output:
                values[node.output[0]] = known = self._result(node, given)
                self._refuse(node, known)

    def _refuse(self, node: NodeProto, known: _Known) -> None:
        is_vector = known.shape is not None and len(known.shape) == 1
        is_joined = is_vector and ops.is_onnx(node, "Concat", "Range")
        if known.least <= (self._items if is_joined else self._elements):
            return
        raise beyond(
            f"it makes {known.least:,} elements or more",
            "mib",
            file=str(self._model.path or "-"),
            node=node_label(node),
            op=node.op_type,
        )

    def _constant(self, tensor: TensorProto) -> _Known:
        count = element_count(tensor)
        data = None
        if count <= _VALUES and tensor.data_type in _NUMBERS and reference_of(tensor) is None:
            with contextlib.suppress(ValueError, TypeError, InputError):
                data = tuple(self._model.weights.read(tensor).reshape(-1).tolist())
        return _Known(count, tuple(tensor.dims), data)

    def _result(self, node: NodeProto, given: Sequence[_Known]) -> _Known:
        name = ops.op(node)
        if name == "Constant":
            return self._constant_node(node)
        if not given:
            return _NOTHING
        try:
            return _rule(node, name, given)
        except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError):
            return _NOTHING  # an invalid node: the checker or inference says so

    def _constant_node(self, node: NodeProto) -> _Known:
        for attr in node.attribute:
            if attr.name == "value":
                return self._constant(attr.t)
            if attr.name in ("value_int", "value_float"):
                return _Known(1, (), (attr.i if attr.name == "value_int" else attr.f,))
            if attr.name in ("value_ints", "value_floats"):
                found = attr.ints or attr.floats
                return _Known(len(found), (len(found),), tuple(found[: _VALUES + 1]))
        return _NOTHING


_NUMBERS = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE})


def _rule(node: NodeProto, name: str, given: Sequence[_Known]) -> _Known:
    x = given[0]
    if name in _SAME:
        data = x.data if name in ("Identity", "Cast") else None
        return _Known(x.least, x.shape, data)
    if name in _MOVED:
        if x.data is None or name == "Transpose":  # which puts numbers into another order
            return _Known(x.least)
        return _Known(x.least, (len(x.data),), x.data)
    if name == "Concat":
        least = sum(value.least for value in given)
        is_vector = all(value.shape is not None and len(value.shape) == 1 for value in given)
        return _Known(least, (least,) if is_vector else None, _joined(given))
    if name in _BROADCAST:
        return _Known(max(value.least for value in given), None, _computed(name, given))
    if name == "Shape":
        rank = None if x.shape is None else len(x.shape)
        whole = x.shape is not None and not node.attribute and None not in x.shape
        data = tuple(float(d or 0) for d in x.shape or ()) if whole else None
        return _Known(max(rank or 1, 1), (rank,), data)
    if name == "Size":
        return _Known(1, (), _product(x))
    if name == "Gather" and len(given) > 1:
        return _gathered(x, given[1])
    if name in _MAKERS:
        least = int(_MAKERS[name](given, node))
        return _Known(max(least, 1), _made_shape(name, given, least))
    return _NOTHING


def _joined(given: Sequence[_Known]) -> tuple[float, ...] | None:
    if any(value.data is None for value in given):
        return None
    if sum(len(value.data or ()) for value in given) > _VALUES:
        return None
    return tuple(number for value in given for number in value.data or ())


def _computed(name: str, given: Sequence[_Known]) -> tuple[float, ...] | None:
    """Sizes are added and multiplied."""
    if len(given) != 2 or name not in ("Add", "Sub", "Mul"):
        return None
    a, b = given[0].data, given[1].data
    if not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    count = max(len(a), len(b))
    pairs = zip(a * (count // len(a)), b * (count // len(b)), strict=True)
    compute = {"Add": lambda p: p[0] + p[1], "Sub": lambda p: p[0] - p[1]}
    return tuple(map(compute.get(name, lambda p: p[0] * p[1]), pairs))


def _product(x: _Known) -> tuple[float, ...] | None:
    if x.shape is None or None in x.shape:
        return None
    return (float(math.prod(d or 0 for d in x.shape)),)


def _gathered(x: _Known, at: _Known) -> _Known:
    """Rank r + q - 1, which doubles where a value indexes itself."""
    data = None
    if x.data is not None and at.data is not None and (x.shape is None or len(x.shape) < 2):
        data = tuple(x.data[int(i)] for i in at.data)
    if x.shape is None or at.shape is None:
        return _Known(1, None, data)
    rank = max(len(x.shape) + len(at.shape) - 1, 0)
    shape = (len(data),) if data is not None and rank == 1 else (None,) * min(rank, _VALUES)
    return _Known(1 << 62 if rank > _VALUES else 1, shape, data)


def _sizes(value: _Known) -> tuple[float, ...]:
    """Numbers of a size operand; a negative one is for something else."""
    return tuple(max(number, 0) for number in value.data or ())


def _of_pads(given: Sequence[_Known], node: NodeProto) -> float:
    pads = given[1].data if len(given) > 1 else _ints(node, "pads")
    if not pads or len(given) > 3:
        return given[0].least
    half = len(pads) // 2
    shape = given[0].shape or (1,) * half
    grown = ((d or 1) + a + b for d, a, b in zip(shape, pads[:half], pads[half:], strict=True))
    return math.prod(max(size, 0) for size in grown)


def _of_resize(given: Sequence[_Known], node: NodeProto) -> float:
    if len(given) > 3 and given[3].data:
        return math.prod(_sizes(given[3]))
    scales = given[2] if len(given) > 2 else given[1] if len(given) == 2 else _NOTHING
    return given[0].least * math.prod(_sizes(scales))


def _of_range(given: Sequence[_Known], node: NodeProto) -> float:
    (start,), (limit,), (delta,) = (value.data or () for value in given)
    return max(math.ceil((limit - start) / delta), 0)


def _of_tile(given: Sequence[_Known], node: NodeProto) -> float:
    return given[0].least * math.prod(_sizes(given[1]))


_MAKERS: Mapping[str, Any] = {
    "ConstantOfShape": lambda given, node: math.prod(_sizes(given[0])) if given[0].data else 1,
    "Expand": lambda given, node: max(given[0].least, math.prod(_sizes(given[1]))),
    "Tile": _of_tile,
    "Range": _of_range,
    "Pad": _of_pads,
    "Resize": _of_resize,
    "Upsample": _of_resize,
    "OneHot": lambda given, node: given[0].least * max(_sizes(given[1]) or (1,)),
    "RandomNormal": lambda given, node: math.prod(_ints(node, "shape")),
    "RandomUniform": lambda given, node: math.prod(_ints(node, "shape")),
}


def _made_shape(name: str, given: Sequence[_Known], least: int) -> _Shape | None:
    if name == "Range":
        return (least,)
    if name == "ConstantOfShape" and given[0].data:
        return tuple(int(number) for number in given[0].data)
    return None


def _ints(node: NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(attr.ints) for attr in node.attribute if attr.name == name), ())


def _dims(value: Any) -> _Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


# --- native code ------------------------------------------------------------------------------

_LOCK = threading.Lock()
_inside = 0
_before: tuple[int, int] | None = None
"""The limit that is given back when the last leaves; None where none was set."""


@contextlib.contextmanager
def within(nbytes: int) -> Iterator[None]:
    """Within the block the process gets at most so much more private memory, where the system can
    say so (Linux). What is refused to native code comes back as a MemoryError or as the library's
    own error. The limit is the process's: of several threads in such blocks each adds its own
    nbytes, and the last who leaves gives the limit back."""
    global _inside, _before
    with _LOCK:
        if not _inside:
            _before = _limit_data(nbytes)
        elif _before is not None:
            _raise_data(nbytes, _before)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside = max(0, _inside - 1)
            if not _inside:
                _give_back()


def _give_back() -> None:
    global _before
    if _before is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, _before)
        _before = None


def _forget() -> None:
    """A forked process has none of the threads that are in blocks, or that hold the lock."""
    global _LOCK, _inside
    _LOCK, _inside = threading.Lock(), 0
    _give_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _raise_data(more: int, most: tuple[int, int]) -> None:
    """Raise the lowered limit by so much, up to what it was."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_DATA)[0] + more
    if most[0] != resource.RLIM_INFINITY:
        soft = min(soft, most[0])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, most[1]))


def _limit_data(more: int) -> tuple[int, int] | None:
    """Lower the soft limit; None where that can't be done, or it is lower already.

    *Source:* setrlimit(2): RLIMIT_DATA counts private memory from Linux 4.7 on; proc(5), VmData.
    """
    try:
        import resource

        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            now = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY and soft <= now + more:
            return None
        resource.setrlimit(resource.RLIMIT_DATA, (now + more, hard))
    except (ImportError, OSError, ValueError, StopIteration):
        return None
    return soft, hard
