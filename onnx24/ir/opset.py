"""Raising a model's ai.onnx opset with onnx.version_converter, without its weights and without
what that converter loses.

The converter works on a weightless copy, and only what it *changed* is taken over: a node that
comes back the same keeps its NodeProto verbatim (doc string, metadata), and so do initializers,
inputs, outputs and value infos. New constants become initializers, new names are derived from the
node that they serve.

What the converter gets wrong or refuses, measured on onnx 1.23 against ONNX Runtime 1.32, is put
right by the small adapters below:

- Hardmax 12 → 13: the change of meaning (coerced to 2-D before) is ignored; for Softmax and
  LogSoftmax it is not, but a result that a body reads makes the converter fail;
- Resize 10 → 11 (Upsample as well): the sampling grid of opset 10 is not carried over, so that
  linear modes differ;
- Dropout with a mask output that nothing reads: the mask's type changed;
- Split 13 → 18 with "" for the sizes: the number of outputs is not added;
- LayerNormalization below opset 17 (see ir.repair): no adapter;
- Upsample and Scatter, which become other operators: their results lose their names, and bodies
  that read them are left behind;
- sparse initializers: unknown to the converter.

Source: onnx/version_converter/convert.h and adapters/, onnx/docs/Changelog.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx.version_converter
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.scopes import bodies, node_label
from onnx24.ir.shapes import INFERENCE_ERRORS, inferred

_AHEAD_DOMAIN = "onnx24.ahead"
_CONVERTER_ERRORS = (onnx.version_converter.ConvertError, *INFERENCE_ERRORS)


def convert(proto: ModelProto, to: int) -> list[str]:
    """Raise the opset of a lean document in place. Returns: labels of the nodes that were
    rewritten; equal ones count as often as they occur.

    Raises: InputError O24-331, naming the node where the converter says which one it is.
    """
    start = ops.opset(proto)
    _refuse_impossible(proto, start, to)
    work = ModelProto()
    work.CopyFrom(proto)
    del work.functions[:]
    for entry in work.opset_import:
        entry.domain = ops.own_domain(entry.domain)
    ops.one_import_each(work)
    _prepare(work, start, to)
    try:
        work = onnx.version_converter.convert_version(work, to)
    except _CONVERTER_ERRORS as err:
        raise _cannot_convert(proto, start, to, str(err)) from err
    _finish(work, start, to)

    rewritten: list[str] = []
    names = _Names(proto)
    _merge(proto.graph, work.graph, names, rewritten)
    ops.one_import_each(proto)
    for entry in proto.opset_import:
        if not ops.own_domain(entry.domain):
            entry.version = to
    oldest = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid("", to)], ignore_unknown=True
    )
    proto.ir_version = max(proto.ir_version, oldest)
    return rewritten


def leave_ir_version_3(proto: ModelProto) -> None:
    """Raise the IR version to 4, where it is older.

    Before version 4 every initializer had to be listed as an input, without being one; those
    inputs go. *Source:* onnx/docs/IR.md, "Graphs"; ONNX Runtime does not let them be fed either.
    """
    if proto.ir_version >= 4:
        return
    proto.ir_version = 4
    names = {tensor.name for tensor in proto.graph.initializer}
    for position in reversed(range(len(proto.graph.input))):
        if proto.graph.input[position].name in names:
            del proto.graph.input[position]


def _refuse_impossible(proto: ModelProto, start: int, to: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if to > newest:
        raise InputError.of(
            "O24-331", f"opset {to} is asked for; onnx {onnx.__version__} knows up to {newest}"
        )
    if proto.functions:
        raise InputError.of(
            "O24-331",
            f"opset {start} → {to}: the model has {len(proto.functions)} local functions, which "
            "the converter does not look into",
            hint="inline them first: canonicalize",
        )
    for graph in _graphs(proto.graph):
        for node in graph.node:
            if ops.is_onnx(node, "Scan") and start < 9 <= to:
                raise InputError.of(
                    "O24-331",
                    f"opset {start} → {to}: Scan of opset 8 has a batch dimension, which opset 9 "
                    "took away and the converter leaves in place",
                    node=node_label(node),
                    op="Scan",
                )
            if not ops.is_onnx(node, "Dropout") or len(node.output) < 2 or not node.output[1]:
                continue
            if start < 12 <= to and node.output[1] in _read_names(proto.graph):
                raise InputError.of(
                    "O24-331",
                    f"opset {start} → {to}: the mask {node.output[1]!r} of Dropout is read, and "
                    "means something else from opset 12 on",
                    node=node_label(node),
                    op="Dropout",
                )


def _cannot_convert(proto: ModelProto, start: int, to: int, problem: str) -> InputError:
    """The converter's message names an operator or an attribute at best; the first node that
    has it is named."""
    reason = " ".join(problem.split())
    reason = re.sub(r"^\S*\.h:\d+: [\w()]+: Assertion `.*?` failed: ", "", reason)
    words = set(re.findall(r"\w+", reason))
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    suspects = [node for node in nodes if ops.full_name(node) in words]
    suspects += [node for node in nodes if any(attr.name in words for attr in node.attribute)]
    culprit = next(iter(suspects), None)
    return InputError.of(
        "O24-331",
        f"opset {start} → {to}: onnx.version_converter: {reason}",
        node=node_label(culprit) if culprit is not None else "",
        op=culprit.op_type if culprit is not None else "",
    )


# --- adapters --------------------------------------------------------------------------------
def _prepare(model: ModelProto, start: int, to: int) -> None:
    """Bring what the converter does not understand into a form that it leaves alone."""
    read = _read_names(model.graph)
    model.opset_import.add(domain=_AHEAD_DOMAIN, version=1)
    for graph in _graphs(model.graph):
        for sparse in graph.sparse_initializer:
            stub = TensorProto(name=sparse.values.name, data_type=sparse.values.data_type)
            stub.dims.extend(sparse.dims)
            graph.initializer.append(stub)
        del graph.sparse_initializer[:]
        for node in graph.node:
            if (
                start < 12 <= to
                and ops.is_onnx(node, "Dropout")
                and set(node.output[1:]).isdisjoint(read)
            ):
                del node.output[1:]
            if start < 18 <= to and ops.is_onnx(node, "Split") and list(node.input[1:]) == [""]:
                del node.input[1:]
            if start < 17 <= to and ops.is_onnx(node, "LayerNormalization"):
                node.domain = _AHEAD_DOMAIN
    if start < 13 <= to:
        ranks = _ranks(model)
        for graph in _graphs(model.graph):
            _edit_nodes(graph, lambda node: _written_out(node, ranks))


def _ranks(model: ModelProto) -> dict[str, int]:
    """Ranks of values by name, as far as ONNX's inference knows them. A name that bodies use for
    values of different ranks is left out."""
    try:
        model = inferred(model)
    except _CONVERTER_ERRORS:
        return {}
    found: dict[str, set[int]] = {}
    for graph in _graphs(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            ranks = {len(tensor.shape.dim)} if tensor.HasField("shape") else {-1}
            found.setdefault(value.name, set()).update(ranks)
        for constant in graph.initializer:
            found.setdefault(constant.name, set()).add(len(constant.dims))
    return {
        name: min(ranks) for name, ranks in found.items() if len(ranks) == 1 and -1 not in ranks
    }


def _written_out(node: NodeProto, ranks: dict[str, int]) -> list[NodeProto]:
    """Softmax and its relatives as opsets below 13 mean them: over all axes from `axis` on,
    flattened. Over the last axis alone that is what they mean later too."""
    if not ops.is_onnx(node, "Softmax", "LogSoftmax", "Hardmax"):
        return [node]
    axis = ops.attribute(node, "axis", 1)
    rank = ranks.get(node.input[0])
    core = NodeProto()
    core.CopyFrom(node)
    del core.attribute[:]
    if axis == -1 or (rank is not None and axis == rank - 1):
        core.attribute.append(onnx.helper.make_attribute("axis", axis))
        return [core]
    x, y = node.input[0], node.output[0]
    core.input[:] = [f"{y}.flat"]
    core.output[:] = [f"{y}.{node.op_type.lower()}"]
    core.attribute.append(onnx.helper.make_attribute("axis", 1))
    return [
        onnx.helper.make_node("Shape", [x], [f"{y}.shape"]),
        onnx.helper.make_node("Flatten", [x], [f"{y}.flat"], axis=axis),
        core,
        onnx.helper.make_node("Reshape", [core.output[0], f"{y}.shape"], [y]),
    ]


def _finish(model: ModelProto, start: int, to: int) -> None:
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain == _AHEAD_DOMAIN:
                node.domain = ""
            if start < 11 <= to and ops.is_onnx(node, "Resize"):
                _keep_resize_grid(node, model)


def _keep_resize_grid(node: NodeProto, model: ModelProto) -> None:
    """Opset 10 samples at `x / scale`; its nearest rounds up when shrinking, else down.

    Source: the expected values of resize_downsample_sizes_nearest in opset 10's backend tests,
    and ONNX Runtime's nearest mode for models before opset 11.
    """
    node.attribute.append(
        onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
    )
    if ops.attribute(node, "mode", "nearest") == "nearest":
        scales = _constant(model, node.input[2]) if len(node.input) > 2 else None
        shrinks = scales is not None and scales.size > 0 and bool(scales.min() < 1)
        rounding = "ceil" if shrinks else "floor"
        node.attribute.append(onnx.helper.make_attribute("nearest_mode", rounding))


def _constant(model: ModelProto, name: str) -> np.ndarray | None:
    """A small constant's values; None for what is computed or not in the document."""
    for graph in _graphs(model.graph):
        found = [tensor for tensor in graph.initializer if tensor.name == name]
        found += [
            attr.t
            for node in graph.node
            if ops.is_onnx(node, "Constant") and name in node.output
            for attr in node.attribute
            if attr.name == "value"
        ]
        if found and found[0].data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(found[0])
    return None


# --- taking over what changed ------------------------------------------------------------------
class _Names:
    """Hands out value names that no scope of the model has yet."""

    def __init__(self, proto: ModelProto) -> None:
        self.taken: set[str] = set()
        for graph in _graphs(proto.graph):
            self.taken |= {v.name for v in graph.input} | {t.name for t in graph.initializer}
            self.taken |= {sparse.values.name for sparse in graph.sparse_initializer}
            self.taken |= {name for node in graph.node for name in node.output}

    def fresh(self, base: str) -> str:
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


def _merge(old: GraphProto, new: GraphProto, names: _Names, rewritten: list[str]) -> bool:
    """Take over into `old` what differs in `new`. Returns: whether anything did."""
    _restore_results(old, new)
    by_output = {name: node for node in old.node for name in node.output if name}
    by_name = {node.name: node for node in old.node if node.name}
    merged: list[NodeProto] = []
    constants: list[TensorProto] = []
    fresh: dict[str, str] = {}
    known = set(by_output) | _outer_names(old)
    changed = False
    for tensor in new.initializer:
        if tensor.name not in known:
            readers = (n for n in new.node if tensor.name in n.input)
            label = node_label(next(readers, NodeProto(op_type="constant")))
            fresh[tensor.name] = names.fresh(f"{label}.constant")
            constants.append(_renamed(tensor, fresh[tensor.name]))
    for node in new.node:
        origin = next((by_output[name] for name in node.output if name in by_output), None)
        if origin is not None and _same(origin, node, names, rewritten):
            merged.append(origin)
            continue
        changed = True
        serves = origin if origin is not None else by_name.get(node.name)
        if origin is None:
            label = _consumer_label(new, node, by_output) or (node.op_type)
            for name in node.output:
                if name and name not in known:
                    fresh[name] = names.fresh(f"{label}.{node.op_type.lower()}")
        if origin is None and ops.is_onnx(node, "Constant") and node.attribute[0].name == "value":
            name = node.output[0]
            constants.append(_renamed(node.attribute[0].t, fresh.get(name, name)))
            continue
        merged.append(_dressed(node, serves))
        if serves is not None:
            rewritten.append(node_label(serves))
    for node in merged if fresh else ():
        _rename(node, fresh)
    if not changed and len(merged) == len(old.node):
        return False
    copies = GraphProto()
    copies.node.extend(merged)
    copies.initializer.extend(constants)
    _name_uniquely(copies.node)
    del old.node[:]
    old.node.extend(copies.node)
    old.initializer.extend(copies.initializer)
    _drop_stale_infos(old)
    return True


_REPLACED = {"Upsample": "Resize", "Scatter": "ScatterElements"}


def _restore_results(old: GraphProto, new: GraphProto) -> None:
    """Give the results of operators that were replaced their names back. The order of nodes is
    kept, so that the n-th that went is the n-th that came."""
    before = {name for node in old.node for name in node.output}
    after = {name for node in new.node for name in node.output}
    names: dict[str, str] = {}
    for op, successor in _REPLACED.items():
        gone = [n.output[0] for n in old.node if ops.is_onnx(n, op) and n.output[0] not in after]
        came = [
            n.output[0] for n in new.node if ops.is_onnx(n, successor) and n.output[0] not in before
        ]
        if len(gone) == len(came):
            names.update(zip(came, gone, strict=True))
    for graph in _graphs(new) if names else ():
        for node in graph.node:
            _rename(node, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def _same(old: NodeProto, new: NodeProto, names: _Names, rewritten: list[str]) -> bool:
    """Whether the converter left a node alone; bodies are merged on the way."""
    same_head = (old.op_type, list(old.input), list(old.output)) == (
        new.op_type,
        list(new.input),
        list(new.output),
    )
    before = {attr.name: attr for attr in old.attribute}
    after = {attr.name: attr for attr in new.attribute}
    if not same_head or before.keys() != after.keys():
        return False
    same = True
    for name, attr in before.items():
        if attr.type == AttributeProto.GRAPH:
            _merge(attr.g, after[name].g, names, rewritten)
        elif attr.type == AttributeProto.GRAPHS:
            for a, b in zip(attr.graphs, after[name].graphs, strict=True):
                _merge(a, b, names, rewritten)
        else:
            same = same and _attribute_bytes(attr) == _attribute_bytes(after[name])
    return same


def _attribute_bytes(attr: AttributeProto) -> bytes:
    """The attribute without what the converter drops: doc strings, metadata."""
    bare = AttributeProto()
    bare.CopyFrom(attr)
    bare.ClearField("doc_string")
    if bare.HasField("t"):
        for name in ("doc_string", "metadata_props", "name"):
            bare.t.ClearField(name)  # type: ignore[arg-type]
    return bare.SerializeToString(deterministic=True)


def _dressed(node: NodeProto, serves: NodeProto | None) -> NodeProto:
    """A changed node with the name, doc string and metadata of the one that it stands for."""
    out = NodeProto()
    out.CopyFrom(node)
    if serves is not None:
        out.name = out.name or serves.name
        out.doc_string = out.doc_string or serves.doc_string
        if not out.metadata_props:
            out.metadata_props.extend(serves.metadata_props)
        if not out.doc_string:
            out.ClearField("doc_string")
    return out


def _name_uniquely(nodes: Iterable[NodeProto]) -> None:
    """A node that was replaced by several leaves its name to the one of its own operator."""
    seen: set[str] = set()
    for node in nodes:
        if node.name and node.name in seen:
            node.name = f"{node.name}.{node.op_type.lower()}"
        seen.add(node.name)


def _consumer_label(graph: GraphProto, node: NodeProto, by_output: dict[str, NodeProto]) -> str:
    """The original node that a new one works for: the first one downstream."""
    pending = list(node.output)
    seen: set[str] = set()
    while pending:
        name = pending.pop(0)
        if name in by_output:
            return node_label(by_output[name])
        if name in seen:
            continue
        seen.add(name)
        for reader in graph.node:
            if name in reader.input:
                pending += reader.output
    return ""


def _renamed(tensor: TensorProto, name: str) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _rename(node: NodeProto, names: dict[str, str]) -> None:
    for field in (node.input, node.output):
        for i, name in enumerate(field):
            if name in names:
                field[i] = names[name]


def _drop_stale_infos(graph: GraphProto) -> None:
    now = {name for node in graph.node for name in node.output}
    kept = [info for info in graph.value_info if info.name in now]
    if len(kept) != len(graph.value_info):
        copies = GraphProto()
        copies.value_info.extend(kept)
        del graph.value_info[:]
        graph.value_info.extend(copies.value_info)


def _outer_names(graph: GraphProto) -> set[str]:
    """Names that are no node's output but belong to the original graph."""
    return (
        {value.name for value in graph.input}
        | {tensor.name for tensor in graph.initializer}
        | {sparse.values.name for sparse in graph.sparse_initializer}
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for _, body in bodies(node):
            yield from _graphs(body)


def _read_names(root: GraphProto) -> set[str]:
    names: set[str] = set()
    for graph in _graphs(root):
        names |= {value.name for value in graph.output}
        names |= {name for node in graph.node for name in node.input}
    return names


def _edit_nodes(graph: GraphProto, edit: Callable[[NodeProto], list[NodeProto]]) -> None:
    edited = [new for node in graph.node for new in edit(node)]
    if len(edited) != len(graph.node):
        copies = GraphProto()
        copies.node.extend(edited)
        del graph.node[:]
        graph.node.extend(copies.node)
