"""The weightless onnx-graphsurgeon view of a model, and the commit of what a pass changed in it.

onnx-graphsurgeon's own import and export lose part of a model (metadata, unused initializers,
opset imports, empty attributes) and hold the weights in memory. Here only its graph objects are
used: `surgeon` builds them from the lean document, and on exit writes the *difference* back. An
untouched node keeps its NodeProto verbatim, a touched one is copied and patched, a new one is
exported; bodies are views of their own that share the outer tensors.

Refused (InternalError O24-903, nothing is committed): weight edits through the view, changed
inputs or outputs of the main graph, a new initializer under a taken name, a domain without an
opset import. Local functions are not in the view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnx24.effects import Effects
from onnx24.errors import InputError, InternalError
from onnx24.ir import ops
from onnx24.ir.scopes import ScopeNames
from onnx24.ir.shapes import value_type
from onnx24.ir.weights import INLINE_BYTES, numpy_dtype, payload_bytes, reference_of

if TYPE_CHECKING:
    from onnx24.ir.model import Model


def _refuse(message: str, **where: Any) -> InternalError:
    return InternalError.of("O24-903", message, **where)


class StubValues(LazyValues):
    """The shape and dtype of a weight whose values are not to be had through the view."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype, nbytes: int) -> None:
        self.name, self.shape, self.dtype, self.nbytes = name, shape, dtype, nbytes

    def load(self) -> np.ndarray:
        raise _refuse(
            "read large weights with model.weights, not through the view", tensor=self.name
        )


class Initializer(gs.Constant):
    """An initializer that the document already has."""

    @property
    def values(self) -> np.ndarray:
        if isinstance(self._values, StubValues):
            return self._values.load()
        return self._values

    @values.setter
    def values(self, _: np.ndarray) -> None:
        raise _refuse("edit weights with model.weights, not through the view", tensor=self.name)


class Node(gs.Node):
    """A node that the document already has; equal only to itself, unlike its base class."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Graph(gs.Graph):
    """A view of the main graph or of a body. `scope`: its path, as in ValueKey."""

    scope: str

    def __init__(self, session: _Session, scope: str, origin: GraphProto, **kwargs: Any) -> None:
        self.session = session
        self.scope = scope
        self.origin = origin
        self.initializers: dict[str, gs.Tensor] = {}
        super().__init__(**kwargs)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class _NodeOrigin:
    proto: NodeProto
    attrs: dict[str, tuple[Any, Any, AttributeProto]]
    """name → (the value in the view, a frozen copy of it, the attribute it came from)"""


@dataclass
class _Session:
    """What one view remembers of the document that it was built from."""

    model: Model
    names: set[str] = field(default_factory=set)
    nodes: dict[Node, _NodeOrigin] = field(default_factory=dict)
    tensors: dict[int, TensorProto] = field(default_factory=dict)
    """id(Initializer) → its TensorProto"""
    types: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """id(Variable) → (dtype, shape) as imported"""
    referenced: set[int] = field(default_factory=set)
    keep: list[Any] = field(default_factory=list)
    """Objects whose id() is a key above; kept alive so that no id is used twice."""


@contextmanager
def surgeon(model: Model) -> Iterator[Graph]:
    """See Model.surgeon."""
    session = _Session(model)
    root = _import_graph(session, model.proto.graph, "", [], ScopeNames())
    root.opset = model.opset
    root.ir_version = model.proto.ir_version
    session.referenced = {id(t) for t in _referenced_tensors(root)}
    yield root
    committed = _Commit(session, root).run()
    if committed is not None:
        model.proto.graph.CopyFrom(committed)
        model.touch(Effects.STRUCTURE | Effects.WEIGHTS)


def walk(graph: gs.Graph) -> Iterator[gs.Graph]:
    """A graph and every body nested in it, outer first."""
    yield graph
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from walk(value)


def label(node: gs.Node) -> str:
    """What a node is called in messages: its name, else its first output."""
    return node.name or next((t.name for t in node.outputs if t.name), node.op)


def redirect(value: gs.Tensor, instead: gs.Tensor) -> None:
    """Make every reader of `value`, in bodies too, read `instead`."""
    for reader in list(value.outputs):
        for i, tensor in enumerate(reader.inputs):
            if tensor is value:
                reader.inputs[i] = instead


def detach(node: gs.Node) -> None:
    """Take a node off its values; it still stands in the execution order."""
    node.inputs.clear()
    node.outputs.clear()


def fresh(graph: gs.Graph, base: str) -> str:
    """A name that no value and no node of the model has yet: `base`, or `base_2`, `base_3`, …"""
    names = graph.session.names
    name, count = base, 1
    while not name or name in names:
        count += 1
        name = f"{base}_{count}"
    names.add(name)
    return name


def insert_before(graph: gs.Graph, node: gs.Node, new: Sequence[gs.Node]) -> None:
    """Put nodes into the execution order right before `node`."""
    position = next(i for i, other in enumerate(graph.nodes) if other is node)
    graph.nodes[position:position] = new


def insert_after(graph: gs.Graph, node: gs.Node, new: Sequence[gs.Node]) -> None:
    """Put nodes into the execution order right after `node`."""
    position = next(i for i, other in enumerate(graph.nodes) if other is node)
    graph.nodes[position + 1 : position + 1] = new


# --- import --------------------------------------------------------------------------------
class _Scope:
    """Names → tensor objects of one graph while it is imported."""

    def __init__(self, session: _Session, proto: GraphProto) -> None:
        self.session = session
        self.tensors: dict[str, gs.Tensor] = {}
        inputs = {value.name for value in proto.input}
        self.infos = {v.name: v for v in (*proto.value_info, *proto.output, *proto.input)}
        # An initializer that is also an input is that input's default: not a constant.
        self.constants = {t.name: t for t in proto.initializer if t.name not in inputs}
        self.sparse = {s.values.name: s for s in proto.sparse_initializer}
        self.local = inputs | self.constants.keys() | self.sparse.keys()
        for node in proto.node:
            self.local.update(name for name in node.output if name)
        session.names |= self.local

    def tensor(self, name: str) -> gs.Tensor:
        found = self.tensors.get(name)
        if found is None:
            found = self.tensors[name] = self._make(name)
            self.session.keep.append(found)
        return found

    def _make(self, name: str) -> gs.Tensor:
        if name in self.constants:
            proto = self.constants[name]
            tensor = Initializer(name, _values(self.session.model, proto))
            self.session.tensors[id(tensor)] = proto
            return tensor
        if name in self.sparse:
            sparse = self.sparse[name]
            dtype = numpy_dtype(sparse.values.data_type)
            return Initializer(name, StubValues(name, tuple(sparse.dims), dtype, 0))
        variable = _variable(name, self.infos.get(name))
        self.session.types[id(variable)] = _type_of(variable)
        return variable


def _values(model: Model, proto: TensorProto) -> np.ndarray | StubValues:
    """Real values up to INLINE_BYTES; a stub above, and where the file lacks the values."""
    if proto.data_type == TensorProto.STRING:
        return model.weights.read(proto)
    nbytes = payload_bytes(proto)
    if reference_of(proto) is None and nbytes <= INLINE_BYTES:
        try:
            return model.weights.read(proto)
        except (InputError, ValueError):
            pass  # an invalid file, opened unchecked
    return StubValues(proto.name, tuple(proto.dims), numpy_dtype(proto.data_type), nbytes)


def _variable(name: str, info: ValueInfoProto | None) -> gs.Variable:
    known = value_type(info.type) if info is not None else None
    if known is None:
        return gs.Variable(name)
    dtype: Any = known.dtype
    if known.dtype not in (TensorProto.UNDEFINED, TensorProto.STRING):
        dtype = numpy_dtype(known.dtype)
    return gs.Variable(name, dtype, list(known.shape) if known.shape is not None else None)


def _type_of(variable: gs.Variable) -> tuple[Any, Any]:
    shape = variable.shape
    return variable.dtype, tuple(shape) if shape is not None else None


def _import_graph(
    session: _Session, proto: GraphProto, path: str, outer: list[_Scope], names: ScopeNames
) -> Graph:
    scope = _Scope(session, proto)
    chain = [scope, *outer]

    def tensor(name: str) -> gs.Tensor:
        if not name:
            return gs.Variable.empty()
        for level in chain:
            if name in level.local:
                return level.tensor(name)
        return scope.tensor(name)  # undefined; the verifier says so

    nodes = []
    for node_proto in proto.node:
        attrs: dict[str, tuple[Any, Any, AttributeProto]] = {}
        for attr in node_proto.attribute:
            if attr.type == AttributeProto.GRAPH and not attr.ref_attr_name:
                body_path = names.body(path, node_proto, attr.name)
                value: Any = _import_graph(session, attr.g, body_path, chain, names)
            else:
                value = _attribute_value(session, attr)
            attrs[attr.name] = (value, _frozen(value), attr)
        node = Node(
            node_proto.op_type,
            node_proto.name,
            {name: value for name, (value, _, _) in attrs.items()},
            [tensor(name) for name in node_proto.input],
            [tensor(name) for name in node_proto.output],
            domain=node_proto.domain,
        )
        if node_proto.name:
            session.names.add(node_proto.name)
        session.nodes[node] = _NodeOrigin(node_proto, attrs)
        nodes.append(node)
    graph = Graph(
        session,
        path,
        proto,
        nodes=nodes,
        inputs=[tensor(value.name) for value in proto.input],
        outputs=[tensor(value.name) for value in proto.output],
        name=proto.name,
        doc_string=proto.doc_string,
    )
    graph.initializers = {name: scope.tensor(name) for name in (*scope.constants, *scope.sparse)}
    return graph


_DECODERS = {
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.STRING: lambda a: a.s.decode(),
    AttributeProto.FLOATS: lambda a: list(a.floats),
    AttributeProto.INTS: lambda a: list(a.ints),
    AttributeProto.STRINGS: lambda a: [s.decode() for s in a.strings],
}


def _attribute_value(session: _Session, attr: AttributeProto) -> Any:
    """What a pass sees; attributes that have no Python form stay AttributeProtos."""
    if attr.ref_attr_name:
        return attr
    if attr.type == AttributeProto.TENSOR:
        constant = Initializer(attr.t.name, _values(session.model, attr.t))
        session.tensors[id(constant)] = attr.t
        session.keep.append(constant)
        return constant
    try:
        return _DECODERS[attr.type](attr)
    except (KeyError, UnicodeDecodeError):
        return attr


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# --- commit --------------------------------------------------------------------------------
def _referenced_tensors(root: gs.Graph) -> Iterator[gs.Tensor]:
    for graph in walk(root):
        yield from graph.outputs
        for node in graph.nodes:
            yield from node.inputs


class _Commit:
    """Builds the new main graph without touching the document."""

    def __init__(self, session: _Session, root: Graph) -> None:
        self.session = session
        self.model = session.model
        self.root = root
        self.unread = session.referenced - {id(t) for t in _referenced_tensors(root)}
        """Tensors whose last reader an edit took away"""
        self.placed = self._place_new_constants()

    def run(self) -> GraphProto | None:
        origin = self.root.origin
        for kind, protos, tensors in (
            ("inputs", origin.input, self.root.inputs),
            ("outputs", origin.output, self.root.outputs),
        ):
            was, now = [v.name for v in protos], [t.name for t in tensors]
            if was != now:
                raise _refuse(f"the graph's {kind} were {was}, are {now}")
        return self._graph(self.root)

    def _place_new_constants(self) -> dict[int, list[gs.Constant]]:
        """id(graph) → the new constants to define there: the innermost graph that encloses all
        readers, so that bodies capture what several of them share."""
        readers: dict[int, tuple[gs.Constant, list[tuple[int, ...]]]] = {}

        def visit(graph: gs.Graph, path: tuple[int, ...]) -> None:
            path = (*path, id(graph))
            for tensor in (*graph.outputs, *(t for n in graph.nodes for t in n.inputs)):
                if isinstance(tensor, gs.Constant) and id(tensor) not in self.session.tensors:
                    if isinstance(tensor, Initializer):
                        continue  # a sparse initializer, which stays where it is
                    readers.setdefault(id(tensor), (tensor, []))[1].append(path)
            for node in graph.nodes:
                for value in node.attrs.values():
                    if isinstance(value, gs.Graph):
                        visit(value, path)

        visit(self.root, ())
        placed: dict[int, list[gs.Constant]] = {}
        for constant, paths in readers.values():
            common = paths[0]
            for path in paths[1:]:
                depth = next(
                    (i for i, (a, b) in enumerate(zip(common, path, strict=False)) if a != b),
                    min(len(common), len(path)),
                )
                common = common[:depth]
            placed.setdefault(common[-1], []).append(constant)
        return placed

    def _graph(self, view: Graph) -> GraphProto | None:
        """The new proto of a graph; None where nothing differs."""
        origin = view.origin
        nodes = [self._node(node) for node in view.nodes]
        same_nodes = len(nodes) == len(origin.node) and all(
            new is old for new, old in zip(nodes, self._origins(view), strict=False)
        )
        initializers, same_initializers = self._initializers(view)
        outputs, same_outputs = self._outputs(view)
        infos, same_infos = self._value_infos(view)
        if same_nodes and same_initializers and same_outputs and same_infos:
            return None
        result = GraphProto()
        result.CopyFrom(origin)
        for name, new, same in (
            ("node", nodes, same_nodes),
            ("initializer", initializers, same_initializers),
            ("output", outputs, same_outputs),
            ("value_info", infos, same_infos),
        ):
            if not same:
                result.ClearField(name)  # type: ignore[arg-type]
                getattr(result, name).extend(new)
        return result

    def _origins(self, view: Graph) -> list[NodeProto | None]:
        """The origin of the node at each position; the caller compares by identity."""
        origins = []
        for position, node in enumerate(view.nodes):
            known = self.session.nodes.get(node) if isinstance(node, Node) else None
            at_home = position < len(view.origin.node)
            # upb gives the same wrapper for the same message while one of them is alive.
            same = known is not None and at_home and known.proto is view.origin.node[position]
            origins.append(known.proto if known is not None and same else None)
        return origins

    # --- nodes ---------------------------------------------------------------------------
    def _node(self, node: gs.Node) -> NodeProto:
        domain = node.domain or ""
        origin = self.session.nodes.get(node) if isinstance(node, Node) else None
        inherited = origin is not None and origin.proto.domain == domain
        if not inherited and ops.own_domain(domain) not in {"", *self.model.opsets}:
            raise _refuse(f"domain {domain!r} has no opset import", node=node.name, op=node.op)
        inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
        attributes, same_attributes = self._attributes(node, origin)
        if origin is None:
            result = NodeProto(op_type=node.op, name=node.name, domain=domain)
            result.input.extend(inputs)
            result.output.extend(outputs)
            result.attribute.extend(attributes)
            return result
        proto = origin.proto
        same_io = list(proto.input) == inputs and list(proto.output) == outputs
        same_head = (proto.op_type, proto.name, proto.domain) == (node.op, node.name, domain)
        if same_io and same_head and same_attributes:
            return proto
        result = NodeProto()
        result.CopyFrom(proto)
        result.op_type = node.op
        if result.name != node.name:
            result.name = node.name
        if result.domain != domain:
            result.domain = domain
        if not same_io:
            result.ClearField("input")
            result.ClearField("output")
            result.input.extend(inputs)
            result.output.extend(outputs)
        if not same_attributes:
            result.ClearField("attribute")
            result.attribute.extend(attributes)
        return result

    def _attributes(
        self, node: gs.Node, origin: _NodeOrigin | None
    ) -> tuple[list[AttributeProto], bool]:
        known = origin.attrs if origin else {}
        same = list(node.attrs) == list(known)
        out = []
        for name, value in node.attrs.items():
            if name in known:
                was, frozen, proto = known[name]
                if isinstance(value, Graph) and value is was:
                    body = self._graph(value)
                    if body is None:
                        out.append(proto)
                    else:
                        out.append(AttributeProto(name=name, type=AttributeProto.GRAPH, g=body))
                        same = False
                    continue
                unchanged = value is was or (
                    isinstance(value, int | float | str | list) and type(value) is type(was)
                )
                if unchanged and (frozen is value or _frozen(value) == frozen):
                    out.append(proto)
                    continue
            out.append(self._attribute(name, value))
            same = False
        return out, same

    def _attribute(self, name: str, value: Any) -> AttributeProto:
        if isinstance(value, AttributeProto):
            copy = AttributeProto()
            copy.CopyFrom(value)
            copy.name = name
            return copy
        if isinstance(value, Graph):
            return AttributeProto(
                name=name, type=AttributeProto.GRAPH, g=self._graph(value) or value.origin
            )
        if isinstance(value, gs.Graph):
            return AttributeProto(name=name, type=AttributeProto.GRAPH, g=self._new_graph(value))
        if isinstance(value, gs.Constant):
            known = self.session.tensors.get(id(value))
            if known is not None:
                return AttributeProto(name=name, type=AttributeProto.TENSOR, t=known)
            value = value.values
        if isinstance(value, np.ndarray):
            tensor = TensorProto()
            self.model.weights.set_values(tensor, value)
            return AttributeProto(name=name, type=AttributeProto.TENSOR, t=tensor)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, list | tuple) and not value:
            return AttributeProto(name=name, type=AttributeProto.INTS)
        return onnx.helper.make_attribute(name, value)

    def _new_graph(self, view: gs.Graph) -> GraphProto:
        """A body that a pass made from scratch."""
        result = GraphProto(name=view.name or "body")
        result.node.extend(self._node(node) for node in view.nodes)
        result.initializer.extend(self._constant(c) for c in self.placed.get(id(view), ()))
        for values, tensors in ((result.input, view.inputs), (result.output, view.outputs)):
            values.extend(_value_info(tensor) for tensor in tensors)
        return result

    # --- initializers --------------------------------------------------------------------
    def _initializers(self, view: Graph) -> tuple[list[TensorProto], bool]:
        """An original stays unless an edit took its last reader away."""
        new = {constant.name: constant for constant in self.placed.get(id(view), ())}
        if len(new) < len(self.placed.get(id(view), ())):
            names = [constant.name for constant in self.placed[id(view)]]
            raise _refuse(f"two new initializers share a name: {sorted(names)}")
        out: list[TensorProto] = []
        same = not new
        kept = set()
        for proto in view.origin.initializer:
            tensor = view.initializers.get(proto.name)
            if tensor is not None:
                if id(tensor) in self.unread or not isinstance(tensor, gs.Constant):
                    same = False
                    if proto.name in new:
                        out.append(self._constant(new.pop(proto.name)))
                    continue
                if tensor.name != proto.name:
                    renamed = TensorProto()
                    renamed.CopyFrom(proto)
                    renamed.name = tensor.name
                    proto, same = renamed, False
            kept.add(proto.name)
            out.append(proto)
        taken = kept | {t.name for t in view.inputs}
        taken |= {t.name for node in view.nodes for t in node.outputs}
        for name, constant in new.items():
            if not name or name in taken:
                raise _refuse(f"a new initializer is named {name!r}, which is taken", tensor=name)
            out.append(self._constant(constant))
        return out, same

    def _constant(self, constant: gs.Constant) -> TensorProto:
        tensor = TensorProto()
        self.model.weights.set_values(tensor, constant.values)
        tensor.name = constant.name
        return tensor

    # --- values --------------------------------------------------------------------------
    def _outputs(self, view: Graph) -> tuple[list[ValueInfoProto], bool]:
        """The main graph's keep their names (checked in `run`); a body's go by position."""
        origin = view.origin.output
        if len(view.outputs) != len(origin):
            raise _refuse("a body's outputs were added or removed", scope=view.scope)
        out, same = [], True
        for proto, tensor in zip(origin, view.outputs, strict=True):
            if proto.name != tensor.name:
                copy = ValueInfoProto()
                copy.CopyFrom(proto)
                copy.name = tensor.name
                proto, same = copy, False
            out.append(proto)
        return out, same

    def _value_infos(self, view: Graph) -> tuple[list[ValueInfoProto], bool]:
        """Entries of values that are gone go too; those whose type a pass changed follow it."""
        before = {name for node in view.origin.node for name in node.output}
        now = {t.name: t for node in view.nodes for t in node.outputs}
        placed = {constant.name for constant in self.placed.get(id(view), ())}
        out, same = [], True
        for info in view.origin.value_info:
            tensor = now.get(info.name)
            # Exporters describe initializers too; one that was replaced may have another shape.
            if tensor is None and (info.name in before or info.name in placed):
                same = False
                continue
            known = self.session.types.get(id(tensor)) if tensor is not None else None
            if known is not None and isinstance(tensor, gs.Variable):
                if _type_of(tensor) != known:
                    info, same = _value_info(tensor), False
            elif tensor is not None:
                same = False  # another value took the name; what was said of the old one is stale
                continue
            out.append(info)
        return out, same


def _value_info(tensor: gs.Tensor) -> ValueInfoProto:
    info = ValueInfoProto(name=tensor.name)
    if tensor.dtype is None:
        return info
    dtype = tensor.dtype
    elem = (
        dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    )
    info.type.CopyFrom(onnx.helper.make_tensor_type_proto(elem, tensor.shape))
    return info


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read a tensor, each once, in the order in which they were attached."""
    return _unique(tensor.outputs)


def _unique(items: Iterable[gs.Node]) -> list[gs.Node]:
    seen: dict[int, gs.Node] = {}
    for item in items:
        seen.setdefault(id(item), item)
    return list(seen.values())
