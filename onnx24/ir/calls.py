"""Calls of local functions, as onnx's inliner is to be given them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import onnx.inliner
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto

from onnx24.ir import ops
from onnx24.ir.scopes import nodes_of, scopes

__all__ = ["inlined", "write_defaults"]

Functions = Mapping[ops.FunctionId, FunctionProto]


def write_defaults(model: ModelProto) -> None:
    """Give every call the defaults of the attributes that it leaves out: onnx 1.23's inliner drops
    them, and the operators inside would take their own."""
    functions, known = ops.functions(model), dict[int, list[AttributeProto]]()
    for scope in scopes(model):
        for node in scope.graph.node:
            given = {attribute.name for attribute in node.attribute}
            for default in _defaults(functions.get(ops.called(node)), functions, known):
                if default.name not in given:
                    node.attribute.append(default)


def _defaults(
    function: FunctionProto | None, functions: Functions, known: dict[int, list[AttributeProto]]
) -> list[AttributeProto]:
    """Of a function's attributes; one without a default that is only handed on to another call has
    that one's. known: by id, so that each is looked at once, in a damaged model's circles too."""
    if function is None:
        return []
    if id(function) in known:
        return known[id(function)]
    found = known[id(function)] = list(function.attribute_proto)
    uses: dict[str, list[tuple[NodeProto, AttributeProto]]] = {}
    for node in nodes_of(function) if function.attribute else ():
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                uses.setdefault(attribute.ref_attr_name, []).append((node, attribute))
    for name in function.attribute:
        if len(uses.get(name, ())) != 1:
            continue
        node, handed = uses[name][0]
        for default in list(_defaults(functions.get(ops.called(node)), functions, known)):
            if default.name == handed.name:
                own = AttributeProto()
                own.CopyFrom(default)
                own.name = name
                found.append(own)
    return found


def inlined(model: ModelProto) -> ModelProto:
    """The model with functions in place of their calls, to look at; calls stay where onnx refuses,
    and those that runtimes take for their own operators. The model itself where it has none."""
    if not model.functions:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    write_defaults(copy)
    stay = [(f.domain, f.name) for f in model.functions if not ops.can_be_called(f)]
    with contextlib.suppress(RuntimeError, ValueError):  # a function of another opset
        return onnx.inliner.inline_selected_functions(copy, stay, exclude=True)
    return copy
