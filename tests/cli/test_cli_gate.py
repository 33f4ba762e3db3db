"""`onnx24 gate`, from recorded times to a gated model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import ROOT, document, invoke

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
    assert "brought back at y: +" in result.stderr
    assert all(len(line) <= 100 for line in result.stderr.splitlines())
    assert Path("sparse.onnx").read_bytes() == before


def test_from_compile_to_gate_with_the_work_dir_alone(work: Path) -> None:
    """Channels are permuted without data, so only the work dir has values that fit."""
    shutil.copy(ROOT / "fixtures" / "models" / "vit.onnx", "vit.onnx")
    result = invoke(
        "compile", "vit.onnx", "-o", "sparse.onnx", "--preset", "sparse-fp16", "--work-dir", "work"
    )
    assert result.exit_code == 0, result.output
    names = [key.name for key in Model.load("sparse.onnx").claims]
    back, stays = names[1:], names[0]
    rows = [{"name": n, "model": {"weight": n}, "gain": 1.5 if n == stays else 1.0} for n in names]
    Path("ledger.json").write_text(json.dumps({"rows": rows}))
    gate = ["gate", "sparse.onnx", "--ledger", "ledger.json", "-o", "gated.onnx"]
    result = invoke(*gate, "--work-dir", "work", "--data", "random:16", "--json")
    assert result.exit_code == 0, result.output
    found = document(result)
    assert {w["weight"] for w in found["weights"] if w["action"] == "dense again"} == set(back)
    assert found["reference"] == "the compiled model with all weights dense again"
    (brought,) = found["brought_back"]
    errors = {k: c["outputs"][0]["rel_l2"] for k, c in found["comparisons"].items()}
    assert (
        brought["rel_l2"] == pytest.approx(errors["sparse"] - errors["gated"]) and errors["gated"]
    )
    assert brought["rel_l2"] > 0.5 * errors["sparse"]

    proven = invoke("verify-provenance", "gated.onnx", "--input", "sparse.onnx", "--json")
    assert proven.exit_code == 0, proven.output
    assert Model.load("gated.onnx").metadata["onnx24.pipeline"].endswith(",gate")

    result = invoke(*gate, "--dense", "vit.onnx")
    assert result.exit_code == 0 and "0 of 13 2:4 weights are dense again" in result.stderr
    assert "permuted" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["gate", "sparse.onnx", "--dense", "dense.onnx"], "O24-043"),
        (["gate", "sparse.onnx", "--ledger", "ledger.json"], "O24-043"),
        (["gate", "sparse.onnx", "--work-dir", "none", "--ledger", "ledger.json"], "O24-043"),
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
