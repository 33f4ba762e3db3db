"""`compile`, `opt`, each pass, `compare` and `bisect` on trained and on made models."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_support import document, invoke, onnx24
from onnx import TensorProto, helper

from onnx24.cli import pass_commands
from onnx24.ir.model import Model
from onnx24.passmgr import registry
from onnx24.passmgr.options import field_options
from onnx24.testing.generate import mlp

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.fixture
def calib(work: Path) -> Path:
    """64 samples for `m.onnx`."""
    path = work / "calib.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((64, 64), np.float32))
    return path


def runs(path: Path) -> Any:
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((3, 64), np.float32)})[0]


def without_run(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "run"}


def test_a_trained_cnn_becomes_sparse_int8(
    work: Path, fixture_models: Any, digits_calib: Path
) -> None:
    model = fixture_models["cnn"].path
    before = model.read_bytes()
    arguments = ["compile", model, "-o", "out.onnx", "--calib", digits_calib]
    result = invoke(*arguments, "--report", "r.json", "--report", "r.html", "--report", "r.txt")
    assert result.exit_code == 0, result.output
    assert result.stdout == "" and "pruned" in result.stderr
    report = json.loads((work / "r.json").read_text(encoding="utf-8"))
    assert report["status"] == "done"
    assert report["input"]["sha256"] == hashlib.sha256(before).hexdigest()
    assert report["output"]["sha256"] == hashlib.sha256(Path("out.onnx").read_bytes()).hexdigest()
    assert report["coverage"]["share"] == 1.0
    assert "prune24" in report["pipeline"] and "@" not in report["pipeline"]
    uses = {data["use"]: data for data in report["data"]}
    assert uses["calibration"]["samples"] == 224 and uses["comparison"]["samples"] == 32
    assert not uses["comparison"]["random"]
    assert report["comparison"]["outputs"][0]["sqnr_db"] > 5
    # Every initializer of the input has a line; every weight of a product says what happened.
    names = [weight["name"] for weight in report["weights"] if weight["in_input"]]
    assert names == [tensor.name for tensor in onnx.load(str(model)).graph.initializer]
    for weight in report["weights"]:
        if weight.get("verdict"):
            assert any(step["pass"] == "prune24" for step in weight["steps"]), weight["name"]
        if weight["sparse"]:
            assert "qdq" in [step["pass"] for step in weight["steps"]], weight["name"]
    assert Model.load("out.onnx").claims.keys()
    assert max(map(len, (work / "r.txt").read_text(encoding="utf-8").splitlines())) <= 100
    assert "</html>" in (work / "r.html").read_text(encoding="utf-8")
    assert model.read_bytes() == before
    assert invoke("check", "out.onnx").exit_code == 0


def test_the_same_command_gives_the_same_bytes(model_path: Path, calib: Path) -> None:
    documents, files = [], []
    for _ in range(2):
        result = invoke("compile", model_path, "-o", "out.onnx", "--calib", calib, "--json")
        assert result.exit_code == 0, result.output
        documents.append(without_run(document(result)))
        files.append(Path("out.onnx").read_bytes())
    assert files[0] == files[1]
    assert documents[0] == documents[1]


def test_without_data_nothing_is_measured_and_nothing_random_is_used(model_path: Path) -> None:
    result = invoke("compile", model_path, "--json")
    assert result.exit_code == 0, result.output
    report = document(result)
    assert report["data"] == [] and report["comparison"] is None
    assert report["pipeline"].endswith("cast16,check24"), "sparse-fp16 is the default"
    assert runs(Path("m.onnx24.onnx")).shape == (3, 32)


def test_random_data_is_named_loudly(model_path: Path) -> None:
    result = invoke("compile", model_path, "--calib", "random:16", "--shapes", "x:4x64")
    assert result.exit_code == 0, result.output
    assert "RANDOM numbers, no real data" in result.stderr and "O24-034" in result.stderr


def test_an_unmet_limit_is_exit_code_1_and_leaves_no_model(
    work: Path, model_path: Path, calib: Path
) -> None:
    before = sorted(path.name for path in work.iterdir())
    arguments = ["compile", model_path, "-o", "out.onnx", "--calib", calib]
    result = invoke(*arguments, "--max-drop", "sqnr=200", "--report", "r.json")
    assert result.exit_code == 1
    assert "O24-600" in result.stderr and "expected at least 200" in result.stderr
    assert sorted(path.name for path in work.iterdir()) == [*before, "r.json"]
    report = json.loads((work / "r.json").read_text(encoding="utf-8"))
    assert report["status"] == "limits not met" and report["output"] is None
    assert not report["limits"][0]["met"]
    result = invoke(*arguments, "--max-drop", "sqnr=-20,cosine=-1,rel-l2=100")
    assert result.exit_code == 0 and Path("out.onnx").is_file()


def test_a_missing_backend_is_exit_code_3_before_the_work(work: Path, model_path: Path) -> None:
    if shutil.which("trtexec"):
        pytest.skip("trtexec is installed here")
    result = invoke("compile", model_path, "--backend", "trtexec", "--json")
    assert result.exit_code == 3
    assert document(result)["error"]["diagnostics"][0]["code"] == "O24-500"
    assert [path.name for path in work.iterdir()] == ["m.onnx"]


@pytest.mark.skipif(not HAS_RTX, reason="tensorrt-rtx is not installed")
def test_an_engine_is_built_and_reported(work: Path, model_path: Path) -> None:
    shapes = ["--shapes", "x:1x64:8x64:16x64"]
    result = invoke(
        *("compile", model_path, "-o", "out.onnx", "--backend", "tensorrt-rtx", *shapes, "--json")
    )
    assert result.exit_code == 0, result.output
    backend = document(result)["backend"]
    assert backend["engine"] == "out.engine" and backend["layers"]
    assert Path("out.engine").stat().st_size == backend["engine_bytes"]
    built = invoke("build", "out.onnx", "--backend", "tensorrt-rtx", *shapes, "--json")
    assert built.exit_code == 0 and document(built)["profiles"] == {"x": "1x64:8x64:16x64"}


def test_the_command_for_another_machine_is_printed(work: Path, model_path: Path) -> None:
    arguments = ["build", model_path, "--print-command", "--engine", "e.engine"]
    result = invoke(*arguments, "--shapes", "x:1x64:8x64:16x64", "--target", "sm80-trt8")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(
        f"trtexec --onnx={model_path} --saveEngine=e.engine --minShapes="
    )
    assert "--sparsity=enable" in result.stdout and "--buildOnly" in result.stdout
    as_json = invoke(*arguments, "--shapes", "x:8x64", "--json")
    assert "--skipInference" in document(as_json)["command"]
    assert [path.name for path in work.iterdir()] == ["m.onnx"]
    chosen = invoke(*arguments)
    assert "O24-053" in chosen.stderr and "--optShapes=x:1x64" in chosen.stdout
    assert invoke(*arguments, "--backend", "tensorrt-rtx").exit_code == 2
    rtx = invoke(*arguments, "--shapes", "x:8x64", "--target", "sm86-rtx1")
    assert rtx.exit_code == 3 and "O24-507" in rtx.stderr


@pytest.mark.skipif(not HAS_RTX, reason="tensorrt-rtx is not installed")
def test_shapes_that_a_build_lacks_are_chosen_and_said(work: Path, model_path: Path) -> None:
    arguments = ["compile", model_path, "-o", "out.onnx"]
    result = invoke(*arguments, "--backend", "tensorrt-rtx", "--report", "r.json")
    assert result.exit_code == 0, result.output
    assert "O24-053" in result.stderr and "--shapes x:1x64" in result.stderr
    assert Path("out.engine").exists() and "O24-053" in Path("r.json").read_text()
    # Turing has no FP32 GEMM in TensorRT-RTX: a build that fails names the sizes as well
    failed = invoke("build", model_path, "--target", "sm75-rtx1", "--backend", "tensorrt-rtx")
    assert (
        failed.exit_code == 3 and "O24-502" in failed.stderr and "--shapes x:1x64" in failed.stderr
    )


@pytest.mark.skipif(not HAS_RTX, reason="tensorrt-rtx is not installed")
def test_a_failed_build_is_exit_code_3_and_the_model_stays(work: Path, model_path: Path) -> None:
    arguments = ["--backend", "tensorrt-rtx", "--shapes", "x:4x64", "--timeout", "0.01"]
    result = invoke("compile", model_path, "-o", "out.onnx", *arguments, "--report", "r.json")
    assert result.exit_code == 3, result.output
    assert "O24-504" in result.stderr
    report = json.loads((work / "r.json").read_text(encoding="utf-8"))
    assert report["status"] == "no engine" and "error" in report["backend"]
    assert sorted(path.name for path in work.iterdir()) == ["m.onnx", "out.onnx", "r.json"]


def test_a_model_through_pipes(work: Path, model_path: Path) -> None:
    done = onnx24("compile", "-", cwd=work, input=model_path.read_bytes())
    assert done.returncode == 0, done.stderr
    (work / "piped.onnx").write_bytes(done.stdout)
    assert runs(work / "piped.onnx").shape == (3, 32)
    assert b"2:4" in done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["m.onnx", "piped.onnx"]


def test_what_onnx_runtime_refuses_is_exit_code_2(work: Path) -> None:
    proto = mlp([64, 32])
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(proto, "custom.onnx")
    result = invoke("compile", "custom.onnx", "--json")
    assert result.exit_code == 2
    assert document(result)["error"]["diagnostics"][0]["code"] in ("O24-011", "O24-016")
    assert [path.name for path in work.iterdir()] == ["custom.onnx"]


# --- opt and the passes ---------------------------------------------------------------------------


def test_opt_shows_what_each_pass_does(work: Path, model_path: Path) -> None:
    result = invoke(
        *("opt", model_path, "-o", "out.onnx", "--pipeline", "canonicalize,prune24,check24"),
        *("--print-after", "prune24", "--dump", "dumps", "--time", "--guard", "each"),
    )
    assert result.exit_code == 0, result.output
    assert "// after 2: prune24" in result.stderr and "2:4" in result.stderr
    assert "seconds" in result.stderr and "compared prune24" in result.stderr
    assert (work / "dumps" / "000-input.txt").is_file()
    assert any("prune24" in path.name for path in (work / "dumps").iterdir())
    assert runs(work / "out.onnx").shape == (3, 32)


def test_stop_after_counts_sites(model_path: Path) -> None:
    for limit in (0, 1, 2):
        result = invoke(
            *("opt", model_path, "--pipeline", "prune24", "--stop-after", limit, "--json")
        )
        assert result.exit_code == 0, result.output
        assert len(document(result)["sites"]) == limit


def test_a_pipeline_that_changes_nothing_copies_the_bytes(model_path: Path) -> None:
    assert invoke("opt", model_path, "-o", "out.onnx", "--pipeline", "").exit_code == 0
    assert Path("out.onnx").read_bytes() == model_path.read_bytes()


def test_a_pass_that_is_not_in_the_pipeline_cannot_be_printed(model_path: Path) -> None:
    result = invoke("opt", model_path, "--pipeline", "prune24", "--print-after", "prune2")
    assert result.exit_code == 2 and "did you mean 'prune24'?" in result.stderr


@pytest.mark.parametrize("name", pass_commands.own_names())
def test_every_pass_is_a_command_with_its_options(name: str, model_path: Path, calib: Path) -> None:
    cls = registry.get(name)
    shown = invoke(name, "--help")
    assert shown.exit_code == 0
    for option in field_options(cls):
        assert option.flag in shown.stdout and option.help.split()[0] in shown.stdout
    result = invoke(name, model_path, "-o", "out.onnx", "--calib", calib, "--json")
    assert result.exit_code == 0, result.output
    assert [entry["pass"] for entry in document(result)["passes"]] == [name]
    assert runs(Path("out.onnx")).shape == (3, 32)


def test_no_option_of_a_pass_hides_a_common_one() -> None:
    for name in pass_commands.own_names():
        fields = {option.field for option in field_options(registry.get(name))}
        assert not fields & {*pass_commands.COMMON, "model"}, name


def test_options_of_a_pass_mean_the_same_as_in_a_pipeline(model_path: Path) -> None:
    flags = ["--include", "fc0*", "--min-elements", "10"]
    one = invoke("prune24", model_path, "-o", "a.onnx", *flags)
    text = "prune24{include=fc0* min-elements=10}"
    two = invoke("opt", model_path, "-o", "b.onnx", "--pipeline", text)
    assert one.exit_code == two.exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert invoke("diff", "a.onnx", "b.onnx", "--exit-code").exit_code == 0


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--method", "magnitud"], "O24-023"),
        (["--min-elements", "many"], "O24-023"),
        (["--methd", "magnitude"], "O24-043"),
    ],
)
def test_bad_options_of_a_pass(model_path: Path, flags: list[str], code: str) -> None:
    result = invoke("prune24", model_path, *flags, "--json")
    assert result.exit_code == 2
    assert document(result)["error"]["diagnostics"][0]["code"] == code


def test_passes_lists_options_presets_and_problems() -> None:
    listed = document(invoke("passes", "--json"))
    names = [entry["name"] for entry in listed["passes"]]
    assert names[: len(pass_commands.own_names())] == pass_commands.own_names()
    assert "sparse-int8" in listed["presets"]
    assert all(entry["summary"] for entry in listed["passes"])
    text = invoke("passes").stdout
    assert max(map(len, text.splitlines())) <= 100 and "sparse-int8" in text


# --- compare and bisect ---------------------------------------------------------------------------


def test_compare_measures_and_holds_limits(model_path: Path, calib: Path) -> None:
    assert invoke("prune24", model_path, "-o", "sparse.onnx").exit_code == 0
    same = invoke("compare", model_path, model_path, "--data", calib, "--json")
    assert same.exit_code == 0 and same.stderr == ""
    assert document(same)["comparison"]["outputs"][0]["max_abs"] == 0
    assert document(same)["comparison"]["outputs"][0]["sqnr_db"] == "inf"
    both = ["compare", model_path, "sparse.onnx", "--data", calib]
    measured = document(invoke(*both, "--json"))["comparison"]["outputs"][0]
    assert 0 < measured["rel_l2"] < 1
    result = invoke(*both, "--max-drop", f"rel-l2={measured['rel_l2'] / 2}", "--json")
    assert result.exit_code == 1
    assert document(result)["met"] is False and "O24-600" in result.stderr
    assert invoke(*both, "--max-drop", f"rel-l2={measured['rel_l2'] * 2}").exit_code == 0


def test_compare_looks_for_test_data_beside_the_model(work: Path, model_path: Path) -> None:
    folder = work / "test_data_set_0"
    folder.mkdir()
    x = np.ones((2, 64), np.float32)
    (folder / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(x, "x").SerializeToString())
    result = invoke("compare", model_path, model_path, "--json")
    assert result.exit_code == 0, result.output
    assert document(result)["data"]["description"] == f"{work}: 1 run"


def test_compare_layers(model_path: Path, calib: Path) -> None:
    assert invoke("prune24", model_path, "-o", "sparse.onnx").exit_code == 0
    both = ["compare", model_path, "sparse.onnx", "--data", calib, "--layers"]
    layers = {out["name"]: out for out in document(invoke(*both, "--json"))["layers"]["outputs"]}
    assert {"m0", "a0", "r0", "m1"} <= set(layers)
    assert layers["m0"]["rel_l2"] > 0


def test_models_with_other_outputs_cannot_be_compared(work: Path, model_path: Path) -> None:
    proto = onnx.load(model_path)
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "other"
    onnx.save(proto, "other.onnx")
    result = invoke("compare", model_path, "other.onnx", "--data", "random:2", "--json")
    assert result.exit_code in (1, 2)
    assert list(document(result)) == ["error"]


def test_bisect_names_the_weight(work: Path) -> None:
    proto = mlp([64, 64, 64, 64])
    for tensor in proto.graph.initializer:  # pruning the others changes nothing
        if tensor.name.endswith("weight") and tensor.name != "fc1.weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[::4] = values[1::4] = 1e-12
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, "m.onnx")
    result = invoke("bisect", "m.onnx", "--pipeline", "prune24", "--data", "random:4", "--json")
    assert result.exit_code == 0, result.output
    found = document(result)
    assert found["verdict"] == "found" and found["site"] == "fc1.weight"
    result = invoke("bisect", "m.onnx", "--pipeline", "prune24", "--command", "test -s {model}")
    assert result.exit_code == 0 and "the result is good" in result.stdout
    result = invoke("bisect", "m.onnx", "--pipeline", "prune24", "--command", "false")
    assert result.exit_code == 1 and "with no site transformed" in result.stdout


def test_external_data_goes_beside_the_output(work: Path) -> None:
    proto = mlp([64, 64, 32])
    onnx.save(proto, "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    refused = invoke("opt", "-", "--pipeline", "", input=Path("m.onnx").read_bytes())
    assert refused.exit_code == 2 and "O24-042" in refused.stderr
    result = invoke("prune24", "m.onnx", "-o", "out.onnx")
    assert result.exit_code == 0, result.output
    assert Path("out.onnx.data").is_file() and runs(Path("out.onnx")).shape == (3, 32)
    result = invoke("prune24", "m.onnx", "-o", "one.onnx", "--external", "embed")
    assert result.exit_code == 0 and not Path("one.onnx.data").exists()
    assert runs(Path("one.onnx")).shape == (3, 32)


def test_weights_that_are_no_products_are_said_to_be_so(work: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [helper.make_tensor("s", TensorProto.FLOAT, [4], [1, 2, 3, 4])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), "scale.onnx")
    result = invoke("compile", "scale.onnx", "--preset", "sparse", "--json")
    assert result.exit_code == 0, result.output
    (weight,) = document(result)["weights"]
    assert weight["steps"][0]["code"] == "O24-110" and not weight["sparse"]
