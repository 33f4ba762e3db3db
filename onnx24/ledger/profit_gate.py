"""Profit-gated sparsity: weights whose 2:4 form made nothing faster get their dense values back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ledger.dense_again import Edit, NotReturned, Origin, apply, dense_again
from onnx24.lines import Block, block
from onnx24.report.table import number_text, table
from onnx24.runtime.compare import Comparison

Action = Literal["dense again", "kept", "not returned"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is done with one recorded weight. gain: the best of its layers, None where none was
    measured. `biases`: other constants of its layers that go back with it."""

    weight: str
    layers: tuple[str, ...]
    gain: float | None
    action: Action
    reason: str
    biases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "layers": list(self.layers), "biases": list(self.biases)}


@dataclass(frozen=True)
class Measured:
    """One row of a ledger: the layer's node, its weight, and how many times faster it is."""

    node: str
    weight: str
    gain: float | None


def rows_of(text: str, file: str) -> list[Measured]:
    """The rows of a ledger that was written as JSON, or the document of `onnx24 ledger --json`.

    Raises: InputError O24-048 for another document, or where no layer has both times.
    """
    try:
        rows = [
            Measured(str(row["name"]), str((row["model"] or {}).get("weight", "")), _gain(row))
            for row in json.loads(text)["rows"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        raise InputError.of(
            "O24-048", "this is no ledger", file=file, hint="`onnx24 ledger MODEL … -o F.json`"
        ) from err
    if not any(row.gain is not None for row in rows):
        raise InputError.of(
            "O24-048",
            "no layer of this ledger has its time in the sparse and in the dense engine",
            file=file,
            hint="give `onnx24 ledger` both --profile and --dense-profile",
        )
    return rows


def _gain(row: Mapping[str, Any]) -> float | None:
    """Raises: ValueError for what is no positive number."""
    gain = row["gain"]
    if gain is None:
        return None
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0 < gain < math.inf:
        raise ValueError(f"{gain!r} is no gain")
    return float(gain)


def gate(
    model: Model, origins: Sequence[Origin], rows: Iterable[Measured], *, noise: float
) -> list[Decision]:
    """Give recorded weights of `model` that made nothing faster their dense values, which the
    first of `origins` that has them gives, and take them off the record.

    A weight stays 2:4 where one of its layers is faster by more than the share `noise`, and where
    one was not measured. A bias that pruning moved goes back too.
    """
    by_weight: dict[str, list[Measured]] = {}
    for row in rows:
        by_weight.setdefault(row.weight, []).append(row)
    uses = AnalysisCache().get(model, WeightUses)
    found: list[Decision] = []
    edits: list[Edit] = []
    for key in model.claims:
        measured = by_weight.get(key.name, [])
        action, reason = _verdict(measured, noise)
        own: list[Edit] = []
        if action == "dense again":
            try:
                own = dense_again(model, uses, key, origins)
            except NotReturned as err:
                action, reason = "not returned", str(err)
        edits += own
        gains = [row.gain for row in measured if row.gain is not None]
        found.append(
            Decision(
                weight=key.name,
                layers=tuple(row.node for row in measured),
                gain=max(gains, default=None),
                action=action,
                reason=reason,
                biases=tuple(edit.key.name for edit in own if edit.is_bias),
            )
        )
    apply(model, uses, edits)
    return found


def all_dense_again(model: Model, origins: Sequence[Origin]) -> tuple[int, int]:
    """Give every recorded weight its dense values, whatever it gained: the compiled model without
    2:4. Returns: how many went back, of how many."""
    uses = AnalysisCache().get(model, WeightUses)
    keys = list(model.claims)
    edits: list[Edit] = []
    back = 0
    for key in keys:
        with suppress(NotReturned):
            edits += dense_again(model, uses, key, origins)
            back += 1
    apply(model, uses, edits)
    return back, len(keys)


def _verdict(rows: Sequence[Measured], noise: float) -> tuple[Action, str]:
    if not rows:
        return "kept", "no layer of the ledger has it"
    if any(row.gain is not None and row.gain > 1 + noise for row in rows):
        return "kept", "faster"
    if any(row.gain is None for row in rows):
        return "kept", "not measured"
    return "dense again", f"not faster by more than {noise:.0%}"


def brought_back(comparisons: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """What each output gained from the sparse to the gated model: less error, more agreement."""
    if not comparisons:
        return []
    gated = {out.name: out for out in comparisons["gated"].outputs}
    found = []
    for before in comparisons["sparse"].outputs:
        after = gated[before.name]
        top1 = None
        if before.top1_agreement is not None and after.top1_agreement is not None:
            top1 = after.top1_agreement - before.top1_agreement
        both = math.isfinite(before.rel_l2) and math.isfinite(after.rel_l2)
        rel_l2 = before.rel_l2 - after.rel_l2 if both else None
        found.append({"output": before.name, "rel_l2": rel_l2, "top1_agreement": top1})
    return found


def render_gate(
    decisions: Sequence[Decision],
    comparisons: Mapping[str, Comparison],
    reference: str = "the dense model",
) -> Block:
    """What went back and why, and what it brought."""
    rows = [
        (d.weight, "–" if d.gain is None else f"{d.gain:.2f}", d.action, d.reason)
        for d in decisions
    ]
    lines: list[str] = []
    if rows:
        lines.append(table(("weight", "gain", "what", "why"), rows, right=(1,), prose=(3,)))
    back = sum(d.action == "dense again" for d in decisions)
    lines.append(f"  {back} of {len(decisions)} 2:4 weights are dense again")
    if not comparisons:
        return block(lines)
    header = ("output", "model", "rel L2", "SQNR dB", "same top-1")
    body = [
        (out.name, which, number_text(out.rel_l2), number_text(out.sqnr_db),
         number_text(out.top1_agreement))
        for which, comparison in comparisons.items()
        for out in comparison.outputs
    ]  # fmt: skip
    lines.append(f"  against {reference}, {comparisons['sparse'].data}")
    lines.append(table(header, body, right=(2, 3, 4)))
    gains = brought_back(comparisons)
    for item in gains:
        if item["rel_l2"] is None:
            continue
        text = f"  brought back at {item['output']}: {item['rel_l2']:+.3g} of the relative error"
        if item["top1_agreement"] is not None:
            text += f", {100 * item['top1_agreement']:+.1f} points of top-1 agreement"
        lines.append(text)
    if any((item["rel_l2"] or 0.0) < 0 for item in gains):
        lines.append(_FITTED)
        names = (name for d in decisions if d.action == "dense again" for name in d.layers)
        lines.append(f"    prune24{{exclude={'|'.join(dict.fromkeys(names))}}}")
    return block(lines)


_FITTED = Block(
    "  a solved layer makes up for what those before it lost as pruned, and now they do not lose\n"
    "  it; prune again without the layers that went back:"
)
