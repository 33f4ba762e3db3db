"""plugin/: the C++ tests under sanitizers, the packed form read there as it is written here, and
the real adapter and harness where cuSPARSELt is installed.

ONNX24_CUSPARSELT_ROOT names a folder with include/cusparseLt.h and lib/; without it the wheels
nvidia-cusparselt-cu13 and nvidia-cuda-runtime (with nvidia-cuda-crt) are looked for.
ONNX24_TENSORRT_ROOT names one with include/NvInfer.h.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx24.analysis.packed24 import words_of
from onnx24.sparsity.masks import prune_24
from onnx24.sparsity.pack import pack24

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
TIMEOUT_S = 300


def run(*command: object, **options: Any) -> subprocess.CompletedProcess:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, timeout=TIMEOUT_S, check=False, **options)


def built(*command: object) -> None:
    done = run(*command)
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, text[-4000:]


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++ compiler, where cmake is at hand too."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is installed")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    if shutil.which("ninja") is None and shutil.which("make") is None:
        pytest.skip("neither ninja nor make is installed")
    return found


def configure(compiler: str, folder: Path, *options: str) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    built(
        "cmake", "-S", PLUGIN, "-B", folder, *generator, f"-DCMAKE_CXX_COMPILER={compiler}",
        *options,
    )  # fmt: skip


def has_sanitizer(compiler: str, folder: Path, name: str) -> bool:
    """Whether a program can be built with it and runs: not so with tsan on some kernels."""
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text("int main() { return 0; }\n")
    flags = [f"-fsanitize={name}", "-pthread"]
    done = run(compiler, *flags, source, "-o", program)
    return done.returncode == 0 and run(program).returncode == 0


@pytest.fixture(scope="session")
def checked_build(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests, built with the address and undefined-behaviour sanitizers where there are any."""
    folder = tmp_path_factory.mktemp("spmm24")
    kinds = "address,undefined"
    sanitize = kinds if has_sanitizer(compiler, folder, kinds) else ""
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0 -g1 -Werror"]
    configure(compiler, folder, f"-DONNX24_SANITIZE={sanitize}", *flags)
    built("cmake", "--build", folder, "--parallel", "2")
    return folder


def test_the_unit_tests_under_sanitizers(checked_build: Path) -> None:
    done = run("ctest", "--output-on-failure", cwd=checked_build)
    text = done.stdout.decode()
    assert done.returncode == 0, text[-4000:]
    assert "100% tests passed" in text and "out of 2" in text


def test_the_plan_cache_under_the_thread_sanitizer(compiler: str, tmp_path: Path) -> None:
    if not has_sanitizer(compiler, tmp_path, "thread"):
        pytest.skip("the compiler has no thread sanitizer that runs here")
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0 -g1"]
    configure(compiler, tmp_path, "-DONNX24_SANITIZE=thread", *flags)
    targets = ["test_plan_cache", "test_plugin"]
    built("cmake", "--build", tmp_path, "--parallel", "2", "--target", *targets)
    for target in targets:
        done = run(tmp_path / target, cwd=tmp_path)
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == 0 and ", 0 failed" in text, text[-4000:]


@pytest.mark.parametrize("k", [4, 32, 36, 64, 100])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_what_python_packs_cpp_unpacks(checked_build: Path, dtype: str, k: int) -> None:
    rng = np.random.default_rng(k)
    w = prune_24((rng.standard_normal((7, k)) * 50).astype(dtype), 1)
    packed = pack24(w)
    words = words_of(packed.metadata).astype("<i4")
    tool = checked_build / "unpack_tool"
    data = packed.values.tobytes() + words.tobytes()
    done = run(tool, 7, k, w.dtype.itemsize, input=data)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.frombuffer(done.stdout, w.dtype).reshape(7, k), w)
    words[0, 0] ^= 0xF  # (0, 1) → (3, 2), and others as wrong
    done = run(tool, 7, k, w.dtype.itemsize, input=packed.values.tobytes() + words.tobytes())
    assert done.returncode == 1 and b"metadata" in done.stderr


# --- with the real library -------------------------------------------------------------------
@pytest.fixture(scope="session")
def cusparselt() -> Path:
    """A folder with cuSPARSELt and the CUDA runtime."""
    named = os.environ.get("ONNX24_CUSPARSELT_ROOT")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / "cu13"
        include = folder / "include"
        if all((include / n).is_file() for n in ("cusparseLt.h", "cuda_runtime_api.h")):
            return folder
    pytest.skip("no cuSPARSELt: set ONNX24_CUSPARSELT_ROOT, or install nvidia-cusparselt-cu13")


@pytest.fixture(scope="session")
def real_build(compiler: str, cusparselt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harness and, with TensorRT's headers, the plugin."""
    folder = tmp_path_factory.mktemp("spmm24-real")
    options = ["-DONNX24_TESTS=OFF", f"-DCUSPARSELT_ROOT={cusparselt}"]
    if root := os.environ.get("ONNX24_TENSORRT_ROOT"):
        options.append(f"-DTENSORRT_ROOT={root}")
    configure(compiler, folder, "-DCMAKE_CXX_FLAGS=-Werror", *options)
    built("cmake", "--build", folder, "--parallel", "2")
    return folder


def test_the_real_adapter_compiles_and_links(real_build: Path) -> None:
    assert (real_build / "spmm24_harness").is_file()
    if os.environ.get("ONNX24_TENSORRT_ROOT"):
        assert (real_build / "libonnx24_spmm24.so").is_file()
    assert run(real_build / "spmm24_harness", "--type", "fp64").returncode == 2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8"])
def test_real_products_are_right(real_build: Path, cusparselt: Path, kind: str, tmp_path) -> None:
    choices = tmp_path / "choices"
    common = ["--type", kind, "--n", 256, "--k", 512, "--m", "1,16,100,600", "--choices", choices]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(cusparselt / "lib")}
    for more in (["--search"], []):
        done = run(real_build / "spmm24_harness", *common, *more, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
