"""Which file of a version MLflow loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx24.errors import InputError
from onnx24.redact import redacted
from onnx24.registry.flavor import loaded_file

pytest.importorskip("yaml", reason="it comes with mlflow (extra: mlflow)")

GOOD = """
flavors:
  onnx: {{data: {0}, onnx_version: 1.0}}
  python_function: {{data: {1}, loader_module: {2}}}
"""


def folder(tmp_path: Path, text: str | None) -> Path:
    for name in ("model.onnx", "other.onnx"):
        (tmp_path / name).write_bytes(b"x")
    if text is not None:
        (tmp_path / "MLmodel").write_text(text)
    return tmp_path


def test_the_file_of_the_flavor(tmp_path: Path) -> None:
    text = GOOD.format("model.onnx", "model.onnx", "mlflow.onnx")
    assert loaded_file(folder(tmp_path, text)) == tmp_path / "model.onnx"


def test_without_an_mlmodel_mlflow_loads_nothing(tmp_path: Path) -> None:
    assert loaded_file(folder(tmp_path, None)) is None


@pytest.mark.parametrize(
    "text",
    [
        GOOD.format("model.onnx", "other.onnx", "mlflow.onnx"),
        GOOD.format("model.onnx", "model.onnx", "somebody.else"),
        GOOD.format("missing.onnx", "missing.onnx", "mlflow.onnx"),
        GOOD.format("../model.onnx", "../model.onnx", "mlflow.onnx"),
        GOOD.format("/model.onnx", "/model.onnx", "mlflow.onnx"),
        GOOD.format("[1]", "[1]", "mlflow.onnx"),
        "flavors: {sklearn: {}}",
        "flavors: [",
        "[]",
    ],
    ids=["two", "loader", "missing", "outside", "absolute", "list", "other", "broken", "empty"],
)
def test_what_does_not_match_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded_file(folder(tmp_path, text))
    assert caught.value.code == "O24-641"


def test_passwords_are_not_shown() -> None:
    said = redacted("at postgresql://mia:s3cret@db.example.org/x?sslmode=on&password=abc for mia")
    assert said == "at postgresql://mia:***@db.example.org/x?sslmode=on&password=*** for mia"
    assert redacted("http://127.0.0.1:5000/a and models:/m@champion") == (
        "http://127.0.0.1:5000/a and models:/m@champion"
    )
