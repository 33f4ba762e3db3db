"""Which layers go back to float, because the model's outputs would suffer too much.

Everything is measured on calibration samples: how near the outputs of the quantized model come to
the float model's, and, where that is not near enough, what each layer does to them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnx24.analysis.placement import Layer
from onnx24.errors import InputError
from onnx24.layerwise.judge import fewest
from onnx24.rewrite.quantizer import Quantizer
from onnx24.runtime.trials import Likeness

__all__ = ["Limits", "Protection", "protect"]

SCREEN = 16
"""Samples of the first look."""
FEWEST = 200
"""Samples from which on every agreement is asked for: one of 200 is the default's half per cent."""
SAMPLES = 512
"""Samples that outputs are compared on, FEWEST with large models, as WORK allows."""
WORK = 1 << 32
"""Weights times samples."""
RANKING_SAMPLES = 32
"""Samples that a single layer's part is measured on."""


@dataclass(frozen=True)
class Limits:
    """budget: the outputs' largest relative error; agreement: the least share of samples whose
    most likely class stays, for classifiers. 0 asks for neither."""

    budget: float = 0.0
    agreement: float = 0.0

    def asked_with(self, samples: int) -> Limits:
        """The limits that so many samples can tell of: of an agreement, FEWEST can, and fewer
        where one sample is less than what may change."""
        told = samples >= FEWEST or samples * (1 - self.agreement) >= 0.999
        return self if told else Limits(self.budget)

    def met_by(self, found: Likeness) -> bool:
        if self.budget and not found.rel_l2 <= self.budget:
            return False
        return not self.agreement or found.top1 is None or found.top1 >= self.agreement


@dataclass
class Protection:
    """`layers`: those to leave in float → the outputs' relative error with that layer quantized
    alone. before, after: of the outputs with all, and with the others quantized; None where it was
    not measured. predicted: the relative error with the others, from the layers' own."""

    layers: dict[Layer, float] = field(default_factory=dict)
    before: Likeness | None = None
    after: Likeness | None = None
    predicted: float = 0.0


def protect(quantizer: Quantizer, limits: Limits, progress: Callable[..., Any]) -> Protection:
    """Leave layers in float, those first that do most to the outputs, until the limits are met.

    SCREEN samples tell how many are decided so narrowly that they could change; if hardly any are,
    no more is asked of the agreement. A model that ONNX Runtime does not run is left alone where
    no budget was asked for; an agreement is not asked for with too few samples to tell.

    Raises: InputError O24-016 for a budget of a model that can't be run.
    """
    choice = quantizer.choice
    found = Protection()
    samples = _samples(quantizer)
    limits = limits.asked_with(samples)
    if not choice.formats or not (limits.budget or limits.agreement):
        return found
    try:
        found.before = found.after = quantizer.likeness(choice, min(SCREEN, samples))
        if found.before.expected <= (1 - limits.agreement) / 2:
            limits = Limits(limits.budget)
            if not limits.budget:
                return found
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
    for layer in progress(layers, "sensitivity", total=len(layers)):
        single = quantizer.likeness(choice.only(layer), min(RANKING_SAMPLES, samples))
        alone[layer] = single.rel_l2
    order = sorted(layers, key=lambda layer: -alone[layer])
    assert found.before is not None
    tried = {0: found.before}

    def is_met(n: int) -> bool:
        if n not in tried:
            tried[n] = quantizer.likeness(choice.without(set(order[:n])), samples)
        return limits.met_by(tried[n])

    n = fewest(len(order), is_met, known=(0, *_predicted(order, alone, limits.budget)))
    found.layers = {layer: alone[layer] for layer in order[:n]}
    found.predicted = math.sqrt(sum(alone[layer] ** 2 for layer in order[n:]))
    found.after = tried.get(n, Likeness(0.0))


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
