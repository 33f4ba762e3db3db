"""Profit-gated sparsity: weights whose 2:4 form made nothing faster get their dense values back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.weight_uses import WeightUse, WeightUses, consumer_view, stored_values
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.report.table import number_text, table

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
            Measured(str(row["name"]), str((row["model"] or {}).get("weight", "")), row["gain"])
            for row in json.loads(text)["rows"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise InputError.of(
            "O24-048", "this is no ledger", file=file, hint="`onnx24 ledger MODEL … -o F.json`"
        ) from err
    if not any(isinstance(row.gain, int | float) for row in rows):
        raise InputError.of(
            "O24-048",
            "no layer of this ledger has its time in the sparse and in the dense engine",
            file=file,
            hint="give `onnx24 ledger` both --profile and --dense-profile",
        )
    return rows


def gate(model: Model, dense: Model, rows: Iterable[Measured], *, noise: float) -> list[Decision]:
    """Give recorded weights of `model` that made nothing faster the values they have in `dense`,
    and take them off the record.

    A weight stays 2:4 where one of its layers is faster by more than the share `noise`, and where
    one was not measured. The two models may hold it in other forms (a matrix and a 1x1 kernel,
    float and INT8 behind Q/DQ): the consumer's view is what is carried over. A bias that differs
    goes back too, since refitting methods move both together.
    """
    by_weight: dict[str, list[Measured]] = {}
    for row in rows:
        by_weight.setdefault(row.weight, []).append(row)
    uses = AnalysisCache().get(model, WeightUses)
    dense_uses = AnalysisCache().get(dense, WeightUses)
    found: list[Decision] = []
    edits: list[tuple[ValueKey, np.ndarray]] = []
    for key in list(model.claims):
        measured = by_weight.get(key.name, [])
        action, reason = _verdict(measured, noise)
        biases: list[tuple[ValueKey, np.ndarray]] = []
        if action == "dense again":
            values = _returned(model, dense, uses, dense_uses, key)
            if isinstance(values, str):
                action, reason = "not returned", values
            else:
                biases = _biases(model, dense, uses, key)
                edits += [(key, values), *biases]
        gains = [row.gain for row in measured if row.gain is not None]
        found.append(
            Decision(
                weight=key.name,
                layers=tuple(row.node for row in measured),
                gain=max(gains, default=None),
                action=action,
                reason=reason,
                biases=tuple(bias.name for bias, _ in biases),
            )
        )
    for key, values in edits:
        model.weights.replace(key, values)
    returned = {item.weight for item in found if item.action == "dense again"}
    for key in [key for key in model.claims if key.name in returned]:
        model.claims.discard(key)
    return found


def _verdict(rows: Sequence[Measured], noise: float) -> tuple[Action, str]:
    if not rows:
        return "kept", "no layer of the ledger has it"
    if any(row.gain is not None and row.gain > 1 + noise for row in rows):
        return "kept", "faster"
    if any(row.gain is None for row in rows):
        return "kept", "not measured"
    return "dense again", f"not faster by more than {noise:.0%}"


def _returned(
    model: Model, dense: Model, uses: WeightUses, dense_uses: WeightUses, key: ValueKey
) -> np.ndarray | str:
    """The dense values in the form in which the model stores the weight, or why not."""
    source = next((k for k in (key, ValueKey("", key.name)) if k in dense.weights), None)
    if source is None:
        return "the dense model has no weight of that name"
    if source not in dense_uses.tensors:
        return "the dense model does not use it as a weight"
    here, there = _product(uses, key), _product(dense_uses, source)
    if here is None or there is None:
        return "it is no product's weight in one of the models"
    if here.op != there.op and "Gemm" in (here.op, there.op) and _has_alpha(there, here):
        return "a Gemm's alpha went into its values; prune again with it excluded"
    stored = uses.read(model, key)
    seen = consumer_view(dense_uses.read(dense, source), there)
    try:
        rows = _as_rows(seen, there)
        view = consumer_view(stored, here)
        values = _from_rows(rows, here, view.shape)
    except ValueError:
        return "its shape in the dense model does not fit; prune again with it excluded"
    return stored_values(values.astype(view.dtype), here, stored)


def _product(uses: WeightUses, key: ValueKey) -> WeightUse | None:
    return next((use for use in uses.products(key) if use.k_axis_consumer is not None), None)


def _has_alpha(*uses: WeightUse) -> bool:
    return any(
        attribute.name == "alpha" and attribute.f != 1.0
        for use in uses
        if use.consumer is not None
        for attribute in use.consumer.proto.attribute
    )


def _as_rows(view: np.ndarray, use: WeightUse) -> np.ndarray:
    """[outputs and positions, K]"""
    assert use.k_axis_consumer is not None
    return np.moveaxis(view, use.k_axis_consumer, -1).reshape(-1, view.shape[use.k_axis_consumer])


def _from_rows(rows: np.ndarray, use: WeightUse, shape: Sequence[int]) -> np.ndarray:
    """Raises: ValueError where the rows do not fill the shape."""
    assert use.k_axis_consumer is not None
    axis = use.k_axis_consumer % len(shape)
    moved = [size for i, size in enumerate(shape) if i != axis] + [shape[axis]]
    if rows.shape[1] != shape[axis] or math.prod(shape) != rows.size:
        raise ValueError
    return np.moveaxis(rows.reshape(moved), -1, axis)


def _biases(
    model: Model, dense: Model, uses: WeightUses, key: ValueKey
) -> list[tuple[ValueKey, np.ndarray]]:
    """The bias of each layer, as an input of it or in an Add behind it, where it is the same
    constant in both models and its values differ."""
    index = uses.index
    readers: dict[tuple[str, str], list[Any]] = {}
    for site in index.nodes:
        for name in site.proto.input:
            readers.setdefault((site.scope, name), []).append(site)
    found: dict[ValueKey, np.ndarray] = {}
    for use in uses.products(key):
        if use.consumer is None:
            continue
        node, scope = use.consumer.proto, use.consumer.scope
        names = list(node.input[2:3]) if node.op_type in ("Conv", "Gemm") else []
        for site in readers.get((scope, node.output[0]), []):
            names += list(site.proto.input) if site.proto.op_type == "Add" else []
        for name in names:
            bias = index.resolve(name, scope)
            if bias is None or bias not in model.weights or bias in model.claims:
                continue
            values = _same_bias(model, dense, bias)
            if values is not None:
                found[bias] = values
    return list(found.items())


def _same_bias(model: Model, dense: Model, bias: ValueKey) -> np.ndarray | None:
    if bias not in dense.weights:
        return None
    now, was = model.weights[bias], dense.weights[bias]
    fits = now.dtype.kind == "f" and was.dtype.kind == "f" and now.size == was.size
    if not fits:
        return None
    values = was.reshape(now.shape).astype(now.dtype)
    return None if np.array_equal(values, now) else values


def render_gate(decisions: Sequence[Decision], comparisons: Mapping[str, Any] | None) -> str:
    """What went back and why, and what it brought."""
    rows = [
        (d.weight, "–" if d.gain is None else f"{d.gain:.2f}", d.action, d.reason)
        for d in decisions
    ]
    lines = []
    if rows:
        lines.append(table(("weight", "gain", "what", "why"), rows, right=(1,), prose=(3,)))
    back = sum(d.action == "dense again" for d in decisions)
    lines.append(f"  {back} of {len(decisions)} 2:4 weights are dense again")
    if comparisons:
        header = ("output", "model", "rel L2", "SQNR dB", "same top-1")
        body = [
            (out.name, which, number_text(out.rel_l2), number_text(out.sqnr_db),
             number_text(out.top1_agreement))
            for which, comparison in comparisons.items()
            for out in comparison.outputs
        ]  # fmt: skip
        first = next(iter(comparisons.values()))
        lines.append(f"  against the dense model, {first.data}")
        lines.append(table(header, body, right=(2, 3, 4)))
    return "\n".join(lines)
