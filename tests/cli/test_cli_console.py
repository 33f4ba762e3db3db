"""Progress bars: on a terminal, after a second, and never elsewhere."""

from __future__ import annotations

import gc
import io
import sys
import time

import pytest

from onnx24.cli import console as console_module
from onnx24.cli.console import Console
from onnx24.lines import Block


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal. Not a fixture: pytest puts its own stderr back after the setup."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_what_is_quick_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, console = terminal(monkeypatch), Console()
    assert list(console.progress([1, 2, 3], "counting")) == [1, 2, 3]
    with console.waiting("a moment"):
        pass
    assert stream.getvalue() == ""


def test_what_is_slow_draws_one_bar_and_wipes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "BAR_AFTER_S", 0.0)
    stream, console = terminal(monkeypatch), Console()
    seen = []
    for outer in console.progress(range(3), "layers"):
        for inner in console.progress(iter("ab"), "samples"):  # nested, and of unknown length
            seen.append((outer, inner))
            time.sleep(0.05)
    assert len(seen) == 6
    assert "layers" in stream.getvalue() and "samples" in stream.getvalue()
    with console.waiting("building"):
        time.sleep(0.3)
    assert "building" in stream.getvalue()
    assert console._bars is None, "everything is closed again"


def test_a_bar_is_closed_when_its_loop_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "BAR_AFTER_S", 0.0)
    stream, console = terminal(monkeypatch), Console()
    with pytest.raises(KeyboardInterrupt):
        for item in console.progress(range(10), "layers"):
            time.sleep(0.02)
            if item == 3:
                raise KeyboardInterrupt

    gc.collect()  # the abandoned generator
    assert "layers" in stream.getvalue() and console._bars is None


def test_no_terminal_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console_module, "BAR_AFTER_S", 0.0)
    console = Console()
    assert list(console.progress(range(5), "layers")) == list(range(5))
    with console.waiting("building"):
        time.sleep(0.05)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_text_goes_to_stderr_where_stdout_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Console(stdout_is_taken=True).report("hello", {"a": 1})
    Console().report(Block("hello"), {"a": 1})
    Console(as_json=True, stdout_is_taken=True).report("hello", {"a": float("inf")})
    captured = capsys.readouterr()
    assert captured.err == Block("hello")
    assert captured.out == 'hello\n{\n  "a": "inf"\n}\n'
