"""The ledger as one HTML file that needs nothing else, with a plot of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from onnx24 import __version__
from onnx24.ledger.ledger import Ledger, Row
from onnx24.ledger.text import summary
from onnx24.report.page import page
from onnx24.report.table import shape_text

_BAR_PX = 12
_ROW_PX = 34
_NAME_PX = 300
_PLOT_PX = 560
_SHOWN = 60


def render_html(ledger: Ledger) -> str:
    """The page; the same ledger gives the same text."""
    title = f"onnx24 ledger: {ledger.model or 'engine'}"
    lines = "".join(f"<li>{escape(line)}</li>" for line in summary(ledger))
    notes = "".join(f"<li>{escape(note)}</li>" for note in ledger.notes)
    return page(
        title,
        [
            ("", f"<p>Target {escape(ledger.target)}</p><ul>{lines}</ul>"),
            ("Layers, drawn", _plot(ledger)),
            ("Layers", _table(ledger)),
            ("Notes", f"<ul>{notes}</ul>" if notes else ""),
        ],
        f"onnx24 {__version__}",
    )


def _plot(ledger: Ledger) -> str:
    """Bars: the layer's time here and in the dense engine; where nothing was timed its work, and
    without a model what it reads and writes."""
    timed = [row for row in ledger.rows if row.time_ms is not None]
    if timed:
        rows = sorted(timed, key=lambda row: -(row.time_ms or 0))[:_SHOWN]
        values = [[("dense", row.dense_ms), ("sparse", row.time_ms)] for row in rows]
        caption, unit = "time of each layer [ms], the longest first", "ms"
    else:
        sizes, what, unit = _sizes(ledger.rows)
        sized = sorted(
            ((row, size) for row, size in zip(ledger.rows, sizes, strict=True) if size),
            key=lambda item: -item[1],
        )[:_SHOWN]
        rows = [row for row, _ in sized]
        values = [[(what, size)] for _, size in sized]
        caption = f"{what} of each layer [{unit}], the largest first; no layer was timed"
    if not rows:
        return ""
    most = max(value or 0 for bars in values for _, value in bars) or 1.0
    parts = []
    for i, (row, bars) in enumerate(zip(rows, values, strict=True)):
        y = i * _ROW_PX + 4
        parts.append(
            f'<text x="{_NAME_PX - 8}" y="{y + 16}" text-anchor="end">{escape(_short(row.name))}'
            "</text>"
        )
        for j, (kind, value) in enumerate(bars):
            if value is None:
                continue
            width = max(1.0, _PLOT_PX * value / most)
            fill = "var(--rest)" if kind == "dense" else _COLOURS[_state(row)]
            at = y + j * (_BAR_PX + 2)
            parts.append(
                f'<rect x="{_NAME_PX}" y="{at}" width="{width:.1f}" height="{_BAR_PX}" '
                f'fill="{fill}"><title>{escape(row.name)}: {kind} {value:.4g} {unit}</title></rect>'
                f'<text x="{_NAME_PX + width + 6:.1f}" y="{at + 10}">{value:.4g}</text>'
            )
    height = len(rows) * _ROW_PX + 8
    legend = " ".join(
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:.8rem;'
        f'height:.8rem;background:{_COLOURS[state]}"></span> {escape(state)}</span>'
        for state in dict.fromkeys(_state(row) for row in rows)
    )
    dense = ' <span class="dim">grey: the dense engine</span>' if timed else ""
    return (
        f"<p>{escape(caption)}</p><p>{legend}{dense}</p>"
        f'<div class="scroll"><svg role="img" aria-label="{escape(caption)}" '
        f'width="{_NAME_PX + _PLOT_PX + 80}" height="{height}" '
        'style="font: 12px system-ui, sans-serif" fill="currentColor">'
        + "".join(parts)
        + "</svg></div>"
    )


def _sizes(rows: Sequence[Row]) -> tuple[list[float], str, str]:
    """A size of each row, 0 where it is not known; what that is, and its unit."""
    work = [(row.layer.flops or 0) / 1e6 if row.layer else 0.0 for row in rows]
    if any(work):
        return work, "work", "MFLOP"
    return [row.traffic_bytes / 1e3 for row in rows], "traffic", "kB"


_COLOURS = {
    "sparse kernel, faster": "#3b7f3f",
    "sparse kernel, not faster": "#b3261e",
    "sparse kernel": "#6fb573",
    "eligible, dense kernel": "#c98a00",
    "eligible": "#c9b458",
    "not eligible": "#7d8794",
}


def _state(row: Row) -> str:
    """How far the layer got."""
    if row.chosen:
        verdict = row.verdict()
        return "sparse kernel" + (f", {verdict}" if verdict != "not measured" else "")
    if row.layer.eligible if row.layer else row.builder_eligible:
        return "eligible" if row.chosen is None else "eligible, dense kernel"
    return "not eligible"


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-22:]}"


def _table(ledger: Ledger) -> str:
    header = [
        "layer", "weight", "MFLOP", "2:4", "eligible", "builder: eligible", "chosen", "ms",
        "dense ms", "gain", "reformats before + after", "engine layer", "tactic", "fused with",
    ]  # fmt: skip
    heads = "".join(f'<th scope="col"><button type="button">{h}</button></th>' for h in header)
    body = "\n".join(f"<tr>{''.join(_cells(row))}</tr>" for row in ledger.rows)
    return (
        '<div class="scroll"><table class="sort">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Row) -> Sequence[str]:
    layer = row.layer
    marks = {True: "yes", False: "no", None: "–"}
    why = "yes"
    if layer is not None and not layer.eligible:
        why = f'no <span class="dim">{escape(layer.code)}</span> {escape(layer.reason)}'
    shared = f' <span class="dim">of {row.shares} layers</span>' if row.shares > 1 else ""
    return [
        f"<td><code>{escape(row.name)}</code></td>",
        f"<td>{shape_text(layer.shape) if layer and layer.weight else '–'}</td>",
        _number(layer.flops / 1e6 if layer and layer.flops is not None else None),
        f"<td>{marks[layer.is_24] if layer else '–'}</td>",
        f"<td>{why if layer else '–'}</td>",
        f"<td>{marks[row.builder_eligible]}</td>",
        f"<td>{marks[row.chosen]}</td>",
        _number(row.time_ms, shared),
        _number(row.dense_ms),
        _number(row.gain),
        f"<td>{row.reformats_before} + {row.reformats_after}</td>",
        f'<td class="text"><code>{escape(row.engine_layer)}</code></td>',
        f'<td class="text">{escape(row.tactic)}</td>',
        f'<td class="text">{escape(", ".join(row.fused_with))}</td>',
    ]


def _number(value: float | None, more: str = "") -> str:
    if value is None:
        return '<td class="n" data-k="">–</td>'
    return f'<td class="n" data-k="{value!r}">{value:.4g}{more}</td>'
