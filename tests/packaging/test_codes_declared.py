"""A pass declares every code that it says: where the code stands in its file, and where a verdict
on a weight brings it. `Context.record` refuses others, on the model of a user."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from onnx24.passes import MANIFEST

from onnx24.passmgr import registry
from onnx24.passmgr.base import code_ids

ROOT = Path(__file__).resolve().parents[2]
SAYING = {"record", "record_weight", "refuse_node", "diagnostic", "_record", "_refuse"}


def said(tree: ast.AST) -> set[str]:
    """Codes that stand as arguments of what says something."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in SAYING:
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {text for text in found if isinstance(text, str) and re.fullmatch(r"O24-\d{3}", text)}


@pytest.mark.parametrize("name", MANIFEST)
def test_a_pass_declares_what_it_says(name: str) -> None:
    cls = registry.get(name)
    path = ROOT / "passes" / f"{cls.__module__.rsplit('.', 1)[1]}.py"
    assert said(ast.parse(path.read_text(encoding="utf-8"))) <= set(code_ids(cls))


def test_prune24_declares_every_verdict() -> None:
    files = [ROOT / "onnx24" / "analysis" / f"{name}.py" for name in ("eligibility", "weight_uses")]
    verdicts = {code for path in files for code in re.findall(r'"(O24-\d{3})"', path.read_text())}
    assert len(verdicts) > 10
    eligible = {"O24-101"}
    assert verdicts - eligible <= set(code_ids(registry.get("prune24")))
