"""`check` on the command line: formats, several models, baseline, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from cli_support import document, invoke, onnx24

from onnx24.testing.generate import mlp


@pytest.fixture
def models(work: Path, model_path: Path) -> Path:
    """m.onnx (dense), models/a.onnx (dense), models/b/b.onnx (dense), models/bad.onnx."""
    (work / "models" / "b").mkdir(parents=True)
    for name in ("models/a.onnx", "models/b/b.onnx"):
        onnx.save(mlp([64, 64, 32]), work / name)
    (work / "models" / "bad.onnx").write_bytes(b"no model")
    (work / "any.toml").write_text("[model]\nmax_opset = 17\n")
    return work


def test_an_unknown_form_names_the_nearest(model_path: Path) -> None:
    result = invoke("check", model_path, "--format", "jsn")
    assert result.exit_code == 2 and "did you mean 'json'" in result.stderr
    assert "expected one of text, json, sarif, junit, github" in result.stderr


@pytest.mark.parametrize("arguments", [["models"], ["models/**/*.onnx"]])
def test_several_models_have_one_summary(models: Path, arguments: list[str]) -> None:
    result = invoke("check", *arguments, "--policy", "any.toml")
    assert result.exit_code == 2, "a file that is no model is worse than a policy that is not met"
    assert result.stdout.endswith("3 models: 2 met, 1 refused\n")
    found = document(invoke("check", *arguments, "--policy", "any.toml", "--json"))
    assert found["summary"] == {"met": 2, "refused": 1} and found["met"] is False
    assert [m["file"] for m in found["models"]] == [
        "models/a.onnx",
        "models/b/b.onnx",
        "models/bad.onnx",
    ]


def test_forms_for_machines(models: Path) -> None:
    result = invoke("check", "models", "--format", "sarif", "-o", "r.sarif")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "")
    run = json.loads((models / "r.sarif").read_text())["runs"][0]
    assert {r["ruleId"] for r in run["results"]} == {"O24-611", "O24-002"}
    suites = ElementTree.fromstring(invoke("check", "models", "--format", "junit").stdout)
    assert (suites.get("failures"), suites.get("errors")) == ("2", "1")
    lines = invoke("check", "m.onnx", "--format", "github").stdout.splitlines()
    assert len(lines) == 1 and lines[0].startswith("::error file=m.onnx,title=O24-611")
    refused = invoke("check", "models/bad.onnx", "--format", "sarif")
    assert refused.exit_code == 2 and "O24-002" in refused.stdout


def test_a_baseline_accepts_what_is_known_and_nothing_else(models: Path) -> None:
    assert invoke("check", "m.onnx", "models/a.onnx").exit_code == 1
    result = invoke("check", "m.onnx", "--write-baseline", "known.json")
    assert result.exit_code == 1 and "1 findings accepted" in result.stderr
    accepted = invoke("check", "m.onnx", "--baseline", "known.json")
    assert accepted.exit_code == 0 and "1 findings are accepted" in accepted.stdout
    assert invoke("check", "m.onnx", "models/a.onnx", "--baseline", "known.json").exit_code == 1
    found = document(invoke("check", "m.onnx", "--baseline", "known.json", "--json"))
    assert found["findings"] == [] and found["accepted"][0]["code"] == "O24-611"
    bad = invoke("check", "models/bad.onnx", "--baseline", "known.json")
    assert bad.exit_code == 2, "there is nothing to accept about a file that is no model"
    (models / "other.json").write_text("[]")
    result = invoke("check", "m.onnx", "--baseline", "other.json")
    assert result.exit_code == 2 and "O24-046" in result.stderr


def test_explanations_and_presets(models: Path) -> None:
    result = invoke("check", "m.onnx", "--policy", "sparse-int8", "--explain")
    assert result.exit_code == 1
    assert "O24-640 quantized share too low: Fewer products" in result.stdout
    result = invoke("check", "m.onnx", "--policy", "tensorrt-importable")
    assert result.exit_code == 0, result.stdout


def test_standard_input(model_path: Path) -> None:
    data = model_path.read_bytes()
    found = document(invoke("check", "-", "--json", input=data))
    assert (found["file"], found["met"]) == ("-", False)
    assert invoke("check", "-", input=b"garbage").exit_code == 2


def test_an_empty_folder_and_a_missing_backend(models: Path) -> None:
    (models / "empty").mkdir()
    result = invoke("check", "empty")
    assert result.exit_code == 2 and "O24-045" in result.stderr
    (models / "build.toml").write_text("[backend]\nbuild = 'trtexec'\n")
    result = invoke("check", "m.onnx", "--policy", "build.toml")
    assert result.exit_code == 3 and "O24-500" in result.stderr


def test_the_real_command_in_its_own_process(models: Path) -> None:
    done = onnx24("check", "models", "--policy", "any.toml", "--jobs", "2", cwd=models)
    assert done.returncode == 2 and b"3 models: 2 met, 1 refused" in done.stdout
    assert done.stderr == b""


# --- provenance -------------------------------------------------------------------------------


def test_what_a_compiled_model_says_of_its_making(work: Path, model_path: Path) -> None:
    compiled = invoke("compile", "m.onnx", "-o", "out.onnx", "--preset", "sparse")
    assert compiled.exit_code == 0
    first = (work / "out.onnx").read_bytes()
    result = invoke("verify-provenance", "out.onnx", "--input", "m.onnx")
    assert result.exit_code == 0 and "the record holds" in result.stdout
    found = document(invoke("verify-provenance", "out.onnx", "--json"))
    assert found["verified"] and found["recorded"]["target"] == "sm86-trt10"
    assert found["recorded"]["pipeline"].startswith("canonicalize,prune24")
    assert "calibration_sha256" not in found["recorded"]
    strict = "[provenance]\nrequired = true\npipeline = '*prune24*'\nmin_version = '0.1'\n"
    (work / "p.toml").write_text(strict)
    assert invoke("check", "out.onnx", "--policy", "p.toml").exit_code == 0
    (work / "out.onnx").unlink()
    invoke("compile", "m.onnx", "-o", "out.onnx", "--preset", "sparse")
    assert (work / "out.onnx").read_bytes() == first, "the record holds no time and no path"


def test_the_report_of_the_run_and_no_other(work: Path, model_path: Path) -> None:
    made = invoke("opt", "m.onnx", "-o", "out.onnx", "--pipeline", "prune24", "--report", "r.json")
    assert made.exit_code == 0
    asked = ("verify-provenance", "out.onnx", "--report", "r.json")
    assert invoke(*asked).exit_code == 0
    text = (work / "r.json").read_text()
    (work / "r.json").write_text(text.replace('"pruned":', '"prunes":'))
    result = invoke(*asked)
    assert result.exit_code == 1 and "is not the report" in result.stdout
    (work / "r.json").write_text("{}")
    assert invoke(*asked).exit_code == 2


def test_a_changed_model_and_another_input_are_seen(work: Path, model_path: Path) -> None:
    invoke("compile", "m.onnx", "-o", "out.onnx", "--preset", "sparse")
    onnx.save(mlp([64, 64, 32], seed=5), work / "other.onnx")
    result = invoke("verify-provenance", "out.onnx", "--input", "other.onnx")
    assert result.exit_code == 1 and "it was made of" in result.stdout
    proto = onnx.load(work / "out.onnx")
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    onnx.save(proto, work / "changed.onnx")
    result = invoke("verify-provenance", "changed.onnx")
    assert result.exit_code == 1 and "was changed after" in result.stdout
    result = invoke("verify-provenance", "m.onnx")
    assert result.exit_code == 1 and "no entry 'onnx24.version'" in result.stdout


def test_weights_may_move_into_a_data_file(work: Path, model_path: Path) -> None:
    invoke("compile", "m.onnx", "-o", "out.onnx", "--preset", "sparse", "--external", "external")
    assert invoke("verify-provenance", "out.onnx").exit_code == 0
    onnx.save(onnx.load(work / "out.onnx"), work / "moved.onnx")
    assert invoke("verify-provenance", "moved.onnx").exit_code == 0


def test_a_second_run_keeps_the_origin(work: Path, model_path: Path) -> None:
    invoke("compile", "m.onnx", "-o", "one.onnx", "--preset", "sparse")
    invoke("cast16", "one.onnx", "-o", "two.onnx")
    found = document(invoke("verify-provenance", "two.onnx", "--input", "m.onnx", "--json"))
    assert found["verified"], found["problems"]
    assert found["recorded"]["pipeline"].endswith("cast16")
    assert found["recorded"]["origin_sha256"] != found["recorded"]["source_sha256"]
    assert document(invoke("verify-provenance", "two.onnx", "--input", "one.onnx", "--json"))[
        "verified"
    ]


@pytest.mark.parametrize("strengths", [("full", "fast"), ("fast", "full"), ("full", "full")])
def test_the_origin_is_its_data_files_too(
    work: Path, model_path: Path, strengths: tuple[str, str]
) -> None:
    """Weights times 3 passed as the same origin."""
    onnx.save(
        onnx.load("m.onnx"), "big.onnx", save_as_external_data=True, location="d", size_threshold=9
    )
    made = [("prune24", "big.onnx", "one.onnx"), ("cast16", "one.onnx", "two.onnx")]
    made.append(("equalize", "two.onnx", "three.onnx"))
    for (name, model, out), strength in zip(made, (*strengths, "full"), strict=True):
        assert invoke(name, model, "-o", out, "--provenance", strength).exit_code == 0
    for last in ("two.onnx", "three.onnx"):
        asked = ("verify-provenance", last, "--input", "big.onnx")
        result = invoke(*asked)
        assert result.exit_code == 0, result.stdout
        kept = (work / "d").read_bytes()
        (work / "d").write_bytes((3 * np.frombuffer(kept, np.float32)).tobytes())
        result = invoke(*asked)
        assert result.exit_code == 1 and "the data files of big.onnx" in result.stdout
        (work / "d").write_bytes(kept)


def test_calibration_is_recorded(work: Path, model_path: Path) -> None:
    invoke("compile", "m.onnx", "-o", "out.onnx", "--pipeline", "qdq", "--calib", "random:4")
    found = document(invoke("verify-provenance", "out.onnx", "--json"))
    assert len(found["recorded"].get("calibration_sha256", "")) == 64


def test_a_fast_record_is_of_checksums(work: Path, model_path: Path) -> None:
    pruned = ("prune24", "m.onnx", "-o", "out.onnx", "--provenance", "fast")
    assert invoke(*pruned, "--external", "external").exit_code == 0
    result = invoke("verify-provenance", "out.onnx", "--input", "m.onnx")
    assert result.exit_code == 0 and "not against people" in result.stdout
    found = document(invoke("verify-provenance", "out.onnx", "--json"))["recorded"]
    assert "content_sha256" not in found and len(found["content_checksum"]) == 64
    assert "source_data_checksum" not in found, "the input has no data file"
    onnx.save(onnx.load(work / "out.onnx"), work / "moved.onnx")
    assert invoke("verify-provenance", "moved.onnx").exit_code == 0
    (work / "p.toml").write_text("[provenance]\nrequired = true\n")
    assert invoke("check", "out.onnx", "--policy", "p.toml").exit_code == 0
    (work / "p.toml").write_text("[provenance]\nfull = true\n")
    refused = invoke("check", "out.onnx", "--policy", "p.toml")
    assert refused.exit_code == 1 and "by a checksum" in refused.stdout
    again = ("cast16", "out.onnx", "-o", "two.onnx")
    assert invoke(*again).exit_code == 0
    assert invoke("check", "two.onnx", "--policy", "p.toml").exit_code == 0
    found = document(invoke("verify-provenance", "two.onnx", "--input", "out.onnx", "--json"))
    assert found["verified"] and "content_checksum" not in found["recorded"]


def test_a_fast_record_shows_a_changed_bit(work: Path, model_path: Path) -> None:
    onnx.save(
        onnx.load("m.onnx"), "big.onnx", save_as_external_data=True, location="d", size_threshold=9
    )
    assert invoke("prune24", "big.onnx", "-o", "out.onnx", "--provenance", "fast").exit_code == 0
    asked = ("verify-provenance", "out.onnx", "--input", "big.onnx")
    result = invoke(*asked)
    assert result.exit_code == 0, result.stdout
    for name, problem in (("d", "the data files of"), ("out.onnx.data", "was changed after")):
        data = bytearray((work / name).read_bytes())
        data[2000] ^= 1
        (work / name).write_bytes(data)
        result = invoke(*asked)
        assert result.exit_code == 1 and problem in result.stdout
        data[2000] ^= 1
        (work / name).write_bytes(data)


def test_a_record_that_is_not_wanted(work: Path, model_path: Path) -> None:
    invoke("prune24", "m.onnx", "-o", "one.onnx")
    invoke("cast16", "one.onnx", "-o", "two.onnx", "--provenance", "off")
    recorded = document(invoke("verify-provenance", "two.onnx", "--json"))["recorded"]
    assert list(recorded) == ["pipeline"], "the record of one.onnx would be wrong here"
    result = invoke("cast16", "m.onnx", "-o", "x.onnx", "--provenance", "none")
    assert result.exit_code == 2 and "expected one of auto, full, fast, off" in result.stderr
