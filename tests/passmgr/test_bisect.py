from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from passmgr_support import LAYERS, BreakGraph, Fail, Log, Rename, Scale, chain

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr.bisect import Outcome, bisect, command, divergence
from onnx24.passmgr.pipeline import Pipeline

TARGET = targets.load(targets.DEFAULT)


def pipeline(*passes) -> Pipeline:
    return Pipeline(passes)


def intact(*names: str):
    """Good while the named weights are as they were."""
    fresh = chain(16)

    def oracle(model: Model) -> Outcome:
        changed = [n for n in names if not np.array_equal(model.weights[n], fresh.weights[n])]
        return Outcome(not changed, f"changed: {changed}")

    return oracle


@pytest.mark.parametrize("bad", range(16))
def test_it_names_the_bad_layer(bad: int):
    model = chain(16)
    before = model.to_bytes()
    result = bisect(model, pipeline(Log(), Rename(), Scale()), intact(f"w{bad}"), target=TARGET)
    assert (result.verdict, result.number) == ("found", bad + 1)
    assert (result.pass_name, result.site, result.sites) == ("scale", f"w{bad}", 16)
    assert len(result.probes) <= 6
    assert model.to_bytes() == before
    assert not model.changed
    assert str(result) == f"site {bad + 1} of 16 breaks the model: w{bad} (pass scale)"


def test_it_names_the_pass():
    """The second of two passes over the same layers does the damage."""
    oracle = intact("w3")
    passes = pipeline(Scale(only="w9"), Scale(only="w3"))
    result = bisect(chain(16), passes, oracle, target=TARGET)
    assert (result.number, result.site) == (16 + 4, "w3")


def test_several_bad_sites_give_a_true_answer():
    result = bisect(chain(16), pipeline(Scale()), intact("w2", "w11"), target=TARGET)
    assert result.site == "w2"
    by_sites = {p.sites: p.outcome.good for p in result.probes}
    assert by_sites[result.number] is False
    assert by_sites[result.number - 1] is True


def test_a_model_that_is_good():
    result = bisect(chain(), pipeline(Scale()), lambda model: Outcome(True), target=TARGET)
    assert (result.verdict, result.sites, len(result.probes)) == ("good", LAYERS, 1)
    assert "good with all 5 sites" in str(result)


def test_a_model_that_is_bad_before_any_site():
    oracle = lambda model: Outcome(model.proto.graph.node[0].name == "layer0", "renamed")  # noqa: E731
    result = bisect(chain(), pipeline(Rename(), Scale()), oracle, target=TARGET)
    assert (result.verdict, len(result.probes)) == ("bad-before", 2)
    assert str(result) == "the result is bad with no site transformed: renamed"
    result = bisect(chain(), pipeline(Rename()), oracle, target=TARGET)
    assert (result.verdict, result.sites, len(result.probes)) == ("bad-before", 0, 1)


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("how", ["bug", "policy"])
def test_a_crash_is_bisected(how: str, at: int, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bisect(
        chain(), pipeline(Fail(how=how, at=at)), lambda model: Outcome(True), target=TARGET
    )
    assert (result.pass_name, result.site) == ("fail", f"w{at}")
    assert list(tmp_path.iterdir()) == [], "probes leave no reproducers"


def test_a_model_that_the_verifier_refuses_is_bad():
    result = bisect(chain(), pipeline(BreakGraph()), lambda m: Outcome(True), target=TARGET)
    assert result.verdict == "bad-before"
    assert "O24-803" in result.probes[0].outcome.detail


def test_wrong_usage_is_not_bisected():
    with pytest.raises(InputError):
        bisect(chain(), pipeline(Fail(how="input")), lambda m: Outcome(True), target=TARGET)


def test_probes_are_reported_as_they_are_made():
    seen = []
    result = bisect(chain(16), pipeline(Scale()), intact("w5"), target=TARGET, on_probe=seen.append)
    assert seen == result.probes
    report = result.to_json()
    assert report["site"] == "w5"
    assert report["probes"][0] == {"sites": 16, "good": False, "detail": "changed: ['w5']"}


# --- oracles -------------------------------------------------------------------------------
def test_divergence_of_the_outputs():
    data = pytest.importorskip("onnx24.runtime.data")
    model = chain(8)
    oracle = divergence(chain(8), data.load_data("random:2", model), threshold=1e-3)
    result = bisect(
        model, pipeline(Scale(factor=1.0), Scale(only="w6", factor=1.1)), oracle, target=TARGET
    )
    assert (result.number, result.site) == (8 + 7, "w6")
    assert "output 'y': relative L2 0.1, allowed 0.001" in result.probes[0].outcome.detail


def checker(tmp_path: Path, code: str) -> str:
    """A shell command that runs Python code on the saved model."""
    script = tmp_path / "check it.py"
    script.write_text(f"import os, sys, onnx\n{code}\n")
    return f'"{sys.executable}" "{script}" {{model}}'


def test_an_external_command(tmp_path: Path):
    code = (
        "model = onnx.load(sys.argv[1])\n"
        "assert os.environ['ONNX24_MODEL'] == sys.argv[1]\n"
        "w = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}\n"
        "sys.exit(3 if w['w4'].max() > 1 else 0)"
    )
    oracle = command(checker(tmp_path, code), work_dir=tmp_path)
    result = bisect(chain(8), pipeline(Scale(factor=10.0)), oracle, target=TARGET)
    assert result.site == "w4"
    assert result.probes[0].outcome.detail == "the command exited with 3"
    assert [p.name for p in tmp_path.iterdir()] == ["check it.py"]


def test_a_command_that_crashes_or_hangs_says_bad(tmp_path: Path):
    crash = command(checker(tmp_path, "os.abort()"))
    assert crash(chain()).good is False
    hang = command("sleep 10", timeout=0.2)
    assert hang(chain()) == Outcome(False, "the command ran longer than 0.2 s")


def test_a_command_that_is_not_there():
    with pytest.raises(InputError, match="no-such-command-at-all") as caught:
        command("no-such-command-at-all {model}")(chain())
    assert caught.value.code == "O24-043"


def test_a_command_that_is_interrupted():
    with pytest.raises(KeyboardInterrupt):
        command("kill -INT $$")(chain())
