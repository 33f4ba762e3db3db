"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx24.testing.generate import mlp


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model_path(work: Path) -> Path:
    """`m.onnx` in the current folder: two MatMuls, 64 → 64 → 32, dynamic batch."""
    path = work / "m.onnx"
    onnx.save(mlp([64, 64, 32]), path)
    return path
