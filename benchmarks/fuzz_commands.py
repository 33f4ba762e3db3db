"""The cases of fuzz_check.py against every command that reads a model, 40 a process.

python benchmarks/fuzz_commands.py [--count 50000] [--seed 0] [--seconds 900] [--models FOLDER]
    [--keep FOLDER]

Case i goes to command i modulo their number. A case fails where its process ends by a signal, with
an exit code outside the contract (0, 1, 2), after more than 5 s of CPU time, or beyond 1 GiB of
resident memory. --seconds: begin no case after that. Same seed, same cases. Exit code 1 where one
failed; --keep writes those files. POSIX only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_check import CONTRACT, MIB, SECONDS, cases, seeds

COMMANDS = {
    "inspect": "inspect M",
    "check": "",
    "diff": "diff M seed.onnx",
    "verify-provenance": "verify-provenance M",
    "lint": "lint M",
    "canonicalize": "canonicalize M -o out.onnx",
    "prune24": "prune24 M -o out.onnx",
    "cast16": "cast16 M -o out.onnx",
    "upgrade-opset": "upgrade-opset M -o out.onnx",
    "compare": "compare M M --data random:1",
}
"""`check` is judged as its own sandbox's child does."""
FILE = "case.onnx"
BATCH = 40
"""Cases that one process runs, one after the other."""
_WALL_S = 600.0
_IMPORTED = ("onnxruntime", "onnx_graphsurgeon", "onnx24.gate.judge", "onnx24.driver.compiling")


class Case(NamedTuple):
    number: int
    command: str
    name: str
    data: bytes


def _child(todo: list[Case], writer: int) -> NoReturn:
    """Run each case, and write a line of what became of it."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in todo:
            begin = time.process_time()
            spent = int(begin + 4 * SECONDS) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.RLIM_INFINITY))
            Path(FILE).write_bytes(case.data)
            code = _judged(FILE) if case.command == "check" else _run(case.command)
            mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            line = json.dumps([code, time.process_time() - begin, mib])
            os.write(writer, line.encode() + b"\n")
    finally:
        os._exit(70)


def _run(name: str) -> int:
    from onnx24.cli.app import run

    try:
        return run(COMMANDS[name].replace("M", FILE).split())
    except SystemExit as done:
        return int(done.code or 0)


def _judged(path: str) -> int:
    from onnx24.gate.judge import judge
    from onnx24.report.policy import read_policy

    return judge(path, read_policy("registry-strict"), target="sm86-trt10").exit_code


def results(todo: list[Case]) -> Iterator[tuple[Case, int, float, float]]:
    """(case, exit code or minus the signal, CPU time [s], resident memory of its process [MiB]).
    A process that dies costs the case that it had begun, and another goes on behind it."""
    while todo:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _child(todo, writer)
        os.close(writer)
        timer = threading.Timer(_WALL_S, os.kill, (child, signal.SIGKILL))
        timer.start()
        with os.fdopen(reader) as lines:
            found = [json.loads(line) for line in lines]
        _, status, used = os.wait4(child, 0)
        timer.cancel()
        for case, result in zip(todo, found, strict=False):
            yield (case, *result)
        todo = todo[len(found) :]
        if todo:
            yield todo[0], os.waitstatus_to_exitcode(status), used.ru_utime, used.ru_maxrss / 1024
            todo = todo[1:]


@contextlib.contextmanager
def _silenced(null: TextIO) -> Iterator[None]:
    with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        yield


@contextlib.contextmanager
def _in(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    keep = options.keep.resolve() if options.keep else None
    models = seeds(options.models)
    for module in _IMPORTED:
        importlib.import_module(module)
    begin, names = time.monotonic(), list(COMMANDS)
    found: Counter[str] = Counter()
    failures: list[str] = []
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory(prefix="onnx24-fuzz-") as folder, _in(folder):
        Path("seed.onnx").write_bytes(models[0])
        Path(FILE).write_bytes(models[0])
        for name in names:  # imports what a command needs, but starts no thread that a fork lacks
            if name not in ("check", "compare"):
                with open(os.devnull, "w") as null, _silenced(null):
                    _run(name)
        todo = (
            Case(i, names[i % len(names)], name, data)
            for i, (name, data) in enumerate(cases(options.count, options.seed, models))
        )
        while batch := list(itertools.islice(todo, BATCH)):
            for case, code, seconds, mib in results(batch):
                found[f"{case.command}: {code}"] += 1
                slowest, largest = max(slowest, seconds), max(largest, mib)
                if code not in CONTRACT or seconds > SECONDS or mib > MIB:
                    what = f"code {code}, {seconds:.1f} s, {mib:.0f} MiB"
                    failures.append(f"{case.command} {case.name}: {what}")
                    print(f"FAILED {failures[-1]}", flush=True)
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{case.command}-{case.number}.onnx").write_bytes(case.data)
            if time.monotonic() - begin > options.seconds:
                break
    for kind, number in sorted(found.items()):
        print(f"{number:7,}  {kind}")
    print(
        f"{found.total():,} cases of {len(models)} models in {time.monotonic() - begin:.0f} s; "
        f"slowest {slowest:.2f} s of CPU, largest process {largest:.0f} MiB; "
        f"{len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
