"""Which form each layer gets: least cost, under a bound on the sum of what the forms do.

What two layers do to the outputs is taken to add up, as the powers of independent errors do. Then
the choice is a multiple-choice knapsack, which is solved exactly over a grid of losses.
*Source:* Sinha and Zoltners, The multiple-choice knapsack problem, Operations Research 27 (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["STEPS", "Point", "choose", "front"]

STEPS = 4096
"""Of the grid of losses, from none to the bound; each loss is rounded up to it."""


@dataclass(frozen=True)
class Point:
    """One way to choose. forms: of each unit, in order. loss: the sum of the units' losses (noise
    power over signal power of the worst output); cost: the sum of their costs."""

    forms: tuple[str, ...]
    loss: float
    cost: float

    @property
    def sqnr_db(self) -> float:
        """What the loss predicts of the worst output [dB]."""
        return -10 * math.log10(self.loss) if self.loss > 0 else math.inf


Options = Mapping[str, tuple[float, float]]
"""Form → (cost, loss)."""


def choose(options: Sequence[Options], bound: float) -> Point:
    """The cheapest choice whose losses sum to at most `bound`. Of equal costs, the least loss.

    options: of each unit; each holds a form of loss 0. Raises: ValueError where one does not.
    """
    if any(min((loss for _, loss in each.values()), default=1.0) > 0 for each in options):
        raise ValueError("a unit has no form of loss 0")
    best = np.full(STEPS + 1, math.inf)
    best[0] = 0.0
    taken: list[np.ndarray] = []
    names: list[list[str]] = []
    for each in options:
        forms = sorted(each, key=lambda form: (each[form][1], each[form][0]))
        names.append(forms)
        new = np.full(STEPS + 1, math.inf)
        by = np.zeros(STEPS + 1, np.int16)
        for number, form in enumerate(forms):
            cost, loss = each[form]
            steps = _steps(loss, bound)
            if steps > STEPS:
                continue
            moved = np.full(STEPS + 1, math.inf)
            moved[steps:] = best[: STEPS + 1 - steps] + cost
            better = moved < new
            new[better], by[better] = moved[better], number
        best = new
        taken.append(by)
    at = int(np.argmin(best))
    forms_taken: list[str] = []
    for each, by, forms in zip(reversed(options), reversed(taken), reversed(names), strict=True):
        form = forms[int(by[at])]
        forms_taken.append(form)
        at -= _steps(each[form][1], bound)
    chosen = tuple(reversed(forms_taken))
    loss = sum(each[form][1] for each, form in zip(options, chosen, strict=True))
    cost = sum(each[form][0] for each, form in zip(options, chosen, strict=True))
    return Point(chosen, loss, cost)


def _steps(loss: float, bound: float) -> int:
    if loss <= 0:
        return 0
    if bound <= 0 or not math.isfinite(loss):
        return STEPS + 1
    return min(STEPS + 1, math.ceil(loss / bound * STEPS))


def front(options: Sequence[Options], bounds: Sequence[float]) -> list[Point]:
    """The choices at several bounds, cheapest last, without those that another one beats in "
    "both."""
    points = sorted({choose(options, bound) for bound in bounds}, key=lambda p: (p.loss, p.cost))
    kept: list[Point] = []
    for point in points:
        if not kept or point.cost < kept[-1].cost:
            kept.append(point)
    return kept
