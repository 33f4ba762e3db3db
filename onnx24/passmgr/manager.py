"""Runs a pipeline and believes no pass.

Each pass runs in a transaction: fingerprint, snapshot, run, fingerprint again. What changed is
computed from the two fingerprints, compared with what the pass declares, and verified by the
instruments. A pass that fails leaves the model as it found it; where the failure is our own
fault, a reproducer folder as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.products import products_in_functions
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.effects import Effects
from onnx24.errors import BackendError, InputError, InternalError, NotMetError
from onnx24.ir.files import storage_error
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.model import Generations, Model, Snapshot
from onnx24.layerwise.resources import Resources
from onnx24.passmgr.base import Context, Mark, Pass, SiteRecord
from onnx24.passmgr.guard import Guard, Stage
from onnx24.passmgr.instrument import Instrument, Step, VerifyEach
from onnx24.passmgr.pipeline import Pipeline
from onnx24.passmgr.reproducer import Failure, write_reproducer

if TYPE_CHECKING:
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

PIPELINE_KEY = "onnx24.pipeline"
"""metadata_props entry: the pipelines that made the model, joined by commas."""
STOP_AFTER_KEY = "onnx24.stop-after"
"""metadata_props entry: the site limit, where it was reached and the pipeline is thus not what
made the model."""

_KINDS = (Effects.WEIGHTS, Effects.STRUCTURE)
_NOT_OUR_FAULT = (InputError, NotMetError, BackendError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class PassRun:
    """One pass of a finished run.

    changed: from the fingerprints. seconds: of `Pass.run` alone. layer_seconds: of those layers
    that took any, by weight. resumed: layers that an earlier run had solved. peak_bytes: the
    process's peak resident size during the pass [bytes], where `Timing` measured it. rolled_back:
    the guard took it back.
    """

    name: str
    text: str
    changed: Effects
    seconds: float
    peak_bytes: int | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    layer_seconds: dict[str, float] = field(default_factory=dict)
    resumed: int = 0
    rolled_back: bool = False

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "pass": self.name,
            "text": self.text,
            "changed": [str(e.name).lower() for e in _KINDS if e in self.changed],
            "seconds": self.seconds,
        }
        if self.peak_bytes is not None:
            out["peak_bytes"] = self.peak_bytes
        if self.layer_seconds:
            out["layer_seconds"] = dict(self.layer_seconds)
        if self.resumed:
            out["resumed"] = self.resumed
        if self.rolled_back:
            out["rolled_back"] = True
        if self.statistics:
            out["statistics"] = dict(self.statistics)
        return out


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a pipeline did. `sites`: every admitted site as "pass: site", in order. `guard`: the one
    that watched, with what it checked and skipped."""

    diagnostics: list[Diagnostic]
    records: list[SiteRecord]
    passes: list[PassRun]
    sites: list[str]
    pipeline_text: str
    changed: Effects
    guard: Guard | None = None


def run(
    model: Model,
    pipeline: Pipeline | Iterable[Pass],
    *,
    target: Target,
    calibration: Calibration | None = None,
    instruments: Sequence[Instrument] = (),
    verify: bool = True,
    guard: Guard | None = None,
    work_dir: Path | None = None,
    resources: Resources | None = None,
    analyses: AnalysisCache | None = None,
    site_limit: int | None = None,
    progress: Callable[..., Any] | None = None,
    reproducer_dir: Path | None = Path(),
) -> RunResult:
    """Run the passes over the model, in place.

    verify: check the invariants after every pass that changed something (`VerifyEach`).
    guard: takes passes back that don't keep the function and say that they do.
    site_limit: transform no more than so many sites; see `Context.admit`.
    work_dir: where passes keep what a killed run can go on with. resources: memory, threads and
    where layers are solved; nothing in it changes the result. analyses: what is known already.
    reproducer_dir: where a reproducer folder goes after an internal error; None for nowhere.
    Raises: InputError O24-026; InputError, NotMetError, BackendError as passes raise them;
    InternalError for everything else that goes wrong, with `.reproducer`. Afterwards the model is
    as it was before the failing pass.
    """
    if not isinstance(pipeline, Pipeline):
        pipeline = Pipeline(tuple(pipeline))
    pipeline.check_order()
    context = Context(
        target=target, calibration=calibration, work_dir=work_dir, site_limit=site_limit
    )
    if resources is not None:
        context.resources = resources
    if analyses is not None:
        context.analyses = analyses
    if progress is not None:
        context.progress = progress
    hooks = [*instruments, VerifyEach()] if verify else list(instruments)
    hooks.sort(key=lambda hook: hook.depth)
    for hook in hooks:
        hook.before_pipeline(model, context)
    if guard is not None:
        guard.begin(context)

    start, origin = model.snapshot(), Fingerprint.of(model)
    line = _Line(model, pipeline, context, hooks, guard, reproducer_dir, origin)
    line.run()
    changed = origin.changed(line.state)
    if changed == Effects.NONE:
        if model.changed != start.changed:
            model.restore(start)
    else:
        text = ",".join(item.text for item in line.runs if not item.rolled_back)
        earlier = model.metadata.get(PIPELINE_KEY)
        model.metadata[PIPELINE_KEY] = f"{earlier},{text}" if earlier else text
        if site_limit is not None and len(context.sites) >= site_limit:
            model.metadata[STOP_AFTER_KEY] = str(site_limit)
    return RunResult(
        diagnostics=list(context.diagnostics),
        records=context.records,
        passes=line.runs,
        sites=context.sites,
        pipeline_text=str(pipeline),
        changed=changed,
        guard=guard,
    )


@dataclass(frozen=True)
class _Unchecked:
    """A pass that changed something and says that it keeps the function, until the guard has seen
    it. mark, fingerprint: of the context and the model before it. run: its position in the runs."""

    stage: Stage
    index: int
    run: int
    mark: Mark
    fingerprint: Fingerprint


@dataclass
class _Line:
    """The passes of a run, one after the other."""

    model: Model
    pipeline: Pipeline
    context: Context
    hooks: Sequence[Instrument]
    guard: Guard | None
    reproducer_dir: Path | None
    state: Fingerprint
    runs: list[PassRun] = field(default_factory=list)
    pending: list[_Unchecked] = field(default_factory=list)

    def run(self) -> None:
        passes = self.pipeline.passes
        index = 0
        while index < len(passes) or self.pending:
            following = passes[index] if index < len(passes) else None
            if self.guard and self.pending and self.guard.ends_before(following):
                broken = self._check(self.guard)
                index = broken.index + 1 if broken else index
            elif following is not None:
                self._step(index, following)
                index += 1
        if self.guard:
            self.context.diagnostics.extend(self.guard.notes())

    def _step(self, index: int, instance: Pass) -> None:
        model, context = self.model, self.context
        step = Step(index, instance, model, context)
        mark, snapshot, before = context.mark(), model.snapshot(), self.state
        try:
            self.state = _run_pass(step, self.hooks, snapshot, self.state)
        except BaseException as err:
            model.restore(snapshot)
            failure = self._failure(self.pipeline.rest(index), mark)
            explained = _explain(err, step, failure, self.reproducer_dir)
            if explained is err:
                raise
            raise explained from err
        finally:
            context.leave()
        if not instance.enters_functions:
            self._say_hidden(instance)
        if step.changed == Effects.NONE:
            if model.changed != snapshot.changed:
                model.restore(snapshot)  # touched, yet the same: it must be copied verbatim
        elif self.guard and self.guard.watches(instance):
            stage = Stage(instance, snapshot)
            self.pending.append(_Unchecked(stage, index, len(self.runs), mark, before))
        self.runs.append(_finished(step))

    def _say_hidden(self, instance: Pass) -> None:
        """Once a run: that there are products which the pass did not see."""
        hidden = products_in_functions(self.model) if self.model.proto.functions else {}
        if hidden and not any(item.code == "O24-265" for item in self.context.diagnostics):
            where = ", ".join(f"{count} in {name}" for name, count in list(hidden.items())[:5])
            where += ", …" if len(hidden) > 5 else ""
            message = (
                f"{instance.name} does not enter local functions, which hold products ({where})"
            )
            self.context.diagnostics.add(diagnostic("O24-265", message, facts={"products": hidden}))

    def _check(self, guard: Guard) -> _Unchecked | None:
        """Let the guard look at what is pending. Returns: the pass that it took back; what ran
        after that one is taken back too, and runs again. Raises: InternalError O24-902."""
        pending, self.pending = self.pending, []
        breach = guard.check([item.stage for item in pending], self.model)
        if breach is None:
            return None
        broken = pending[breach.stage]
        instance = broken.stage.instance
        self.model.restore(broken.stage.before)
        self.context.rewind(broken.mark)
        self.state = broken.fingerprint
        for hook in self.hooks:
            hook.rolled_back(self.model, self.context)
        err = InternalError([breach.diagnostic(instance, strict=guard.strict)])
        failure = self._failure(Pipeline((instance,)), broken.mark, breach.feeds)
        explained = _with_reproducer(err, err, failure, self.reproducer_dir)
        if guard.strict:
            raise explained
        self.context.diagnostics.extend(explained.diagnostics)
        taken_back = replace(
            self.runs[broken.run], changed=Effects.NONE, statistics={}, rolled_back=True
        )
        self.runs[broken.run :] = [taken_back]
        return broken

    def _failure(
        self, rest: Pipeline, mark: Mark, feeds: Mapping[str, np.ndarray] | None = None
    ) -> Failure:
        limit = self.context.site_limit
        return Failure(
            model=self.model,
            rest=rest,
            target=self.context.target,
            calibration=self.context.calibration,
            site_limit=None if limit is None else limit - mark.sites,
            instruments=[type(hook).__name__ for hook in self.hooks],
            feeds=feeds,
        )


def _run_pass(
    step: Step, hooks: Sequence[Instrument], start: Snapshot, before: Fingerprint
) -> Fingerprint:
    """Run one pass inside its hooks. start, before: the model in front of it. Returns: the
    fingerprint afterwards."""
    model, context = step.model, step.context
    context.statistics, context.layer_seconds, context.resumed = {}, {}, 0
    context.enter(step.instance)
    generations = model.generations
    with ExitStack() as stack:
        for hook in hooks:
            hook.before_pass(step)
            stack.push(_leave(hook, step))
        begin = time.perf_counter()
        step.instance.run(model, context)
        step.seconds = time.perf_counter() - begin
        # What a reference names never changes, so the same document is the same model.
        after = before if model.snapshot().proto == start.proto else _fingerprint(step)
        step.changed = before.changed(after)
        _check_effects(step, generations)
    return after


def _finished(step: Step) -> PassRun:
    assert step.changed is not None
    return PassRun(
        name=step.name,
        text=step.text,
        changed=step.changed,
        seconds=step.seconds,
        peak_bytes=step.peak_bytes,
        statistics=step.context.statistics,
        layer_seconds=step.context.layer_seconds,
        resumed=step.context.resumed,
    )


def _leave(hook: Instrument, step: Step) -> Callable[..., bool]:
    """What an ExitStack calls for one hook: `after_pass`, or `on_error` where the pass or a hook
    further inside failed."""

    def leave(
        kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if err is None:
            hook.after_pass(step)
        else:
            hook.on_error(step, err)
        return False

    return leave


def _fingerprint(step: Step) -> Fingerprint:
    try:
        return Fingerprint.of(step.model)
    except InputError as err:  # the input was readable, so this is the pass's doing
        message = f"pass {step.name!r} left a tensor that cannot be read: {err}"
        raise InternalError.of("O24-806", message) from err


def _check_effects(step: Step, before: Generations) -> None:
    """Raises: InternalError O24-901."""
    assert step.changed is not None
    if undeclared := step.changed & ~step.instance.touches():
        raise InternalError.of(
            "O24-901",
            f"pass {step.name!r} changed {_names(undeclared)}, and declares to change "
            f"{_names(step.instance.touches())}",
        )
    after, touched = step.model.generations, Effects.NONE
    if (after.graph, after.metadata) != (before.graph, before.metadata):
        touched |= Effects.STRUCTURE
    if after.weights != before.weights:
        touched |= Effects.WEIGHTS
    if untold := step.changed & ~touched:
        raise InternalError.of(
            "O24-901",
            f"pass {step.name!r} changed {_names(untold)} behind the model's back, so that "
            "analyses are stale; call Model.touch after editing Model.proto",
        )


def _names(effects: Effects) -> str:
    return " and ".join(str(e.name).lower() for e in _KINDS if e in effects) or "nothing"


def _explain(
    err: BaseException, step: Step, failure: Failure, reproducer_dir: Path | None
) -> BaseException:
    """The exception that leaves the manager."""
    if isinstance(err, _NOT_OUR_FAULT) or not isinstance(err, Exception):
        return err
    if refused := storage_error(err, f"pass {step.name!r} "):
        return refused
    if isinstance(err, InternalError):
        return _with_reproducer(err, err, failure, reproducer_dir)
    cls = type(step.instance)
    diagnostics = InternalError.of(
        "O24-900",
        f"pass {step.text!r} ({cls.__module__}.{cls.__qualname__}) raised "
        f"{type(err).__name__}: {err}",
    ).diagnostics
    return _with_reproducer(InternalError(diagnostics), err, failure, reproducer_dir)


def _with_reproducer(
    err: InternalError, cause: Exception, failure: Failure, reproducer_dir: Path | None
) -> InternalError:
    """The same error, with a reproducer and a hint that names it."""
    folder, hint, diagnostics = None, "", err.diagnostics
    if reproducer_dir is not None:
        try:
            folder = write_reproducer(failure, cause, reproducer_dir)
            hint = f"please report it, with the reproducer in {folder}"
        except (OSError, InputError) as trouble:
            hint = f"please report it; no reproducer could be written: {trouble}"
    if hint:
        *others, last = diagnostics
        diagnostics = [*others, replace(last, hint=hint)]
    internal = InternalError(diagnostics)
    internal.reproducer = None if folder is None else str(folder)
    internal.write_reproducer = partial(write_reproducer, failure, err)
    return internal
