"""The five lines, as docs/training.md and the module's docstring print them, are run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch_room_support import accuracy, dense

import onnx24.torch
from onnx24.ir.model import Model


def blocks(root: Path) -> list[str]:
    text = (root / "docs" / "training.md").read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_the_loop_of_the_page(
    name: str, root: Path, digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = dense(name, digits)
    before = accuracy(model, digits)
    x, y = torch.from_numpy(digits.train_x), torch.from_numpy(digits.train_y)
    given = {
        "model": model.train(),
        "batches": list(x[:256].split(64)),
        "optimizer": torch.optim.Adam(model.parameters(), 1e-3),
        "loader": list(zip(x.split(64), y.split(64), strict=True)),
        "loss": nn.functional.cross_entropy,
        "example": x[:4],
    }
    exec(blocks(root)[0], given)
    file = Model.load("model.onnx")
    assert len(file.claims) == len(given["sparsity"].masks) > 0
    assert accuracy(model, digits) > before - 0.03


def test_the_docstring_and_the_page_say_the_same(root: Path) -> None:
    def calls(text: str) -> list[str]:
        lines = (line.split("#")[0].strip() for line in text.splitlines())
        return [
            line
            for line in lines
            if re.search(r"\b(sparsify|quantize|keep_masks|export)\b\(", line)
        ]

    doc = (onnx24.torch.__doc__ or "").split("\n\n")[1:4]
    assert calls("\n".join(doc)) == calls(blocks(root)[0])


def test_a_schedule_is_given_as_on_the_page(root: Path, digits) -> None:
    given = {**vars(onnx24.torch), "model": dense("conv", digits)}
    exec(blocks(root)[1], given)
    assert given["sparsity"].sparsity == 0.25
