"""From an exception to an exit code, a message on stderr, and `{"error": …}` with --json."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx24 import __version__
from onnx24.errors import InputError, InternalError, Onnx24Error
from onnx24.redact import redacted

INTERRUPTED = 130  # 128 + SIGINT
PIPE_CLOSED = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM


class Terminated(BaseException):
    """SIGTERM, so that files that are half written are removed on the way out."""


def exit_code_of(err: BaseException, argv: Sequence[str]) -> int:
    """Say what went wrong, and return the exit code that belongs to it."""
    if isinstance(err, BrokenPipeError):
        _silence_stdout()
        return PIPE_CLOSED
    if isinstance(err, KeyboardInterrupt):
        _say("interrupted; nothing was written")
        return INTERRUPTED
    if isinstance(err, Terminated):
        _say("terminated; nothing was written")
        return TERMINATED
    if isinstance(err, OSError):
        from onnx24.ir.files import storage_error

        err = _flushed(storage_error(err)) or err
    if isinstance(err, MemoryError):
        err = InputError.of("O24-017", "there is not enough memory for it")
    known = err if isinstance(err, Onnx24Error) else _internal(err, argv)
    return _tell(known, as_json=_wants_json(_options(argv)))


def _options(argv: Sequence[str]) -> Sequence[str]:
    """What stands before a bare `--`."""
    return argv[: list(argv).index("--")] if "--" in argv else argv


def _wants_json(argv: Sequence[str]) -> bool:
    spelled = ("--format", "json") in itertools.pairwise(argv)
    return spelled or "--json" in argv or "--format=json" in argv


def _tell(err: Onnx24Error, *, as_json: bool) -> int:
    from onnx24.report.aggregate import aggregate

    for text in aggregate(err.diagnostics):
        _say(text)
    if as_json:
        error: dict[str, Any] = {
            "exit_code": err.exit_code,
            "diagnostics": [d.to_json() for d in err.diagnostics],
        }
        if isinstance(err, InternalError) and err.reproducer:
            error["reproducer"] = err.reproducer
        # Facts may hold anything that a pass knows; the error itself must not fail here.
        try:
            sys.stdout.write(json.dumps({"error": error}, indent=2, default=str) + "\n")
            sys.stdout.flush()
        except OSError:  # stdout is what failed, and stderr has said so
            _silence_stdout()
    return err.exit_code


def _say(text: str) -> None:
    from onnx24.lines import shown

    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(redacted(shown(text)) + "\n")
        sys.stderr.flush()


def _flushed(refused: InputError | None) -> InputError | None:
    """It may be standard output that has no room: Python would complain when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()
    return refused


def _silence_stdout() -> None:
    """Nothing can be written there any more; Python would complain when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _internal(err: BaseException, argv: Sequence[str]) -> InternalError:
    """An exception that nobody expected, with its traceback in a file."""
    what = f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
    path = _write_traceback(err, argv)
    internal = InternalError.of(
        "O24-900",
        what,
        hint=f"please report it, with {path}" if path else "please report it",
    )
    internal.reproducer = None if path is None else str(path)
    return internal


def _write_traceback(err: BaseException, argv: Sequence[str]) -> Path | None:
    """Into the current folder, or where that is read-only the system's temporary one."""
    text = (
        f"onnx24 {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"$ onnx24 {shlex.join(argv)}\n\n" + "".join(traceback.format_exception(err))
    )
    text = redacted(text)
    name = f"onnx24-crash-{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None
