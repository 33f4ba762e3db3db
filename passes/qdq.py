"""The pass qdq."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.format_choice import (
    Choice,
    Kernels,
    check_finite,
    check_opset,
    choose_formats,
)
from onnx24.analysis.formats import Format, Formats
from onnx24.analysis.invariants import is_seen_24
from onnx24.analysis.placement import MIN_OPSET_16, Flow, Layer, range_objection
from onnx24.analysis.qdq_rules import Quantized, quantized_products
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass
from onnx24.quant.calibrators import Method
from onnx24.quant.rounding import Correction, Rounding, WeightRange
from onnx24.rewrite.protection import Limits, Protection, protect
from onnx24.rewrite.qdq_completion import Missing, complete
from onnx24.rewrite.qdq_facts import facts_of, likeness_facts, product_facts, reason_of
from onnx24.rewrite.quantizer import Quantizer, Written
from onnx24.rewrite.shared import move_claims_of_products
from onnx24.runtime.blas import one_thread
from onnx24.runtime.compare import require_values
from onnx24.runtime.data import Calibration
from onnx24.runtime.difference import NAME_OUTPUTS
from onnx24.runtime.range_search import RangeSearch


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
    it, measured on a sample of 64 to 1,024 rows with the quantized weight, or one of the four for
    all where that brings the model's outputs nearer on 16 to 64 samples. `auto` stops looking where
    twice as many samples hardly move a range (`all-samples` does not). With `cache=FILE` they are
    written to a file, and taken from it the next time: `FILE.json` is refused for another model,
    other samples or other options (O24-223), any other name is TensorRT's calibration cache, which
    holds no digest.

    *Weights.* `weights=mse` chooses each channel's range by the error that the inputs' second
    moments weigh, `rounding=adaptive` lets the rounding errors of a row cancel (zeros stay zeros;
    the stored floats become the values that INT8 can say), `correct-bias` takes the mean error out
    of a layer's bias. By default biases are corrected, and weights rounded adaptively where that
    takes about a second; with `cache=` neither, so that it does not matter who has the samples.

    *Protection.* `budget=0.05` leaves layers in float (O24-237), those first that alone move the
    model's outputs most, until each output's relative error on calibration samples is at most 5 %.
    `min-agreement` does so until that share of samples keeps its class; it is on by default for
    classifiers (one output, [N, C]) with 200 samples and more that are not random. `min-output`
    does so, where no budget is given, until every output of another model has so many decibels, and
    leaves a quarter of the layers in float at most; it is on by default with samples that are not
    random. Where an output
    has less than 15 dB in the end, or less than 99 % of the samples keep their class, O24-247 names
    the layers that do most to it. The statistics name the error and the agreement before and
    after.

    *Placement* is a table of rules, onnx24/analysis/placement.py: one pair for each activation,
    nothing between a product and its bias, BatchNormalization and activation, a pair on the skip
    branch of a convolution's residual Add, one scale around a Concat, pairs moved up over MaxPool,
    Reshape and Transpose. On targets that want it, the result of a layer whose weight is 2:4,
    recorded or not, is quantized as well: TensorRT chooses a sparse INT8 kernel only with INT8 out.
    `attention` quantizes products of two activations, too.

    *Models that are quantized already* keep their pairs. With samples they get what lint misses in
    them (O24-264): the result of a 2:4 INT8 product is quantized for all its readers (O24-639),
    through the pair that it has or a new one, and a pair between a convolution and its residual Add
    moves to the skip branch (O24-638).

    *Formats.* `format` is that of all layers, `int8`, `fp8`, `int4` and `none` are patterns of
    layers that take another one or stay in float. FP8 (E4M3, O24-233) quantizes weight and
    activation as INT8 does, with the largest magnitude as range, since clipping gains nothing
    there; of the rules of the placement it follows the inputs', the skip branch, Concat and the
    moves over Reshape and Transpose, and the table says why not the others. INT4 (O24-234)
    quantizes the weights of MatMul and Gemm alone, by blocks of 128 along K, and needs no data;
    weights are then an eighth in size, and it is for matrix-vector products, too. FP8 needs sm89
    and opset 19, INT4 TensorRT 10 and opset 21; layers that cannot have their format stay in float
    (O24-235, O24-236).

    It refuses, with a code: matrix-vector products (O24-210), K or N below 16 (O24-211), fewer
    than 16 channels but for the forms that kernels are known for (O24-212), products without a
    constant weight (O24-213), what stands behind Q/DQ already (O24-214), activations that are
    always 0 (O24-215), other types than float32, and float16 and bfloat16 from opset 19 on
    (O24-216), what include and exclude leave out (O24-218), layers in bodies of If, Loop, Scan and
    functions (O24-219), activations with NaN or infinity (O24-220), targets without INT8
    (O24-221), layers whose output would have less than `min-sqnr` dB, or whose numbers are too
    small for a scale (O24-224). NaN or infinity in a weight is an error (O24-008), as are missing
    calibration data (O24-035) and an opset below 13 (O24-009).

    INT8 costs little accuracy on most models; random calibration data cost all of it (O24-034).
    The records give each layer's signal-to-noise ratio, `sqnr_db`.

    Example: `qdq{calibrator=max exclude=head.*}`, `qdq{fp8=blocks.* int4=lm_head none=stem}`.

    *Source:* TensorRT documentation, explicit quantization; NVIDIA Model-Optimizer pull request
    1664 (INT8 out); Migacz, 8-bit inference with TensorRT (entropy); 2210.17323 (error feedback).
    """

    name: ClassVar = "qdq"
    effects: ClassVar = Effects.STRUCTURE | Effects.WEIGHTS
    enters_functions: ClassVar = False
    after: ClassVar = (
        "canonicalize", "upgrade-opset", "equalize", "smooth-quant", "prune24", "matmul-to-conv1x1",
    )  # fmt: skip
    numeric: ClassVar = "close"
    codes: ClassVar = (
        "O24-008", "O24-009", "O24-034", "O24-035", "O24-037", "O24-200", "O24-210", "O24-211",
        "O24-212", "O24-213", "O24-214", "O24-215", "O24-216", "O24-218", "O24-219",
        "O24-220", "O24-221", "O24-222", "O24-223", "O24-224", "O24-225", "O24-233",
        "O24-234", "O24-235", "O24-236", "O24-237", "O24-246", "O24-247", "O24-264", "O24-400",
    )  # fmt: skip

    calibrator: Annotated[Method, "how an activation's range is found"] = Method.AUTO
    percentile: Annotated[
        float, "share of magnitudes in range, in %, for the percentile and auto"
    ] = 99.99
    weights: Annotated[WeightRange, "how a weight channel's range is found"] = WeightRange.MAX
    rounding: Annotated[
        Rounding, "which way weights are rounded; auto: adaptive where that is cheap"
    ] = Rounding.AUTO
    correct_bias: Annotated[
        Correction, "take the mean error of a layer's output out of its bias; auto: without a cache"
    ] = Correction.AUTO
    attention: Annotated[bool, "quantize products of two activations, too"] = False
    min_sqnr: Annotated[
        float, "leave layers in float whose output would have less [dB]; 0: none"
    ] = 0.0
    budget: Annotated[
        float,
        "leave layers in float until the outputs' relative error is this at most; 0: any",
    ] = 0.0
    outputs: Annotated[
        tuple[str, ...], "judge by these outputs, or inner values of the main graph; empty: all"
    ] = ()
    min_agreement: Annotated[
        float, "leave layers of a classifier in float until so many % of samples keep their class"
    ] = 99.5
    min_output: Annotated[
        float, "leave up to a quarter of the layers in float until each output has so much [dB]"
    ] = 20.0
    all_samples: Annotated[
        bool, "let auto look at every sample, not at as many as ranges still move with"
    ] = False
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
        self._search(None)  # ValueError for a percentile out of range
        if not 0 <= self.budget < math.inf:
            raise ValueError(f"budget is a relative error of 0 or more, not {self.budget}")
        if not 0 <= self.min_agreement <= 100:
            raise ValueError(f"min-agreement is 0 to 100 %, not {self.min_agreement}")
        for name, value in (("min-sqnr", self.min_sqnr), ("min-output", self.min_output)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is 0 or more dB, not {value}")

    def run(self, model: Model, ctx: Context) -> None:
        with one_thread():  # observers have threads of their own
            self._run(model, ctx)

    def _run(self, model: Model, ctx: Context) -> None:
        missing = Missing()
        if ctx.calibration is not None:
            outputs = ctx.target.output_qdq_for_sparse
            missing = complete(model, ctx.analyses, ctx.admit, sparse_outputs=outputs)
        found = ctx.analysis(model, WeightUses)
        flow = Flow(found, ctx.analysis(model, Shapes), model.opset)
        choice = self._choice(flow, model, ctx)
        choice.results, choice.skips = missing.layers(flow)
        check_finite(model, found, choice)
        require_values(model, self.outputs)
        quantizer = Quantizer(
            model, flow, choice, lambda: _data(ctx), self._search(ctx), ctx.progress, self.outputs
        )
        if choice.any_int8 or choice.of(Format.FP8):
            check_opset(model)
            _say_target(ctx, choice)
            quantizer.measure(self._rounding)
        for layer in list(choice.formats):
            objection = quantizer.objection(layer) or self._too_noisy(quantizer, layer)
            if objection is None and not ctx.admit(layer.name):
                objection = "O24-218", "the limit of sites is reached"
            if objection is not None:
                choice.refuse(layer, objection)
        wanted, choice.products = choice.products, []
        for site in wanted:
            fits = all(range_objection(quantizer.ranges[n]) is None for n in site.proto.input)
            if fits and ctx.admit(site.name):
                choice.products.append(site)
        quantizer.settle()
        protection = self._protect(quantizer, ctx)
        written = quantizer.write(self._rounding, self._correction)
        moved = [(k, ValueKey(k.scope, n)) for k, names in written.int4.items() for n in names]
        move_claims_of_products(model, moved, lambda: ctx.analysis(model, WeightUses))
        for node, what in missing.shared:
            ctx.record("completed", "O24-264", node=node, reason=what)
        self._report(quantizer, written, ctx)
        ctx.statistics.update(likeness_facts(protection))

    def _choice(self, flow: Flow, model: Model, ctx: Context) -> Choice:
        patterns = {Format.INT8: self.int8, Format.FP8: self.fp8, Format.INT4: self.int4}
        has = {
            Format.INT8: ctx.target.int8,
            Format.FP8: ctx.target.fp8,
            Format.INT4: ctx.target.int8_initializers,
        }
        choice = choose_formats(
            flow,
            Formats(self.format, patterns, self.none),
            Selection(self.include, self.exclude),
            Kernels(
                ctx.target.name,
                frozenset(f for f, there in has.items() if there),
                ctx.target.deconv_scale_axis,
            ),
            attention=self.attention,
        )
        if ctx.target.output_qdq_for_sparse:
            weights = {layer.weight for layer in choice.of(Format.INT8)}
            choice.sparse = frozenset(k for k in weights if is_seen_24(model, flow.found, k))
        return choice

    @property
    def _rounding(self) -> Rounding:
        """With a cache, runs with and without samples are to give the same model."""
        return Rounding.NEAREST if self.cache and self.rounding is Rounding.AUTO else self.rounding

    @property
    def _correction(self) -> Correction:
        auto = self.correct_bias is Correction.AUTO
        return Correction.FALSE if auto and self.cache else self.correct_bias

    def _search(self, ctx: Context | None) -> RangeSearch:
        def digest() -> str | None:
            return None if ctx is None or ctx.calibration is None else ctx.calibration.digest()

        return RangeSearch(
            self.calibrator,
            self.percentile,
            self.weights,
            self.cache,
            wants_samples=bool(self.min_sqnr)
            or bool(self.budget)
            or self._correction is not Correction.FALSE
            or self.weights is WeightRange.MSE,
            all_samples=self.all_samples,
            digest=digest,
        )

    def _too_noisy(self, quantizer: Quantizer, layer: Layer) -> tuple[str, str] | None:
        sqnr = quantizer.sqnr_db(layer) if self.min_sqnr else None
        if sqnr is None or sqnr >= self.min_sqnr:
            return None
        return "O24-224", f"its output would have {sqnr:.1f} dB, min-sqnr={self.min_sqnr:g}"

    def _protect(self, quantizer: Quantizer, ctx: Context) -> Protection:
        """Leave layers in float until the outputs are as near as asked for."""
        known = ctx.calibration is not None and not ctx.calibration.is_random
        if not (known or self.budget):
            return Protection()
        limits = Limits(self.budget)
        if known:
            decibels = 0.0 if self.budget else self.min_output
            limits = Limits(self.budget, self.min_agreement / 100, decibels)
        found = protect(quantizer, limits, ctx.progress)
        if self.budget and found.before is not None and found.before.gap is not None:
            ctx.diagnostics.add(replace(found.before.gap, hint=NAME_OUTPUTS))
        for layer, error in found.layers.items():
            why = f"alone it would move the outputs by {100 * error:.2f} %"
            quantizer.choice.refuse(layer, ("O24-237", why))
        if known and (hurts := found.hurts):
            ctx.diagnostics.add(_hurt(quantizer, found, hurts))
        return found

    # --- what is said ----------------------------------------------------------------------
    def _report(self, quantizer: Quantizer, written: Written, ctx: Context) -> None:
        choice, found = quantizer.choice, quantizer.flow.found
        codes = {Format.INT8: "O24-200", Format.FP8: "O24-233", Format.INT4: "O24-234"}
        for layer in choice.layers:
            if (wanted := choice.formats.get(layer)) is None:
                _record(ctx, layer, "refused", *choice.refusals[layer])
                continue
            facts = facts_of(layer, wanted, quantizer, written)
            _record(ctx, layer, "quantized", codes[wanted], reason_of(layer, facts), **facts)
        placed = written.int8.placement
        for layer in choice.results:
            if layer in placed.results:
                said = f"its result {placed.results[layer]!r} is quantized now"
                _record(ctx, layer, "completed", "O24-264", said)
        for layer in choice.skips:
            _record(ctx, layer, "completed", "O24-264", "its Add's other operand is quantized now")
        completed = any(record.code == "O24-264" for record in ctx.records)
        if not (choice.formats or choice.products or completed):
            ctx.diagnostics.add(_nothing(quantizer.model, choice, ctx))
        for site in found.dynamic:
            if site in choice.products:
                ctx.record("quantized", "O24-225", node=site.name, op=site.proto.op_type,
                           scope=site.scope, **product_facts(site, written))  # fmt: skip
                continue
            objection = quantizer.flow.product_objection(site) if self.attention else None
            why = objection or ("O24-213", "both operands are computed at run time")
            ctx.refuse_node(why[0], site, why[1])
        quantized = len(choice.formats) + len(choice.products)
        ctx.statistics.update(
            quantized=quantized,
            refused=len(choice.layers) + len(found.dynamic) - quantized,
            activation_pairs=written.activation_pairs,
            sparse_outputs=len(written.int8.placement.results),
        )
        if quantizer.seen:
            ctx.statistics["samples"] = quantizer.seen
        if quantizer.ranges_by:
            ctx.statistics["ranges_by"] = quantizer.ranges_by


def _say_target(ctx: Context, choice: Choice) -> None:
    deconvolutions = [layer for layer in choice.formats if layer.op == "ConvTranspose"]
    if deconvolutions and not ctx.target.confirmed("deconv_scale_axis"):
        which = "output" if ctx.target.deconv_scale_axis else "input"
        message = (
            f"nothing public confirms along which axis {ctx.target.name} takes the scales of INT8 "
            f"ConvTranspose; they are written by {which} channel, "
            f"{len(deconvolutions)} times"
        )
        ctx.diagnostics.add(diagnostic("O24-400", message))
    if not ctx.target.confirmed("int8"):
        message = f"nothing public confirms INT8 kernels on {ctx.target.name}"
        ctx.diagnostics.add(diagnostic("O24-400", message))


def _nothing(model: Model, choice: Choice, ctx: Context) -> Diagnostic:
    """Why no layer was quantized, and what helps."""
    already, products = quantized_products(Quantized.of(model, ctx.analyses))
    refusals = Counter(objection for objection in choice.refusals.values())
    codes = Counter(code for code, _ in choice.refusals.values() if code != "O24-214")
    if already:
        rest = f", {codes.total()} others stay in float" if codes else ""
        return diagnostic("O24-246", f"{already} of {products} products are quantized{rest}")
    if not choice.layers:
        return diagnostic(
            "O24-222",
            "the model has no Conv, ConvTranspose, Gemm or MatMul with a constant weight",
            hint="`onnx24 inspect --all` lists what it has",
        )
    if not codes:
        return diagnostic(
            "O24-222",
            f"each of {len(choice.layers)} layers has Q/DQ on one operand, and is quantized on "
            "none of them",
            hint="`onnx24 lint` names what is missing; quantize the float model instead",
        )
    code, count = codes.most_common(1)[0]
    _, why = next(each for each, _ in refusals.most_common() if each[0] == code)
    half = code == "O24-216" and model.opset < MIN_OPSET_16
    return diagnostic(
        "O24-222",
        f"none of {len(choice.layers)} layers was quantized; {count} are refused by {code}: {why}",
        hint=f"put upgrade-opset{{to={MIN_OPSET_16}}} before qdq" if half else _REMEDIES.get(code),
    )


_OTHER_PRESETS = "the presets fp16 and sparse-fp16 do without INT8"
_REMEDIES = {
    "O24-210": f"where the batch is fixed at 1, export with a dynamic one; {_OTHER_PRESETS}",
    "O24-211": f"layers so small gain nothing from INT8; {_OTHER_PRESETS}",
    "O24-212": f"layers so small gain nothing from INT8; {_OTHER_PRESETS}",
    "O24-215": "give samples on which the layers' inputs are not always 0",
    "O24-218": "widen include=, or take patterns out of exclude= and none=",
    "O24-219": f"export with the loop unrolled, or the branch taken; {_OTHER_PRESETS}",
    "O24-220": "see which samples make NaN or infinity in the float model, and leave them out",
    "O24-221": f"choose another target, see `onnx24 targets`; {_OTHER_PRESETS}",
}
"""What helps where most layers are refused by a code."""


def _hurt(quantizer: Quantizer, found: Protection, hurts: str) -> Diagnostic:
    """The warning of outputs that INT8 hurts, with the layers that do most to them."""
    choice = quantizer.choice
    left = [layer for layer in choice.layers if layer in choice.formats]
    if found.alone:
        errors = {layer: found.alone[layer] for layer in left if layer in found.alone}
        worst = sorted(errors, key=lambda layer: -errors[layer])
        named = [f"{layer.name!r} ({100 * errors[layer]:.1f} %)" for layer in worst[:4]]
    else:
        noise = {layer: quantizer.sqnr_db(layer) for layer in left}
        known = {layer: sqnr for layer, sqnr in noise.items() if sqnr is not None}
        worst = sorted(known, key=lambda layer: known[layer])
        named = [f"{layer.name!r} ({known[layer]:.1f} dB)" for layer in worst[:4]]
    kept = f", with {len(found.layers)} layers in float" if found.layers else ""
    return diagnostic(
        "O24-247",
        f"{hurts}{kept}; the layers that do most: {', '.join(named)}",
        facts={"layers": [layer.name for layer in worst[:4]]},
    )


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
