"""Limits of a numeric comparison: their syntax, and which output decides."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnx24.errors import InputError
from onnx24.report.limits import METRICS, Limit, check_limits, parse_limits
from onnx24.runtime.difference import OutputDiff


def Out(name: str, **found: Any) -> OutputDiff:
    good = {"max_abs": 0.0, "rel_l2": 0.0, "cosine": 1.0, "sqnr_db": math.inf, "elements": 8}
    return OutputDiff(**{"name": name, "top1_agreement": None, "shape": (8,), **good, **found})


def test_limits_are_joined_by_commas_and_by_repeating() -> None:
    assert parse_limits(["sqnr=20, top1=0.01", "rel-l2=0.1"]) == [
        Limit("sqnr", 20.0),
        Limit("top1", 0.01),
        Limit("rel-l2", 0.1),
    ]
    assert parse_limits([]) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("snqr=20", "did you mean 'sqnr'"),
        ("sqnr", "write sqnr=NUMBER"),
        ("sqnr=", "expected a number, got ''"),
        ("sqnr=loud", "got 'loud'"),
        ("sqnr=nan", "got 'nan'"),
        ("top1=1.5", "at least 0 and at most 1"),
        ("rel-l2=-1", "a number of at least 0"),
        ("sqnr=1,sqnr=2", "given twice"),
        ("=3", "there is no metric ''"),
        ("sqnr=1@a,sqnr=2@a", "given twice"),
    ],
)
def test_a_bad_limit_says_what_is_expected(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_limits([text])
    assert caught.value.code == "O24-043"
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "value", "met"),
    [
        ("sqnr=20", 20.0, True),
        ("sqnr=20", 19.99, False),
        ("cosine=0.9", 0.95, True),
        ("cosine=0.9", 0.85, False),
        ("rel-l2=0.1", 0.1, True),
        ("rel-l2=0.1", 0.11, False),
        ("max-abs=0", 0.0, True),
        ("max-abs=0", 1e-9, False),
        ("top1=0.01", 0.99, True),
        ("top1=0.01", 0.985, False),
        ("top1=0.1", 1 - 36 / 360, True),  # exactly the allowed share, up to rounding
        ("sqnr=20", math.nan, False),
        ("rel-l2=5", math.nan, False),
        ("sqnr=20", math.inf, True),
    ],
)
def test_each_limit_looks_in_its_own_direction(limit: str, value: float, met: bool) -> None:
    (parsed,) = parse_limits([limit])
    (result,) = check_limits([parsed], [Out("y", **{METRICS[parsed.metric].field: value})])
    assert result.met is met
    assert result.to_json()["met"] is met


def test_the_worst_output_decides_and_is_named() -> None:
    outputs = [Out("a", rel_l2=0.01), Out("b", rel_l2=0.5), Out("c", rel_l2=0.2)]
    (result,) = check_limits(parse_limits(["rel-l2=0.3"]), outputs)
    assert (result.output, result.value, result.met) == ("b", 0.5, False)
    diagnostic = result.unmet()
    assert diagnostic.code == "O24-600"
    assert diagnostic.where.tensor == "b"
    assert "0.5" in diagnostic.message and "at most 0.3" in diagnostic.message


def test_nan_is_the_worst_whatever_else_there_is() -> None:
    outputs = [Out("a", sqnr_db=1.0), Out("b", sqnr_db=math.nan)]
    (result,) = check_limits(parse_limits(["sqnr=0.5"]), outputs)
    assert result.output == "b" and not result.met


def test_a_metric_that_no_output_has_is_not_met() -> None:
    (result,) = check_limits(parse_limits(["top1=0.5"]), [Out("y")])
    assert not result.met and result.value is None
    assert "no output has" in result.unmet().message


def test_a_limit_can_name_outputs_and_commas_stay_in_their_names() -> None:
    limits = parse_limits(["sqnr=20@a,b, sqnr=5@/c:0,top1=0.1"])
    assert limits == [Limit("sqnr", 20, "a,b"), Limit("sqnr", 5, "/c:0"), Limit("top1", 0.1)]
    assert parse_limits([",".join(map(str, limits))]) == limits
    outputs = [Out("scores", rel_l2=0.1), Out("boxes", rel_l2=math.inf), Out("inner", rel_l2=9.0)]
    named, other, every = check_limits(
        parse_limits(["rel-l2=0.2@scores", "rel-l2=0.2@inner", "rel-l2=99"]),
        outputs,
        ["scores", "boxes"],
    )
    assert (named.output, named.met) == ("scores", True)
    assert (other.output, other.met) == ("inner", False)
    assert (every.output, every.met) == ("boxes", False)


@pytest.mark.parametrize("limit", ["max-abs=9", "rel-l2=9", "cosine=-1", "sqnr=-99"])
def test_what_was_not_compared_in_full_meets_no_limit(limit: str) -> None:
    part = Out("y", runs=40, compared=1, unlike=39)
    (result,) = check_limits(parse_limits([limit]), [Out("x"), part])
    assert (result.met, result.output, result.compared, result.runs) == (False, "y", 1, 40)
    assert "shapes differ in 39 of 40 runs" in result.unmet().message
    assert "@NAME" in result.unmet().hint
    assert not check_limits(parse_limits([limit]), [Out("y", elements=0)])[0].met
