"""What layers took on a GPU, from ledgers, in place of estimates.

A ledger has the time of each layer in the engine that it is of, and in the dense one. A layer whose
weight is 2:4 gives the times of `sparse` and `dense`; one whose weight is stored as INT8 (behind
fold-qdq) those of `sparse-int8` and `int8`. Several ledgers are put together. Estimates are lower
bounds, and smaller than what is measured: those of forms without a measurement are multiplied by
what the unit's measured forms took against theirs, and by the median of that where there is none.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnx24.errors import InputError
from onnx24.tuning.costs import Unit

__all__ = ["Times", "times_of", "with_measured"]

Times = Mapping[str, Mapping[str, float]]
"""Node → form → µs."""


def times_of(documents: Sequence[tuple[str, str]]) -> Times:
    """documents: (file, text) of each ledger's JSON; of a time that several have, the last counts.

    Raises: InputError O24-048 for another document, or where no layer has a time.
    """
    found: dict[str, dict[str, float]] = {}
    for file, text in documents:
        try:
            for row in json.loads(text)["rows"]:
                if forms := _forms(row):
                    found.setdefault(str(row["name"]), {}).update(forms)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise InputError.of(
                "O24-048", "this is no ledger", file=file, hint="`onnx24 ledger MODEL … -o F.json`"
            ) from err
    if not found:
        raise InputError.of(
            "O24-048",
            "no layer of this ledger has a time",
            file=documents[-1][0],
            hint="give `onnx24 ledger` MODEL and --profile",
        )
    return found


def _forms(row: Mapping[str, Any]) -> dict[str, float]:
    """Raises: ValueError for a time that is no positive number."""
    layer = row["model"]
    if not layer or not layer["weight"]:
        return {}
    is_int8 = layer["dtype"] == "int8"
    sparse, dense = ("sparse-int8", "int8") if is_int8 else ("sparse", "dense")
    shares = max(1, int(row.get("shares", 1)))
    found = {}
    for form, time in (
        (dense, row["dense_ms"]),
        (sparse if layer["is_24"] else dense, row["time_ms"]),
    ):
        if time is None:
            continue
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 < time < math.inf:
            raise ValueError(f"{time!r} is no time")
        found[form] = 1e3 * float(time) / shares
    return found


def with_measured(units: Sequence[Unit], times: Times) -> tuple[list[Unit], int]:
    """The units with their measured costs, and how many costs those are. A form of a unit is
    measured where it is for each of its nodes."""
    known = [_measured(unit, times) for unit in units]
    factors = [_factor(unit, found) for unit, found in zip(units, known, strict=True) if found]
    usual = statistics.median(factors) if factors else 1.0
    made = []
    for unit, found in zip(units, known, strict=True):
        factor = _factor(unit, found) if found else usual
        costs = {form: found.get(form, cost * factor) for form, cost in unit.costs.items()}
        made.append(replace(unit, costs=costs))
    return made, sum(map(len, known))


def _measured(unit: Unit, times: Times) -> dict[str, float]:
    return {
        form: sum(times[node][form] for node in unit.nodes)
        for form in unit.costs
        if all(form in times.get(node, {}) for node in unit.nodes)
    }


def _factor(unit: Unit, found: Mapping[str, float]) -> float:
    """What was measured of a unit's forms against their estimates."""
    estimated = sum(unit.costs[form] for form in found)
    return sum(found.values()) / estimated if estimated else 1.0
