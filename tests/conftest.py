"""Fixtures shared by all tests: real models and data, where they are at hand."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

# No deadline: tests share their cores. In CI the same examples each time, so that a red run can be
# repeated; elsewhere new ones.
settings.register_profile("onnx24", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("onnx24")

# `make test &` of a shell without job control ignores Ctrl-C, and every child would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def _no_gpu() -> str | None:
    """Why tests marked `gpu` can't run here, or None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "no CUDA device: nvidia-smi is not installed"
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    if listed.returncode != 0 or "GPU" not in listed.stdout:
        return "no CUDA device: nvidia-smi lists none"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        reason = _no_gpu()
        if reason:
            pytest.skip(reason)


def _load(path: Path, name: str) -> ModuleType:
    """Import a module of fixtures/, which is no package, by its path."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def shared_folder(part: str) -> Path:
    """`part` of the shared test material, or a skip that says where it was looked for.

    The material is $ONNX24_SHARED or `../shared` beside the repository; it is no part of the
    project, so every test that uses it must be skipped where it is absent. A folder that
    ONNX24_SHARED names and that is missing is a mistake, not an absence: that fails.
    """
    named = os.environ.get("ONNX24_SHARED")
    base = Path(named) if named else ROOT.parent / "shared"
    folder = base / part
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"ONNX24_SHARED is {named!r}, and {folder} is no folder")
    pytest.skip(f"no shared test material: set ONNX24_SHARED to a folder that holds {part}/")


@dataclass(frozen=True)
class FixtureModel:
    """A trained model of fixtures/models and its entry of models.json."""

    name: str
    path: Path
    entry: dict[str, Any]

    @property
    def input(self) -> str:
        return str(self.entry["input"])


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with `eval/` and `models/` of the shared test material."""
    return shared_folder("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder with the shared real models: `zoo/`, `structural/`, `negative/`, …"""
    return shared_folder("data/models")


@pytest.fixture(scope="session")
def fixture_models() -> dict[str, FixtureModel]:
    """The trained models of the project, by name: `vit` and `cnn`."""
    folder = ROOT / "fixtures" / "models"
    index = json.loads((folder / "models.json").read_text(encoding="utf-8"))
    return {
        name: FixtureModel(name, folder / entry["file"], entry) for name, entry in index.items()
    }


@pytest.fixture(scope="session")
def digits_data() -> ModuleType:
    """The module fixtures/data.py: `digits()`, `write_calibration(…)`, `accuracy(…)`."""
    return _load(ROOT / "fixtures" / "data.py", "onnx24_fixtures_data")


@pytest.fixture(scope="session")
def digits(digits_data: ModuleType) -> Any:
    """`Digits(train_x, train_y, test_x, test_y)`; images `[N, 1, 8, 8]` float32 in [0, 1]."""
    return digits_data.digits()


@pytest.fixture(scope="session")
def digits_calib(tmp_path_factory: pytest.TempPathFactory, digits_data: ModuleType) -> Path:
    """An `.npz` of 256 training images under the fixture models' input name."""
    path = tmp_path_factory.mktemp("calib") / "calib.npz"
    digits_data.write_calibration(path, "image", 256)
    return path


# --- the last Python 3.10 packages -----------------------------------------------------------
_PYTHON_310 = sys.version_info < (3, 11)
"""ONNX Runtime 1.23 is the last release for Python 3.10. What it can't run is skipped there, and
only there."""
_UNKNOWN_TO_ORT = (
    "Unsupported model IR version",
    "Current official support for domain",
    "Could not find an implementation for QuantizeLinear(23)",
)
_UNKNOWN_TO_ONNX = re.compile(r"opset \d+[^;]*; onnx \S+ knows up to")
_FLOAT16_QUANTIZERS = (
    "test_scales.py::test_bit_identical_to_onnx_runtime",
    "test_fold_qdq.py::test_weights_of_every_form",
    "test_fold_qdq.py::test_only_exact_pairs_cancel_in_float16",
    "test_cast16.py::test_quantized_layers_follow_their_scales",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    try:
        return (yield)
    except Exception as err:
        text = str(err)
        if _PYTHON_310 and (
            any(words in text for words in _UNKNOWN_TO_ORT) or _UNKNOWN_TO_ONNX.search(text)
        ):
            pytest.skip("newer than what onnx and ONNX Runtime for Python 3.10 know")
        raise


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "ONNX Runtime 1.23 rounds FP16 QuantizeLinear to another neighbour now and then"
    for item in items if _PYTHON_310 else ():
        if "test_odd_models.py::test_what_onnxruntime_refuses" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="the list is that of a newer ONNX Runtime"))
        quantizer = any(name in item.nodeid for name in _FLOAT16_QUANTIZERS)
        if quantizer and ("float16" in item.nodeid or "follow_their_scales" in item.nodeid):
            item.add_marker(pytest.mark.skip(reason=reason))
