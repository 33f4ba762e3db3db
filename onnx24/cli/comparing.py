"""`compare`: two models side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto

from onnx24.backends.base import parse_shapes
from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, source_of
from onnx24.diagnostics import Severity
from onnx24.driver.samples import data_beside, load_samples
from onnx24.driver.usage import usage
from onnx24.ir.model import Model
from onnx24.ir.shapes import infer
from onnx24.report.limits import LimitResult, check_limits, named_values, parse_limits
from onnx24.report.model import DataFacts
from onnx24.report.text import render_comparison, render_limits


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """`compare`, as the user wrote it."""

    a: str
    b: str
    data: str | None
    seed: int
    shapes: tuple[str, ...]
    layers: bool
    max_drop: tuple[str, ...]
    as_json: bool


def compare_models(request: CompareRequest) -> int:
    """Returns: 0, or 1 where a limit is not met or finite values are lost. Raises: InputError."""
    _check_streams(request.a, request.b)
    limits = parse_limits(request.max_drop)
    spec = request.data or data_beside(None if request.a == STANDARD_STREAM else Path(request.a))
    profiles = parse_shapes(request.shapes)
    from onnx24.runtime.compare import compare
    from onnx24.runtime.split import judging

    a, b = source_of(request.a).load(), source_of(request.b).load()
    console = Console(as_json=request.as_json)
    data, use, told = judging(load_samples(spec, a, profiles, request.seed), a, b)
    with console.waiting("running both models"):
        comparison = compare(a, b, data, also=named_values(limits))
        layers = compare(a, b, data, outputs=common_values(a, b)) if request.layers else None
    results = check_limits(limits, comparison.outputs, comparison.names)
    facts = DataFacts.of(data, use)
    document: dict[str, Any] = {
        "a": request.a,
        "b": request.b,
        "data": facts.to_json(),
        "comparison": comparison.to_json(),
        "layers": None if layers is None else layers.to_json(),
        "limits": [result.to_json() for result in results],
        "met": all(result.met for result in results),
    }
    console.report(_text(document, results), document)
    found = [*told, *comparison.findings(), *comparison.breaches()]
    found += [result.unmet() for result in results if not result.met]
    console.diagnostics(found)
    return 1 if any(item.severity is Severity.ERROR for item in found) else 0


def _check_streams(a: str, b: str) -> None:
    if a == b == STANDARD_STREAM:
        raise usage("both models are standard input", "give one of them a path")


def _text(document: dict[str, Any], results: list[LimitResult]) -> str:
    parts = [render_comparison(document["comparison"])]
    if document["layers"] is not None:
        parts.append("inner values, " + render_comparison(document["layers"]))
    if results:
        parts.append(render_limits(results))
    return "\n\n".join(parts)


def common_values(a: Model, b: Model) -> list[str]:
    """Names of the floating-point values that the main graphs of both compute, in the order of
    `a`. The same name need not mean the same thing, but it does in a model and its compilation."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    types = infer(a)
    theirs = {name for node in b.proto.graph.node for name in node.output}
    return [
        name
        for node in a.proto.graph.node
        for name in node.output
        if name and name in theirs and (known := types.get(name)) and known.dtype in floats
    ]
