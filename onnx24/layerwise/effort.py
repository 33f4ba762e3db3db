"""How much work is put into each layer: from the options to what the solver is told."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Annotated

from onnx24.errors import InputError
from onnx24.layerwise.judge import Budget
from onnx24.layerwise.prune import can_be_judged
from onnx24.layerwise.solver import Settings
from onnx24.runtime.augment import parse_augmentation
from onnx24.runtime.data import Calibration
from onnx24.sparsity.solve import REFIT_STEPS
from onnx24.sparsity.solve import Method as SolverMethod

__all__ = ["Effort", "Method", "Quality", "Switch"]

PERMUTED_ELEMENTS = 1 << 26
"""With more weights than that, permute=auto is off: the search would take longer than the rest."""


class Method(str, enum.Enum):
    AUTO = "auto"
    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    RIA = "ria"
    OBS = "obs"
    ADMM = "admm"


class Quality(str, enum.Enum):
    MAGNITUDE = "magnitude"
    FAST = "fast"
    DEFAULT = "default"
    MAX = "max"


class Switch(str, enum.Enum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


_TIERS = {
    Quality.MAGNITUDE: Settings(method=SolverMethod.MAGNITUDE, asymmetric=False, refit_steps=0),
    Quality.FAST: Settings(steps=8, sweeps=1, refit_steps=3),
    Quality.DEFAULT: Settings(),
    Quality.MAX: Settings(steps=60, refit_steps=10, rows_per_k=32),
}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The options, as fields that a pass inherits. data: the calibration data, None where there
    are none."""

    method: Annotated[
        Method, "how the survivors are chosen; auto: by quality, magnitude without data"
    ] = Method.AUTO
    quality: Annotated[Quality, "how much work is put into each layer"] = Quality.DEFAULT
    refit: Annotated[bool, "solve for the survivors' values, given data"] = True
    asymmetric: Annotated[
        Switch, "solve for the dense model's outputs from the compressed model's inputs"
    ] = Switch.AUTO
    permute: Annotated[
        Switch, "reorder channels first; auto: without data, and with quality=max"
    ] = Switch.AUTO
    augment: Annotated[str, "more calibration images: off, shift[PIXELS][+flip][xFACTOR][@HxW]"] = (
        "off"
    )
    budget: Annotated[
        float, "largest relative error of the outputs; layers stay dense to keep it; 0: none"
    ] = 0.0
    min_agreement: Annotated[
        float, "leave layers of a classifier dense until so many % of samples keep their class"
    ] = 0.0
    outputs: Annotated[
        tuple[str, ...], "judge by these outputs, or inner values of the main graph; empty: all"
    ] = ()

    def __post_init__(self) -> None:
        parse_augmentation(self.augment)  # ValueError for a text that is none
        if not self.budget >= 0:
            raise ValueError(f"budget is {self.budget}; it is a relative error of 0 or more")
        if not 0 <= self.min_agreement <= 100:
            raise ValueError(f"min-agreement is 0 to 100 %, not {self.min_agreement}")

    @property
    def budgets(self) -> Budget:
        """What the model's outputs must keep."""
        return Budget(self.budget, self.min_agreement / 100)

    def settings(self) -> Settings:
        """What the solver is told."""
        settings = _TIERS[self.quality]
        if self.method is not Method.AUTO:
            method, is_admm = SolverMethod(self.method.value), self.method is Method.ADMM
            settings = replace(settings, method=method, asymmetric=is_admm)
            if not is_admm:  # the pairs are its own, and its values start further away
                steps = max(settings.refit_steps, REFIT_STEPS)
                settings = replace(settings, sweeps=0, refit_steps=steps)
        if not self.refit:
            settings = replace(settings, refit_steps=0)
        if self.asymmetric is not Switch.AUTO:
            settings = replace(settings, asymmetric=self.asymmetric is Switch.ON)
        return settings

    def solves(self, data: Calibration | None) -> bool:
        """Whether activations decide.

        Raises: InputError O24-035 where they are asked for and there are no data.
        """
        named = self.method not in (Method.AUTO, Method.MAGNITUDE)
        asked = named or self.budgets.any
        if self.quality is Quality.MAGNITUDE and not asked:
            return False
        if data is None:
            if asked:
                text = f"method={self.method.value}" if named else "a budget"
                raise InputError.of("O24-035", f"prune24: {text} needs calibration data")
            return False
        # Fitting to noise costs three times what magnitude costs, and what can't be judged may.
        return asked or not (data.is_random or self.lacks_samples(data))

    def lacks_samples(self, data: Calibration | None) -> bool:
        """Whether the samples are real, and too few to hold any back."""
        if data is None or data.is_random or self.quality is Quality.MAGNITUDE:
            return False
        return not can_be_judged(data)

    def permutes(self, elements: int, data: Calibration | None) -> bool:
        """Whether channels are put in order before `elements` weights are pruned."""
        if self.permute is not Switch.AUTO:
            return self.permute is Switch.ON
        if self.quality is Quality.MAGNITUDE or elements > PERMUTED_ELEMENTS:
            return False
        return self.quality is Quality.MAX or not self.solves(data)
