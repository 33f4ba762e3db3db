"""The differences from dense fp32 as a picture: a line of points and intervals for each method."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from comparison import LIMITS, Variant, variants
from relevance import TASKS
from relevance_methods import Method

LEFT, PANEL, ROW, TOP, GAP = 170, 240, 24, 54, 16
INK, FAINT, BAR = "#1a1a1a", "#c8c8c8", "#76b900"


def draw(out: Path, chosen: Sequence[Method], steps: int, part: str) -> str:
    """An SVG: NDCG@10 of the 2:4 INT8 models minus dense fp32's, one panel a task."""
    tables = {task: variants(out, task, chosen, steps, part) for task in TASKS}
    tables = {task: found for task, found in tables.items() if ("dense", "fp32") in found}
    methods = [m.name for m in chosen if "int8" in m.precisions]
    width = LEFT + len(tables) * (PANEL + GAP)
    height = TOP + ROW * len(methods) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(LEFT - 8, 18, "2:4 INT8 (dense: INT8)", "end"),
    ]
    for i, name in enumerate(methods):
        parts.append(_text(LEFT - 8, _y(i) + 4, name, "end"))
    for i, (task, found) in enumerate(tables.items()):
        parts += _panel(LEFT + i * (PANEL + GAP), task, found, methods)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    x: int, task: str, found: dict[tuple[str, str], Variant], methods: Sequence[str]
) -> list[str]:
    dense = found["dense", "fp32"]
    points = {}
    for row, name in enumerate(methods):
        variant = found.get((name, "int8"))
        if variant is not None:
            value = variant.metric("ndcg") - dense.metric("ndcg")
            points[row] = (value, *variant.interval("ndcg", dense))
    low = min([-4 * LIMITS["ndcg"], *(p[1] for p in points.values())])
    high = max([2 * LIMITS["ndcg"], *(p[2] for p in points.values())])

    def place(value: float) -> float:
        return x + 8 + (value - low) / (high - low) * (PANEL - 16)

    bottom = _y(len(methods) - 1) + ROW / 2
    lines = [
        _text(x + PANEL / 2, 18, task, "middle"),
        _text(x + PANEL / 2, 34, "Δ NDCG@10", "middle"),
    ]
    for value, colour in ((0.0, INK), (-LIMITS["ndcg"], BAR)):
        lines.append(_line(place(value), TOP - 8, place(value), bottom, colour))
    lines.append(_text(place(0), bottom + 16, "0", "middle"))
    lines.append(_text(place(low), bottom + 16, f"{low:+.3f}", "start"))
    lines.append(_line(x, bottom, x + PANEL, bottom, FAINT))
    for row, (value, from_, to) in points.items():
        lines.append(_line(place(from_), _y(row), place(to), _y(row), INK))
        lines.append(f'<circle cx="{place(value):.1f}" cy="{_y(row):.1f}" r="4" fill="{INK}"/>')
    return lines


def _y(row: int) -> float:
    return TOP + ROW * (row + 0.5)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        'stroke-width="1.5"/>'
    )
