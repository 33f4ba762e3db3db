"""Every fixture under fixtures/passes: see onnx24/testing/filecheck.py for the form.

With ONNX24_PRINT_DUMP=1 the text that is matched is printed (pytest -s shows it), to write the
CHECK lines from.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnx24.testing import filecheck

ROOT = Path(__file__).resolve().parents[2] / "fixtures"
FOLDERS = [ROOT / "passes", ROOT / "regress"]
FILES = [path for folder in FOLDERS for path in filecheck.fixtures(folder)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_fixture(path: Path) -> None:
    fixture = filecheck.read(path)
    for item in fixture.runs:
        text = filecheck.output(fixture, item)
        if os.environ.get("ONNX24_PRINT_DUMP"):
            print(f"\n// {path.name}: RUN({item.prefix}): {item.pipeline}\n{text}")
        complaint = filecheck.check(fixture, item, text)
        assert not complaint, f"{complaint}\nThe text was:\n{text}"
