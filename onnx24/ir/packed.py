"""Weights stored without their zeros: the local function onnx24::Unpack24 and how it is undone.

    w = onnx24::Unpack24(values, metadata)

`values` [S, M/2] and `metadata` uint8 [S, ceil(M/8)] are what `sparsity.pack.pack24` makes of the
weight as rows: S is the distance, in the flat tensor, of the members of a group of four, M what is
left, and flat element m * S + s lies at [s, m]. So one form serves every axis: S is 1 where groups
run along the last axis. Attributes: `shape`, the weight's; `dtype`, its ONNX type.

The function's body is of standard operators, so that every runtime runs the file and one that folds
constants unpacks once, when it loads. It moves bits and computes nothing: ScatterElements puts the
two values of a group to their places among zeros. `analysis.packed24` is another thing, an operator
that multiplies.

*Source:* onnx/docs/IR.md (model-local functions, from IR version 8); onnx/docs/Operators.md for
ScatterElements-13, which takes every type but FP8 and those of 4 bits and less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.ops import type_of
from onnx24.ir.scopes import Scope, node_label
from onnx24.sparsity.pack import Packed24, unpack24

__all__ = [
    "DOMAIN",
    "MIN_IR_VERSION",
    "MIN_OPSET",
    "OP",
    "TYPES",
    "drop_if_unused",
    "function_conflict",
    "has_packed",
    "is_unpack",
    "unpack",
    "unpack_function",
    "unpacked",
]

DOMAIN, OP = "onnx24", "Unpack24"
MIN_OPSET, MIN_IR_VERSION = 13, 8
TYPES = frozenset({"float32", "float16", "bfloat16", "int8", "uint8"})
"""Types whose 2:4 arrays can be stored so, by numpy's (ml_dtypes') name."""


def is_unpack(node: NodeProto) -> bool:
    return type_of(node) == (DOMAIN, OP)


def has_packed(model: Model) -> bool:
    return any(is_unpack(node) for scope in model.scopes() for node in scope.graph.node)


def unpack_function(opset: int) -> FunctionProto:
    """The function in operators of ai.onnx from opset 13 on."""
    nodes: list[NodeProto] = []

    def constant(name: str, values: Any, dtype: Any = np.int64) -> str:
        tensor = onnx.numpy_helper.from_array(np.asarray(values, dtype))
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))

    def given(op: str, inputs: list[str], output: str, name: str, caller: str, kind: Any) -> None:
        """A node whose attribute `name` is the caller's attribute `caller`."""
        add(op, inputs, output)
        nodes[-1].attribute.append(AttributeProto(name=name, ref_attr_name=caller, type=kind))

    zero, one, two = (constant(n, [i]) for i, n in enumerate(("zero", "one", "two")))
    pairs = constant("pairs", [0, -1, 2])
    # A byte holds four places of two bits: those of two groups. The table is int8, so that it
    # costs 1 KiB of the file and stays in the document (ir.weights keeps no more there).
    fields = [[byte >> shift & 3 for shift in (0, 2, 4, 6)] for byte in range(256)]
    add("Cast", [constant("small_table", fields, np.int8)], "table", to=TensorProto.INT64)
    add("Cast", ["metadata"], "bytes", to=TensorProto.INT32)
    add("Gather", ["table", "bytes"], "fields")
    add("Reshape", ["fields", pairs], "all_places")
    add("Reshape", ["values", pairs], "pair_values")
    add("Shape", ["pair_values"], "pair_shape")
    add("Slice", ["pair_shape", one, two], "groups")
    add("Slice", ["all_places", zero, "groups", one], "group_places")
    add("Slice", ["pair_shape", zero, two], "leading")
    add("Concat", ["leading", constant("four", [4])], "fours_shape", axis=0)
    add("ConstantOfShape", ["fours_shape"], "float_zeros")
    given("Cast", ["float_zeros"], "zeros", "to", "dtype", AttributeProto.INT)
    add("ScatterElements", ["zeros", "group_places", "pair_values"], "fours", axis=2)
    add("Reshape", ["fours", constant("flat", [0, -1])], "rows")
    add("Transpose", ["rows"], "columns", perm=[1, 0])
    given("Constant", [], "dims", "value_ints", "shape", AttributeProto.INTS)
    add("Reshape", ["columns", "dims"], "weight")
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(
        DOMAIN, OP, ["values", "metadata"], ["weight"], nodes, imports, ["dtype", "shape"]
    )


def _is_ours(function: FunctionProto) -> bool:
    return (function.domain, function.name) == (DOMAIN, OP)


def function_conflict(model: Model) -> bool:
    """Whether a function of that name means something else than ours."""
    return any(
        _is_ours(function)
        and not any(
            not ops.own_domain(entry.domain)
            and list(unpack_function(entry.version).node) == list(function.node)
            for entry in function.opset_import
        )
        for function in model.proto.functions
    )


@dataclass(frozen=True, eq=False)
class _Site:
    """A call, the scope it stands in, and the initializers that it reads."""

    scope: Scope
    node: NodeProto
    values: ValueKey
    metadata: ValueKey

    @property
    def weight(self) -> ValueKey:
        return ValueKey(self.scope.path, self.node.output[0])


def unpack(model: Model) -> list[tuple[ValueKey, ValueKey]]:
    """Turn every packed weight into the initializer that it was, bit for bit, and drop the function
    where nothing calls it any more. A record of 2:4 moves back.

    Returns: (packed values, weight) for each, in document order.
    Raises: InputError O24-357 for packed arrays that do not belong together, and for a function
    onnx24::Unpack24 of somebody else's.
    """
    sites = _sites(model)
    for site in sites:
        assert isinstance(site.scope.graph, GraphProto)
        tensor = TensorProto(name=site.node.output[0])
        model.weights.set_values(tensor, _array(model, site))
        site.scope.graph.initializer.append(tensor)
    if not sites:
        return []
    for site in sites:
        site.scope.graph.node.remove(site.node)
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    _drop_idle(model, {key for site in sites for key in (site.values, site.metadata)})
    drop_if_unused(model)
    model.claims.move_all((site.values, site.weight) for site in sites)
    return [(site.values, site.weight) for site in sites]


def unpacked(model: Model) -> Model:
    """What a packed model means, to be read: the model itself where nothing is packed, else a copy
    with whole weights. Raises: as `unpack`."""
    if not has_packed(model):
        return model
    copy = model.reading_copy()
    unpack(copy)
    return copy


def drop_if_unused(model: Model) -> None:
    """Take the function and its domain's import out where nothing calls it."""
    if has_packed(model):
        return
    for function in [f for f in model.proto.functions if _is_ours(f)]:
        model.proto.functions.remove(function)
    if not any(node.domain == DOMAIN for scope in model.scopes() for node in scope.graph.node):
        for entry in [e for e in model.proto.opset_import if e.domain == DOMAIN]:
            model.proto.opset_import.remove(entry)
    model.touch(Effects.STRUCTURE)


def _sites(model: Model) -> list[_Site]:
    """Every call. Raises: InputError O24-357."""
    calls = [(s, n) for s in model.scopes() for n in s.graph.node if is_unpack(n)]
    if not calls:
        return []
    if function_conflict(model):
        raise InputError.of("O24-357", f"the model has another function {DOMAIN}::{OP}")
    index = model.index()
    return [_site(index, scope, node) for scope, node in calls]


def _site(index: Index, scope: Scope, node: NodeProto) -> _Site:
    keys = [index.resolve(name, scope.path) for name in node.input]
    if len(keys) != 2 or len(node.output) != 1 or any(k not in index.initializers for k in keys):
        raise _broken(node, "expected two initializers, values and metadata")
    if not isinstance(scope.graph, GraphProto):
        raise _broken(node, "it stands in a function, which holds no weights")
    values, metadata = keys
    assert values is not None and metadata is not None
    return _Site(scope, node, values, metadata)


def _array(model: Model, site: _Site) -> np.ndarray:
    values, metadata = model.weights[site.values], model.weights[site.metadata]
    given = {a.name: helper.get_attribute_value(a) for a in site.node.attribute}
    shape, dtype = tuple(given.get("shape", ())), given.get("dtype")
    if dtype != helper.np_dtype_to_tensor_dtype(values.dtype):
        raise _broken(site.node, f"dtype is {dtype}, and the values are {values.dtype}")
    if math.prod(shape) != 2 * values.size or any(d < 0 for d in shape):
        raise _broken(site.node, f"{values.size:,} values are no half of {list(shape)}")
    try:
        rows = unpack24(Packed24(values, metadata))
    except ValueError as err:
        raise _broken(site.node, str(err)) from err
    return np.ascontiguousarray(rows.T).reshape(shape)


def _broken(node: NodeProto, why: str) -> InputError:
    return InputError.of("O24-357", f"a packed weight is damaged: {why}", node=node_label(node))


def _drop_idle(model: Model, keys: set[ValueKey]) -> None:
    index = model.index()
    idle = {
        key
        for key in keys
        if not index.consumers(key.name, key.scope) and key not in index.graph_outputs
    }
    for scope in model.scopes():
        for tensor in [t for t in scope.initializers if ValueKey(scope.path, t.name) in idle]:
            scope.initializers.remove(tensor)
    model.touch(Effects.STRUCTURE)
