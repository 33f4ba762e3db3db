"""The benchmarks that need a GPU, as far as they go without one: no time is printed there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from onnx24.backends.base import cuda_devices

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sparse_products.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sparse_products", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(cuda_devices() > 0, reason="a CUDA device is here")
def test_without_a_device_it_says_so_and_measures_nothing() -> None:
    done = run("--dry-run", "--types", "int8")
    assert done.returncode == 3 and "no CUDA device is present" in done.stderr
    assert len(done.stdout.splitlines()) == 12 and " ms" not in done.stdout
    assert (
        "bert-large, feed-forward up: 5 x build/spmm24_harness --type int8 --n 4096" in done.stdout
    )
    assert run().returncode == 3


def test_wrong_usage_and_help() -> None:
    assert run("--help").returncode == 0
    for wrong in (["--models", "gpt"], ["--m", "0"], ["--types", "fp64"]):
        assert run(*wrong).returncode == 2


def test_it_reads_what_the_harness_prints(script) -> None:
    """The two formats of spmm24_harness.cpp, with its numbers of columns."""
    text = (
        "device 0, sm_80, cuSPARSELt 802, fp16, N 768, K 768, compressed 663552 of 1179648 bytes\n"
        "M      1  bucket     16  algorithm   0  workspace         0     0.0123 ms      0.10 "
        "TFLOP/s  error 0.250\n"
        "M   8192  bucket   8192  algorithm   3  workspace   1048576     0.1000 ms     96.64 "
        "TFLOP/s  error 0.500  TOO LARGE\n"
    )
    assert script.harness_times(text) == {1: 0.0123, 8192: 0.1}
    source = (SCRIPT.parents[1] / "plugin" / "harness" / "spmm24_harness.cpp").read_text()
    assert (
        '"M %6lld  bucket %6lld  algorithm %3d  workspace %9zu  %9.4f ms  %8.2f TFLOP/s  "'
        in source
    )


def test_no_gain_is_printed_inside_the_noise(script) -> None:
    product = script.MODELS["bert-base"][0]
    assert (product.n, product.k) == (2304, 768)
    apart = script.Timing((1.0, 1.1, 1.2), (0.5, 0.55, 0.6))
    assert apart.gain == pytest.approx(2.0)
    assert script.Timing((0.5, 0.55), (1.0, 1.1)).gain == pytest.approx(0.5)
    touching = script.Timing((1.0, 1.1, 1.2), (0.7, 0.8, 1.05))
    assert touching.gain is None
    line = script.row("bert-base", "fp16", product, 64, touching)
    assert line.endswith("| in the noise |") and "1.1000 (1.0000 to 1.2000)" in line


@pytest.mark.skipif(cuda_devices() > 0, reason="a CUDA device is here")
def test_rtx_plans_are_compared_and_not_run() -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'onnx24[rtx]'")
    arguments = ("--width", "64", "--inner", "64", "--m", "8")
    done = run(*arguments, script=SCRIPT.with_name("rtx_sparsity.py"))
    assert done.returncode == 3 and "no engine was run" in done.stderr, done.stderr
    assert "the flag leaves the plan as it is" in done.stdout and " ms" not in done.stdout
