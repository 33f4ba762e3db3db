"""Solving the weights that a pass chose, or saying why that is not possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.effort import Effort
from onnx24.layerwise.progress import Saved
from onnx24.layerwise.prune import Solved, solve_model
from onnx24.layerwise.resources import Resources
from onnx24.layerwise.segments import Unsupported
from onnx24.runtime.augment import parse_augmentation
from onnx24.runtime.compare import require_values
from onnx24.runtime.data import Calibration

__all__ = ["solve_weights"]


def solve_weights(
    model: Model,
    found: WeightUses,
    verdicts: Sequence[Verdict],
    data: Calibration | None,
    *,
    effort: Effort,
    resources: Resources,
    work_dir: Path | None,
    progress: Callable[..., Iterator[Any]],
) -> Solved:
    """What the data give for these eligible weights, nothing where they don't decide; the model
    itself stays as it is.

    effort: its text names all that the layers in `work_dir` depend on.
    Raises: as `Effort.solves` and `solve_model`; what is said of a model that can't be run in
    pieces lies in the answer.
    """
    if not verdicts:
        return Solved.nothing()
    solved = Solved.nothing()
    if effort.solves(data):
        assert data is not None
        require_values(model, effort.outputs)
        strides = {verdict.key: _stride(verdict) for verdict in verdicts}
        try:
            solved = solve_model(
                model,
                found,
                strides,
                data,
                settings=effort.settings(),
                resources=resources,
                augmentation=parse_augmentation(effort.augment),
                budget=effort.budgets,
                outputs=effort.outputs,
                progress=progress,
                saved=Saved(work_dir, _identity(model, data, effort, list(strides))),
            )
        except Unsupported as why:
            solved.impossible.append(diagnostic("O24-133", str(why)))
            if effort.budgets.any:
                solved.leave_dense(strides)
                solved.unsolved.update((key, str(why)) for key in strides)
    if not solved.layers and effort.lacks_samples(data):
        message = "there are too few samples to hold any back: magnitude decided"
        solved.impossible.append(diagnostic("O24-135", message))
    return solved


def _stride(verdict: Verdict) -> int:
    assert verdict.k_stride is not None
    return verdict.k_stride


def _identity(model: Model, data: Calibration, effort: Effort, keys: list[ValueKey]) -> str:
    """Everything that solved layers depend on; `keys`, which the target and a limit of sites
    decide, too: a layer is fitted to those before it."""
    import numpy
    import onnxruntime

    import onnx24

    versions = (onnx24.__version__, numpy.__version__, onnxruntime.__version__)
    content = Fingerprint.of(model).digest()
    return repr((versions, content, effort, effort.settings(), data.digest(), keys))
