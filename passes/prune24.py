"""The pass prune24."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onnx24.analysis.coupling import Coupling
from onnx24.analysis.eligibility import Verdict, judge
from onnx24.analysis.invariants import stale_claims
from onnx24.analysis.weight_choice import WeightChoice
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.effort import Effort
from onnx24.layerwise.oneshot import solve_weights
from onnx24.layerwise.prune import Solved
from onnx24.passmgr.base import Context, Numeric, Pass
from onnx24.rewrite.kept_dense import DenseKeeper
from onnx24.rewrite.magnitude import Magnitude
from onnx24.rewrite.permutation import permute_channels
from onnx24.rewrite.pruned import Outcome, by_magnitude_note, prune_weight, require_finite
from onnx24.rewrite.split_weights import split_bytes, split_weights
from onnx24.runtime.channels import channel_norms

LEAST_GAIN = 0.01
"""Channels are reordered where pruning's relative error falls by that share."""


@dataclass(frozen=True, kw_only=True)
class Prune24(WeightChoice, Effort, Pass):
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
    widens outputs that vary less than the dense ones (by 1.5 at most), and makes up for what the
    other branch of a residual Add lost. `quality` is the work: `fast` is 8 steps of admm and a
    sweep over the groups, which errs about 1 % more than the 20 steps of `default`, `max` is 60
    steps and twice the rows, `magnitude` none of it. Without data,
    or with random data, magnitude decides alone: of each four the two largest stay, ties go to the
    lower index. That costs accuracy, often much (O24-125). `permute` first puts channels into an
    order in which less is lost, where the graph allows it (permute24 does the same by itself);
    without data it is on.

    A tenth of the samples is held back: each layer's error is measured on it, and where a layer,
    or the whole model, would err more than by magnitude (relative L2 error of the outputs),
    magnitude's weights are taken (O24-132). Values are never judged on the samples that they were
    solved on; the held-back ones only set the damping and one widening factor for each output.
    With a single sample magnitude decides unless a method is named (O24-135). A layer with fewer
    rows than inputs is named (O24-131); 500 samples are a start, `augment=shift2` makes more of
    images (`augment=shift2@28x28` of flat ones), 16 rows for each input are enough. `budget=0.05`
    leaves layers dense (O24-134), those that cost most for each weight, until the outputs' relative
    error on the held-back samples is at most 5 %; `min-agreement=99` until 99 % of them keep
    their class (below 200 samples the expected share, by how clearly the dense model decides).

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
    after: ClassVar = ("permute24",)
    numeric: ClassVar[Numeric] = "close"
    heavy: ClassVar = True
    codes: ClassVar = tuple(
        f"O24-{n}"
        for n in (
            *("008", "035", "037", "057", 100, 102, 103),
            *(*range(110, 130), *range(131, 138), 140),
        )
    )

    def __post_init__(self) -> None:
        Effort.__post_init__(self)
        WeightChoice.__post_init__(self)

    def run(self, model: Model, ctx: Context) -> None:
        verdicts = judge(model, ctx.analyses, ctx.target)
        self.check_patterns("prune24", verdicts)
        permuted = self._permute(model, ctx, self.chosen(verdicts))
        origins = self._copy(model, ctx)
        found = ctx.analysis(model, WeightUses)
        verdicts = self.choose(judge(model, ctx.analyses, ctx.target), found, origins)
        _drop_stale_claims(model, ctx, found)

        magnitude = Magnitude(model, found)
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
                verdicts[key] = verdict.ruled("O24-120", "the limit of sites is reached")
        solved = self._solve(model, ctx, found, magnitude, left)

        keeper = DenseKeeper(model, found, ctx.work_dir, ctx.resources.memory_bytes)
        for key, verdict in ctx.progress(verdicts.items(), "prune24", total=len(verdicts)):
            if not verdict.eligible:
                ctx.record_weight(verdict, "refused", verdict.code, verdict.reason)
            elif key in kept:
                ctx.record_weight(verdict, "kept", "O24-102", "already 2:4", **kept[key])
            else:
                with keeper.watching(verdict, solved.moved_bias(key)):
                    outcome = prune_weight(model, found, verdict, magnitude, solved)
                _say(ctx, verdict, outcome)
        magnitude.check_finite()
        for site in found.dynamic:  # products of two activations have no weight to prune
            ctx.refuse_node("O24-117", site, "both operands are computed at run time")

        pruned = [verdict for verdict in left if verdict.key not in solved.dense_again]
        claims = [*kept, *(verdict.key for verdict in pruned)]
        model.claims.update(claims)
        weights = sum(verdict.code != "O24-110" for verdict in verdicts.values())
        refused = weights - len(claims) + len(found.dynamic)
        ctx.statistics.update(pruned=len(pruned), already=len(kept), refused=refused)
        if permuted:
            ctx.statistics["permuted"] = permuted
        ctx.statistics.update(solved.statistics())
        ctx.resumed = solved.resumed
        notes = [*by_magnitude_note(pruned, solved), *solved.doubts(), *keeper.notes()]
        ctx.diagnostics.extend(notes)

    def _permute(self, model: Model, ctx: Context, chosen: Sequence[Verdict]) -> int:
        """Put the channels of the weights that will be pruned into a better order. Returns: how
        many groups of channels were permuted."""
        data = ctx.calibration
        if not self.permutes(sum(verdict.facts["elements"] for verdict in chosen), data):
            return 0
        found = ctx.analysis(model, WeightUses)
        require_finite(Magnitude(model, found), chosen)
        norms = None
        if data is not None and self.solves(data):
            uses = [use for verdict in chosen for use in verdict.products]
            norms = channel_norms(model, uses, data, ctx.progress)
        results = permute_channels(
            model,
            found,
            ctx.analysis(model, Coupling),
            [verdict.key for verdict in chosen],
            norms,
            min_gain=LEAST_GAIN,
            progress=lambda groups, total: ctx.progress(groups, "permute", total=total),
        )
        notes = [result.note() for result in results if result.done]
        ctx.diagnostics.extend(notes)
        return len(notes)

    def _copy(self, model: Model, ctx: Context) -> dict[ValueKey, ValueKey]:
        """Give readers that want different things copies, where the options ask for it. Returns:
        copy → original."""
        found = ctx.analysis(model, WeightUses)
        wanted = self.to_copy(judge(model, ctx.analyses, ctx.target))
        verdicts = [verdict for verdict in wanted if ctx.admit(f"{verdict.key} (copy)")]
        if not verdicts:
            return {}
        require_finite(Magnitude(model, found), verdicts)
        costs = {verdict.key: split_bytes(found, verdict) for verdict in verdicts}
        copies = split_weights(model, found, verdicts)
        for verdict in verdicts:
            names, cost = ", ".join(k.name for k in copies[verdict.key]), costs[verdict.key]
            reason = f"copied as {names}: {cost:,} bytes more"
            ctx.record_weight(verdict, "copied", "O24-103", reason, bytes_added=cost)
        return {copy: key for key, made in copies.items() for copy in made}

    def _solve(
        self,
        model: Model,
        ctx: Context,
        found: WeightUses,
        magnitude: Magnitude,
        left: Sequence[Verdict],
    ) -> Solved:
        """What the calibration data give for these weights; nothing where they don't decide."""
        if left and self.solves(ctx.calibration):
            require_finite(magnitude, left)
        solved = solve_weights(
            model,
            found,
            left,
            ctx.calibration,
            effort=self,
            resources=ctx.resources,
            work_dir=ctx.work_dir,
            progress=ctx.progress,
        )
        ctx.diagnostics.extend(solved.impossible)
        return solved


def _say(ctx: Context, verdict: Verdict, outcome: Outcome | None) -> None:
    if outcome is None:  # NaN or infinity; told for all weights together
        return
    if outcome.seconds is not None:
        ctx.layer_seconds[verdict.key.name] = outcome.seconds
    ctx.record_weight(verdict, outcome.action, outcome.code, outcome.reason, **outcome.facts)
    ctx.diagnostics.extend(outcome.warnings)


def _drop_stale_claims(model: Model, ctx: Context, found: WeightUses) -> None:
    stale = stale_claims(model, found)
    model.claims.discard(*stale)
    for key in stale:
        message = "was recorded as 2:4, and is no weight of the model"
        ctx.diagnostics.add(diagnostic("O24-128", message, scope=key.scope, tensor=key.name))
