"""The jobs that make a model: `compile`, and `optimize` with a pipeline of one's own."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.coverage import covered
from onnx24.analysis.quantized_otherwise import quantized_otherwise
from onnx24.backends.base import Backend, BuildResult, Profile, resolve_profiles
from onnx24.backends.base import get as get_backend
from onnx24.backends.onnx_file import inputs_of
from onnx24.backends.profiles import completed
from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.driver.effort import DEFAULT_MEMORY, Effort
from onnx24.driver.models import ModelLike, Source, load
from onnx24.driver.progress import ProgressLike, Reporter, reporter
from onnx24.driver.protecting import Guarded
from onnx24.driver.record import Clock, Recorder, judge
from onnx24.driver.recovering import Budget, require_recoverable, train_back
from onnx24.driver.result import Result
from onnx24.driver.samples import (
    DataLike,
    LimitsLike,
    ShapesLike,
    limits_of,
    load_samples,
    profiles_of,
    split_of,
)
from onnx24.driver.scoring import LabelsLike, MetricLike, Scoring
from onnx24.driver.usage import usage
from onnx24.errors import BackendError, InputError, InternalError, NotMetError
from onnx24.ir.model import External, Model
from onnx24.passmgr import manager
from onnx24.passmgr.base import Pass
from onnx24.passmgr.guard import Guard, guard_of
from onnx24.passmgr.instrument import Instrument, Step
from onnx24.passmgr.options import did_you_mean
from onnx24.passmgr.pipeline import Pipeline, parse
from onnx24.report.limits import Limit, LimitResult, check_limits, named_values
from onnx24.report.model import DataFacts, ModelFacts, build_report

if TYPE_CHECKING:
    from onnx24.recovery.trainer import Recovered
    from onnx24.runtime.compare import Comparison
    from onnx24.runtime.data import Calibration
    from onnx24.runtime.split import Split
    from onnx24.targets import Target

PathLike = str | os.PathLike[str]

_LEVELS = {
    Severity.NOTE: logging.DEBUG,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}

_log = logging.getLogger(__name__)


# --- optimize -----------------------------------------------------------------------------------


def optimize(
    model: ModelLike,
    pipeline: str | Pass | Iterable[Pass],
    *,
    output: PathLike | None = None,
    target: str | Target = targets.DEFAULT,
    calib: DataLike = None,
    seed: int = 0,
    shapes: ShapesLike = None,
    verify: bool = True,
    guard: str = "off",
    stop_after: int | None = None,
    instruments: Sequence[Instrument] = (),
    external: External = "auto",
    provenance: str = "auto",
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    executor: str = "local",
    work_dir: PathLike | None = None,
    reproducer_dir: PathLike | None = None,
    progress: ProgressLike = None,
    command: str = "optimize",
) -> Result:
    """Run a pipeline of passes over a copy of a model.

    pipeline: text such as "canonicalize,prune24{include=encoder.*},check24" or "@sparse", or
    passes. output: a file to write the model into; without it nothing is written, and
    `Result.save` does. calib: calibration data (docs/api.md says in which forms). stop_after:
    transform no more than so many sites. guard: "on" runs the model before and after passes that
    say that they keep its function, and takes back what does not; "each" looks at every pass by
    itself. instruments: what watches the passes. reproducer_dir:
    where a folder that replays a fault of onnx24 goes; without it the exception can write one.
    progress: a function that is called with each `Progress`.

    Raises: InputError, also where a pass needs calibration data and there are none; NotMetError,
    BackendError as passes raise them; InternalError.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> result = onnx24.optimize(mlp([64, 32]), "canonicalize,prune24,check24")
    >>> [(row["name"], row["sparse"]) for row in result.weights if row["eligible"]]
    [('fc0.weight', True)]
    """
    clock, shows = Clock(), reporter(progress)
    steps = _pipeline(pipeline)
    row = targets.load(target)
    profiles = profiles_of(shapes)
    effort = Effort(memory=memory, workers=workers, executor=executor, work_dir=work_dir)
    resources, folder = effort.resources(), effort.folder()

    source = load(model)
    made = source.load()
    facts = ModelFacts.of(made, source.name)
    analyses = AnalysisCache()
    verdicts = judge(made, row, analyses)
    split = split_of(load_samples(calib, made, profiles, seed))
    calibration = split.fitted if split else None
    recorder = Recorder(made, facts, provenance)
    if output is not None:
        made.stage(output, external=external)
    result = manager.run(
        made,
        steps,
        target=row,
        calibration=calibration,
        instruments=instruments,
        verify=verify,
        guard=_guard(guard),
        site_limit=stop_after,
        progress=shows.progress,
        work_dir=folder,
        resources=resources,
        analyses=analyses,
        reproducer_dir=None if reproducer_dir is None else Path(reproducer_dir),
    )
    _log_run(result)
    found = covered(made, row, analyses)
    recorder.record(result, row, split, verdicts, found)
    if output is not None:
        made.save(output, external=external)
    report = build_report(
        command=command,
        source=facts,
        result=result,
        target=row,
        output=_written(output),
        written=output is not None,
        verdicts=verdicts,
        found=found,
        diagnostics=calibration.doubts if calibration else [],
        data=[DataFacts.of(calibration, "calibration")] if calibration else [],
        run=clock.run(),
    )
    return Result(report=report, compiled=made, name=_name(output, source))


def _pipeline(given: str | Pass | Iterable[Pass]) -> Pipeline:
    if isinstance(given, str):
        return parse(given)
    return Pipeline((given,) if isinstance(given, Pass) else tuple(given))


def _guard(mode: str) -> Guard | None:
    """Raises: InputError O24-043."""
    try:
        return guard_of(mode)
    except ValueError as err:
        raise usage(f"guard: {err}", "see --help") from err


def _log_run(result: manager.RunResult) -> None:
    for step in result.passes:
        _log.info("%s: %.2f s", step.text, step.seconds)
    for item in result.diagnostics:
        _log.log(_LEVELS[item.severity], "%s", item.render())


# --- compile ------------------------------------------------------------------------------------


def compile(
    model: ModelLike,
    *,
    output: PathLike | None = None,
    target: str | Target = targets.DEFAULT,
    preset: str | None = None,
    pipeline: str | None = None,
    calib: DataLike = None,
    data: DataLike = None,
    seed: int = 0,
    limit: LimitsLike = None,
    max_drop: LimitsLike = None,
    labels: LabelsLike = None,
    metric: MetricLike = None,
    recover: float | str | None = None,
    backend: str | None = None,
    engine: PathLike | None = None,
    shapes: ShapesLike = None,
    timeout: float | None = None,
    external: External = "auto",
    provenance: str = "auto",
    verify: bool = True,
    guard: str = "on",
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    executor: str = "local",
    work_dir: PathLike | None = None,
    reproducer_dir: PathLike | None = None,
    progress: ProgressLike = None,
) -> Result:
    """Compile a model to 2:4 and INT8, compare it with the original, and build an engine if asked.

    The original must run in ONNX Runtime. The result is compared with it on `data`, or on the
    eighth of the calibration samples that calibration then does not use (all of them below 16
    samples).

    preset: a pipeline by name; by default the one of `targets.default_preset`.
    pipeline: text, instead of a preset. calib, data: samples (docs/api.md says in which forms).
    limit: what layers stay dense or in float for, `{"sqnr": 20}`, or "none". The default, where a
    preset is calibrated on real samples, is 1 % of the labels for classifiers, 20 dB for other
    models. Half of it each goes to prune24 and to qdq, which keep it on calibration samples.
    max_drop: limits of the comparison, which must be met. labels: the right class of each sample of
    `data`, else of `calib`, for the limit accuracy, how much of it may be lost. metric: a function
    of (outputs by name, labels) whose value, the larger the better, may fall by the limit metric.
    recover: what training the result back may take, without labels and with the original as
    teacher: steps (200, "200steps"), or a time ("5min"), whose number of steps depends on the
    machine; needs torch and 16 real samples.
    output: a file to write the model into; without it nothing is written, and `Result.save` does.
    engine: a file to build an engine into, by `backend` ("auto" where only `engine` is given);
    timeout: of the build [seconds].
    guard: "on", "off" or "each", as for `optimize`.
    memory, workers, executor, work_dir: what the run may use; nothing of it changes the result.
    progress: a function that is called with each `Progress`.

    Raises: InputError; NotMetError where a limit is not met or finite values are lost, BackendError
    where no engine could be built, both with the finished `.result`; InternalError for a fault of
    onnx24.

    >>> import numpy as np, onnx24
    >>> from onnx24.testing.generate import mlp
    >>> batches = {"x": np.random.default_rng(0).standard_normal((64, 64), np.float32)}
    >>> result = onnx24.compile(mlp([64, 32]), calib=batches, limit="none")
    >>> result.report.coverage.share, [node.op_type for node in result.model.graph.node][:2]
    (1.0, ['Cast', 'QuantizeLinear'])
    """
    clock = Clock()
    aim = targets.load(target)
    plan = _Plan.of(
        limits=limits_of(max_drop, scored=True),
        scoring=Scoring.of(labels, metric),
        has_data=data is not None or calib is not None,
        backend=backend,
        engine=engine,
        target=aim,
        pipeline=parse(_pipeline_text(pipeline, preset, aim, has_calib=calib is not None)),
        recover=None if recover is None else Budget.of(recover),
        profiles=profiles_of(shapes),
        shows=reporter(progress),
    )
    effort = Effort(memory=memory, workers=workers, executor=executor, work_dir=work_dir)
    resources, folder = effort.resources(), effort.folder()

    from onnx24.runtime.compare import require_values
    from onnx24.runtime.session import require_qdq

    source = load(model)
    original = source.load()
    facts = ModelFacts.of(original, source.name)
    calibration = None
    chosen: list[Diagnostic] = []
    if plan.backend is not None:  # it would refuse them only after all the work
        inputs = inputs_of(original.proto)
        calibration = load_samples(calib, original, plan.profiles, seed)
        profiles, chosen = completed(inputs, plan.profiles, calibration, original)
        plan = replace(plan, profiles=profiles)
        resolve_profiles(inputs, plan.profiles)
    with plan.shows.waiting("loading into ONNX Runtime"):
        _must_run(original, named_values(plan.limits))
        if any(step.name == "qdq" for step in plan.pipeline):
            raised = [getattr(step, "to", 0) for step in plan.pipeline]
            require_qdq(max([original.opset, *(to for to in raised if isinstance(to, int))]))
    verdicts = judge(original, plan.target)
    calibration = calibration or load_samples(calib, original, plan.profiles, seed)
    given = load_samples(data, original, plan.profiles, seed)
    split = split_of(calibration)
    if plan.recover is not None:
        require_recoverable(original, split)
    held_out, used = _judged_by(given, calibration, split)
    named = pipeline is not None
    guarded = Guarded.of(limit, original, plan.pipeline, split, named=named)
    if guarded.limits:
        require_values(original, named_values(guarded.limits))
    steps = guarded.applied(plan.pipeline)

    compiled, analyses = source.load(), AnalysisCache()
    recorder, pairs = Recorder(compiled, facts, provenance), _Pairs(plan)
    if output is not None:
        compiled.stage(output, external=external)
    result = manager.run(
        compiled,
        steps,
        instruments=[pairs],
        target=plan.target,
        calibration=split.fitted if split else None,
        verify=verify,
        guard=_guard(guard),
        progress=plan.shows.progress,
        work_dir=folder,
        resources=resources,
        analyses=analyses,
        reproducer_dir=None if reproducer_dir is None else Path(reproducer_dir),
    )
    _log_run(result)
    recovered = None
    if plan.recover is not None and split is not None:
        recovered = train_back(
            compiled,
            original,
            plan.recover,
            fitted=split.fitted,
            records=result.records,
            target=plan.target,
            folder=folder,
            shows=plan.shows,
        )
    found = covered(compiled, plan.target, analyses)
    recorder.record(result, plan.target, split, verdicts, found)
    comparison, limits, notes = _compare(original, compiled, held_out, plan, guarded)
    unmet = [limit.unmet() for limit in limits if not limit.met]
    unmet += [item for item in notes if item.severity is Severity.ERROR]
    notes = [item for item in notes if item.severity is not Severity.ERROR]
    built: BuildResult | None = None
    document, failure = None, None
    if not unmet:
        if output is not None:
            compiled.save(output, external=external)
        if plan.backend is not None:
            built, document, failure = _build(plan, compiled, output, timeout)
    report = build_report(
        command="compile",
        status="limits not met" if unmet else "no engine" if failure else "done",
        source=facts,
        result=result,
        target=plan.target,
        output=None if unmet else _written(output),
        written=output is not None,
        verdicts=verdicts,
        found=found,
        data=used,
        comparison=comparison,
        limits=limits,
        protection=guarded.document(result),
        recovery=None if recovered is None else recovered.to_json(),
        backend=document,
        diagnostics=[
            *pairs.found,
            *chosen,
            *_doubts(calibration, given),
            *_trained(plan, recovered),
            *notes,
            *unmet,
            *(failure.diagnostics if failure else []),
        ],
        run=clock.run(),
    )
    done = Result(report=report, compiled=compiled, engine=built, name=_name(output, source))
    error = NotMetError(unmet) if unmet else failure
    if error is not None:
        error.result = done
        raise error
    return done


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What can be decided, and refused, before the model is read."""

    shows: Reporter
    target: Target
    pipeline: Pipeline
    profiles: dict[str, Profile]
    limits: list[Limit]
    scoring: Scoring
    recover: Budget | None
    backend: Backend | None
    engine: Path | None

    @classmethod
    def of(
        cls,
        *,
        limits: list[Limit],
        has_data: bool,
        backend: str | None,
        engine: PathLike | None,
        target: Target,
        **rest: Any,
    ) -> _Plan:
        if limits and not has_data:
            raise usage(
                "--max-drop needs samples to measure on",
                "pass --data DATA or --calib DATA",
            )
        rest["scoring"].require(limits)
        name = backend or ("auto" if engine else "none")
        if name == "none" and engine is not None:
            raise usage("--engine with --backend none", "choose a backend, or leave one out")
        if name != "none" and engine is None:
            raise usage(f"--backend {name} without --engine", "name a file for the engine")
        return cls(
            target=target,
            limits=limits,
            backend=None if name == "none" else get_backend(name, target),
            engine=None if engine is None else Path(engine),
            **rest,
        )


def _pipeline_text(
    pipeline: str | None, preset: str | None, target: Target, *, has_calib: bool
) -> str:
    if pipeline is not None and preset is not None:
        raise usage("--pipeline and --preset are both given", "choose one")
    if pipeline is not None:
        return pipeline
    preset = preset or targets.default_preset(target, calibrated=has_calib)
    known = targets.presets()
    if preset not in known:
        near = did_you_mean(preset, known, begins=True)
        raise InputError.of(
            "O24-024",
            f"no preset is named {preset!r}",
            hint=f"{near}the presets are {', '.join(sorted(known))}",
        )
    return f"@{preset}"


class _Pairs(Instrument):
    """Says what TensorRT refuses of the Q/DQ that a model came with, after the passes that tidy a
    model up, and before hours of work. `found`: O24-245."""

    _TIDY = ("canonicalize", "upgrade-opset", "lint")

    def __init__(self, plan: _Plan) -> None:
        self.found: list[Diagnostic] = []
        self._builds = plan.backend is not None
        self._asks = any(step.name == "qdq" for step in plan.pipeline)

    def before_pass(self, step: Step) -> None:
        """Raises: InputError O24-245 where an engine is to be built, which it would not be."""
        if not self._asks or step.name in self._TIDY:
            return
        self._asks = False
        context = step.context
        found = quantized_otherwise(step.model, context.analyses, fp8=context.target.fp8)
        if found is not None and self._builds:
            raise InputError([replace(found, severity=Severity.ERROR)])
        if found is not None:
            _log.warning("%s", found.render())
            self.found = [found]


def _must_run(model: Model, named: Sequence[str] = ()) -> None:
    """Raises: InputError O24-016 where ONNX Runtime refuses the model, O24-039 where it has no
    value of a name in `named`."""
    from onnx24.runtime.compare import require_values
    from onnx24.runtime.session import Session

    Session(model, None)
    require_values(model, named)


def _judged_by(
    given: Calibration | None, calibration: Calibration | None, split: Split | None
) -> tuple[Calibration | None, list[DataFacts]]:
    """Samples for the comparison, and what to say of all. given: `data`; where that is the
    calibration data again, only what was held out of it judges."""
    if calibration is None or split is None:
        return given, [DataFacts.of(given, "comparison")] if given else []
    fitted = DataFacts.of(split.fitted, "calibration")
    if given is not None and given.digest() != calibration.digest():
        return given, [fitted, DataFacts.of(given, "comparison")]
    if not split.is_divided:
        return split.held_out, [replace(fitted, use="calibration, comparison")]
    return split.held_out, [fitted, DataFacts.of(split.held_out, "comparison")]


_LACKING = "Could not find an implementation"
"""ONNX Runtime's words where a model's opset has an operator that it does not know yet."""


def _compare(
    original: Model, compiled: Model, data: Calibration | None, plan: _Plan, guarded: Guarded
) -> tuple[Comparison | None, list[LimitResult], list[Diagnostic]]:
    try:
        _must_run(compiled)
    except InputError as err:  # the original did run
        message = err.diagnostics[0].message
        if _LACKING in message:
            raise InputError.of(
                "O24-016",
                f"the compiled model can't be verified: {message}",
                hint=f"export with an older opset than {compiled.opset}",
            ) from err
        raise InternalError.of(
            "O24-900",
            f"the compiled model is refused: {message}",
            hint="`onnx24 opt --guard each` with this pipeline names the pass; please report it",
        ) from err
    if data is None:
        return None, [], []
    from onnx24.runtime.compare import compare

    with plan.shows.waiting("comparing with the original"):
        named = named_values([*plan.limits, *guarded.limits])
        comparison = compare(original, compiled, data, also=named)
    results = check_limits(plan.limits, comparison.outputs, comparison.names)
    results += plan.scoring.check(plan.limits, original, compiled, data)
    missed = guarded.missed(comparison, len(data))
    return comparison, results, [*comparison.findings(), *comparison.breaches(), *missed]


def _doubts(*data: Calibration | None) -> list[Diagnostic]:
    """What is doubtful of samples, each said once."""
    found: list[Diagnostic] = []
    for each in data:
        found += [item for item in (each.doubts if each else []) if item not in found]
    return found


def _trained(plan: _Plan, recovered: Recovered | None) -> list[Diagnostic]:
    if plan.recover is None:
        return []
    if recovered is None:
        message = "no layer was pruned or quantized: there is nothing to train back"
        return [diagnostic("O24-151", message, severity=Severity.NOTE)]
    return recovered.diagnostics


def _build(
    plan: _Plan, compiled: Model, output: PathLike | None, timeout: float | None
) -> tuple[BuildResult | None, dict[str, Any], BackendError | None]:
    """The engine, its part of the report, and why there is none. The model stays in any case."""
    assert plan.backend is not None and plan.engine is not None
    with ExitStack() as stack:
        if output is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx24-"))
            output = Path(folder) / "model.onnx"
            compiled.save(output)
        stack.enter_context(plan.shows.waiting(f"building with {plan.backend.name}"))
        try:
            built = plan.backend.build(
                Path(output),
                plan.target,
                engine=plan.engine,
                shapes=plan.profiles,
                timeout_s=timeout,
            )
        except BackendError as err:
            return None, {"backend": plan.backend.name, "error": str(err)}, err
    document = built.to_json()
    document["engine"] = str(plan.engine)
    return built, document, None


def _name(output: PathLike | None, source: Source) -> str:
    """What reports call the model that was made."""
    return source.name if output is None else os.fspath(output)


def _written(output: PathLike | None) -> ModelFacts | None:
    """The facts of a file that was just written."""
    if output is None:
        return None
    return ModelFacts.of(Model.load(output, check=False), os.fspath(output))
