"""A model whose 16-bit results are really rounded where ONNX Runtime's CPU provider runs it.

The provider has no kernels for most operators in float16 and none in bfloat16. Float16 nodes it
computes in float32 and drops the casts between them, at every optimization level, so that a value
beyond 65504 lives on where a GPU has an infinity; bfloat16 nodes it refuses. So each 16-bit node is
written here as what it means: its operands widened, the operator in float32, its result rounded by
a Cast of the document's own, which the provider keeps. That is a GPU's arithmetic, which sums
products in float32 and rounds each result once.
*Source:* findings/runtime.sh, and ort-cpu-fp16-hides-overflow there and in the shared findings.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnx24.ir import ops
from onnx24.ir.calls import inlined
from onnx24.ir.model import Model
from onnx24.ir.scopes import bodies, scopes, tensors
from onnx24.ir.shapes import ShapeTable, infer

__all__ = ["has_16_bit", "rounded"]

SIXTEEN_BIT = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

_NAMES_A_TYPE = ("to", "dtype", "output_dtype", "softmax_precision")
"""Attributes that name a type."""

_AS_THEY_ARE = ("Cast", "CastLike", "BitCast", "Constant", "ConstantOfShape", "EyeLike")
"""Nodes whose result's type is no operand's: they round by themselves, or make what is stored."""


def has_16_bit(model: Model) -> bool:
    """Whether any value is float16 or bfloat16, as far as the document says without inference."""
    graph = model.proto.graph
    if any(v.type.tensor_type.elem_type in SIXTEEN_BIT for v in (*graph.input, *graph.output)):
        return True
    if any(tensor.data_type in SIXTEEN_BIT for tensor in tensors(model.proto)):
        return True
    return any(
        attr.name in _NAMES_A_TYPE and attr.i in SIXTEEN_BIT
        for scope in scopes(model.proto)
        for node in scope.graph.node
        for attr in node.attribute
    )


def rounded(model: Model) -> Model:
    """The model with every 16-bit result rounded; the model itself where it has none. It shares the
    weights. Nodes whose types ONNX's inference doesn't know stay as they are."""
    if not has_16_bit(model):
        return model
    proto = ModelProto()
    proto.CopyFrom(inlined(model.proto))  # bodies are typed only where they are called
    widened = model.variant(proto)
    table = infer(widened)
    for scope in reversed(list(scopes(proto))):  # a copied node takes its bodies with it
        if isinstance(scope.graph, GraphProto):
            _widen(scope.graph, scope.path, table)
    return widened


def _widen(graph: GraphProto, path: str, table: ShapeTable) -> None:
    nodes: list[NodeProto] = []
    wide: dict[str, str] = {}
    for node in graph.node:
        nodes.extend(_pieces(node, path, table, wide))
    del graph.node[:]
    graph.node.extend(nodes)


def _pieces(
    node: NodeProto, path: str, table: ShapeTable, wide: dict[str, str]
) -> Iterator[NodeProto]:
    """The node, with Casts around it where it has 16-bit operands or results.

    wide: values of this graph's nodes that are widened already → their names; added to.
    """
    fed = {name: t for name in node.input if (t := table.dtype(name, path)) in SIXTEEN_BIT}
    made = {name: t for name in node.output if (t := table.dtype(name, path)) in SIXTEEN_BIT}
    typed = all(table.get(name, path) for name in node.output if name)
    is_kept = ops.is_onnx(node, *_AS_THEY_ARE) or not typed or next(bodies(node), None) is not None
    copy = NodeProto()
    copy.CopyFrom(node)
    if is_kept or not (fed or made):
        yield copy
        return
    for name in fed:
        if name not in wide:
            wide[name] = f"{name} in float32, {path}"  # a body's names are not those around it
            yield helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT)
    copy.input[:] = [wide[name] if name in fed else name for name in node.input]
    unrounded = {name: f"{name} before rounding, {path}" for name in made}
    copy.output[:] = [unrounded.get(name, name) for name in node.output]
    for attr in copy.attribute:
        if attr.name in _NAMES_A_TYPE and attr.i in SIXTEEN_BIT:
            attr.i = TensorProto.FLOAT
    yield copy
    for name, element in made.items():
        yield helper.make_node("Cast", [unrounded[name]], [name], to=element)
