"""`onnx24 bench`: dense, sparse, INT8 and sparse INT8 engines of one model against each other."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import targets
from onnx24.backends.base import Backend, Profile, get, parse_shapes, resolve_profiles
from onnx24.backends.onnx_file import Input, inputs_of
from onnx24.backends.python_api import PythonBackend
from onnx24.backends.running import require_gpu, run_with_python, run_with_trtexec
from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, source_of
from onnx24.driver.models import Source
from onnx24.driver.samples import load_samples, split_of
from onnx24.driver.usage import usage
from onnx24.errors import BackendError
from onnx24.ledger.estimate import VARIANTS, estimate, render_estimates
from onnx24.ledger.measure import Measurement, from_interleaved, in_turns, render_measurements
from onnx24.ledger.model_layers import ModelLayer, layers_of
from onnx24.passmgr import manager
from onnx24.passmgr.options import did_you_mean
from onnx24.passmgr.pipeline import parse
from onnx24.targets.gpus import gpu_of

if TYPE_CHECKING:
    from onnx24.ir.model import Model
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

PRESETS = {"dense": "fp16", "sparse": "sparse-fp16", "int8": "int8", "sparse-int8": "sparse-int8"}
"""What each variant is compiled by."""
RUNS = 50
"""Of an engine in one round."""


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """`bench`, as the user wrote it."""

    model: str
    target: str
    backend: str
    variants: str
    batches: tuple[int, ...]
    shapes: tuple[str, ...]
    calib: str | None
    estimate: bool
    gpu: str | None
    rounds: int
    timeout_s: float | None
    as_json: bool


def bench_model(request: BenchRequest) -> int:
    """Returns: 0. Raises: InputError; BackendError O24-510 where nothing can be measured."""
    if request.model == STANDARD_STREAM:
        raise usage("bench reads no standard input", "it builds several engines from the file")
    variants = _variants(request.variants)
    target = targets.load(request.target)
    if not request.estimate:
        require_gpu()
        if request.gpu is not None:
            raise usage("--gpu without --estimate", "a measurement is of the GPU that is here")
    source = source_of(request.model)
    model = source.load()
    plans = _plans(request, model)
    if request.estimate:
        return _estimate(request, model, target, plans)
    return _measure(request, source, model, target, plans, variants)


def _variants(text: str) -> list[str]:
    """The dense one always, since it is what the others are compared with."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in PRESETS:
            near = did_you_mean(name, PRESETS, begins=True)
            known = ", ".join(PRESETS)
            raise usage(f"--variants {name}: expected some of {known}", f"{near}see --help")
    return [name for name in PRESETS if name == "dense" or name in names]


def _plans(request: BenchRequest, model: Model) -> dict[str, dict[str, Profile]]:
    """The name of a batch size → a static profile for each dynamic input."""
    inputs = inputs_of(model.proto)
    shapes = parse_shapes(request.shapes)
    if not request.batches:
        profiles = resolve_profiles(inputs, shapes)
        fixed = {name: Profile.static(profile.opt) for name, profile in profiles.items()}
        return {_batch_name(inputs, fixed): fixed}
    found = {}
    for batch in request.batches:
        sized = {i.name: _at(i, shapes.get(i.name), batch) for i in inputs if i.dynamic}
        known = {name: profile for name, profile in sized.items() if profile is not None}
        found[str(batch)] = resolve_profiles(inputs, {**_statics(shapes), **known})
    if len(found) > 1 and not any(i.dynamic for i in inputs):
        raise usage("--batch: no input has a dynamic dimension", "export it with a dynamic batch")
    return found


def _statics(shapes: Mapping[str, Profile]) -> dict[str, Profile]:
    return {name: Profile.static(profile.opt) for name, profile in shapes.items()}


def _at(given: Input, profile: Profile | None, batch: int) -> Profile | None:
    """The input's sizes with `batch` first; None where another size is not known."""
    sizes = profile.opt if profile is not None else given.shape
    if not sizes:
        return None
    first = given.shape[0] if given.shape else None
    changed = [first if isinstance(first, int) else batch, *sizes[1:]]
    if not all(isinstance(size, int) for size in changed):
        return None
    return Profile.static([int(size) for size in changed])  # type: ignore[arg-type]


def _batch_name(inputs: Sequence[Input], profiles: Mapping[str, Profile]) -> str:
    for given in inputs:
        shape = profiles[given.name].opt if given.name in profiles else given.shape
        if shape:
            return str(shape[0])
    return "1"


# --- estimate -----------------------------------------------------------------------------------


def _estimate(
    request: BenchRequest,
    model: Model,
    target: Target,
    plans: Mapping[str, Mapping[str, Profile]],
) -> int:
    gpu = gpu_of(target, request.gpu)
    found = [
        estimate(_with_weight(layers_of(model, target, profiles)[0]), target, gpu, batch)
        for batch, profiles in plans.items()
    ]
    document = {
        "measured": False,
        "kind": "roofline estimate",
        "model": request.model,
        "target": target.name,
        "gpu": gpu.to_json(),
        "variants": list(VARIANTS),
        "batches": [item.to_json() for item in found],
    }
    text = render_estimates(request.model, target, gpu, found)
    Console(as_json=request.as_json).report(text, document)
    return 0


def _with_weight(layers: Sequence[ModelLayer]) -> list[ModelLayer]:
    return [layer for layer in layers if layer.weight]


# --- measurement --------------------------------------------------------------------------------


def _measure(
    request: BenchRequest,
    source: Source,
    model: Model,
    target: Target,
    plans: Mapping[str, Mapping[str, Profile]],
    variants: list[str],
) -> int:
    backend = get(request.backend, target)
    any_plan = next(iter(plans.values()))
    split = split_of(load_samples(request.calib, model, any_plan, 0))
    calibration = split.fitted if split else None
    skipped = {}
    if calibration is None:
        for name in [name for name in variants if "int8" in name]:
            variants.remove(name)
            skipped[name] = "it needs --calib"
    console = Console(as_json=request.as_json)
    measured = []
    with tempfile.TemporaryDirectory(prefix="onnx24-bench-") as folder:
        models = _compile(source, variants, target, calibration, Path(folder))
        for batch, profiles in plans.items():
            with console.waiting(f"batch {batch}: building {len(models)} engines"):
                engines = _build(backend, target, models, profiles, request, Path(folder), batch)
            with console.waiting(f"batch {batch}: measuring in turns"):
                measured.append(_run(backend, engines, profiles, request, batch))
    version = backend.available().version
    title = f"{request.model} for {target.name}, {backend.name} {version}, measured in turns"
    document: dict[str, Any] = {
        "measured": True,
        "model": request.model,
        "target": target.name,
        "backend": {"name": backend.name, "version": version},
        "pipelines": {name: f"@{PRESETS[name]}" for name in variants},
        "skipped": skipped,
        "batches": [item.to_json() for item in measured],
    }
    console.report(render_measurements(title, measured, skipped), document)
    return 0


def _compile(
    source: Source,
    variants: Sequence[str],
    target: Target,
    calibration: Calibration | None,
    folder: Path,
) -> dict[str, Path]:
    found = {}
    for name in variants:
        model = source.load()
        pipeline = parse(f"@{PRESETS[name]}")
        manager.run(model, pipeline, target=target, calibration=calibration)
        found[name] = folder / f"{name}.onnx"
        model.save(found[name])
    return found


def _build(
    backend: Backend,
    target: Target,
    models: Mapping[str, Path],
    profiles: Mapping[str, Profile],
    request: BenchRequest,
    folder: Path,
    batch: str,
) -> dict[str, Path]:
    engines = {}
    for name, path in models.items():
        engines[name] = folder / f"{name}.{batch}.engine"
        backend.build(
            path, target, engine=engines[name], shapes=profiles, timeout_s=request.timeout_s
        )
    return engines


def _run(
    backend: Backend,
    engines: Mapping[str, Path],
    profiles: Mapping[str, Profile],
    request: BenchRequest,
    batch: str,
) -> Measurement:
    if isinstance(backend, PythonBackend):
        times = run_with_python(
            backend, engines, profiles,
            rounds=request.rounds, runs=RUNS, timeout_s=request.timeout_s,
        )  # fmt: skip
        return from_interleaved(times, batch=batch)
    if backend.name != "trtexec":
        raise BackendError.of("O24-500", f"{backend.name} cannot run engines")

    def run(variant: str, engine: Path) -> list[float]:
        return run_with_trtexec(engine, profiles, seconds=1, timeout_s=request.timeout_s)

    return in_turns(run, engines, rounds=request.rounds, batch=batch)
