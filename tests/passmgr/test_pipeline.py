from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.passmgr.base import Pass
from onnx24.passmgr.pipeline import Pipeline, parse
from onnx24.passmgr.registry import Entry, Registry


class Method(str, enum.Enum):
    MAGNITUDE = "magnitude"
    OBS = "obs"
    ODD = "two words, and none"


class Quiet(Pass):
    effects: ClassVar = Effects.NONE

    def run(self, model, ctx) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Prune(Quiet):
    name: ClassVar = "prune"
    method: Annotated[Method, "help"] = Method.MAGNITUDE
    include: Annotated[tuple[str, ...], "help"] = ("*",)
    ratio: Annotated[float, "help"] = 0.5
    strict: Annotated[bool, "help"] = False
    note: Annotated[str, "help"] = "n"
    limit: Annotated[int | None, "help"] = None
    label: Annotated[str | None, "help"] = None

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ValueError("ratio must not be negative")


@dataclass(frozen=True, kw_only=True)
class Qdq(Quiet):
    name: ClassVar = "qdq"
    bits: Annotated[int, "help"] = 8


@dataclass(frozen=True, kw_only=True)
class Fold(Quiet):
    name: ClassVar = "fold-qdq"
    after: ClassVar = ("qdq",)


@dataclass(frozen=True, kw_only=True)
class Left(Quiet):
    name: ClassVar = "left"
    after: ClassVar = ("right",)


@dataclass(frozen=True, kw_only=True)
class Right(Quiet):
    name: ClassVar = "right"
    after: ClassVar = ("left",)


REGISTRY = Registry(
    Entry(cls.name, f"{__name__}:{cls.__name__}") for cls in (Prune, Qdq, Fold, Left, Right)
)
PRESETS = {
    "int8": "qdq,fold-qdq",
    "both": "prune{method=obs},@int8",
    "empty": "",
    "loop": "qdq,@pool",
    "pool": "@loop",
    "self": "@self",
    "bad": "qdq,prun",
}


def read(text: str) -> Pipeline:
    return parse(text, registry=REGISTRY, presets=PRESETS)


def test_the_documented_form():
    assert read("prune{method=obs include=encoder.*|decoder.*},qdq,fold-qdq") == Pipeline(
        (Prune(method=Method.OBS, include=("encoder.*", "decoder.*")), Qdq(), Fold())
    )


@pytest.mark.parametrize(
    "text",
    ["prune{include=a|b strict},qdq", " prune { include = a | b\n\tstrict } ,\n qdq \n",
     'prune{include="a"|\'b\' strict=true},qdq{}', "prune{strict include=a|b},qdq{bits=8}"],
)  # fmt: skip
def test_white_space_and_quotes_do_not_matter(text):
    assert read(text) == Pipeline((Prune(include=("a", "b"), strict=True), Qdq()))


def test_node_names_of_exporters_need_no_quotes():
    names = "/model/layers.0/attn/MatMul_1|onnx::MatMul_42|bn;relu+add|a[0-9]?|A\\B|x=y"
    assert read(f"prune{{include={names}}}").passes[0].include == tuple(names.split("|"))


def test_quotes_and_escapes():
    text = (
        r"""prune{include="a b"|"c,d"|"e{f}"|'say "hi"'|"say \"hi\""|"back\\slash"|"" note='|'}"""
    )
    prune = read(text).passes[0]
    assert prune.include == (
        "a b", "c,d", "e{f}", 'say "hi"', 'say "hi"', "back\\slash", "",
    )  # fmt: skip
    assert prune.note == "|"


def test_none():
    assert read("prune{limit=none label=none include=none}") == Pipeline((Prune(include=()),))
    assert read('prune{label="none" include="none"}') == Pipeline(
        (Prune(label="none", include=("none",)),)
    )


def test_presets_expand_and_nest():
    assert str(read("@both,qdq{bits=4}")) == "prune{method=obs},qdq,fold-qdq,qdq{bits=4}"
    assert read("@empty") == read("") == read(" \n") == Pipeline()


WORDS = st.text(max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(
                Prune,
                method=st.sampled_from(Method),
                include=st.lists(WORDS, max_size=3).map(tuple),
                ratio=st.floats(min_value=0, allow_infinity=False),
                strict=st.booleans(),
                note=WORDS,
                limit=st.none() | st.integers(),
                label=st.none() | WORDS,
            ),
            st.builds(Qdq, bits=st.integers()),
        ),
        max_size=4,
    )
)
@example([Prune(label="none", include=("none",), note="none")])
@example([Prune(label="", include=(), note="")])
@example([Prune(include=("\\",), note='\\"', label="'")])
@example([Prune(note="a\nb\x00\x85\u2028")])
def test_parse_of_print_is_identity(passes):
    pipeline = Pipeline(tuple(passes))
    assert read(str(pipeline)) == pipeline


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="prune,qdq{bits=8} include|@int8\"'\\\n", max_size=40) | st.text())
def test_any_text_is_a_pipeline_or_an_error_of_the_user(text):
    try:
        pipeline = read(text)
    except InputError as err:
        assert err.code in ("O24-020", "O24-021", "O24-022", "O24-023", "O24-024", "O24-026")
    else:
        assert read(str(pipeline)) == pipeline


def error_of(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(text)
    assert len(caught.value.diagnostics) == 1
    return caught.value


@pytest.mark.parametrize(
    ("text", "code", "message", "column", "marked"),
    [
        ("qdq,prun,fold-qdq", "O24-021", "no pass is named 'prun'; did you mean 'prune'?",
         5, "prun"),
        ("zzz", "O24-021", "no pass is named 'zzz'", 1, "zzz"),
        ("qdq{bit=4}", "O24-022", "pass 'qdq' has no option 'bit' (it has bits); "
         "did you mean 'bits'?", 5, "bit"),
        ("fold-qdq{x=1}", "O24-022", "pass 'fold-qdq' has no option 'x' (it has none)", 10, "x"),
        ("qdq{bits=eight}", "O24-023",
         "qdq: option 'bits': expected an integer, got 'eight'", 5, "bits=eight"),
        ("prune{method=obss  strict}", "O24-023", "prune: option 'method': expected one of "
         "magnitude, obs, two words, and none, got 'obss'; did you mean 'obs'?", 7, "method=obss"),
        ("prune{ratio=-1}", "O24-023", "prune: ratio must not be negative", 1, "prune"),
        ("@int9", "O24-024", "no preset is named 'int9'; did you mean 'int8'?", 1, "@int9"),
        ("qdq,", "O24-020", "expected a pass, got the end", 5, None),
        (",qdq", "O24-020", "expected a pass, got ','", 1, ","),
        ("qdq fold-qdq", "O24-020", "expected ',' or the end, got 'f'", 5, "f"),
        ("qdq{bits=4", "O24-020", "expected an option or '}', got the end", 11, None),
        ("qdq{bits}", "O24-020", "expected '=' and a value", 9, "}"),
        ("qdq{bits=}", "O24-020", 'expected a word; an empty one is written ""', 10, "}"),
        ("qdq{bits=4 bits=5}", "O24-020", "option 'bits' is given twice", 12, "bits"),
        ("prune{include=a|}", "O24-020", 'expected a word; an empty one is written ""', 17, "}"),
        ('prune{note="x}', "O24-020", "this quote is never closed", 12, '"'),
        ("qdq}", "O24-020", "expected ',' or the end, got '}'", 4, "}"),
        ("@self", "O24-020", "preset @self: a preset contains itself: @self → @self", 1, "@self"),
        ("@loop", "O24-020", "preset @pool: a preset contains itself: @loop → @pool → @loop",
         1, "@loop"),
        ("@bad", "O24-021", "preset @bad: no pass is named 'prun'; did you mean 'prune'?",
         5, "prun"),
    ],
)  # fmt: skip
def test_errors(text, code, message, column, marked):
    err = error_of(text)
    (found,) = err.diagnostics
    assert (found.code, found.message) == (code, message)
    assert found.facts == {"line": 1, "column": column}
    quoted, caret, *_ = found.hint.split("\n")
    if marked is not None:
        start = caret[2:].index("^")
        assert quoted[start:].startswith(marked)
        assert caret.count("^") == len(marked)
    assert err.exit_code == 2


def test_the_caret_stands_in_the_right_line():
    (found,) = error_of("qdq,\n  prune{ratio=x},\nqdq").diagnostics
    assert found.facts == {"line": 2, "column": 9}
    assert found.hint.split("\n")[:2] == ["  prune{ratio=x},", "  " + " " * 8 + "^^^^^^^"]


def test_a_long_text_is_cut_around_the_error():
    (found,) = error_of(",".join(["qdq"] * 200 + ["zzz"] + ["qdq"] * 200)).diagnostics
    quoted, caret = found.hint.split("\n")[:2]
    assert len(quoted) <= 100
    assert quoted[caret[2:].index("^") :].startswith("zzz")


def test_a_broken_plugin_is_blamed_at_its_place():
    registry = Registry([Entry("gone", "no_such_module:X", "acme 1.0")])
    with pytest.raises(InputError) as caught:
        parse("gone", registry=registry, presets={})
    (found,) = caught.value.diagnostics
    assert found.code == "O24-028"
    assert found.hint == "gone\n  ^^^^\n  fix or uninstall acme"


def test_order():
    (found,) = error_of("fold-qdq,prune,qdq").diagnostics
    assert found.code == "O24-026"
    assert found.message == "pass 'fold-qdq' must stand after 'qdq', and stands before it"
    assert found.hint == "an order that satisfies every pass: prune,qdq,fold-qdq"


def test_order_goes_by_the_first_place():
    assert len(read("qdq,fold-qdq,qdq")) == 3
    assert len(read("fold-qdq,prune")) == 2, "a constraint needs both passes"


def test_demands_that_contradict():
    (found,) = error_of("left,right").diagnostics
    assert found.code == "O24-026"
    assert "'left' after 'right'" in found.message
    assert "'right' after 'left'" in found.message


def test_a_pipeline_made_in_python_is_checked_too():
    with pytest.raises(InputError):
        Pipeline((Fold(), Qdq())).check_order()
