"""`diff` on the command line: the page beside text and JSON."""

from __future__ import annotations

from pathlib import Path

import onnx
from cli_support import document, invoke

from onnx24.testing.generate import mlp


def test_a_page_beside_the_text(work: Path, model_path: Path) -> None:
    onnx.save(mlp([64, 64, 32], seed=9), work / "b.onnx")
    result = invoke("diff", model_path, "b.onnx", "--html", "d.html")
    assert result.exit_code == 0 and "fc0.weight" in result.stdout
    text = (work / "d.html").read_text(encoding="utf-8")
    assert "fc0.weight" in text and text.endswith("</html>\n")
    found = document(invoke("diff", model_path, "b.onnx", "--json"))
    assert {change["name"] for change in found["values"]} >= {"fc0.weight", "fc1.weight"}
    assert found["values"][0]["is_24"] == [False, False]


def test_the_page_is_neither_model_nor_stream(work: Path, model_path: Path) -> None:
    before = model_path.read_bytes()
    assert invoke("diff", model_path, model_path, "--html", model_path).exit_code == 2
    assert model_path.read_bytes() == before
    assert invoke("diff", model_path, model_path, "--html", "-").exit_code == 2
    assert invoke("diff", model_path, model_path, "--exit-code").exit_code == 0
