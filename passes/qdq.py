"""The pass qdq."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from onnx24.analysis.dataflow import Dataflow, Shapes
from onnx24.analysis.formats import (
    BLOCK,
    MIN_OPSETS,
    Format,
    Formats,
    weight_only_objection,
)
from onnx24.analysis.int8_weights import PairedWeight, bias_of, paired_weights
from onnx24.analysis.placement import (
    Edge,
    Flow,
    Layer,
    Placement,
    Request,
    find_layers,
    place,
    range_objection,
)
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass
from onnx24.quant.calibrators import Calibrator, Method, Range, make
from onnx24.quant.rounding import Rounding, WeightRange
from onnx24.quant.scales import channel_amax, symmetric_scale
from onnx24.rewrite.qdq import Fp8, Int4, insert_pairs
from onnx24.runtime.data import Calibration
from onnx24.runtime.quantization import Measured, best_candidate, measure, moments
from onnx24.runtime.range_cache import RangeCache, model_digest

MIN_OPSET = 13
"""QuantizeLinear has an axis from opset 13 on."""


@dataclass(frozen=True, kw_only=True)
class Qdq(Pass):
    """Insert QuantizeLinear and DequantizeLinear so that TensorRT computes layers in INT8.

    Quantized are Conv, ConvTranspose, Gemm and MatMul with a constant weight: the weight by output
    channel, the activation per tensor, the bias not. Scales are symmetric (zero point 0, explicit,
    int8), those of activations rank 0, all in the type that the layer computes in. Weights keep
    float values behind Q/DQ here; fold-qdq makes them INT8.

    *Ranges* come from the calibration data, in one pass over them and in memory that does not
    depend on their number: `max`, the largest magnitude; `percentile` of the non-zero magnitudes;
    `mse`, the least squared error; `entropy`, the least divergence of 2,048 bins; `auto`, for each
    activation that of the four which leaves the least error in the outputs of the layers that read
    it, measured on a sample of 64 to 512 rows with the quantized weight, or one of the four for
    all where that brings the model's outputs nearer on 16 samples. With `cache=FILE` they are
    written to a file, and taken from it the next time: `FILE.json` is refused for another model,
    other samples or other options (O24-223), any other name is TensorRT's calibration cache, which
    holds no digest.

    *Weights.* `weights=mse` chooses each channel's range by the error that the inputs' second
    moments weigh, `rounding=adaptive` lets the rounding errors of a row cancel (zeros stay zeros;
    the stored floats become the values that INT8 can say), `correct-bias` takes the mean error out
    of a layer's bias. At 8 bits these gain little.

    *Placement* is a table of rules, onnx24/analysis/placement.py: one pair for each activation,
    nothing between a product and its bias, BatchNormalization and activation, a pair on the skip
    branch of a convolution's residual Add, one scale around a Concat, pairs moved up over MaxPool,
    Reshape and Transpose. On targets that want it, the result of a layer whose weight is recorded
    as 2:4 is quantized as well: TensorRT chooses a sparse INT8 kernel only with INT8 out.
    `attention` quantizes products of two activations, too.

    *Formats.* `format` is that of all layers, `int8`, `fp8`, `int4` and `none` are patterns of
    layers that take another one or stay in float. FP8 (E4M3, O24-233) quantizes weight and
    activation as INT8 does, with the largest magnitude as range, since clipping gains nothing
    there; of the rules of the placement it follows the first alone. INT4 (O24-234) quantizes the
    weights of MatMul and Gemm alone, by blocks of 128 along K, and needs no data; weights are then
    an eighth in size, and it is for matrix-vector products, too. FP8 needs sm89 and opset 19, INT4
    TensorRT 10 and opset 21; layers that cannot have their format stay in float (O24-235,
    O24-236).

    It refuses, with a code: matrix-vector products (O24-210), K or N below 16 (O24-211), fewer
    than 16 channels but for the forms that kernels are known for (O24-212), products without a
    constant weight (O24-213), what stands behind Q/DQ already (O24-214), activations that are
    always 0 (O24-215), other types than float32, and float16 and bfloat16 from opset 19 on
    (O24-216), what include and exclude leave out (O24-218), layers in bodies of If, Loop, Scan and
    functions (O24-219), activations with NaN or infinity (O24-220), targets without INT8
    (O24-221), layers whose output would have less than `min-sqnr` dB (O24-224). NaN or infinity in
    a weight is an error (O24-008), as are missing calibration data (O24-035) and an opset below 13
    (O24-009).

    INT8 costs little accuracy on most models; random calibration data cost all of it (O24-034).
    The records give each layer's signal-to-noise ratio, `sqnr_db`.

    Example: `qdq{calibrator=max exclude=head.*}`, `qdq{fp8=blocks.* int4=lm_head none=stem}`.

    *Source:* TensorRT documentation, explicit quantization; NVIDIA Model-Optimizer pull request
    1664 (INT8 out); Migacz, 8-bit inference with TensorRT (entropy); 2210.17323 (error feedback).
    """

    name: ClassVar = "qdq"
    effects: ClassVar = Effects.STRUCTURE | Effects.WEIGHTS
    requires: ClassVar = (Dataflow, Shapes, WeightUses)
    after: ClassVar = (
        "canonicalize",
        "upgrade-opset",
        "equalize",
        "smooth-quant",
        "prune24",
        "matmul-to-conv1x1",
    )
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
        "O24-223",
        "O24-224",
        "O24-225",
        "O24-233",
        "O24-234",
        "O24-235",
        "O24-236",
        "O24-400",
    )

    calibrator: Annotated[Method, "how an activation's range is found"] = Method.AUTO
    percentile: Annotated[
        float, "share of magnitudes in range, in %, for the percentile and auto"
    ] = 99.99
    weights: Annotated[WeightRange, "how a weight channel's range is found"] = WeightRange.MAX
    rounding: Annotated[Rounding, "which way weights are rounded"] = Rounding.NEAREST
    correct_bias: Annotated[bool, "take the mean error of a layer's output out of its bias"] = False
    attention: Annotated[bool, "quantize products of two activations, too"] = False
    min_sqnr: Annotated[
        float, "leave layers in float whose output would have less [dB]; 0: none"
    ] = 0.0
    cache: Annotated[str, "file to take the ranges from, or to write them to; empty: none"] = ""
    format: Annotated[Format, "the quantized type of layers that no pattern names"] = Format.INT8
    int8: Annotated[tuple[str, ...], "layers in INT8, by pattern"] = ()
    fp8: Annotated[tuple[str, ...], "layers in FP8, by pattern"] = ()
    int4: Annotated[tuple[str, ...], "layers with weights in INT4, by pattern"] = ()
    none: Annotated[tuple[str, ...], "layers in float, by pattern"] = ()
    include: Annotated[
        tuple[str, ...], "quantize only layers whose name, or whose weight's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out layers whose name, or whose weight's, matches a pattern"
    ] = ()

    def __post_init__(self) -> None:
        self._calibrator()  # ValueError for a percentile out of range
        if not 0 <= self.min_sqnr < math.inf:
            raise ValueError(f"min-sqnr is 0 or more dB, not {self.min_sqnr}")

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        flow = Flow(found, ctx.analysis(model, Shapes), model.opset)
        layers = find_layers(found)
        selection = Selection(self.include, self.exclude)
        names = [name for layer in layers for name in _names(layer)]
        selection.check("qdq", names, "layer and no layer's weight")
        formats = self._formats()
        formats.check(names)
        refusals: dict[Layer, tuple[str, str]] = {}
        by_format: dict[Format, list[Layer]] = {each: [] for each in Format}
        for layer in layers:
            wanted = formats.of(_names(layer))
            if objection := _objection(layer, wanted, flow, selection, ctx):
                refusals[layer] = objection
            elif wanted is not None:
                by_format[wanted].append(layer)
        chosen, fp8, int4 = (by_format[each] for each in Format)
        products = self._products(found, flow, ctx)
        ranges: dict[str, Range] = {}
        weights: dict[tuple[str, int], PairedWeight] = {}
        measured: Measured | None = None
        _check_finite(model, found, [*chosen, *fp8, *int4])
        if chosen or products or fp8:
            _check_opset(model)
            request = Request(chosen, self._sparse(chosen, model, ctx), products)
            observed = dict.fromkeys(place(flow, request).considered)
            observed.update(dict.fromkeys(layer.data for layer in fp8))
            weights = paired_weights(model, found, chosen)
            ranges, measured = self._ranges(model, ctx, list(observed), list(weights.values()))
            for weight in weights.values():
                for layer in weight.readers:
                    if objection := self._range_objection(weight, layer, ranges, measured):
                        refusals[layer] = objection
                    elif not ctx.admit(layer.name):
                        refusals[layer] = "O24-218", "the limit of sites is reached"
        for layer in [*fp8, *int4]:
            found_range = ranges[layer.data] if layer in fp8 else None
            if found_range is not None and (objection := self._unusable(layer, found_range)):
                refusals[layer] = objection
            elif not ctx.admit(layer.name):
                refusals[layer] = "O24-218", "the limit of sites is reached"
        chosen, fp8, int4 = (
            [layer for layer in group if layer not in refusals] for group in (chosen, fp8, int4)
        )
        products = [site for site in products if self._fits(site, ranges, ctx)]
        request = Request(chosen, self._sparse(chosen, model, ctx), products)

        weights = {key: weight for key, weight in weights.items() if weight.keep(chosen)}
        if measured is not None and not measured.cached:
            ranges = self._settle(model, ctx, flow, request, weights, measured)
        placement = _placed(flow, request, ranges)
        planned = _fp8(model, found, fp8, ranges, measured)
        _give_way(placement, planned.edges)
        amax = _group_ranges(placement, request, ranges)
        if placement.edges:
            self._refine(model, ctx, flow, placement, amax, weights, measured)
        weight_only = Int4(int4, {each.weight: found.read(model, each.weight) for each in int4})
        if placement.edges or fp8 or int4:
            with model.surgeon() as graph:
                insert_pairs(graph, flow, placement, amax, weights, planned, weight_only)
            _move_claims(model, ctx, weight_only.made)
        facts = self._facts(placement, amax, ranges, weights, measured)
        for layer in layers:
            if layer in refusals:
                _record(ctx, layer, "refused", *refusals[layer])
            elif layer in facts:
                _record(ctx, layer, "quantized", "O24-200", _reason(facts[layer]), **facts[layer])
            elif layer in fp8:
                _record_fp8(ctx, layer, planned.amax[layer.data])
            else:
                _record_int4(ctx, layer)
        others = [refusal for refusal in refusals.values() if refusal[0] != "O24-214"]
        if others and not (chosen or fp8 or int4):
            code, count = Counter(code for code, _ in others).most_common(1)[0]
            message = f"none of {len(layers)} layers was quantized; {count} are refused by {code}"
            ctx.diagnostics.add(diagnostic("O24-222", message))
        for site in found.dynamic:
            self._record_product(site, site in products, flow, placement, amax, ctx)
        ctx.statistics.update(
            quantized=len(chosen) + len(products) + len(fp8) + len(int4),
            refused=len(refusals) + len(found.dynamic) - len(products),
            activation_pairs=len(placement.edges) + len(planned.edges),
            sparse_outputs=len(placement.results),
        )

    def _formats(self) -> Formats:
        patterns = {Format.INT8: self.int8, Format.FP8: self.fp8, Format.INT4: self.int4}
        return Formats(self.format, patterns, self.none)

    # --- ranges ----------------------------------------------------------------------------
    def _calibrator(self) -> Calibrator:
        return make(self.calibrator, self.percentile)

    def _ranges(
        self, model: Model, ctx: Context, names: list[str], weights: list[PairedWeight]
    ) -> tuple[dict[str, Range], Measured | None]:
        """The range of each activation, and what was measured on the way."""
        cache = RangeCache.load(self.cache) if self.cache and Path(self.cache).exists() else None
        if cache is not None:
            _say_target(ctx)
            self._check_cache(cache, model, ctx, names)
            if not (self.min_sqnr or self.correct_bias or self.weights is WeightRange.MSE):
                return cache.ranges, None
        data = _data(ctx)
        if cache is None:
            _say_target(ctx)
        if self.weights is WeightRange.MSE:
            for weight, power in moments(model, weights, data, ctx.progress, whole=False):
                weight.narrow(power)
        measured = measure(model, names, weights, data, self._calibrator, ctx.progress)
        if cache is not None:
            measured.ranges, measured.cached = cache.ranges, True
        else:
            measured.find_ranges(self.calibrator, weights)
        return measured.ranges, measured

    def _settle(
        self,
        model: Model,
        ctx: Context,
        flow: Flow,
        request: Request,
        weights: Mapping[tuple[str, int], PairedWeight],
        measured: Measured,
    ) -> dict[str, Range]:
        """The ranges to take in the end, kept in the cache: those of each activation, or, for auto,
        those of one method for all where that brings the model's own outputs nearer. A layer's mean
        error cannot know that a pooling behind it looks at nothing but its largest values."""
        data = _data(ctx)
        policies = measured.policies() if self.calibrator is Method.AUTO else {}
        placement = _placed(flow, request, measured.ranges)
        if len(policies) > 1 and placement.edges:
            trial = model.variant(model.skeleton())
            amax = _group_ranges(placement, request, measured.ranges)
            with trial.surgeon() as graph:
                scales = insert_pairs(graph, flow, placement, amax, weights)
            candidates = {}
            for method, ranges in policies.items():
                by_value = _group_ranges(placement, request, ranges)
                candidates[method] = {
                    name: symmetric_scale(by_value[value], dtype)
                    for name, (value, dtype) in scales.items()
                }
            best = best_candidate(model, trial, data, candidates)
            ctx.statistics["ranges_by"] = best.value
            measured.ranges = policies[best]
        if self.cache:
            RangeCache(
                measured.ranges, model_digest(model), data.digest(), self._range_options()
            ).save(self.cache)
        return measured.ranges

    def _range_options(self) -> dict[str, Any]:
        """The options that decide the ranges."""
        options: dict[str, Any] = {"calibrator": self.calibrator.value}
        if self.calibrator in (Method.AUTO, Method.PERCENTILE):
            options["percentile"] = self.percentile
        return options

    def _check_cache(self, cache: RangeCache, model: Model, ctx: Context, names: list[str]) -> None:
        digest = None if ctx.calibration is None else ctx.calibration.digest()
        cache.check(
            self.cache, model=model_digest(model), data=digest, options=self._range_options()
        )
        if cache.model:
            cache.require(self.cache, names)
        for name in names:  # TensorRT computes in float what its cache has no scale of
            cache.ranges.setdefault(name, Range(0.0, "none"))

    def _range_objection(
        self,
        weight: PairedWeight,
        layer: Layer,
        ranges: Mapping[str, Range],
        measured: Measured | None,
    ) -> tuple[str, str] | None:
        found = ranges[layer.data]
        if found.method == "none":
            return "O24-219", f"{self.cache} has no range of {layer.data!r}"
        if objection := range_objection(found):
            return objection
        if not self.min_sqnr or measured is None:
            return None
        sqnr = measured.sqnr_db(weight, layer, found.amax)
        if sqnr is None or sqnr >= self.min_sqnr:
            return None
        return "O24-224", f"its output would have {sqnr:.1f} dB, min-sqnr={self.min_sqnr:g}"

    # --- products of two activations -------------------------------------------------------
    def _products(self, found: WeightUses, flow: Flow, ctx: Context) -> list[NodeSite]:
        if not self.attention or not ctx.target.int8:
            return []
        return [site for site in found.dynamic if flow.product_objection(site) is None]

    @staticmethod
    def _fits(site: NodeSite, ranges: Mapping[str, Range], ctx: Context) -> bool:
        usable = all(range_objection(ranges[name]) is None for name in site.proto.input)
        return usable and ctx.admit(site.name)

    def _record_product(
        self,
        site: NodeSite,
        quantized: bool,
        flow: Flow,
        placement: Placement,
        amax: Mapping[str, float],
        ctx: Context,
    ) -> None:
        if not quantized:
            code, reason = "O24-213", "both operands are computed at run time"
            if self.attention and (objection := flow.product_objection(site)):
                code, reason = objection
            ctx.refuse_node(code, site, reason)
            return
        seats = [placement.seat(name) for name in site.proto.input]
        ctx.record(
            "quantized",
            "O24-225",
            node=site.name,
            op=site.proto.op_type,
            scope=site.scope,
            activations=seats,
            amax=[amax[seat] for seat in seats],
        )

    # --- weights ---------------------------------------------------------------------------
    def _refine(
        self,
        model: Model,
        ctx: Context,
        flow: Flow,
        placement: Placement,
        amax: Mapping[str, float],
        weights: Mapping[tuple[str, int], PairedWeight],
        measured: Measured | None,
    ) -> None:
        """Round weights otherwise than to the nearest, and correct biases."""
        paired = list(weights.values())
        if self.rounding is Rounding.ADAPTIVE:
            for weight, second in moments(model, paired, _data(ctx), ctx.progress, whole=True):
                weight.adapt(second)
        if not self.correct_bias or measured is None:
            return
        for weight in paired:
            for layer in weight.readers:
                bias = bias_of(flow, layer)
                error = measured.mean_error(weight, layer, amax[placement.seat(layer.data)])
                if bias is not None and error is not None:
                    bias.shift(model, flow.found, -error)

    @staticmethod
    def _unusable(layer: Layer, found: Range) -> tuple[str, str] | None:
        """(code, reason) why an activation gets no FP8 scale."""
        if found.method == "none":
            return "O24-219", f"the cache has no range of {layer.data!r}"
        return range_objection(found)

    @staticmethod
    def _sparse(layers: Sequence[Layer], model: Model, ctx: Context) -> list[Layer]:
        if not ctx.target.output_qdq_for_sparse:
            return []
        claimed = set(model.claims.keys())
        return [layer for layer in layers if layer.weight in claimed]

    # --- what is said ----------------------------------------------------------------------
    @staticmethod
    def _facts(
        placement: Placement,
        amax: Mapping[str, float],
        ranges: Mapping[str, Range],
        weights: Mapping[tuple[str, int], PairedWeight],
        measured: Measured | None,
    ) -> dict[Layer, dict[str, Any]]:
        found: dict[Layer, dict[str, Any]] = {}
        for (_, axis), weight in weights.items():
            for layer in weight.readers:
                value = placement.read_by(layer)
                facts: dict[str, Any] = {
                    "K": layer.use.K,
                    "N": layer.use.N,
                    "activation": value,
                    "amax": amax[value],
                    "calibrator": ranges[layer.data].method,
                    "axis": axis,
                    "rules": placement.rules[value],
                }
                if measured is not None:
                    sqnr = measured.sqnr_db(weight, layer, amax[value])
                    if sqnr is not None and math.isfinite(sqnr):
                        facts["sqnr_db"] = round(sqnr, 2)
                if layer in placement.results:
                    facts["output"] = placement.results[layer]
                found[layer] = facts
        return found


def _placed(flow: Flow, request: Request, ranges: Mapping[str, Range]) -> Placement:
    def range_of(value: str) -> float | None:
        return None if range_objection(ranges[value]) else ranges[value].amax

    return place(flow, request, range_of)


def _group_ranges(
    placement: Placement, request: Request, ranges: Mapping[str, Range]
) -> dict[str, float]:
    """Activation with a pair → its range: the widest of those that the shared scale serves."""
    sources = placement.sources(request.reads())
    return {
        value: max(ranges[name].amax for member in group for name in sources[member])
        for value, group in placement.groups().items()
    }


def _names(layer: Layer) -> list[str]:
    return [layer.name, layer.weight.name, str(layer.weight)]


def _objection(
    layer: Layer, wanted: Format | None, flow: Flow, selection: Selection, ctx: Context
) -> tuple[str, str] | None:
    """(code, reason) why a layer is not quantized, whatever its ranges."""
    if reason := selection.objection(_names(layer)):
        return "O24-218", reason
    if wanted is None:
        return "O24-218", "none= leaves it out"
    if wanted is Format.INT8:
        if not ctx.target.int8:
            return "O24-221", f"{ctx.target.name} lists no INT8 kernels"
        return flow.objection(layer)
    has = ctx.target.fp8 if wanted is Format.FP8 else ctx.target.int8_initializers
    if not has:
        return "O24-235", f"{ctx.target.name} lists no {wanted.name}"
    if flow.opset < MIN_OPSETS[wanted]:
        least = MIN_OPSETS[wanted]
        return (
            "O24-235",
            f"{wanted.name} is there from opset {least} on, the model has {flow.opset}",
        )
    return flow.objection(layer) if wanted is Format.FP8 else weight_only_objection(flow, layer)


def _fp8(
    model: Model,
    found: WeightUses,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    measured: Measured | None,
) -> Fp8:
    """Every activation's range is its largest magnitude, where that was seen."""
    edges: dict[str, set[Edge]] = {}
    amax: dict[str, float] = {}
    dtypes: dict[str, np.dtype] = {}
    for layer in layers:
        edges.setdefault(layer.data, set()).add(layer.data_edge)
        peak = 0.0 if measured is None else measured.calibrators[layer.data].peak
        amax[layer.data] = max(ranges[layer.data].amax, peak)
        dtypes[layer.data] = layer.dtype
    return Fp8(edges, amax, dtypes, paired_weights(model, found, layers))


def _give_way(placement: Placement, edges: Mapping[str, set[Edge]]) -> None:
    """Leave reads to another format. A result that nothing else reads then needs no pair."""
    for value, taken in edges.items():
        if value not in placement.edges:
            continue
        placement.edges[value] -= taken
        if not placement.edges[value]:
            del placement.edges[value]
            for layer in [each for each, name in placement.results.items() if name == value]:
                del placement.results[layer]


def _move_claims(model: Model, ctx: Context, made: Mapping[ValueKey, Sequence[str]]) -> None:
    """The record of 2:4 follows the values to INT4; the float keeps it where a product reads it."""
    claimed = set(model.claims.keys())
    moving = [key for key in made if key in claimed]
    if not moving:
        return
    model.claims.update([ValueKey(key.scope, name) for key in moving for name in made[key]])
    found = ctx.analysis(model, WeightUses)
    for key in moving:
        if key not in found.uses or not found.products(key):
            model.claims.discard(key)


def _record_fp8(ctx: Context, layer: Layer, amax: float) -> None:
    reason = f"activation {layer.data!r} up to {amax:.4g}"
    facts = {"K": layer.use.K, "N": layer.use.N, "activation": layer.data, "amax": amax}
    _record(ctx, layer, "quantized", "O24-233", reason, **facts)


def _record_int4(ctx: Context, layer: Layer) -> None:
    facts = {"K": layer.use.K, "N": layer.use.N, "block": BLOCK}
    reason = f"weight by blocks of {BLOCK} along K = {layer.use.K}"
    _record(ctx, layer, "quantized", "O24-234", reason, **facts)


def _reason(facts: dict[str, Any]) -> str:
    text = f"activation {facts['activation']!r} up to {facts['amax']:.4g}"
    if "sqnr_db" in facts:
        text += f", {facts['sqnr_db']:.1f} dB"
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


def _say_target(ctx: Context) -> None:
    if not ctx.target.confirmed("int8"):
        message = f"nothing public confirms INT8 kernels on {ctx.target.name}"
        ctx.diagnostics.add(diagnostic("O24-400", message))


def _data(ctx: Context) -> Calibration:
    """The samples; says what is doubtful about them. Raises: InputError O24-035."""
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
