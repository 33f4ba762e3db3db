"""`onnx24 recover`, from a pruned model to a recovered one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import document, invoke

import onnx24
from onnx24.ir.model import Model

pytest.importorskip("torch")
sys.path.append(str(Path(__file__).resolve().parents[1] / "recovery"))
from recovery_support import net, sparse


@pytest.fixture
def files(work: Path) -> Path:
    """`dense.onnx`, `sparse.onnx` and `data.npz` in the current folder."""
    net().save("dense.onnx")
    sparse().save("sparse.onnx", external="external")
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.standard_normal((64, 16)).astype(np.float32))
    return work


ARGUMENTS = ["recover", "sparse.onnx", "--teacher", "dense.onnx", "--data", "data.npz"]


def test_from_files_to_files(files: Path) -> None:
    result = invoke(
        *ARGUMENTS, "-o", "out.onnx", "--steps", "40", "--loss", "kl", "--learning-rate", "0.005",
        "--report", "r.json", "--report", "r.txt", "--report", "r.html", "--work-dir", "work",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = document(result)["recovery"]
    assert found["after"] < found["before"]
    assert found["steps"] == len(found["losses"]) == 40
    assert sorted(found["weights"]) == ["w0", "w1"]
    onnx.checker.check_model("out.onnx")
    out = Model.load("out.onnx")
    assert [key.name for key in out.claims] == ["w0", "w1"]
    assert out.metadata["author"] == "somebody"
    assert bool(out.external_locations()) == bool(Model.load("sparse.onnx").external_locations())
    assert json.loads(Path("r.json").read_text())["recovery"]["after"] == found["after"]
    assert "held-out divergence" in Path("r.txt").read_text()
    shown = Path("r.html").read_text()
    assert shown.count("<polyline") == 2 and "training loss" in shown and "sparse.onnx" in shown
    assert "http:" not in shown and "https:" not in shown
    again = invoke(
        *ARGUMENTS, "-o", "again.onnx", "--steps", "40", "--loss", "kl", "--learning-rate",
        "0.005", "--work-dir", "work",
    )  # fmt: skip
    assert again.exit_code == 0 and "checkpoint at step 40" in again.stderr
    for name in ("w0", "w1", "b0", "b1"):
        assert np.array_equal(Model.load("again.onnx").weights[name], out.weights[name])


def test_the_record_of_what_made_the_model_goes_on(files: Path) -> None:
    assert invoke("prune24", "dense.onnx", "-o", "pruned.onnx").exit_code == 0
    arguments = ["recover", "pruned.onnx", "--teacher", "dense.onnx", "--data", "data.npz"]
    result = invoke(*arguments, "-o", "out.onnx", "--steps", "4", "--learning-rate", "0.005")
    assert result.exit_code == 0, result.output
    proven = invoke("verify-provenance", "out.onnx", "--input", "pruned.onnx")
    assert proven.exit_code == 0, proven.output
    pipeline = Model.load("out.onnx").metadata["onnx24.pipeline"]
    assert pipeline.startswith("prune24") and pipeline.endswith("recover{basic steps=4}")


def test_options_reach_the_recipe(files: Path) -> None:
    result = invoke(
        *ARGUMENTS, "-o", "out.onnx", "--recipe", "sparse-qat", "--scales", "learned",
        "--precision", "bf16", "--micro-batch", "8", "--schedule", "cubic", "--steps", "4",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe = document(result)["recovery"]["recipe"]
    wanted = {"scales": "learned", "precision": "bf16", "micro_batch": 8, "schedule": "cubic"}
    assert wanted.items() <= recipe.items()


def test_random_data_are_named(files: Path) -> None:
    arguments = [*ARGUMENTS[:-1], "random:16", "-o", "out.onnx", "--steps", "1"]
    result = invoke(*arguments)
    assert result.exit_code == 0 and "O24-034" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["recover", "sparse.onnx", "--data", "data.npz"], "O24-043"),
        (["recover", "sparse.onnx", "--teacher", "-", "--data", "data.npz"], "O24-043"),
        ([*ARGUMENTS, "--recipe", "advanced"], "O24-043"),
        ([*ARGUMENTS, "--ema", "1"], "O24-043"),
        ([*ARGUMENTS, "--scales", "guessed"], "O24-043"),
        ([*ARGUMENTS, "--precision", "fp8"], "O24-043"),
        ([*ARGUMENTS, "--device", "abacus"], "O24-043"),
        ([*ARGUMENTS, "--report", "r.pdf"], "O24-043"),
        ([*ARGUMENTS, "-o", "sparse.onnx"], "O24-041"),
        ([*ARGUMENTS, "-o", "dense.onnx"], "O24-041"),
        ([*ARGUMENTS, "--labels", "data.npz"], "O24-030"),
        ([*ARGUMENTS, "--relations", "1"], "O24-156"),
        (["recover", "dense.onnx", "--teacher", "dense.onnx", "--data", "data.npz"], "O24-151"),
        (["recover", "sparse.onnx", "--teacher", "nix.onnx", "--data", "data.npz"], "O24-001"),
    ],
)
def test_bad_calls(files: Path, arguments: list[str], code: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2 and code in result.output
    assert not Path("sparse.onnx24.onnx").exists()


COMPILE = [
    "compile", "dense.onnx", "--calib", "data.npz", "-o", "out.onnx", "--guard", "off",
    "--pipeline", "prune24{method=magnitude refit=false},check24",
]  # fmt: skip


@pytest.mark.parametrize("arguments", [ARGUMENTS, [*COMPILE, "--recover", "5min"]])
def test_without_torch(files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("onnx24.recovery")]:
        monkeypatch.delitem(sys.modules, name)
    result = invoke(*arguments, "-o", "out.onnx")
    assert result.exit_code == 3
    assert "pip install 'onnx24[train]'" in result.stderr and "O24-155" in result.stderr
    assert not Path("out.onnx").exists()


def test_compile_trains_back_in_the_same_command(files: Path) -> None:
    plain = document(invoke(*COMPILE, "--json"))
    result = invoke(*COMPILE, "--recover", "60steps", "--json", "--report", "r.html")
    assert result.exit_code == 0, result.output
    report = document(result)
    found = report["recovery"]
    assert found["after"] < 0.9 * found["before"] and found["steps"] == 60
    # What verifies was held out of training, too: 8 of 64; a tenth of the others chose the step.
    assert (found["samples"], found["held_out_samples"]) == (50, 6)
    (before,), (after,) = (r["comparison"]["outputs"] for r in (plain, report))
    assert after["sqnr_db"] > before["sqnr_db"] + 0.5
    assert plain["recovery"] is None and "seconds" in report["run"]["recovery"]
    assert [w["name"] for w in report["weights"] if w["sparse"]] == ["w0", "w1"]
    first = Path("out.onnx").read_bytes()
    assert Model.load("out.onnx").metadata["onnx24.pipeline"].endswith("recover{basic steps=60}")
    assert invoke("verify-provenance", "out.onnx", "--input", "dense.onnx").exit_code == 0
    assert "Loss by step" in Path("r.html").read_text()
    again = invoke(*COMPILE, "--recover", "60")
    assert Path("out.onnx").read_bytes() == first
    assert "trained back" in again.stderr and "held-out divergence" in again.stderr


def test_layers_that_err_most_get_time_first_and_int8_alone_is_trained_too(files: Path) -> None:
    result = onnx24.compile(
        "dense.onnx", calib="data.npz", recover=16, guard="off",
        pipeline="upgrade-opset{to=19},qdq{exclude=w1},fold-qdq",
    )  # fmt: skip
    found = result.report.recovery
    assert found is not None and found["weights"] == [] and found["steps"] >= 8
    pruned = onnx24.compile(
        "dense.onnx", calib="data.npz", recover=16, guard="off", pipeline="prune24,check24"
    )
    assert pruned.report.recovery["first"] in (["w0"], ["w1"])


def test_a_time_is_a_number_of_steps_here(files: Path) -> None:
    result = onnx24.compile(
        "dense.onnx", calib="data.npz", recover="0.3s", guard="off", pipeline="prune24,check24"
    )
    found = result.report.recovery
    assert found is not None and 1 <= found["steps"] <= found["recipe"]["steps"] <= 2000


@pytest.mark.parametrize(
    "wrong",
    [{"recover": "soon"}, {"recover": 0}, {"calib": "random:32"}, {"calib": None}],
    ids=["time", "steps", "random", "none"],
)
def test_what_cannot_be_trained_back_is_refused(files: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(onnx24.InputError) as caught:
        onnx24.compile("dense.onnx", **{"calib": "data.npz", "recover": 20, **wrong})
    assert caught.value.code == "O24-043"


@pytest.mark.parametrize(("op", "code"), [("Hardmax", "O24-150"), ("LpNormalization", "O24-151")])
def test_what_cannot_be_trained_through_is_said(work: Path, op: str, code: str) -> None:
    """An operator that torch has none for before the work; that nothing was compressed, as a
    note."""
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) '
    text += f"{{ y = {op}(x) }}"
    model = onnx.parser.parse_model(text)
    given: dict[str, Any] = {"calib": {"x": np.ones((32, 4), np.float32)}, "recover": 20}
    if code == "O24-150":
        with pytest.raises(onnx24.InputError, match=code):
            onnx24.compile(model, **given)
    else:
        result = onnx24.compile(model, **given)
        assert code in [d.code for d in result.diagnostics] and result.report.recovery is None


def test_tune_trains_what_it_chose(files: Path) -> None:
    rows = {"x": np.random.default_rng(0).standard_normal((64, 16), np.float32)}
    result = onnx24.tune("dense.onnx", calib=rows, limit={"sqnr": 9}, recover=16)
    assert result.report.recovery is not None and result.tuning.saving > 0
