"""The report as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from onnx24.codes import CODES
from onnx24.diagnostics import Severity
from onnx24.report.model import ModelFacts, Report, WeightLine
from onnx24.report.page import bars, cell, definitions, number, page, stacks, table, tiles
from onnx24.report.recovery import curves_of
from onnx24.report.table import bytes_text, number_text, shape_text, share_text, statistics_text
from onnx24.report.text import protection_text


def render_html(report: Report) -> str:
    """The page; the same report gives the same text."""
    return page(
        f"onnx24 {report.command}: {report.source.file}",
        [
            ("", _summary(report)),
            ("What changed", _changes(report)),
            ("2:4 coverage", _coverage(report)),
            ("Passes", _passes(report)),
            ("Weights", _weights(report)),
            ("Training back", curves_of(report.recovery) if report.recovery else ""),
            ("Accuracy", _comparison(report)),
            ("Engine", _backend(report)),
            ("Diagnostics", _diagnostics(report)),
            ("Provenance", _provenance(report)),
        ],
        f"onnx24 {report.version}",
    )


def _summary(report: Report) -> str:
    c = report.coverage
    numbers = [("status", report.status)]
    numbers.append(
        ("of the eligible elements are 2:4", share_text(c.sparse_elements, c.eligible_elements))
    )
    if report.output:
        before, after = report.source.nbytes, report.output.nbytes
        numbers.append(("of the input's size", share_text(after, before)))
    if report.comparison:
        worst = max(report.comparison["outputs"], key=_badness)
        numbers.append(("SQNR of the worst output [dB]", number_text(_float(worst["sqnr_db"]), 4)))
        agreement = worst.get("top1_agreement")
        if agreement is not None:
            numbers.append(("top-1 agreement", f"{100 * agreement:.2f} %"))
    problems = Counter(d.severity for d in report.diagnostics)
    numbers.append(("errors", str(problems[Severity.ERROR])))
    numbers.append(("warnings", str(problems[Severity.WARNING])))
    target = report.target
    rows = [
        ("target", f"{target['name']}, compute capability {target['compute_capability']}"),
        ("pipeline", report.pipeline),
    ]
    if report.protection is not None:
        rows.append(("limit", protection_text(report.protection)))
    return tiles(numbers) + definitions(rows)


def _changes(report: Report) -> str:
    """The input beside the output, and their bytes by type."""
    before, after = report.source, report.output
    if after is None:
        return '<p class="dim">No output file was written.</p>'
    rows = [
        ("size", bytes_text(before.nbytes), bytes_text(after.nbytes)),
        ("nodes", f"{before.nodes:,}", f"{after.nodes:,}"),
        ("initializers", f"{len(before.weights):,}", f"{len(after.weights):,}"),
        ("opset", _opset(before), _opset(after)),
        ("IR version", str(before.ir_version), str(after.ir_version)),
    ]
    listed = table(
        ["", "input", "output"],
        [[cell(name), cell(old), cell(new)] for name, old, new in rows],
        sortable=False,
    )
    sizes = [
        (name, _bytes_by_type(facts), bytes_text(sum(w.nbytes for w in facts.weights)))
        for name, facts in (("input", before), ("output", after))
    ]
    return listed + stacks("Bytes of the initializers, by type", sizes)


def _opset(facts: ModelFacts) -> str:
    return str(facts.opsets.get("ai.onnx", "–"))


def _bytes_by_type(facts: ModelFacts) -> dict[str, float]:
    sizes: Counter[str] = Counter()
    for weight in facts.weights:
        sizes[weight.dtype] += weight.nbytes
    return {name: float(size) for name, size in sizes.most_common() if size}


def _coverage(report: Report) -> str:
    c = report.coverage
    bars_ = [
        ("eligible weights that are 2:4", c.sparse, c.eligible),
        ("eligible elements that are in 2:4 weights", c.sparse_elements, c.eligible_elements),
        ("all elements that are in 2:4 weights", c.sparse_elements, c.elements),
    ]
    rows = [
        [cell(label), number(part), number(whole), _bar(part, whole)]
        for label, part, whole in bars_
    ]
    return table(["", "2:4", "of", "share"], rows, sortable=False)


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
                cell(entry["text"], code=True),
                number(seconds, f"{seconds:.3f}" if seconds is not None else "–"),
                cell(", ".join(entry["changed"]) or "nothing"),
                cell(statistics_text(entry.get("statistics", {}))),
            ]
        )
    return table(["pass", "seconds", "changed", "statistics"], rows)


# --- weights ----------------------------------------------------------------------------------


def _weights(report: Report) -> str:
    shown = [line for line in report.weights if not line.is_bystander]
    hidden = len(report.weights) - len(shown)
    rows = [
        [
            cell(_label(line), code=True),
            cell(shape_text(line.shape) if line.in_input else "–"),
            cell(line.dtype),
            number(line.elements if line.in_input else None),
            cell("2:4" if line.is_sparse else "dense"),
            cell({None: "–", True: "yes", False: "no"}[line.eligible]),
            _error_cell(line),
            f'<td class="text">{_why_not(line)}{_steps(line)}</td>',
        ]
        for line in shown
    ]
    note = f'<p class="dim">{hidden} other initializers are no matrix product\'s weight.</p>'
    header = [
        "weight",
        "shape",
        "dtype",
        "elements",
        "pattern",
        "eligible",
        "error",
        "what happened",
    ]
    errors = [
        (_label(line), error, f"{100 * error:.1f} %")
        for line in shown
        if (error := _error(line)) is not None
    ]
    plot = bars(
        "Error of pruning, by weight",
        errors,
        note="‖pruned − dense‖ / ‖dense‖ of the weight itself; the outputs decide, not this.",
    )
    return table(header, rows, filters=(2, 4, 5)) + (note if hidden else "") + plot


def _label(line: WeightLine) -> str:
    return f"{line.scope}::{line.name}" if line.scope else line.name


def _error(line: WeightLine) -> float | None:
    """What pruning did to the weight: ‖W' − W‖ / ‖W‖, where a pass recorded it."""
    for step in line.steps:
        value = step.facts.get("relative_error")
        if isinstance(value, int | float):
            return float(value)
    return None


def _error_cell(line: WeightLine) -> str:
    error = _error(line)
    return number(error, None if error is None else f"{error:.4f}")


def _why_not(line: WeightLine) -> str:
    if line.eligible is not False or any(step.code == line.code for step in line.steps):
        return ""  # eligible, or a pass says the reason
    return f"{_code(line.code)} {escape(line.reason or CODES[line.code].title)}<br>"


def _code(code: str) -> str:
    return f'<span class="dim" title="{escape(CODES[code].explanation)}">{escape(code)}</span>'


def _steps(line: WeightLine) -> str:
    """The passes' actions in a line that opens; open where the weight stayed dense, since the
    reason is what a reader looks for then."""
    if not line.steps:
        return ""
    is_open = "" if line.is_sparse else " open"
    actions = ", ".join(step.action for step in line.steps if step.action != "refused")
    return (
        f"<details{is_open}><summary>{escape(actions) or 'refused'}</summary>"
        f"{_step_lines(line)}</details>"
    )


def _step_lines(line: WeightLine) -> str:
    return "<br>".join(
        f"{escape(step.pass_name)}: {escape(step.action)} {_code(step.code)}"
        + (f" {escape(step.reason)}" if step.reason and step.reason != step.action else "")
        for step in line.steps
    )


def _badness(out: Mapping[str, Any]) -> float:
    """As OutputDiff.badness."""
    rel_l2 = float(out["rel_l2"])
    return math.inf if math.isnan(rel_l2) else rel_l2


# --- accuracy and engine ----------------------------------------------------------------------


def _with_faint(outputs: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each output, and behind it the small channels that its numbers hide."""
    for out in outputs:
        yield out
        if faint := out.get("faint"):
            name = f"{out['name']}: {faint['channels']} of {faint['of']} channels, which are small"
            yield {**out, "max_abs": None, "cosine": None, "top1_agreement": None, **faint,
                   "name": name}  # fmt: skip


def _comparison(report: Report) -> str:
    if report.comparison is None:
        return ""
    rows = [
        [
            cell(out["name"], code=True),
            *(
                number(out.get(key), number_text(_float(out.get(key)), 6))
                for key in ("max_abs", "rel_l2", "cosine", "sqnr_db", "top1_agreement")
            ),
            cell(f"{out['compared']} of {out['runs']}"),
        ]
        for out in _with_faint(report.comparison["outputs"])
    ]
    header = ["output", "max abs", "relative L2", "cosine", "SQNR dB", "top-1 agreement"]
    header.append("runs compared")
    text = f"<h3>Original and result on {report.comparison['samples']} samples</h3>"
    text += table(header, rows)
    if report.limits:
        limits = [
            [
                cell(str(r.limit), code=True),
                number(r.value, number_text(r.value)),
                cell(r.required),
                cell(r.output),
                cell(f"{r.compared} of {r.runs}"),
                cell("met" if r.met else "not met", kind="" if r.met else "unmet"),
            ]
            for r in report.limits
        ]
        text += "<h3>Limits</h3>" + table(
            ["limit", "measured", "required", "output", "runs compared", ""], limits
        )
    return text


def _backend(report: Report) -> str:
    backend = report.backend
    if backend is None:
        return ""
    if "error" in backend:
        return f'<p class="error">{escape(str(backend["error"]))}</p>'
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
            cell(layer.get("name", ""), code=True),
            cell(layer.get("kind", "")),
            cell(layer.get("tactic", ""), kind="text"),
            cell({None: "not said", True: "yes", False: "no"}[layer.get("sparse")]),
        ]
        for layer in backend["layers"]
    ]
    header = ["layer", "kind", "tactic", "sparse kernel"]
    return head + _ledger(report) + table(header, rows, filters=(1, 3))


def _ledger(report: Report) -> str:
    """Eligible, 2:4, found and chosen by the builder: how many weights or layers are left at each
    step. What the builder did not say has no bar."""
    c, said = report.coverage, (report.backend or {}).get("sparsity") or {}
    rows = [
        ("weights that could be 2:4", float(c.eligible), f"{c.eligible:,}"),
        ("weights that are 2:4", float(c.sparse), f"{c.sparse:,}"),
    ]
    for key, label in (
        ("eligible", "layers the builder found eligible"),
        ("chosen", "layers it runs sparse"),
    ):
        names = said.get(key)
        if isinstance(names, list):
            rows.append((label, float(len(names)), f"{len(names):,}"))
    if not c.eligible:
        return ""
    note = "Eligible never means chosen, and chosen never means faster."
    if len(rows) == 2:
        note += " The builder says nothing about sparse kernels."
    return bars("From eligible to chosen", rows, note=note)


# --- diagnostics and provenance ---------------------------------------------------------------


def _diagnostics(report: Report) -> str:
    items = report.at_least(Severity.WARNING)
    if not items:
        return ""
    rows = [
        [
            cell(str(d.severity), kind=str(d.severity)),
            cell(d.code),
            *(cell(text, kind="text") for text in (str(d.where), d.message, d.hint)),
        ]
        for d in items
    ]
    header = ["severity", "code", "where", "message", "next step"]
    explained = "".join(
        f"<details><summary>{escape(code)} {escape(CODES[code].title)}</summary>"
        f"<p>{escape(CODES[code].explanation)}</p></details>"
        for code in dict.fromkeys(d.code for d in items)
    )
    return table(header, rows, filters=(0, 1)) + "<h3>What the codes mean</h3>" + explained


def _provenance(report: Report) -> str:
    rows: list[tuple[str, Any]] = [("tool", f"onnx24 {report.version}")]
    for name, facts in (("input", report.source), ("output", report.output)):
        if facts is None:
            continue
        rows.append((name, f"{facts.file}, sha256 {facts.sha256}"))
        rows += [
            (f"{name} data", f"{file}, sha256 {digest}")
            for file, digest in facts.data_files.items()
        ]
    rows.append(("producer of the input", report.source.producer or "–"))
    for data in report.data:
        warning = "random numbers, no real data: " if data.is_random else ""
        rows.append((data.use, f"{warning}{data.description}, sha256 {data.sha256}"))
    rows += [
        (key, report.run[key]) for key in ("started", "seconds", "system") if key in report.run
    ]
    versions = report.run.get("versions", {})
    if versions:
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return definitions(rows)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
