"""Runs a pipeline and believes no pass.

Each pass runs in a transaction: fingerprint, snapshot, run, fingerprint again. What changed is
computed from the two fingerprints, compared with what the pass declares, and verified by the
instruments. A pass that fails leaves the model as it found it; where the failure is our own
fault, a reproducer folder as well.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from onnx24.diagnostics import Diagnostic
from onnx24.effects import Effects
from onnx24.errors import BackendError, InputError, InternalError, NotMetError
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.model import Model
from onnx24.layerwise.resources import Resources
from onnx24.passmgr.base import Context, Pass, SiteRecord
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
_ALL = Effects.WEIGHTS | Effects.STRUCTURE
_NOT_OUR_FAULT = (InputError, NotMetError, BackendError, MemoryError)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class PassRun:
    """One pass of a finished run.

    changed: from the fingerprints. seconds: of `Pass.run` alone. layer_seconds: of those layers
    that took any, by weight. peak_bytes: the process's peak
    resident size during the pass [bytes], where `Timing` measured it.
    """

    name: str
    text: str
    changed: Effects
    seconds: float
    peak_bytes: int | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    layer_seconds: dict[str, float] = field(default_factory=dict)

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
        if self.statistics:
            out["statistics"] = dict(self.statistics)
        return out


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a pipeline did. `sites`: every admitted site as "pass: site", in order."""

    diagnostics: list[Diagnostic]
    records: list[SiteRecord]
    passes: list[PassRun]
    sites: list[str]
    pipeline_text: str
    changed: Effects


def run(
    model: Model,
    pipeline: Pipeline | Iterable[Pass],
    *,
    target: Target,
    calibration: Calibration | None = None,
    instruments: Sequence[Instrument] = (),
    verify: bool = True,
    work_dir: Path | None = None,
    resources: Resources | None = None,
    site_limit: int | None = None,
    progress: Callable[..., Any] | None = None,
    reproducer_dir: Path | None = Path(),
) -> RunResult:
    """Run the passes over the model, in place.

    verify: check the invariants after every pass that changed something (`VerifyEach`).
    site_limit: transform no more than so many sites; see `Context.admit`.
    work_dir: where passes keep what a killed run can go on with. resources: memory, threads and
    where layers are solved; nothing in it changes the result.
    reproducer_dir: where a reproducer folder goes after an internal error; None for nowhere.
    Raises: InputError O24-026; InputError, NotMetError, BackendError as passes raise them;
    InternalError for everything else that goes wrong, with `.reproducer`. Afterwards the model is
    as it was before the failing pass.
    """
    if not isinstance(pipeline, Pipeline):
        pipeline = Pipeline(tuple(pipeline))
    pipeline.check_order()
    text = str(pipeline)
    context = Context(
        target=target, calibration=calibration, work_dir=work_dir, site_limit=site_limit
    )
    if resources is not None:
        context.resources = resources
    if progress is not None:
        context.progress = progress
    hooks = [*instruments, VerifyEach()] if verify else list(instruments)
    hooks.sort(key=lambda hook: hook.depth)
    for hook in hooks:
        hook.before_pipeline(model, context)

    start, origin = model.snapshot(), Fingerprint.of(model)
    state, runs = origin, []
    for index, instance in enumerate(pipeline):
        step = Step(index, instance, model, context)
        sites_before = len(context.sites)
        snapshot = model.snapshot()
        try:
            state = _run_pass(step, hooks, state)
        except BaseException as err:
            model.restore(snapshot)
            failure = Failure(
                model=model,
                rest=pipeline.rest(index),
                target=target,
                calibration=calibration,
                site_limit=None if site_limit is None else site_limit - sites_before,
                instruments=[type(hook).__name__ for hook in hooks],
            )
            explained = _explain(err, step, failure, reproducer_dir)
            if explained is err:
                raise
            raise explained from err
        finally:
            context.diagnostics.pass_name = ""
        if step.changed == Effects.NONE and model.changed != snapshot.changed:
            model.restore(snapshot)  # touched, yet the same: it must still be copied verbatim
        runs.append(_finished(step))

    changed = origin.changed(state)
    if changed == Effects.NONE:
        if model.changed != start.changed:
            model.restore(start)
    else:
        earlier = model.metadata.get(PIPELINE_KEY)
        model.metadata[PIPELINE_KEY] = f"{earlier},{text}" if earlier else text
        if site_limit is not None and len(context.sites) >= site_limit:
            model.metadata[STOP_AFTER_KEY] = str(site_limit)
    return RunResult(
        diagnostics=list(context.diagnostics),
        records=context.records,
        passes=runs,
        sites=context.sites,
        pipeline_text=text,
        changed=changed,
    )


def _run_pass(step: Step, hooks: Sequence[Instrument], before: Fingerprint) -> Fingerprint:
    """Run one pass inside its hooks. Returns: the fingerprint afterwards."""
    model, context = step.model, step.context
    context.statistics, context.layer_seconds = {}, {}
    context.diagnostics.pass_name = step.name
    generations = model.generation_key(_ALL)
    with ExitStack() as stack:
        for hook in hooks:
            hook.before_pass(step)
            stack.push(_leave(hook, step))
        begin = time.perf_counter()
        step.instance.run(model, context)
        step.seconds = time.perf_counter() - begin
        after = _fingerprint(step)
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


def _check_effects(step: Step, generations: tuple[int, ...]) -> None:
    """Raises: InternalError O24-901."""
    assert step.changed is not None
    if undeclared := step.changed & ~step.instance.effects:
        raise InternalError.of(
            "O24-901",
            f"pass {step.name!r} changed {_names(undeclared)}, and declares to change "
            f"{_names(step.instance.effects)}",
        )
    # Source: generation_key's order is (structure, weights).
    structure, weights = (
        old != new for old, new in zip(generations, step.model.generation_key(_ALL), strict=True)
    )
    touched = (Effects.STRUCTURE if structure else Effects.NONE) | (
        Effects.WEIGHTS if weights else Effects.NONE
    )
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
    if isinstance(err, OSError) and err.errno in _DISK_FULL:
        return InputError.of(
            "O24-040", f"pass {step.name!r} could not write a temporary file: {err.strerror}"
        )
    if isinstance(err, InternalError):
        diagnostics = err.diagnostics
    else:
        cls = type(step.instance)
        diagnostics = InternalError.of(
            "O24-900",
            f"pass {step.text!r} ({cls.__module__}.{cls.__qualname__}) raised "
            f"{type(err).__name__}: {err}",
        ).diagnostics
    folder, hint = None, ""
    if reproducer_dir is not None:
        try:
            folder = write_reproducer(failure, err, reproducer_dir)
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
