"""`inspect` and `check` on models whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import document, invoke
from onnx import numpy_helper

from onnx24.cli.app import run
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
        "share": 64 / (64 + 64 + 48),
    }


def test_inspect_fits_the_terminal_and_changes_nothing(mixed: Path) -> None:
    before = mixed.read_bytes()
    result = invoke("inspect", mixed)
    assert result.exit_code == 0 and result.stderr == ""
    assert max(map(len, result.stdout.splitlines()[1:])) <= 100
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


def test_inspect_says_who_reads_a_weight_and_how(work: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 16] x, int64[T] ids) => (float[N, 8] y, float[T, 16] e, float[N, N] d)
    <float[8, 16] w, float[300, 260] big>
    {
      t = Transpose(w)
      u = Identity(t)
      [head] y = MatMul(x, u)
      [lookup] e = Gather(w, ids)
      z = Transpose(x)
      [both] d = MatMul(x, z)
    }"""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 16), np.float32)
    weight[:, ::2] = 0
    big = rng.standard_normal((300, 260), np.float32)
    onnx.save(filled(text, {"w": weight, "big": big}), work / "m.onnx")
    found = document(invoke("inspect", "m.onnx", "--json"))
    rows = {row["name"]: row for row in found["weights"]}
    row = rows["w"]
    assert (row["k"], row["n"], row["axis"], row["density"], row["is_24"]) == (16, 8, 1, 0.5, True)
    head, lookup = row["readers"]
    assert (head["node"], head["op"], head["chain"]) == ("head", "MatMul", ["Transpose"])
    assert (head["axis"], head["k"], head["n"], head["code"]) == (1, 16, 8, None)
    assert (lookup["node"], lookup["code"], lookup["k"]) == ("lookup", "O24-110", None)
    assert found["dynamic"] == [{"scope": "", "node": "both", "op": "MatMul"}]
    assert found["codes"] == {"O24-110": 1, "O24-116": 1, "O24-117": 1}
    shown = invoke("inspect", "m.onnx").stdout
    assert "50 %" in shown and "O24-117 not constant: 1" in shown and "both (MatMul)" in shown
    assert "O24-116 also read by something else: 1" in shown
    assert "head (MatMul, input 1) behind Transpose" in invoke("inspect", "m.onnx", "--all").stdout


def test_inspect_says_what_is_too_small_on_the_target(work: Path) -> None:
    proto = mlp([512, 512, 32])
    onnx.save(proto, work / "m.onnx")
    rows = document(invoke("inspect", "m.onnx", "--json"))["weights"]
    small = {row["name"]: row["small"] for row in rows if row["eligible"]}
    assert small == {"fc0.weight": "", "fc1.weight": "32 < 256 channels"}
    shown = invoke("inspect", "m.onnx").stdout
    assert "yes, small" in shown and "K or N below 256, too little to gain (1)" in shown


@pytest.mark.parametrize("width", [80, 100, 160])
def test_inspect_fits_every_width(work: Path, width: int) -> None:
    from onnx24 import targets
    from onnx24.report.inspection import inspect, render_inspection

    proto = mlp([66, 64, 32])
    for tensor in proto.graph.initializer:
        long = f"encoder/layers/with/a/very/long/path/of/modules/{tensor.name}"
        for node in proto.graph.node:
            node.input[:] = [long if name == tensor.name else name for name in node.input]
        tensor.name = long
    found = inspect(Model.from_proto(proto), targets.load("sm86"), "m.onnx")
    for show_all in (False, True):
        text = render_inspection(found, show_all=show_all, width=width)
        assert max(map(len, text.splitlines()[1:])) <= width
        assert "fc0.weight" in text and "O24-113" in text


def test_a_model_without_weights_says_so(work: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 16] x, float[16, N] z) => (float[N, N] y) { [p] y = MatMul(x, z) }"""
    onnx.save(onnx.parser.parse_model(text), work / "m.onnx")
    shown = invoke("inspect", "m.onnx").stdout
    assert "no weight of a matrix product" in shown and "p (MatMul)" in shown


@pytest.mark.parametrize(
    "command", ["inspect", "prune24", "permute24", "compile", "diff", "check24"]
)
@pytest.mark.parametrize(
    "name", ["\n", "a\nb\x1b[2J\r", "[/b]\u2028"], ids=["newline", "escape", "markup"]
)
def test_names_that_would_steer_a_terminal(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    proto = mlp([8, 8])
    weight, node = proto.graph.initializer[0], proto.graph.node[0]
    node.input[1] = weight.name = node.name = name
    Path("m.onnx").write_bytes(proto.SerializeToString())
    more = {
        "compile": ("-o", "out.onnx", "--preset", "sparse"),
        "diff": ("m.onnx",),
        "inspect": ("--all",),
        "check24": ("--require", "eligible"),
    }
    argv = [command, "m.onnx", *more.get(command, ("-o", "out.onnx"))]
    code = run(argv)
    said = "".join(capsys.readouterr())
    assert code == (1 if command == "check24" else 0), said
    assert all(c == "\n" or c.isprintable() for c in said)
