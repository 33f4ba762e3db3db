"""`onnx24 bisect`: the layer or weight whose transformation breaks a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx24 import targets
from onnx24.backends.base import parse_shapes
from onnx24.cli.console import Console
from onnx24.cli.files import source_of
from onnx24.driver.samples import load_samples, split_of
from onnx24.driver.usage import usage
from onnx24.ir.model import Model
from onnx24.passmgr.bisect import Oracle, Outcome, Probe, bisect, command
from onnx24.passmgr.pipeline import parse
from onnx24.report.limits import check_limits, named_values, parse_limits

DEFAULT_LIMIT = "rel-l2=0.1"


@dataclass(frozen=True, kw_only=True)
class BisectRequest:
    """`bisect`, as the user wrote it."""

    model: str
    pipeline: str
    target: str
    calib: str | None
    data: str | None
    seed: int
    shapes: tuple[str, ...]
    max_drop: tuple[str, ...]
    command: str | None
    timeout_s: float | None
    verify: bool
    as_json: bool


def bisect_model(request: BisectRequest) -> int:
    """Returns: 0, or 1 where the model is bad before any site is transformed."""
    if request.command is not None and (request.data is not None or request.max_drop):
        raise usage("--command and --data are two judges", "choose one")
    if request.max_drop and request.data is None:
        raise usage("--max-drop needs samples to measure on", "pass --data DATA")
    limits = parse_limits(request.max_drop or [DEFAULT_LIMIT])
    target = targets.load(request.target)
    pipeline = parse(request.pipeline)
    profiles = parse_shapes(request.shapes)
    source = source_of(request.model)
    model, reference = source.load(), source.load()
    split = split_of(load_samples(request.calib, model, profiles, request.seed))
    calibration = split.fitted if split else None
    console = Console(as_json=request.as_json)
    oracle: Oracle
    if request.command is not None:
        oracle = command(request.command, timeout=request.timeout_s)
    elif request.data is not None:
        data = load_samples(request.data, reference, profiles, request.seed)
        oracle = _within(reference, data, limits)
    else:
        oracle = _runs
    result = bisect(
        model,
        pipeline,
        oracle,
        target=target,
        calibration=calibration,
        verify=request.verify,
        on_probe=lambda probe: console.note(_probe_text(probe)),
    )
    console.report(str(result), result)
    return 1 if result.verdict == "bad-before" else 0


def _within(reference: Model, data: Any, limits: Any) -> Oracle:
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


def _probe_text(probe: Probe) -> str:
    verdict = "good" if probe.outcome.good else "bad"
    sites = f"{probe.sites} site{'' if probe.sites == 1 else 's'}"
    return f"  {sites}: {verdict}" + (f" ({probe.outcome.detail})" if probe.outcome.detail else "")
