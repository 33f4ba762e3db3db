"""Which samples are held out: one answer for every step that a model goes through.

Each step that fits something to DATA (pruning, scales, recovery) and each that judges by it asks
here, so that what judges was fitted by nothing, in whatever order steps come. The choice depends
only on how many samples there are. A model's provenance keeps the digest of the samples that were
held out, by which a later command knows them again in the same file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration, spread

__all__ = ["FITTED_KEY", "HELD_OUT_KEY", "Split", "held_out"]

SHARE = 1 / 8
"""Of the samples that are held out …"""
FROM = 16
"""… where there are at least so many."""

HELD_OUT_KEY = "onnx24.held-out.sha256"
FITTED_KEY = "onnx24.calibration.sha256"


def held_out(units: int, samples: int) -> np.ndarray | None:
    """True for the units (what one run can't be divided below) that are held out, spread evenly
    over all; None where there are too few samples to divide."""
    if samples < FROM or units < 2:
        return None
    return ~spread(units, 1 - SHARE)


@dataclass(frozen=True)
class Split:
    """DATA, divided. fitted: what steps may fit to. held_out: what judges them. Both are all of it
    where `is_divided` is False."""

    fitted: Calibration
    held_out: Calibration
    is_divided: bool

    @classmethod
    def of(cls, data: Calibration) -> Split:
        apart = held_out(data.units, len(data))
        if apart is None:
            return cls(data, data, False)
        return cls(data.part(~apart), data.part(apart), True)

    def digest(self) -> str:
        """Of the samples held out, for the record; "" where none are."""
        return self.held_out.digest() if self.is_divided else ""


def judging(data: Calibration, *models: Model) -> tuple[Calibration, str, list[Diagnostic]]:
    """What of `data` may judge these models, which use that is of it, and what can't be told
    (O24-054): where a model was fitted to a part of these data, the others; where it was fitted to
    all of them, there are none."""
    known = {text for m in models for text in m.metadata.get(HELD_OUT_KEY, "").split()}
    fitted = {m.metadata.get(FITTED_KEY, "") for m in models} - {""}
    if not (known or fitted):
        return data, "comparison", []
    split = Split.of(data)
    if split.is_divided and split.digest() in known:
        return split.held_out, "comparison, held out", []
    if {data.digest(), split.fitted.digest()} & fitted:
        message = (
            f"{data.describe()}: a model was fitted to these samples, and none was held out of them"
        )
        return data, "comparison, fitted", [diagnostic("O24-054", message)]
    return data, "comparison", []
