"""`inspect` and `check`: what a model is, and whether that is what it should be."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from onnx24 import __version__, targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.invariants import broken_claims
from onnx24.cli.console import Console
from onnx24.cli.failure import usage
from onnx24.cli.files import STANDARD_STREAM, Source, check_output
from onnx24.cli.nearest import did_you_mean
from onnx24.ir.files import atomic_write
from onnx24.ir.verify import verify
from onnx24.report.aggregate import aggregate
from onnx24.report.inspection import inspect, render_inspection
from onnx24.report.jsontext import json_text
from onnx24.report.model import ModelFacts
from onnx24.report.policy import BUILT_IN, Facts, Policy, findings, read_policy
from onnx24.report.table import WIDTH, share_text

FORMATS = ("text", "json")


def inspect_model(model: str, target: str, *, show_all: bool, as_json: bool) -> int:
    """Returns: 0. Raises: InputError."""
    row = targets.load(target)
    found = inspect(Source(model).load(), row, model)
    text = render_inspection(found, show_all=show_all, width=_width())
    Console(as_json=as_json).report(text, found)
    return 0


def _width() -> int:
    """Columns of a table: those of the terminal within reason, and always the same in a file."""
    if not sys.stdout.isatty():
        return WIDTH
    return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, 80), 160)


def check_model(
    path: str, policy_path: str | None, target: str, *, form: str, output: str | None
) -> int:
    """Returns: 0, or 1 where the policy is not met. Raises: InputError."""
    if form not in FORMATS:
        near = did_you_mean(form, FORMATS)
        raise usage(f"--format {form}: expected one of {', '.join(FORMATS)}", f"{near}see --help")
    source = Source(path)
    if output is not None and output != STANDARD_STREAM:
        check_output(output, source)
    policy = BUILT_IN if policy_path is None else read_policy(policy_path)
    row = targets.load(target)
    model = source.load()
    seen = inspect(model, row, path)
    facts = Facts(
        file=path,
        opset=model.opset,
        nbytes=ModelFacts.of(model, path).nbytes,
        eligible_elements=seen.eligible_elements,
        sparse_elements=seen.sparse_elements,
        broken_claims=tuple(broken_claims(model, AnalysisCache())),
        problems=tuple(verify(model)),
    )
    found = findings(policy, facts)
    document: dict[str, Any] = {
        "tool": {"name": "onnx24", "version": __version__},
        "file": path,
        "target": row.name,
        "policy": {"name": policy.name, **policy.rules()},
        "met": not found,
        "coverage": facts.coverage,
        "opset": facts.opset,
        "bytes": facts.nbytes,
        "findings": [finding.to_json() for finding in found],
    }
    text = _text(policy, facts, found)
    if output is not None and output != STANDARD_STREAM:
        with atomic_write(output) as file:
            file.write((json_text(document) if form == "json" else text).encode("utf-8"))
    else:
        Console(as_json=form == "json").report(text, document)
    return 1 if found else 0


def _text(policy: Policy, facts: Facts, found: list[Any]) -> str:
    verdict = "met" if not found else "NOT met"
    lines = [f"{facts.file}: policy {policy.name} {verdict}", *aggregate(found)]
    if not found:
        share = share_text(facts.sparse_elements, facts.eligible_elements)
        lines.append(f"  {share} of the eligible elements are in 2:4 weights; opset {facts.opset}")
    return "\n".join(lines) + "\n"
