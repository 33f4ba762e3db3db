"""Which backend is chosen, and what a missing one says."""

import sys
from pathlib import Path

import pytest

from onnx24 import targets
from onnx24.backends import base, get, names, tensorrt, trtexec
from onnx24.backends.tensorrt import TensorRT
from onnx24.backends.tensorrt_rtx import TensorRTRTX
from onnx24.errors import BackendError, InputError


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(TensorRT, "module", "absent_tensorrt")
    monkeypatch.setattr(TensorRTRTX, "module", "absent_tensorrt_rtx")


def test_unknown_backend():
    with pytest.raises(InputError, match="did you mean 'tensorrt-rtx'") as caught:
        get("tensorrt_rtx")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("tensorrt-rtx", "pip install 'onnx24[rtx]'"),
        ("tensorrt", "pip install 'onnx24[tensorrt]'"),
        ("trtexec", "trtexec on PATH"),
        ("auto", "pip install 'onnx24[rtx]'"),
    ],
)
def test_a_missing_backend_says_what_to_install(nothing_installed, name, install):
    with pytest.raises(BackendError) as caught:
        get(name)
    assert caught.value.code == "O24-500" and caught.value.exit_code == 3
    assert install in str(caught.value)


def test_building_with_a_missing_backend_touches_nothing(nothing_installed, tmp_path):
    with pytest.raises(BackendError):
        TensorRTRTX().build(Path("m.onnx"), targets.load("sm86"), engine=tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_first_that_is_there(monkeypatch, nothing_installed):
    monkeypatch.setattr(TensorRTRTX, "module", "json")  # any module that exists
    assert get("auto").name == "tensorrt-rtx"
    monkeypatch.setattr(TensorRT, "module", "json")
    monkeypatch.setattr(tensorrt, "cuda_devices", lambda: 1)
    assert get("auto").name == "tensorrt"
    assert get("auto", targets.load("sm86-rtx1")).name == "tensorrt-rtx"
    monkeypatch.setattr(tensorrt, "cuda_devices", lambda: 0)
    assert get("auto").name == "tensorrt-rtx"


def test_without_a_gpu_enterprise_tensorrt_is_not_available(monkeypatch, tmp_path):
    monkeypatch.setattr(TensorRT, "module", "json")
    monkeypatch.setattr(tensorrt, "cuda_devices", lambda: 0)
    assert "GPU" in TensorRT().available().hint
    monkeypatch.setattr(trtexec, "cuda_devices", lambda: 0)
    monkeypatch.setattr(trtexec.shutil, "which", lambda _: sys.executable)
    assert "GPU" in trtexec.Trtexec().available().hint


@pytest.mark.parametrize(
    ("version", "target", "fits"),
    [
        ("10.9.0", "sm86-trt10", True),
        ("10.9.0", "sm86-trt11", False),
        ("8.6.1", "sm86-trt8", True),
        ("10.9.0", "sm86-rtx1", False),
    ],
)
def test_the_installed_major_must_be_the_targets(monkeypatch, version, target, fits):
    monkeypatch.setattr(TensorRT, "version", lambda self: version)
    if fits:
        assert TensorRT().check_target(targets.load(target)) == []
        return
    with pytest.raises(BackendError, match=r"10\.9\.0") as caught:
        TensorRT().check_target(targets.load(target))
    assert caught.value.code == "O24-507"


def test_cuda_devices_without_a_driver(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(base.ctypes, "CDLL", absent)
    assert base.cuda_devices() == 0


def test_names():
    assert names() == ["tensorrt", "trtexec", "tensorrt-rtx"]
