"""`tune`: the cheapest model within a limit, layer by layer."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import targets
from onnx24.driver.compiling import PathLike, compile
from onnx24.driver.effort import DEFAULT_MEMORY, Effort, seconds_of
from onnx24.driver.models import ModelLike, load
from onnx24.driver.progress import ProgressLike, reporter
from onnx24.driver.protecting import DEFAULT_SQNR, default_limits, within_error
from onnx24.driver.recovering import Budget, require_recoverable
from onnx24.driver.result import Result, Rows
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
from onnx24.errors import InputError, NotMetError
from onnx24.ir.model import External, Model
from onnx24.ledger.model_layers import layers_of
from onnx24.passmgr import manager
from onnx24.passmgr.base import Pass
from onnx24.passmgr.pipeline import Pipeline, parse
from onnx24.report.limits import Limit, check_limits, named_values
from onnx24.report.table import table
from onnx24.runtime.compare import compare
from onnx24.targets.gpus import gpu_of
from onnx24.tuning.costs import (
    DENSE,
    FORMATS,
    INT4,
    INT4_OPSET,
    OBJECTIVES,
    UNITS,
    Unit,
    has_int4,
    units_of,
)
from onnx24.tuning.page import draw_front, render_front, require_matplotlib
from onnx24.tuning.profiles import Times, times_of, with_measured
from onnx24.tuning.search import Options, Point, choose, front
from onnx24.tuning.sensitivity import Losses, Sensitivity, in_int4, only

if TYPE_CHECKING:
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

MINUTES = 30.0
SHARE = 0.6
"""Of the time, for measuring layers; what is left is for choosing and for the final model."""
FIT = 0.75
"""Of the samples that are not held out: what layers are fitted to. The others judge them."""
_BACK = (0, 1, 2, 4, 7)
"""How many bounds stricter the final model is made anew, where it misses the limit on the samples
held out; at last the dense one."""
CHEAPER = 2
"""How many bounds below what met the limit a model begins that is trained back."""
_BOUNDS_DB = (60, 50, 45, 40, 36, 33, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 3, 0)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen and why. objective: what costs mean, in `unit`; they are estimates, but for
    `measured` of them, which come from a profile.
    layers: one row a weight: form, why, the losses and costs of all its forms. front: rows of cost
    against predicted loss. cost, dense_cost: of the choice and of the dense model. evaluations:
    whole models that were judged; looks: how often the samples held out were used; held_to: the
    limits there, where shares of labels are within the error of their number."""

    objective: str
    unit: str
    limits: tuple[str, ...]
    layers: Rows
    front: Rows
    cost: float
    dense_cost: float
    evaluations: int
    looks: int
    measured: int = 0
    held_to: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()

    @property
    def saving(self) -> float:
        """Share of the dense model's estimated cost that is saved."""
        return 1 - self.cost / self.dense_cost if self.dense_cost else 0.0

    def to_json(self) -> dict[str, Any]:
        costs = sum(len(row["costs"]) for row in self.layers)
        document = {**vars(self), "saving": self.saving, "estimate": self.measured < costs}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in document.items()}

    def page(self, model: str) -> str:
        """The front drawn, and the layers, as one HTML file."""
        return render_front(model, self.summary(), self.front, self.layers, self._label)

    @property
    def _label(self) -> str:
        known = "partly measured" if self.measured else "estimated"
        return f"{self.objective}, {known} [{self.unit}]"

    def picture(self, model: str) -> bytes:
        """The front as a PNG. Raises: BackendError O24-071 without matplotlib."""
        return draw_front(model, self.front, self._label)

    def summary(self) -> str:
        """The choice in a few lines."""
        counts: dict[str, int] = {}
        for row in self.layers:
            counts[row["form"]] = counts.get(row["form"], 0) + 1
        said = ", ".join(f"{count} {form}" for form, count in sorted(counts.items()))
        costs = sum(len(row["costs"]) for row in self.layers)
        source = "ESTIMATED from data-sheet rates"
        if self.measured:
            source = f"{self.measured} of {costs} costs MEASURED (the profile), others ESTIMATED"
        lines = [
            f"chosen for {', '.join(self.limits)}: {said}",
            f"  {self.objective} of the layers, {source}: {self.cost:.4g} "
            f"{self.unit}, dense {self.dense_cost:.4g} ({100 * self.saving:.0f} % less)",
            f"  {self.evaluations} models were judged; the samples held out were used {self.looks} "
            f"time{'s' if self.looks != 1 else ''}",
        ]
        if self.held_to != self.limits:
            lines.append(
                f"  so few labels are held out that the model was held to {', '.join(self.held_to)}"
            )
        if self.unmeasured:
            count = len(self.unmeasured)
            lines.append(f"  time was up for {count} layers, which stay dense; --time gives more")
        return "\n".join(lines)

    def render(self) -> str:
        """The summary and two tables."""
        lines = [self.summary()]
        rows = [
            (
                row["weight"],
                row["form"],
                f"{row['cost']:.3g}",
                f"{row['dense_cost']:.3g}",
                row["why"],
            )
            for row in self.layers
        ]
        header = ("weight", "form", "cost", "dense", "why")
        lines.append(table(header, rows, right=(2, 3), prose=(4,)))
        points = [
            (
                f"{row['sqnr_db']:.1f}",
                f"{row['cost']:.4g}",
                f"{100 * row['saving']:.0f} %",
                "chosen" if row["chosen"] else "",
            )
            for row in self.front
        ]
        columns = ("predicted dB", f"cost [{self.unit}]", "saving", "")
        lines.append(table(columns, points, right=(0, 1, 2)))
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, eq=False)
class TuneResult(Result):
    """A tuned model; `tuning` says what was chosen for each layer, and why."""

    tuning: Tuning = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as docs/report.md describes it, with `tuning`."""
        return {**super().to_dict(), "tuning": self.tuning.to_json()}


def tune(
    model: ModelLike,
    *,
    calib: DataLike,
    limit: LimitsLike = None,
    labels: LabelsLike = None,
    metric: MetricLike = None,
    recover: float | str | None = None,
    objective: str = "latency",
    formats: str | Sequence[str] = "int8",
    profile: PathLike | Sequence[PathLike] | None = None,
    time: float | str = MINUTES * 60,
    output: PathLike | None = None,
    target: str | targets.Target = targets.DEFAULT,
    gpu: str | None = None,
    preset: str | None = None,
    shapes: ShapesLike = None,
    seed: int = 0,
    external: External = "auto",
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    executor: str = "local",
    work_dir: PathLike | None = None,
    progress: ProgressLike = None,
) -> TuneResult:
    """Choose for each layer dense or 2:4, and 16-bit floats or INT8, so that the model is as cheap
    as can be within a limit.

    Every layer is measured by itself in each form that the target has kernels for, on real samples
    that it was not fitted to; the choice is exact over what these losses predict; models are then
    judged whole, and the final one on samples that nothing was fitted to and nothing chosen by
    (labels within the error of their number there).

    calib: real samples (docs/api.md says in which forms), 16 at least. limit: `{"top1": 0.01}`,
    `{"sqnr": 20}`, as `max_drop` of `compile`; by default 1 % of the labels for classifiers, 20 dB
    for other models. labels, metric: as for `compile`, of `calib`; the default is then that
    accuracy, or the metric's value, falls by 0.01 at most. recover: as for `compile`, of each model
    that is made in the end; a choice that is a bit cheaper than what meets the limit untrained is
    then tried first. objective: "latency", "size" or "energy-proxy", estimated from data-sheet
    rates of `gpu`. formats: what may be chosen besides 16-bit floats: "int8", and "int4", of
    weights of MatMul and Gemm, where the target takes opset 21. profile: ledgers (files of `onnx24
    ledger -o`), whose times of layers take the estimates' place. time: what it may take, seconds or
    text such as "30min"; layers that save most come first. preset: whose passes are used, by
    default that of the target. work_dir: keeps what was measured, for a run that goes on.

    Raises: as `compile`; InputError O24-043 for too few samples; NotMetError, with `.result`, where
    even the strictest choice misses the limit on the samples held out.

    >>> import numpy as np, onnx24
    >>> from onnx24.testing.generate import mlp
    >>> rows = {"x": np.random.default_rng(0).standard_normal((256, 64), np.float32)}
    >>> result = onnx24.tune(mlp([64, 64, 32]), calib=rows, limit={"sqnr": 10})
    >>> result.tuning.saving > 0, [row["weight"] for row in result.tuning.layers]
    (True, ['fc0.weight', 'fc1.weight'])
    """
    ends = clock.monotonic() + seconds_of(time, "time")
    begins = clock.monotonic()
    if objective not in OBJECTIVES:
        raise usage(f"objective {objective!r}", f"it is one of {', '.join(OBJECTIVES)}")
    if profile is not None and objective != "latency":
        raise usage(f"profile with objective {objective}", "a profile says what layers take")
    times, allowed = _times(profile), _formats(formats)
    row = targets.load(target) if isinstance(target, str) else target
    rates = gpu_of(row, gpu)
    profiles = profiles_of(shapes)
    shows = reporter(progress)
    effort = Effort(memory=memory, workers=workers, executor=executor, work_dir=work_dir)
    if recover is not None:
        Budget.of(recover)
    scoring = Scoring.of(labels, metric)
    source = load(model)
    original = source.load()
    data = load_samples(calib, original, profiles, seed)
    split = split_of(data)
    if data is None or split is None or not split.is_divided or data.is_random:
        raise usage(
            "tune needs 16 real samples or more, in runs that can be divided",
            "pass --calib DATA with more samples; random ones say nothing",
        )
    if recover is not None:
        require_recoverable(original, split)
    fit, judge = split.fitted.split(FIT)
    limits = limits_of(limit, scored=True) or scoring.defaults
    limits = limits or default_limits(original, len(judge))
    scoring.require(limits)
    text = f"@{preset or targets.default_preset(row, calibrated=True)}"
    if INT4 in allowed and not has_int4(row):
        raise usage(
            f"formats int4: {row.name} takes no weights in INT4, which opset 21 has",
            "targets of TensorRT 11 and of TensorRT-RTX do",
        )
    steps = _at_opset(list(parse(text)), INT4_OPSET if INT4 in allowed else 0)
    base = _base(source.load(), steps, row)
    layers, _ = layers_of(base, row, profiles)
    units = units_of(layers, row, rates, objective, allowed)
    units, measured = with_measured(units, times) if times else (units, 0)
    folder = effort.folder()
    with tempfile.TemporaryDirectory(prefix="onnx24-") as scratch:
        sensitivity = Sensitivity(
            base,
            prune=_step(steps, "prune24"),
            quantize=_step(steps, "qdq"),
            fit=fit,
            judge=judge,
            target=row,
            cache=Path(scratch) / "ranges.json",
            resources=effort.resources(),
            saved=None if folder is None else folder / "tune.json",
            key=_key(base, data, row, f"{text} {' '.join(allowed)}"),
        )
        limit_at = begins + SHARE * (ends - begins)
        losses = sensitivity.measure(
            units, progress=shows.progress, time_is_up=lambda: clock.monotonic() > limit_at
        )
        options = [_options(unit, losses) for unit in units]
        search = _Search(units, options, sensitivity, base, judge, limits, scoring)
        with shows.waiting("choosing forms"):
            points = search.run(ends, cheaper=CHEAPER if recover is not None else 0)
    held_to = [str(each) for each in within_error(limits, len(split.held_out))]
    looks = 0
    for tried, point in enumerate(points):
        looks += 1
        tuning = replace(
            _tuning(units, options, losses, point, limits, objective, search, looks),
            measured=measured,
            held_to=tuple(held_to),
        )
        try:
            made = compile(
                source,
                output=output,
                pipeline=str(_pipeline(steps, units, point)),
                calib=data,
                max_drop=held_to,
                labels=scoring.labels,
                metric=metric,
                recover=recover,
                target=row,
                shapes=shapes,
                seed=seed,
                external=external,
                memory=memory,
                workers=workers,
                executor=executor,
                work_dir=work_dir,
                progress=progress,
            )
        except NotMetError as err:
            if tried + 1 < len(points) or not isinstance(err.result, Result):
                if isinstance(err.result, Result):
                    continue
                raise
            err.result = _with(err.result, tuning)
            raise
        return _with(made, tuning)
    raise AssertionError("the last point is the dense model")


def require_drawable(file: str) -> None:
    """Look before anything is measured whether a front can be drawn into that file.

    Raises: InputError O24-043 for another ending than .html and .png; BackendError O24-071.
    """
    ending = Path(file).suffix.lower()
    if ending == ".png":
        require_matplotlib()
    elif ending != ".html":
        raise usage(f"--front {file}", "name a file that ends in .html or .png")


def _times(profile: PathLike | Sequence[PathLike] | None) -> Times:
    """Raises: InputError O24-048 for what is no ledger, or can't be read."""
    if profile is None:
        return {}
    given = [profile] if isinstance(profile, str | os.PathLike) else profile
    documents = []
    for each in given:
        path = os.fspath(each)
        try:
            documents.append((path, Path(path).read_text("utf-8")))
        except (OSError, ValueError) as err:
            reason = getattr(err, "strerror", None) or err
            raise InputError.of("O24-048", f"it can't be read: {reason}", file=path) from err
    return times_of(documents) if documents else {}


def _with(made: Result, tuning: Tuning) -> TuneResult:
    kept = {item.name: getattr(made, item.name) for item in fields(Result)}
    return TuneResult(**kept, tuning=tuning)


_SHAPING = ("canonicalize", "upgrade-opset")


def _base(model: Model, steps: Sequence[Pass], target: Target) -> Model:
    """What layers are measured on: the model with those steps that give weights their names."""
    shaping = tuple(step for step in steps if step.name in _SHAPING)
    manager.run(model, Pipeline(shaping), target=target, reproducer_dir=None)
    return model


def _formats(given: str | Sequence[str]) -> tuple[str, ...]:
    """Raises: InputError O24-043."""
    names = given.split(",") if isinstance(given, str) else given
    found = tuple(dict.fromkeys(name.strip() for name in names))
    if unknown := [name for name in found if name not in FORMATS]:
        raise usage(f"formats {unknown[0]!r}", f"they are of {', '.join(FORMATS)}")
    return found


def _at_opset(steps: list[Pass], opset: int) -> list[Pass]:
    """The steps with `upgrade-opset` to that one at least."""
    return [
        replace(step, to=max(step.to, opset))  # type: ignore[call-arg,attr-defined]
        if step.name == "upgrade-opset"
        else step
        for step in steps
    ]


def _step(steps: Sequence[Pass], name: str) -> Pass:
    found = next((step for step in steps if step.name == name), None)
    if found is None:
        from onnx24.passmgr import registry

        return registry.get(name)()
    return found


def _key(base: Model, data: Calibration, target: Target, text: str) -> str:
    from onnx24 import __version__

    model = hashlib.sha256(base.to_bytes()).hexdigest()
    parts = (__version__, target.name, text, data.digest(), model)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _options(unit: Unit, losses: Losses) -> Options:
    measured = losses.of.get(unit.weight, {DENSE: 0.0})
    return {
        form: (unit.costs[form], loss)
        for form, loss in measured.items()
        if form in unit.costs and math.isfinite(loss)
    }


class _Search:
    """Bounds on the predicted loss, tried on whole models."""

    def __init__(
        self,
        units: Sequence[Unit],
        options: Sequence[Options],
        sensitivity: Sensitivity,
        base: Model,
        judge: Calibration,
        limits: Sequence[Limit],
        scoring: Scoring,
    ) -> None:
        self._scoring = scoring
        self._units, self._options, self._sensitivity = units, options, sensitivity
        self._base, self._judge, self._limits = base, judge, limits
        self._known: dict[tuple[str, ...], bool] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def run(self, ends: float, cheaper: int = 0) -> list[Point]:
        """The cheapest choice that met the limits, then stricter ones, the dense model last.
        cheaper: begin with that of so many bounds below, which missed them."""
        bounds = [10 ** (-decibels / 10) for decibels in _BOUNDS_DB]
        points = [choose(self._options, bound) for bound in bounds]
        low, high = -1, len(points)  # low: met; high: not met
        at = self._start()
        while high - low > 1 and clock.monotonic() < ends:
            if self._is_met(points[at]):
                low = at
            else:
                high = at
            step = 4 if low > -1 and high == len(points) else 0
            at = min(low + step, len(points) - 1) if step else (low + high) // 2
            at = max(at, low + 1) if low >= 0 else max(at, 0)
            if at in (low, high):
                break
        first = [points[min(low + cheaper, len(points) - 1)]] if cheaper else []
        kept = first + [points[low - back] for back in _BACK if low - back >= 0]
        dense = choose(self._options, 0.0)
        return list(dict.fromkeys([*kept, dense]))

    def _start(self) -> int:
        """The bound that the limit itself suggests."""
        decibels = max((x.bound for x in self._limits if x.metric == "sqnr"), default=DEFAULT_SQNR)
        return next((i for i, db in enumerate(_BOUNDS_DB) if db <= decibels), 0)

    def _is_met(self, point: Point) -> bool:
        if point.forms not in self._known:
            forms = zip(self._units, point.forms, strict=True)
            chosen = {unit.weight: form for unit, form in forms if form != DENSE}
            self._known[point.forms] = not chosen or self._holds(self._sensitivity.together(chosen))
        return self._known[point.forms]

    def _holds(self, model: Model) -> bool:
        try:
            found = compare(self._base, model, self._judge, also=named_values(self._limits))
        except InputError:
            return False
        results = check_limits(self._limits, found.outputs, found.names)
        results += self._scoring.check(self._limits, self._base, model, self._judge)
        return all(result.met for result in results)


def _pipeline(steps: Sequence[Pass], units: Sequence[Unit], point: Point) -> Pipeline:
    """The preset's passes, each on the layers that it is to change; passes that would have "
    "none go."""
    forms = {unit.weight: form for unit, form in zip(units, point.forms, strict=True)}
    sparse = [weight for weight, form in forms.items() if "sparse" in form]
    quantized = [weight for weight, form in forms.items() if "int" in form]
    int4 = [weight for weight, form in forms.items() if form == INT4]
    found: list[Pass] = []
    for step in steps:
        if step.name == "prune24":
            found += [only(step, sparse)] if sparse else []
        elif step.name == "qdq":
            quiet = replace(step, min_agreement=0.0, min_output=0.0)  # type: ignore[call-arg]
            found += [only(in_int4(quiet, int4), quantized)] if quantized else []
        elif step.name in ("fold-qdq", "smooth-quant"):
            found += [step] if quantized and step.name == "fold-qdq" else []
        elif step.name == "check24":
            found += [step] if sparse else []
        else:
            found.append(step)
    return Pipeline(tuple(found))


def _tuning(
    units: Sequence[Unit],
    options: Sequence[Options],
    losses: Losses,
    point: Point,
    limits: Sequence[Limit],
    objective: str,
    search: _Search,
    looks: int,
) -> Tuning:
    dense_cost = sum(unit.costs[DENSE] for unit in units)
    bounds = [10 ** (-decibels / 10) for decibels in _BOUNDS_DB]
    points = front(options, [0.0, *bounds])
    if point not in points:
        points = sorted([*points, point], key=lambda p: p.loss)
    return Tuning(
        objective=objective,
        unit=UNITS[objective],
        limits=tuple(map(str, limits)),
        layers=Rows(
            _row(unit, form, losses) for unit, form in zip(units, point.forms, strict=True)
        ),
        front=Rows(
            {
                "loss": p.loss,
                "sqnr_db": p.sqnr_db,
                "cost": p.cost,
                "saving": 1 - p.cost / dense_cost if dense_cost else 0.0,
                "chosen": p == point,
            }
            for p in points
        ),
        cost=point.cost,
        dense_cost=dense_cost,
        evaluations=search.evaluations,
        looks=looks,
        unmeasured=tuple(losses.unmeasured),
    )


def _row(unit: Unit, form: str, losses: Losses) -> dict[str, Any]:
    measured: Mapping[str, float] = losses.of.get(unit.weight, {})
    return {
        "weight": unit.weight,
        "nodes": list(unit.nodes),
        "form": form,
        "why": _why(unit, form, losses),
        "cost": unit.costs[form],
        "dense_cost": unit.costs[DENSE],
        "costs": dict(unit.costs),
        "losses": dict(measured),
    }


def _why(unit: Unit, form: str, losses: Losses) -> str:
    if unit.weight in losses.unmeasured:
        return "not measured: time was up"
    measured = losses.of.get(unit.weight, {})
    refused = losses.refused.get(unit.weight, {})
    parts = []
    for other in ("sparse", *FORMATS):
        if other in refused:
            parts.append(f"no {other}: {refused[other]}")
        elif other in measured and other not in form:
            loss = measured[other]
            said = "lost an output" if math.isinf(loss) else f"{_decibels(loss)} dB"
            parts.append(f"{other} alone would give {said}")
    if form != DENSE and measured.get(form, 0.0) > 0:
        parts.insert(0, f"{_decibels(measured[form])} dB alone")
    return "; ".join(parts)


def _decibels(loss: float) -> str:
    return f"{-10 * math.log10(loss):.1f}" if loss > 0 else "∞"
