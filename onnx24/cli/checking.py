"""`check`: whether models are what a policy says."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx24 import targets
from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, check_distinct, check_output
from onnx24.diagnostics import Severity
from onnx24.driver.usage import usage
from onnx24.gate.baseline import read_baseline, write_baseline
from onnx24.gate.sandbox import Sandbox
from onnx24.gate.sources import ModelFile, Sources
from onnx24.gate.verdicts import fail_on, raise_problem
from onnx24.ir.files import atomic_write
from onnx24.passmgr.options import did_you_mean
from onnx24.report.annotations import render_annotations
from onnx24.report.checked import Checked, worst
from onnx24.report.checktext import document, one_document, render_text
from onnx24.report.jsontext import json_text
from onnx24.report.junit import render_junit
from onnx24.report.policy import BUILT_IN, Policy, read_policy
from onnx24.report.sarif import render_sarif

FORMATS = ("text", "json", "sarif", "junit", "github")


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """`check`, as the user wrote it. jobs 0: as many as there are cores."""

    models: tuple[str, ...]
    policy: str | None
    target: str
    form: str = "text"
    output: str | None = None
    baseline: str | None = None
    write_baseline: str | None = None
    explain: bool = False
    jobs: int = 0


def check_models(request: CheckRequest) -> int:
    """Returns: the worst exit code of the models. Raises: InputError, also for a single model that
    cannot be judged where the format has no other place to say so."""
    if request.form not in FORMATS:
        near = did_you_mean(request.form, FORMATS, begins=True)
        raise usage(
            f"--format {request.form}: expected one of {', '.join(FORMATS)}", f"{near}see --help"
        )
    for output in (request.output, request.write_baseline):
        if output is not None and output != STANDARD_STREAM:
            for model in request.models:
                check_output(output, model)
    check_distinct([("-o", request.output), ("--write-baseline", request.write_baseline)])
    policy = BUILT_IN if request.policy is None else read_policy(request.policy)
    targets.load(policy.target or request.target)
    known = frozenset[str]() if request.baseline is None else read_baseline(request.baseline)

    results = _judged(request, policy, known)
    if len(results) == 1 and request.form in ("text", "json"):
        raise_problem(results[0])
    if request.write_baseline is not None:
        count = write_baseline(request.write_baseline, results)
        Console().note(f"{request.write_baseline}: {count} findings accepted")
    text = _rendered(request, results, fail_on(policy))
    if request.output is None or request.output == STANDARD_STREAM:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        with atomic_write(request.output) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return worst([result.exit_code for result in results])


def _judged(request: CheckRequest, policy: Policy, known: frozenset[str]) -> list[Checked]:
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="onnx24-") as folder,
        Sources(_without_stdin(request.models, folder)) as files,
    ):
        shown = [
            ModelFile(file.path, STANDARD_STREAM) if file.path.startswith(folder) else file
            for file in files
        ]
        with Sandbox(policy, request.target, jobs=request.jobs or _cores()) as sandbox:
            judged = sandbox.judge_all(shown)
            return [
                result.accepting(known, fail_on(policy))
                for result in console.progress(judged, "checking", total=len(shown))
            ]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _without_stdin(models: Sequence[str], folder: str) -> list[str]:
    """The arguments with "-" replaced by a file that holds standard input."""
    if STANDARD_STREAM not in models:
        return list(models)
    if sys.stdin.isatty():
        raise usage("standard input is a terminal", "pipe a model in, or give a path")
    path = Path(folder) / "stdin.onnx"
    path.write_bytes(sys.stdin.buffer.read())
    return [str(path) if model == STANDARD_STREAM else model for model in models]


def _rendered(request: CheckRequest, results: Sequence[Checked], threshold: Severity) -> str:
    if request.form == "json":
        found = (
            one_document(results[0], explain=request.explain)
            if len(results) == 1
            else document(results, explain=request.explain)
        )
        return json_text(found, ascii_only=True)
    if request.form == "sarif":
        return render_sarif(results)
    if request.form == "junit":
        return render_junit(results, fail_on=threshold)
    if request.form == "github":
        return render_annotations(results)
    return render_text(results, explain=request.explain)
