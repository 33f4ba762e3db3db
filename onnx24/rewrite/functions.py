"""Calls of local functions are replaced by their bodies."""

from __future__ import annotations

import onnx
import onnx.inliner

from onnx24.analysis.packed24 import DOMAIN, OP
from onnx24.effects import Effects
from onnx24.ir.model import Model
from onnx24.ir.scopes import function_path


def inline_functions(model: Model) -> list[str]:
    """Inline every call that can be, but those of SpMM24: its body is what the operator means
    where the plugin is not, and inlined the packed weight would be no weight any more.

    Returns: the paths of the functions that are gone."""
    names = [function_path(function) for function in model.proto.functions]
    # The C++ inliner never looks at payloads, so the lean document will do.
    inlined = onnx.inliner.inline_selected_functions(model.proto, [(DOMAIN, OP)], exclude=True)
    left = {function_path(function) for function in inlined.functions}
    model.proto.CopyFrom(inlined)
    _drop_unused_imports(model, {f.domain for f in inlined.functions})
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    return [name for name in names if name not in left]


def _drop_unused_imports(model: Model, keep: set[str]) -> None:
    """The domain of an inlined function means nothing any more, and runtimes refuse it."""
    used = {node.domain for scope in model.scopes() for node in scope.graph.node} | keep
    for entry in list(model.proto.opset_import):
        if entry.domain not in ("", "ai.onnx", *used) and not _is_known_domain(entry.domain):
            model.proto.opset_import.remove(entry)


def _is_known_domain(domain: str) -> bool:
    return domain in {schema.domain for schema in onnx.defs.get_all_schemas()}
