"""The layer or weight whose transformation breaks a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.driver.models import ModelLike, load
from onnx24.driver.samples import (
    DataLike,
    LimitsLike,
    ShapesLike,
    limits_of,
    load_samples,
    profiles_of,
    split_of,
)
from onnx24.driver.usage import usage
from onnx24.ir.model import Model
from onnx24.passmgr.bisect import BisectResult, Oracle, Outcome, Probe, command
from onnx24.passmgr.bisect import bisect as search
from onnx24.passmgr.pipeline import Pipeline, parse
from onnx24.report.limits import Limit, check_limits, named_values

if TYPE_CHECKING:
    from onnx24.passmgr.base import Pass
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

DEFAULT_LIMIT = "rel-l2=0.1"


def bisect(
    model: ModelLike,
    pipeline: str | Iterable[Pass],
    *,
    target: str | Target = targets.DEFAULT,
    calib: DataLike = None,
    data: DataLike = None,
    seed: int = 0,
    shapes: ShapesLike = None,
    max_drop: LimitsLike = None,
    judge: str | Oracle | None = None,
    timeout: float | None = None,
    verify: bool = True,
    on_probe: Callable[[Probe], None] | None = None,
) -> BisectResult:
    """Find the layer or weight whose transformation breaks a model.

    judge: a function that takes a model and gives an `Outcome`, or a shell command in which {model}
    stands for the model's path, good with exit code 0 within `timeout` [seconds]. Without it
    `max_drop` (rel-l2=0.1 unless given) judges on `data`; without either, a model is bad where a
    pass fails or ONNX Runtime refuses the result.

    Raises: InputError.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> found = onnx24.bisect(mlp([64, 64, 32]), "prune24")
    >>> found.verdict, found.sites
    ('good', 2)
    """
    if judge is not None and (data is not None or max_drop):
        raise usage("--command and --data are two judges", "choose one")
    if max_drop and data is None:
        raise usage("--max-drop needs samples to measure on", "pass --data DATA")
    limits = limits_of(max_drop or DEFAULT_LIMIT)
    row = targets.load(target)
    steps = parse(pipeline) if isinstance(pipeline, str) else Pipeline(tuple(pipeline))
    profiles = profiles_of(shapes)
    source = load(model)
    changed, reference = source.load(), source.load()
    split = split_of(load_samples(calib, changed, profiles, seed))
    oracle: Oracle
    if isinstance(judge, str):
        oracle = command(judge, timeout=timeout)
    elif judge is not None:
        oracle = judge
    elif data is not None:
        oracle = _within(reference, load_samples(data, reference, profiles, seed), limits)
    else:
        oracle = _runs
    return search(
        changed,
        steps,
        oracle,
        target=row,
        calibration=split.fitted if split else None,
        verify=verify,
        on_probe=on_probe,
    )


def _within(reference: Model, data: Calibration, limits: Sequence[Limit]) -> Oracle:
    """Good while every limit is met."""
    from onnx24.runtime.compare import compare

    def oracle(model: Model) -> Outcome:
        found = compare(reference, model, data, also=named_values(limits))
        results = check_limits(limits, found.outputs, found.names)
        unmet = [result for result in results if not result.met]
        if unmet:
            return Outcome(False, unmet[0].unmet().message)
        return Outcome(True, ", ".join(f"{r.limit.metric} {r.value:.4g}" for r in results))

    return oracle


def _runs(model: Model) -> Outcome:
    """Good while ONNX Runtime takes the model."""
    from onnx24.errors import InputError
    from onnx24.runtime.session import Session

    try:
        Session(model, None)
    except InputError as err:
        return Outcome(False, err.diagnostics[0].message)
    return Outcome(True, "ONNX Runtime takes it")
