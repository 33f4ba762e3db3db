"""Samples that a caller holds: each form gives its runs, and says what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import load_data
from onnx24.runtime.sources import calibration_of
from onnx24.testing.generate import mlp

X = np.random.default_rng(0).standard_normal((40, 64), np.float32)


def model(batch: int | str = "n") -> Model:
    """One input `x`, [batch, 64]."""
    proto = mlp([64, 32])
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if isinstance(batch, int):
        dim.dim_value = batch
    else:
        dim.dim_param = batch
    return Model.from_proto(proto)


def fed(data: Any, of: Model) -> np.ndarray:
    return np.concatenate([feeds["x"] for feeds in calibration_of(data, of).batches(of)])


class Table:
    """What Hugging Face's `datasets` tables have of the interface that is used."""

    column_names = ("x", "label")

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        return {"x": X[rows].tolist(), "label": [0] * len(X[rows])}


def loader() -> Any:
    torch = pytest.importorskip("torch", reason="the extra [train] is not installed")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.zeros(len(X)))
    return torch.utils.data.DataLoader(pairs, batch_size=16)


FORMS = {
    "arrays": lambda: {"x": X},
    "one array": lambda: X,
    "list of batches": lambda: [{"x": X[:16]}, {"x": X[16:]}],
    "list of samples": lambda: [{"x": row} for row in X],
    "generator": lambda: ({"x": X[i : i + 8]} for i in range(0, 40, 8)),
    "function": lambda: lambda: iter([{"x": X[:16], "label": 1}, {"x": X[16:], "label": 2}]),
    "loader": loader,
    "table": Table,
}


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_feeds_every_sample_once(form: str, batch: int | str) -> None:
    if form == "list of samples" and batch == 4:
        pytest.skip("a sample is no run of four")
    of = model(batch)
    data = calibration_of(FORMS[form](), of)
    assert len(data) == 40, data.describe()
    assert np.array_equal(fed(FORMS[form](), of), X)
    first, rest = data.split(0.75)
    both = [feeds["x"] for part in (first, rest) for feeds in part.batches(of)]
    assert np.array_equal(np.sort(np.concatenate(both), axis=None), np.sort(X, axis=None))
    assert len(first) + len(rest) == 40
    said = data.describe()
    assert ("left out" in said) == (form in ("function", "loader", "table")), said


def test_arrays_are_what_the_same_npz_is(tmp_path: Any) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    of = model()
    assert calibration_of({"x": X}, of).digest() == load_data(str(tmp_path / "x.npz"), of).digest()


def test_a_last_batch_that_fills_no_run_is_left_out_and_said() -> None:
    data = calibration_of(iter([X[:16], X[16:32], X[32:35]]), model(8))
    assert len(data) == 32 and "fill no run" in data.describe()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"y": X}, "O24-031"),
        ({"x": X.astype(np.float64)}, "O24-033"),
        ({"x": X[:, :32]}, "O24-032"),
        ([], "O24-030"),
        (iter([]), "O24-030"),
        ([X[:0]], "O24-030"),
        (lambda: iter([]), "O24-030"),
        (3.5, "O24-065"),
        ([3.5], "O24-065"),
        ({"x": [[1.0] * 64, [1.0]]}, "O24-032"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_data_for_the_model_is_refused(data: Any, code: str) -> None:
    with pytest.raises(InputError) as caught:
        calibration_of(data, model())
    assert caught.value.code == code


def test_a_function_that_shuffles_anew_is_refused() -> None:
    rng = np.random.default_rng(0)

    def shuffled() -> Iterator[dict[str, np.ndarray]]:
        for i in rng.permutation(len(X)):
            yield {"x": X[i : i + 1]}

    data = calibration_of(shuffled, model())
    with pytest.raises(InputError) as caught:
        list(data.batches(model()))
    assert caught.value.code == "O24-067"


def test_a_generator_is_held_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx24.runtime.sources.MAX_HELD_BYTES", 1 << 20)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield X

    with pytest.raises(InputError) as caught:
        calibration_of(endless(), model())
    assert caught.value.code == "O24-066"


def test_lists_of_numbers_take_the_inputs_dtype() -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 3])
    graph = helper.make_graph([helper.make_node("Identity", ["ids"], ["y"])], "g", [ids], [out])
    opset = [helper.make_opsetid("", 17)]
    of = Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))
    (feeds,) = calibration_of({"ids": [[1, 2, 3]]}, of).batches(of)
    assert feeds["ids"].dtype == np.int32
    for wrong in ([[1.5, 2, 3]], [[1 << 40, 2, 3]]):
        with pytest.raises(InputError):
            calibration_of({"ids": wrong}, of)
    assert math.isclose(len(calibration_of([{"ids": [1, 2, 3]}] * 5, of)), 5)
