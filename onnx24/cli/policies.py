"""`check`: whether models are what a policy says."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from onnx24.cli import options as o
from onnx24.cli.command import Command
from onnx24.cli.console import Console
from onnx24.cli.files import (
    STANDARD_STREAM,
    standard_input,
    write_text,
)
from onnx24.cli.options import flag

if TYPE_CHECKING:
    from onnx24.diagnostics import Severity
    from onnx24.report.checked import Checked


@dataclass(frozen=True, kw_only=True)
class Check(Command):
    """Hold models to a policy; exit code 1 where one is not met, 2 where a file is refused.

    Each file is read in a process of its own with limits of memory and time, so that hostile ones
    do no harm. A policy is a TOML file, docs/policy.md is its manual: what is not written is not
    checked, and unknown keys are refused.
    """

    models: Annotated[
        list[str],
        o.argument(
            "MODEL...",
            "Models: paths, patterns ('models/**/*.onnx'), folders, an OCI image layout; '-' reads "
            "standard input.",
        ),
    ]
    policy: Annotated[
        str | None,
        flag(
            "--policy",
            "FILE",
            "A TOML policy (docs/policy.md), or a preset: tensorrt-importable, sparse-int8, "
            "registry-strict. Default: a valid model whose recorded and eligible weights are all "
            "2:4.",
        ),
    ] = None
    target: o.TargetName = o.DEFAULT_TARGET
    format: Annotated[
        Literal["text", "json", "sarif", "junit", "github"],
        flag("--format", "", "The form of the result."),
    ] = "text"
    output: Annotated[
        str | None, flag("--output,-o", "FILE", "Write the result there."), o.WRITES
    ] = None
    baseline: Annotated[
        str | None, flag("--baseline", "FILE", "Findings that are known and accepted.")
    ] = None
    write_baseline: Annotated[
        str | None,
        flag("--write-baseline", "FILE", "Accept what is found, in FILE."),
        o.WRITES,
    ] = None
    explain: Annotated[bool, flag("--explain", "", "Explain every code that occurs.")] = False
    jobs: Annotated[int, flag("--jobs", "N", "Models checked at a time; 0: one a core.", min=0)] = 0
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.checking import policy_of
        from onnx24.gate.baseline import write_baseline
        from onnx24.gate.verdicts import fail_on, raise_problem
        from onnx24.report.checked import worst

        form = "json" if self.json else self.format
        policy = policy_of(self.policy)
        results = self._judged()
        if len(results) == 1 and form in ("text", "json"):
            raise_problem(results[0])
        if self.write_baseline is not None:
            count = write_baseline(self.write_baseline, results)
            Console().note(f"{self.write_baseline}: {count} findings accepted")
        text = _rendered(form, results, fail_on(policy), explain=self.explain)
        if self.output is None or self.output == STANDARD_STREAM:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            write_text(self.output, text)
        return worst([result.exit_code for result in results])

    def _judged(self) -> list[Checked]:
        from onnx24.driver.checking import check_files

        passed_over: list[str] = []
        with tempfile.TemporaryDirectory(prefix="onnx24-") as folder:
            kept = str(Path(folder) / "stdin.onnx")
            if STANDARD_STREAM in self.models:
                Path(kept).write_bytes(standard_input())
            results = check_files(
                [kept if model == STANDARD_STREAM else model for model in self.models],
                policy=self.policy,
                target=self.target,
                baseline=self.baseline,
                jobs=self.jobs,
                names={kept: STANDARD_STREAM},
                passed_over=passed_over,
                progress=Console(),
            )
        for text in passed_over:
            Console().note(f"not judged: {text}")
        return results


def _rendered(form: str, results: Sequence[Checked], threshold: Severity, *, explain: bool) -> str:
    from onnx24.report.annotations import render_annotations
    from onnx24.report.checktext import document, one_document, render_text
    from onnx24.report.jsontext import json_text
    from onnx24.report.junit import render_junit
    from onnx24.report.sarif import render_sarif

    if form == "json":
        one = len(results) == 1
        found = (
            one_document(results[0], explain=explain) if one else document(results, explain=explain)
        )
        return json_text(found, ascii_only=True)
    if form == "sarif":
        return render_sarif(results)
    if form == "junit":
        return render_junit(results, fail_on=threshold)
    if form == "github":
        return render_annotations(results)
    return render_text(results, explain=explain) + "\n"
