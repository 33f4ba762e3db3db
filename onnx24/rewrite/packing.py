"""2:4 weights stored without their zeros, behind onnx24::Unpack24 (ir.packed)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, TensorProto, helper

from onnx24.analysis.weight_uses import WeightUses
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.packed import DOMAIN, MIN_IR_VERSION, MIN_OPSET, OP, TYPES, unpack_function
from onnx24.ir.scopes import Scope
from onnx24.ir.weights import payload_bytes
from onnx24.sparsity.pack import Packed24, pack24

__all__ = ["Candidate", "candidates", "pack_weights", "packed"]


@dataclass(frozen=True)
class Candidate:
    """A weight that products read along groups of four. stride: how far apart, in the flat stored
    tensor, a group's members lie. reason: why it can't be packed, "" where it can."""

    key: ValueKey
    stride: int
    nbytes: int
    node: str
    op: str
    reason: str = ""


def candidates(model: Model, found: WeightUses, min_bytes: int) -> Iterator[Candidate]:
    """Weights of at least `min_bytes` that products reduce, in document order."""
    for key, uses in found.uses.items():
        tensor = found.tensors[key]
        products = [use for use in uses if use.kind == "product" and use.k_stride is not None]
        if not products or payload_bytes(tensor) < min_bytes:
            continue
        use, stride = _best(model, tensor, [(use, use.k_stride or 1) for use in products])
        reason = _reason(model, found, key, tensor, stride)
        yield Candidate(key, stride, payload_bytes(tensor), use.node, use.op, reason)


def _best(model: Model, tensor: TensorProto, ways: list) -> tuple:
    """The first way of reading the weight along which it is 2:4; the first of all where it is
    along none."""
    return next((w for w in ways if not model.weights.violations(tensor, w[1]).violating), ways[0])


def _reason(
    model: Model, found: WeightUses, key: ValueKey, tensor: TensorProto, stride: int
) -> str:
    dtype = model.weights.read(tensor).dtype.name
    if dtype not in TYPES:
        return f"{dtype} can't be put to its places by operators that runtimes have"
    if model.opset < MIN_OPSET:
        return f"opset {model.opset}, expected {MIN_OPSET} or more; upgrade-opset"
    if key in found.constants:
        return "a Constant node; canonicalize makes it an initializer"
    if key in found.index.graph_inputs:
        return "a caller may override it"
    if violations := model.weights.violations(tensor, stride).violating:
        return f"{violations:,} of its groups are not 2:4"
    try:
        packed(model, tensor, stride)
    except ValueError:  # by value it is 2:4
        return "among what 2:4 drops are values of -0, which would become +0"
    return ""


def packed(model: Model, tensor: TensorProto, stride: int) -> Packed24:
    """values [stride, M/2], metadata uint8 [stride, ceil(M/8)]. Raises: ValueError where the bits
    are not 2:4."""
    rows = model.weights.read(tensor).reshape(-1, stride).T
    return pack24(np.ascontiguousarray(rows))


def pack_weights(model: Model, sites: list[Candidate]) -> list[tuple[Candidate, ValueKey, int]]:
    """Replace each weight by a call that makes it of its packed arrays; one weight is held at a
    time. A record of 2:4 moves to the packed values.

    Returns: for each, the key of its packed values, and the packed bytes.
    """
    proto = model.proto
    if DOMAIN not in model.opsets:
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    if not any((f.domain, f.name) == (DOMAIN, OP) for f in proto.functions):
        proto.functions.append(unpack_function(model.opset))
    proto.ir_version = max(proto.ir_version, MIN_IR_VERSION)
    taken = {name for scope in model.scopes() for name in _names(scope)}
    scopes = {scope.path: scope.graph for scope in model.scopes()}
    done = []
    first: dict[str, int] = {}  # where the next call goes, by scope: in the weights' order
    for site in sites:
        graph = scopes[site.key.scope]
        assert isinstance(graph, GraphProto)
        at = next(i for i, t in enumerate(graph.initializer) if t.name == site.key.name)
        tensor = graph.initializer[at]
        arrays = packed(model, tensor, site.stride)
        inputs = []
        for ending, array in (("values24", arrays.values), ("places24", arrays.metadata)):
            new = TensorProto(name=_fresh(taken, f"{site.key.name}.{ending}"))
            model.weights.set_values(new, array)
            graph.initializer.append(new)
            inputs.append(new.name)
        shape, dtype = list(tensor.dims), tensor.data_type
        name = _fresh(taken, f"{site.key.name}.unpack24")
        node = helper.make_node(OP, inputs, [tensor.name], name, domain=DOMAIN, dtype=dtype)
        node.attribute.append(helper.make_attribute("shape", shape, attr_type=7))
        graph.node.insert(first.setdefault(site.key.scope, 0), node)
        first[site.key.scope] += 1
        if all(info.name != tensor.name for info in (*graph.value_info, *graph.output)):
            graph.value_info.append(helper.make_tensor_value_info(tensor.name, dtype, shape))
        del graph.initializer[at]
        done.append((site, ValueKey(site.key.scope, inputs[0]), arrays.nbytes))
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    model.claims.move_all((site.key, key) for site, key, _ in done)
    return done


def _names(scope: Scope) -> Iterator[str]:
    for node in scope.graph.node:
        yield node.name
        yield from node.output
    for tensor in scope.initializers:
        yield tensor.name
    for value in scope.graph.input:
        yield value if isinstance(value, str) else value.name


def _fresh(taken: set[str], name: str) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
