"""Ranges of activations, found by running the model on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnx24.ir.model import Model
from onnx24.quant.calibrators import Calibrator
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import activations

__all__ = ["calibrate", "largest_magnitudes"]


def calibrate(
    model: Model,
    names: Sequence[str],
    data: Calibration,
    make: Callable[[], Calibrator],
    progress: Callable[..., Iterator[Any]],
) -> dict[str, Calibrator]:
    """A finished calibrator for each activation; the data are run once for each sweep.

    progress: as `Context.progress`. Raises: InputError O24-016, O24-030 to O24-033.
    """
    found = {name: make() for name in names}
    sweeps = max(calibrator.sweeps for calibrator in found.values())
    for sweep in range(sweeps):
        label = "calibrate" if sweeps == 1 else f"calibrate {sweep + 1}/{sweeps}"
        runs = activations(model, names, data.batches(model))
        for values in progress(runs, label, total=data.runs):
            for name, calibrator in found.items():
                calibrator.observe(values[name])
        for calibrator in found.values():
            calibrator.end_sweep()
    return found


def largest_magnitudes(model: Model, names: Sequence[str], data: Calibration) -> dict[str, float]:
    """The largest magnitude of each activation over the data; infinity where one was NaN.

    Raises: InputError O24-016, O24-030 to O24-033.
    """
    largest = dict.fromkeys(names, 0.0)
    for values in activations(model, names, data.batches(model)):
        for name, array in values.items():
            magnitude = np.abs(array).max(initial=0.0)
            largest[name] = max(largest[name], float(np.nan_to_num(magnitude, nan=np.inf)))
    return largest
