"""prune24 on weights that are read, pruned and written piece by piece."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnx24 import targets
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.weights import Weights
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.rewrite import magnitude
from onnx24.testing.generate import mlp

SIZES = [96, 64, 32, 16]


def prune(model: Model, text: str = "prune24{permute=off}", **options) -> RunResult:
    return run(model, parse(text), target=targets.load("sm86"), reproducer_dir=None, **options)


@pytest.fixture
def small_pieces(monkeypatch):

    def pieces(size, stride, limit=48, align=1):
        from onnx24.ir.pieces import pieces as real

        return real(size, stride, limit, align)

    monkeypatch.setattr(magnitude, "pieces", pieces)
    monkeypatch.setattr("onnx24.ir.weights.pieces", pieces)
    monkeypatch.setattr("onnx24.ir.weights._threads", lambda: 2)


def facts(result: RunResult) -> list[dict]:
    """Energies of pieces are summed in float32 columns, to some 1e-7."""
    return [
        {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in r.items()}
        for r in (record.facts for record in result.records)
    ]


def test_pieces_change_neither_the_file_nor_the_report(request):
    whole = Model.from_proto(mlp(SIZES))
    result = prune(whole)
    request.getfixturevalue("small_pieces")
    cut = Model.from_proto(mlp(SIZES))
    assert facts(prune(cut)) == facts(result)
    assert cut.to_bytes() == whole.to_bytes()
    again = prune(Model.from_bytes(cut.to_bytes()))
    assert [r.code for r in again.records if r.action == "kept"] == ["O24-102"] * 3
    assert not again.changed


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_both_engines_give_the_same_file_and_report(monkeypatch, dtype):
    pytest.importorskip("numba")
    found = []
    for engine in ("numpy", "numba"):
        monkeypatch.setattr(magnitude, "engine_for", lambda elements, engine=engine: engine)
        model = Model.from_proto(mlp(SIZES))
        for key in list(model.weights):
            tensor = model.weights.tensor(key)
            model.weights.set_values(tensor, model.weights[key].astype(dtype))
        model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
        result = run(
            model, parse("prune24"), target=targets.load("sm86"), reproducer_dir=None, verify=False
        )
        found.append(([record.facts for record in result.records], model.to_bytes()))
    assert found[0] == found[1]
    assert any("energy_kept" in record for record in found[0][0])


def test_every_weight_with_nan_is_named_and_nothing_changes(small_pieces):
    proto = mlp(SIZES)
    for index, count in ((2, 3), (4, 1)):  # fc1 and fc2; fc0 is pruned before they are seen
        tensor = proto.graph.initializer[index]
        values = np.frombuffer(tensor.raw_data, np.float32).copy()
        values[-count:] = np.nan
        tensor.raw_data = values.tobytes()
    model = Model.from_proto(proto)
    before = model.to_bytes()
    for options in ({}, {"site_limit": 0}, {"site_limit": 1}):
        with pytest.raises(InputError) as caught:
            prune(model, **options)
        found = [(d.code, d.where.tensor, d.facts["nonfinite"]) for d in caught.value.diagnostics]
        assert found == [("O24-008", "fc1.weight", 3), ("O24-008", "fc2.weight", 1)]
        assert model.to_bytes() == before and not model.changed


def test_a_weight_that_is_24_and_has_nan_is_an_error(small_pieces):
    model = Model.from_proto(mlp(SIZES))
    array = np.zeros((96, 64), np.float32)
    array[90, 3] = np.inf
    model.weights.replace("fc0.weight", array)
    with pytest.raises(InputError) as caught:
        prune(model)
    assert [d.where.tensor for d in caught.value.diagnostics] == ["fc0.weight"]


def test_the_verifier_reads_no_weight_again(monkeypatch):
    scans = []
    scan = Weights.scan
    monkeypatch.setattr(Weights, "scan", lambda *a: scans.append(a[1].name) or scan(*a))
    prune(Model.from_proto(mlp(SIZES)))
    assert scans == ["fc0.weight", "fc1.weight", "fc2.weight"]  # whether they are 2:4 already


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_the_verifier_finds_what_a_broken_kernel_leaves(small_pieces, monkeypatch, engine: str):
    if engine == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(magnitude, "engine_for", lambda elements: engine)
    monkeypatch.setattr(magnitude, "prune_24_by_stride", lambda *values, **options: None)
    model = Model.from_proto(mlp(SIZES))
    before = model.to_bytes()
    with pytest.raises(Exception, match="more than two nonzeros"):
        prune(model)
    assert model.to_bytes() == before
