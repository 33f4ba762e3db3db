"""What a comparison may not hide: other shapes, NaN, nothing compared at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx24.runtime.difference import Differences, difference, mean_rel_l2

ROWS = np.array([[3.0, 1.0], [1.0, 2.0], [0.0, 5.0]], np.float32)


def test_runs_of_other_shapes_count_against_every_measure() -> None:
    found = Differences()
    found.add({"y": ROWS}, {"y": ROWS})
    found.add({"y": ROWS}, {"y": ROWS[:2]})
    (out,) = found.results()
    assert (out.runs, out.compared, out.unlike) == (2, 1, 1)
    assert out.top1_agreement == 0.5 and out.rel_l2 == math.inf and not out.is_complete
    assert out.gap == "shapes differ in 1 of 2 runs"


def test_nan_is_no_class_and_no_value() -> None:
    odd = ROWS.copy()
    odd[0, 0] = np.nan  # argmax of a NaN is its own place, where the reference's largest stands
    out = difference(ROWS, odd)
    assert out.top1_agreement == pytest.approx(2 / 3) and out.rel_l2 == math.inf
    both = difference(odd, odd)
    assert both.identical and both.top1_agreement == pytest.approx(2 / 3)
    assert (both.undefined, both.elements, both.compared) == (1, 5, 0) and both.rel_l2 == 0
    assert both.gap == "NaN in 1 of 1 runs"


@pytest.mark.parametrize("value", [np.full((2, 2), np.nan), np.zeros((0, 4))], ids=["nan", "empty"])
def test_where_nothing_was_compared_no_number_is_good(value: np.ndarray) -> None:
    out = difference(value, value)
    assert math.isnan(out.rel_l2) and math.isnan(out.sqnr_db) and out.badness == math.inf
    assert out.identical and not out.is_complete and out.gap
    assert mean_rel_l2([out]) == math.inf


def test_infinities_in_the_same_places_are_compared() -> None:
    masked = np.array([1.0, -np.inf], np.float16)
    assert difference(masked, masked).is_complete
    assert difference(masked, -masked).mismatches == 1
    assert difference(np.ones(2), masked).rel_l2 == math.inf


def test_a_sequence_is_judged_by_its_worst_element() -> None:
    assert difference([ROWS, ROWS], [ROWS, ROWS * 2]).rel_l2 == pytest.approx(1)
    assert difference([ROWS, ROWS], [ROWS]).unlike == 1
