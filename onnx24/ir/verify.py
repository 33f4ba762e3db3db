"""The invariants that hold after every pass, and what is said when one does not.

1. onnx.checker accepts the model (O24-800).
2. Inputs and outputs keep names, types and shapes; what was unknown may become known. An input
   that has a default value may become a constant where the model's metadata says so (O24-801).
3. Every name is defined once in its scope and shadows no outer name (O24-802).
4. Every read name is defined in its scope or an enclosing one (O24-803).
5. Nodes are topologically sorted (O24-804).
6. Every node's domain has an opset import (O24-805).
7. Every tensor's payload is there and fills its shape and dtype (O24-806).
8. A weight that was recorded as 2:4 is 2:4 in the values that its consumer sees (O24-807); that
   one needs analyses, so it lives in analysis/invariants.py.

Defects that the input itself had (ir.repair) are not held against a pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import GraphProto

from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.check import run_checker
from onnx24.ir.repair import is_sorted
from onnx24.ir.scopes import Scope, is_in_function, node_label, scopes, tensors
from onnx24.ir.shapes import ValueType, value_type

if TYPE_CHECKING:
    from onnx import ValueInfoProto

    from onnx24.ir.model import Model


CONSTANT_INPUTS = "onnx24.constant-inputs"
"""The metadata entry: a JSON list of names."""


@dataclass(frozen=True)
class Interface:
    """Names and types of a model's inputs and outputs, in order. initializers: of the main graph;
    one that is an input too is that input's default. constant_inputs: names of former inputs."""

    inputs: tuple[tuple[str, ValueType | bytes], ...]
    outputs: tuple[tuple[str, ValueType | bytes], ...]
    initializers: frozenset[str] = frozenset()
    constant_inputs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: Model) -> Interface:
        graph = model.proto.graph
        return cls(
            _signature(graph.input),
            _signature(graph.output),
            frozenset(tensor.name for tensor in graph.initializer),
            constant_inputs(model),
        )


def constant_inputs(model: Model) -> frozenset[str]:
    """Inputs with a default value that `make_constant` took off this model's interface. A record
    that does not parse counts as empty: anybody may have written it."""
    try:
        found = json.loads(model.metadata.get(CONSTANT_INPUTS, "[]"))
    except (ValueError, RecursionError):
        return frozenset()
    names = found if isinstance(found, list) else []
    return frozenset(name for name in names if isinstance(name, str))


def make_constant(model: Model, names: frozenset[str]) -> None:
    """Take inputs that have an initializer off the interface, for good and on the record: nothing
    else may (O24-801)."""
    inputs = model.proto.graph.input
    for position in reversed(range(len(inputs))):
        if inputs[position].name in names:
            del inputs[position]
    model.metadata[CONSTANT_INPUTS] = json.dumps(sorted(names | constant_inputs(model)))
    model.touch(Effects.STRUCTURE)


def _signature(values) -> tuple[tuple[str, ValueType | bytes], ...]:
    return tuple((value.name, _type(value)) for value in values)


def _type(value: ValueInfoProto) -> ValueType | bytes:
    """Tensor types compare dimension by dimension, everything else by its serialization."""
    return value_type(value.type) or value.type.SerializeToString(deterministic=True)


def verify(
    model: Model, interface: Interface | None = None, *, changed: Effects = Effects.STRUCTURE
) -> list[Diagnostic]:
    """Everything that is wrong with the document; empty if nothing is.

    changed: since the document was last looked at. New values alone can break no other invariant
    than that of payloads.
    """
    problems: list[Diagnostic] = (
        [] if Effects.STRUCTURE not in changed else _structure(model, interface)
    )
    for tensor in tensors(model.proto):
        try:
            model.weights.check(tensor)
        except InputError as err:
            problems.append(diagnostic("O24-806", str(err), tensor=tensor.name))
    if Effects.STRUCTURE in changed and not problems and (complaint := run_checker(model)):
        problems.append(diagnostic("O24-800", complaint))
    return problems


def _structure(model: Model, interface: Interface | None) -> list[Diagnostic]:
    """O24-801 to O24-805."""
    problems: list[Diagnostic] = []
    undefined: list[Diagnostic] = []
    if interface is not None:
        problems += _check_interface(interface, Interface.of(model))
    domains = set(model.opsets) | {""}
    defined: dict[str, set[str]] = {}
    for scope in scopes(model.proto):
        outer = set(defined.get(scope.parent, ())) if scope.parent is not None else set()
        visible = defined[scope.path] = outer | _check_definitions(scope, outer, problems)
        undefined += _undefined(scope, visible)
        if "unsorted" not in model.defects and not is_sorted(scope.graph.node):
            problems.append(
                diagnostic("O24-804", "nodes are not in topological order", scope=scope.path)
            )
        if not isinstance(scope.graph, GraphProto):
            continue  # a function brings its own opset imports; the checker looks at them
        for node in scope.graph.node:
            domain = ops.domain(node)
            if domain not in domains and not is_in_function(scope.path):
                problems.append(
                    diagnostic(
                        "O24-805",
                        f"domain {domain!r} is not imported",
                        scope=scope.path,
                        node=node_label(node),
                        op=node.op_type,
                    )
                )
    return problems + undefined


def _undefined(scope: Scope, visible: set[str]) -> Iterator[Diagnostic]:
    for node in scope.graph.node:
        for name in node.input:
            if name and name not in visible:
                yield diagnostic(
                    "O24-803",
                    f"reads {name!r}, which nothing defines",
                    scope=scope.path,
                    node=node_label(node),
                    op=node.op_type,
                )


def _check_interface(before: Interface, after: Interface) -> list[Diagnostic]:
    problems = []
    made_constant = (after.constant_inputs - before.constant_inputs) & before.initializers
    inputs = tuple(entry for entry in before.inputs if entry[0] not in made_constant)
    for kind, old, new in (
        ("input", inputs, after.inputs),
        ("output", before.outputs, after.outputs),
    ):
        if [name for name, _ in old] != [name for name, _ in new]:
            problems.append(
                diagnostic(
                    "O24-801",
                    f"{kind}s were {[n for n, _ in old]}, are {[n for n, _ in new]}",
                )
            )
            continue
        problems += [
            diagnostic("O24-801", f"{kind} was {was!r}, is {now!r}", tensor=name)
            for (name, was), (_, now) in zip(old, new, strict=True)
            if not _compatible(was, now)
        ]
    return problems


def _compatible(was: ValueType | bytes, now: ValueType | bytes) -> bool:
    if not isinstance(was, ValueType) or not isinstance(now, ValueType):
        return was == now
    if was.dtype != now.dtype:
        return False
    if was.shape is None:
        return True
    return (
        now.shape is not None
        and len(was.shape) == len(now.shape)
        and all(a == b or a is None for a, b in zip(was.shape, now.shape, strict=True))
    )


def _check_definitions(scope: Scope, outer: set[str], problems: list[Diagnostic]) -> set[str]:
    graph = scope.graph
    if isinstance(graph, GraphProto):
        inputs = [value.name for value in graph.input]
        # An initializer with an input's name is that input's default value.
        constants = [t.name for t in graph.initializer if t.name not in set(inputs)]
        constants += [sparse.values.name for sparse in graph.sparse_initializer]
    else:
        inputs, constants = list(graph.input), []
    produced = [name for node in graph.node for name in node.output if name]
    seen: set[str] = set()
    for name in (*inputs, *constants, *produced):
        if name in seen or name in outer:
            what = "is defined twice" if name in seen else "shadows an outer value"
            problems.append(
                diagnostic("O24-802", f"{name!r} {what}", scope=scope.path, tensor=name)
            )
        seen.add(name)
    return seen
