"""What the tests of benchmarks share."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Imports a module of a study by name; they are scripts and no package. The test's module names
    the `FOLDERS` of benchmarks that they lie in."""
    for folder in request.module.FOLDERS:
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load
