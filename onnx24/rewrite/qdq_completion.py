"""What lint misses in a model that is quantized already, placed with the pairs that are there.

    conv → Q → DQ → Add             becomes   conv → Add                     (O24-638)
    product → Q → DQ, product → f   becomes   product → Q → DQ, DQ → f       (O24-639, skip branch)

Where a value has no pair yet, its scale takes calibration, which is for the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.placement import Flow, Layer, find_layers
from onnx24.analysis.qdq_rules import Quantized, misplaced_pairs, sparse_float_results
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, insert_after, label

__all__ = ["Missing", "complete"]


@dataclass
class Missing:
    """`shared`: (node, what was done to it). `results`, `skips`: names of what quantized products
    make, whose result, or whose Add's other operand, still needs a pair."""

    shared: list[tuple[str, str]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)

    def layers(self, flow: Flow) -> tuple[list[Layer], list[Layer]]:
        """The layers of `results`, and those of `skips`."""
        found = find_layers(flow.found)
        by_output = {layer.site.proto.output[0]: layer for layer in found if not layer.site.scope}
        return [by_output[n] for n in self.results], [by_output[n] for n in self.skips]


def complete(
    model: Model, cache: AnalysisCache, admit: Callable[[str], bool], *, sparse_outputs: bool
) -> Missing:
    """Take pairs from the wrong branch, and let values that have a pair be read through it.

    sparse_outputs: as of `qdq_rules.findings`. Looks at the main graph alone.
    """
    missing = Missing()
    judged = Quantized.of(model, cache)
    flow = Flow(judged.uses, judged.shapes, model.opset)
    layers = {id(layer.site.proto): layer for layer in find_layers(judged.uses)}
    wrong = [each for each in misplaced_pairs(judged) if not each.site.scope]
    floats = sparse_float_results(judged) if sparse_outputs else []
    wanted = [layers[id(site.proto)] for site in floats if not site.scope]
    if not wrong and not wanted:
        return missing
    with model.surgeon() as graph:
        by_name = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
        shown = {value.name for value in graph.outputs}
        for each in wrong:
            if not admit(each.site.name):
                continue
            add = by_name[each.add.site.proto.output[0]]
            made = by_name[each.value].outputs
            _bypass(graph, add, each.add.input, next(t for t in made if t.name == each.value))
            missing.shared.append((each.site.name, f"the pair before {label(add)!r} is gone"))
            skip = add.inputs[1 - each.add.input]
            if not _share(graph, skip, [add], shown):
                missing.skips.append(each.site.proto.output[0])
            else:
                missing.shared.append((label(add), f"reads {skip.name!r} through its pair"))
        for layer in wanted:
            value = flow.result(layer)
            if value not in by_name or value in shown or not admit(layer.name):
                continue
            tensor = next(t for t in by_name[value].outputs if t.name == value)
            others = [node for node in tensor.outputs if not ops.is_onnx(node, "QuantizeLinear")]
            if _share(graph, tensor, others, shown):
                missing.shared.append((layer.name, f"{value!r} is read through its pair alone"))
            else:
                missing.results.append(layer.site.proto.output[0])
    return missing


def _bypass(graph: gs.Graph, reader: gs.Node, position: int, value: gs.Tensor) -> None:
    """Let a node read what its Q → DQ quantizes, and drop the pair, which nothing else reads."""
    dq = reader.inputs[position].inputs[0]
    q = dq.inputs[0].inputs[0]
    reader.inputs[position] = value
    for node in (dq, q):
        detach(node)
        graph.nodes[:] = [other for other in graph.nodes if other is not node]


def _share(graph: gs.Graph, value: gs.Tensor, readers: list[gs.Node], shown: set[str]) -> bool:
    """Let nodes of the graph read a value through the pair that it has; False where it has none."""
    here = {id(node) for node in graph.nodes}
    if any(id(node) not in here for node in value.outputs) or not value.inputs:
        return False
    for q in value.outputs:
        if not ops.is_onnx(q, "QuantizeLinear") or q.inputs[0] is not value:
            continue
        for dq in q.outputs[0].outputs:
            if id(dq) not in here or not ops.is_onnx(dq, "DequantizeLinear"):
                continue
            if any(t.inputs for node in (q, dq) for t in node.inputs[1:]):
                continue  # parameters that nodes make may come later
            for node in (q, dq):
                graph.nodes[:] = [other for other in graph.nodes if other is not node]
            insert_after(graph, value.inputs[0], [q, dq])
            for node in readers:
                for i, tensor in enumerate(node.inputs):
                    if tensor is value and node is not q:
                        node.inputs[i] = dq.outputs[0]
            return True
    return False
