"""States that a Loop passes on as they came: its body may read them from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import GraphProto, NodeProto
from onnx.helper import make_node

from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.ir.scopes import bodies, scopes

__all__ = ["read_unchanged_states_outside"]


def read_unchanged_states_outside(
    model: Model, admit: Callable[[str], bool]
) -> list[tuple[str, str]]:
    """Let the bodies of Loop read the first value of each state that they hand on unchanged, so
    that a weight which travels that way is seen as the constant that it is. The state goes; what
    read it behind the Loop reads the first value. admit: asked before each edit.

    Returns: (the scope of the Loop, the value that is read now), by state.
    """
    found = []
    for scope in list(scopes(model.proto)):
        nodes = scope.graph.node
        for node in [each for each in nodes if ops.is_onnx(each, "Loop")]:
            ((_, body),) = bodies(node)
            for state, inner, outer in reversed(list(_unchanged(node, body))):
                if not admit(f"loop state {outer}"):
                    continue
                _read(body, inner, outer)
                del body.input[2 + state], body.output[1 + state], node.input[2 + state]
                if state < len(node.output):
                    result = node.output[state]
                    del node.output[state]
                    if result:
                        position = next(i for i, each in enumerate(nodes) if each is node)
                        nodes.insert(position, make_node("Identity", [outer], [result]))
                found.append((scope.path, outer))
    if found:
        model.touch(Effects.STRUCTURE)
    return found


def _unchanged(loop: NodeProto, body: GraphProto) -> Iterator[tuple[int, str, str]]:
    """(number, name in the body, name outside) of the states that leave as they came."""
    makers = {name: node for node in body.node for name in node.output}
    for state, outer in enumerate(loop.input[2:]):
        inner, result = body.input[2 + state].name, body.output[1 + state].name
        while (maker := makers.get(result)) is not None and ops.is_onnx(maker, "Identity"):
            result = maker.input[0]
        if _shown(body).count(inner) > (body.output[1 + state].name == inner):
            continue  # another output, perhaps of a body in it, is this state, too
        if result == inner and outer and not _defines(body, outer):
            yield state, inner, outer


def _shown(graph: GraphProto) -> list[str]:
    """What the graph and the bodies in it have as outputs."""
    names = [value.name for value in graph.output]
    return names + [n for node in graph.node for _, body in bodies(node) for n in _shown(body)]


def _defines(graph: GraphProto, name: str) -> bool:
    """Whether the graph or a body in it has a value of its own of that name."""
    own = [*graph.input, *graph.initializer]
    if any(each.name == name for each in own) or any(name in n.output for n in graph.node):
        return True
    return any(_defines(body, name) for node in graph.node for _, body in bodies(node))


def _read(graph: GraphProto, inner: str, outer: str) -> None:
    """Read another value."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == inner:
                node.input[i] = outer
        for _, body in bodies(node):
            if not any(value.name == inner for value in body.input):
                _read(body, inner, outer)
