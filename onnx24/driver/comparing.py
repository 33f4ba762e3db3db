"""Two models side by side on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnx24.diagnostics import Severity
from onnx24.driver.models import ModelLike, load
from onnx24.driver.progress import ProgressLike, reporter
from onnx24.driver.result import Documented, Rows
from onnx24.driver.samples import (
    DataLike,
    LimitsLike,
    ShapesLike,
    data_beside,
    limits_of,
    load_samples,
    profiles_of,
)
from onnx24.ir.model import Model
from onnx24.ir.shapes import infer
from onnx24.lines import Block, paragraphs
from onnx24.report.limits import LimitResult, check_limits, named_values
from onnx24.report.model import DataFacts
from onnx24.report.text import render_comparison, render_limits
from onnx24.runtime.compare import Comparison
from onnx24.runtime.compare import compare as run_both
from onnx24.runtime.split import judging


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared(Documented):
    """comparison: one object an output. layers: of inner values, where they were asked for.
    limits: each with what was measured."""

    comparison: Comparison
    layers: Comparison | None
    limits: tuple[LimitResult, ...]

    @property
    def met(self) -> bool:
        """Whether every limit is met, and no finite value was lost."""
        return all(item.severity is not Severity.ERROR for item in self.diagnostics)

    @property
    def rows(self) -> Rows:
        """One row an output."""
        return Rows(output.to_json() for output in self.comparison.outputs)


def compare(
    a: ModelLike,
    b: ModelLike,
    data: DataLike = None,
    *,
    seed: int = 0,
    shapes: ShapesLike = None,
    layers: bool = False,
    max_drop: LimitsLike = None,
    progress: ProgressLike = None,
) -> Compared:
    """Run two models on the same data and compare their outputs; `a` is the original.

    data: samples (docs/api.md says in which forms); without, the test_data_set_* folders beside
    `a`. layers: also every inner value that both compute under the same name. max_drop: limits,
    `{"sqnr": 20}`; `Compared.met` says whether they are met, and nothing is raised.

    Raises: InputError.

    >>> import numpy as np, onnx24
    >>> from onnx24.testing.generate import mlp
    >>> model, x = mlp([64, 32]), np.ones((4, 64), np.float32)
    >>> found = onnx24.compare(model, onnx24.prune24(model), {"x": x}, max_drop={"cosine": 0.5})
    >>> found.met, 0 < found.rows[0]["rel_l2"] < 1
    (True, True)
    """
    limits = limits_of(max_drop)
    profiles = profiles_of(shapes)
    first, second = load(a), load(b)
    given = data_beside(first.path) if data is None else data
    model, other = first.load(), second.load()
    samples, use, told = judging(load_samples(given, model, profiles, seed), model, other)
    with reporter(progress).waiting("running both models"):
        comparison = run_both(model, other, samples, also=named_values(limits))
        inner = None
        if layers:
            inner = run_both(model, other, samples, outputs=common_values(model, other))
    results = check_limits(limits, comparison.outputs, comparison.names)
    said = [*samples.doubts, *told, *comparison.findings(), *comparison.breaches()]
    said += [result.unmet() for result in results if not result.met]
    document: dict[str, Any] = {
        "a": first.name,
        "b": second.name,
        "data": DataFacts.of(samples, use).to_json(),
        "comparison": comparison.to_json(),
        "layers": None if inner is None else inner.to_json(),
        "limits": [result.to_json() for result in results],
        "met": all(result.met for result in results),
    }
    return Compared(
        document=document,
        text=_text(document, results),
        diagnostics=tuple(said),
        comparison=comparison,
        layers=inner,
        limits=tuple(results),
    )


def _text(document: dict[str, Any], results: list[LimitResult]) -> Block:
    parts = [render_comparison(document["comparison"])]
    if document["layers"] is not None:
        parts.append(render_comparison(document["layers"], of="inner values, "))
    if results:
        parts.append(render_limits(results))
    return paragraphs(parts)


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
