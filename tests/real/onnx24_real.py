"""Compiling one real model in-process, and what is asked of the result."""

from __future__ import annotations

import csv
import json
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility
from onnx24.analysis.invariants import broken_claims
from onnx24.backends import Profile
from onnx24.backends.base import resolve_profiles
from onnx24.backends.builder import Refused, Request
from onnx24.backends.builder import build as build_engine
from onnx24.backends.onnx_file import OnnxFile
from onnx24.effects import Effects
from onnx24.errors import BackendError, InputError, Onnx24Error
from onnx24.ir.model import Model
from onnx24.ir.verify import CONSTANT_INPUTS, Interface
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.compare import Comparison, compare
from onnx24.runtime.data import Calibration, load_data
from onnx24.runtime.session import Session
from onnx24.targets import DEFAULT, load, presets

PRESETS = ("sparse-fp16", "sparse-int8")


@dataclass
class Outcome:
    """What became of one model under one preset. `refused`: the error, where there was one."""

    name: str
    preset: str
    refused: Onnx24Error | None = None
    pruned: int = 0
    eligible: int = 0
    quantized: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    """pass → "-" (nothing), "W", "S" or "WS" """
    seconds: float = 0.0
    same_interface: bool = False
    finite: bool = True
    broken_claims: list = field(default_factory=list)
    comparison: Comparison | None = None


def data_for(model: Model) -> Calibration:
    """Random samples, with 8 for every unknown dimension but the first."""
    shapes = {}
    for value in model.proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [
            d.dim_value if d.dim_value > 0 else (1 if i == 0 else 8) for i, d in enumerate(dims)
        ]
    return load_data("random:8", model, shapes=shapes)


def compile_real(source: Path, preset: str, out: Path) -> Outcome:
    """Load, run the preset, verify every pass, save, and run both models on random data."""
    outcome = Outcome(name=source.name, preset=preset)
    try:
        original = Model.load(source)
        data = data_for(original)
        reference = Session(original, None)
        feeds = next(iter(data.batches(original)))
        expected = reference.run(feeds)
        model = Model.load(source)
        result = manager.run(
            model,
            pipeline.parse(presets()[preset]),
            target=load(DEFAULT),
            calibration=data,
            reproducer_dir=out.parent,
        )
    except InputError as err:
        outcome.refused = err
        return outcome
    codes = [r.code for r in result.records if r.pass_name == "prune24"]
    outcome.pruned = codes.count("O24-100") + codes.count("O24-102")
    outcome.quantized = sum(r.code == "O24-200" for r in result.records)
    marks = ((Effects.WEIGHTS, "W"), (Effects.STRUCTURE, "S"))
    for run in result.passes:
        outcome.changed[run.name] = "".join(m for e, m in marks if e in run.changed) or "-"
        outcome.seconds += run.seconds
    before, after = Interface.of(original), Interface.of(model)
    # Weights that were inputs with a default are constants now, and the metadata name them.
    gone = set(json.loads(model.metadata.get(CONSTANT_INPUTS, "[]")))
    kept = [n for n, _ in before.inputs if n not in gone] + [n for n, _ in before.outputs]
    outcome.same_interface = kept == [n for n, _ in after.inputs + after.outputs]
    model.save(out)
    saved = Model.load(out)
    cache = AnalysisCache()
    verdicts = cache.get(Model.load(source), Eligibility).judge(original, load(DEFAULT))
    outcome.eligible = sum(v.eligible or v.code == "O24-102" for v in verdicts.values())
    outcome.broken_claims = broken_claims(saved, cache)
    try:
        outcome.comparison = compare(original, saved, data)
    except InputError:
        # A branch of the original that only some random values take may be invalid itself.
        if _runs_on_all(reference, data, original):
            raise
    actual = Session(saved, None).run(feeds)
    for name, value in expected.items():
        found = np.asarray(actual[name])
        assert np.asarray(value).shape == found.shape, name
        if found.dtype.kind == "f" and np.isfinite(value).all():
            outcome.finite &= bool(np.isfinite(found).all())
    return outcome


def _runs_on_all(session: Session, data: Calibration, model: Model) -> bool:
    try:
        for feeds in data.batches(model):
            session.run(feeds)
    except InputError:
        return False
    return True


@cache
def _manifest(shared_models: Path) -> dict[str, str]:
    with open(shared_models.parent / "manifest.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return {row[0].removeprefix("models/"): row[-1] for row in rows[1:]}


def dense_builds(shared_models: Path, source: Path) -> bool:
    """Whether the original builds in TensorRT-RTX, as the manifest records it."""
    entry = _manifest(shared_models).get(str(source.relative_to(shared_models)), "")
    return "build ok" in entry


def rtx_builds(model: Path, engine: Path) -> str | None:
    """Build a model, with 1 to 8 for a dynamic first dimension; "" if an engine came out, the
    error if none did, None without the package."""
    from onnx24 import backends

    try:
        rtx = backends.get("tensorrt-rtx")
    except BackendError:
        return None
    shapes = {}
    for value in Model.load(model).proto.graph.input:
        sizes = value.type.tensor_type.shape.dim
        dims = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1 for d in sizes]
        if -1 in dims:
            low, high = ([n if d == -1 else d for d in dims] for n in (1, 8))
            shapes[value.name] = backends.Profile(tuple(low), tuple(low), tuple(high))
    if _built_warm(model, engine, shapes):
        return ""
    try:
        rtx.build(model, load("sm86-rtx1"), engine=engine, shapes=shapes, timeout_s=300)
    except (BackendError, InputError) as err:
        return str(err)
    os.unlink(engine)
    return ""


def _built_warm(model: Path, engine: Path, shapes: dict[str, Profile]) -> bool:
    """Whether a process that has loaded TensorRT-RTX already makes an engine: nine tenths of a
    small build is loading. What it does not build is asked of the backend itself."""
    try:
        file = OnnxFile.read(model)
        profiles = resolve_profiles(file.inputs, shapes)
        request = Request(
            module="tensorrt_rtx",
            model=str(file.handed_over(model, engine.parent)),
            engine=str(engine),
            compute_capability="SM86",
            profiles={n: [list(p.min), list(p.opt), list(p.max)] for n, p in profiles.items()},
        )
        built = _pool().submit(_built, request).result()
    except InputError:
        return False
    except BrokenProcessPool:
        _pool.cache_clear()
        return False
    if built:
        os.unlink(engine)
    return built


def _built(request: Request) -> bool:
    import tensorrt_rtx as trt

    try:
        build_engine(trt, request, trt.Logger(trt.Logger.INTERNAL_ERROR))
    except Refused:
        return False
    return True


@cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))
