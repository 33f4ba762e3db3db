"""Several processes that train one model: the result of one, who writes, and who ends whom."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from recovery_support import data, net, sparse

from onnx24.ir.model import Model
from onnx24.recovery.processes import Processes
from onnx24.recovery.ranks import is_first, launched
from onnx24.recovery.recipes import recipe
from onnx24.recovery.trainer import recover
from onnx24.targets import DEFAULT, load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OPTIONS = ["--steps", "40", "--learning-rate", "5e-3", "--batch", "25"]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(HERE), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def torchrun(folder: Path, count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *launcher, str(ROOT / "cli.py"), "recover", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net().save(tmp_path / "dense.onnx")
    sparse().save(tmp_path / "sparse.onnx")
    data(tmp_path)
    return tmp_path


def arguments(out: str, *more: str) -> list[str]:
    files = ["sparse.onnx", "--teacher", "dense.onnx", "--data", "data.npz", "-o", out]
    return [*files, *OPTIONS, *more]


def values(source: Path | Model) -> dict[str, np.ndarray]:
    model = source if isinstance(source, Model) else Model.load(source)
    return {str(key): np.array(model.weights[key]) for key in model.weights}


def far(given: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference of any weight; zeros have to be the same."""
    assert all(np.array_equal(given[name] == 0, value == 0) for name, value in wanted.items())
    return max(float(np.abs(given[name] - value).max()) for name, value in wanted.items())


def test_torchrun_gives_the_result_of_one_process(folder: Path) -> None:
    """The sums of a batch are made in another order, which Adam's steps carry on: 1e-4 of a weight
    after 40 steps, of 5e-3 at first. The shares of a batch of 25 differ in size, and rank 1 neither
    writes nor speaks."""
    more = ["--loss", "mse", "--report", "r.json", "--work-dir", "work"]
    done = torchrun(folder, 2, *arguments("two.onnx", *more))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("recipe basic") == 1 and done.stdout == ""
    assert len(list((folder / "work").iterdir())) == 1
    assert {p.name for p in folder.iterdir()} == {
        *("dense.onnx", "sparse.onnx", "data.npz", "two.onnx", "r.json", "work")
    }
    plan = recipe("basic", {"steps": 40, "learning_rate": 5e-3, "batch": 25, "loss": "mse"})
    model = sparse()
    found = recover(model, net(), data(folder), plan, target=load(DEFAULT))
    assert far(values(folder / "two.onnx"), values(model)) < 1e-4
    assert far(values(sparse()), values(model)) > 1e-2
    theirs = json.loads((folder / "r.json").read_text())["recovery"]
    assert theirs["after"] == pytest.approx(found.after, rel=1e-3)
    assert np.allclose(theirs["losses"], found.losses, rtol=1e-3)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from recovery_support import data, net, sparse
from onnx24.errors import Onnx24Error
from onnx24.recovery.recipes import recipe
from onnx24.recovery.trainer import recover
from onnx24.targets import DEFAULT, load
folder, rank, works = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
torch.distributed.init_process_group("gloo")
samples = data(folder / rank)
def slow(items, *_):
    for item in items:
        if item == 40:
            (folder / "running").touch()
        time.sleep(0.002)
        yield item
plan = recipe("basic", {"steps": 100, "eval_every": 20, "loss": "kl", "batch": 16})
try:
    for work in works:
        model = sparse()
        found = recover(model, net(), samples, plan, target=load(DEFAULT), work_dir=folder / work,
                        progress=slow)
        (folder / f"{work}{rank}.onnx").write_bytes(model.to_bytes())
        print(found.resumed_at)
except Onnx24Error as err:
    print(err, file=sys.stderr)
    sys.exit(err.exit_code)
"""


def started(folder: Path, *works: str) -> list[subprocess.Popen[str]]:
    """Two processes without torchrun, which would end the second where the first one dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "run.py").write_text(SCRIPT)
    out = []
    for rank in ("0", "1"):
        (folder / rank).mkdir(exist_ok=True)
        every = environment(WORLD_SIZE="2", RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [sys.executable, str(folder / "run.py"), str(folder), rank, *works]
        out.append(
            subprocess.Popen(
                command, env=every, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    return out


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_the_run_goes_on(tmp_path: Path) -> None:
    first, second = started(tmp_path, "killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "running").exists():
        assert first.poll() is None and second.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 3 and "O24-159" in said, said
    assert "rank 0 of 2 stopped" in said
    for process in started(tmp_path, "killed", "whole"):
        resumed = [int(line) for line in process.communicate(timeout=120)[0].split()]
        assert resumed[0] >= 40 and resumed[1] == 0
    outputs = [path.read_bytes() for path in sorted(tmp_path.glob("*.onnx"))]
    assert len(outputs) == 4 and len(set(outputs)) == 1
    plan = recipe("basic", {"steps": 100, "eval_every": 20, "loss": "kl", "batch": 16})
    alone = sparse()
    recover(alone, net(), data(tmp_path), plan, target=load(DEFAULT))
    assert far(values(Model.from_bytes(outputs[0])), values(alone)) < 1e-3


def test_shares() -> None:
    batch = np.arange(7)
    shares = [Processes(rank, 3).share(batch).tolist() for rank in range(3)]
    assert shares == [[0, 1, 2], [3, 4], [5, 6]]
    alone = Processes()
    assert alone.sums([1.5, 2]) == [1.5, 2] and alone.from_first("x") == "x" and alone.is_first


def test_only_a_whole_launch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert launched() == (0, 1) and is_first()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert launched() == (1, 2) and not is_first()
