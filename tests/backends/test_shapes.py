"""--shapes as text, and shapes against a model's inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx24.backends import Profile, parse_shapes
from onnx24.backends.base import resolve_profiles
from onnx24.backends.onnx_file import Input
from onnx24.errors import InputError


@pytest.mark.parametrize(
    ("text", "name", "profile"),
    [
        ("x:1x3x224x224", "x", Profile.static((1, 3, 224, 224))),
        ("x:1,3,224,224", "x", Profile.static((1, 3, 224, 224))),
        ("x:1x8:4x8:16x8", "x", Profile((1, 8), (4, 8), (16, 8))),
        ("x:1,8:4,8:16,8", "x", Profile((1, 8), (4, 8), (16, 8))),
        ("tokens:7", "tokens", Profile.static((7,))),
        # TensorFlow's names end in ":0", which reads like a dimension.
        ("input:0:1x8", "input:0", Profile.static((1, 8))),
        ("input:0:1x8:2x8:4x8", "input:0", Profile((1, 8), (2, 8), (4, 8))),
        ("'input:0':8", "input:0", Profile.static((8,))),
        ("'a b':1:2:3", "a b", Profile((1,), (2,), (3,))),
    ],
)
def test_shape_text(text, name, profile):
    assert parse_shapes([text]) == {name: profile}


@pytest.mark.parametrize(
    "text", ["x", "x:", "x:abc", ":1x8", "x:1x", "'x':1x8:bad", "'x':1:2", "x:-1x8", "x:1.5"]
)
def test_shape_text_that_does_not_parse(text):
    with pytest.raises(InputError) as caught:
        parse_shapes([text])
    assert caught.value.code == "O24-505"
    assert caught.value.exit_code == 2
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["x:4x8:1x8:16x8", "x:1x8:4x8:2x8", "x:1x8:4x8:16"])
def test_min_opt_max_out_of_order_or_rank(text):
    with pytest.raises(InputError, match="min <= opt <= max"):
        parse_shapes([text])


def test_an_input_named_twice():
    with pytest.raises(InputError, match="twice"):
        parse_shapes(["x:1", "x:2"])


_dims = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(
    name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_/.]*", fullmatch=True),
    low=_dims,
    grow=st.integers(0, 3),
)
def test_profile_text_round_trips(name, low, grow):
    profile = Profile(low, tuple(d + grow for d in low), tuple(d + 2 * grow for d in low))
    assert parse_shapes([f"{name}:{profile}"]) == {name: profile}


X = Input("x", ("batch", 8))
IMAGE = Input("image", (1, 3, 8, 8))


def test_static_inputs_need_no_profile():
    assert resolve_profiles([IMAGE], None) == {}
    assert resolve_profiles([IMAGE], {"image": Profile.static((1, 3, 8, 8))}) == {}


def test_missing_sizes_name_every_input_and_dimension():
    unnamed = Input("y", (None, 4, None))
    unranked = Input("z", None)
    with pytest.raises(InputError) as caught:
        resolve_profiles([X, IMAGE, unnamed, unranked], None)
    found = caught.value.diagnostics
    assert [(d.code, d.where.tensor) for d in found] == [("O24-036", n) for n in "xyz"]
    assert "dimension 0 ('batch')" in found[0].message
    assert "--shapes x:1x8" in found[0].hint
    assert "dimension 0, 2" in found[1].message
    assert "no shape" in found[2].message


def test_profiles_are_for_dynamic_inputs_only():
    profile = Profile((1, 8), (2, 8), (4, 8))
    assert resolve_profiles([X, IMAGE], {"x": profile}) == {"x": profile}
    free = Input("z", None)
    assert resolve_profiles([free], {"z": profile}) == {"z": profile}


@pytest.mark.parametrize(
    ("name", "dims", "says"),
    [
        ("y", (1, 8), "no input of the model"),
        ("x", (1, 9), "dimension 1 of 'x'"),
        ("x", (1, 8, 1), "rank 3"),
        ("image", (2, 3, 8, 8), "fixed"),
    ],
)
def test_shapes_that_fit_no_input(name, dims, says):
    with pytest.raises(InputError, match=says) as caught:
        resolve_profiles([X, IMAGE], {name: Profile.static(dims)})
    assert caught.value.code == "O24-505"


def test_wrong_input_name_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean 'image'"):
        resolve_profiles([IMAGE], {"imgae": Profile.static((1, 3, 8, 8))})
