"""Putting a solved layer into the model: its weight, and its bias where that moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.weight_uses import WeightUses, consumer_view
from onnx24.effects import Effects
from onnx24.ir.model import Model
from onnx24.layerwise.results import LayerResult
from onnx24.layerwise.stages import Bias
from onnx24.sparsity.metrics import count_zeros, energies

__all__ = ["put_bias", "put_solved"]


def put_solved(
    model: Model, found: WeightUses, verdict: Verdict, result: LayerResult, bias: Bias | None
) -> dict[str, Any]:
    """Write the weight, and the bias under `bias.name`. Returns: the result's facts, and zeros:
    before. energy_kept: Σw² of the survivors, as they were, over Σw² of all. relative_error:
    ‖W − Ŵ‖ / ‖W‖. Both in the consumer's values."""
    key, use = verdict.key, verdict.products[0]
    before = found.read(model, key)
    total, kept, lost = energies(consumer_view(before, use), consumer_view(result.stored, use))
    facts = {
        "zeros": count_zeros(before),
        "energy_kept": kept / total if total else 1.0,
        "relative_error": math.sqrt(lost / total) if total else 0.0,
        **result.facts,
    }
    found.replace(model, key, result.stored)
    if result.bias is not None:
        assert bias is not None
        put_bias(model, bias.node, bias.input, bias.name, result.bias)
        facts["bias"] = bias.name
    return facts


def put_bias(model: Model, node: NodeProto, position: int, name: str, values: np.ndarray) -> None:
    """Make `values` the input `position` of a node of the main graph, as the initializer `name`.

    An initializer of that name gets the new values; otherwise it is made, and the node is
    connected to it.
    """
    if name in model.weights:
        model.weights.replace(name, values)
        return
    tensor = TensorProto(name=name)
    model.weights.set_values(tensor, values)
    model.proto.graph.initializer.append(tensor)
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = name
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
