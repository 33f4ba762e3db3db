"""Exceptions, one class per exit code of the command-line contract.

Every exception carries diagnostics; its text is what the user reads. A *bad model* is a
diagnostic, a *bad call* is an exception, and both end here when nothing can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from onnx24.diagnostics import Diagnostic, Severity, diagnostic

E = TypeVar("E", bound="Onnx24Error")


class Onnx24Error(Exception):
    """Base class; `exit_code` is the process exit code it leads to."""

    exit_code: ClassVar[int] = 70
    result: Any = None
    """What there is of a job's result, where its work was done and only its end was refused."""

    def __init__(self, diagnostics: Diagnostic | Sequence[Diagnostic]) -> None:
        items = [diagnostics] if isinstance(diagnostics, Diagnostic) else list(diagnostics)
        self.diagnostics: list[Diagnostic] = items
        super().__init__("\n".join(d.render() for d in items))

    @classmethod
    def of(cls: type[E], code: str, message: str, **where_facts_hint: Any) -> E:
        """`raise InputError.of("O24-002", "…", file=path)`; keywords as `diagnostic()`."""
        where_facts_hint.setdefault("severity", Severity.ERROR)
        return cls(diagnostic(code, message, **where_facts_hint))

    @property
    def code(self) -> str:
        return self.diagnostics[0].code


class NotMetError(Onnx24Error):
    """A policy, tolerance or comparison was not met."""

    exit_code = 1


class InputError(Onnx24Error):
    """Wrong usage or bad input: a model, a pipeline text, calibration data, an output path."""

    exit_code = 2


class BackendError(Onnx24Error):
    """A backend is missing, refused the model, crashed or timed out."""

    exit_code = 3


class InternalError(Onnx24Error):
    """Our own fault. `reproducer` names the folder that replays it, where one was written;
    `write_reproducer(folder)` writes one there, where a pass failed."""

    exit_code = 70
    reproducer: str | None = None
    write_reproducer: Callable[[Path], Path] | None = None
