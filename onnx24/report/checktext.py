"""Results of `check` for a terminal, and as one JSON document."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from onnx24 import __version__
from onnx24.codes import CODES
from onnx24.lines import Block, block
from onnx24.report.aggregate import aggregate
from onnx24.report.checked import Checked
from onnx24.report.jsontext import plain
from onnx24.report.table import WIDTH, share_text

_ORDER = ("met", "not met", "refused", "backend missing", "internal error")


def render_text(results: Sequence[Checked], *, explain: bool = False) -> Block:
    """A verdict and the findings for each model, then a summary where there are several."""
    parts = [_one(result) for result in results]
    if explain:
        codes = dict.fromkeys(d.code for result in results for d in result.all_findings)
        parts += [_explained(code) for code in codes]
    if len(results) > 1:
        parts.append(_summary(results))
    return block(parts)


def _one(result: Checked) -> Block:
    verdict = "met" if result.met else "NOT met"
    if result.problem:
        verdict = f"not judged ({result.status})"
    lines = [f"{result.file}: policy {result.policy} {verdict}", *aggregate(result.all_findings)]
    if result.met:
        facts = result.facts
        share = share_text(facts["sparse_elements"], facts["eligible_elements"])
        lines.append(
            f"  {share} of the eligible elements are in 2:4 weights; opset {facts['opset']}"
        )
    if result.accepted:
        lines.append(f"  {len(result.accepted)} findings are accepted by the baseline")
    return block(lines)


def _explained(code: str) -> Block:
    entry = CODES[code]
    text = f"{code} {entry.title}: {entry.explanation}"
    return block(textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    "))


def _summary(results: Sequence[Checked]) -> str:
    counts = Counter(result.status for result in results)
    said = ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])
    return f"{len(results)} models: {said}"


def one_document(result: Checked, *, explain: bool = False) -> dict[str, Any]:
    """The document of one model."""
    document = {"tool": {"name": "onnx24", "version": __version__}, **result.to_json()}
    if explain:
        document["explanations"] = _explanations([result])
    return document


def document(results: Sequence[Checked], *, explain: bool = False) -> dict[str, Any]:
    """The document of several models."""
    out: dict[str, Any] = {
        "tool": {"name": "onnx24", "version": __version__},
        "met": all(result.met for result in results),
        "summary": dict(Counter(result.status for result in results)),
        "models": [result.to_json() for result in results],
    }
    if explain:
        out["explanations"] = _explanations(results)
    return plain(out)


def _explanations(results: Sequence[Checked]) -> dict[str, Any]:
    codes = dict.fromkeys(d.code for result in results for d in result.all_findings)
    return {code: dict(vars(CODES[code])) for code in codes}
