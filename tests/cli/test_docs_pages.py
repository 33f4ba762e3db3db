"""docs/cli.md, docs/passes.md and docs/codes.md come from the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx24.cli import app, pass_commands
from onnx24.codes import OWN
from onnx24.testing import docs


@pytest.mark.parametrize("name", docs.PAGES)
def test_the_page_is_not_stale(name: str) -> None:
    written = (docs.FOLDER / name).read_text(encoding="utf-8")
    assert written == docs.PAGES[name](), "run `python -m onnx24.testing.docs`"


def test_the_pages_leave_nothing_out() -> None:
    cli, passes, codes = (docs.PAGES[name]() for name in ("cli.md", "passes.md", "codes.md"))
    for name in app.group().own():
        assert f"## `onnx24 {name}`" in cli
    for name in pass_commands.own_names():
        assert f"## `{name}`" in passes
    for code in OWN:
        assert f"**{code}**" in codes


def test_a_stale_page_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for name, page in docs.PAGES.items():
        (folder / name).parent.resolve().mkdir(parents=True, exist_ok=True)
        (folder / name).resolve().write_text(page(), encoding="utf-8")
    assert docs.stale(folder) == []
    (folder / "codes.md").write_text("old", encoding="utf-8")
    (folder / "cli.md").unlink()
    assert docs.stale(folder) == ["cli.md", "codes.md"]


def test_wrong_usage_of_the_generator() -> None:
    assert docs.main(["--chekc"]) == 2
