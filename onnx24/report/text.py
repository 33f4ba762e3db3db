"""The report and diagnostics as text for a terminal of 100 columns."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx24.codes import CODES
from onnx24.diagnostics import Severity
from onnx24.lines import Block, block, paragraphs
from onnx24.passmgr.base import SiteRecord
from onnx24.report.aggregate import aggregate
from onnx24.report.limits import LimitResult
from onnx24.report.model import Report, WeightLine
from onnx24.report.recovery import recovery_text
from onnx24.report.table import (
    WIDTH,
    bytes_text,
    number_text,
    shape_text,
    share_text,
    statistics_text,
    table,
)

_DIGITS = re.compile(r"(\d+)")


# --- the report -------------------------------------------------------------------------------


def render_text(report: Report) -> Block:
    """The whole report; nothing is wider than 100 columns unless a single word is."""
    parts = [_head(report), _passes(report), _weights(report), _solved(report), _refusals(report)]
    parts += [_recovery(report), _comparison(report), _backend(report), _warnings(report)]
    return paragraphs(parts)


def _head(report: Report) -> Block:
    target = report.target
    rows = [
        ("input", f"{report.source.file}  {_identity(report.source)}"),
        ("output", _output(report)),
        ("target", f"{target['name']} (compute capability {target['compute_capability']})"),
        ("pipeline", report.pipeline or "(empty)"),
    ]
    for data in report.data:
        random = "RANDOM numbers, no real data: " if data.is_random else ""
        rows.append((data.use, f"{random}{data.description}, sha256 {data.sha256[:12]}"))
    if report.output:
        before, after = report.source.nbytes, report.output.nbytes
        rows.append(
            (
                "size",
                f"{bytes_text(before)} → {bytes_text(after)} ({share_text(after, before)})",
            )
        )
    rows.append(("2:4", _coverage(report)))
    if report.protection is not None:
        rows.append(("limit", protection_text(report.protection)))
    if guard := report.run.get("guard"):
        checked = ", ".join(guard["checked"]) or "nothing"
        rows.append(("guard", f"compared {checked}: {guard['cpu_seconds']:.2f} s of CPU time"))
    title = f"onnx24 {report.version} {report.command}: {report.status}"
    width = max(len(label) for label, _ in rows)
    lines = [title]
    for label, text in rows:
        indent = " " * (width + 4)
        room = WIDTH - len(indent)
        if len(text) > room and " " not in text:  # a pipeline: between its passes
            text = text.replace(",", ", ")
        wrapped = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        lines.append(f"  {label.ljust(width)}  {wrapped[0] if wrapped else ''}")
        lines += [indent + line for line in wrapped[1:]]
    return block(lines)


def protection_text(protection: Mapping[str, Any]) -> str:
    """What a limit left dense and in float, and what doing without it would give."""
    if not protection["limits"]:
        return f"none: {protection['reason']}"
    dense, floats = len(protection["dense"]), len(protection["float"])
    said = f"{', '.join(protection['limits'])}{' (the default)' * protection['default']}: "
    if not dense + floats:
        return f"{said}no layer was left out for it"
    said += f"{dense} weights stay dense, {floats} layers stay in float; "
    doing = {"prune24": "pruning", "qdq": "quantizing"}
    costs = [
        f"{doing[name]} them all moves the outputs by {100 * found['output_error']:.1f} %"
        + (f", {100 * found['agreement']:.1f} % of the labels stay" if "agreement" in found else "")
        for name, found in protection["without"].items()
    ]
    return f"{said}--limit none leaves none out: {'; '.join(costs) or 'not measured'}"


def _output(report: Report) -> str:
    if report.output:
        return f"{report.output.file}  {_identity(report.output)}"
    if not report.written or report.status == "limits not met":
        return "none"
    return "standard output"


def _identity(facts: Any) -> str:
    opset = facts.opsets.get("ai.onnx", "–")
    return f"(opset {opset}, {facts.nodes} nodes, sha256 {facts.sha256[:12]})"


def _coverage(report: Report) -> str:
    c = report.coverage
    if not c.eligible:
        return "no weight is eligible"
    return (
        f"{c.sparse} of {c.eligible} eligible weights, {c.sparse_elements:,} of "
        f"{c.eligible_elements:,} elements ({share_text(c.sparse_elements, c.eligible_elements)})"
    )


def _passes(report: Report) -> Block:
    times = report.run.get("passes", [])
    rows = []
    names = [entry["pass"] for entry in report.passes]
    room = WIDTH - len("  " * 4) - max(map(len, names), default=0) - len("seconds") - 17
    for i, entry in enumerate(report.passes):
        seconds = times[i].get("seconds") if i < len(times) else None
        numbers = statistics_text(entry.get("statistics", {}))
        if resumed := times[i].get("resumed") if i < len(times) else None:
            numbers += f", resumed {resumed}"
        did = [step for step in _all_records(report) if step.pass_name == entry["pass"]]
        what = textwrap.wrap(numbers or _actions(did), room) or [""]
        changed = "+".join(entry["changed"]) or "nothing"
        if entry.get("rolled_back"):
            changed = "taken back"
        rows.append((entry["pass"], "–" if seconds is None else f"{seconds:.2f}", changed, what[0]))
        rows += [("", "", "", more) for more in what[1:]]
    if not rows:
        return Block()
    header = ("pass", "seconds", "changed", "what")
    return block(["passes", table(header, rows, right=(1,))])


def _all_records(report: Report) -> Iterator[SiteRecord]:
    for line in report.weights:
        yield from line.steps
    yield from report.other_sites


def _actions(records: Sequence[SiteRecord]) -> str:
    counts = Counter(record.action for record in records)
    return ", ".join(f"{action} {count}" for action, count in counts.items())


def _weights(report: Report) -> Block:
    """Weights with the same fate, and names that differ in numbers only, share a line."""
    shown = [line for line in report.weights if not line.is_bystander]
    hidden = len(report.weights) - len(shown)
    groups: dict[tuple[Any, ...], list[WeightLine]] = {}
    for line in shown:
        fate = tuple((step.pass_name, step.action, step.code) for step in line.steps)
        key = (_DIGITS.sub("*", line.name), line.scope, line.shape, line.dtype, fate)
        groups.setdefault(key, []).append(line)
    columns = _telling_passes(shown)
    rows = [
        (
            _group_name(lines),
            str(len(lines)),
            shape_text(lines[0].shape) if lines[0].in_input else "–",
            lines[0].dtype or "–",
            *(_fate(lines[0], column) for column in columns),
        )
        for lines in groups.values()
    ]
    header = ("weight", "n", "shape", "dtype", *columns)
    lines: list[str] = [table(header, rows, right=(1,))] if rows else []
    if hidden:
        lines.append(f"  {hidden} other initializers: no matrix product's weight ({_NO_PRODUCT})")
    return block(["weights", *lines] if lines else [])


_NO_PRODUCT = "O24-110"


def _group_name(lines: Sequence[WeightLine]) -> str:
    """A name with * where the names of the group have different numbers; where nothing but the
    number is left, the first and the last."""
    scope = f"{lines[0].scope}::" if lines[0].scope else ""
    pieces = zip(*(_DIGITS.split(line.name) for line in lines), strict=True)
    name = "".join(piece[0] if len(set(piece)) == 1 else "*" for piece in pieces)
    return scope + (f"{lines[0].name} … {lines[-1].name}" if name == "*" else name)


def _telling_passes(lines: Sequence[WeightLine]) -> list[str]:
    """Passes that did something with any of the weights; what was only refused stands below."""
    done = {step.pass_name for line in lines for step in line.steps if step.action != "refused"}
    every = dict.fromkeys(step.pass_name for line in lines for step in line.steps)
    return [name for name in every if name in done]


def _fate(line: WeightLine, pass_name: str) -> str:
    """What a pass did with a weight, or the code with which it refused."""
    said = dict.fromkeys(
        step.code if step.action == "refused" else step.action
        for step in line.steps
        if step.pass_name == pass_name
    )
    return "/".join(said)


def _solved(report: Report) -> Block:
    """The layers that were solved on calibration data: what they err on held-back samples, beside
    what magnitude would; the worst first."""
    found = [
        (line, step)
        for line in report.weights
        for step in line.steps
        if "output_error" in step.facts
    ]
    found.sort(key=lambda pair: -pair[1].facts["output_error"])
    rows = [
        (
            line.name,
            *(f"{step.facts[key]:,}" for key in ("rows", "columns")),
            *(f"{step.facts[key]:.1%}" for key in ("output_error", "output_error_magnitude")),
            f"{step.facts['energy_kept']:.1%}",
        )
        for line, step in found[:_SOLVED_SHOWN]
    ]
    if not rows:
        return Block()
    heads = ("layer", "rows", "K", "error", "by magnitude", "energy kept")
    title = "output error of each solved layer, on held-back samples"
    lines = [title, table(heads, rows, right=(1, 2, 3, 4, 5))]
    if more := len(found) - len(rows):
        lines.append(f"  … and {more} better ones (all are in the JSON report)")
    return block(lines)


_SOLVED_SHOWN = 12


def _refusals(report: Report) -> Block:
    """What was refused, counted by code, with a reason."""
    refused = [r for r in _all_records(report) if r.action == "refused" and r.code != _NO_PRODUCT]
    groups: dict[tuple[str, str], list[SiteRecord]] = {}
    for record in refused:
        groups.setdefault((record.code, record.pass_name), []).append(record)
    if not groups:
        return Block()
    rows = [
        (code, pass_name, str(len(records)), CODES[code].title, _example(records))
        for (code, pass_name), records in sorted(groups.items())
    ]
    found = table(
        ("code", "pass", "n", "why", "for instance"),
        rows,
        right=(2,),
        whole=(3,),  # "… is not a multiple of 4" must not lose its "not"
        prose=(4,),
    )
    return block(["refused", found])


def _example(records: Sequence[SiteRecord]) -> str:
    record = records[0]
    return f"{record.weight or record.node}: {record.reason}" if record.reason else record.weight


def _recovery(report: Report) -> Block:
    if report.recovery is None:
        return Block()
    seconds = report.run.get("recovery", {}).get("seconds", 0.0)
    return block(["trained back to the original's outputs", *_indented(report.recovery, seconds)])


def _indented(recovery: Mapping[str, Any], seconds: float) -> list[str]:
    return [f"  {line}" for line in recovery_text(recovery, seconds).splitlines()]


def _comparison(report: Report) -> Block:
    if report.comparison is None:
        return Block()
    limits = render_limits(report.limits) if report.limits else ""
    return paragraphs([render_comparison(report.comparison), limits])


def render_limits(limits: Sequence[LimitResult]) -> Block:
    """Every limit with the worst output under it."""
    rows = [
        (
            str(r.limit),
            number_text(r.value),
            r.required,
            r.output,
            f"{r.compared} of {r.runs}",
            "met" if r.met else "NOT MET",
        )
        for r in limits
    ]
    header = ("limit", "measured", "required", "output", "runs", "")
    return block(["limits", table(header, rows, right=(1,))])


def render_comparison(comparison: Mapping[str, Any], of: str = "") -> Block:
    """The document of a numeric comparison as a table."""
    rows = [
        row
        for out in comparison["outputs"]
        for row in (_output_row(out), *_faint_rows(out.get("faint")))
    ]
    header = ("output", "shape", "max abs", "rel L2", "cosine", "SQNR dB", "same top-1", "runs")
    title = f"{of}original and result on {comparison['samples']} samples"
    return block([title, table(header, rows, right=(2, 3, 4, 5, 6, 7))])


def _output_row(out: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(out["name"]),
        shape_text(out.get("shape") or ()),
        number_text(_float(out.get("max_abs"))),
        number_text(_float(out.get("rel_l2"))),
        number_text(_float(out.get("cosine")), 6),
        number_text(_float(out.get("sqnr_db"))),
        number_text(_float(out.get("top1_agreement"))),
        f"{out['compared']} of {out['runs']}",
    )


def _faint_rows(faint: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
    """Of the channels that the output's own numbers hide."""
    if faint is not None:
        rel_l2, sqnr = (number_text(_float(faint[key])) for key in ("rel_l2", "sqnr_db"))
        yield (
            "  small channels",
            f"{faint['channels']} of {faint['of']}",
            "",
            rel_l2,
            "",
            sqnr,
            "",
            "",
        )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _backend(report: Report) -> Block:
    backend = report.backend
    if backend is None:
        return Block()
    if "error" in backend:
        return block(["engine", f"  none: {backend['backend']} failed, see the error below"])
    seconds = report.run.get("backend", {}).get("seconds")
    lines = [
        f"  {backend['engine']}  {bytes_text(backend['engine_bytes'])}",
        f"  {backend['backend']} {backend['version']} for {backend['target']}"
        + (f", {seconds:.1f} s" if seconds is not None else ""),
        f"  {len(backend['layers'])} layers; {sparse_layers(backend['sparsity'])}",
    ]
    for note in backend.get("diagnostics", ()):
        lines += _wrapped(f"  {note['severity']}: {note['message']} ({note['code']})", "    ")
    return block(["engine", *lines])


def sparse_layers(sparsity: Mapping[str, Any]) -> str:
    """Eligible is not chosen, and the builder may say neither."""
    eligible, chosen = sparsity.get("eligible"), sparsity.get("chosen")
    counts = sparsity.get("counts")
    if eligible is None and chosen is None and counts is None:
        return "the builder does not say which layers it runs sparse"
    if counts is not None:
        return f"{counts[0]} eligible for sparse kernels, {counts[1]} chosen"
    return f"{len(eligible or ())} eligible for sparse kernels, {len(chosen or ())} chosen"


def _warnings(report: Report) -> Block:
    texts = "\n".join(aggregate(report.at_least(Severity.WARNING)))
    lines = []
    for line in texts.splitlines():
        indent = "  " if not line.startswith(" ") else "    "
        lines += _wrapped(line, indent) or [line]
    return block(lines)


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most 100 columns; names are not cut."""
    own = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.strip(),
        WIDTH,
        initial_indent=own,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
