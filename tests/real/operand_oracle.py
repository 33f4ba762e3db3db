"""What each matrix product of a model really multiplies with, found without onnx24.

Every constant operand of a Conv, Gemm, MatMul or Einsum is computed by evaluating the nodes that
it comes from, one at a time, in onnx's reference implementation (the graph as it is, bodies
included); the reduction axis is read off the operator's definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Path = tuple[int, ...]
"""A graph in a model: () for the main one, else (node, attribute, graph) positions down to it."""
Key = tuple[str, str]
"""(scope, name) as onnx24.ir.keys.ValueKey writes it."""


@dataclass(frozen=True)
class Operand:
    """`stored`: the (graph, name) of the initializers and Constants whose values it is made of.
    `axis`: what is summed over; None where that is no single axis of the operand."""

    consumer: str
    op: str
    input: int
    values: np.ndarray
    axis: int | None
    stored: frozenset[Key]
    grouped: bool


@dataclass
class _Known:
    values: np.ndarray
    stored: frozenset[Key]


def operands(model: ModelProto) -> list[Operand]:
    found: list[Operand] = []
    _visit(model, model.graph, (), scope_names(model), {}, found)
    return found


def scope_names(model: ModelProto) -> dict[Path, str]:
    """What each graph is called in keys: a second body of the same name gets "#2"."""
    names: dict[Path, str] = {}
    seen: dict[str, int] = {}

    def visit(graph: GraphProto, path: Path) -> None:
        for i, node in enumerate(graph.node):
            label = node.name or next((n for n in node.output if n), "") or node.op_type
            for j, k, attribute, body in _bodies(node):
                step = f"{label}.{attribute}"
                name = f"{names[path]}/{step}" if names[path] else step
                seen[name] = seen.get(name, 0) + 1
                here = (*path, i, j, k)
                names[here] = name if seen[name] == 1 else f"{name}#{seen[name]}"
                visit(body, here)

    names[()] = ""
    visit(model.graph, ())
    return names


def _bodies(node: NodeProto) -> Iterator[tuple[int, int, str, GraphProto]]:
    for j, attr in enumerate(node.attribute):
        if attr.HasField("g"):
            yield j, 0, attr.name, attr.g
        for k, body in enumerate(attr.graphs):
            yield j, k, f"{attr.name}[{k}]", body


def parameters_of(node: NodeProto) -> range:
    """Inputs that say how, not what: scales, zero points, shapes, axes."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze"):
        return range(1, len(node.input))
    return range(0)


def _visit(
    model: ModelProto,
    graph: GraphProto,
    path: Path,
    names: dict[Path, str],
    outer: dict[str, _Known],
    found: list[Operand],
) -> None:
    scope = names[path]
    known = dict(outer)
    inputs = {value.name for value in graph.input} if model.ir_version >= 4 else set()
    for tensor in graph.initializer:
        if tensor.name not in inputs:
            key = (scope, tensor.name)
            known[tensor.name] = _Known(numpy_helper.to_array(tensor), frozenset({key}))
    nodes = list(enumerate(graph.node))
    if not _sorted(graph):
        nodes.reverse()  # the only unsorted models there are
    for i, node in nodes:
        for position, axis, grouped in _product(node, known):
            value = known[node.input[position]]
            found.append(
                Operand(
                    node.name or node.output[0],
                    node.op_type,
                    position,
                    value.values,
                    axis,
                    value.stored,
                    grouped,
                )
            )
        for j, k, _, body in _bodies(node):
            _visit(model, body, (*path, i, j, k), names, known, found)
        _evaluate(model, node, scope, known)


def _sorted(graph: GraphProto) -> bool:
    made = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if made & set(node.input):
            return False
        made -= set(node.output)
    return True


def _evaluate(model: ModelProto, node: NodeProto, scope: str, known: dict[str, _Known]) -> None:
    """Add the outputs of a node of which all inputs are constant."""
    if node.domain not in ("", "ai.onnx") or any(a.HasField("g") for a in node.attribute):
        return
    if node.op_type != "Constant" and not any(node.input):
        return
    if any(name and name not in known for name in node.input):
        return
    if any(known[n].values.size > 1 << 16 for n in node.input if n):
        return
    names = [name for name in dict.fromkeys(node.input) if name]
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        values = _quantizer(node, [known[n].values if n else None for n in node.input])
        known[node.output[0]] = _Known(values, known[node.input[0]].stored)
        return
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in names],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n],
    )
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)
    try:
        results = ReferenceEvaluator(single).run(None, {n: known[n].values for n in names})
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError):
        return
    skip = {node.input[i] for i in parameters_of(node)} - {node.input[0]} if node.input else set()
    stored = frozenset().union(*(known[n].stored for n in names if n not in skip))
    if node.op_type == "Constant":
        stored = frozenset({(scope, node.output[0])})
    for name, values in zip([n for n in node.output if n], results, strict=True):
        if isinstance(values, np.ndarray | np.generic):
            known[name] = _Known(np.asarray(values), stored)


def _quantizer(node: NodeProto, inputs: list[np.ndarray | None]) -> np.ndarray:
    """Q or DQ element by element of the definition; onnx.reference has none before opset 19."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    x, scale = inputs[0], inputs[1]
    assert x is not None and scale is not None
    zero = inputs[2] if len(inputs) > 2 else None
    if zero is None:
        zero = np.zeros(scale.shape, np.uint8 if node.op_type == "QuantizeLinear" else x.dtype)
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)

    def spread(parameter: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(parameter, block, axis=axis)
        if parameter.size == 1:
            return parameter.reshape(())
        return np.moveaxis(parameter.reshape(-1, *[1] * (x.ndim - 1)), 0, axis)

    if node.op_type == "DequantizeLinear":
        shifted = x.astype(np.float32) - spread(zero.astype(np.float32))
        return (shifted * spread(scale)).astype(scale.dtype)
    info = np.iinfo(zero.dtype)
    rounded = np.rint(x / spread(scale)) + spread(zero.astype(np.float32))
    return np.clip(rounded, info.min, info.max).astype(zero.dtype)


def _product(node: NodeProto, known: dict[str, _Known]) -> Iterator[tuple[int, int | None, bool]]:
    """(input, axis summed over, grouped) of each constant operand."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return
    for position, name in enumerate(node.input[:2]):
        if name not in known:
            continue
        rank = known[name].values.ndim
        if node.op_type == "Conv" and position == 1:
            yield position, 1, attributes.get("group", 1) > 1
        elif node.op_type == "Gemm":
            if position == 0:
                yield 0, 0 if attributes.get("transA", 0) else 1, False
            else:
                yield 1, 1 if attributes.get("transB", 0) else 0, False
        elif node.op_type == "MatMul" and rank:
            yield position, rank - 1 if position == 0 or rank == 1 else rank - 2, False
        elif node.op_type == "Einsum" and len(node.input) == 2:
            text = attributes["equation"].decode().replace(" ", "")
            left, arrow, right = text.partition("->")
            terms = left.split(",")
            if not arrow:
                right = "".join(sorted(c for c in set(left) if left.count(c) == 1 and c != ","))
            mine, other = terms[position], terms[1 - position]
            if "..." in mine:
                continue
            summed = [i for i, c in enumerate(mine) if c not in right and c in other]
            yield position, summed[0] if len(summed) == 1 else None, False


def is_pruned(values: np.ndarray, axis: int) -> bool:
    """Whether of each four along the axis two are zero, counted one by one."""
    lanes = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    if lanes.shape[-1] % 4:
        return False
    groups = lanes.reshape(-1, 4)
    return bool(((groups == 0).sum(axis=1) >= 2).all())


def survivors_are_largest(before: np.ndarray, after: np.ndarray, axis: int) -> bool:
    """Whether each value stayed or became zero, and the two largest of each four stayed."""
    old = np.moveaxis(np.asarray(before, np.float64), axis, -1).reshape(-1, 4)
    new = np.moveaxis(np.asarray(after, np.float64), axis, -1).reshape(-1, 4)
    if not ((new == old) | (new == 0)).all():
        return False
    return np.array_equal(np.sort(np.abs(old), axis=1)[:, 2:].sum(axis=1), np.abs(new).sum(axis=1))


def stored_tensors(model: ModelProto) -> dict[Key, TensorProto]:
    """Every initializer and Constant tensor of the main graph and its bodies."""
    out: dict[Key, TensorProto] = {}
    names = scope_names(model)

    def visit(graph: GraphProto, path: Path) -> None:
        for tensor in graph.initializer:
            out[names[path], tensor.name] = tensor
        for i, node in enumerate(graph.node):
            for attr in node.attribute:
                if node.op_type == "Constant" and attr.name == "value":
                    out[names[path], node.output[0]] = attr.t
            for j, k, _, body in _bodies(node):
                visit(body, (*path, i, j, k))

    visit(model.graph, ())
    return out
