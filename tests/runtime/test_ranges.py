"""Activations shown to observers, in bounded runs and several rounds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24.ir.model import Model
from onnx24.passmgr.base import _no_progress
from onnx24.runtime import ranges
from onnx24.runtime.data import load_data
from onnx24.runtime.ranges import Observation


class Recorder:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def observe(self, array: np.ndarray) -> None:
        self.arrays.append(array.copy())


@pytest.fixture
def model() -> Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) '
        "{ a = Neg(x) b = Add(a, a) c = Mul(b, a) y = Relu(c) }"
    )
    return Model.from_proto(proto)


@pytest.mark.parametrize(
    ("limit", "runs", "rounds"), [(1 << 20, 3, 1), (4 * 64 * 4 * 5, 8, 1), (64 * 4 * 3, 40, 2)]
)
def test_every_round_sees_the_same(model, limit, runs, rounds, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RUN_BYTES", limit)
    x = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    data = load_data(str(tmp_path / "x.npz"), model)
    observation = Observation(model, ["x", "a", "b", "c"], data)
    assert (observation.runs, len(observation.rounds)) == (runs, rounds)
    seen = {name: [Recorder(), Recorder()] for name in "xabc"}
    observation.show(seen, _no_progress)
    for first, second in seen.values():
        assert len(first.arrays) == len(second.arrays) == runs
    want = {"x": x, "a": -x, "b": -2 * x, "c": 2 * x * x}
    for name, (first, _) in seen.items():
        np.testing.assert_array_equal(np.concatenate(first.arrays), want[name])
    only = {"c": [Recorder()]}
    observation.show(only, _no_progress)
    assert len(only["c"][0].arrays) == runs


def test_an_observers_error_is_not_lost(model, tmp_path):
    class Broken:
        def observe(self, array: np.ndarray) -> None:
            raise ZeroDivisionError

    data = load_data("random:2", model)
    with pytest.raises(ZeroDivisionError):
        Observation(model, ["a"], data).show({"a": [Broken()]}, _no_progress)
