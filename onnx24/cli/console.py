"""What a command says and where: one JSON document or text on stdout, everything else on stderr.

A command that makes a model keeps stdout for the model (`-o -`) or the JSON document and says the
rest on stderr; a command that only reports says it on stdout.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

    from onnx24.diagnostics import Diagnostic
    from onnx24.driver.result import Documented, MadeAndDocumented
    from onnx24.lines import Block


T = TypeVar("T")

BAR_AFTER_S = 1.0
"""A bar that would vanish at once only flickers."""


def _lines(text: str) -> str:
    from onnx24.lines import shown

    return shown(text) + "\n"


class Console:
    """The streams of one command. `as_json`: stdout carries one JSON document and no text."""

    def __init__(self, *, as_json: bool = False, stdout_is_taken: bool = False) -> None:
        self.as_json = as_json
        self._stdout_is_taken = stdout_is_taken
        self._bars: Progress | None = None
        self._open_bars = 0

    def report(self, text: Block, document: Any) -> None:
        """The result of a command that reports: its text, or its document with --json."""
        if self.as_json:
            self.document(document)
        else:
            stream = sys.stderr if self._stdout_is_taken else sys.stdout
            stream.write(_lines(text))
            stream.flush()

    def found(self, found: Documented) -> None:
        """What a job found, and what it says of it."""
        self.report(found.text, found.document)
        self.diagnostics(found.diagnostics)

    def made(self, found: MadeAndDocumented, out: str) -> None:
        """A model that a job made, on stdout where OUT is "-"; and what the job says of it."""
        if out == "-":
            found.save(out)
        if self.as_json:
            self.document(found.document)
        else:
            self.note(out)
            self.note(found.text)
        self.diagnostics(found.diagnostics)

    def document(self, document: Any) -> None:
        from onnx24.report.jsontext import json_text

        sys.stdout.write(json_text(document, ascii_only=True))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line for people, on stderr; more of them where the text is a Block."""
        sys.stderr.write(_lines(text))
        sys.stderr.flush()

    def diagnostics(self, items: Iterable[Diagnostic]) -> None:
        """Diagnostics on stderr, repeated codes aggregated."""
        from onnx24.report.aggregate import aggregate

        for text in aggregate(items):
            self.note(text)

    # --- progress --------------------------------------------------------------------------
    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """The items, with a bar on stderr once they take longer than a second; never where
        stderr is not a terminal."""
        if not sys.stderr.isatty():
            yield from items
            return
        if total is None and isinstance(items, Sized):
            total = len(items)
        begin = time.monotonic()
        task = None
        try:
            for done, item in enumerate(items):
                if task is not None and self._bars is not None:
                    self._bars.update(task, completed=done)
                elif time.monotonic() - begin > BAR_AFTER_S:
                    task = self._open(label, total)
                yield item
        finally:
            if task is not None:
                self._close(task)

    @contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """A moving bar while a step that counts nothing takes longer than a second."""
        if not sys.stderr.isatty():
            yield
            return
        tasks: list[Any] = []
        timer = threading.Timer(BAR_AFTER_S, lambda: tasks.append(self._open(label, None)))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            for task in tasks:
                self._close(task)

    def _open(self, label: str, total: int | None) -> Any:
        if self._bars is None:
            from rich.console import Console as RichConsole
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=RichConsole(stderr=True),
                transient=True,
            )
            self._bars.start()
        self._open_bars += 1
        return self._bars.add_task(label, total=total)

    def _close(self, task: Any) -> None:
        assert self._bars is not None
        self._bars.remove_task(task)
        self._open_bars -= 1
        if self._open_bars == 0:
            self._bars.stop()
            self._bars = None
