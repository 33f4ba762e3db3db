"""Commands that are killed, terminated, or lose their disk at a write step: nothing partial, exit
codes of the contract, and the same bytes when they are run again.

python benchmarks/kill_commands.py [--count 50] [--seed 0] [--commands compile,prune24,…]

A first run of each command counts its write steps (files that are opened for writing, renamed,
linked, truncated or removed below its folder: Python's audit events). Each case then picks a fault
and a step, or a moment, by the seed: SIGKILL, SIGTERM, a full disk, or a folder that vanishes. The
disk is a tmpfs of its own, filled to the last byte, where mounting is allowed; else RLIMIT_FSIZE.
Afterwards the output is absent or whole, a command that could clean up has left no partial
file, and the command that is run again ends with the bytes of the undisturbed run. Exit code 1
where a case failed. POSIX only: every run is a fork of a process that has imported everything.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24.testing.generate import mlp

COMMANDS = {
    "compile": "compile m.onnx -o disk/out.onnx --calib calib.npz --work-dir disk/work",
    "prune24": "prune24 m.onnx -o disk/out.onnx --calib calib.npz --method obs --external external "
    "--work-dir disk/work",
    "recover": "recover pruned.onnx --teacher m.onnx --data calib.npz -o disk/out.onnx --steps 30 "
    "--learning-rate 0.005 --work-dir disk/work",
    "tune": "tune m.onnx -o disk/out.onnx --calib calib.npz --limit sqnr=8 --work-dir disk/work",
}
MOMENT = "SIGKILL at a moment"
FAULTS = ("SIGKILL", "SIGTERM", "full disk", "vanished folder", MOMENT)
CODES = {
    "SIGKILL": (-signal.SIGKILL,),
    "SIGTERM": (128 + signal.SIGTERM, 0),
    "full disk": (2, 0),
    "vanished folder": (2, 0),
    MOMENT: (-signal.SIGKILL, 0),
}
DISK_BYTES = 4 << 20
FILLER = "filler"
WRITES = {"os.rename", "os.link", "os.truncate", "os.remove", "os.mkdir"}


# --- one run ----------------------------------------------------------------------------------


def forked(
    folder: Path, command: str, arrange: Callable[[], object], kill_after: float = 0.0
) -> tuple[int, str, float]:
    """(exit code, what stderr said, seconds) of a command in a process of its own, after `arrange`
    was called there."""
    log = folder / "stderr.txt"
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(folder, command, arrange, log)
    timer = threading.Timer(kill_after, os.kill, (child, signal.SIGKILL))
    if kill_after:
        timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    said = log.read_text(errors="replace")
    return os.waitstatus_to_exitcode(status), said, time.monotonic() - begin


def _child(folder: Path, command: str, arrange: Callable[[], object], log: Path) -> NoReturn:
    code = 70
    try:
        os.chdir(folder)
        tempfile.tempdir = str(folder / "disk" / "tmp")
        for descriptor, path in ((1, os.devnull), (2, str(log))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
        arrange()
        from onnx24.cli import main

        main(command.split())
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        os._exit(code)


def before_write(folder: Path, call: Callable[[], object]) -> None:
    """`call` before each write below the folder's disk, from now on and for good."""
    disk, inside = str(folder / "disk"), threading.local()

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            if not (isinstance(args[1], str) and set(args[1]) & set("wxa+")):
                return
        elif event not in WRITES or getattr(inside, "now", False):
            return
        names = [os.path.abspath(os.fsdecode(a)) for a in args[:2] if isinstance(a, str | bytes)]
        if any(name.startswith(disk) for name in names) and not getattr(inside, "now", False):
            inside.now = True
            call()
            inside.now = False

    sys.addaudithook(hook)


def counted(folder: Path, command: str) -> tuple[int, float, bytes]:
    """(write steps, seconds, what it writes) of an undisturbed run."""
    shared = mmap.mmap(-1, 8)

    def count() -> None:
        shared[:] = (int.from_bytes(shared[:], "little") + 1).to_bytes(8, "little")

    renewed(folder)
    code, said, seconds = forked(folder, command, lambda: before_write(folder, count))
    if code:
        raise SystemExit(f"{command}: exit code {code}: {said}")
    return int.from_bytes(shared[:], "little"), seconds, written(folder)


def written(folder: Path) -> bytes:
    """The output with its data file; b"" for none."""
    paths = (folder / "disk" / "out.onnx.data", folder / "disk" / "out.onnx")
    return b"".join(path.read_bytes() for path in paths if path.exists())


# --- faults -----------------------------------------------------------------------------------


def renewed(folder: Path) -> None:
    shutil.rmtree(folder / "disk", ignore_errors=True)
    (folder / "disk" / "tmp").mkdir(parents=True)


@contextlib.contextmanager
def mounted(disk: Path) -> Iterator[bool]:
    """A file system of DISK_BYTES there; False where that is not allowed."""
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    done = subprocess.run(["mount", *options], capture_output=True, check=False)
    try:
        if not done.returncode:
            (disk / "tmp").mkdir()
        yield not done.returncode
    finally:
        if not done.returncode:
            subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, is_mounted: bool) -> None:
    if not is_mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return
    with open(disk / FILLER, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def faulty(folder: Path, command: str, fault: str, at: float, steps: int, seconds: float) -> str:
    """Run with a fault, then without one in what it left. Returns: what went wrong, "" for
    nothing. at: 0 to 1, where in the run."""
    renewed(folder)
    disk = folder / "disk"
    is_full = fault == "full disk"
    wanted, places = 1 + int(at * steps), [0]
    with mounted(disk) if is_full else contextlib.nullcontext(False) as is_mounted:

        def act() -> None:
            places[0] += 1
            if places[0] != wanted:
                return
            if is_full:
                fill(disk, is_mounted)
            elif fault == "vanished folder":
                shutil.rmtree(disk, ignore_errors=True)
            else:
                os.kill(os.getpid(), signal.Signals[fault])

        if fault == MOMENT:
            result = forked(folder, command, lambda: None, kill_after=0.01 + at * seconds)
        else:
            result = forked(folder, command, lambda: before_write(folder, act))
        return _judged(folder, command, fault, result)


def _judged(folder: Path, command: str, fault: str, result: tuple[int, str, float]) -> str:
    code, said, _ = result
    disk, reference = folder / "disk", (folder / "reference").read_bytes()
    if code not in CODES[fault]:
        return f"exit code {code}: {said[-600:]}"
    if "Traceback" in said:
        return said[-600:]
    if (found := written(folder)) not in (b"", reference):
        is_between = reference.startswith(found) and not (disk / "out.onnx").exists()
        if code == 0 or not is_between:
            return f"{len(found)} bytes of {len(reference)} after exit code {code}"
    left = [str(path.relative_to(disk)) for path in disk.rglob("*.part")]
    if left and not fault.startswith("SIGKILL"):
        return f"left {left}"
    (disk / FILLER).unlink(missing_ok=True)
    (disk / "tmp").mkdir(parents=True, exist_ok=True)
    code, said, _ = forked(folder, command, lambda: None)
    if code:
        return f"again: exit code {code}: {said[-600:]}"
    return "" if written(folder) == reference else "again: other bytes"


def run(count: int, seed: int, commands: list[str], folder: Path) -> tuple[Counter[str], list[str]]:
    """(fault → cases, failures)"""
    import onnx24.cli.app
    import onnx24.driver.compiling  # noqa: F401 - imported once, before the forks

    rng = np.random.default_rng(0)
    (folder / "m.onnx").write_bytes(mlp([16, 32, 32, 8]).SerializeToString())
    np.savez(folder / "calib.npz", x=rng.standard_normal((48, 16), np.float32))
    renewed(folder)
    forked(folder, "prune24 m.onnx -o pruned.onnx", lambda: None)
    done: Counter[str] = Counter()
    failures = []
    for name in commands:
        steps, seconds, reference = counted(folder, COMMANDS[name])
        (folder / "reference").write_bytes(reference)
        print(f"{name}: {steps} write steps, {len(reference):,} bytes, {seconds:.1f} s", flush=True)
        for i in range(count // len(commands)):
            case = random.Random(f"{seed}/{name}/{i}")
            fault, at = FAULTS[i % len(FAULTS)], case.random()
            problem = faulty(folder, COMMANDS[name], fault, at, steps, seconds)
            done[f"{name}, {fault}"] += 1
            if problem:
                failures.append(f"{name}, {fault} at {at:.3f} (case {i}): {problem}")
                print(f"FAILED {failures[-1]}", flush=True)
    return done, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="onnx24-kill-") as folder:
        done, failures = run(
            options.count, options.seed, options.commands.split(","), Path(folder).resolve()
        )
    for kind, number in sorted(done.items()):
        print(f"{number:4}  {kind}")
    seconds = time.monotonic() - begin
    print(f"{done.total()} faults in {seconds:.0f} s; {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
