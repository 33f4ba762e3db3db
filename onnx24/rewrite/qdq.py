"""Q/DQ pairs put where `analysis.placement` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.formats import BLOCK
from onnx24.analysis.int8_weights import PairedWeight
from onnx24.analysis.placement import Edge, Flow, Layer, Placement
from onnx24.ir.keys import ValueKey
from onnx24.ir.surgeon import fresh
from onnx24.ir.weights import numpy_dtype
from onnx24.quant.scales import (
    FP8_MAX,
    INT4_MAX,
    INT8_MAX,
    block_amax,
    quantize_blocks,
    symmetric_scale,
)

__all__ = ["Int4", "Pairs", "insert_pairs"]

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
INT8 = np.dtype(np.int8)
_LARGEST = {INT8: INT8_MAX, FP8: FP8_MAX}


@dataclass(frozen=True)
class Pairs:
    """What becomes one format, INT8 or FP8. amax: by activation, the magnitude that becomes 127 or
    448; equal within a group of the placement. weights: as `int8_weights.paired_weights`."""

    element: np.dtype
    placement: Placement
    amax: Mapping[str, float]
    weights: Mapping[tuple[str, int], PairedWeight]


@dataclass(frozen=True)
class Int4:
    """What gets INT4 weights, `[K, N]` or `[N, K]`. values: weight → its floats. made: weight → the
    names of its INT4 forms, which `insert_pairs` fills in."""

    layers: Sequence[Layer] = ()
    values: Mapping[ValueKey, np.ndarray] = field(default_factory=dict)
    made: dict[ValueKey, list[str]] = field(default_factory=dict)


def insert_pairs(
    graph: gs.Graph, flow: Flow, formats: Sequence[Pairs], int4: Int4 | None = None
) -> dict[str, tuple[str, np.dtype]]:
    """Quantize activations and weights in the view of the main graph. No two formats take the
    same read.

    Returns: initializers that hold the activations' scales → (one of the activations that share
    it, dtype).
    """
    rewriter = _Rewriter(graph)
    scales: dict[str, tuple[str, np.dtype]] = {}
    for pairs in formats:
        dtypes = _dtypes(flow, pairs.placement, pairs.weights)
        scales.update(rewriter.activations(pairs, dtypes))
        for (_, axis), weight in pairs.weights.items():
            rewriter.weight(weight, axis, pairs.element)
    if int4 is not None:
        rewriter.int4(int4)
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
        self._zero_points: dict[tuple[int | None, np.dtype], gs.Constant] = {}

    def activations(
        self, pairs: Pairs, dtypes: Mapping[str, np.dtype]
    ) -> dict[str, tuple[str, np.dtype]]:
        """One pair for each value, one scale for each group of them. dtypes: by value.
        Returns: as `insert_pairs`."""
        scales: dict[tuple[str, np.dtype], gs.Constant] = {}
        groups = pairs.placement.groups()
        for value, edges in pairs.placement.edges.items():
            tensor = self._read(min(edges))
            shared = groups[value][0], dtypes[value]
            if shared not in scales:
                largest = _LARGEST[pairs.element]
                scale = symmetric_scale(pairs.amax[value], dtypes[value], largest)
                scales[shared] = self._constant(f"{shared[0]}_scale", scale)
            pair = self._pair(tensor, value, scales[shared], None, pairs.element)
            self._place(tensor, edges, pair)
            self._rewire(edges, pair[1].outputs[0])
        return {scale.name: shared for shared, scale in scales.items()}

    def int4(self, int4: Int4) -> None:
        """Each weight by blocks along K, once for readers that agree in that axis."""
        done: dict[tuple[ValueKey, int], gs.Variable] = {}
        for layer in int4.layers:
            key = layer.weight, 1 - layer.axis
            if key not in done:
                name, done[key] = self._weight_only(layer, int4.values[layer.weight])
                int4.made.setdefault(layer.weight, []).append(name)
            self._rewire({(layer.site.position, layer.use.input)}, done[key])

    def _weight_only(self, layer: Layer, values: np.ndarray) -> tuple[str, gs.Variable]:
        """(the INT4 constant's name, the dequantized value)"""
        axis, name = 1 - layer.axis, layer.weight.name
        scale = symmetric_scale(block_amax(values, axis, BLOCK), values.dtype, INT4_MAX)
        stored = self._constant(f"{name}_int4", quantize_blocks(values, scale, axis, BLOCK))
        real = gs.Variable(fresh(self._graph, f"{name}_dequantized"), values.dtype, values.shape)
        node = gs.Node(
            "DequantizeLinear",
            fresh(self._graph, f"{name}_DequantizeLinear"),
            {"axis": axis, "block_size": BLOCK},
            [stored, self._constant(f"{name}_scale", scale)],
            [real],
        )
        self._before.setdefault(layer.site.position, []).append(node)
        return stored.name, real

    def _place(self, tensor: gs.Tensor, edges: set[Edge], pair: list[gs.Node]) -> None:
        """Behind what makes the activation; an input's, before its first reader."""
        if tensor.inputs:
            self._after.setdefault(self._positions[id(tensor.inputs[0])], []).extend(pair)
        else:
            self._before.setdefault(min(edges)[0], []).extend(pair)

    def weight(self, weight: PairedWeight, axis: int, element: np.dtype) -> None:
        """One pair for all readers. axis: of the channels in the value that is quantized."""
        edges = {layer.weight_edge()[0] for layer in weight.readers}
        tensor = self._read(min(edges))
        scale = symmetric_scale(weight.amax, weight.layer.dtype, _LARGEST[element])
        constant = self._constant(f"{tensor.name}_scale", scale)
        pair = self._pair(tensor, tensor.name, constant, axis, element)
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

    def _zero_point(self, size: int | None, element: np.dtype) -> gs.Constant:
        """size: of the axis; None for rank 0."""
        if (size, element) not in self._zero_points:
            name = "zero_point" if size is None else f"zero_point_{size}"
            shape = () if size is None else (size,)
            if element != INT8:
                name += "_fp8"
            zeros = np.zeros(shape, element)
            self._zero_points[size, element] = gs.Constant(fresh(self._graph, name), zeros)
        return self._zero_points[size, element]

    def _pair(
        self,
        tensor: gs.Tensor,
        base: str,
        scale: gs.Constant,
        axis: int | None,
        element: np.dtype,
    ) -> list[gs.Node]:
        zero_point = self._zero_point(None if axis is None else scale.shape[0], element)
        attrs = {} if axis is None else {"axis": axis}
        quantized = gs.Variable(fresh(self._graph, f"{base}_quantized"), element)
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
