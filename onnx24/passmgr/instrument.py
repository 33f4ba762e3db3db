"""What watches the passes: verification, dumps, time and memory. What they do to the outputs is
watched by `passmgr.guard`.

Instruments nest. Before a pass they are called from the outermost to the innermost, after it in
reverse. Each instrument whose `before_pass` returned gets exactly one of `after_pass` and
`on_error`; the latter where the pass, or an instrument further inside, failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from onnx24.diagnostics import Diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError, InternalError
from onnx24.ir.files import atomic_write
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.text import dump
from onnx24.ir.verify import Interface, verify
from onnx24.passmgr.base import Context, Pass
from onnx24.passmgr.options import to_text


@dataclass
class Step:
    """One pass that is about to run, runs, or has run.

    index: its position in the pipeline, from 0. changed: None until it has run.
    """

    index: int
    instance: Pass
    model: Model
    context: Context
    changed: Effects | None = None
    seconds: float = 0.0
    peak_bytes: int | None = None

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def text(self) -> str:
        return to_text(self.instance)


class Instrument:
    """Does nothing. `depth` orders the instruments of a run: the larger, the closer to the
    pass; equal ones keep the caller's order."""

    depth: ClassVar[int] = 20

    def before_pipeline(self, model: Model, context: Context) -> None:
        """Called once, before the first pass."""

    def before_pass(self, step: Step) -> None: ...

    def after_pass(self, step: Step) -> None: ...

    def on_error(self, step: Step, err: BaseException) -> None:
        """The model is still as the failure left it; it is rolled back afterwards."""

    def rolled_back(self, model: Model, context: Context) -> None:
        """The model is back in an earlier state; passes after that count as never run."""


class Ledger(Instrument):
    """Keeps the run's context, so that its diagnostics, records and sites can be read after a
    failure too."""

    context: Context

    def before_pipeline(self, model: Model, context: Context) -> None:
        self.context = context


class VerifyEach(Instrument):
    """The invariants of ir/verify.py, and 2:4 of the recorded weights in the values that their
    consumers see, after every pass that changed something. What was wrong with the input is not
    held against a pass: neither an invalid document, nor a weight whose record is stale (other
    tools keep the metadata and change the weights), wherever a pass moves that record.

    Raises: InternalError O24-800 to O24-807.
    """

    depth = 10

    def before_pipeline(self, model: Model, context: Context) -> None:
        self._interface = Interface.of(model)
        found = self._problems(model, context)
        self._known = {_identity(p) for p in found}
        self._stale = _broken_records(found)
        self._records = set(model.claims.keys())

    def rolled_back(self, model: Model, context: Context) -> None:
        found = self._problems(model, context)
        self._stale, self._records = _broken_records(found), set(model.claims.keys())

    def after_pass(self, step: Step) -> None:
        if step.changed == Effects.NONE:
            return
        assert step.changed is not None
        found = self._problems(step.model, step.context, step.changed)
        records = set(step.model.claims.keys())
        broken = _broken_records(found)
        stale = broken & self._stale
        # One stale record that went excuses one that came: the pass moved it.
        arrived = sorted(broken & (records - self._records))
        stale |= set(arrived[: len(self._stale - records)])
        self._stale, self._records = stale, records
        problems = [
            replace(p, message=f"after pass {step.name!r}: {p.message}", pass_name=step.name)
            for p in found
            if _identity(p) not in self._known and _record_of(p) not in stale
        ]
        if problems:
            raise InternalError(problems)

    def _problems(
        self, model: Model, context: Context, changed: Effects = Effects.STRUCTURE
    ) -> list[Diagnostic]:
        problems = verify(model, self._interface, changed=changed)
        if problems or not len(model.claims):
            return problems
        from onnx24.analysis.invariants import broken_claims

        return broken_claims(model, context.analyses)


def _record_of(problem: Diagnostic) -> ValueKey | None:
    if problem.code != "O24-807":
        return None
    return ValueKey(problem.where.scope, problem.where.tensor)


def _broken_records(problems: list[Diagnostic]) -> set[ValueKey]:
    return {key for key in map(_record_of, problems) if key is not None}


def _identity(problem: Diagnostic) -> tuple[str, str, str]:
    return problem.code, str(problem.where), problem.message


class Dump(Instrument):
    """Numbered files of the model as text, `001-prune24.after.txt`, and as ONNX on request.

    before: also before each pass. after: after each pass, or only where it changed something.
    A failing pass leaves `NNN-name.failed.txt`.
    Raises: InputError O24-040.
    """

    def __init__(
        self,
        folder: Path,
        *,
        before: bool = False,
        after: Literal["always", "change", "never"] = "change",
        onnx: bool = False,
    ) -> None:
        self.folder = folder
        self.before = before
        self.after = after
        self.onnx = onnx

    def before_pipeline(self, model: Model, context: Context) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise InputError.of(
                "O24-040", f"cannot write: {err.strerror}", file=str(self.folder)
            ) from err
        self._write(model, "000-input")

    def before_pass(self, step: Step) -> None:
        if self.before:
            self._write(step.model, f"{self._stem(step)}.before")

    def after_pass(self, step: Step) -> None:
        if self.after == "always" or (self.after == "change" and step.changed != Effects.NONE):
            self._write(step.model, f"{self._stem(step)}.after")

    def on_error(self, step: Step, err: BaseException) -> None:
        if isinstance(err, Exception):
            self._write_text(
                f"{self._stem(step)}.failed", f"{_dump_of_a_wreck(step.model)}\n{err}\n"
            )

    @staticmethod
    def _stem(step: Step) -> str:
        return f"{step.index + 1:03d}-{step.name}"

    def _write(self, model: Model, stem: str) -> None:
        self._write_text(stem, dump(model))
        if self.onnx:
            model.save(self.folder / f"{stem}.onnx")

    def _write_text(self, stem: str, text: str) -> None:
        with atomic_write(self.folder / f"{stem}.txt") as file:
            file.write(text.encode())


def _dump_of_a_wreck(model: Model) -> str:
    """The text of a model that a failing pass may have left in any state."""
    try:
        return dump(model)
    except Exception as err:  # noqa: BLE001 - the pass's failure matters, not that of its dump
        return f"(the model cannot be printed: {type(err).__name__}: {err})"


class PrintAfter(Instrument):
    """Hands the model's text to `write` after the named passes; after all that changed
    something where no name is given."""

    def __init__(self, write: Callable[[str], Any], names: Collection[str] = ()) -> None:
        self.write = write
        self.names = names

    def after_pass(self, step: Step) -> None:
        wanted = step.name in self.names if self.names else step.changed != Effects.NONE
        if wanted:
            self.write(f"// after {step.index + 1}: {step.text}\n{dump(step.model)}")


@dataclass(frozen=True)
class Measurement:
    """text: the pass. peak_bytes: the process's peak resident size [bytes], mapped weights
    included; None where the system does not say. before_bytes: the size when it began."""

    text: str
    seconds: float
    before_bytes: int | None
    peak_bytes: int | None


class Timing(Instrument):
    """Time and peak memory of each pass.

    Source: proc_pid_clear_refs(5): writing 5 resets VmHWM of proc_pid_status(5), so that the
    peak is the pass's own. Where that is not possible, no peak is given rather than the peak of
    the whole process.
    """

    depth = 30

    def __init__(self) -> None:
        self.rows: list[Measurement] = []
        self._before: int | None = None

    def before_pass(self, step: Step) -> None:
        self._before = _status_bytes("VmRSS") if _reset_peak() else None

    def after_pass(self, step: Step) -> None:
        if self._before is not None:
            step.peak_bytes = _status_bytes("VmHWM")
        self.rows.append(Measurement(step.text, step.seconds, self._before, step.peak_bytes))

    def render(self) -> str:
        """A table, one pass a line, the sum below."""
        lines = [f"{'seconds':>9}  {'peak MiB':>9}  {'growth MiB':>10}  pass"]
        for row in self.rows:
            peak, growth = "-", "-"
            if row.peak_bytes is not None and row.before_bytes is not None:
                peak = f"{row.peak_bytes / 2**20:.1f}"
                growth = f"{(row.peak_bytes - row.before_bytes) / 2**20:.1f}"
            lines.append(f"{row.seconds:9.3f}  {peak:>9}  {growth:>10}  {row.text}")
        lines.append(f"{sum(row.seconds for row in self.rows):9.3f}  {'':>9}  {'':>10}  in all")
        return "\n".join(lines) + "\n"


def _reset_peak() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status, which counts in kB [bytes]."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
