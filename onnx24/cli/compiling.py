"""The commands that make a model: `compile`, `opt`, and each pass by itself."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.backends.base import Backend, BuildResult, Profile, parse_shapes, resolve_profiles
from onnx24.backends.base import get as get_backend
from onnx24.backends.onnx_file import inputs_of
from onnx24.backends.profiles import completed
from onnx24.cli.console import Console
from onnx24.cli.data import load_samples
from onnx24.cli.effort import EffortFlags
from onnx24.cli.failure import usage
from onnx24.cli.files import (
    STANDARD_STREAM,
    Source,
    check_distinct,
    check_external,
    check_model_output,
    check_output,
    check_provenance,
    check_reports,
    output_path,
    write_reports,
)
from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import BackendError, InputError, InternalError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr import manager, provenance
from onnx24.passmgr.base import Pass
from onnx24.passmgr.instrument import Dump, Instrument, Numeric, PrintAfter, Timing
from onnx24.passmgr.options import did_you_mean
from onnx24.passmgr.pipeline import Pipeline, parse
from onnx24.report.limits import Limit, LimitResult, check_limits, parse_limits
from onnx24.report.model import (
    DataFacts,
    ModelFacts,
    Report,
    build_report,
    findings_digest,
)
from onnx24.report.text import render_text

if TYPE_CHECKING:
    from onnx24.analysis.coverage import Covered
    from onnx24.runtime.compare import Comparison
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

HELD_OUT = 8
"""One of so many calibration samples is kept for the comparison …"""
HELD_OUT_FROM = 16
"""… where there are at least so many."""

_PACKAGES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "networkx", "ml_dtypes")


@dataclass(frozen=True, kw_only=True)
class OptRequest:
    """`opt`, or one pass. `passes` stands for `pipeline` where a command made them."""

    command: str
    model: str
    output: str | None
    target: str
    pipeline: str = ""
    passes: tuple[Pass, ...] = ()
    calib: str | None = None
    seed: int = 0
    shapes: tuple[str, ...] = ()
    print_after: tuple[str, ...] = ()
    dump: str | None = None
    dump_onnx: bool = False
    time: bool = False
    numeric: bool = False
    verify: bool = True
    stop_after: int | None = None
    reports: tuple[str, ...] = ()
    external: str = "auto"
    provenance: str = "auto"
    effort: EffortFlags = field(default_factory=EffortFlags)
    as_json: bool = False


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """`compile`, as the user wrote it."""

    model: str
    output: str | None
    target: str
    preset: str | None = None
    pipeline: str | None = None
    calib: str | None = None
    data: str | None = None
    seed: int = 0
    max_drop: tuple[str, ...] = ()
    backend: str | None = None
    engine: str | None = None
    shapes: tuple[str, ...] = ()
    timeout_s: float | None = None
    reports: tuple[str, ...] = ()
    external: str = "auto"
    provenance: str = "auto"
    verify: bool = True
    effort: EffortFlags = field(default_factory=EffortFlags)
    as_json: bool = False


# --- opt and the passes -----------------------------------------------------------------------


def run_pipeline(request: OptRequest) -> int:
    """Run the passes, write the model, say what happened. Passes that change nothing write nothing
    unless -o says where. Returns: 0."""
    clock = _Clock()
    source = Source(request.model)
    out = output_path(request.output, source)
    console = Console(as_json=request.as_json, stdout_is_taken=True)
    pipeline = Pipeline(request.passes) if request.passes else parse(request.pipeline)
    writes = request.output is not None or any(step.effects for step in pipeline)
    if writes:
        check_model_output(out, source, as_json=request.as_json)
    check_external(request.external, out)
    check_provenance(request.provenance)
    check_reports(request.reports, source)
    named = [("-o", out if writes else None), *(("--report", path) for path in request.reports)]
    check_distinct(named)
    target = targets.load(request.target)
    profiles = parse_shapes(request.shapes)

    model = source.load()
    facts = ModelFacts.of(model, request.model)
    verdicts = judge(model, target)
    calibration = load_samples(request.calib, model, profiles, request.seed)
    timing = Timing()
    numeric = Numeric(calibration)
    recorder = _Recorder(model, facts, request.provenance) if writes else None
    if writes:
        model.stage(out, external=_external(request.external))
    hooks = _instruments(request, pipeline, console)
    hooks += [timing] if request.time else []
    hooks += [numeric] if request.numeric else []
    result = manager.run(
        model,
        pipeline,
        target=target,
        calibration=calibration,
        instruments=hooks,
        verify=request.verify,
        site_limit=request.stop_after,
        progress=console.progress,
        work_dir=request.effort.folder(),
        resources=request.effort.resources(),
    )
    found = covered(model, target)
    if recorder:
        recorder.record(result, target, calibration, verdicts, found)
        model.save(out, external=_external(request.external))
    report = build_report(
        command=request.command,
        source=facts,
        result=result,
        target=target,
        output=_written(out) if writes else None,
        written=writes,
        verdicts=verdicts,
        found=found,
        data=[DataFacts.of(calibration, "calibration")] if calibration else [],
        run=clock.run(),
    )
    write_reports(report, request.reports)
    if request.time:
        console.note(timing.render())
    for drift in numeric.drifts if request.numeric else []:
        moved = f"output {drift.output!r} moved by {drift.rel_l2:.3g} (rel L2)"
        console.note(f"{drift.text}: {moved if drift.output else 'no output moved'}")
    _tell(console, report, as_json=request.as_json)
    return 0


def _instruments(request: OptRequest, pipeline: Pipeline, console: Console) -> list[Instrument]:
    hooks: list[Instrument] = []
    if request.dump_onnx and request.dump is None:
        raise usage("--dump-onnx without --dump", "say where: --dump DIR")
    if request.dump is not None:
        hooks.append(Dump(Path(request.dump), onnx=request.dump_onnx))
    if request.print_after:
        names = {instance.name for instance in pipeline}
        for name in request.print_after:
            if name != "all" and name not in names:
                near = did_you_mean(name, names, begins=True)
                raise usage(
                    f"--print-after {name}: the pipeline has no such pass",
                    f"{near}it has {', '.join(sorted(names)) or 'none'}",
                )
        wanted = () if "all" in request.print_after else request.print_after
        hooks.append(PrintAfter(console.note, wanted))
    return hooks


# --- compile ----------------------------------------------------------------------------------


def compile_model(request: CompileRequest) -> int:
    """The main job. Returns: the exit code, 0, 1 or 3.

    Raises: InputError and InternalError; OUT is not written then.
    """
    clock = _Clock()
    plan = _Plan.of(request)
    console = plan.console
    original = plan.source.load()
    facts = ModelFacts.of(original, request.model)
    if plan.backend is not None:  # it would refuse them only after all the work
        inputs = inputs_of(original.proto)
        samples = load_samples(request.calib, original, plan.profiles, request.seed)
        plan = replace(plan, profiles=completed(inputs, plan.profiles, samples, original))
        resolve_profiles(inputs, plan.profiles)
    with console.waiting("loading into ONNX Runtime"):
        _must_run(original)
    verdicts = judge(original, plan.target)
    calibration, held_out, data = _data(request, original, plan.profiles)

    compiled = plan.source.load()
    recorder = _Recorder(compiled, facts, request.provenance)
    compiled.stage(plan.out, external=_external(request.external))
    result = manager.run(
        compiled,
        plan.pipeline,
        target=plan.target,
        calibration=calibration,
        verify=request.verify,
        progress=console.progress,
        work_dir=request.effort.folder(),
        resources=request.effort.resources(),
    )
    found = covered(compiled, plan.target)
    recorder.record(result, plan.target, calibration, verdicts, found)
    comparison, limits, notes = _compare(original, compiled, held_out, plan, console)
    unmet = [limit.unmet() for limit in limits if not limit.met]
    output, backend, failure = None, None, None
    if not unmet:
        compiled.save(plan.out, external=_external(request.external))
        output = _written(plan.out)
        if plan.backend is not None:
            backend, failure = _build(plan, compiled, request, console)
    report = build_report(
        command="compile",
        status="limits not met" if unmet else "no engine" if failure else "done",
        source=facts,
        result=result,
        target=plan.target,
        output=output,
        verdicts=verdicts,
        found=found,
        data=data,
        comparison=comparison,
        limits=limits,
        backend=backend,
        diagnostics=[*notes, *unmet, *(failure.diagnostics if failure else [])],
        run=clock.run(),
    )
    write_reports(report, request.reports)
    _tell(console, report, as_json=request.as_json)
    if unmet:
        console.note("nothing was written but the reports asked for")
        return 1
    return failure.exit_code if failure else 0


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What can be decided, and refused, before the model is read."""

    source: Source
    out: str
    console: Console
    target: Target
    pipeline: Pipeline
    profiles: dict[str, Profile]
    limits: list[Limit]
    backend: Backend | None
    engine: str | None

    @classmethod
    def of(cls, request: CompileRequest) -> _Plan:
        source = Source(request.model)
        out = output_path(request.output, source)
        limits = parse_limits(request.max_drop)
        if limits and request.data is None and request.calib is None:
            raise usage(
                "--max-drop needs samples to measure on",
                "pass --data DATA or --calib DATA",
            )
        name = request.backend or ("auto" if request.engine else "none")
        engine = request.engine
        if name == "none" and engine is not None:
            raise usage("--engine with --backend none", "choose a backend, or leave one out")
        if name != "none" and engine is None:
            stem = source.stem if out == STANDARD_STREAM else str(Path(out).with_suffix(""))
            engine = f"{stem}.engine"
        check_model_output(out, source, as_json=request.as_json)
        check_external(request.external, out)
        check_provenance(request.provenance)
        check_reports(request.reports, source)
        if engine is not None:
            check_output(engine, source)
        reports = (("--report", path) for path in request.reports)
        check_distinct([("-o", out), ("--engine", engine), *reports])
        target = targets.load(request.target)
        backend = None if name == "none" else get_backend(name, target)
        return cls(
            source=source,
            out=out,
            console=Console(as_json=request.as_json, stdout_is_taken=True),
            target=target,
            pipeline=parse(_pipeline_text(request)),
            profiles=parse_shapes(request.shapes),
            limits=limits,
            backend=backend,
            engine=engine,
        )


def _pipeline_text(request: CompileRequest) -> str:
    if request.pipeline is not None and request.preset is not None:
        raise usage("--pipeline and --preset are both given", "choose one")
    if request.pipeline is not None:
        return request.pipeline
    preset = request.preset or ("sparse-int8" if request.calib else "sparse-fp16")
    known = targets.presets()
    if preset not in known:
        near = did_you_mean(preset, known, begins=True)
        raise InputError.of(
            "O24-024",
            f"no preset is named {preset!r}",
            hint=f"{near}the presets are {', '.join(sorted(known))}",
        )
    return f"@{preset}"


def _must_run(model: Model) -> None:
    """Raises: InputError O24-016 where ONNX Runtime refuses the model."""
    from onnx24.runtime.session import Session

    Session(model, None)


def covered(model: Model, target: Target) -> Covered:
    """How much of the result is 2:4."""
    from onnx24.analysis.coverage import covered

    return covered(model, target)


def judge(model: Model, target: Target) -> Mapping[ValueKey, Any]:
    """Which weights could be 2:4 on the target, and why the others could not."""
    from onnx24.analysis.eligibility import Eligibility

    return AnalysisCache().get(model, Eligibility).judge(model, target)


def _data(
    request: CompileRequest, model: Model, profiles: Mapping[str, Profile]
) -> tuple[Calibration | None, Calibration | None, list[DataFacts]]:
    """Samples for calibration, samples for the comparison, and what to say of both."""
    calibration = load_samples(request.calib, model, profiles, request.seed)
    held_out = load_samples(request.data, model, profiles, request.seed)
    if held_out is not None:
        facts = [DataFacts.of(calibration, "calibration")] if calibration else []
        return calibration, held_out, [*facts, DataFacts.of(held_out, "comparison")]
    if calibration is None:
        return None, None, []
    if len(calibration) < HELD_OUT_FROM or calibration.runs < 2:  # one run can't be divided
        return calibration, calibration, [DataFacts.of(calibration, "calibration, comparison")]
    calibration, held_out = calibration.split(1 - 1 / HELD_OUT)
    return (
        calibration,
        held_out,
        [DataFacts.of(calibration, "calibration"), DataFacts.of(held_out, "comparison")],
    )


_LACKING = "Could not find an implementation"
"""ONNX Runtime's words where a model's opset has an operator that it does not know yet."""


def _compare(
    original: Model, compiled: Model, data: Calibration | None, plan: _Plan, console: Console
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
            hint="`onnx24 opt --numeric` with the same pipeline names the pass; please report it",
        ) from err
    if data is None:
        return None, [], []
    from onnx24.runtime.compare import compare

    with console.waiting("comparing with the original"):
        comparison = compare(original, compiled, data)
    notes = []
    if data.is_random:
        notes.append(
            diagnostic(
                "O24-034",
                f"{data.describe()}: the comparison says nothing about accuracy",
                severity=Severity.WARNING,
            )
        )
    return comparison, check_limits(plan.limits, comparison.outputs), notes


def _build(
    plan: _Plan, compiled: Model, request: CompileRequest, console: Console
) -> tuple[dict[str, Any], BackendError | None]:
    """The engine's part of the report, and why there is none. OUT stays in any case."""
    assert plan.backend is not None and plan.engine is not None
    with ExitStack() as stack:
        path = Path(plan.out)
        if plan.out == STANDARD_STREAM:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx24-"))
            path = Path(folder) / "model.onnx"
            compiled.save(path)
        stack.enter_context(console.waiting(f"building with {plan.backend.name}"))
        try:
            built: BuildResult = plan.backend.build(
                path,
                plan.target,
                engine=Path(plan.engine),
                shapes=plan.profiles,
                timeout_s=request.timeout_s,
            )
        except BackendError as err:
            return {"backend": plan.backend.name, "error": str(err)}, err
    document = built.to_json()
    document["engine"] = plan.engine
    return document, None


# --- shared -----------------------------------------------------------------------------------


class _Recorder:
    """Says in a model what made it, in the strength that was asked for. Made of the model as it was
    loaded: it remembers what that refers to."""

    def __init__(self, model: Model, facts: ModelFacts, mode: str) -> None:
        self._model, self._source = model, facts
        self._strength = provenance.strength(mode, model)
        self._ranges = provenance.DataRanges.of(model)
        model.weights.sums_drafts = self._strength == "fast"

    def record(
        self,
        result: manager.RunResult,
        target: Target,
        calibration: Calibration | None,
        verdicts: Mapping[ValueKey, Any],
        found: Covered,
    ) -> None:
        """Unless nothing was done: then the model stays as it was."""
        model, source = self._model, self._source
        if not result.changed:
            return
        if self._strength == "off":
            provenance.forget(model)
            return
        fast = self._strength == "fast"
        findings = build_report(
            command="",
            status="",
            source=source,
            result=result,
            target=target,
            output=None,
            verdicts=verdicts,
            found=found,
        ).findings()
        provenance.record(
            model,
            target=target.name,
            source_sha256=source.sha256,
            source_data=self._ranges.checksum(model.weights) if fast else self._sha256_of_data(),
            fast=fast,
            calibration_sha256=calibration.digest() if calibration else "",
            report_sha256=findings_digest(findings),
        )

    def _sha256_of_data(self) -> str:
        """The input's, while the output's values are digested: both take longer than pruning."""
        with ThreadPoolExecutor(1) as pool:
            source = pool.submit(lambda: self._source.data_files)
            provenance.digest_values(self._model)
        return provenance.data_digest(source.result())


def _written(out: str) -> ModelFacts | None:
    """The facts of a file that was just written; None for standard output."""
    if out == STANDARD_STREAM:
        return None
    return ModelFacts.of(Model.load(out, check=False), out)


def _external(value: str) -> Literal["auto", "embed", "external"]:
    return cast(Literal["auto", "embed", "external"], value)


def _tell(console: Console, report: Report, *, as_json: bool) -> None:
    """The text on stderr, or the document on stdout and what is wrong on stderr."""
    if as_json:
        console.document(report)
        console.diagnostics(report.at_least(Severity.WARNING))
    else:
        console.note(render_text(report))


class _Clock:
    """The section `run` of a report: everything that another run of the command would change."""

    def __init__(self) -> None:
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._begin = time.perf_counter()

    def run(self) -> dict[str, Any]:
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "not installed"
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._begin, 3),
            "arguments": list(sys.argv[1:]),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": versions,
        }
