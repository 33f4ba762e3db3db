"""Dense, sparse, INT8 and sparse INT8 engines of one model against each other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import targets
from onnx24.backends.base import Backend, Profile, get, resolve_profiles
from onnx24.backends.onnx_file import Input, inputs_of
from onnx24.backends.profiles import completed
from onnx24.backends.python_api import PythonBackend
from onnx24.backends.running import require_gpu, run_with_python, run_with_trtexec
from onnx24.driver.compiling import optimize
from onnx24.driver.models import ModelLike, Source, load
from onnx24.driver.progress import ProgressLike, Reporter, reporter
from onnx24.driver.result import Documented
from onnx24.driver.samples import DataLike, ShapesLike, load_samples, profiles_of
from onnx24.driver.usage import usage
from onnx24.errors import BackendError
from onnx24.ledger.estimate import VARIANTS, estimate, render_estimates
from onnx24.ledger.measure import Measurement, from_interleaved, in_turns, render_measurements
from onnx24.ledger.model_layers import ModelLayer, layers_of
from onnx24.passmgr.options import did_you_mean
from onnx24.targets.gpus import gpu_of

if TYPE_CHECKING:
    from onnx24.diagnostics import Diagnostic
    from onnx24.ir.model import Model
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

PRESETS = {"dense": "fp16", "sparse": "sparse-fp16", "int8": "int8", "sparse-int8": "sparse-int8"}
"""What each variant is compiled by."""
RUNS = 50
"""Of an engine in one round."""


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """One call, with everything looked up."""

    source: Source
    model: Model
    target: Target
    plans: Mapping[str, Mapping[str, Profile]]
    rounds: int
    timeout: float | None
    shows: Reporter


def bench(
    model: ModelLike,
    *,
    target: str | Target = targets.DEFAULT,
    backend: str = "auto",
    variants: Iterable[str] = tuple(PRESETS),
    batches: Sequence[int] = (),
    shapes: ShapesLike = None,
    calib: DataLike = None,
    estimated: bool = False,
    gpu: str | None = None,
    rounds: int = 20,
    timeout: float | None = None,
    progress: ProgressLike = None,
) -> Documented:
    """Measure what 2:4 and INT8 gain, or estimate it.

    Builds an engine for each variant and batch size and runs them in turns on the GPU that is here;
    a gain that the noise could have made is shown as none. `estimated` measures nothing and gives
    bounds per layer that no kernel reaches, for `gpu` by name. Dynamic dimensions that neither
    `shapes` nor `batches` nor `calib` give take sizes that run (O24-053).

    Returns: `document`, of the measurements or the estimates, and `text`.
    Raises: InputError; BackendError O24-510 where nothing can be measured.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> found = onnx24.bench(mlp([64, 32]), estimated=True, batches=[8])
    >>> found.document["measured"], [item["batch"] for item in found.to_dict()["batches"]]
    (False, ['8'])
    """
    wanted = _variants(variants)
    row = targets.load(target)
    if not estimated:
        require_gpu()
        if gpu is not None:
            raise usage("--gpu without --estimate", "a measurement is of the GPU that is here")
    source = load(model)
    loaded = source.load()
    given = profiles_of(shapes)
    calibration = load_samples(calib, loaded, given, 0)
    plans, chosen = _plans(loaded, given, batches, calibration)
    job = _Bench(
        source=source,
        model=loaded,
        target=row,
        plans=plans,
        rounds=rounds,
        timeout=timeout,
        shows=reporter(progress),
    )
    found = _estimate(job, gpu) if estimated else _measure(job, backend, wanted, calibration)
    return replace(found, diagnostics=(*chosen, *found.diagnostics))


def _variants(given: Iterable[str]) -> list[str]:
    """The dense one always, since it is what the others are compared with."""
    names = list(given)
    for name in names:
        if name not in PRESETS:
            near = did_you_mean(name, PRESETS, begins=True)
            known = ", ".join(PRESETS)
            raise usage(f"--variants {name}: expected some of {known}", f"{near}see --help")
    return [name for name in PRESETS if name == "dense" or name in names]


def _plans(
    model: Model,
    shapes: Mapping[str, Profile],
    batches: Sequence[int],
    calibration: Calibration | None,
) -> tuple[dict[str, dict[str, Profile]], list[Diagnostic]]:
    """(the name of a batch size → a static profile for each dynamic input, what to say of them)."""
    inputs = inputs_of(model.proto)
    if len(batches) > 1 and not any(i.dynamic for i in inputs):
        raise usage("--batch: no input has a dynamic dimension", "export it with a dynamic batch")
    found: dict[str, dict[str, Profile]] = {}
    said: dict[str, Diagnostic] = {}
    for batch in batches or (None,):
        profiles, chosen = completed(inputs, shapes, calibration, model, batch=batch)
        profiles = resolve_profiles(inputs, profiles)
        fixed = {name: Profile.static(profile.opt) for name, profile in profiles.items()}
        found[_batch_name(inputs, fixed) if batch is None else str(batch)] = fixed
        said |= {item.message: item for item in chosen}
    return found, list(said.values())


def _batch_name(inputs: Sequence[Input], profiles: Mapping[str, Profile]) -> str:
    for given in inputs:
        shape = profiles[given.name].opt if given.name in profiles else given.shape
        if shape:
            return str(shape[0])
    return "1"


# --- estimate -----------------------------------------------------------------------------------


def _estimate(job: _Bench, name: str | None) -> Documented:
    gpu = gpu_of(job.target, name)
    found = [
        estimate(
            _with_weight(layers_of(job.model, job.target, profiles)[0]), job.target, gpu, batch
        )
        for batch, profiles in job.plans.items()
    ]
    document = {
        "measured": False,
        "kind": "roofline estimate",
        "model": job.source.name,
        "target": job.target.name,
        "gpu": gpu.to_json(),
        "variants": list(VARIANTS),
        "batches": [item.to_json() for item in found],
    }
    text = render_estimates(job.source.name, job.target, gpu, found)
    return Documented(document=document, text=text)


def _with_weight(layers: Sequence[ModelLayer]) -> list[ModelLayer]:
    return [layer for layer in layers if layer.weight]


# --- measurement --------------------------------------------------------------------------------


def _measure(
    job: _Bench, name: str, variants: list[str], calibration: Calibration | None
) -> Documented:
    backend = get(name, job.target)
    skipped = {}
    if calibration is None:
        for variant in [variant for variant in variants if "int8" in variant]:
            variants.remove(variant)
            skipped[variant] = "it needs --calib"
    measured = []
    with tempfile.TemporaryDirectory(prefix="onnx24-bench-") as folder:
        models = _compile(job, variants, calibration, Path(folder))
        for batch, profiles in job.plans.items():
            with job.shows.waiting(f"batch {batch}: building {len(models)} engines"):
                engines = _build(job, backend, models, profiles, Path(folder), batch)
            with job.shows.waiting(f"batch {batch}: measuring in turns"):
                measured.append(_run(job, backend, engines, profiles, batch))
    version = backend.available().version
    title = f"{job.source.name} for {job.target.name}, {backend.name} {version}, measured in turns"
    document: dict[str, Any] = {
        "measured": True,
        "model": job.source.name,
        "target": job.target.name,
        "backend": {"name": backend.name, "version": version},
        "pipelines": {variant: f"@{PRESETS[variant]}" for variant in variants},
        "skipped": skipped,
        "batches": [item.to_json() for item in measured],
    }
    return Documented(document=document, text=render_measurements(title, measured, skipped))


def _compile(
    job: _Bench, variants: Sequence[str], calibration: Calibration | None, folder: Path
) -> dict[str, Path]:
    found = {}
    for name in variants:
        found[name] = folder / f"{name}.onnx"
        optimize(
            job.source,
            f"@{PRESETS[name]}",
            target=job.target,
            calib=calibration,
            output=found[name],
            provenance="off",
        )
    return found


def _build(
    job: _Bench,
    backend: Backend,
    models: Mapping[str, Path],
    profiles: Mapping[str, Profile],
    folder: Path,
    batch: str,
) -> dict[str, Path]:
    engines = {}
    for name, path in models.items():
        engines[name] = folder / f"{name}.{batch}.engine"
        backend.build(
            path, job.target, engine=engines[name], shapes=profiles, timeout_s=job.timeout
        )
    return engines


def _run(
    job: _Bench,
    backend: Backend,
    engines: Mapping[str, Path],
    profiles: Mapping[str, Profile],
    batch: str,
) -> Measurement:
    if isinstance(backend, PythonBackend):
        times = run_with_python(
            backend, engines, profiles, rounds=job.rounds, runs=RUNS, timeout_s=job.timeout
        )
        return from_interleaved(times, batch=batch)
    if backend.name != "trtexec":
        raise BackendError.of("O24-500", f"{backend.name} cannot run engines")

    def run(variant: str, engine: Path) -> list[float]:
        return run_with_trtexec(engine, profiles, seconds=1, timeout_s=job.timeout)

    return in_turns(run, engines, rounds=job.rounds, batch=batch)
