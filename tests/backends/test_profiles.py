"""Optimization profiles from the sizes that samples have."""

import numpy as np
import onnx
import pytest

from onnx24.backends import Profile
from onnx24.backends.onnx_file import inputs_of
from onnx24.backends.profiles import completed, profiles_from_data
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import load_data


def model_of(inputs):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[A] y) '
    return Model.from_proto(onnx.parser.parse_model(text + "{ y = ReduceSum<keepdims=0>(x) }"))


def samples(tmp_path, shapes):
    """A folder with one .npz for each run of {input: shape}."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i, run in enumerate(shapes):
        np.savez(folder / f"{i:03}.npz", **{k: np.zeros(s, np.float32) for k, s in run.items()})
    return str(folder)


def test_smallest_most_frequent_and_largest(tmp_path):
    model = model_of("float[N, L, 8] x")
    lengths = [(4, 16), (4, 32), (4, 32), (2, 64)]
    data = load_data(samples(tmp_path, [{"x": (n, k, 8)} for n, k in lengths]), model)
    found = profiles_from_data(inputs_of(model.proto), data, model)
    assert found == {"x": Profile((1, 16, 8), (4, 32, 8), (4, 64, 8))}


def test_of_sizes_as_frequent_the_largest(tmp_path):
    model = model_of("float[2, L] x")
    data = load_data(samples(tmp_path, [{"x": (2, 5)}, {"x": (2, 9)}]), model)
    found = profiles_from_data(inputs_of(model.proto), data, model)
    assert found == {"x": Profile((2, 5), (2, 9), (2, 9))}


def test_a_stack_of_samples_is_a_batch(tmp_path):
    model = model_of("float[N, 4] x")
    np.savez(tmp_path / "d.npz", x=np.zeros((12, 4), np.float32))
    found = profiles_from_data(
        inputs_of(model.proto), load_data(str(tmp_path / "d.npz"), model), model
    )
    assert found["x"].min == (1, 4) and found["x"].max == found["x"].opt == (12, 4)


def test_what_is_static_or_given_is_left_alone(tmp_path):
    model = model_of("float[N, 4] x, float[2, 4] z")
    data = load_data(samples(tmp_path, [{"x": (3, 4), "z": (2, 4)}]), model)
    inputs = inputs_of(model.proto)
    assert set(profiles_from_data(inputs, data, model)) == {"x"}
    given = {"x": Profile.static((5, 4))}
    assert completed(inputs, given, data, model) == (given, [])
    assert completed(inputs, given, None, model) == (given, [])


@pytest.mark.parametrize("runs", [1, 7])
def test_a_profile_is_ordered(tmp_path, runs):
    rng = np.random.default_rng(runs)
    model = model_of("float[N, L] x")
    shapes = [{"x": tuple(rng.integers(1, 20, 2))} for _ in range(runs)]
    data = load_data(samples(tmp_path, shapes), model)
    profile = profiles_from_data(inputs_of(model.proto), data, model)["x"]
    for low, opt, high in zip(profile.min, profile.opt, profile.max, strict=True):
        assert low <= opt <= high


def test_a_batch_size(tmp_path):
    """It replaces a dynamic first dimension alone; what is open besides is found and said."""
    model = model_of("float[N, S, 4] x, float[2, S] z")
    inputs = inputs_of(model.proto)
    given = {"x": Profile((1, 4, 4), (2, 8, 4), (8, 8, 4)), "z": Profile.static((2, 8))}
    fixed = {"x": Profile.static((16, 8, 4)), "z": Profile.static((2, 8))}
    assert completed(inputs, given, None, model, batch=16) == (fixed, [])
    data = load_data(samples(tmp_path, [{"x": (3, 8, 4), "z": (2, 8)}]), model)
    assert completed(inputs, {}, data, model, batch=16) == (fixed, [])
    found, (said,) = completed(inputs, {}, None, model, batch=16)
    assert found == {"x": Profile.static((16, 1, 4)), "z": Profile.static((2, 1))}
    assert said.code == "O24-053" and "x:16x1x4" in said.message
    batched = model_of("float[N, 4] x")
    fixed = {"x": Profile.static((16, 4))}
    assert completed(inputs_of(batched.proto), {}, None, batched, batch=16) == (fixed, [])


@pytest.mark.parametrize("inputs", ["float[1, S, S] x", "float[1, S, 8] x, float[S] z"])
def test_dimensions_of_one_name_and_two_sizes_are_named(inputs):
    model = model_of(inputs)
    given = inputs_of(model.proto)
    shapes = {"x": Profile.static((1, 4, 8)), "z": Profile.static((8,))}
    named = {i.name: shapes[i.name] for i in given}
    with pytest.raises(InputError, match=r"named 'S'.*found 8 and 4") as caught:
        completed(given, named, None, model)
    assert caught.value.diagnostics[0].code == "O24-505"
    equal = {"x": Profile.static((1, 8, 8)), "z": Profile.static((8,))}
    named = {i.name: equal[i.name] for i in given}
    assert completed(given, named, None, model) == (named, [])
