"""Taking the times of engines on the GPU that is here, by trtexec or by a Python package.

Not run on a GPU yet: the command lines and the parsing are tested with stand-ins.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx24.backends.base import Profile, check_finished, cuda_devices, failed
from onnx24.backends.logs import read_log
from onnx24.backends.process import Finished, run_logged
from onnx24.backends.python_api import PythonBackend, child_environment
from onnx24.backends.trtexec import PROGRAM, shapes_option
from onnx24.errors import BackendError

WARM_UP_MS = 200


def require_gpu() -> None:
    """Raises: BackendError O24-510 where there is nothing to measure on."""
    if cuda_devices() == 0:
        raise BackendError.of(
            "O24-510",
            "measuring needs an NVIDIA GPU with its driver, and none is here",
            hint="`onnx24 bench --estimate` gives bounds from data-sheet peaks instead",
        )


def run_command(
    engine: Path,
    times: Path,
    profiles: Mapping[str, Profile],
    *,
    seconds: float,
    program: str = PROGRAM,
) -> list[str]:
    """trtexec's command line that runs an engine for some seconds and exports its run times."""
    args = [program, f"--loadEngine={engine}", f"--exportTimes={times}"]
    if profiles:
        args.append(shapes_option("", profiles))
    return [
        *args,
        f"--warmUp={WARM_UP_MS}",
        f"--duration={max(1, round(seconds))}",
        "--noDataTransfers",
        "--useSpinWait",
    ]


def run_with_trtexec(
    engine: Path, profiles: Mapping[str, Profile], *, seconds: float, timeout_s: float | None
) -> list[float]:
    """The times of one engine's runs [ms]. Raises: BackendError O24-502 to O24-504."""
    with tempfile.TemporaryDirectory(prefix="onnx24-bench-") as folder:
        exported, log = Path(folder, "times.json"), Path(folder, "log.txt")
        argv = run_command(engine.absolute(), exported, profiles, seconds=seconds)
        _finish("trtexec", run_logged(argv, log=log, cwd=Path(folder), timeout_s=timeout_s), log)
        runs = json.loads(exported.read_text("utf-8")) if exported.exists() else []
    if not runs:
        raise BackendError.of("O24-502", "trtexec ran the engine and exported no times")
    return [float(run["computeMs"]) for run in runs]


def run_with_python(
    backend: PythonBackend,
    engines: Mapping[str, Path],
    profiles: Mapping[str, Profile],
    *,
    rounds: int,
    runs: int,
    timeout_s: float | None,
) -> dict[str, list[list[float]]]:
    """variant → rounds → times [ms], taken in turns in one child process.

    Raises: BackendError O24-502 to O24-504.
    """
    with tempfile.TemporaryDirectory(prefix="onnx24-bench-") as folder:
        ask, answer, log = (Path(folder, n) for n in ("ask.json", "answer.json", "log.txt"))
        request = {
            "module": backend.module,
            "engines": {name: str(path.absolute()) for name, path in engines.items()},
            "shapes": {name: list(profile.opt) for name, profile in profiles.items()},
            "rounds": rounds,
            "runs": runs,
        }
        ask.write_text(json.dumps(request), encoding="utf-8")
        argv: Sequence[str] = [
            sys.executable, "-m", "onnx24.backends.timing", str(ask), str(answer),
        ]  # fmt: skip
        done = run_logged(
            argv, log=log, cwd=Path(folder), timeout_s=timeout_s, env=child_environment()
        )
        _finish(backend.name, done, log)
        return json.loads(answer.read_text("utf-8"))


def _finish(name: str, done: Finished, log: Path) -> None:
    with open(log, encoding="utf-8", errors="replace") as lines:
        facts = read_log(lines)
    check_finished(name, done, facts)
    if done.returncode:
        reason = facts.errors[-1] if facts.errors else f"it ended with status {done.returncode}"
        raise failed("O24-502", f"{name} could not run the engine: {reason}", facts)
