"""Calls of local functions are replaced by their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, NodeProto

from onnx24.analysis.packed24 import DOMAIN, OP
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.scopes import bodies, function_path, node_label


def inline_functions(model: Model) -> list[str]:
    """Inline every call that can be, but those of SpMM24: its body is what the operator means
    where the plugin is not, and inlined the packed weight would be no weight any more.

    Returns: the paths of the functions that are gone.
    Raises: InputError O24-331 for a function whose operators mean something else in the model's
    opset.
    """
    names = [function_path(function) for function in model.proto.functions]
    # The C++ inliner never looks at payloads, so the lean document will do.
    lean = onnx.ModelProto()
    lean.CopyFrom(model.proto)
    for function in lean.functions:
        _adopt_opsets(function, {e.domain: e.version for e in lean.opset_import})
    inlined = onnx.inliner.inline_selected_functions(lean, [(DOMAIN, OP)], exclude=True)
    left = {function_path(function) for function in inlined.functions}
    model.proto.CopyFrom(inlined)
    _drop_unused_imports(model, {f.domain for f in inlined.functions})
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    return [name for name in names if name not in left]


def _adopt_opsets(function: FunctionProto, opsets: Mapping[str, int]) -> None:
    """Let a function import what the model does, where its operators are the same there: the
    inliner refuses any difference, and with conversion it wants types that a lean document lacks.
    """
    for entry in function.opset_import:
        own, wanted = entry.version, opsets.get(entry.domain, entry.version)
        if own == wanted:
            continue
        for node in _nodes(function):
            if node.domain == entry.domain and not _is_same(node, own, wanted):
                raise InputError.of(
                    "O24-331",
                    f"{function_path(function)} is of opset {own} and the model of {wanted}, where "
                    f"{node.op_type} means something else",
                    node=node_label(node),
                    op=node.op_type,
                )
        entry.version = wanted


def _is_same(node: NodeProto, own: int, wanted: int) -> bool:
    """Whether two opsets define an operator alike; one of no known domain has no versions."""
    if not _is_known_domain(node.domain):
        return True
    try:
        a, b = (onnx.defs.get_schema(node.op_type, v, node.domain) for v in (own, wanted))
    except onnx.defs.SchemaError:
        return False
    return a.since_version == b.since_version


def _nodes(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Those of bodies too."""
    for node in graph.node:
        yield node
        for _, body in bodies(node):
            yield from _nodes(body)


def _drop_unused_imports(model: Model, keep: set[str]) -> None:
    """The domain of an inlined function means nothing any more, and runtimes refuse it."""
    used = {node.domain for scope in model.scopes() for node in scope.graph.node} | keep
    for entry in list(model.proto.opset_import):
        if entry.domain not in ("", "ai.onnx", *used) and not _is_known_domain(entry.domain):
            model.proto.opset_import.remove(entry)


def _is_known_domain(domain: str) -> bool:
    return domain in {schema.domain for schema in onnx.defs.get_all_schemas()}
