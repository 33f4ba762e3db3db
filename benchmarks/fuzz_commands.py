"""The cases of fuzz_check.py against every command that reads a model, each in its own process.

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
from typing import NoReturn, TextIO

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
_WALL_S = 120.0
_IMPORTED = ("onnxruntime", "onnx_graphsurgeon", "onnx24.gate.judge", "onnx24.driver.compiling")


def _child(name: str, path: str) -> NoReturn:
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(4 * SECONDS), int(4 * SECONDS)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _judged(path) if name == "check" else _run(COMMANDS[name].replace("M", path))
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        os._exit(code)


def _run(command: str) -> int:
    from onnx24.cli.app import run

    return run(command.split())


def _judged(path: str) -> int:
    from onnx24.gate.judge import judge
    from onnx24.report.policy import read_policy

    return judge(path, read_policy("registry-strict"), target="sm86-trt10").exit_code


def one(name: str, path: str) -> tuple[int, float, float]:
    """(exit code or minus the signal, CPU time [s], resident memory [MiB]) of one case."""
    child = os.fork()
    if child == 0:
        _child(name, path)
    timer = threading.Timer(_WALL_S, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status, used = os.wait4(child, 0)
    timer.cancel()
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


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
        for name in names:  # imports what a command needs, but starts no thread that a fork lacks
            if name not in ("check", "compare"):
                with open(os.devnull, "w") as null, _silenced(null):
                    _run(COMMANDS[name].replace("M", "seed.onnx"))
        for i, (case, data) in enumerate(cases(options.count, options.seed, models)):
            if time.monotonic() - begin > options.seconds:
                break
            name = names[i % len(names)]
            Path("case.onnx").write_bytes(data)
            code, seconds, mib = one(name, "case.onnx")
            found[f"{name}: {code}"] += 1
            slowest, largest = max(slowest, seconds), max(largest, mib)
            if code not in CONTRACT or seconds > SECONDS or mib > MIB:
                failures.append(f"{name} {case}: code {code}, {seconds:.1f} s, {mib:.0f} MiB")
                print(f"FAILED {failures[-1]}", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{i}.onnx").write_bytes(data)
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
