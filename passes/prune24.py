"""The pass prune24."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from onnx24.analysis.eligibility import Eligibility, Verdict
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass
from onnx24.rewrite.magnitude import Magnitude


class Method(str, enum.Enum):
    MAGNITUDE = "magnitude"


class Tied(str, enum.Enum):
    REFUSE = "refuse"
    PRUNE = "prune"


class Small(str, enum.Enum):
    PRUNE = "prune"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class Prune24(Pass):
    """Zero two of every four weights along each reduction axis.

    Every weight of a Conv, Gemm, MatMul or plain Einsum product is pruned where TensorRT could use
    it: its groups of four run along the axis that the product sums over (input channels, for each
    kernel position of a convolution; never the flattened kernel), wherever that axis lies in the
    stored tensor behind Transpose, Reshape, Cast and Q/DQ. Of each four the two largest magnitudes
    stay, ties go to the lower index. INT8 and FP8 weights behind DequantizeLinear are pruned as
    they are stored.

    It refuses, with a code and the numbers: no product reads the weight (O24-110), grouped and
    depthwise convolutions (O24-111, O24-112), K no multiple of 4 (O24-113), too few elements or
    channels, on request (O24-114), consumers that reduce along different axes (O24-115), readers
    that are no products, such as the Gather of a tied embedding (O24-116, unless tied=prune),
    dtypes without sparse kernels (O24-118), recurrent layers (O24-119), what include and exclude
    leave out (O24-120), chains that are not followed (O24-121), transposed convolutions (O24-122),
    quantization that mixes the groups (O24-124), graph inputs and outputs (O24-126), targets
    without sparse kernels (O24-123, O24-127). NaN or infinity in a weight is an error (O24-008),
    raised before anything changes. A weight that is 2:4 already stays as it is (O24-102).

    Names, shapes and dtypes stay. The pruned weights are recorded in the model, and every later
    pass is held to them. Magnitude alone costs accuracy, often much (O24-125): check it.

    Example: `prune24{exclude=classifier*|head.* min-elements=4096}`.

    *Source:* TensorRT 8.5.3 developer guide §6.8 (the pattern); 2104.08378 (magnitude 2:4).
    """

    name: ClassVar = "prune24"
    effects: ClassVar = Effects.WEIGHTS | Effects.STRUCTURE  # the record of 2:4 is metadata
    requires: ClassVar = (WeightUses, Eligibility)
    numeric: ClassVar = "close"
    codes: ClassVar = (
        "O24-008",
        "O24-100",
        "O24-102",
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
    )

    method: Annotated[Method, "how the survivors are chosen"] = Method.MAGNITUDE
    include: Annotated[
        tuple[str, ...], "prune only weights whose name, or whose node's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out weights whose name, or whose node's, matches a pattern"
    ] = ()
    tied: Annotated[Tied, "weights that something else than a product reads, too"] = Tied.REFUSE
    min_elements: Annotated[int, "leave out weights with fewer elements"] = 0
    small: Annotated[Small, "weights below the channels from which the target is said to gain"] = (
        Small.PRUNE
    )

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        verdicts = ctx.analysis(model, Eligibility).judge(model, ctx.target)
        selection = Selection(self.include, self.exclude)
        names = [name for verdict in verdicts.values() for name in _names(verdict)]
        selection.check("prune24", names, "weight and no node that reads one")
        verdicts = {key: self._select(verdict, selection) for key, verdict in verdicts.items()}
        _drop_stale_claims(model, ctx, found)

        magnitude = Magnitude(model, found)
        claims: list[ValueKey] = []
        pruned = 0
        for key, verdict in ctx.progress(verdicts.items(), "prune24", total=len(verdicts)):
            if not verdict.eligible:
                _record(ctx, verdict, "refused", verdict.code, verdict.reason)
                continue
            facts = magnitude.facts_if_24(verdict)
            if facts is not None:
                claims.append(key)
                _record(ctx, verdict, "kept", "O24-102", "already 2:4", **facts)
                continue
            if not ctx.admit(str(key)):
                magnitude.search_nonfinite(verdict)
                _record(ctx, verdict, "refused", "O24-120", "the limit of sites is reached")
                continue
            facts = magnitude.prune(verdict)
            if not facts:  # NaN or infinity; said once all weights were searched
                continue
            claims.append(key)
            pruned += 1
            reason = f"energy kept {facts['energy_kept']:.1%}"
            _record(ctx, verdict, "pruned", "O24-100", reason, **facts)
        magnitude.check_finite()
        for site in found.dynamic:  # products of two activations have no weight to prune
            ctx.refuse_node("O24-117", site, "both operands are computed at run time")
        model.claims.update(claims)
        weights = sum(verdict.code != "O24-110" for verdict in verdicts.values())
        ctx.statistics.update(
            pruned=pruned,
            already=len(claims) - pruned,
            refused=weights - len(claims) + len(found.dynamic),
        )
        if pruned:
            ctx.diagnostics.add(
                diagnostic(
                    "O24-125",
                    f"{pruned} weight{' was' if pruned == 1 else 's were'} pruned by magnitude, "
                    "which looks at no activations",
                    facts={"weights": pruned},
                )
            )

    def _select(self, verdict: Verdict, selection: Selection) -> Verdict:
        """The verdict after this pass's options."""

        def refused(code: str, reason: str) -> Verdict:
            return _with(verdict, code, reason, eligible=False)

        if verdict.tied and self.tied is Tied.PRUNE:
            verdict = _with(verdict, "O24-101", verdict.reason, eligible=True)
        if not verdict.eligible:
            return verdict
        if reason := selection.objection(_names(verdict)):
            return refused("O24-120", reason)
        elements = verdict.facts["elements"]
        if elements < self.min_elements:
            return refused("O24-114", f"{elements:,} elements, min-elements={self.min_elements}")
        if self.small is Small.SKIP and "small" in verdict.facts:
            return refused("O24-114", str(verdict.facts["small"]))
        return verdict


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
