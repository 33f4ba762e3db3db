"""The commands that only look: `inspect`, `compare`, `diff`, `verify-provenance`, `bisect`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from onnx24.cli import options as o
from onnx24.cli.command import Command
from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, source_of, write_text
from onnx24.cli.options import flag
from onnx24.driver.usage import usage
from onnx24.lines import shown

if TYPE_CHECKING:
    from onnx24.passmgr.bisect import Probe


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """List every weight: shape, reduction axis, 2:4 or not, eligible or why not."""

    model: o.ModelPath
    target: o.TargetName = o.DEFAULT_TARGET
    all: Annotated[
        bool, flag("--all", "", "Also initializers that are no matrix product's weight.")
    ] = False
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.looking import inspect
        from onnx24.report.inspection import render_inspection

        found = inspect(source_of(self.model), target=self.target)
        text = render_inspection(found, show_all=self.all, width=_width())
        Console(as_json=self.json).report(text, found)
        return 0


def _width() -> int:
    """Columns of a table: those of the terminal within reason, and always the same in a file."""
    from onnx24.report.table import WIDTH

    if not sys.stdout.isatty():
        return WIDTH
    return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, 80), 160)


def _check_streams(a: str, b: str) -> None:
    if a == b == STANDARD_STREAM:
        raise usage("both models are standard input", "give one of them a path")


@dataclass(frozen=True, kw_only=True)
class Compare(o.ImageFlags, Command):
    """Run two models on the same data and compare their outputs."""

    a: Annotated[str, o.argument("A", "The original model.")]
    b: Annotated[str, o.argument("B", "The model to compare with it.")]
    data: Annotated[
        str | None,
        flag(
            "--data",
            "DATA",
            f"{o.DATA_FORMS} Default: the test_data_set_* folders beside A.",
        ),
    ] = None
    seed: o.Seed = 0
    shapes: o.Shapes = None
    layers: Annotated[
        bool,
        flag(
            "--layers",
            "",
            "Also every inner value that both models compute under the same name.",
        ),
    ] = False
    max_drop: o.MaxDrop = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.comparing import compare

        _check_streams(self.a, self.b)
        console = Console(as_json=self.json)
        found = compare(
            source_of(self.a),
            source_of(self.b),
            self.samples(self.data),
            seed=self.seed,
            shapes=self.shapes,
            layers=self.layers,
            max_drop=self.max_drop,
            progress=console,
        )
        console.found(found)
        return 0 if found.met else 1


@dataclass(frozen=True, kw_only=True)
class Diff(Command):
    """Say how two models differ: nodes, initializers and their values, interface, metadata."""

    a: Annotated[str, o.argument("A", "The one model.")]
    b: Annotated[str, o.argument("B", "The other model.")]
    exit_code: Annotated[bool, flag("--exit-code", "", "Exit code 1 where the models differ.")] = (
        False
    )
    html: Annotated[
        str | None, flag("--html", "FILE", "Write the difference as a page, too."), o.WRITES
    ] = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.looking import diff
        from onnx24.report.diff import render_diff

        _check_streams(self.a, self.b)
        if self.html == STANDARD_STREAM:
            raise usage("--html -", "name a file")
        result = diff(source_of(self.a), source_of(self.b))
        if self.html is not None:
            from onnx24.report.diffhtml import render_diff_html

            write_text(self.html, render_diff_html(result, self.a, self.b))
        Console(as_json=self.json).report(render_diff(result), result)
        return 1 if self.exit_code and not result.is_empty else 0


@dataclass(frozen=True, kw_only=True)
class VerifyProvenance(Command):
    """Say what made a model and of what; exit code 1 where the record does not hold.

    The record lies in the model's metadata. It shows that nobody changed the model by accident;
    whoever changes it on purpose can change the record too: for that there is `onnx24 sign`.
    """

    model: o.ModelPath
    input: Annotated[
        str | None, flag("--input", "ORIGINAL", "The model that it should have been made of.")
    ] = None
    report: Annotated[
        str | None, flag("--report", "FILE.json", "The report that the run should have written.")
    ] = None
    signed_by: Annotated[
        str | None,
        flag("--signed-by", "KEYS", "Public keys, in PEM; one of them must have signed it."),
    ] = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.proving import verify_provenance

        original = None if self.input is None else source_of(self.input)
        proof = verify_provenance(source_of(self.model), original, self.report, self.signed_by)
        Console(as_json=self.json).found(proof)
        return 0 if proof.holds else 1


@dataclass(frozen=True, kw_only=True)
class Bisect(Command):
    """Find the layer or weight whose transformation breaks a model.

    The judge is --command, or --max-drop on --data (rel-l2=0.1 unless given); without either, a
    model is bad where a pass fails or ONNX Runtime refuses the result. Exit code 1 where the
    model is bad before anything is transformed.
    """

    model: o.ModelPath
    pipeline: Annotated[str, flag("--pipeline", "TEXT", "The passes to search.")]
    target: o.TargetName = o.DEFAULT_TARGET
    calib: o.Calib = None
    data: o.Data = None
    seed: o.Seed = 0
    shapes: o.Shapes = None
    max_drop: o.MaxDrop = None
    command: Annotated[
        str | None,
        flag(
            "--command",
            "CMD",
            "A shell command that judges instead: good is exit code 0. {model} in it stands for "
            "the model's path.",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        flag("--timeout", "SECONDS", "A --command that runs longer is bad.", min=0.001),
    ] = None
    verify: o.Verify = True
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.bisecting import bisect

        console = Console(as_json=self.json)
        result = bisect(
            source_of(self.model),
            self.pipeline,
            target=self.target,
            calib=self.calib,
            data=self.data,
            seed=self.seed,
            shapes=self.shapes,
            max_drop=self.max_drop,
            judge=self.command,
            timeout=self.timeout,
            verify=self.verify,
            on_probe=lambda probe: console.note(_probe_text(probe)),
        )
        console.report(shown(str(result)), result)
        return 1 if result.verdict == "bad-before" else 0


def _probe_text(probe: Probe) -> str:
    verdict = "good" if probe.outcome.good else "bad"
    sites = f"{probe.sites} site{'' if probe.sites == 1 else 's'}"
    return f"  {sites}: {verdict}" + (f" ({probe.outcome.detail})" if probe.outcome.detail else "")
