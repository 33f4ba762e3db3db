"""A few hundred of the cases of benchmarks/fuzz_check.py, and those that once failed."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from gate_support import codes, dense_mlp
from onnx import TensorProto

from onnx24.gate.judge import judge
from onnx24.report.policy import read_policy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "onnx24_fuzz_check", ROOT / "benchmarks" / "fuzz_check.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits need fork")
@pytest.mark.parametrize("seed", [0, 20260])
def test_mutated_models(fuzz: ModuleType, seed: int) -> None:
    statuses, failures, _slowest = fuzz.run(200, seed, fuzz.seeds(None), jobs=1)
    assert sum(statuses.values()) == 200 and not failures
    assert len(statuses) > 5, "mutations that all end alike test little"


def test_the_same_seed_gives_the_same_cases(fuzz: ModuleType) -> None:
    models = fuzz.seeds(None)
    assert list(fuzz.cases(30, 7, models)) == list(fuzz.cases(30, 7, models))


def _undefined_type(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.UNDEFINED
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w")


def _null_in_a_location(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="a\x00b")


def _long_location(proto: onnx.ModelProto) -> None:
    _null_in_a_location(proto)
    proto.graph.initializer[0].external_data[0].value = "x" * 5000


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_undefined_type, "O24-014"),
        (_null_in_a_location, "O24-006"),
        (_long_location, "O24-005"),
    ],
)
def test_cases_that_once_failed(tmp_path: Path, edit, code: str) -> None:
    proto = dense_mlp()
    edit(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    result = judge(str(path), read_policy("registry-strict"), target="sm86-trt10")
    assert (result.exit_code, codes(result)) == (2, [code])


@pytest.mark.parametrize("name", [b"MatMul", b"fc0.weight", b"location", b"place.bin"])
def test_names_that_are_no_text(tmp_path: Path, name: bytes) -> None:
    """protobuf hands out bytes where a name is not UTF-8."""
    proto = dense_mlp()
    if name in (b"location", b"place.bin"):
        _null_in_a_location(proto)
        proto.graph.initializer[0].external_data[0].value = "place.bin"
    data = proto.SerializeToString()
    assert name in data
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(name, b"\xff" * len(name)))
    result = judge(str(path), read_policy("registry-strict"), target="sm86-trt10")
    assert result.exit_code == 2 and codes(result)[0] in ("O24-002", "O24-005", "O24-006")
