"""The ledger for a terminal."""

from __future__ import annotations

import math

from onnx24.ledger.ledger import NOISE, Ledger, Row
from onnx24.lines import Block, block
from onnx24.report.table import shape_text, table

HEADER = (
    "layer", "weight", "MFLOP", "2:4", "eligible", "chosen", "ms", "dense", "gain", "moves",
    "kernel",
)  # fmt: skip


def render_text(ledger: Ledger) -> Block:
    """A line a layer, then what they add up to, then what must be known to read it."""
    name = ledger.model or "engine"
    lines = [f"{name} for {ledger.target}"]
    if ledger.rows:
        rows = [_cells(row) for row in ledger.rows]
        used = [i for i in range(len(HEADER)) if any(cells[i] != "–" for cells in rows) or i == 0]
        lines.append(
            table(
                [HEADER[i] for i in used],
                [[cells[i] for i in used] for cells in rows],
                right=[j for j, i in enumerate(used) if HEADER[i] in _NUMBERS],
                whole=[j for j, i in enumerate(used) if HEADER[i] in ("2:4", "eligible", "chosen")],
            )
        )
    lines += [f"  {line}" for line in summary(ledger)]
    lines += [f"  note: {note}" for note in ledger.notes]
    return block(lines)


_NUMBERS = ("MFLOP", "ms", "dense", "gain")


def summary(ledger: Ledger) -> list[str]:
    """The numbers in words: eligible, chosen and faster are three things."""
    funnel = ledger.funnel
    lines = []
    if ledger.counts is not None:
        eligible, chosen = ledger.counts
        lines.append(
            f"builder's log: {eligible} layers eligible for sparse kernels, {chosen} chosen"
        )
    if any(row.layer for row in ledger.rows):
        text = f"{funnel['with_weight']} layers with a weight: {funnel['eligible']} can be 2:4, "
        text += f"{funnel['weights_24']} are"
        if activations := funnel["layers"] - funnel["with_weight"]:
            text += f"; {activations} multiply two activations"
        lines.append(text)
    if ledger.engine_layers:
        lines.append(
            f"engine: {ledger.engine_layers} kernels, {ledger.reformats} of them only move data"
        )
    if ledger.profiled_ms is not None:
        shares = ledger.shares_ms
        lines.append(
            f"profiled: {ledger.profiled_ms:.4g} ms (medians): {shares['rows']:.4g} in these "
            f"layers, {shares['moves']:.4g} in copies, {shares['rest']:.4g} in others"
        )
    measured = funnel["faster"] + funnel["not_faster"]
    if measured:
        lines.append(
            f"of {measured} measured layers {funnel['faster']} are faster than dense by more than "
            f"{NOISE:.0%}"
        )
    if ledger.latency is not None:
        text = f"latency {ledger.latency} over {ledger.latency.count} runs"
        if ledger.dense_latency is not None:
            text += f"; dense {ledger.dense_latency}, {latency_verdict(ledger)}"
        lines.append(text)
    return lines


def latency_verdict(ledger: Ledger) -> str:
    """In words. They were measured one after the other, so overlapping spreads decide nothing."""
    a, b = ledger.latency, ledger.dense_latency
    assert a is not None and b is not None
    if a.low <= b.high and b.low <= a.high:
        return "the spreads overlap: no difference shown"
    return f"{b.median / a.median:.2f}x" if a.median else "–"


def _cells(row: Row) -> tuple[str, ...]:
    layer = row.layer
    marks = {True: "yes", False: "no", None: "–"}
    moves = row.reformats_before + row.reformats_after
    gain = "–" if row.gain is None else f"{row.gain:.2f}"
    return (
        row.name,
        shape_text(layer.shape) if layer and layer.weight else "–",
        _flops(layer.flops) if layer else "–",
        marks[layer.is_24] if layer else "–",
        ("yes" if layer.eligible else layer.code) if layer else marks[row.builder_eligible],
        marks[row.chosen],
        _ms(row.time_ms, row.shares),
        _ms(row.dense_ms, 1),
        gain,
        str(moves) if moves else "–",
        _kernel(row),
    )


def _kernel(row: Row) -> str:
    """The kernel's name; the layer's kind where the name says nothing (TensorRT-RTX compiles its
    kernels on the user's machine)."""
    if row.tactic and not row.tactic.startswith("__my"):
        return row.tactic
    return row.kind or row.tactic or row.engine_layer or "–"


def _flops(flops: int | None) -> str:
    return "–" if flops is None else f"{flops / 1e6:.4g}"


def _ms(value: float | None, shares: int) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4g}" + (f"/{shares}" if shares > 1 else "")
