"""The pass qdq."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from onnx24.analysis.dataflow import Dataflow, Shapes
from onnx24.analysis.placement import Flow, Layer, Placement, find_layers, place, range_objection
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass
from onnx24.quant.calibrators import Calibrator, Method, make
from onnx24.quant.scales import channel_amax
from onnx24.rewrite.qdq import insert_pairs
from onnx24.runtime.data import Calibration
from onnx24.runtime.ranges import calibrate

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
        "O24-222",
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
        self._calibrator()  # ValueError for a percentile out of range

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        flow = Flow(found, ctx.analysis(model, Shapes), model.opset)
        layers = find_layers(found)
        selection = Selection(self.include, self.exclude)
        names = [name for layer in layers for name in _names(layer)]
        selection.check("qdq", names, "layer and no layer's weight")
        refusals: dict[Layer, tuple[str, str]] = {}
        for layer in layers:
            if objection := _objection(layer, flow, selection, ctx):
                refusals[layer] = objection
        chosen = [layer for layer in layers if layer not in refusals]
        ranges: dict[str, Calibrator] = {}
        if chosen:
            _check_opset(model)
            _check_finite(model, found, chosen)
            data = _data(ctx)
            observed = place(flow, chosen, self._sparse(chosen, model, ctx)).considered
            ranges = calibrate(model, list(observed), data, self._calibrator, ctx.progress)
            for layer in chosen:
                if objection := range_objection(ranges[layer.data]):
                    refusals[layer] = objection
                elif not ctx.admit(layer.name):
                    refusals[layer] = "O24-218", "the limit of sites is reached"
        chosen = [layer for layer in chosen if layer not in refusals]
        placement = place(
            flow,
            chosen,
            self._sparse(chosen, model, ctx),
            usable=lambda value: range_objection(ranges[value]) is None,
        )
        amax = {
            value: max(ranges[other].amax for other in group)
            for value, group in placement.groups().items()
        }
        if chosen:
            with model.surgeon() as graph:
                insert_pairs(graph, model, flow, placement, amax, chosen)
        for layer in layers:
            if layer in refusals:
                _record(ctx, layer, "refused", *refusals[layer])
            else:
                facts = self._facts(layer, placement, amax)
                _record(ctx, layer, "quantized", "O24-200", _reason(facts), **facts)
        others = [refusal for refusal in refusals.values() if refusal[0] != "O24-214"]
        if others and not chosen:
            code, count = Counter(code for code, _ in others).most_common(1)[0]
            message = f"none of {len(layers)} layers was quantized; {count} are refused by {code}"
            ctx.diagnostics.add(diagnostic("O24-222", message))
        for site in found.dynamic:
            ctx.refuse_node("O24-213", site, "both operands are computed at run time")
        ctx.statistics.update(
            quantized=len(chosen),
            refused=len(refusals) + len(found.dynamic),
            activation_pairs=len(placement.edges),
            sparse_outputs=len(placement.results),
        )

    def _calibrator(self) -> Calibrator:
        return make(self.calibrator, self.percentile)

    @staticmethod
    def _sparse(layers: Sequence[Layer], model: Model, ctx: Context) -> list[Layer]:
        if not ctx.target.output_qdq_for_sparse:
            return []
        claimed = set(model.claims.keys())
        return [layer for layer in layers if layer.weight in claimed]

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


def _objection(
    layer: Layer, flow: Flow, selection: Selection, ctx: Context
) -> tuple[str, str] | None:
    """(code, reason) why a layer is not quantized, whatever its ranges."""
    if not ctx.target.int8:
        return "O24-221", f"{ctx.target.name} lists no INT8 kernels"
    if reason := selection.objection(_names(layer)):
        return "O24-218", reason
    return flow.objection(layer)


def _reason(facts: dict[str, Any]) -> str:
    text = f"activation {facts['activation']!r} up to {facts['amax']:.4g}"
    return f"{text}, INT8 out at {facts['output']!r}" if "output" in facts else text


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
    """The samples; says what is doubtful about the target and about them."""
    if not ctx.target.confirmed("int8"):
        message = f"nothing public confirms INT8 kernels on {ctx.target.name}"
        ctx.diagnostics.add(diagnostic("O24-400", message))
    if ctx.calibration is None:
        raise InputError.of(
            "O24-035", "qdq: expected samples to find the activations' ranges on, found none"
        )
    if ctx.calibration.is_random:
        message = f"the ranges come from {ctx.calibration.describe()}"
        ctx.diagnostics.add(diagnostic("O24-034", message))
    return ctx.calibration


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
