"""Whether an input file is a model at all: one clear error before anything else starts.

Beyond what onnx.checker says, this names the subject: which tensor, which node, which file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import GraphProto

from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.bounds import require_bounded
from onnx24.ir.repair import dependencies, find_defects, is_sorted, repair_proto
from onnx24.ir.scopes import Scope, node_label, scopes, tensors
from onnx24.ir.shadowing import settle_shadows
from onnx24.ir.weights import Reference, reference_of, set_reference

if TYPE_CHECKING:
    from onnx24.ir.model import Model

MIN_OPSET = 7
"""The oldest ai.onnx opset that is taken. Source: ONNX Runtime supports opset 7 and later."""


MAX_RANK = 32
"""What arrays can have in every numpy. Source: NPY_MAXDIMS, 32 before numpy 2.0, 64 since."""

_COUNTS = frozenset({"group", "num_groups", "blocksize"})
_TYPES = frozenset({"to", "dtype", "output_dtype"})

_DATA_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def check_input(model: Model) -> None:
    """Refuse an invalid model. Harmless defects (ir.repair) are noted in `model.defects`.

    Raises: InputError O24-004, O24-005 to O24-007, O24-009 to O24-015, O24-017, O24-050.
    """
    file = str(model.path or "-")
    proto = model.proto
    if not proto.HasField("graph") or not proto.graph.output:
        raise InputError.of("O24-004", "the graph has no outputs", file=file)
    _check_text(proto, file)
    for tensor in tensors(proto):
        if tensor.data_type not in _DATA_TYPES:
            raise InputError.of(
                "O24-014", f"data type {tensor.data_type} is not known", tensor=tensor.name
            )
        if min(tensor.dims, default=0) < 0:
            raise InputError.of(
                "O24-014", f"negative dimension in {list(tensor.dims)}", tensor=tensor.name
            )
        if len(tensor.dims) > MAX_RANK:
            raise InputError.of(
                "O24-014",
                f"{len(tensor.dims)} dimensions; {MAX_RANK} at most are expected",
                tensor=tensor.name,
            )
        model.weights.check(tensor)
        _check_inline(model, tensor)
    require_bounded(model)
    _check_opset(model, file)
    for scope in scopes(proto):
        _check_operators(scope, file)
        _check_names(scope, file)
    model.defects = find_defects(proto)
    for scope in scopes(proto) if "unsorted" in model.defects else ():  # sorted nodes form no cycle
        _check_acyclic(scope, file)
    settle_shadows(model, file)
    if problem := run_checker(model):
        raise InputError.of("O24-015", f"onnx.checker: {problem}", file=file)


def _check_text(proto: onnx.ModelProto, file: str) -> None:
    """That names are text: protobuf hands out bytes where they are not UTF-8."""
    names: list[object] = [proto.producer_name, proto.producer_version, proto.domain]
    names += [entry.domain for entry in proto.opset_import]
    names += [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    names += [text for f in proto.functions for text in (f.name, f.domain, *f.attribute)]
    names += [entry.domain for f in proto.functions for entry in f.opset_import]
    for scope in scopes(proto):
        graph = scope.graph
        names += [graph.name, *(graph.input if not isinstance(graph, GraphProto) else ())]
        if isinstance(graph, GraphProto):
            for value in (*graph.input, *graph.output, *graph.value_info):
                names.append(value.name)
                names += [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        else:
            names += graph.output
        for node in graph.node:
            names += (node.op_type, node.domain, node.name, node.overload, *node.input)
            names += node.output
            names += [text for a in node.attribute for text in (a.name, a.ref_attr_name)]
    for tensor in tensors(proto):
        names.append(tensor.name)
        names += [text for entry in tensor.external_data for text in (entry.key, entry.value)]
    for name in names:
        if not isinstance(name, str):
            raise InputError.of("O24-002", f"the name {name!r} is no UTF-8 text", file=file)


def run_checker(model: Model) -> str | None:
    """What onnx.checker says of the model, weights and the input's own harmless defects aside;
    None if it is content.

    The checker wants the data of every tensor; one that is external only has to have a file, so
    that an empty one stands in for all of them.
    """
    copy = model.skeleton()
    for tensor in tensors(copy):
        if (ref := reference_of(tensor)) is not None:
            set_reference(tensor, Reference("weights", 0, ref.length))
    repair_proto(copy, model.defects)
    with tempfile.TemporaryDirectory(prefix="onnx24-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(copy.SerializeToString())
        Path(folder, "weights").touch()
        try:
            onnx.checker.check_model(str(path))
        except (onnx.checker.ValidationError, ValueError) as err:
            return " ".join(str(err).split()).replace(f"{folder}/", "")
    return None


def _check_inline(model: Model, tensor: onnx.TensorProto) -> None:
    """That values in the document itself fill the shape."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    if tensor.HasField("raw_data"):
        model.weights.payload(tensor)
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    try:
        model.weights.read(tensor)
    except (ValueError, TypeError, KeyError) as err:
        raise InputError.of(
            "O24-014",
            f"the values do not fill {list(tensor.dims)}: {err}",
            tensor=tensor.name,
        ) from err


def _check_opset(model: Model, file: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    if "" not in model.opsets:
        if any(ops.is_onnx(node) for scope in model.scopes() for node in scope.graph.node):
            raise InputError.of("O24-015", "no opset is imported for ai.onnx", file=file)
        return
    if model.opset < MIN_OPSET:
        raise InputError.of(
            "O24-009", f"opset {model.opset}; {MIN_OPSET} or newer is expected", file=file
        )
    if model.opset > newest:
        raise InputError.of(
            "O24-010",
            f"opset {model.opset}; onnx {onnx.__version__} knows up to {newest}",
            file=file,
        )


def _check_operators(scope: Scope, file: str) -> None:
    for node in scope.graph.node:
        if ops.is_onnx(node) and not onnx.defs.has(ops.op(node)):
            raise InputError.of(
                "O24-011",
                f"ai.onnx defines no operator {node.op_type!r}",
                file=file,
                scope=scope.path,
                node=node_label(node),
                op=node.op_type,
            )
        if problem := _attribute_problem(node):
            raise InputError.of(
                "O24-015",
                problem,
                file=file,
                scope=scope.path,
                node=node_label(node),
                op=node.op_type,
            )


def _attribute_problem(node: onnx.NodeProto) -> str | None:
    """What onnx.checker lets pass, and everybody who reads the node would divide by or index with;
    None where nothing is wrong."""
    if not ops.is_onnx(node):
        return None
    for attr in node.attribute:
        if attr.ref_attr_name:
            continue
        if attr.name in _COUNTS and attr.type == onnx.AttributeProto.INT and attr.i < 1:
            return f"{attr.name} = {attr.i}; 1 or more is expected"
        is_default = attr.i == 0 and attr.name != "to"
        if attr.name in _TYPES and not is_default and attr.i not in _DATA_TYPES:
            return f"{attr.name} = {attr.i} is no data type"
        is_perm = ops.is_onnx(node, "Transpose") and attr.name == "perm"
        if is_perm and sorted(attr.ints) != list(range(len(attr.ints))):
            return f"perm = {list(attr.ints)} is no order of {len(attr.ints)} axes"
    return None


def _check_names(scope: Scope, file: str) -> None:
    """Every value of a scope is defined once. An initializer may repeat an input (it is its
    default) but nothing else."""
    if not isinstance(scope.graph, GraphProto):
        return
    graph = scope.graph
    seen = set()
    groups = (
        [value.name for value in graph.input],
        [name for node in graph.node for name in node.output if name],
    )
    for name in (name for group in groups for name in group):
        if name in seen:
            raise InputError.of(
                "O24-013", f"{name!r} is defined twice", file=file, scope=scope.path, tensor=name
            )
        seen.add(name)
    produced = set(groups[1])
    initialized = set()
    for tensor in graph.initializer:
        if tensor.name in initialized or tensor.name in produced:
            raise InputError.of(
                "O24-013",
                f"{tensor.name!r} is defined twice",
                file=file,
                scope=scope.path,
                tensor=tensor.name,
            )
        initialized.add(tensor.name)


def _check_acyclic(scope: Scope, file: str) -> None:
    if is_sorted(scope.graph.node):
        return
    import networkx as nx

    order = dependencies(scope.graph.node)
    if nx.is_directed_acyclic_graph(order):
        return
    cycle = [node_label(scope.graph.node[a]) for a, _ in nx.find_cycle(order)]
    raise InputError.of(
        "O24-012",
        "these nodes need each other's results: " + " → ".join([*cycle, cycle[0]]),
        file=file,
        scope=scope.path,
        node=cycle[0],
    )
