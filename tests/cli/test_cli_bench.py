"""`onnx24 bench`: estimates without a GPU, exit code 3 for a measurement without one, and the whole
way with a stand-in for trtexec. No GPU ran any of this."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_support import document, invoke

from onnx24.backends import running, trtexec

VIT = Path(__file__).resolve().parents[2] / "fixtures" / "models" / "vit.onnx"


def test_an_estimate_needs_no_gpu() -> None:
    result = invoke("bench", VIT, "--estimate", "--batch", 1, "--batch", 64, "--target", "sm89")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith("ESTIMATE, not a measurement")
    assert "batch 1, estimated" in result.stdout and "batch 64, estimated" in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_sizes_that_nobody_gave_are_said() -> None:
    """As compile and build have it; a batch size that is given is no such size."""
    result = invoke("bench", VIT, "--estimate", "--target", "sm89")
    assert result.exit_code == 0 and "batch 1, estimated" in result.stdout
    assert "O24-053" in result.stderr and "--shapes image:1x1x8x8" in result.stderr


def test_the_document_says_what_it_is() -> None:
    found = document(
        invoke("bench", VIT, "--estimate", "--shapes", "image:4x1x8x8", "--target", "sm89",
               "--gpu", "l40s", "--json")
    )  # fmt: skip
    assert found["measured"] is False and found["kind"] == "roofline estimate"
    assert found["gpu"]["name"] == "L40S" and found["gpu"]["source"]
    (batch,) = found["batches"]
    assert batch["batch"] == "4" and len(batch["layers"]) == 14


def test_a_measurement_without_a_gpu_is_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "cuda_devices", lambda: 0)
    result = invoke("bench", VIT, "--batch", 8)
    assert result.exit_code == 3 and result.stdout == "" and "O24-510" in result.stderr
    assert len(result.stderr.splitlines()) == 2 and "--estimate" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-"], "O24-043"),
        ([VIT, "--estimate", "--variants", "sparze"], "O24-043"),
        ([VIT, "--estimate", "--gpu", "A11", "--batch", "1"], "O24-025"),
        (["absent.onnx", "--estimate"], "O24-001"),
    ],
)
def test_wrong_usage(arguments: list, code: str) -> None:
    result = invoke("bench", *arguments)
    assert result.exit_code == 2 and code in result.stderr and result.stdout == ""


PROGRAM = """
import json, os, sys
flags = dict(a.split('=', 1) for a in sys.argv[1:] if '=' in a)
if '--saveEngine' in flags:
    print('&&&& RUNNING TensorRT.trtexec [TensorRT v101401] # trtexec')
    name = os.path.basename(flags['--onnx']).split('.')[0]
    open(flags['--saveEngine'], 'w').write(name)
    open(flags['--exportLayerInfo'], 'w').write('{"Layers": []}')
else:
    name = open(flags['--loadEngine']).read()
    center = {'dense': 1.0, 'sparse': 0.8, 'int8': 0.999, 'sparse-int8': 0.5}[name]
    import random
    times = [center * (1 + 0.02 * random.random()) for _ in range(11)]
    json.dump([{'computeMs': t} for t in times], open(flags['--exportTimes'], 'w'))
"""


def test_the_whole_way_with_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "trtexec"
    path.write_text(f"#!{sys.executable}\n{PROGRAM}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(running, "cuda_devices", lambda: 1)
    monkeypatch.setattr(trtexec, "cuda_devices", lambda: 1)
    np.savez(tmp_path / "c.npz", image=np.random.default_rng(0).random((8, 1, 8, 8), np.float32))
    arguments = ["bench", VIT, "--backend", "trtexec", "--batch", 8, "--rounds", 10,
                 "--calib", tmp_path / "c.npz"]  # fmt: skip
    found = document(invoke(*arguments, "--json"))
    assert found["measured"] is True and found["backend"]["name"] == "trtexec"
    (batch,) = found["batches"]
    assert set(batch["times"]) == {"dense", "sparse", "int8", "sparse-int8"}
    assert batch["gains"]["sparse"]["ratio"] == pytest.approx(1.25, rel=0.05)
    assert batch["gains"]["int8"]["ratio"] is None, "0.1 % lies inside the noise"
    text = invoke("bench", VIT, "--backend", "trtexec", "--batch", 8, "--rounds", 10).stdout
    assert "int8 was not measured: it needs --calib" in text and "sparse" in text
