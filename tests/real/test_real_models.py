"""Every real model at hand, through the two main presets.

The result is checker-valid, runs in ONNX Runtime, keeps its 2:4 pattern and its interface, and
builds in TensorRT-RTX wherever the original builds. Models that ONNX Runtime refuses end in a
clean diagnostic.
"""

import csv
import warnings
from pathlib import Path

import onnx
import pytest
from onnx24_real import PRESETS, compile_real, dense_builds, rtx_builds

from onnx24.cli.app import run
from onnx24.errors import InputError
from onnx24.ir.check import run_checker
from onnx24.ir.model import Model
from onnx24.ir.shapes import infer

SMALL = ("deeploy_golden", "polygraphy_tests")
"""Folders of operator graphs and of another tool's test models."""


def _models(shared: Path, *folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (shared / f).rglob("*.onnx"))


def _check(source: Path, preset: str, tmp_path: Path):
    out = tmp_path / "out.onnx"
    outcome = compile_real(source, preset, out)
    if outcome.refused:
        return outcome
    result = Model.load(out)
    # What only the exporter could know: the rank of an output that no inference finds.
    result.defects &= Model.load(source).defects & {"ahead-of-opset", "no-output-shape"}
    if "no-output-shape" in result.defects:
        table = infer(result)
        outputs = [v for v in result.proto.graph.output if not v.type.tensor_type.HasField("shape")]
        assert all(table.shape(v.name) is None for v in outputs)
    assert run_checker(result) is None, run_checker(result)
    assert not outcome.broken_claims
    assert outcome.same_interface
    assert outcome.finite
    return outcome


@pytest.mark.parametrize("preset", PRESETS)
def test_trained_and_structural_models(shared_models, tmp_path, preset):
    builds = 0
    for source in _models(shared_models, "zoo", "structural"):
        outcome = _check(source, preset, tmp_path)
        assert not outcome.refused, (source.name, outcome.refused)
        assert outcome.pruned or not outcome.eligible, source.name
        if dense_builds(shared_models, source):
            built = rtx_builds(tmp_path / "out.onnx", tmp_path / "out.engine")
            if built is None:
                continue  # no tensorrt_rtx here
            assert built == "", (source.name, built)
            builds += 1
    if builds == 0:
        warnings.warn("tensorrt-rtx is not installed; nothing was built", stacklevel=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_operator_graphs(shared_models, tmp_path, preset):
    refused = []
    for source in _models(shared_models, *SMALL):
        outcome = _check(source, preset, tmp_path)
        if outcome.refused:
            refused.append((source, outcome.refused))
            continue
        error = rtx_builds(tmp_path / "out.onnx", tmp_path / "out.engine")
        if error:
            assert rtx_builds(source, tmp_path / "out.engine"), (source, error)
    for source, error in refused:
        assert isinstance(error, InputError), (source, error)
        assert error.diagnostics[0].message
    runs = len(_models(shared_models, *SMALL)) - len(refused)
    print(f"{preset}: {runs} compiled, {len(refused)} refused")
    assert runs > 120


def test_negative_models_are_refused(shared_models, tmp_path, capsys):
    for source in _models(shared_models, "negative"):
        out = tmp_path / "out.onnx"
        assert run(["compile", str(source), "-o", str(out), "--preset", "sparse-fp16"]) == 2
        err = capsys.readouterr().err
        assert err.count("error:") == 1 and "Traceback" not in err, err
        assert list(tmp_path.iterdir()) == []


def test_manifest_matches_the_models(shared_models):
    with open(shared_models.parent / "manifest.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    files = [r["file"] for r in rows if r["file"].endswith(".onnx")]
    assert files
    for name in files:
        assert onnx.load(str(shared_models.parent / name), load_external_data=False).graph.node
