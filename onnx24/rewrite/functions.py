"""Calls of local functions are replaced by their bodies."""

from __future__ import annotations

from typing import NamedTuple

import onnx
import onnx.inliner
from onnx import FunctionProto, NodeProto

from onnx24.analysis.packed24 import DOMAIN, OP
from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.calls import write_defaults
from onnx24.ir.model import Model
from onnx24.ir.scopes import function_path, nodes_of


class Inlined(NamedTuple):
    """`gone`: the paths of the functions that were inlined. `kept`: path of a function that stays,
    and is a reason to wonder → why."""

    gone: list[str]
    kept: dict[str, str]


def inline_functions(model: Model) -> Inlined:
    """Inline every call that can be, but those of SpMM24: its body is what the operator means
    where the plugin is not, and inlined the packed weight would be no weight any more."""
    functions = model.proto.functions
    stays = {(DOMAIN, OP)}
    kept: dict[str, str] = {}
    for function in functions:
        if (function.domain, function.name) not in stays and (why := _objection(model, function)):
            kept[function_path(function)] = why
            stays.add((function.domain, function.name))  # with every overload: the inliner's key
    names = [function_path(f) for f in functions if (f.domain, f.name) not in stays]
    if not names:
        return Inlined([], kept)
    # The C++ inliner never looks at payloads, so the lean document will do.
    lean = onnx.ModelProto()
    lean.CopyFrom(model.proto)
    for function in lean.functions:
        for entry in function.opset_import:
            if (function.domain, function.name) not in stays:
                entry.version = model.opsets.get(ops.own_domain(entry.domain), entry.version)
    write_defaults(lean)
    inlined = onnx.inliner.inline_selected_functions(lean, list(stays), exclude=True)
    left = {function_path(function) for function in inlined.functions}
    model.proto.CopyFrom(inlined)
    _drop_unused_imports(model, {f.domain for f in inlined.functions})
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    return Inlined([name for name in names if name not in left], kept)


def _objection(model: Model, function: FunctionProto) -> str:
    """Why a function can't be inlined; "" where it can. One that imports an older opset than the
    model can where its operators are the same in both: the inliner refuses any difference, and with
    conversion it wants types that a lean document lacks."""
    if not ops.can_be_called(function):
        return "runtimes take their own operator of that name, whatever the function says"
    for entry in function.opset_import:
        domain = ops.own_domain(entry.domain)
        own, wanted = entry.version, model.opsets.get(domain, entry.version)
        for node in nodes_of(function) if own != wanted else ():
            if ops.domain(node) == domain and not _is_same(node, own, wanted):
                return (
                    f"it is of opset {own} and the model of {wanted}, where {node.op_type} "
                    "means something else"
                )
    return ""


def _is_same(node: NodeProto, own: int, wanted: int) -> bool:
    """Whether two opsets define an operator alike; one of no known domain has no versions."""
    domain, name = ops.type_of(node)
    if not _is_known_domain(domain):
        return True
    try:
        a, b = (onnx.defs.get_schema(name, version, domain) for version in (own, wanted))
    except onnx.defs.SchemaError:
        return False
    return a.since_version == b.since_version


def _drop_unused_imports(model: Model, keep: set[str]) -> None:
    """The domain of an inlined function means nothing any more, and runtimes refuse it."""
    used = {node.domain for scope in model.scopes() for node in scope.graph.node} | keep
    for entry in list(model.proto.opset_import):
        domain = ops.own_domain(entry.domain)
        if entry.domain not in used and not _is_known_domain(domain):
            model.proto.opset_import.remove(entry)


def _is_known_domain(domain: str) -> bool:
    return domain in {schema.domain for schema in onnx.defs.get_all_schemas()}
