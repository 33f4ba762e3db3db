from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.passmgr.base import Pass
from onnx24.passmgr.options import (
    Option,
    Word,
    field_options,
    from_flags,
    reference,
    to_text,
)


class Method(str, enum.Enum):
    MAGNITUDE = "magnitude"
    OBS = "obs"


class Quiet(Pass):
    effects: ClassVar = Effects.NONE

    def run(self, model, ctx) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Every(Quiet):
    """Has one option of every type.

    Indented text
      stays indented.
    """

    name: ClassVar = "every"
    codes: ClassVar = ("O24-100",)
    method: Annotated[Method, "how the survivors are chosen"] = Method.MAGNITUDE
    min_channels: Annotated[int, "fewest channels [elements]"] = 16
    damping: Annotated[float, "added to the diagonal"] = 0.01
    strict: Annotated[bool, "refuse what is doubtful"] = False
    include: Annotated[tuple[str, ...], "patterns of weight names"] = ("*",)
    note: Annotated[str, "free text, a|b"] = ""
    limit: Annotated[int | None, "no more than this"] = None


@dataclass(frozen=True, kw_only=True)
class Needy(Quiet):
    """Has an option without a default."""

    name: ClassVar = "needy"
    to: Annotated[int, "the version"]


def option(name: str, cls: type[Pass] = Every) -> Option:
    return next(o for o in field_options(cls) if o.name == name)


def test_fields_are_options():
    options = {o.name: o for o in field_options(Every)}
    assert list(options) == [
        "method", "min-channels", "damping", "strict", "include", "note", "limit",
    ]  # fmt: skip
    assert options["min-channels"].flag == "--min-channels"
    assert options["min-channels"].field == "min_channels"
    assert (options["include"].type, options["include"].many) == (str, True)
    assert (options["limit"].type, options["limit"].optional) == (int, True)
    assert options["method"].choices == ("magnitude", "obs")
    assert options["method"].default is Method.MAGNITUDE
    assert options["method"].help == "how the survivors are chosen"
    assert not options["method"].required
    assert option("to", Needy).required


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("method", "obs", Method.OBS),
        ("min-channels", "-4", -4),
        ("damping", "1e-3", 0.001),
        ("damping", "2", 2.0),
        ("strict", "True", True),
        ("strict", "false", False),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("note", "none", "none"),
    ],
)
def test_reading(name, text, value):
    got = option(name).read([Word(text)])
    assert got == value
    assert type(got) is type(value)


def test_words_of_a_tuple():
    include = option("include")
    assert include.read([Word("encoder.*"), Word("a b")]) == ("encoder.*", "a b")
    assert include.read([Word("none")]) == ()
    assert include.read([Word("none", quoted=True)]) == ("none",)
    assert include.write(("encoder.*", "/layers.0/MatMul", "a b", "x|y", "")) == (
        'encoder.*|/layers.0/MatMul|"a b"|"x|y"|""'
    )
    assert include.write(()) == "none"
    assert include.write(("none",)) == '"none"'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("method", "obss", "option 'method': expected one of magnitude, obs, got 'obss'; "
                           "did you mean 'obs'?"),
        ("min-channels", "1.5", "option 'min-channels': expected an integer, got '1.5'"),
        ("min-channels", "1_0", "option 'min-channels': expected an integer, got '1_0'"),
        ("damping", "nan", "option 'damping': expected a number, got 'nan'"),
        ("damping", "inf", "option 'damping': expected a number, got 'inf'"),
        ("strict", "yes", "option 'strict': expected true or false, got 'yes'"),
        ("limit", "many", "option 'limit': expected an integer, or none, got 'many'"),
        ("min-channels", "none", "option 'min-channels': expected an integer, got 'none'"),
    ],
)  # fmt: skip
def test_a_bad_value_says_expected_and_actual(name, text, message):
    with pytest.raises(ValueError) as caught:
        option(name).read([Word(text)])
    assert str(caught.value) == message


def test_two_words_where_one_is_expected():
    with pytest.raises(ValueError, match=r"expected an integer, got '1\|2'"):
        option("min-channels").read([Word("1"), Word("2")])


def test_text_shows_what_differs_from_the_defaults():
    assert to_text(Every()) == "every"
    assert to_text(Every(method=Method.OBS, limit=3)) == "every{method=obs limit=3}"
    assert to_text(Needy(to=13)) == "needy{to=13}"


@pytest.mark.parametrize(
    "values",
    [{"method": "obs"}, {"min_channels": 1.0}, {"strict": 1}, {"include": "a"},
     {"include": ("a", 1)}, {"damping": float("nan")}, {"min_channels": True}, {"note": None}],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_not_printed(values):
    with pytest.raises(TypeError, match="expected"):
        to_text(Every(**values))


def test_flags():
    assert from_flags(
        Every,
        {"method": "obs", "strict": True, "include": ["a|b", "c"], "limit": None, "note": "x y"},
    ) == Every(method=Method.OBS, strict=True, include=("a", "b", "c"), note="x y")
    assert from_flags(Every, {"include": "a|b"}) == Every(include=("a", "b"))
    assert from_flags(Every, {"include": []}) == Every()
    assert from_flags(Every, {"include": ["none"]}) == Every(include=())


def test_bad_flags():
    with pytest.raises(InputError, match="did you mean 'method'") as caught:
        from_flags(Every, {"methd": "obs"})
    assert caught.value.code == "O24-022"
    with pytest.raises(InputError, match="every: option 'min-channels'") as caught:
        from_flags(Every, {"min-channels": "x"})
    assert caught.value.code == "O24-023"
    with pytest.raises(InputError, match="'to': expected an integer, got nothing") as caught:
        from_flags(Needy, {"to": None})
    assert caught.value.code == "O24-023"


def test_reference_page():
    page = reference(Every)
    assert page.startswith("## `every`\n\nHas one option of every type.\n\nIndented text\n  stays")
    assert "| `method` | one of magnitude, obs | `magnitude` | how the survivors" in page
    assert "| `limit` | an integer, or none | `none` | no more than this |" in page
    assert "free text, a\\|b" in page
    assert "Codes: O24-100." in page
    assert "(must be given)" in reference(Needy)


def test_fields_that_are_no_options_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class Bare(Quiet):
        name: ClassVar = "bare"
        x: int = 0

    @dataclass(frozen=True, kw_only=True)
    class Odd(Quiet):
        name: ClassVar = "odd"
        x: Annotated[dict, "help"] = None

    @dataclass(frozen=True, kw_only=True)
    class Doubtful(Quiet):
        name: ClassVar = "doubtful"
        x: Annotated[tuple[str, ...] | None, "help"] = None

    for cls, reason in ((Bare, "Annotated"), (Odd, "options are"), (Doubtful, "empty tuple")):
        with pytest.raises(TypeError, match=reason):
            field_options(cls)
