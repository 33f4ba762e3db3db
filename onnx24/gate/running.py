"""The rules of a policy that need more than the model's file: a run of it against a reference, a
task's metrics, a ledger of measurements, a build."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnx24 import metrics
from onnx24.backends.base import get, parse_shapes
from onnx24.backends.onnx_file import inputs_of
from onnx24.backends.profiles import completed
from onnx24.diagnostics import Diagnostic
from onnx24.errors import BackendError, InputError
from onnx24.gate.subject import Subject
from onnx24.ir.inputs import regular
from onnx24.ir.model import Model
from onnx24.report.limits import METRICS, Limit, check_limits, named_values

_BATCH = 64


def findings(subject: Subject) -> Iterator[Diagnostic]:
    """Raises: InputError for data and references that cannot be used; BackendError where the
    backend is missing."""
    policy = subject.policy
    if policy.has("latency"):
        yield from _latency(subject)
    if policy.has("numeric"):
        yield from _numeric(subject)
    if policy.has("task"):
        yield from _task(subject)
    if policy.has("backend"):
        yield from _backend(subject)


# --- [numeric] --------------------------------------------------------------------------------


def _numeric(subject: Subject) -> Iterator[Diagnostic]:
    from onnx24.runtime.compare import compare
    from onnx24.runtime.data import load_data
    from onnx24.runtime.split import judging

    policy = subject.policy
    reference = Model.load(_file(policy.path("numeric.reference")))
    spec = str(policy.get("numeric.data"))
    named = spec if spec.startswith("random:") else str(policy.path("numeric.data"))
    data, _, told = judging(load_data(named, reference), reference, subject.model)
    for found in told:
        yield subject.finding(found.code, found.message, "numeric.data")
    limits = [
        Limit(name, value, output)
        for name in METRICS
        if (value := policy.get(f"numeric.{name}")) is not None
        for output in policy.get("numeric.outputs", ("",))
    ]
    comparison = compare(reference, subject.model, data, also=named_values(limits))
    for result in check_limits(limits, comparison.outputs, comparison.names):
        if result.value is not None:
            of = f"@{result.limit.output}" if result.limit.output else ""
            subject.measured[f"{result.limit.metric}{of}"] = result.value
        if result.met:
            continue
        value = "no output has it" if result.value is None else f"{result.value:.6g}"
        yield subject.finding(
            "O24-600",
            f"{result.limit.metric} of output {result.output!r} against the reference is {value}, "
            f"expected {result.required}",
            f"numeric.{result.limit.metric}",
            tensor=result.output,
            facts=result.to_json(),
            hint="",
        )


# --- [task] -----------------------------------------------------------------------------------


def _task(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    measured = task_metrics(subject.model, subject)
    subject.measured.update(measured)
    for name, value in measured.items():
        least = policy.get(f"task.{name}")
        if not value >= least:
            yield subject.finding(
                "O24-650",
                f"{_label(subject, name)} is {value:.6g}, expected at least {least:.6g}",
                f"task.{name}",
                facts={"metric": name, "value": value, "limit": least},
            )
    drop = policy.get("task.max_drop")
    if drop is None:
        return
    before = task_metrics(Model.load(_file(policy.path("task.reference"))), subject)
    for name, value in measured.items():
        if not before[name] - value <= drop + 1e-12:
            yield subject.finding(
                "O24-650",
                f"{_label(subject, name)} is {value:.6g}, the reference's {before[name]:.6g}: a "
                f"drop of {before[name] - value:.6g}, expected at most {drop:.6g}",
                "task.max_drop",
                facts={"metric": name, "value": value, "reference": before[name], "limit": drop},
            )


def _label(subject: Subject, name: str) -> str:
    return f"ndcg@{subject.policy.get('task.k', 10)}" if name == "ndcg" else name


def task_metrics(model: Model, subject: Subject) -> dict[str, float]:
    """The metrics that the policy limits, of one model on the policy's data.

    Raises: InputError O24-030 to O24-033 for data that do not fit, O24-016.
    """
    policy = subject.policy
    path = _file(policy.path("task.data"))
    arrays = _arrays(path)
    wanted = [
        name for name in ("accuracy", "pnr", "ndcg") if policy.get(f"task.{name}") is not None
    ]
    labels = _array(arrays, str(policy.get("task.labels", "label")), path)
    scores = _scores(model, arrays, len(labels), policy.get("task.output"), path)
    found = {}
    try:
        for name in wanted:
            if name == "accuracy":
                found[name] = metrics.accuracy(scores, labels)
                continue
            queries = _array(arrays, str(policy.get("task.queries", "query")), path)
            if name == "pnr":
                found[name] = metrics.pnr(scores, labels, queries)
            else:
                found[name] = metrics.ndcg(scores, labels, queries, int(policy.get("task.k", 10)))
    except ValueError as err:
        raise InputError.of("O24-032", f"the task cannot be judged: {err}", file=path) from err
    return found


def _scores(
    model: Model, arrays: Mapping[str, np.ndarray], rows: int, output: str | None, path: str
) -> np.ndarray:
    """The judged output over all rows. Inputs are cast to nothing: they must fit."""
    from onnx24.runtime.session import Session

    session = Session(model, None if output is None else [output])
    missing = [name for name in session.inputs if name not in arrays]
    if missing:
        raise InputError.of(
            "O24-031", f"the data have no array for input {missing[0]!r}", file=path
        )
    given = {name: arrays[name] for name in session.inputs}
    if any(len(array) != rows for array in given.values()):
        raise InputError.of("O24-032", "inputs and labels differ in their rows", file=path)
    first = model.proto.graph.input[0].type.tensor_type.shape.dim
    batch = first[0].dim_value if len(first) and first[0].dim_value > 0 else _BATCH
    parts = []
    for start in range(0, rows, batch):
        feeds = {name: array[start : start + batch] for name, array in given.items()}
        count = len(next(iter(feeds.values())))
        if first and first[0].dim_value > 0 and count < batch:  # a fixed batch is filled up
            feeds = {
                name: np.concatenate([array, np.repeat(array[-1:], batch - count, 0)])
                for name, array in feeds.items()
            }
        parts.append(np.asarray(session.run(feeds)[session.outputs[0]])[:count])
    scores = np.concatenate(parts)
    return scores.astype(np.float32) if scores.dtype.kind == "V" else scores


def _arrays(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as err:
        raise InputError.of("O24-030", f"not an .npz: {err}", file=path) from err


def _array(arrays: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray:
    if name not in arrays:
        have = ", ".join(arrays)
        raise InputError.of("O24-031", f"the data have no array {name!r}, but {have}", file=path)
    return arrays[name].reshape(-1)


# --- [latency] --------------------------------------------------------------------------------


def _latency(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    path = _file(policy.path("latency.ledger"))
    try:
        ledger = json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        yield subject.finding("O24-652", f"{path}: {err}", "latency.ledger")
        return
    if policy.get("latency.same_model"):
        named = place(ledger, "sha256") or place(ledger, "model.sha256")
        if named != subject.facts.sha256:
            message = f"{path} is of the model {named}, this one is {subject.facts.sha256}"
            yield subject.finding("O24-652", message, "latency.same_model")
    for key, sign, words in (("max", 1, "at most"), ("min", -1, "at least")):
        for where, limit in policy.get(f"latency.{key}", {}).items():
            value = place(ledger, where)
            if not isinstance(value, int | float) or isinstance(value, bool):
                message = f"{path} has no number at {where!r}"
                yield subject.finding("O24-652", message, f"latency.{key}", facts={"key": where})
            elif not sign * value <= sign * limit:
                yield subject.finding(
                    "O24-651",
                    f"{where} is {value:g}, expected {words} {limit:g}",
                    f"latency.{key}",
                    facts={"key": where, "value": value, "limit": limit},
                )


def place(document: Any, path: str) -> Any:
    """What stands at a dotted path of a JSON document, `layers.0.ms`; None where nothing does."""
    for step in path.split("."):
        if isinstance(document, Mapping) and step in document:
            document = document[step]
        elif isinstance(document, list) and step.isdigit() and int(step) < len(document):
            document = document[int(step)]
        else:
            return None
    if isinstance(document, float) and not math.isfinite(document):
        return None
    return document


# --- [backend] --------------------------------------------------------------------------------


def _backend(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    backend = get(str(policy.get("backend.build")), subject.target)
    backend.require()
    given = parse_shapes(policy.get("backend.shapes", ()))
    shapes, _ = completed(inputs_of(subject.model.proto), given, None, subject.model)
    model_path = subject.model.path
    assert model_path is not None
    with tempfile.TemporaryDirectory(prefix="onnx24-") as folder:
        try:
            backend.build(
                model_path,
                subject.target,
                engine=Path(folder) / "model.engine",
                shapes=shapes,
                timeout_s=policy.get("backend.timeout"),
            )
        except BackendError as err:
            for problem in err.diagnostics:
                yield subject.finding(
                    "O24-653",
                    f"{backend.name}: {problem.message} ({problem.code})",
                    "backend.build",
                    node=problem.where.node,
                    op=problem.where.op,
                    tensor=problem.where.tensor,
                )


def _file(path: Path | None) -> str:
    assert path is not None  # read_policy refuses a policy that lacks it
    return str(path)
