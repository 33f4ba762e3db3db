"""Q/DQ pairs put where `analysis.placement` says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.int8_weights import PairedWeight
from onnx24.analysis.placement import Flow, Placement
from onnx24.ir.surgeon import fresh
from onnx24.ir.weights import numpy_dtype
from onnx24.quant.scales import symmetric_scale

__all__ = ["insert_pairs"]


def insert_pairs(
    graph: gs.Graph,
    flow: Flow,
    placement: Placement,
    amax: Mapping[str, float],
    weights: Mapping[tuple[str, int], PairedWeight],
) -> dict[str, tuple[str, np.dtype]]:
    """Quantize activations and weights in the view of the main graph.

    amax: by activation, the magnitude that becomes 127; equal within a group of the placement.
    weights: as `int8_weights.paired_weights`. Returns: initializers that hold the activations'
    scales → (one of the activations that share it, dtype).
    """
    rewriter = _Rewriter(graph)
    scales = rewriter.activations(placement, amax, _dtypes(flow, placement, weights))
    for (_, axis), weight in weights.items():
        rewriter.weight(weight, axis)
    rewriter.finish()
    return scales


def _dtypes(
    flow: Flow, placement: Placement, weights: Mapping[tuple[str, int], PairedWeight]
) -> dict[str, np.dtype]:
    """The type of each activation: that of the layers which it feeds, or which feed it."""
    layers = [layer for weight in weights.values() for layer in weight.readers]
    by_position = {layer.site.position: layer.dtype for layer in layers}
    default = layers[0].dtype if layers else np.dtype(np.float32)
    found = {}
    for value, edges in placement.edges.items():
        known = flow.shapes.dtype(value)
        own = next((by_position[p] for p, _ in edges if p in by_position), default)
        found[value] = own if known is None else numpy_dtype(known)
    return found


class _Rewriter:
    """Inserts the pairs into the view of the main graph: `activations` and `weight` rewire,
    `finish` puts the nodes in order."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._nodes = list(graph.nodes)
        self._positions = {id(node): i for i, node in enumerate(self._nodes)}
        self._before: dict[int, list[gs.Node]] = {}
        self._after: dict[int, list[gs.Node]] = {}
        self._zero_points: dict[int | None, gs.Constant] = {}

    def activations(
        self, placement: Placement, amax: Mapping[str, float], dtypes: Mapping[str, np.dtype]
    ) -> dict[str, tuple[str, np.dtype]]:
        """One pair for each value, one scale for each group of them. amax, dtypes: by value.
        Returns: as `insert_pairs`."""
        scales: dict[tuple[str, np.dtype], gs.Constant] = {}
        groups = placement.groups()
        for value, edges in placement.edges.items():
            tensor = self._read(min(edges))
            shared = groups[value][0], dtypes[value]
            if shared not in scales:
                scale = symmetric_scale(amax[value], dtypes[value])
                scales[shared] = self._constant(f"{shared[0]}_scale", scale)
            pair = self._pair(tensor, value, scales[shared], None)
            if tensor.inputs:
                self._after.setdefault(self._positions[id(tensor.inputs[0])], []).extend(pair)
            else:
                self._before.setdefault(min(edges)[0], []).extend(pair)
            self._rewire(edges, pair[1].outputs[0])
        return {scale.name: shared for shared, scale in scales.items()}

    def weight(self, weight: PairedWeight, axis: int) -> None:
        """One pair for all readers. axis: of the channels in the value that is quantized."""
        edges = {layer.weight_edge()[0] for layer in weight.readers}
        tensor = self._read(min(edges))
        constant = self._constant(f"{tensor.name}_scale", weight.scale)
        pair = self._pair(tensor, tensor.name, constant, axis)
        self._before.setdefault(min(edges)[0], []).extend(pair)
        self._rewire(edges, pair[1].outputs[0])

    def finish(self) -> None:
        order: list[gs.Node] = []
        for i, node in enumerate(self._nodes):
            order += [*self._before.get(i, ()), node, *self._after.get(i, ())]
        self._graph.nodes[:] = order

    # --- parts -----------------------------------------------------------------------------
    def _read(self, edge: tuple[int, int]) -> gs.Tensor:
        position, number = edge
        return self._nodes[position].inputs[number]

    def _rewire(self, edges: set[tuple[int, int]], value: gs.Tensor) -> None:
        for position, number in sorted(edges):
            self._nodes[position].inputs[number] = value

    def _constant(self, base: str, values: np.ndarray) -> gs.Constant:
        # Not np.ascontiguousarray, which makes rank 1 of rank 0: a scale of shape [1] silently
        # disables INT8 convolutions (experiment with tensorrt-rtx 1.7.1).
        return gs.Constant(fresh(self._graph, base), np.asarray(values, order="C"))

    def _zero_point(self, size: int | None) -> gs.Constant:
        """size: of the axis; None for rank 0."""
        if size not in self._zero_points:
            name = "zero_point" if size is None else f"zero_point_{size}"
            shape = () if size is None else (size,)
            self._zero_points[size] = gs.Constant(
                fresh(self._graph, name), np.zeros(shape, np.int8)
            )
        return self._zero_points[size]

    def _pair(
        self, tensor: gs.Tensor, base: str, scale: gs.Constant, axis: int | None
    ) -> list[gs.Node]:
        zero_point = self._zero_point(None if axis is None else scale.shape[0])
        attrs = {} if axis is None else {"axis": axis}
        quantized = gs.Variable(fresh(self._graph, f"{base}_quantized"), np.dtype(np.int8))
        real = gs.Variable(fresh(self._graph, f"{base}_dequantized"), scale.dtype)
        return [
            gs.Node(
                op,
                fresh(self._graph, f"{base}_{op}"),
                dict(attrs),
                [source, scale, zero_point],
                [target],
            )
            for op, source, target in (
                ("QuantizeLinear", tensor, quantized),
                ("DequantizeLinear", quantized, real),
            )
        ]
