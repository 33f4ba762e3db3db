"""A dynamic dimension without a size does not stop a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx24.backends.base import parse_shapes, resolve_profiles
from onnx24.backends.onnx_file import inputs_of
from onnx24.backends.profiles import completed
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import chosen_shapes, load_data

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
POOL = """g (float[n, 3, h, w] x) => (float[n, 3, a, b] y)
{ p = AveragePool<kernel_shape = [5, 3]>(x) y = Relu(p) }"""
HALVES = """g (float[n, t] x, float[m, t] z) => (float[n, k] y)
<int64[2] two = {2, 2}>
{ s = Split<axis = 1>(x) a, b = Split<axis = 1>(x, two) c = Add(a, b) d = ReduceSum<keepdims = 0>(z)
  y = Add(c, d) }""".replace("s = Split<axis = 1>(x) ", "")


def text(body: str) -> Model:
    return Model.from_text(HEAD + body)


def test_the_smallest_that_runs() -> None:
    assert chosen_shapes(text(POOL), {}) == {"x": (1, 3, 8, 8)}
    assert chosen_shapes(text(HALVES), {}) == {"x": (1, 4), "z": (1, 4)}


def test_what_is_given_stays_and_names_are_one_size() -> None:
    given = {"x": (2, 3, 5, -1)}
    assert chosen_shapes(text(POOL), given)["x"][:3] == (2, 3, 5)
    assert chosen_shapes(text(HALVES), {"z": (3, 4)}) == {"x": (1, 4), "z": (3, 4)}
    data = load_data("random:2", text(POOL))
    assert "x 1x3x8x8" in data.describe()


def test_a_size_that_nothing_fits_is_refused() -> None:
    body = "g (float[n, t] x) => (float[u, v] y) <int64[2] s = {3, 7}> { y = Reshape(x, s) }"
    with pytest.raises(InputError, match=r"O24-036.*|dimension 1 \\(t\\)"):
        chosen_shapes(text(body), {})


def test_profiles_take_data_then_names_then_the_search(tmp_path: Path) -> None:
    model = text(HALVES)
    inputs = inputs_of(model.proto)
    found, told = completed(inputs, parse_shapes(["z:1x4:2x4:8x4"]), None, model)
    assert str(found["x"]) == "1x4" and str(found["z"]) == "1x4:2x4:8x4"
    assert [d.code for d in told] == ["O24-053"] and "--shapes x:1x4" in told[0].hint
    ranged, _ = completed(inputs, parse_shapes(["z:1x4:1x4:1x8"]), None, model)
    assert str(ranged["x"]) == "1x4:1x4:1x8"  # t has a range
    assert completed(inputs, found, None, model) == (found, [])


def test_two_dimensions_of_one_name_are_one_size() -> None:
    same = inputs_of(text("g (float[1, 4, s, s] x) => (float[1, 4, s, s] y) { y = Relu(x) }").proto)
    assert resolve_profiles(same, parse_shapes(["x:1x4x8x8"]))
    with pytest.raises(InputError, match="O24-505") as caught:
        resolve_profiles(same, parse_shapes(["x:1x4x8x16"]))
    assert "'s'" in str(caught.value)
