"""Initializers of a body that have the name of an outer value.

ONNX wants names to be unique along nested scopes; exporters copy weights into branches under the
same name, and onnx.checker says nothing. Which of two different values the branch reads is up to
the runtime: ONNX Runtime 1.32 takes the branch's own, unless the *other* branch reads the outer one
under that name; onnx's reference evaluator takes the outer one.
*Source:* onnx/docs/IR.md, "Names within a graph".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import GraphProto, TensorProto

from onnx24.errors import InputError
from onnx24.ir.scopes import Scope, scopes

if TYPE_CHECKING:
    from onnx24.ir.model import Model


def settle_shadows(model: Model, file: str = "-") -> int:
    """Drop the copies of outer weights, so that what is one weight is one initializer. Returns:
    how many. Raises: InputError O24-050 for one that differs from the outer value, or shadows
    something that is no constant."""
    found = list(scopes(model.proto))
    if not any(scope.parent is not None and scope.initializers for scope in found):
        return 0
    visible: dict[str, dict[str, TensorProto | None]] = {}
    dropped = 0
    for scope in found:
        graph = scope.graph
        outer = visible[scope.parent] if scope.parent is not None else {}
        own = _definitions(scope)
        copies = []
        for i, tensor in enumerate(scope.initializers):
            if tensor.name not in outer:
                continue
            if not _is_same(model, tensor, outer[tensor.name]):
                raise InputError.of(
                    "O24-050",
                    f"the initializer {tensor.name!r} of the body has the name of another value "
                    "outside, and runtimes differ in which of them they read",
                    file=file,
                    scope=scope.path,
                    tensor=tensor.name,
                )
            own[tensor.name] = outer[tensor.name]
            copies.append(i)
        for i in reversed(copies):
            assert isinstance(graph, GraphProto)
            del graph.initializer[i]
        dropped += len(copies)
        visible[scope.path] = {**outer, **own}
    return dropped


def _definitions(scope: Scope) -> dict[str, TensorProto | None]:
    """Name → its constant; None for what is computed, sparse, or may be overridden."""
    graph = scope.graph
    names: dict[str, TensorProto | None] = {}
    names.update((name, None) for node in graph.node for name in node.output if name)
    if not isinstance(graph, GraphProto):
        return {**names, **dict.fromkeys(graph.input)}
    names.update((sparse.values.name, None) for sparse in graph.sparse_initializer)
    names.update((tensor.name, tensor) for tensor in graph.initializer)
    names.update((value.name, None) for value in graph.input)
    return names


def _is_same(model: Model, a: TensorProto, b: TensorProto | None) -> bool:
    return (
        b is not None
        and (a.data_type, list(a.dims)) == (b.data_type, list(b.dims))
        and model.weights.digest_of(a) == model.weights.digest_of(b)
    )
