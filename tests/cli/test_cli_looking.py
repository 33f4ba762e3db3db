"""`inspect` and `check` on models whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import document, invoke
from onnx import numpy_helper

from onnx24.ir.model import Model
from onnx24.testing.generate import mlp

MIXED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,8,4,4] x, float[8,8] a) => (float[1,8,4,4] y, float[8,8] z, float[8,6] v)
<float[8,8,1,1] conv, float[8,1,3,3] depthwise, float[8,8] left, float[8,6] odd>
{
  c = Conv(x, conv)
  y = Conv<group = 8, pads = [1,1,1,1]>(c, depthwise)
  z = MatMul(left, a)
  v = MatMul(a, odd)
}
"""


def filled(text: str, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model of a text whose `<float[..] name>` initializers get values."""
    proto = onnx.parser.parse_model(text)
    del proto.graph.initializer[:]
    kept = [value for value in proto.graph.value_info if value.name not in values]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    for name, array in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


@pytest.fixture
def mixed(work: Path) -> Path:
    """A 2:4 convolution (along C), a depthwise one, a left operand, and K = 8 to N = 6."""
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((8, 8, 1, 1), np.float32)
    conv[:, ::2] = 0
    values = {
        "conv": conv,
        "depthwise": rng.standard_normal((8, 1, 3, 3), np.float32),
        "left": rng.standard_normal((8, 8), np.float32),
        "odd": rng.standard_normal((8, 6), np.float32),
    }
    path = work / "mixed.onnx"
    onnx.save(filled(MIXED, values), path)
    return path


def test_inspect_knows_axis_pattern_and_reason(mixed: Path) -> None:
    found = document(invoke("inspect", mixed, "--json"))
    rows = {row["name"]: row for row in found["weights"]}
    assert (rows["conv"]["axis"], rows["conv"]["k"], rows["conv"]["is_24"]) == (1, 8, True)
    assert rows["depthwise"]["code"] == "O24-112" and not rows["depthwise"]["eligible"]
    assert (rows["left"]["axis"], rows["left"]["is_24"]) == (1, False)
    assert (rows["odd"]["axis"], rows["odd"]["k"]) == (0, 8)
    assert found["coverage"] == {
        "eligible_weights": 3,
        "eligible_elements": 64 + 64 + 48,
        "sparse_weights": 1,
        "sparse_elements": 64,
        "all_elements": 64 + 72 + 64 + 48,
    }


def test_inspect_fits_the_terminal_and_changes_nothing(mixed: Path) -> None:
    before = mixed.read_bytes()
    result = invoke("inspect", mixed)
    assert result.exit_code == 0 and result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "1 of 3 eligible weights are 2:4" in result.stdout
    assert mixed.read_bytes() == before


def test_a_target_without_sparse_cores_makes_nothing_eligible(mixed: Path) -> None:
    found = document(invoke("inspect", mixed, "--target", "sm75", "--json"))
    assert {row["code"] for row in found["weights"] if row["name"] == "conv"} == {"O24-127"}
    assert found["coverage"]["eligible_weights"] == 0


def test_biases_are_counted_and_listed_on_request(model_path: Path) -> None:
    assert "fc0.bias" not in invoke("inspect", model_path).stdout
    assert "2 others: no matrix product's weight" in invoke("inspect", model_path).stdout
    assert "fc0.bias" in invoke("inspect", model_path, "--all").stdout


def sparse_mlp(path: Path, *, claim: bool, broken: bool = False) -> None:
    """An MLP of two weights, 2:4 along K; `broken`: but for one group of the first."""
    proto = mlp([64, 64, 32])
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("weight"):
            values = numpy_helper.to_array(tensor).copy()
            values[::4] = values[1::4] = 0
            if broken and tensor.name == "fc0.weight":
                values[4, 7] = 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    model = Model.from_proto(proto)
    if claim:
        model.claims.add("fc0.weight")
        model.claims.add("fc1.weight")
    model.save(path)


def test_the_built_in_policy_refuses_a_dense_model_and_takes_a_sparse_one(
    work: Path, model_path: Path
) -> None:
    result = invoke("check", model_path)
    assert result.exit_code == 1
    assert "policy built-in NOT met" in result.stdout and "O24-611" in result.stdout
    sparse_mlp(work / "sparse.onnx", claim=True)
    result = invoke("check", "sparse.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "policy built-in met" in result.stdout


def test_a_record_that_the_values_do_not_bear_out(work: Path) -> None:
    sparse_mlp(work / "lie.onnx", claim=True, broken=True)
    result = invoke("check", "lie.onnx", "--json")
    assert result.exit_code == 1
    found = document(result)
    assert found["met"] is False
    codes = [finding["code"] for finding in found["findings"]]
    assert codes == ["O24-807", "O24-611"]
    assert found["findings"][0]["where"]["tensor"] == "fc0.weight"
    assert found["findings"][0]["facts"]["violating"] == 1
    assert "RECORDED, IS NOT" in invoke("inspect", "lie.onnx").stdout


def test_a_policy_file_decides(work: Path, model_path: Path) -> None:
    (work / "p.toml").write_text("[model]\nmax_opset = 17\nmax_bytes = 100000\n")
    assert invoke("check", model_path, "--policy", "p.toml").exit_code == 0
    (work / "p.toml").write_text("[model]\nmax_opset = 16\n")
    result = invoke("check", model_path, "--policy", "p.toml", "--format", "json", "-o", "r.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert '"O24-620"' in (work / "r.json").read_text()
    (work / "p.toml").write_text("[model]\nmax_opsets = 16\n")
    result = invoke("check", model_path, "--policy", "p.toml")
    assert result.exit_code == 2 and "did you mean 'max_opset'" in result.stderr


def test_the_output_of_check_is_not_the_model(model_path: Path) -> None:
    before = model_path.read_bytes()
    assert invoke("check", model_path, "-o", model_path).exit_code == 2
    assert model_path.read_bytes() == before


def test_inspect_reads_standard_input(model_path: Path) -> None:
    result = invoke("inspect", "-", "--json", input=model_path.read_bytes())
    assert result.exit_code == 0 and document(result)["file"] == "-"
