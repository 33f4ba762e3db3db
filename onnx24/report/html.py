"""The report as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from onnx24.codes import CODES
from onnx24.diagnostics import Severity
from onnx24.report.model import Report, WeightLine
from onnx24.report.table import bytes_text, number_text, shape_text, share_text, statistics_text

_STYLE = """
:root { color-scheme: light dark; --fg: #1c2024; --bg: #ffffff; --soft: #f3f4f6; --line: #d8dce2;
  --dim: #5d6672; --bar: #3b7f3f; --rest: #d9dde3; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e7eb; --bg: #15181c; --soft: #1e2328;
  --line: #363d45; --dim: #9aa4b0; --bar: #6fb573; --rest: #343b43; --bad: #ff8a80;
  --warn: #f0c060; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.n { text-align: right; } code { font-size: .92em; overflow-wrap: anywhere; }
td:first-child { min-width: 12rem; } td.text { min-width: 16rem; overflow-wrap: anywhere; }
.bar { display: block; height: .8rem; background: var(--rest); border-radius: 2px; }
.bar > span { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
.error, .unmet { color: var(--bad); } .warning { color: var(--warn); } .dim { color: var(--dim); }
span.dim { white-space: nowrap; }
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
"""


def render_html(report: Report) -> str:
    """The page; the same report gives the same text."""
    title = f"onnx24 {report.command}: {report.source.file}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        _summary(report),
        _coverage(report),
        _passes(report),
        _weights(report),
        _comparison(report),
        _backend(report),
        _diagnostics(report),
        f'<p class="dim">onnx24 {escape(report.version)}</p>',
    ]
    return page(title, sections)


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of the sections that are not empty; tables of class "sort" can be sorted."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _summary(report: Report) -> str:
    rows = [("status", report.status), ("input", _identity(report.source))]
    if report.output:
        before, after = report.source.nbytes, report.output.nbytes
        rows.append(("output", _identity(report.output)))
        rows.append(
            ("size", f"{bytes_text(before)} → {bytes_text(after)} ({share_text(after, before)})")
        )
    target = report.target
    rows.append(("target", f"{target['name']}, compute capability {target['compute_capability']}"))
    rows.append(("pipeline", report.pipeline))
    for data in report.data:
        warning = "random numbers, no real data: " if data.is_random else ""
        rows.append((data.use, f"{warning}{data.description}, sha256 {data.sha256}"))
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in rows)
    return f"<dl>{items}</dl>"


def _identity(facts: Any) -> str:
    return (
        f"{facts.file}, opset {facts.opsets.get('ai.onnx', '–')}, {facts.nodes} nodes, "
        f"sha256 {facts.sha256}"
    )


def _coverage(report: Report) -> str:
    c = report.coverage
    bars = [
        ("eligible weights that are 2:4", c.sparse, c.eligible),
        ("eligible elements that are in 2:4 weights", c.sparse_elements, c.eligible_elements),
        ("all elements that are in 2:4 weights", c.sparse_elements, c.elements),
    ]
    rows = [
        [_cell(label), _number(part), _number(whole), _bar(part, whole)]
        for label, part, whole in bars
    ]
    return "<h2>2:4 coverage</h2>" + _table(["", "2:4", "of", "share"], rows, sortable=False)


def _bar(part: int, whole: int) -> str:
    share = part / whole if whole else 0.0
    text = share_text(part, whole)
    return (
        f'<td data-k="{share:.6f}"><span class="bar" role="img" aria-label="{text}">'
        f'<span style="width:{100 * share:.1f}%"></span></span>{text}</td>'
    )


def _passes(report: Report) -> str:
    times = report.run.get("passes", [])
    rows = []
    for i, entry in enumerate(report.passes):
        seconds = times[i].get("seconds") if i < len(times) else None
        rows.append(
            [
                _cell(entry["text"], code=True),
                _number(seconds, f"{seconds:.3f}" if seconds is not None else "–"),
                _cell(", ".join(entry["changed"]) or "nothing"),
                _cell(statistics_text(entry.get("statistics", {}))),
            ]
        )
    return "<h2>Passes</h2>" + _table(["pass", "seconds", "changed", "statistics"], rows)


def _weights(report: Report) -> str:
    shown = [line for line in report.weights if not line.is_bystander]
    hidden = len(report.weights) - len(shown)
    rows = [
        [
            _cell(f"{line.scope}::{line.name}" if line.scope else line.name, code=True),
            _cell(shape_text(line.shape) if line.in_input else "–"),
            _cell(line.dtype),
            _number(line.elements if line.in_input else None),
            _cell("2:4" if line.is_sparse else "dense"),
            f"<td>{_verdict(line)}</td>",
            f'<td class="text">{_steps(line)}</td>',
        ]
        for line in shown
    ]
    note = f'<p class="dim">{hidden} other initializers are no matrix product\'s weight.</p>'
    header = ["weight", "shape", "dtype", "elements", "pattern", "eligible", "what happened"]
    return "<h2>Weights</h2>" + _table(header, rows) + (note if hidden else "")


def _verdict(line: WeightLine) -> str:
    if line.eligible is None:
        return "–"
    if line.eligible:
        return "yes"
    if any(step.code == line.code for step in line.steps):  # a pass says the reason
        return f"no {_code(line.code)}"
    return f"no {_code(line.code)} {escape(line.reason or CODES[line.code].title)}"


def _code(code: str) -> str:
    return f'<span class="dim" title="{escape(CODES[code].explanation)}">{escape(code)}</span>'


def _steps(line: WeightLine) -> str:
    return "<br>".join(
        f"{escape(step.pass_name)}: {escape(step.action)} {_code(step.code)}"
        + (f" {escape(step.reason)}" if step.reason and step.reason != step.action else "")
        for step in line.steps
    )


def _comparison(report: Report) -> str:
    if report.comparison is None:
        return ""
    rows = [
        [
            _cell(out["name"], code=True),
            *(
                _number(out.get(key), number_text(_float(out.get(key)), 6))
                for key in ("max_abs", "rel_l2", "cosine", "sqnr_db", "top1_agreement")
            ),
        ]
        for out in report.comparison["outputs"]
    ]
    header = ["output", "max abs", "relative L2", "cosine", "SQNR dB", "top-1 agreement"]
    text = f"<h2>Original and result on {report.comparison['samples']} samples</h2>"
    text += _table(header, rows)
    if report.limits:
        limits = [
            [
                _cell(str(r.limit), code=True),
                _number(r.value, number_text(r.value)),
                _cell(r.required),
                _cell(r.output),
                f'<td class="{"" if r.met else "unmet"}">{"met" if r.met else "not met"}</td>',
            ]
            for r in report.limits
        ]
        text += "<h2>Limits</h2>" + _table(["limit", "measured", "required", "output", ""], limits)
    return text


def _backend(report: Report) -> str:
    backend = report.backend
    if backend is None:
        return ""
    if "error" in backend:
        return f'<h2>Engine</h2><p class="error">{escape(str(backend["error"]))}</p>'
    head = (
        f"<p>{escape(backend['engine'])}, {bytes_text(backend['engine_bytes'])}, by "
        f"{escape(backend['backend'])} {escape(backend['version'])} for "
        f"{escape(backend['target'])}</p>"
    )
    head += "".join(
        f'<p class="{escape(note["severity"])}">{escape(note["message"])} {_code(note["code"])}</p>'
        for note in backend.get("diagnostics", ())
    )
    rows = [
        [
            _cell(layer.get("name", ""), code=True),
            _cell(layer.get("kind", "")),
            f'<td class="text">{escape(layer.get("tactic", ""))}</td>',
            _cell({None: "not said", True: "yes", False: "no"}[layer.get("sparse")]),
        ]
        for layer in backend["layers"]
    ]
    return "<h2>Engine</h2>" + head + _table(["layer", "kind", "tactic", "sparse kernel"], rows)


def _diagnostics(report: Report) -> str:
    items = report.at_least(Severity.WARNING)
    if not items:
        return ""
    rows = [
        [
            f'<td class="{d.severity}">{d.severity}</td>',
            _cell(d.code),
            *(
                f'<td class="text">{escape(text)}</td>'
                for text in (str(d.where), d.message, d.hint)
            ),
        ]
        for d in items
    ]
    header = ["severity", "code", "where", "message", "next step"]
    return "<h2>Warnings and errors</h2>" + _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, sortable: bool = True) -> str:
    rows = list(rows)
    heads = "".join(
        _head(name, sortable, is_number=bool(rows) and rows[0][i].startswith('<td class="n"'))
        for i, name in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    kind = ' class="sort"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(name: str, sortable: bool, *, is_number: bool) -> str:
    kind = ' class="n"' if is_number else ""
    text = f'<button type="button">{escape(name)}</button>' if sortable and name else escape(name)
    return f'<th scope="col"{kind}>{text}</th>'


def _cell(text: Any, *, code: bool = False) -> str:
    shown = escape(str(text))
    return f"<td><code>{shown}</code></td>" if code and shown else f"<td>{shown}</td>"


def _number(value: Any, shown: str | None = None) -> str:
    if value is None:
        return '<td class="n" data-k="">–</td>'
    return f'<td class="n" data-k="{escape(str(value))}">{shown or f"{value:,}"}</td>'


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
