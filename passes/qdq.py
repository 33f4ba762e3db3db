"""The pass qdq."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.dataflow import Dataflow, Shapes
from onnx24.analysis.placement import Flow, Layer, Placement, find_layers, place
from onnx24.analysis.weight_uses import WeightUses, consumer_view
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.surgeon import fresh
from onnx24.ir.weights import numpy_dtype
from onnx24.passmgr.base import Context, Pass
from onnx24.quant.calibrators import Calibrator, Method, make
from onnx24.quant.scales import channel_amax, symmetric_scale
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import activations

MIN_OPSET = 13
"""QuantizeLinear has an axis from opset 13 on."""


@dataclass(frozen=True, kw_only=True)
class Qdq(Pass):
    """Insert QuantizeLinear and DequantizeLinear so that TensorRT computes layers in INT8.

    Quantized are Conv, ConvTranspose, Gemm and MatMul with a constant weight: the weight by output
    channel, the activation per tensor, the bias not. Scales are symmetric (zero point 0, explicit,
    int8), those of activations rank 0, all in the type that the layer computes in. The ranges come
    from the calibration data: the largest magnitude, or a percentile of the non-zero magnitudes.
    Weights keep their float values behind Q/DQ here; fold-qdq makes them INT8.

    Where the pairs go is written in onnx24/analysis/placement.py: one pair for each activation,
    nothing between a product and its bias, BatchNormalization and activation, a pair on the skip
    branch of a convolution's residual Add, one scale around a Concat, pairs moved up over MaxPool,
    Reshape and Transpose. On targets that want it, the result of a layer whose weight is recorded
    as 2:4 is quantized as well: TensorRT chooses a sparse INT8 kernel only with INT8 out.

    It refuses, with a code: matrix-vector products (O24-210), K or N below 16 (O24-211), fewer
    than 16 channels but for the forms that kernels are known for (O24-212), products without a
    constant weight (O24-213), what stands behind Q/DQ already (O24-214), activations that are
    always 0 (O24-215), other types than float32, and float16 and bfloat16 from opset 19 on
    (O24-216), what include and exclude leave out (O24-218), layers in bodies of If, Loop, Scan and
    functions (O24-219), activations with NaN or infinity (O24-220), targets without INT8
    (O24-221). NaN or infinity in a weight is an error (O24-008), as are missing calibration data
    (O24-035) and an opset below 13 (O24-009).

    INT8 costs little accuracy on most models; random calibration data cost all of it (O24-034).

    Example: `qdq{calibrator=max exclude=head.*}`.

    *Source:* TensorRT documentation, explicit quantization; NVIDIA Model-Optimizer pull request
    1664 (INT8 out).
    """

    name: ClassVar = "qdq"
    effects: ClassVar = Effects.STRUCTURE
    requires: ClassVar = (Dataflow, Shapes, WeightUses)
    after: ClassVar = ("canonicalize", "upgrade-opset", "prune24", "matmul-to-conv1x1")
    numeric: ClassVar = "close"
    codes: ClassVar = (
        "O24-008",
        "O24-009",
        "O24-034",
        "O24-035",
        "O24-200",
        "O24-210",
        "O24-211",
        "O24-212",
        "O24-213",
        "O24-214",
        "O24-215",
        "O24-216",
        "O24-218",
        "O24-219",
        "O24-220",
        "O24-221",
        "O24-400",
    )

    calibrator: Annotated[Method, "how an activation's range is found"] = Method.PERCENTILE
    percentile: Annotated[float, "share of magnitudes in range, in %, for the percentile"] = 99.99
    include: Annotated[
        tuple[str, ...], "quantize only layers whose name, or whose weight's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out layers whose name, or whose weight's, matches a pattern"
    ] = ()

    def __post_init__(self) -> None:
        make(self.calibrator, self.percentile)  # ValueError for a percentile out of range

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        flow = Flow(found, ctx.analysis(model, Shapes), model.opset)
        layers = find_layers(found)
        self._check_patterns(layers)
        refusals: dict[Layer, tuple[str, str]] = {}
        for layer in layers:
            if objection := self._objection(layer, flow, ctx):
                refusals[layer] = objection
        chosen = [layer for layer in layers if layer not in refusals]
        ranges: dict[str, Calibrator] = {}
        if chosen:
            _check_opset(model)
            _check_finite(model, found, chosen)
            if not ctx.target.confirmed("int8"):
                _unconfirmed(ctx)
            data = _data(ctx)
            observed = place(flow, chosen, self._sparse(chosen, model, ctx)).considered
            ranges = self._calibrate(model, list(observed), data, ctx)
            for layer in chosen:
                if objection := _range_objection(ranges[layer.data]):
                    refusals[layer] = objection
                elif not ctx.admit(layer.name):
                    refusals[layer] = "O24-218", "the limit of sites is reached"
        chosen = [layer for layer in chosen if layer not in refusals]
        placement = place(
            flow,
            chosen,
            self._sparse(chosen, model, ctx),
            usable=lambda value: _range_objection(ranges[value]) is None,
        )
        amax = {
            value: max(ranges[other].amax for other in group)
            for value, group in placement.groups().items()
        }
        if chosen:
            with model.surgeon() as graph:
                rewriter = _Rewriter(graph)
                rewriter.activations(placement, amax, _dtypes(flow, placement, chosen))
                rewriter.weights(model, found, chosen)
                rewriter.finish()
        for layer in layers:
            if layer in refusals:
                _record(ctx, layer, "refused", *refusals[layer])
            else:
                facts = self._facts(layer, placement, amax)
                _record(ctx, layer, "quantized", "O24-200", _reason(facts), **facts)
        _record_dynamic(ctx, found)
        ctx.statistics.update(
            quantized=len(chosen),
            refused=len(refusals) + len(found.dynamic),
            activation_pairs=len(placement.edges),
            sparse_outputs=len(placement.results),
        )

    # --- which layers ----------------------------------------------------------------------
    def _objection(self, layer: Layer, flow: Flow, ctx: Context) -> tuple[str, str] | None:
        if not ctx.target.int8:
            return "O24-221", f"{ctx.target.name} lists no INT8 kernels"
        names = _names(layer)
        if self.include and not _match(self.include, names):
            return "O24-218", f"include={'|'.join(self.include)} leaves it out"
        if pattern := _match(self.exclude, names):
            return "O24-218", f"exclude={pattern} leaves it out"
        return flow.objection(layer)

    def _check_patterns(self, layers: Sequence[Layer]) -> None:
        """Raises: InputError O24-023 for a pattern that means nothing."""
        names = [name for layer in layers for name in _names(layer)]
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not _match((pattern,), names):
                    raise InputError.of(
                        "O24-023",
                        f"qdq{{{option}={pattern}}} matches no layer and no layer's weight",
                        hint="`onnx24 inspect` lists the names",
                    )

    @staticmethod
    def _sparse(layers: Sequence[Layer], model: Model, ctx: Context) -> list[Layer]:
        if not ctx.target.output_qdq_for_sparse:
            return []
        claimed = set(model.claims.keys())
        return [layer for layer in layers if layer.weight in claimed]

    # --- ranges ----------------------------------------------------------------------------
    def _calibrate(
        self, model: Model, names: list[str], data: Calibration, ctx: Context
    ) -> dict[str, Calibrator]:
        """A finished calibrator for each activation; the data are run once for each sweep."""
        found = {name: make(self.calibrator, self.percentile) for name in names}
        sweeps = max(calibrator.sweeps for calibrator in found.values())
        for sweep in range(sweeps):
            label = "calibrate" if sweeps == 1 else f"calibrate {sweep + 1}/{sweeps}"
            runs = activations(model, names, data.batches(model))
            for values in ctx.progress(runs, label, total=data.runs):
                for name, calibrator in found.items():
                    calibrator.observe(values[name])
            for calibrator in found.values():
                calibrator.end_sweep()
        return found

    def _facts(self, layer: Layer, placement: Placement, amax: dict[str, float]) -> dict[str, Any]:
        value = placement.read_by(layer)
        facts: dict[str, Any] = {
            "K": layer.use.K,
            "N": layer.use.N,
            "activation": value,
            "amax": amax[value],
            "calibrator": self.calibrator.value,
            "axis": layer.weight_edge()[1],
        }
        if layer in placement.results:
            facts["output"] = placement.results[layer]
        return facts


def _names(layer: Layer) -> list[str]:
    return [layer.name, layer.weight.name, str(layer.weight)]


def _match(patterns: tuple[str, ...], names: list[str]) -> str | None:
    """The first pattern that matches any of the names."""
    return next((p for p in patterns if any(fnmatchcase(name, p) for name in names)), None)


def _reason(facts: dict[str, Any]) -> str:
    text = f"activation {facts['activation']!r} up to {facts['amax']:.4g}"
    return f"{text}, INT8 out at {facts['output']!r}" if "output" in facts else text


def _range_objection(calibrator: Calibrator) -> tuple[str, str] | None:
    if calibrator.overflowed:
        share = f"{calibrator.overflowed:,} of {calibrator.values:,} values"
        return "O24-220", f"{share} of the activation were NaN or infinite"
    if not calibrator.amax > 0:
        return "O24-215", f"all {calibrator.values:,} values of the activation were 0"
    return None


def _check_opset(model: Model) -> None:
    if model.opset < MIN_OPSET:
        raise InputError.of(
            "O24-009",
            f"qdq: expected opset {MIN_OPSET} or newer (scales by channel), the model has "
            f"{model.opset}",
            hint=f"put upgrade-opset{{to={MIN_OPSET}}} before qdq",
        )


def _check_finite(model: Model, found: WeightUses, layers: Sequence[Layer]) -> None:
    """Raises: InputError O24-008, one diagnostic for each weight with NaN or infinity."""
    problems = []
    for layer in {layer.weight: layer for layer in layers}.values():
        if not np.isfinite(channel_amax(found.read(model, layer.weight), None)):
            problems += InputError.of(
                "O24-008",
                "the weight holds NaN or infinity",
                tensor=layer.weight.name,
                node=layer.name,
                op=layer.op,
            ).diagnostics
    if problems:
        raise InputError(problems)


def _data(ctx: Context) -> Calibration:
    if ctx.calibration is None:
        raise InputError.of(
            "O24-035", "qdq: expected samples to find the activations' ranges on, found none"
        )
    if ctx.calibration.is_random:
        message = f"the ranges come from {ctx.calibration.describe()}"
        ctx.diagnostics.add(diagnostic("O24-034", message))
    return ctx.calibration


def _unconfirmed(ctx: Context) -> None:
    ctx.diagnostics.add(
        diagnostic("O24-400", f"nothing public confirms INT8 kernels on {ctx.target.name}")
    )


def _record(ctx: Context, layer: Layer, action: str, code: str, reason: str, **facts: Any) -> None:
    ctx.record(
        action,
        code,
        weight=layer.weight.name,
        node=layer.name,
        op=layer.op,
        scope=layer.site.scope,
        reason=reason,
        **facts,
    )


def _record_dynamic(ctx: Context, found: WeightUses) -> None:
    for site in found.dynamic:
        ctx.record(
            "refused",
            "O24-213",
            node=site.name,
            op=site.proto.op_type,
            scope=site.scope,
            reason="both operands are computed at run time",
        )


def _dtypes(flow: Flow, placement: Placement, layers: Sequence[Layer]) -> dict[str, np.dtype]:
    """The type of each activation: that of the layers which it feeds, or which feed it."""
    by_position = {layer.site.position: layer.dtype for layer in layers}
    default = layers[0].dtype if layers else np.dtype(np.float32)
    found = {}
    for value, edges in placement.edges.items():
        known = flow.shapes.dtype(value)
        own = next((by_position[p] for p, _ in edges if p in by_position), default)
        found[value] = own if known is None else numpy_dtype(known)
    return found


class _Rewriter:
    """Inserts the pairs into the view of the main graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._nodes = list(graph.nodes)
        self._positions = {id(node): i for i, node in enumerate(self._nodes)}
        self._before: dict[int, list[gs.Node]] = {}
        self._after: dict[int, list[gs.Node]] = {}
        self._zero_points: dict[int | None, gs.Constant] = {}

    def activations(
        self, placement: Placement, amax: dict[str, float], dtypes: dict[str, np.dtype]
    ) -> None:
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

    def weights(self, model: Model, found: WeightUses, layers: Sequence[Layer]) -> None:
        """One pair for each weight and axis, however many layers share it."""
        shared: dict[tuple[int, int], list[Layer]] = {}
        for layer in layers:
            edge, axis = layer.weight_edge()
            shared.setdefault((id(self._read(edge)), axis), []).append(layer)
        for (_, axis), readers in shared.items():
            first = readers[0]
            edges = {layer.weight_edge()[0] for layer in readers}
            tensor = self._read(min(edges))
            values = consumer_view(found.read(model, first.weight), first.use)
            scale = symmetric_scale(channel_amax(values, first.axis), first.dtype)
            constant = self._constant(f"{tensor.name}_scale", scale)
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
