"""Judging files in processes of their own, which a hostile file cannot take down with it.

A *nursery* is a process that has imported everything, has one thread, and forks a child for each
file: a few milliseconds instead of the second that starting Python and importing onnx takes. The
child sets its limits (private memory, CPU time, file size, no core dump), judges and writes one
line; the nursery watches the clock and says what became of it. Several nurseries work in parallel.

Where there is no fork (Windows), each file gets a Python of its own, and only time is limited.

A nursery reads requests from standard input and writes results to standard output, a line each.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnx24.gate.verdicts import memory_mib_of, seconds_of, stopped
from onnx24.report.checked import Checked
from onnx24.report.policy import Policy

_HAS_FORK = hasattr(os, "fork")
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_KEPT = (
    *("PATH", "HOME", "USER", "TMPDIR", "TEMP", "TMP", "LANG", "LC_", "TZ", "SYSTEMROOT"),
    *("PYTHON", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_", "CUDA_", "NVIDIA_", "OPENBLAS_"),
    "ONNX24_LIMITS",
)
"""Environment variables, by how they begin, that a nursery inherits. A list of what is let through
can't miss a secret that somebody invents tomorrow."""
_NURSERY = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; root = sys.argv[1]; "
    "root in sys.path or sys.path.insert(0, root); "
    "from onnx24.gate.sandbox import main; sys.exit(main())"
)
"""Not `python -m`, which would import from the current folder: that may be the hostile one. The
argument is where onnx24 lies, for a checkout that is not installed."""
_GRACE_S = 1.0
"""A child that has used up its CPU time gets so much longer on the clock, on a machine at work."""


# --- the side that asks -----------------------------------------------------------------------


class Sandbox:
    """Judges many files with one policy. Use as a context manager. digest_data: results name the
    sha256 of data files too, which takes as long as reading them."""

    def __init__(
        self, policy: Policy, target: str, *, jobs: int = 1, digest_data: bool = False
    ) -> None:
        self._policy, self._target, self._digest_data = policy, target, digest_data
        self._jobs = max(1, jobs)
        self._nurseries: list[_Nursery] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is not None:  # somebody waits for the end: nothing that is being read is of use
            self.kill()
        for nursery in self._nurseries:
            nursery.close()
        self._nurseries = []

    def kill(self) -> None:
        """End every process at once, from another thread; whoever waits for one is told that it
        ended."""
        for nursery in list(self._nurseries):
            nursery.kill()

    def _nursery(self) -> _Nursery:
        return _Nursery(self._policy, self._target, self._digest_data)

    def judge(self, path: str, name: str | None = None) -> Checked:
        """One file. Never raises for what is in the file."""
        if not self._nurseries:
            self._nurseries = [self._nursery()]
        return self._nurseries[0].judge(path, name or path)

    def judge_all(self, files: Sequence[tuple[str, str]]) -> Iterator[Checked]:
        """(path, name) of many files; the results come in their order."""
        count = min(self._jobs, len(files))
        while len(self._nurseries) < count:
            self._nurseries.append(self._nursery())
        work: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(files)):
            work.put(i)
        done: list[queue.SimpleQueue[Checked | BaseException]] = [
            queue.SimpleQueue() for _ in files
        ]

        def serve(nursery: _Nursery) -> None:
            while True:
                try:
                    i = work.get_nowait()
                except queue.Empty:
                    return
                try:
                    done[i].put(nursery.judge(*files[i]))
                except BaseException as err:  # noqa: BLE001 - handed to the caller's thread
                    done[i].put(err)

        threads = [
            threading.Thread(target=serve, args=(nursery,), daemon=True)
            for nursery in self._nurseries[:count]
        ]
        for thread in threads:
            thread.start()
        for result in done:
            item = result.get()
            if isinstance(item, BaseException):
                raise item
            yield item


class _Nursery:
    """One nursery process, started when it is first asked and again if it dies."""

    def __init__(self, policy: Policy, target: str, digest_data: bool) -> None:
        self._policy, self._target, self._digest_data = policy, target, digest_data
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, path: str, name: str) -> Checked:
        asked = {"path": path, "name": name, "digest_data": self._digest_data}
        request = json.dumps(asked).encode() + b"\n"
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):  # the nursery itself is gone: the machine is out of memory
            self.close()
            return stopped(name, self._policy, "the process that read it ended")
        return Checked.unpacked(line.decode())

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            environment = _environment()
            root = str(Path(__file__).resolve().parents[2])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _NURSERY, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=_HAS_FORK,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(_policy_line(self._policy, self._target))
        return self._process

    def kill(self) -> None:
        if (process := self._process) is not None and process.poll() is None:
            if _HAS_FORK:  # the child that reads the file is of the nursery's group
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """What a process that reads strangers' files needs, and no password, token or credential."""
    kept = {key: value for key, value in os.environ.items() if key.startswith(_KEPT)}
    return {**kept, **dict.fromkeys(_THREADS, "1")}


def _policy_line(policy: Policy, target: str) -> bytes:
    return json.dumps({"policy": vars(policy), "target": target}).encode() + b"\n"


# --- the nursery ------------------------------------------------------------------------------


def main() -> int:
    """Serve requests until standard input ends."""
    # Results go to a stream of their own: what a library prints must not land among them.
    results = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    head = json.loads(sys.stdin.buffer.readline())
    policy, target = Policy(**head["policy"]), head["target"]
    _warm_up(policy)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        results.write(_serve(policy, target, **request).packed().encode() + b"\n")
    return 0


def _warm_up(policy: Policy) -> None:
    """Import what children need, so that none of them has to. ONNX Runtime is imported where the
    policy runs the model, and no session is made: it would start threads."""
    from onnx24 import targets
    from onnx24.gate import judge, rules  # noqa: F401

    targets.names()
    if policy.runs_models:
        from onnx24.gate import running  # noqa: F401


def _serve(policy: Policy, target: str, path: str, name: str, digest_data: bool) -> Checked:
    from onnx24.gate.judge import judge

    def work() -> Checked:
        return judge(path, policy, target=target, name=name, digest_data=digest_data)

    if not _HAS_FORK:
        return work()
    seconds, memory = seconds_of(policy), memory_mib_of(policy)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(writer, work, seconds, memory, path)
    os.close(writer)
    text, late = _read_until(reader, time.monotonic() + seconds + _GRACE_S)
    os.close(reader)
    if late:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if text.endswith(b"\n"):
        return Checked.unpacked(text.decode())
    why = f"reading it took longer than {seconds:g} s"
    if os.WIFSIGNALED(status) and not late:
        number = os.WTERMSIG(status)
        if number != getattr(signal, "SIGXCPU", None):
            ended = signal.Signals(number).name
            why = (
                f"the process that read it ended by {ended}; it may use {memory} MiB "
                f"and {seconds:g} s"
            )
    elif not late:
        why = f"the process that read it ended with status {os.WEXITSTATUS(status)}"
    return stopped(name, policy, why)


def _child(writer: int, work: Any, seconds: float, memory_mib: int, path: str) -> None:
    """Judge, write the result, and end without anything that the nursery registered."""
    try:
        _limit(seconds, memory_mib, path)
        os.close(0)
        with os.fdopen(writer, "wb") as out:
            out.write(work().packed().encode() + b"\n")
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing may go on in a copy of the nursery
        os._exit(1)


def _limit(seconds: float, memory_mib: int, path: str) -> None:
    """RLIMIT_DATA counts private memory and not the mapped weights, so that a model may be larger
    than the memory it may take. *Source:* setrlimit(2), Linux 4.7 and later."""
    import resource

    data = memory_mib << 20
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    wanted = {
        "RLIMIT_DATA": data,
        "RLIMIT_CPU": max(1, int(seconds + 0.999)),
        "RLIMIT_FSIZE": max(256 << 20, 4 * size),
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, hard if name == "RLIMIT_DATA" else value))


def _read_until(reader: int, deadline: float) -> tuple[bytes, bool]:
    """What the child wrote until it closed its end, and whether time was up first."""
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], min(left, 1.0))[0]:
            continue
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(parts), False
        parts.append(chunk)
    return b"".join(parts), True
