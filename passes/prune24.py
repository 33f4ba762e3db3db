"""The pass prune24."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from onnx24.analysis.coupling import Coupling
from onnx24.analysis.eligibility import Eligibility, Verdict
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.progress import Saved
from onnx24.layerwise.prune import Solved, can_be_judged, solve_model
from onnx24.layerwise.results import LayerResult
from onnx24.layerwise.segments import Unsupported
from onnx24.layerwise.solver import Settings
from onnx24.passmgr.base import Context, Pass
from onnx24.rewrite.kept_dense import DenseKeeper
from onnx24.rewrite.magnitude import Magnitude
from onnx24.rewrite.permutation import permute_channels
from onnx24.rewrite.solved import put_solved
from onnx24.rewrite.split_weights import split_bytes, split_weights
from onnx24.runtime.augment import parse_augmentation
from onnx24.runtime.channels import channel_norms
from onnx24.sparsity.solve import Method as SolverMethod

LEAST_GAIN = 0.01
"""Channels are reordered where pruning's relative error falls by that share."""
PERMUTED_ELEMENTS = 1 << 26
"""With more weights than that, permute=auto is off: the search would take longer than the rest."""


class Method(str, enum.Enum):
    AUTO = "auto"
    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    RIA = "ria"
    OBS = "obs"
    ADMM = "admm"


class Quality(str, enum.Enum):
    MAGNITUDE = "magnitude"
    FAST = "fast"
    DEFAULT = "default"
    MAX = "max"


class Switch(str, enum.Enum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Tied(str, enum.Enum):
    REFUSE = "refuse"
    PRUNE = "prune"
    SPLIT = "split"


class Conflicting(str, enum.Enum):
    REFUSE = "refuse"
    SPLIT = "split"


class Small(str, enum.Enum):
    PRUNE = "prune"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class Prune24(Pass):
    """Zero two of every four weights along each reduction axis, and solve for the others.

    Every weight of a Conv, Gemm, MatMul or plain Einsum product is pruned where TensorRT could use
    it: its groups of four run along the axis that the product sums over (input channels, for each
    kernel position of a convolution; never the flattened kernel), wherever that axis lies in the
    stored tensor behind Transpose, Reshape, Cast and Q/DQ. INT8 and FP8 weights behind
    DequantizeLinear are pruned as they are stored.

    With calibration data, layers are solved one after the other in execution order. `method` says
    which two of each four stay: `magnitude`, `wanda`, `ria`, `obs` (SparseGPT) or `admm`; then the
    values of those that stay are solved for (`refit`). `admm`, the default, draws each layer to
    the dense model's outputs from the inputs that the compressed model gives it, moves its bias,
    and makes up for what the other branch of a residual Add lost. `quality` is the work: `fast` is
    wanda with the refit, `default` 30 steps of admm, `max` 90 and twice the rows, `magnitude` none
    of it. Without data, or with random data, magnitude decides alone: of each four the two largest
    stay, ties go to the lower index. That costs accuracy, often much (O24-125). `permute` first
    puts channels into an order in which less is lost, where the graph allows it (permute24 does
    the same by itself); without data it is on.

    A tenth of the samples is held back: each layer's error is measured on it, and where a layer,
    or the whole model, would agree less with the dense one than by magnitude, magnitude's weights
    are taken (O24-132). Nothing is judged on samples that were fitted, and with a single sample
    magnitude decides unless a method is named (O24-135). A layer with fewer rows
    than inputs is named (O24-131); 500 samples are a start, `augment=shift2` makes more of images
    (`augment=shift2@28x28` of flat ones), 16 rows for each input are enough. `budget=0.05` leaves
    layers dense (O24-134), those that cost most for each weight, until the outputs' relative error
    on the held-back samples is at most 5 %.

    It refuses, with a code and the numbers: no product reads the weight (O24-110), grouped and
    depthwise convolutions (O24-111, O24-112), K no multiple of 4 (O24-113), too few elements or
    channels, on request (O24-114), consumers that reduce along different axes (O24-115, unless
    conflicting=split), readers that are no products, such as the Gather of a tied embedding
    (O24-116, unless tied=split or tied=prune), dtypes without sparse kernels (O24-118), recurrent
    layers (O24-119), what include, exclude, skip-first and skip-last leave out (O24-120), chains
    that are not followed (O24-121), transposed convolutions (O24-122), quantization that mixes the
    groups (O24-124), graph inputs and outputs (O24-126), targets without sparse kernels (O24-123,
    O24-127), operators that are not judged (O24-129). NaN or infinity in a weight is an error
    (O24-008), raised before anything changes. A weight that is 2:4 already stays as it is
    (O24-102). Layers in bodies of If, Loop and Scan are pruned by magnitude.

    `split` gives each reduction axis, and the readers that need the dense values, a copy of the
    weight (O24-103): `<name>.24.<n>`, at the cost of its bytes. `tied=prune` prunes it for all
    readers.

    Names, shapes and dtypes stay; a convolution or Gemm without a bias gets one where it is moved.
    The pruned weights are recorded in the model, and every later pass is held to them. The same
    input, options and versions give the same bytes, whatever the threads and the executor.

    Example: `prune24{exclude=classifier*|head.* augment=shift2}`.

    *Source:* TensorRT 8.5.3 developer guide §6.8 (the pattern); 2104.08378 (magnitude 2:4);
    2306.11695 (wanda); 2402.14810 (ria); 2301.00774 (obs); 2406.07831 (admm).
    """

    name: ClassVar = "prune24"
    effects: ClassVar = Effects.WEIGHTS | Effects.STRUCTURE  # the record of 2:4 is metadata
    requires: ClassVar = (WeightUses, Eligibility, Coupling)
    after: ClassVar = ("permute24",)
    numeric: ClassVar = "close"
    heavy: ClassVar = True
    codes: ClassVar = (
        "O24-008",
        "O24-035",
        "O24-100",
        "O24-102",
        "O24-103",
        "O24-110",
        "O24-111",
        "O24-112",
        "O24-113",
        "O24-114",
        "O24-115",
        "O24-116",
        "O24-117",
        "O24-118",
        "O24-119",
        "O24-120",
        "O24-121",
        "O24-122",
        "O24-123",
        "O24-124",
        "O24-125",
        "O24-126",
        "O24-127",
        "O24-128",
        "O24-129",
        "O24-131",
        "O24-132",
        "O24-133",
        "O24-134",
        "O24-135",
        "O24-136",
        "O24-137",
        "O24-140",
    )

    method: Annotated[
        Method, "how the survivors are chosen; auto: by quality, magnitude without data"
    ] = Method.AUTO
    quality: Annotated[Quality, "how much work is put into each layer"] = Quality.DEFAULT
    refit: Annotated[bool, "solve for the survivors' values, given data"] = True
    asymmetric: Annotated[
        Switch, "solve for the dense model's outputs from the compressed model's inputs"
    ] = Switch.AUTO
    permute: Annotated[
        Switch, "reorder channels first; auto: without data, and with quality=max"
    ] = Switch.AUTO
    augment: Annotated[str, "more calibration images: off, shift[PIXELS][+flip][xFACTOR][@HxW]"] = (
        "off"
    )
    budget: Annotated[
        float, "largest relative error of the outputs; layers stay dense to keep it; 0: none"
    ] = 0.0
    include: Annotated[
        tuple[str, ...], "prune only weights whose name, or whose node's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out weights whose name, or whose node's, matches a pattern"
    ] = ()
    tied: Annotated[Tied, "weights that something else than a product reads, too"] = Tied.REFUSE
    conflicting: Annotated[Conflicting, "weights that products reduce along different axes"] = (
        Conflicting.REFUSE
    )
    min_elements: Annotated[int, "leave out weights with fewer elements"] = 0
    small: Annotated[Small, "weights below the channels from which the target is said to gain"] = (
        Small.PRUNE
    )
    skip_first: Annotated[int, "leave out so many eligible weights from the front"] = 0
    skip_last: Annotated[int, "leave out so many eligible weights from the end"] = 0

    def __post_init__(self) -> None:
        parse_augmentation(self.augment)  # ValueError for a text that is none
        if not self.budget >= 0:
            raise ValueError(f"budget is {self.budget}; it is a relative error of 0 or more")
        if min(self.skip_first, self.skip_last, self.min_elements) < 0:
            raise ValueError("skip-first, skip-last and min-elements are counts: 0 or more")

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        verdicts = ctx.analysis(model, Eligibility).judge(model, ctx.target)
        selection = Selection(self.include, self.exclude)
        names = [name for verdict in verdicts.values() for name in _names(verdict)]
        selection.check("prune24", names, "weight and no node that reads one")
        verdicts, permuted = self._permuted(model, ctx, verdicts, selection)
        found = ctx.analysis(model, WeightUses)
        magnitude = Magnitude(model, found)
        copied = self._to_copy(ctx, verdicts.values(), selection)
        selected = {key: self._select(verdict, selection) for key, verdict in verdicts.items()}
        if copied:
            for verdict in copied:
                magnitude.search_nonfinite(verdict)
            magnitude.check_finite()
            origins = _copy(model, ctx, found, copied)
            found = ctx.analysis(model, WeightUses)
            verdicts = ctx.analysis(model, Eligibility).judge(model, ctx.target)
            selected = {
                key: self._select(verdict, selection, origins.get(key))
                for key, verdict in verdicts.items()
            }
            magnitude = Magnitude(model, found)
        verdicts = _without_ends(selected, found, self.skip_first, self.skip_last)
        _drop_stale_claims(model, ctx, found)

        kept: dict[ValueKey, dict[str, Any]] = {}
        left: list[Verdict] = []
        for key, verdict in verdicts.items():
            if not verdict.eligible:
                continue
            if (facts := magnitude.facts_if_24(verdict)) is not None:
                kept[key] = facts
            elif ctx.admit(str(key)):
                left.append(verdict)
            else:
                magnitude.search_nonfinite(verdict)
                verdicts[key] = _with(
                    verdict, "O24-120", "the limit of sites is reached", eligible=False
                )
        solved = self._solve(model, ctx, found, magnitude, left)
        if left and not solved.layers and self._too_few(ctx):
            message = "there are too few samples to hold any back: magnitude decided"
            ctx.diagnostics.add(diagnostic("O24-135", message))
        keeper = DenseKeeper(model, found, ctx.work_dir, ctx.resources.memory_bytes)
        for key, verdict in ctx.progress(verdicts.items(), "prune24", total=len(verdicts)):
            if not verdict.eligible:
                _record(ctx, verdict, "refused", verdict.code, verdict.reason)
            elif key in kept:
                _record(ctx, verdict, "kept", "O24-102", "already 2:4", **kept[key])
            else:
                with keeper.watching(verdict, solved.moved_bias(key)):
                    _finish(model, ctx, found, verdict, magnitude, solved)
        magnitude.check_finite()
        if keeper.left_out:
            message = f"the dense values of {len(keeper.left_out)} weights were not kept"
            facts = {"weights": keeper.left_out}
            ctx.diagnostics.add(diagnostic("O24-137", message, facts=facts))
        pruned = [verdict for verdict in left if verdict.key not in solved.dense_again]
        claims = [*kept, *(verdict.key for verdict in pruned)]
        for site in found.dynamic:  # products of two activations have no weight to prune
            ctx.refuse_node("O24-117", site, "both operands are computed at run time")
        model.claims.update(claims)
        weights = sum(verdict.code != "O24-110" for verdict in verdicts.values())
        ctx.statistics.update(
            pruned=len(pruned),
            already=len(claims) - len(pruned),
            refused=weights - len(claims) + len(found.dynamic),
        )
        if permuted:
            ctx.statistics["permuted"] = permuted
        _conclude(ctx, pruned, solved)

    def _permuted(
        self,
        model: Model,
        ctx: Context,
        verdicts: dict[ValueKey, Verdict],
        selection: Selection,
    ) -> tuple[dict[ValueKey, Verdict], int]:
        """Put the channels of the weights that will be pruned into a better order. Returns: the
        verdicts of the model as it is then, and how many groups of channels were permuted."""
        chosen = [v for v in verdicts.values() if self._select(v, selection).eligible]
        if not self._permutes(ctx, chosen):
            return verdicts, 0
        found, coupling = ctx.analysis(model, WeightUses), ctx.analysis(model, Coupling)
        magnitude = Magnitude(model, found)
        for verdict in chosen:
            magnitude.search_nonfinite(verdict)
        magnitude.check_finite()
        norms = None
        if ctx.calibration is not None and self._solves(ctx):
            uses = [use for verdict in chosen for use in verdict.products]
            norms = channel_norms(model, uses, ctx.calibration, ctx.progress)
        results = permute_channels(
            model,
            found,
            coupling,
            [verdict.key for verdict in chosen],
            norms,
            min_gain=LEAST_GAIN,
            progress=lambda groups, total: ctx.progress(groups, "permute", total=total),
        )
        done = [result for result in results if result.done]
        for result in done:
            message = f"{result.group.size} channels of {', '.join(k.name for k in result.weights)}"
            facts = {"gain": result.gain, "permutation": result.digest}
            scope, name = result.weights[0]
            ctx.diagnostics.add(
                diagnostic("O24-140", message, scope=scope, tensor=name, facts=facts)
            )
        return ctx.analysis(model, Eligibility).judge(model, ctx.target), len(done)

    def _permutes(self, ctx: Context, chosen: list[Verdict]) -> bool:
        if self.permute is not Switch.AUTO:
            return self.permute is Switch.ON
        if self.quality is Quality.MAGNITUDE:
            return False
        if sum(verdict.facts["elements"] for verdict in chosen) > PERMUTED_ELEMENTS:
            return False
        return self.quality is Quality.MAX or not self._solves(ctx)

    def _solve(
        self,
        model: Model,
        ctx: Context,
        found: WeightUses,
        magnitude: Magnitude,
        verdicts: list[Verdict],
    ) -> Solved:
        """What the calibration data give for these weights; nothing where there are none."""
        nothing = Solved(results={}, layers={}, unsolved={})
        if not verdicts or not self._solves(ctx):
            return nothing
        assert ctx.calibration is not None
        for verdict in verdicts:
            magnitude.search_nonfinite(verdict)
        magnitude.check_finite()
        method, settings = self.method, _TIERS[self.quality]
        if method is not Method.AUTO:
            settings = replace(
                settings, method=SolverMethod(method.value), asymmetric=method is Method.ADMM
            )
        if not self.refit:
            settings = replace(settings, refit_steps=0)
        if self.asymmetric is not Switch.AUTO:
            settings = replace(settings, asymmetric=self.asymmetric is Switch.ON)
        keys = [verdict.key for verdict in verdicts]
        saved = Saved(ctx.work_dir, _identity(model, ctx, self, settings, keys))
        try:
            return solve_model(
                model,
                found,
                {verdict.key: _stride(verdict) for verdict in verdicts},
                ctx.calibration,
                settings=settings,
                resources=ctx.resources,
                augmentation=parse_augmentation(self.augment),
                budget=self.budget,
                progress=ctx.progress,
                saved=saved,
            )
        except Unsupported as why:
            ctx.diagnostics.add(diagnostic("O24-133", str(why)))
            if self.budget:  # what can't be measured can't be promised
                nothing.dense_again.update((key, 0.0) for key in keys)
                nothing.unsolved.update((key, str(why)) for key in keys)
            return nothing

    def _solves(self, ctx: Context) -> bool:
        """Whether activations decide. Raises: InputError O24-035 where they are asked for and no
        data are given."""
        asked = self.method not in (Method.AUTO, Method.MAGNITUDE) or self.budget > 0
        alone = self.quality is Quality.MAGNITUDE and self.method in (Method.AUTO, Method.MAGNITUDE)
        if alone and not self.budget:
            return False
        if ctx.calibration is None:
            if asked:
                text = "budget" if self.budget else f"method={self.method.value}"
                raise InputError.of("O24-035", f"prune24: {text} needs calibration data")
            return False
        # Fitting to noise costs three times what magnitude costs, and what can't be judged may.
        return asked or not (ctx.calibration.is_random or self._too_few(ctx))

    def _too_few(self, ctx: Context) -> bool:
        """Whether the samples are real, and too few to hold any back."""
        data = ctx.calibration
        if data is None or data.is_random or self.quality is Quality.MAGNITUDE:
            return False
        return not can_be_judged(data)

    def _to_copy(
        self, ctx: Context, verdicts: Iterable[Verdict], selection: Selection
    ) -> list[Verdict]:
        """Those of the weights that the options allow to copy, and that would then be pruned."""
        return [
            verdict
            for verdict in verdicts
            if (verdict.tied and self.tied is Tied.SPLIT)
            or (verdict.conflicting and self.conflicting is Conflicting.SPLIT)
            if self._select(replace(verdict, eligible=True), selection).eligible
            and ctx.admit(f"{verdict.key} (copy)")
        ]

    def _select(
        self, verdict: Verdict, selection: Selection, origin: ValueKey | None = None
    ) -> Verdict:
        """The verdict after this pass's options. origin: of which weight it is a copy, by whose
        name it is chosen as well."""

        def refused(code: str, reason: str) -> Verdict:
            return _with(verdict, code, reason, eligible=False)

        if verdict.tied and self.tied is Tied.PRUNE:
            verdict = _with(verdict, "O24-101", verdict.reason, eligible=True)
        if not verdict.eligible:
            return verdict
        names = _names(verdict) + ([origin.name, str(origin)] if origin else [])
        if reason := selection.objection(names):
            return refused("O24-120", reason)
        elements = verdict.facts["elements"]
        if elements < self.min_elements:
            return refused("O24-114", f"{elements:,} elements, min-elements={self.min_elements}")
        if self.small is Small.SKIP and "small" in verdict.facts:
            return refused("O24-114", str(verdict.facts["small"]))
        return verdict


_TIERS = {
    Quality.MAGNITUDE: Settings(method=SolverMethod.MAGNITUDE, asymmetric=False, refit_steps=0),
    Quality.FAST: Settings(method=SolverMethod.WANDA),
    Quality.DEFAULT: Settings(),
    Quality.MAX: Settings(steps=90, refit_steps=20, rows_per_k=32),
}


def _stride(verdict: Verdict) -> int:
    assert verdict.k_stride is not None
    return verdict.k_stride


def _without_ends(
    verdicts: dict[ValueKey, Verdict], found: WeightUses, first: int, last: int
) -> dict[ValueKey, Verdict]:
    """The verdicts without the eligible weights at both ends, in order of their first reader."""
    if not first and not last:
        return verdicts
    order = {id(site.proto): i for i, site in enumerate(found.index.nodes)}
    eligible = sorted(
        (v for v in verdicts.values() if v.eligible),
        key=lambda v: min(order[id(use.consumer.proto)] for use in v.uses if use.consumer),
    )
    ends = {v.key: f"skip-first={first}" for v in eligible[:first]}
    ends |= {v.key: f"skip-last={last}" for v in eligible[max(len(eligible) - last, 0) :]}
    return {
        key: _with(verdict, "O24-120", ends[key], eligible=False) if key in ends else verdict
        for key, verdict in verdicts.items()
    }


def _finish(
    model: Model,
    ctx: Context,
    found: WeightUses,
    verdict: Verdict,
    magnitude: Magnitude,
    solved: Solved,
) -> None:
    """Write one weight's new values, and its layer's bias, and say what happened."""
    key = verdict.key
    if key in solved.dense_again:
        gain, reason = solved.dense_again[key], "dense within the budget"
        if key in solved.unsolved:
            reason += f": {solved.unsolved[key]}"
        _record(ctx, verdict, "refused", "O24-134", reason, gain=gain)
        return
    result = solved.results.get(key)
    if result is None:
        facts = magnitude.prune(verdict)
        if not facts:  # NaN or infinity; said once all weights were searched
            return
        reason = f"energy kept {facts['energy_kept']:.1%}"
        if key in solved.unsolved:
            facts["unsolved"] = solved.unsolved[key]
            reason += f"; by magnitude: {solved.unsolved[key]}"
        _record(ctx, verdict, "pruned", "O24-100", reason, **facts)
        return
    ctx.layer_seconds[key.name] = round(result.seconds, 3)
    facts = put_solved(model, found, verdict, result, solved.layers[key].bias)
    _record(ctx, verdict, "pruned", "O24-100", _errors(result), **facts)
    where: dict[str, Any] = {"tensor": key.name, "node": verdict.node, "facts": facts}
    if "rows_not_finite" in facts:
        message = f"{facts['rows_not_finite']:,} rows of its input hold NaN or infinity"
        ctx.diagnostics.add(diagnostic("O24-136", message, **where))
    if result.magnitude:
        message = "solved, the layer erred more on held-back samples than by magnitude"
        ctx.diagnostics.add(diagnostic("O24-132", message, **where))
    if facts["rows"] < facts["columns"]:
        message = f"{facts['rows']:,} calibration rows for K = {facts['columns']:,}"
        ctx.diagnostics.add(diagnostic("O24-131", message, **where))


def _errors(result: LayerResult) -> str:
    error = result.facts.get("output_error")
    if error is None:
        return "no sample could be held back to judge it by"
    return f"output error {error:.1%}, {result.facts['output_error_magnitude']:.1%} by magnitude"


def _conclude(ctx: Context, pruned: list[Verdict], solved: Solved) -> None:
    """What is said of the pass as a whole."""
    by_magnitude = [v for v in pruned if v.key not in solved.results]
    if by_magnitude:
        n = len(by_magnitude)
        ctx.diagnostics.add(
            diagnostic(
                "O24-125",
                f"{n} weight{' was' if n == 1 else 's were'} pruned by magnitude, "
                "which looks at no activations",
                facts={"weights": n},
            )
        )
    if not solved.layers:
        return
    ctx.statistics.update(solved=len(solved.results), samples=solved.fitted, held=solved.held)
    if solved.resumed:
        ctx.statistics["resumed"] = solved.resumed
    ours, other = solved.agreement, solved.agreement_magnitude
    if ours is None or other is None:
        message = "there are too few samples to hold any back: nothing was judged"
        ctx.diagnostics.add(diagnostic("O24-135", message))
        return
    ctx.statistics.update(output_error=ours.rel_l2, output_error_magnitude=other.rel_l2)
    if ours.top1 is not None and other.top1 is not None:
        ctx.statistics.update(agreement=ours.top1, agreement_magnitude=other.top1)
    if solved.predicted is not None:
        ctx.statistics["predicted_output_error"] = solved.predicted
    if solved.fallen_back:
        message = f"{len(solved.fallen_back)} layers went back to magnitude: as solved, the model "
        message += "agreed less with the dense one on held-back samples"
        ctx.diagnostics.add(diagnostic("O24-132", message))


def _identity(
    model: Model, ctx: Context, prune: Prune24, settings: Settings, keys: list[ValueKey]
) -> str:
    """Everything that solved layers depend on; `keys`, which the target and a limit of sites
    decide, too: a layer is fitted to those before it."""
    import numpy
    import onnxruntime

    import onnx24

    assert ctx.calibration is not None
    versions = (onnx24.__version__, numpy.__version__, onnxruntime.__version__)
    content = Fingerprint.of(model).digest()
    return repr((versions, content, prune, settings, ctx.calibration.digest(), keys))


def _copy(
    model: Model, ctx: Context, found: WeightUses, verdicts: list[Verdict]
) -> dict[ValueKey, ValueKey]:
    """Give the readers of each weight copies. Returns: copy → original."""
    costs = {verdict.key: split_bytes(found, verdict) for verdict in verdicts}
    copies = split_weights(model, found, verdicts)
    for verdict in verdicts:
        key, cost = verdict.key, costs[verdict.key]
        reason = f"copied as {', '.join(copy.name for copy in copies[key])}: {cost:,} bytes more"
        _record(ctx, verdict, "copied", "O24-103", reason, bytes_added=cost)
    return {copy: key for key, made in copies.items() for copy in made}


def _names(verdict: Verdict) -> list[str]:
    nodes = [use.node for use in verdict.uses if use.node]
    return [verdict.key.name, str(verdict.key), *nodes]


def _with(verdict: Verdict, code: str, reason: str, *, eligible: bool) -> Verdict:
    return replace(verdict, code=code, reason=reason, eligible=eligible, tied=False)


def _drop_stale_claims(model: Model, ctx: Context, found: WeightUses) -> None:
    """Forget records of weights that the input does not have (any more)."""
    for key in model.claims:
        if key not in found.tensors:
            model.claims.discard(key)
            message = "was recorded as 2:4, and is no weight of the model"
            ctx.diagnostics.add(diagnostic("O24-128", message, scope=key.scope, tensor=key.name))


def _record(
    ctx: Context, verdict: Verdict, action: str, code: str, reason: str, **facts: Any
) -> None:
    ctx.record(
        action,
        code,
        weight=verdict.key.name,
        scope=verdict.key.scope,
        node=verdict.node,
        op=verdict.op,
        reason=reason,
        **{**verdict.facts, **facts},
    )
