"""The front of cost against loss: as one HTML file that needs nothing else, or as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from onnx24 import __version__
from onnx24.errors import BackendError
from onnx24.report.page import page

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 320, 70, 46, 14
_MOST_DB = 80.0
"""What the axis shows of a choice that changes nothing."""


def render_front(
    model: str,
    said: str,
    front: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    label: str,
) -> str:
    """The page; the same choice gives the same text. said: the summary's lines; label: of the
    costs' axis."""
    lines = "".join(f"<li>{escape(line.strip())}</li>" for line in said.splitlines())
    return page(
        f"onnx24 tune: {model}",
        [
            ("", f"<ul>{lines}</ul>"),
            ("Cost against loss", _plot(front, label)),
            ("Layers", _table(layers)),
        ],
        f"onnx24 {__version__}",
    )


def _decibels(point: Mapping[str, Any]) -> float:
    return min(float(point["sqnr_db"]), _MOST_DB)


def _plot(front: Sequence[Mapping[str, Any]], label: str) -> str:
    low = min((_decibels(p) for p in front), default=0.0)
    high = max((_decibels(p) for p in front), default=1.0)
    most = max((float(p["cost"]) for p in front), default=1.0) or 1.0
    span = (high - low) or 1.0
    width, height = _WIDTH - _LEFT - 20, _HEIGHT - _BOTTOM - _TOP

    def at(point: Mapping[str, Any]) -> tuple[float, float]:
        x = _LEFT + (high - _decibels(point)) / span * width
        return x, _TOP + (1 - float(point["cost"]) / most) * height

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, front))
    dots = []
    for point in front:
        x, y = at(point)
        chosen = bool(point["chosen"])
        text = (
            f"{_label(point)} dB, {float(point['cost']):.4g}, {100 * float(point['saving']):.0f} %"
        )
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if chosen else 4}" '
            f'fill="{"#c33" if chosen else "currentColor"}"><title>{escape(text)}</title></circle>'
        )
        if chosen:
            dots.append(f'<text x="{x + 9:.1f}" y="{y - 8:.1f}">chosen: {escape(text)}</text>')
    base = _TOP + height
    ticks = "".join(
        f'<text x="{_LEFT + (high - value) / span * width:.1f}" y="{base + 16}" '
        f'text-anchor="middle">{value:.0f}</text>'
        for value in (high, (high + low) / 2, low)
    )
    costs = "".join(
        f'<text x="{_LEFT - 6}" y="{_TOP + (1 - share) * height + 4:.1f}" '
        f'text-anchor="end">{most * share:.3g}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="12" fill="currentColor">'
        f'<path d="M{_LEFT} {_TOP}V{base}H{_WIDTH - 20}" fill="none" stroke="currentColor"/>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" opacity="0.5"/>'
        f"{''.join(dots)}{ticks}{costs}"
        f'<text x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        "predicted signal to noise of the worst output [dB], less to the right</text>"
        f'<text x="{_LEFT}" y="10">{escape(label)}</text></svg>'
    )


def _label(point: Mapping[str, Any]) -> str:
    decibels = float(point["sqnr_db"])
    return "∞" if math.isinf(decibels) else f"{decibels:.1f}"


def _table(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(row['weight']))}</td><td>{escape(str(row['form']))}</td>"
        f"<td>{float(row['cost']):.3g}</td><td>{float(row['dense_cost']):.3g}</td>"
        f"<td>{escape(str(row['why']))}</td></tr>"
        for row in layers
    )
    head = "<tr><th>weight</th><th>form</th><th>cost</th><th>dense</th><th>why</th></tr>"
    return f"<table>{head}{rows}</table>"


# --- as a picture ---------------------------------------------------------------------------------


def require_matplotlib() -> Any:
    """Raises: BackendError O24-071 without it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as err:
        raise BackendError.of(
            "O24-071", "a front as .png needs matplotlib, which is not installed"
        ) from err
    return Figure


def draw_front(model: str, front: Sequence[Mapping[str, Any]], label: str) -> bytes:
    """The PNG. Raises: BackendError O24-071 without matplotlib."""
    figure = require_matplotlib()(figsize=(7, 4), dpi=120, layout="tight")
    axes = figure.subplots()
    decibels = [_decibels(point) for point in front]
    costs = [float(point["cost"]) for point in front]
    axes.plot(decibels, costs, "o-", color="0.4", markersize=4)
    title = model
    for x, y, point in zip(decibels, costs, front, strict=True):
        if point["chosen"]:
            axes.plot([x], [y], "o", color="#c33", markersize=8)
            title += f"\nchosen: {_label(point)} dB, {100 * float(point['saving']):.0f} % less"
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("predicted signal to noise of the worst output [dB], less to the right")
    axes.set_ylabel(label)
    axes.set_title(title.replace("$", r"\$"))
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return made.getvalue()
