"""The small parts of a report: tables, JSON, aggregated diagnostics."""

from __future__ import annotations

import enum
import json
import math

import ml_dtypes
import numpy as np
import pytest

from onnx24.diagnostics import Severity, diagnostic
from onnx24.report.aggregate import aggregate
from onnx24.report.jsontext import json_text, plain
from onnx24.report.table import bytes_text, share_text, shorten, table


class Color(enum.Enum):
    RED = "red"


def test_plain_knows_what_facts_are_made_of() -> None:
    value = {
        1: math.inf,
        "n": math.nan,
        "f": np.float32(0.5),
        "i": np.int64(7),
        "b": np.bool_(True),
        "h": ml_dtypes.bfloat16(1.5),
        "a": np.arange(3),
        "s": {"b", "a"},
        "t": (1, -math.inf),
        "e": Color.RED,
        "z": None,
    }
    assert plain(value) == {
        "1": "inf",
        "n": "nan",
        "f": 0.5,
        "i": 7,
        "b": True,
        "h": 1.5,
        "a": [0, 1, 2],
        "s": ["a", "b"],
        "t": [1, "-inf"],
        "e": "red",
        "z": None,
    }


def test_json_text_is_standard_json() -> None:
    text = json_text({"x": [math.nan, "é"]}, ascii_only=True)
    assert text.endswith("\n") and text.isascii()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"x": ["nan", "é"]}


def test_what_has_no_json_form_is_an_error_and_not_its_repr() -> None:
    with pytest.raises(TypeError, match="object"):
        plain({"x": object()})


def test_a_table_fits_its_width_and_keeps_numbers_whole() -> None:
    rows = [("encoder.layers.11.attention.self.query.weight" * 3, "123456789"), ("b", "7")]
    lines = table(("name", "n"), rows, right=(1,), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" in lines[1] and lines[1].endswith("123456789")
    assert lines[2].endswith("        7")


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("a", "b"), []) == "  a  b"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_shares_and_shortening() -> None:
    assert share_text(1, 0) == "–" and share_text(1, 4) == "25.0 %"
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abc", 3) == "abc"


def test_a_code_that_repeats_is_counted_and_its_hint_said_once() -> None:
    items = [diagnostic("O24-113", f"K = {k}", tensor=f"w{k}") for k in range(40)]
    items.append(diagnostic("O24-013", "twice", severity=Severity.ERROR))
    texts = aggregate(items)
    assert texts[0].startswith("error: twice (O24-013)"), "errors come first"
    assert sum("(O24-113)" in text for text in texts) == 4
    assert "… and 37 more: reduction size is not a multiple of 4" in texts[-1]
    assert sum("pad K" in text for text in texts) == 1


def test_aggregating_nothing() -> None:
    assert aggregate([]) == []
