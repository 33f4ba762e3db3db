"""A child process whose whole group ends with it, with its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """How the child ended. `signal`: the name of the signal that ended it, "" for none."""

    returncode: int
    seconds: float
    timed_out: bool = False

    @property
    def signal(self) -> str:
        if self.returncode >= 0:
            return ""
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:
            return f"signal {-self.returncode}"


def run_logged(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run `argv` with stdout and stderr appended to `log`.

    The child is killed with its whole process group when time is up or when this process is
    interrupted. Its standard input is a pipe that stays open for as long as this process
    lives: a child that reads end-of-file there has lost its parent.
    Raises: OSError when `argv` cannot be started.
    """
    started = time.monotonic()
    with open(log, "ab", buffering=0) as sink:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            cwd=cwd,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        timed_out = False
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(child)
    return Finished(child.returncode, time.monotonic() - started, timed_out)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
        child.wait()
    if child.stdin:
        child.stdin.close()
