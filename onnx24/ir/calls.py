"""Calls of local functions, as onnx's inliner is to be given them."""

from __future__ import annotations

import contextlib

import onnx.inliner
from onnx import ModelProto

from onnx24.ir import ops
from onnx24.ir.scopes import scopes

__all__ = ["inlined", "write_defaults"]


def write_defaults(model: ModelProto) -> None:
    """Give every call the defaults of the attributes that it leaves out: onnx 1.23's inliner drops
    them, and the operators inside would take their own."""
    functions = ops.functions(model)
    for scope in scopes(model):
        for node in scope.graph.node:
            function = functions.get(ops.called(node))
            given = {attribute.name for attribute in node.attribute}
            for default in function.attribute_proto if function is not None else ():
                if default.name not in given:
                    node.attribute.append(default)


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
