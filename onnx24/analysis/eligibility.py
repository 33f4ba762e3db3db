"""Which weights could be 2:4, on which grounds, and why the others could not.

Every weight gets one verdict with a code: O24-101 eligible; O24-110 to O24-126 what the graph
forbids; O24-114, 118, 123 and 127 what the target does not offer. Eligible never means that
TensorRT will choose a sparse kernel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from onnx import TensorProto

from onnx24.analysis.cache import Analysis, AnalysisCache
from onnx24.analysis.weight_uses import WeightUse, WeightUses, names_of
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.weights import numpy_dtype
from onnx24.sparsity.masks import Violations, supports, violations_by_stride

__all__ = ["Eligibility", "SparseTarget", "Verdict", "judge", "stored_violations"]


class SparseTarget(Protocol):
    """The facts of a target that decide; `targets.Target` has them."""

    @property
    def name(self) -> str: ...
    @property
    def sparse_dtypes(self) -> Collection[str]: ...
    @property
    def sparse_dtypes_unconfirmed(self) -> Collection[str]: ...
    @property
    def sparse_k_multiple(self) -> int: ...
    @property
    def sparse_min_channels(self) -> int: ...
    @property
    def matmul_eligible(self) -> bool: ...
    @property
    def conv1x1(self) -> bool: ...
    def confirmed(self, fact: str) -> bool: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdict:
    """One weight's. `tied`: it is refused (O24-116) only because something else reads it too.
    `conflicting`: only because its products reduce along different axes (O24-115); there may be
    other readers as well. rewrite.split_weights makes both eligible, at the cost of a copy.

    uses: all final consumers. k_axis and k_stride: as in WeightUse, on which all its eligible uses
    agree. facts: numbers for reports: shape, dtype, k_axis, K, N, …
    """

    key: ValueKey
    code: str
    reason: str
    eligible: bool
    tied: bool = False
    conflicting: bool = False
    uses: tuple[WeightUse, ...] = ()
    k_axis: int | None = None
    k_stride: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def products(self) -> tuple[WeightUse, ...]:
        """The uses that could be sparse, or all products where none can."""
        every = tuple(use for use in self.uses if use.kind == "product")
        return tuple(use for use in every if use.eligible) or every

    @property
    def node(self) -> str:
        """The first product's node, for reports; the first consumer's where there is none."""
        uses = self.products or self.uses
        return uses[0].node if uses else ""

    @property
    def op(self) -> str:
        uses = self.products or self.uses
        return uses[0].op if uses else ""

    @property
    def names(self) -> list[str]:
        """By which a user may mean it: its own, with and without scope, and its readers'."""
        return [self.key.name, str(self.key), *(use.node for use in self.uses if use.node)]

    def ruled(self, code: str, reason: str, *, eligible: bool = False) -> Verdict:
        """The same weight, on other grounds than the graph's."""
        return replace(self, code=code, reason=reason, eligible=eligible, tied=False)


@dataclass
class Eligibility(Analysis):
    """`verdicts`: every weight's, whatever the target. A weight is a tensor of numbers that are
    not sizes or indices and not merely a scale or zero point; biases are weights (O24-110)."""

    depends: ClassVar[Effects] = WeightUses.depends

    verdicts: dict[ValueKey, Verdict]
    uses: WeightUses

    def rests_on(self, replaced: Set[ValueKey]) -> bool:
        return self.uses.rests_on(replaced)

    @classmethod
    def compute(cls, model: Model, cache: AnalysisCache) -> Eligibility:
        found = cache.get(model, WeightUses)
        every = [(key, found.tensors[key], uses) for key, uses in found.uses.items()]
        every += [(key, tensor, uses) for key, (tensor, uses) in found.unheld.items()]
        initializers = found.index.initializers
        return cls(
            {
                key: _verdict(key, tensor, tuple(uses))
                for key, tensor, uses in every
                if _is_weight(tensor, uses, plumbing=key not in initializers)
            },
            found,
        )

    def judge(self, model: Model, target: SparseTarget) -> dict[ValueKey, Verdict]:
        """The verdicts on that target."""
        return {key: on_target(verdict, target) for key, verdict in self.verdicts.items()}


def judge(model: Model, cache: AnalysisCache, target: SparseTarget) -> dict[ValueKey, Verdict]:
    """Every weight's verdict on the target."""
    return cache.get(model, Eligibility).judge(model, target)


def stored_violations(array: np.ndarray, verdict: Verdict) -> Violations:
    """How far a weight's stored values are from 2:4 in the groups that its consumers see.

    Raises: ValueError for a weight whose groups have no place in the stored tensor.
    """
    if verdict.k_stride is None:
        raise ValueError(f"{verdict.key}: no reduction axis in the stored tensor ({verdict.code})")
    return violations_by_stride(array, verdict.k_stride)


def on_target(verdict: Verdict, target: SparseTarget) -> Verdict:
    """What is left of a verdict on one target. Refusals by the graph stay as they are."""
    if not (verdict.eligible or verdict.tied or verdict.conflicting):
        return verdict

    def refused(code: str, reason: str) -> Verdict:
        return replace(
            verdict, code=code, reason=reason, eligible=False, tied=False, conflicting=False
        )

    offered = {*target.sparse_dtypes, *target.sparse_dtypes_unconfirmed}
    if not offered:
        return refused("O24-127", f"{target.name} has no sparse tensor cores")
    dtype = str(verdict.facts["dtype"])
    computed_in = _COMPUTED_IN.get(dtype, frozenset())
    if not computed_in & offered:
        return refused("O24-118", f"{target.name} has no sparse kernels for {dtype}")
    if not target.matmul_eligible and not target.conv1x1:
        products = [use for use in verdict.products if use.op not in ("Conv",)]
        if products:
            ops = ", ".join(sorted({use.op for use in products}))
            return refused("O24-123", f"{ops} gets no sparse kernels on {target.name}")
    sizes = [use.K for use in verdict.products]
    if any(k % target.sparse_k_multiple for k in sizes):
        return refused(
            "O24-113",
            f"K = {sizes[0]} is not a multiple of {target.sparse_k_multiple}, which "
            f"{target.name} needs",
        )
    facts = dict(verdict.facts)
    smallest = min(min(use.K, use.N) for use in verdict.products)
    if smallest < target.sparse_min_channels:
        facts["small"] = f"{smallest} < {target.sparse_min_channels} channels"
    doubts = sorted({note for use in verdict.products for note in use.notes})
    if not computed_in & set(target.sparse_dtypes):
        doubts.append(f"sparse kernels for {dtype}")
    if not target.confirmed("matmul_eligible") and any(u.op != "Conv" for u in verdict.products):
        doubts.append("sparse kernels for MatMul")
    if doubts:
        facts["unconfirmed"] = doubts
    return replace(verdict, facts=facts)


# What a weight of each dtype can be computed in, by target's names: the compiler casts and
# quantizes floats on the way.
_FLOATS = frozenset({"fp16", "int8"})
_COMPUTED_IN = {
    "float64": _FLOATS,
    "float32": _FLOATS | {"tf32"},
    "float16": _FLOATS,
    "bfloat16": _FLOATS | {"bf16"},
    "int8": frozenset({"int8"}),
    "float8_e4m3fn": frozenset({"fp8"}),
    "float8_e5m2": frozenset({"fp8"}),
}


def _is_weight(tensor: TensorProto, uses: Sequence[WeightUse], *, plumbing: bool) -> bool:
    """plumbing: a Constant node, which unless something multiplies it is a scalar, a shape or a
    mask."""
    dtype = numpy_dtype(tensor.data_type)
    if any(use.kind == "product" for use in uses):
        return True
    if dtype.kind in "OSUbc" or (dtype.kind in "iu" and dtype.itemsize > 1):
        return False
    if uses and all(use.kind == "parameter" for use in uses):
        return False
    return not plumbing or any(use.kind in ("recurrent", "foreign", "untraced") for use in uses)


def _verdict(key: ValueKey, tensor: TensorProto, uses: tuple[WeightUse, ...]) -> Verdict:
    shape, dtype = tuple(tensor.dims), numpy_dtype(tensor.data_type)
    facts: dict[str, Any] = {
        "shape": list(shape),
        "dtype": str(dtype),
        "elements": math.prod(shape),
    }

    def verdict(code: str, reason: str, *, eligible: bool = False, **more: Any) -> Verdict:
        return Verdict(
            key=key, code=code, reason=reason, eligible=eligible, uses=uses, facts=facts, **more
        )

    if not uses:
        return verdict("O24-110", "nothing reads it")
    if seen := [use for use in uses if use.kind == "visible"]:
        return verdict("O24-126", seen[0].reason)
    products = [use for use in uses if use.kind == "product"]
    if not products:
        for kind in ("recurrent", "untraced", "foreign", "other", "parameter"):
            if first := next((use for use in uses if use.kind == kind), None):
                return verdict(first.code or "O24-110", _where(first))
    good = [use for use in products if use.eligible]
    _describe(facts, (good or products)[0])
    if not good:
        axis = products[0].k_axis if len({use.k_axis for use in products}) == 1 else None
        return verdict(str(products[0].code), _where(products[0]), k_axis=axis)
    if not supports(dtype):
        axis = good[0].k_axis if len({use.k_axis for use in good}) == 1 else None
        return verdict("O24-118", f"{dtype} values cannot be pruned", k_axis=axis)
    if len({use.k_stride for use in good}) > 1:
        axes = ", ".join(f"{_axis(use, shape)} for {use.node} ({use.op})" for use in good)
        facts["axes"] = {use.node: use.k_axis for use in good}
        return verdict("O24-115", f"reduced along {axes}", conflicting=True)
    place: dict[str, Any] = {"k_axis": good[0].k_axis, "k_stride": good[0].k_stride}
    others = [use for use in uses if not use.eligible]
    if others:
        facts["readers"] = [use.node or use.op for use in others]
        reason = f"also read by {names_of(others)}"
        return verdict("O24-116", reason, tied=True, **place)
    return verdict("O24-101", _reduced(good, shape), eligible=True, **place)


def _describe(facts: dict[str, Any], use: WeightUse) -> None:
    facts["k_axis"] = use.k_axis
    facts["K"], facts["N"] = use.K, use.N
    for name, value in (
        ("groups", use.groups),
        ("spatial", use.spatial),
        ("batch", use.batch),
    ):
        if value != 1:
            facts[name] = value
    if use.chain:
        facts["chain"] = [step.site.proto.op_type for step in use.chain]


def _where(use: WeightUse) -> str:
    return f"{use.reason} [{use.node} ({use.op})]" if use.node else use.reason


def _axis(use: WeightUse, shape: tuple[int, ...]) -> str:
    if use.k_axis is not None:
        return f"axis {use.k_axis}"
    return f"every {use.k_stride} elements" if use.k_stride else f"no axis of {list(shape)}"


def _reduced(uses: Sequence[WeightUse], shape: tuple[int, ...]) -> str:
    return f"K = {uses[0].K} along {_axis(uses[0], shape)}, N = {uses[0].N}, {names_of(uses)}"
