"""`onnx24 gate`, from recorded times to a gated model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import document, invoke

from onnx24.ir.model import Model

sys.path.append(str(Path(__file__).resolve().parents[1] / "ledger"))
from ledger_support import RECORDED, net


@pytest.fixture
def files(work: Path) -> Path:
    """`dense.onnx`, `sparse.onnx`, `ledger.json` and `data.npz` in the current folder."""
    net().save("dense.onnx")
    net(("w0", "w2", "w4", "w8")).save("sparse.onnx")
    result = invoke(
        "ledger", "sparse.onnx", "--log", RECORDED / "trt-10.log",
        "--layers", RECORDED / "trt-10.layers.json", "--profile", RECORDED / "sparse.profile.json",
        "--dense-layers", RECORDED / "dense.layers.json",
        "--dense-profile", RECORDED / "dense.profile.json", "-o", "ledger.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.standard_normal((4, 16, 8, 8)).astype(np.float32))
    return work


ARGUMENTS = ["gate", "sparse.onnx", "--dense", "dense.onnx", "--ledger", "ledger.json"]


def test_accuracy_that_comes_back_is_reported(files: Path) -> None:
    result = invoke(*ARGUMENTS, "-o", "gated.onnx", "--data", "data.npz", "--json")
    assert result.exit_code == 0, result.output
    found = document(result)
    actions = {w["weight"]: w["action"] for w in found["weights"]}
    assert actions == {"w0": "dense again", "w2": "kept", "w4": "dense again", "w8": "dense again"}
    errors = {k: c["outputs"][0]["rel_l2"] for k, c in found["comparisons"].items()}
    assert 0 < errors["gated"] < errors["sparse"]
    assert [key.name for key in Model.load("gated.onnx").claims] == ["w2"]
    onnx.checker.check_model("gated.onnx")


def test_text_goes_to_stderr_and_the_input_stays(files: Path) -> None:
    before = Path("sparse.onnx").read_bytes()
    result = invoke(*ARGUMENTS, "-o", "gated.onnx", "--data", "data.npz")
    assert result.exit_code == 0 and result.stdout == ""
    assert "3 of 4 2:4 weights are dense again" in result.stderr
    assert "against the dense model" in result.stderr
    assert all(len(line) <= 100 for line in result.stderr.splitlines())
    assert Path("sparse.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["gate", "sparse.onnx", "--dense", "dense.onnx"], "O24-043"),
        (["gate", "sparse.onnx", "--dense", "-", "--ledger", "ledger.json"], "O24-043"),
        (["gate", "sparse.onnx", "--dense", "dense.onnx", "--ledger", "nix.json"], "O24-048"),
        (["gate", "sparse.onnx", "--dense", "nix.onnx", "--ledger", "ledger.json"], "O24-001"),
        ([*ARGUMENTS, "-o", "dense.onnx"], "O24-041"),
        ([*ARGUMENTS, "-o", "ledger.json"], "O24-041"),
        ([*ARGUMENTS, "--noise", "2"], "O24-043"),
    ],
)
def test_wrong_usage(files: Path, arguments: list[str], code: str) -> None:
    before = {p.name: p.read_bytes() for p in files.iterdir()}
    result = invoke(*arguments)
    assert result.exit_code == 2 and code in result.stderr and result.stdout == ""
    assert {p.name: p.read_bytes() for p in files.iterdir()} == before
