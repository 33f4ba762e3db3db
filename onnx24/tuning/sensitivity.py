"""What each form of each layer does to the model's outputs, measured on samples that it was not
fitted to.

All layers are pruned together, as the compiler does it; then one layer at a time gets its 2:4
values, or its Q/DQ pairs, while all others are as they were. What a layer does in both is the sum
of the two."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx24.errors import InputError
from onnx24.ir.archives import UNREADABLE
from onnx24.ir.files import atomic_write
from onnx24.ir.model import Model
from onnx24.layerwise.solver import parallel
from onnx24.passmgr import manager
from onnx24.passmgr.base import Pass, SiteRecord
from onnx24.passmgr.pipeline import Pipeline
from onnx24.runtime.trials import Reference, likeness_of
from onnx24.tuning.costs import DENSE, FORMATS, INT4, Unit

if TYPE_CHECKING:
    from onnx24.layerwise.resources import Resources
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

__all__ = ["Losses", "Sensitivity", "only"]

AT_ONCE = 16
"""Layers that go to a cluster together; between them time is looked at, and what was found kept."""
RUNS = 64
"""Samples that one form of one layer is judged on."""


@dataclass
class Losses:
    """Unit → form → noise power over signal power of the worst output; infinite where an output was
    lost. refused: unit → form → why it can't have it. unmeasured: units for which time was up."""

    of: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)


_Measured = tuple[dict[str, float], dict[str, str]]
"""Form → loss, and form → why there is none."""


def only(step: Pass, names: Iterable[str]) -> Pass:
    """A pass that takes these weights and no others."""
    return replace(step, include=tuple(glob.escape(name) for name in names))  # type: ignore[call-arg]


def in_int4(step: Pass, names: Iterable[str]) -> Pass:
    """A qdq that gives these weights INT4."""
    return replace(step, int4=tuple(glob.escape(name) for name in names))  # type: ignore[call-arg]


def _may_be_sparse(unit: Unit) -> bool:
    return "sparse" in unit.costs or "sparse-int8" in unit.costs


class Sensitivity:
    """prune, quantize: the passes as the user wants them, without a selection. base: the model that
    they are applied to. fit, judge: samples. cache: a file for ranges. saved: a file that what was
    measured is kept in, None for none; key: what it belongs to."""

    def __init__(
        self,
        base: Model,
        *,
        prune: Pass,
        quantize: Pass,
        fit: Calibration,
        judge: Calibration,
        target: Target,
        cache: Path,
        resources: Resources,
        saved: Path | None = None,
        key: str = "",
    ) -> None:
        self._data = base.to_bytes()
        self._prune, self._quantize = prune, quantize
        self._fit, self._target, self._cache = fit, target, cache
        self._resources = resources
        self._reference = Reference(base, judge)
        self._runs = min(RUNS, len(judge))
        self._saved, self._key = saved, key
        self._pruned: dict[str, dict[str, np.ndarray]] = {}
        self._pairs: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] | None = None

    def measure(
        self,
        units: Sequence[Unit],
        *,
        progress: Callable[..., Iterator[Any]],
        time_is_up: Callable[[], bool],
    ) -> Losses:
        """Of every unit, those first that can save most. Raises: InputError as the passes do."""
        found = Losses()
        known = self._restored(units)
        self._pruned = self._values_of([u.weight for u in units if _may_be_sparse(u)])
        self._fill_cache([unit.weight for unit in units if "int8" in unit.costs])
        order = sorted(units, key=lambda unit: -unit.saving)
        lacking = [unit for unit in order if unit.weight not in known]
        with parallel(self._resources) as cluster:
            at_once = 1 if cluster is None else AT_ONCE
            parts = [lacking[i : i + at_once] for i in range(0, len(lacking), at_once)]
            for part in progress(parts, "measuring layers"):
                if time_is_up():
                    break
                tasks = [self._task(unit) for unit in part]
                made = (
                    cluster(_remotely(task) for task in tasks)
                    if cluster is not None
                    else map(measure, tasks)
                )
                known.update(zip((unit.weight for unit in part), made, strict=True))
                self._save(known)
        for unit in order:
            if unit.weight not in known:
                found.unmeasured.append(unit.weight)
                continue
            losses, refused = known[unit.weight]
            found.of[unit.weight] = {DENSE: 0.0, **losses}
            found.refused[unit.weight] = refused
        return found

    def _task(self, unit: Unit) -> Task:
        if self._pairs is None:
            self._pairs = list(self._reference.runs(self._runs))
        ranges = self._cache.read_bytes() if self._cache.exists() else b""
        quantize = only(self._quantizer(), [unit.weight])
        pruned = self._pruned.get(unit.weight)
        return Task(self._data, unit, pruned, quantize, ranges, self._target, self._pairs)

    def together(self, forms: Mapping[str, str]) -> Model:
        """The model with several layers in their forms: Q/DQ with the ranges that were found,
        then the 2:4 values that pruning all together left. The scales are those of the dense
        weights, since ranges are kept for the model as it is; the model that is made in the end
        has its own. forms: weight → form."""
        model = Model.from_bytes(self._data)
        quantized = [weight for weight, form in forms.items() if "int" in form]
        if quantized:
            int4 = [weight for weight, form in forms.items() if form == INT4]
            self._run(model, [only(in_int4(self._quantizer(), int4), quantized)])
        for weight, form in forms.items():
            if "sparse" in form:
                _put(model, self._pruned[weight])
        return model

    def _quantizer(self) -> Pass:
        """Ranges from the file, nothing that looks at all layers together."""
        return replace(  # type: ignore[call-arg]
            self._quantize, cache=str(self._cache), min_agreement=0.0, min_output=0.0, budget=0.0
        )

    def _fill_cache(self, weights: Sequence[str]) -> None:
        if weights:
            self._run(Model.from_bytes(self._data), [only(self._quantizer(), weights)])

    def _values_of(self, weights: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Weight → initializers and their values, as pruning all of them together leaves them."""
        if not weights:
            return {}
        model = Model.from_bytes(self._data)
        result = self._run(model, [only(self._prune, weights)])
        found = {}
        for record in result.records:
            if record.action != "pruned":
                continue
            names = [record.weight, *([record.facts["bias"]] if record.facts.get("bias") else [])]
            known = [name for name in names if name in model.weights]
            found[record.weight] = {name: np.array(model.weights[name]) for name in known}
        return found

    def _run(self, model: Model, steps: Sequence[Pass]) -> manager.RunResult:
        return manager.run(
            model,
            Pipeline(tuple(steps)),
            target=self._target,
            calibration=self._fit,
            resources=self._resources,
            reproducer_dir=None,
        )

    # --- what an earlier run has measured ---------------------------------------------------
    def _restored(self, units: Sequence[Unit]) -> dict[str, _Measured]:
        """What the file says of these units; nothing of another tool's file, and of one that was
        cut or edited: they are measured again."""
        if self._saved is None or not self._saved.is_file():
            return {}
        try:
            document = json.loads(self._saved.read_text("utf-8"))
            measured = document["units"]
            if document["sha256"] != self._digest(measured):
                return {}
            forms = {unit.weight: set(unit.costs) for unit in units}
            return {
                weight: (losses, refused)
                for weight, (losses, refused) in measured.items()
                if {*losses, *refused} <= forms.get(weight, set()) | {"sparse"}
            }
        except UNREADABLE:
            return {}

    def _save(self, known: Mapping[str, _Measured]) -> None:
        if self._saved is not None:
            document = {"sha256": self._digest(known), "units": known}
            with atomic_write(str(self._saved)) as file:
                file.write(json.dumps(document).encode())

    def _digest(self, known: Mapping[str, _Measured]) -> str:
        said = json.dumps([self._key, known], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


# --- one layer, here or on a cluster ----------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What one layer is measured by. data: the model's bytes; pruned: initializers as pruning left
    them, None where it left the layer dense; ranges: the file of `quantize`'s cache; pairs: of
    `Reference.runs`."""

    data: bytes
    unit: Unit
    pruned: Mapping[str, np.ndarray] | None
    quantize: Pass
    ranges: bytes
    target: Target
    pairs: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


def measure(task: Task) -> tuple[dict[str, float], dict[str, str]]:
    """Form → loss, and form → why the layer can't have it."""
    unit = task.unit
    losses: dict[str, float] = {}
    refused: dict[str, str] = {}
    if _may_be_sparse(unit):
        if task.pruned is not None:
            model = Model.from_bytes(task.data)
            _put(model, task.pruned)
            losses["sparse"] = _loss(model, task)
        else:
            refused["sparse"] = "prune24 leaves it dense"
    for form in (form for form in FORMATS if form in unit.costs):
        model, records = _quantized(task, form)
        if any(record.action == "quantized" for record in records):
            losses[form] = _loss(model, task)
        else:
            refused[form] = next((r.reason for r in records if r.reason), "qdq leaves it")
    if {"sparse", "int8"} <= losses.keys() and "sparse-int8" in unit.costs:
        losses["sparse-int8"] = losses["sparse"] + losses["int8"]
    if "sparse" not in unit.costs:
        losses.pop("sparse", None)
    return losses, refused


def _remotely(task: Task) -> Any:
    import joblib

    return joblib.delayed(measure)(task)


def _quantized(task: Task, form: str) -> tuple[Model, list[SiteRecord]]:
    """The model with that layer quantized, its ranges from the file; samples are not needed."""
    model = Model.from_bytes(task.data)
    with tempfile.TemporaryDirectory(prefix="onnx24-") as folder:
        cache = Path(folder) / "ranges.json"
        cache.write_bytes(task.ranges)
        step = in_int4(task.quantize, [task.unit.weight] if form == INT4 else [])
        step = replace(step, cache=str(cache))  # type: ignore[call-arg]
        result = manager.run(model, Pipeline((step,)), target=task.target, reproducer_dir=None)
    return model, [record for record in result.records if record.weight == task.unit.weight]


def _put(model: Model, values: Mapping[str, np.ndarray]) -> None:
    for name, array in values.items():
        if name in model.weights:  # a bias that pruning made is missing in the original
            model.weights.replace(name, array)


def _loss(model: Model, task: Task) -> float:
    try:
        decibels, _ = likeness_of(model, task.pairs).worst
    except InputError:
        return math.inf
    return 0.0 if decibels == math.inf else 10 ** (-decibels / 10)
