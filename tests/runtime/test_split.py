"""Samples held out are held out from every step, in any order of commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnx24.cli.app import run
from onnx24.ir.model import Model
from onnx24.layerwise import oneshot
from onnx24.recovery.samples import Samples
from onnx24.runtime.data import Calibration, load_data
from onnx24.runtime.split import Split
from onnx24.testing.generate import mlp


@pytest.fixture
def model(tmp_path: Path) -> str:
    Model.from_proto(mlp([16, 32, 8])).save(tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


def written(tmp_path: Path, count: int, name: str = "x") -> str:
    x = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    np.savez(tmp_path / f"{name}.npz", x=x)
    return str(tmp_path / f"{name}.npz")


def rows(data: Calibration, model: str) -> set[bytes]:
    return {row.tobytes() for run in data.batches(Model.load(model)) for row in run["x"]}


@pytest.mark.parametrize("command", ["compile", "prune24", "opt"])
def test_nothing_that_was_fitted_judges_later(tmp_path, model, monkeypatch, command) -> None:
    spec = written(tmp_path, 96)
    seen: set[bytes] = set()
    solve = oneshot.solve_model

    def spy(source, found, strides, data, **rest):
        seen.update(rows(data, model))  # what it fits and what it tunes itself by
        return solve(source, found, strides, data, **rest)

    monkeypatch.setattr(oneshot, "solve_model", spy)
    out = str(tmp_path / "o.onnx")
    more = ["--pipeline", "canonicalize,prune24"] if command == "opt" else []
    more = ["--preset", "sparse-int8"] if command == "compile" else more
    assert run([command, model, "-o", out, "--calib", spec, *more]) == 0
    loaded = load_data(spec, Model.load(out))
    recovered = Samples(loaded, Model.load(out))
    judged = {bytes(r) for feeds, _ in recovered.held_out_feeds() for r in map(bytes, feeds["x"])}
    assert len(seen) == 84 and len(judged) == 12 and not seen & judged


def test_compare_judges_by_what_was_held_out(tmp_path, model, capsys) -> None:
    spec, few = written(tmp_path, 96), written(tmp_path, 12, "few")
    out = str(tmp_path / "o.onnx")

    def compared(data: str) -> tuple[dict, str]:
        assert run(["compare", model, out, "--data", data, "--json"]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out)["data"], captured.err

    assert run(["compile", model, "-o", out, "--calib", spec, "--data", spec]) == 0
    capsys.readouterr()
    data, err = compared(spec)
    assert data["samples"] == 12 and "held out" in data["use"] and "O24-054" not in err
    assert data["sha256"] == Split.of(load_data(spec, Model.load(model))).digest()
    assert compared(few)[0]["samples"] == 12  # other data: all of them
    assert run(["compile", model, "-o", out, "--calib", few]) == 0
    capsys.readouterr()
    data, err = compared(few)
    assert "fitted" in data["use"] and "O24-054" in err


def test_a_split_depends_on_the_samples_only(tmp_path, model) -> None:
    data = load_data(written(tmp_path, 40), Model.load(model))
    whole, grouped = Split.of(data), Split.of(data.with_units_per_run(1))
    assert whole.digest() == grouped.digest() and whole.is_divided
    assert len(whole.fitted) + len(whole.held_out) == 40
    assert not rows(whole.fitted, model) & rows(whole.held_out, model)
