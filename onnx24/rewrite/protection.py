"""Which layers go back to float, because the model's outputs would suffer too much.

Everything is measured on calibration samples: how near the outputs of the quantized model come to
the float model's, and, where that is not near enough, what each layer does to them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from onnx24.analysis.placement import Layer
from onnx24.errors import InputError
from onnx24.layerwise.judge import FEWEST, fewest
from onnx24.rewrite.quantizer import Quantizer
from onnx24.runtime.trials import Likeness

__all__ = ["Limits", "Protection", "protect"]

SCREEN = 16
"""Samples of the first look."""
SAMPLES = 512
"""Samples that outputs are compared on, FEWEST with large models, as WORK allows."""
WORK = 1 << 32
"""Weights times samples."""
RANKING_SAMPLES = 32
"""Samples that a single layer's part is measured on, SQNR_SAMPLES where only decibels are asked
for, which each sample tells of by all its values."""
SQNR_SAMPLES = 4
CLEARLY_DB = 1.0
"""Above the limit, SCREEN samples are enough to know."""
MOST = 4
"""For decibels that nobody asked for, one layer of so many stays in float at most."""
WORTH_DB = 3.0
"""What they have to gain where the limit is not met even so."""
HURTS_DB, HURTS_AGREEMENT, HURTS_SAMPLES = 15.0, 0.99, 3
"""What is said to hurt: fewer decibels in an output, a smaller share of samples that keep their
class where it is more than a few samples."""


@dataclass(frozen=True)
class Limits:
    """budget: the largest relative error of any output, and of all together; agreement: the least
    share of samples whose most likely class stays, for classifiers; sqnr_db: the least signal to
    noise of any output, where no agreement is asked of it. 0 asks for neither."""

    budget: float = 0.0
    agreement: float = 0.0
    sqnr_db: float = 0.0

    @property
    def any(self) -> bool:
        return bool(self.budget or self.agreement or self.sqnr_db)

    def asked_with(self, samples: int) -> Limits:
        """The limits that so many samples can tell of: of an agreement, FEWEST can, and fewer
        where one sample is less than what may change."""
        told = samples >= FEWEST or samples * (1 - self.agreement) >= 0.999
        return self if told else replace(self, agreement=0.0)

    def doubted_by(self, screen: Likeness) -> Limits:
        """Those that a first look does not settle."""
        limits = self
        if screen.expected <= (1 - self.agreement) / 2:
            limits = replace(limits, agreement=0.0)
        judged = screen.top1 is not None and self.agreement
        if judged or screen.sqnr_db >= self.sqnr_db + CLEARLY_DB:
            limits = replace(limits, sqnr_db=0.0)
        return limits

    def met_by(self, found: Likeness) -> bool:
        if self.budget and not found.largest <= self.budget:
            return False
        if self.sqnr_db and not found.sqnr_db >= self.sqnr_db:
            return False
        return not self.agreement or found.top1 is None or found.top1 >= self.agreement


@dataclass
class Protection:
    """`layers`: those to leave in float → the outputs' relative error with that layer quantized
    alone. before, after: of the outputs with all, and with the others quantized; None where it was
    not measured. predicted: the relative error with the others, from the layers' own. alone: that
    of every layer, where it was measured."""

    layers: dict[Layer, float] = field(default_factory=dict)
    alone: dict[Layer, float] = field(default_factory=dict)
    before: Likeness | None = None
    after: Likeness | None = None
    predicted: float = 0.0

    @property
    def hurts(self) -> str:
        """What the outputs lose that a user would see; "" where it is little."""
        found = self.after
        if found is None:
            return ""
        share = 1.0 if found.top1 is None else found.top1
        if share < HURTS_AGREEMENT and round((1 - share) * found.runs) >= HURTS_SAMPLES:
            return f"{100 * share:.1f} % of {found.runs} samples keep their class"
        if found.sqnr_db >= HURTS_DB:
            return ""
        (sqnr, name), where = found.worst, ""
        if found.faint[0] < sqnr:
            (sqnr, name), where = found.faint, " in the channels that are small beside its others"
        return f"output {name!r} has {sqnr:.1f} dB{where}"


def protect(quantizer: Quantizer, limits: Limits, progress: Callable[..., Any]) -> Protection:
    """Leave layers in float, those first that do most to the outputs, until the limits are met.

    SCREEN samples tell how many are decided so narrowly that they could change; if hardly any are,
    no more is asked of the agreement, nor of decibels that are there with a margin. For decibels
    one layer of MOST stays in float at most, and none where that gains little. A model that ONNX
    Runtime does not run is left alone where no budget was asked for; an agreement is not asked for
    with too few samples to tell.

    Raises: InputError O24-016 for a budget of a model that can't be run.
    """
    choice = quantizer.choice
    found = Protection()
    samples = _samples(quantizer)
    limits = limits.asked_with(samples)
    if not choice.formats:
        return found
    try:
        found.before = found.after = quantizer.likeness(choice, min(SCREEN, samples))
        limits = limits.doubted_by(found.before)
        if not limits.any:
            return found
        if not (limits.budget or limits.agreement):
            samples = min(SCREEN, samples)
        found.before = found.after = quantizer.likeness(choice, samples)
        if not limits.met_by(found.before):
            _choose(quantizer, limits, samples, found, progress)
    except InputError:
        if limits.budget:
            raise
        return Protection()
    return found


def _choose(
    quantizer: Quantizer,
    limits: Limits,
    samples: int,
    found: Protection,
    progress: Callable[..., Any],
) -> None:
    choice = quantizer.choice
    alone = {}
    layers = list(choice.formats)
    asked = bool(limits.budget or limits.agreement)
    ranking = RANKING_SAMPLES if asked else SQNR_SAMPLES
    for layer in progress(layers, "sensitivity", total=len(layers)):
        single = quantizer.likeness(choice.only(layer), min(ranking, samples))
        alone[layer] = single.rel_l2
    found.alone = alone
    order = sorted(layers, key=lambda layer: -alone[layer])
    assert found.before is not None
    tried = {0: found.before}

    def is_met(n: int) -> bool:
        if n not in tried:
            tried[n] = quantizer.likeness(choice.without(set(order[:n])), samples)
        return limits.met_by(tried[n])

    most = len(order) if asked else len(order) // MOST
    n = fewest(most, is_met, known=(0, *_predicted(order, alone, limits.budget)))
    if not is_met(n) and not asked and tried[n].sqnr_db < found.before.sqnr_db + WORTH_DB:
        n = 0
    found.layers = {layer: alone[layer] for layer in order[:n]}
    found.predicted = math.sqrt(sum(alone[layer] ** 2 for layer in order[n:]))
    found.after = tried[n]


def _predicted(order: list[Layer], alone: dict[Layer, float], budget: float) -> tuple[int, ...]:
    """The number before the one from which on the layers' own errors, added as squares, are within
    the budget: bisection begins there."""
    for n in range(len(order)):
        if budget and math.sqrt(sum(alone[layer] ** 2 for layer in order[n:])) <= budget:
            return (n - 1,) if n > 1 else ()
    return ()


def _samples(quantizer: Quantizer) -> int:
    tensors = quantizer.flow.found.tensors
    keys = {layer.weight for layer in quantizer.choice.layers}
    elements = sum(math.prod(tensors[key].dims) for key in keys)
    fitting = max(FEWEST, WORK // max(1, elements))
    return min(SAMPLES, fitting, len(quantizer.data))
