"""`onnx24 ledger`: the command-line contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import document, invoke

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "fixtures" / "ledger"
VIT = ROOT / "fixtures" / "models" / "vit.onnx"
RTX = RECORDED / "rtx-1.7.log"


def test_a_table_on_stdout_and_nothing_on_stderr() -> None:
    result = invoke("ledger", VIT, "--log", RTX, "--shapes", "image:8x1x8x8")
    assert result.exit_code == 0 and result.stderr == ""
    assert "block0.up.matmul" in result.stdout and "14 layers with a weight" in result.stdout
    assert "4 multiply two activations" in result.stdout


def test_json(work: Path) -> None:
    arguments = ["ledger", "--log", RECORDED / "trt-10.log", "--layers",
                 RECORDED / "trt-10.layers.json", "--json"]  # fmt: skip
    found = document(invoke(*arguments))
    assert found["counts"]["log"] == {"eligible": 5, "chosen": 3}
    assert len(found["rows"]) == 5 and found["model"] is None


@pytest.mark.parametrize("ending", ["html", "json", "txt"])
def test_output_file(work: Path, ending: str) -> None:
    result = invoke("ledger", VIT, "--log", RTX, "-o", f"l.{ending}")
    assert "dynamic dimensions are: they are taken as image:1x1x8x8" in result.stdout
    assert result.exit_code == 0 and "block0.up.matmul" in result.stdout
    text = Path(f"l.{ending}").read_text(encoding="utf-8")
    assert "block0.up.matmul" in text
    if ending == "json":
        funnel = json.loads(text)["funnel"]
        assert (funnel["layers"], funnel["with_weight"]) == (18, 14)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ledger"], "O24-043"),
        (["ledger", str(VIT)], "O24-043"),
        (["ledger", "--log", str(RTX), "--shapes", "x:1x2"], "O24-043"),
        (["ledger", "--log", "absent.log"], "O24-048"),
        (["ledger", "--layers", str(RTX)], "O24-048"),
        (["ledger", "--log", str(RTX), "-o", "l.pdf"], "O24-043"),
        (["ledger", "--log", str(RTX), "-o", "nowhere/l.html"], "O24-040"),
        (["ledger", "absent.onnx", "--log", str(RTX)], "O24-001"),
        (["ledger", str(VIT), "--log", str(RTX), "--shapes", "imag:8x1x8x8"], "O24-505"),
        (["ledger", str(VIT), "--log", str(RTX), "--shapes", "image:8x8"], "O24-505"),
        (["ledger", "--log", str(RTX), "--target", "sm1"], "O24-025"),
    ],
)
def test_wrong_usage(work: Path, arguments: list[str], code: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2 and code in result.stderr and result.stdout == ""
    assert list(work.iterdir()) == []


def test_an_input_is_not_overwritten(work: Path) -> None:
    Path("l.json").write_bytes((RECORDED / "trt-10.layers.json").read_bytes())
    result = invoke("ledger", "--layers", "l.json", "-o", "l.json")
    assert result.exit_code == 2 and "O24-041" in result.stderr
    assert "CaskConvolution" in Path("l.json").read_text(encoding="utf-8")
