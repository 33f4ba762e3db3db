"""Running pieces of a model whose weights are fed, so that one session serves every version."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from onnx24.ir.model import Model
from onnx24.layerwise.stages import Layer, Segment
from onnx24.runtime.session import Session

__all__ = ["Piece", "Unsupported", "Weights", "in_order", "whole"]

Weights = Mapping[str, np.ndarray]
"""Stored tensors by name: weights, and biases under the name that `stages.Bias` gives them."""


class Unsupported(Exception):
    """The model can't be run in pieces; says why."""


class Piece:
    """A session over some nodes of the main graph. What `dense` names, and the moved biases of
    `layers`, which it names too, are inputs.

    Raises: InputError O24-016 where ONNX Runtime refuses it; Unsupported.
    """

    def __init__(
        self,
        model: Model,
        nodes: Sequence[NodeProto],
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[str],
        layers: Iterable[Layer],
        dense: Weights,
    ) -> None:
        biases = {id(layer.bias.node): layer.bias for layer in layers if layer.bias}
        copied = [_with_bias(node, biases) for node in nodes if not dense.keys() & set(node.output)]
        proto = _shell(model.proto)
        graph = proto.graph
        graph.name = "piece"
        graph.node.extend(copied)
        reads = {name for node in copied for name in _all_names(node)}
        fed = dense.keys() & reads
        graph.input.extend(value for value in inputs if value.name in reads)
        graph.input.extend(
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(dense[name].dtype), dense[name].shape
            )
            for name in sorted(fed)
        )
        taken = {value.name for value in graph.input}
        source = model.proto.graph
        graph.initializer.extend(
            t for t in source.initializer if t.name in reads and t.name not in taken
        )
        graph.sparse_initializer.extend(
            t for t in source.sparse_initializer if t.values.name in reads
        )
        graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
        self.inputs = [value.name for value in graph.input if value.name not in fed]
        self.fed = sorted(fed)
        self._session = Session(model.variant(proto), threads=1)

    def run(self, feeds: Mapping[str, np.ndarray], weights: Weights) -> dict[str, np.ndarray]:
        """The outputs for values of `inputs`, with these weights.

        Raises: InputError O24-016; Unsupported for outputs that are no arrays.
        """
        found = self._session.run(
            {name: feeds[name] for name in self.inputs} | {name: weights[name] for name in self.fed}
        )
        for name, value in found.items():
            if not isinstance(value, np.ndarray):
                raise Unsupported(f"{name!r} is no tensor, and is needed between two layers")
        return found


def segment_piece(
    model: Model,
    segment: Segment,
    layers: Sequence[Layer],
    dense: Weights,
    samples: Mapping[str, np.ndarray],
) -> Piece:
    """samples: a value of each of the segment's inputs, whose type and rank it has."""
    inputs = [_value_info(name, samples[name]) for name in segment.inputs]
    return Piece(model, segment.nodes, inputs, segment.outputs, layers, dense)


def whole(
    model: Model,
    layers: Sequence[Layer],
    dense: Weights,
    fed: Sequence[str],
    outputs: Sequence[str] = (),
) -> Piece:
    """The whole main graph, with the inputs `fed` and `outputs`; without any, those of the model
    that are tensors.

    Raises: Unsupported where none is.
    """
    graph = model.proto.graph
    inputs = [value for value in graph.input if value.name in fed]
    tensors = [v.name for v in graph.output if v.type.WhichOneof("value") in ("tensor_type", None)]
    names = list(outputs) or tensors
    if not names:
        raise Unsupported("no output is a tensor, by which the result could be judged")
    return Piece(model, list(graph.node), inputs, names, layers, dense)


def in_order(
    pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """The results in the order of the items, at most `ahead` of them computed before they are
    asked for."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _with_bias(node: NodeProto, biases: Mapping[int, Any]) -> NodeProto:
    bias = biases.get(id(node))
    if bias is None:
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    while len(copy.input) <= bias.input:
        copy.input.append("")
    copy.input[bias.input] = bias.name
    return copy


def _shell(proto: ModelProto) -> ModelProto:
    """The model without its graph."""
    shell = ModelProto(ir_version=max(proto.ir_version, 4))  # from 4 on, inputs can lack a default
    shell.opset_import.extend(proto.opset_import)
    shell.functions.extend(proto.functions)
    return shell


def _all_names(node: NodeProto) -> Iterator[str]:
    """Names that a node and its bodies read; those defined in a body among them, which does no
    harm."""
    yield from (name for name in node.input if name)
    for attr in node.attribute:
        for graph in (*((attr.g,) if attr.HasField("g") else ()), *attr.graphs):
            for inner in graph.node:
                yield from _all_names(inner)
            yield from (value.name for value in graph.output)


def _value_info(name: str, array: np.ndarray) -> ValueInfoProto:
    if not isinstance(array, np.ndarray):
        raise Unsupported(f"{name!r} is no tensor")
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, element, [None] * array.ndim)
