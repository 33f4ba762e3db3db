"""`onnx24 gate`: layers that 2:4 did not make faster go back to their dense weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx24.backends.base import parse_shapes
from onnx24.cli.console import Console
from onnx24.cli.data import load_samples
from onnx24.cli.failure import usage
from onnx24.cli.files import (
    STANDARD_STREAM,
    Source,
    check_model_output,
    check_output,
    output_path,
)
from onnx24.diagnostics import Severity, diagnostic
from onnx24.errors import InputError
from onnx24.ir.verify import Interface, verify
from onnx24.ledger.gate import gate, render_gate, rows_of


@dataclass(frozen=True, kw_only=True)
class GateRequest:
    """`gate`, as the user wrote it."""

    model: str
    dense: str
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
    source = Source(request.model)
    out = output_path(request.output, source)
    check_model_output(out, source, as_json=request.as_json)
    for path in (request.dense, request.ledger):
        if out != STANDARD_STREAM:
            check_output(out, Source(path))
    rows = rows_of(_text(request.ledger), request.ledger)
    profiles = parse_shapes(request.shapes)
    model, dense = source.load(), Source(request.dense).load()
    data = load_samples(request.data, dense, profiles, request.seed)
    console = Console(as_json=request.as_json, stdout_is_taken=True)
    comparisons: dict[str, Any] = {}
    if data is not None:
        from onnx24.runtime.compare import compare

        with console.waiting("comparing the sparse model with the dense one"):
            comparisons["sparse"] = compare(dense, model, data)
    interface = Interface.of(model)
    decisions = gate(model, dense, rows, noise=request.noise)
    problems = verify(model, interface)
    if problems:
        raise InputError(problems)
    if data is not None:
        with console.waiting("comparing the gated model with the dense one"):
            comparisons["gated"] = compare(dense, model, data)
    model.save(out)
    document = {
        "model": request.model,
        "dense": request.dense,
        "ledger": request.ledger,
        "output": out,
        "noise": request.noise,
        "weights": [decision.to_json() for decision in decisions],
        "comparisons": {name: found.to_json() for name, found in comparisons.items()},
    }
    if request.as_json:
        console.document(document)
    else:
        console.note(f"{out}\n{render_gate(decisions, comparisons)}")
    if data is not None and data.is_random:
        text = f"{data.describe()}: the comparison says nothing about accuracy"
        console.diagnostics([diagnostic("O24-034", text, severity=Severity.WARNING)])
    return 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is no text"
        raise InputError.of("O24-048", reason or str(err), file=path) from err
