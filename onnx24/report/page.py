"""The pieces of an HTML page that needs nothing else: no network, no fonts, no libraries.

Tables sort by their headers and filter by a box and by choices, without a mouse as well: "/" goes
to the first box, Escape empties it. Colours follow the reader's setting, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from onnx24.report.table import shorten

_STYLE = """
:root { color-scheme: light dark; --fg: #1c2024; --bg: #ffffff; --soft: #f3f4f6; --line: #d8dce2;
  --dim: #5d6672; --bar: #3b7f3f; --bar2: #3d6fb4; --bar3: #a8692a; --bar4: #7a5aa8;
  --rest: #d9dde3; --bad: #b3261e; --warn: #8a5a00; --link: #1f5fae; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e7eb; --bg: #15181c; --soft: #1e2328;
  --line: #363d45; --dim: #9aa4b0; --bar: #6fb573; --bar2: #7aa7e0; --bar3: #d79a5c;
  --bar4: #b398de; --rest: #343b43; --bad: #ff8a80; --warn: #f0c060; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
  max-width: 72rem; margin: 0 auto 4rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; } .skip:focus { left: 1rem; top: .5rem; }
nav { position: sticky; top: 0; background: var(--bg); border-bottom: 1px solid var(--line);
  padding: .4rem 0; z-index: 1; } nav a { margin-right: 1rem; }
section { scroll-margin-top: 3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { background: var(--soft); border-radius: 6px; padding: .6rem .9rem; min-width: 9rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); }
.scroll { overflow-x: auto; }
.tools { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin: .4rem 0; }
.tools input, .tools select { font: inherit; color: inherit; background: var(--soft);
  border: 1px solid var(--line); border-radius: 4px; padding: .2rem .5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; text-align: inherit; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.n { text-align: right; } code { font-size: .92em; overflow-wrap: anywhere; }
td:first-child { min-width: 12rem; } td.text { min-width: 16rem; overflow-wrap: anywhere; }
.bar { display: block; height: .8rem; background: var(--rest); border-radius: 2px; }
.bar > span { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
.error, .unmet { color: var(--bad); } .warning { color: var(--warn); } .dim { color: var(--dim); }
span.dim { white-space: nowrap; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--fg); } svg .dim { fill: var(--dim); }
.c0 { fill: var(--bar); background: var(--bar); }
.c1 { fill: var(--bar2); background: var(--bar2); }
.c2 { fill: var(--bar3); background: var(--bar3); }
.c3 { fill: var(--bar4); background: var(--bar4); }
.c4 { fill: var(--rest); background: var(--rest); }
.line, .axis { fill: none; stroke: var(--dim); stroke-width: 1; }
.line { stroke-width: 1.6; } .line.c0 { stroke: var(--bar); } .line.c1 { stroke: var(--bar2); }
.line.c2 { stroke: var(--bar3); } .line.c3 { stroke: var(--bar4); }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  margin: 0 .3rem 0 1rem; }
details summary { cursor: pointer; }
@media print { nav, .tools { display: none; } body { max-width: none; } }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("table.sort th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending", at = head.cellIndex;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[at].dataset.k ?? row.cells[at].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b), d = Number(x) - Number(y);
      return Number.isNaN(d) ? x.localeCompare(y, "en", { numeric: true }) : d;
    });
    body.append(...(up ? rows : rows.reverse()));
  });
}
for (const tools of document.querySelectorAll(".tools")) {
  const rows = [...tools.nextElementSibling.querySelectorAll("tbody tr")];
  const box = tools.querySelector("input"), choices = [...tools.querySelectorAll("select")];
  const count = tools.querySelector("output");
  const show = () => {
    const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every(word => text.includes(word)) && choices.every(choice =>
        !choice.value || row.cells[Number(choice.dataset.column)].textContent === choice.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  box.addEventListener("input", show);
  box.addEventListener("keydown", event => {
    if (event.key === "Escape") { box.value = ""; show(); }
  });
  for (const choice of choices) choice.addEventListener("change", show);
  show();
}
document.addEventListener("keydown", event => {
  if (event.key !== "/" || /INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) return;
  const box = document.querySelector(".tools input");
  if (box) { event.preventDefault(); box.focus(); }
});
"""


def page(title: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """A whole page. sections: (heading, HTML), those without HTML are left out; a heading "" goes
    above the navigation."""
    kept = [(heading, text) for heading, text in sections if text]
    head = "".join(text for heading, text in kept if not heading)
    named = [(heading, text) for heading, text in kept if heading]
    links = "".join(f'<a href="#{anchor(h)}">{escape(h)}</a>' for h, _ in named)
    body = "\n".join(
        f'<section id="{anchor(h)}">\n<h2>{escape(h)}</h2>\n{text}\n</section>' for h, text in named
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">to the content</a>\n'
        f'<header><h1>{escape(title)}</h1></header>\n<nav aria-label="Sections">{links}</nav>\n'
        f'<main id="content">\n{head}\n{body}\n</main>\n'
        f'<p class="dim">{escape(footer)}</p>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
    )


def anchor(heading: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in heading.lower())


def definitions(rows: Iterable[tuple[str, Any]]) -> str:
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in rows)
    return f"<dl>{items}</dl>" if items else ""


def tiles(rows: Iterable[tuple[str, str]]) -> str:
    """Large numbers with what they are."""
    items = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in rows
    )
    return f'<div class="tiles">{items}</div>'


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    sortable: bool = True,
    filters: Sequence[int] | None = None,
) -> str:
    """rows: cells as `cell` and `number` make them. filters: columns that get a list of choices;
    None for no filter at all."""
    rows = list(rows)
    heads = "".join(
        _head(name, sortable, is_number=bool(rows) and rows[0][i].startswith('<td class="n"'))
        for i, name in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    kind = ' class="sort"' if sortable else ""
    tools = "" if filters is None else _tools(header, rows, filters)
    return (
        f'{tools}<div class="scroll"><table{kind}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tools(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> str:
    parts = ['<label>filter <input type="search" placeholder="name, code, reason"></label>']
    for column in columns:
        values = sorted({_plain(row[column]) for row in rows})
        options = "".join(f"<option>{value}</option>" for value in values)
        parts.append(
            f'<label>{escape(header[column])} <select data-column="{column}">'
            f'<option value="">all</option>{options}</select></label>'
        )
    return f'<div class="tools">{"".join(parts)}<output aria-live="polite"></output></div>'


def _plain(cell_html: str) -> str:
    """The text of a cell, still escaped."""
    out, depth = [], 0
    for character in cell_html:
        depth += (character == "<") - (character == ">")
        if depth == 0 and character != ">":
            out.append(character)
    return "".join(out)


def _head(name: str, sortable: bool, *, is_number: bool) -> str:
    kind = ' class="n"' if is_number else ""
    text = f'<button type="button">{escape(name)}</button>' if sortable and name else escape(name)
    return f'<th scope="col"{kind}>{text}</th>'


def cell(text: Any, *, code: bool = False, kind: str = "") -> str:
    shown = escape(str(text))
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{f'<code>{shown}</code>' if code and shown else shown}</td>"


def number(value: Any, shown: str | None = None) -> str:
    if value is None:
        return '<td class="n" data-k="">–</td>'
    return f'<td class="n" data-k="{escape(str(value))}">{shown or f"{value:,}"}</td>'


# --- plots ------------------------------------------------------------------------------------

_ROW, _LABEL, _WIDTH, _VALUE = 20, 280, 460, 110
_MARGIN, _PLOT, _TALL = 70, 640, 220
MAX_BARS = 40


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, note: str = "") -> str:
    """Horizontal bars, one a row: (label, value of at least 0, what is written beside it). Of many
    rows the largest are shown; `note` says what the bars are."""
    if not rows:
        return ""
    shown = sorted(rows, key=lambda row: -row[1])[:MAX_BARS] if len(rows) > MAX_BARS else rows
    top = max(value for _, value, _ in shown) or 1.0
    height = _ROW * len(shown) + 4
    parts = [
        f'<svg role="img" viewBox="0 0 {_LABEL + _WIDTH + _VALUE} {height}" '
        f'width="{_LABEL + _WIDTH + _VALUE}"><title>{escape(title)}</title>'
    ]
    for i, (label, value, text) in enumerate(shown):
        y, width = i * _ROW, max(1.0, _WIDTH * value / top)
        parts.append(
            f"<g><title>{escape(label)}: {escape(text)}</title>"
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(shorten(label, 42))}'
            f'</text><rect class="c0" x="{_LABEL}" y="{y + 3}" width="{width:.1f}" height="14" '
            f'rx="2"/><text class="dim" x="{_LABEL + width + 6:.1f}" y="{y + 14}">{escape(text)}'
            "</text></g>"
        )
    more = f" The largest {MAX_BARS} of {len(rows)}." if len(rows) > MAX_BARS else ""
    said = f'<p class="dim">{escape(note + more).strip()}</p>' if note or more else ""
    return f"<h3>{escape(title)}</h3>{said}" + "".join(parts) + "</svg>"


def curves(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str
) -> str:
    """Lines over one axis of values, by name: points (x, y) in order. The y axis is logarithmic
    where all values are above 0 and span more than a factor of 10. x, y: what the axes are."""
    points = [(a, b) for line in lines.values() for a, b in line if math.isfinite(b)]
    if not points:
        return ""
    left, right = min(a for a, _ in points), max(a for a, _ in points)
    low, high = min(b for _, b in points), max(b for _, b in points)
    is_log = low > 0 and high > 10 * low
    scaled = math.log10 if is_log else float
    bottom, top = scaled(low), scaled(high)

    def place(a: float, b: float) -> str:
        across = (a - left) / ((right - left) or 1.0)
        up = (scaled(b) - bottom) / ((top - bottom) or 1.0)
        return f"{_MARGIN + across * _PLOT:.1f},{8 + (1 - up) * _TALL:.1f}"

    width, height = _MARGIN + _PLOT + 16, _TALL + 44
    out = [
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}"><title>{escape(title)}'
        f'</title><path class="axis" d="M{_MARGIN},8V{8 + _TALL}H{_MARGIN + _PLOT}"/>'
    ]
    for value, at in ((high, 12), (low, 8 + _TALL)):
        out.append(f'<text x="{_MARGIN - 6}" y="{at}" text-anchor="end">{value:.3g}</text>')
    for value, at, anchor in ((left, _MARGIN, "start"), (right, _MARGIN + _PLOT, "end")):
        out.append(f'<text x="{at}" y="{_TALL + 24}" text-anchor="{anchor}">{value:g}</text>')
    out.append(
        f'<text class="dim" x="{_MARGIN + _PLOT / 2}" y="{_TALL + 40}" text-anchor="middle">'
        f"{escape(x)}</text>"
    )
    for i, (name, line) in enumerate(lines.items()):
        path = " ".join(place(a, b) for a, b in line if math.isfinite(b))
        out.append(
            f'<polyline class="line c{min(i, 4)}" points="{path}"><title>{escape(name)}</title>'
            "</polyline>"
        )
    legend = "".join(
        f'<span class="key c{min(i, 4)}"></span>{escape(name)}' for i, name in enumerate(lines)
    )
    said = f"{y}, logarithmic" if is_log else y
    return (
        f'<h3>{escape(title)}</h3><p class="dim">{escape(said)}</p>'
        + "".join(out)
        + f"</svg><p>{legend}</p>"
    )


def stacks(title: str, rows: Sequence[tuple[str, Mapping[str, float], str]]) -> str:
    """Stacked bars to one scale: (label, part → size, what is written beside it), and a legend."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, parts, _ in rows for name in parts))
    top = max(sum(parts.values()) for _, parts, _ in rows) or 1.0
    height = _ROW * len(rows) + 4
    out = [
        f'<svg role="img" viewBox="0 0 {_LABEL + _WIDTH + _VALUE} {height}" '
        f'width="{_LABEL + _WIDTH + _VALUE}"><title>{escape(title)}</title>'
    ]
    for i, (label, parts, text) in enumerate(rows):
        x, y = float(_LABEL), i * _ROW
        out.append(
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(shorten(label, 42))}'
            "</text>"
        )
        for name, size in parts.items():
            width = _WIDTH * size / top
            out.append(
                f'<rect class="c{min(names.index(name), 4)}" x="{x:.1f}" y="{y + 3}" '
                f'width="{width:.1f}" height="14"><title>{escape(name)}</title></rect>'
            )
            x += width
        out.append(f'<text class="dim" x="{x + 6:.1f}" y="{y + 14}">{escape(text)}</text>')
    legend = "".join(
        f'<span class="key c{min(i, 4)}"></span>{escape(name)}' for i, name in enumerate(names)
    )
    return f"<h3>{escape(title)}</h3>" + "".join(out) + f"</svg><p>{legend}</p>"
