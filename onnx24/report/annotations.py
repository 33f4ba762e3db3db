"""Results of `check` as GitHub's workflow commands, which a pull request shows as annotations.

*Source:* GitHub documentation, workflow commands: the message escapes %, CR and LF, a property the
colon and the comma as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx24.codes import CODES
from onnx24.diagnostics import Diagnostic, Severity
from onnx24.lines import shown
from onnx24.report.checked import Checked

_COMMANDS = {Severity.NOTE: "notice", Severity.WARNING: "warning", Severity.ERROR: "error"}


def render_annotations(results: Sequence[Checked]) -> str:
    """One line for each finding."""
    lines = [
        f"::{_COMMANDS[finding.severity]} file={_property(result.file)},"
        f"title={_property(f'{finding.code} {CODES[finding.code].title}')}::{_message(finding)}"
        for result in results
        for finding in result.all_findings
    ]
    return "".join(f"{line}\n" for line in lines)


def _message(finding: Diagnostic) -> str:
    place = str(replace(finding.where, file=""))
    text = f"{place}: {finding.message}" if place else finding.message
    return _escaped([text, *finding.hint.split("\n")] if finding.hint else [text])


def _escaped(lines: list[str]) -> str:
    return "%0A".join(shown(line).replace("%", "%25") for line in lines)


def _property(text: str) -> str:
    return _escaped([text]).replace(":", "%3A").replace(",", "%2C")
