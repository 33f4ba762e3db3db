"""`onnx24 build`: its options reach the builder, and its files are there."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_support import document, invoke, onnx24

from onnx24.backends.logs import layers_from_json

rtx = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'onnx24[rtx]')",
)
VIT = Path(__file__).resolve().parents[2] / "fixtures" / "models" / "vit.onnx"


@pytest.fixture
def calib(tmp_path):
    """24 images; what is stacked is fed 16 at a time."""
    np.savez(tmp_path / "calib.npz", image=np.zeros((24, 1, 8, 8), np.float32))
    return tmp_path / "calib.npz"


@rtx
def test_sizes_come_from_the_samples(tmp_path, calib):
    result = invoke(
        "build", VIT, "--target", "sm86-rtx1", "--engine", tmp_path / "e.engine",
        "--calib", calib, "--layers", tmp_path / "layers.json", "--log", tmp_path / "log.txt",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "profile image: 1x1x8x8:16x1x8x8:16x1x8x8 (from the samples)" in result.stdout
    layers = layers_from_json((tmp_path / "layers.json").read_text("utf-8"))
    assert any("block0.up.matmul" in layer.onnx_nodes for layer in layers)
    assert any(layer.reads and layer.writes for layer in layers)
    assert "[TRT]" in (tmp_path / "log.txt").read_text("utf-8")


@rtx
def test_shapes_go_before_samples(tmp_path, calib):
    result = invoke(
        "build", VIT, "--target", "sm86-rtx1", "--engine", tmp_path / "e.engine", "--json",
        "--calib", calib, "--shapes", "image:4x1x8x8",
    )  # fmt: skip
    assert document(result)["profiles"] == {"image": "4x1x8x8"}


@rtx
def test_compile_takes_the_sizes_from_its_samples(tmp_path, calib):
    result = invoke(
        "compile", VIT, "-o", tmp_path / "o.onnx", "--target", "sm86-rtx1", "--calib", calib,
        "--engine", tmp_path / "e.engine", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert document(result)["backend"]["profiles"] == {"image": "1x1x8x8:16x1x8x8:16x1x8x8"}


@rtx
@pytest.mark.parametrize("option", ["--refit", "--strip", "--version-compatible"])
def test_what_rtx_lacks_ends_in_3(tmp_path, option):
    result = invoke(
        "build", VIT, "--target", "sm86-rtx1", "--backend", "tensorrt-rtx", option,
        "--engine", tmp_path / "e.engine", "--shapes", "image:4x1x8x8",
    )  # fmt: skip
    assert result.exit_code == 3 and "O24-509" in result.stderr
    assert not (tmp_path / "e.engine").exists()


def test_the_printed_command_exports_for_the_ledger(calib):
    result = invoke(
        "build", VIT, "--target", "sm86-trt10", "--print-command", "--export", "run",
        "--calib", calib, "--hardware-compatibility", "ampere+", "--refit",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    argv = shlex.split(result.stdout)
    assert argv[0] == "trtexec" and "--maxShapes=image:16x1x8x8" in argv
    assert {"--exportLayerInfo=run.layers.json", "--exportTimes=run.times.json",
            "--exportProfile=run.profile.json", "--refit",
            "--hardwareCompatibilityLevel=ampere+"} <= set(argv)  # fmt: skip
    assert "--skipInference" not in argv


@pytest.mark.parametrize(
    "arguments",
    [
        ["--export", "run"],
        ["--hardware-compatibility", "hopper"],
    ],
)
def test_wrong_usage(arguments):
    result = invoke("build", VIT, "--shapes", "image:4x1x8x8", *arguments)
    assert result.exit_code == 2 and result.stdout == ""


def test_a_timing_cache_is_never_the_model(tmp_path):
    """Found by reading: TensorRT takes what is no cache for an empty one, and the new cache would
    have been written over the model. A folder that is not there is said before the build."""
    shutil.copy(VIT, tmp_path / "m.onnx")
    for path, code in (("m.onnx", "O24-041"), ("absent/x.cache", "O24-040")):
        result = invoke(
            "build", tmp_path / "m.onnx", "--target", "sm86-rtx1", "--shapes", "image:4x1x8x8",
            "--engine", tmp_path / "e.engine", "--timing-cache", tmp_path / path,
        )  # fmt: skip
        assert result.exit_code == 2 and code in result.stderr
    assert (tmp_path / "m.onnx").read_bytes() == VIT.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@rtx
def test_a_resnet50_builds(tmp_path):
    """benchmarks/build_time.py says how long it takes."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "build_time", Path(__file__).resolve().parents[2] / "benchmarks" / "build_time.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import onnx

    onnx.save_model(module.resnet50(), tmp_path / "resnet50.onnx")
    done = onnx24(
        "build", "resnet50.onnx", "--target", "sm86-rtx1", "--backend", "tensorrt-rtx",
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert len(json.loads(done.stdout)["layers"]) > 40
