"""Every weight of a model: what it is, what it could be, and why not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Verdict, judge
from onnx24.analysis.invariants import seen_violations
from onnx24.analysis.weight_uses import WeightUses
from onnx24.codes import CODES
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.report.jsontext import plain
from onnx24.report.model import NO_PRODUCT
from onnx24.report.table import shape_text, share_text, table

if TYPE_CHECKING:
    from onnx24.targets import Target


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """One weight. axis: the reduction axis in the stored tensor, None where no single axis is it;
    k: its size [elements]. is_24: None where the question has no meaning. ops, nodes: the final
    consumers. constant: a Constant node rather than an initializer. code, reason: the verdict's.
    """

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    constant: bool
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    axis: int | None
    k: int | None
    is_24: bool | None
    claimed: bool
    eligible: bool
    code: str
    reason: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        return f"{self.scope}::{self.name}" if self.scope else self.name

    @property
    def is_bystander(self) -> bool:
        """No matrix product's weight."""
        return self.code == NO_PRODUCT and not self.claimed

    def to_json(self) -> dict[str, Any]:
        out = dict(vars(self))
        out["bytes"] = out.pop("nbytes")
        return {**out, "elements": self.elements}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All rows in document order, and what they add up to."""

    file: str
    target: str
    opset: int
    rows: tuple[WeightRow, ...]

    @property
    def eligible_elements(self) -> int:
        return _elements(row for row in self.rows if row.eligible)

    @property
    def sparse_elements(self) -> int:
        """Elements of eligible weights that are 2:4."""
        return _elements(row for row in self.rows if row.eligible and row.is_24)

    def to_json(self) -> dict[str, Any]:
        eligible = [row for row in self.rows if row.eligible]
        return plain(
            {
                "file": self.file,
                "target": self.target,
                "opset": self.opset,
                "coverage": {
                    "eligible_weights": len(eligible),
                    "eligible_elements": self.eligible_elements,
                    "sparse_weights": sum(bool(row.is_24) for row in eligible),
                    "sparse_elements": self.sparse_elements,
                    "all_elements": _elements(self.rows),
                },
                "weights": [row.to_json() for row in self.rows],
            }
        )


def _elements(rows: Iterable[WeightRow]) -> int:
    return sum(row.elements for row in rows)


def inspect(model: Model, target: Target, file: str) -> Inspection:
    """Look at every weight of every scope, those of Constant nodes included. Sizes, indices,
    scales and zero points are no weights."""
    cache = AnalysisCache()
    uses = cache.get(model, WeightUses)
    claimed = set(model.claims.keys())
    rows = [_row(model, uses, verdict, claimed) for verdict in judge(model, cache, target).values()]
    return Inspection(file=file, target=target.name, opset=model.opset, rows=tuple(rows))


def _row(model: Model, uses: WeightUses, verdict: Verdict, claimed: set[ValueKey]) -> WeightRow:
    key, products = verdict.key, verdict.products
    values = uses.read(model, key)
    return WeightRow(
        scope=key.scope,
        name=key.name,
        dtype=values.dtype.name,
        shape=values.shape,
        nbytes=values.nbytes,
        constant=key in uses.constants,
        ops=tuple(dict.fromkeys(use.op for use in verdict.uses)),
        nodes=tuple(use.node for use in verdict.uses if use.consumer),
        axis=verdict.k_axis,
        k=products[0].K if products else None,
        is_24=_is_24(model, uses, verdict),
        claimed=key in claimed,
        eligible=verdict.eligible,
        code=verdict.code,
        reason=verdict.reason,
    )


def _is_24(model: Model, uses: WeightUses, verdict: Verdict) -> bool | None:
    """For every product that reads the values; None where none groups them by four."""
    read = [use for use in verdict.products if use.k_axis_consumer is not None and use.K % 4 == 0]
    if not read:
        return None
    return not any(seen_violations(model, uses, verdict.key, use).violating for use in read)


def render_inspection(found: Inspection, *, show_all: bool = False) -> str:
    """A table of the weights, then how many there are of each verdict, then the coverage."""
    shown = [row for row in found.rows if show_all or not row.is_bystander]
    rows = [
        (
            row.label,
            shape_text(row.shape),
            row.dtype,
            "–" if row.axis is None else str(row.axis),
            "–" if row.k is None else str(row.k),
            _pattern(row),
            "yes" if row.eligible else row.code,
            "" if row.eligible else row.reason or CODES[row.code].title,
        )
        for row in shown
    ]
    header = ("weight", "shape", "dtype", "axis", "K", "2:4", "eligible", "why not")
    parts = [f"{found.file} for {found.target}\n" + table(header, rows, right=(3, 4), prose=(7,))]
    if len(shown) < len(found.rows):
        others = len(found.rows) - len(shown)
        parts.append(f"  {others} others: no matrix product's weight ({NO_PRODUCT}); --all")
    eligible = [row for row in found.rows if row.eligible]
    sparse = sum(bool(row.is_24) for row in eligible)
    parts.append(
        f"  {sparse} of {len(eligible)} eligible weights are 2:4, {found.sparse_elements:,} of "
        f"{found.eligible_elements:,} elements "
        f"({share_text(found.sparse_elements, found.eligible_elements)})"
    )
    return "\n".join(parts)


def _pattern(row: WeightRow) -> str:
    """A record of 2:4 that the values do not bear out is the first thing to see."""
    if row.claimed:
        return "yes, recorded" if row.is_24 else "RECORDED, IS NOT"
    return {None: "–", True: "yes", False: "no"}[row.is_24]
