"""`onnx24 gate`: layers that 2:4 did not make faster go back to their dense weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx24.backends.base import parse_shapes
from onnx24.cli.console import Console
from onnx24.cli.files import (
    STANDARD_STREAM,
    check_model_output,
    check_output,
    output_path,
    source_of,
)
from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.driver.models import Source
from onnx24.driver.samples import load_samples
from onnx24.driver.usage import usage
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.verify import Interface, verify
from onnx24.layerwise.dense import KeptDense
from onnx24.ledger.dense_again import FromModel, FromWorkDir, Origin
from onnx24.ledger.profit_gate import all_dense_again, brought_back, gate, render_gate, rows_of
from onnx24.passmgr.provenance import data_digest, record_step
from onnx24.report.model import ModelFacts
from onnx24.runtime.compare import Comparison, compare
from onnx24.runtime.split import judging


@dataclass(frozen=True, kw_only=True)
class GateRequest:
    """`gate`, as the user wrote it."""

    model: str
    dense: str | None
    work_dir: str | None
    ledger: str
    output: str | None
    noise: float
    data: str | None
    seed: int
    shapes: tuple[str, ...]
    as_json: bool


def gate_model(request: GateRequest) -> int:
    """Returns: 0. Raises: InputError."""
    if STANDARD_STREAM in (request.dense, request.ledger):
        raise usage("--dense and --ledger read no standard input", "give paths")
    source = source_of(request.model)
    out = output_path(request.output, request.model)
    check_model_output(out, request.model, as_json=request.as_json)
    for path in (request.dense, request.ledger):
        if out != STANDARD_STREAM and path is not None:
            check_output(out, path)
    kept = _kept(request)
    rows = rows_of(_text(request.ledger), request.ledger)
    profiles = parse_shapes(request.shapes)
    model = source.load()
    dense = source_of(request.dense).load() if request.dense is not None else None
    origins: list[Origin] = [FromWorkDir(kept)] if kept is not None else []
    origins += [FromModel(dense)] if dense is not None else []
    data = load_samples(request.data, dense or model, profiles, request.seed)
    told: list[Diagnostic] = []
    if data is not None:
        data, _, told = judging(data, model)
    console = Console(as_json=request.as_json, stdout_is_taken=True)
    comparisons: dict[str, Comparison] = {}
    reference, said = dense, "the dense model"
    if data is not None:
        if reference is None:
            reference, said = _without_24(source, origins)
        with console.waiting("comparing the sparse model with the dense one"):
            comparisons["sparse"] = compare(reference, model, data)
    facts = ModelFacts.of(model, request.model)
    interface = Interface.of(model)
    decisions = gate(model, origins, rows, noise=request.noise)
    problems = verify(model, interface)
    if problems:
        raise InputError(problems)
    if data is not None and reference is not None:
        with console.waiting("comparing the gated model with the dense one"):
            comparisons["gated"] = compare(reference, model, data)
    if any(decision.action == "dense again" for decision in decisions):
        record_step(
            model,
            "gate",
            source_sha256=facts.sha256,
            source_data_sha256=data_digest(facts.data_files),
        )
    model.save(out)
    document = {
        "model": request.model,
        "dense": request.dense,
        "work_dir": request.work_dir,
        "ledger": request.ledger,
        "output": out,
        "noise": request.noise,
        "weights": [decision.to_json() for decision in decisions],
        "reference": said if comparisons else None,
        "comparisons": {name: found.to_json() for name, found in comparisons.items()},
        "brought_back": brought_back(comparisons),
    }
    if request.as_json:
        console.document(document)
    else:
        console.note(f"{out}\n{render_gate(decisions, comparisons, said)}")
    if data is not None and data.is_random:
        text = f"{data.describe()}: the comparison says nothing about accuracy"
        told.append(diagnostic("O24-034", text, severity=Severity.WARNING))
    console.diagnostics(told)
    return 0


def _kept(request: GateRequest) -> KeptDense | None:
    """Raises: InputError where dense values come from nowhere."""
    if request.work_dir is None:
        if request.dense is None:
            raise usage(
                "gate needs the dense weights",
                "pass --work-dir as `compile` had it, or --dense MODEL",
            )
        return None
    kept = KeptDense(Path(request.work_dir))
    if not kept.folder.is_dir():
        raise usage(
            f"--work-dir {request.work_dir} holds no dense weights: there is no {kept.folder}",
            "`compile --work-dir DIR` and `prune24 --work-dir DIR` keep them there",
        )
    return kept


def _without_24(source: Source, origins: list[Origin]) -> tuple[Model, str]:
    """The compiled model with its dense weights, in whatever types it has."""
    model = source.load()
    back, total = all_dense_again(model, origins)
    of = "all" if back == total else f"{back} of {total}"
    return model, f"the compiled model with {of} weights dense again"


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is no text"
        raise InputError.of("O24-048", reason or str(err), file=path) from err
