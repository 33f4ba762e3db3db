"""How far one model's outputs are from another's, over a stream of samples."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.difference import Differences, OutputDiff, gap_finding
from onnx24.runtime.rounding import has_16_bit
from onnx24.runtime.session import Session

_OVERFLOW = (
    "pass --calib DATA, so that cast16 keeps what leaves the 16-bit range in float32 (O24-244), or "
    "exclude the layer"
)

__all__ = ["Comparison", "compare", "require_values"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`samples`: how many the outputs were measured on; `data`: which, in words. `names`: of the
    models' outputs, where inner values were compared besides. `is_16_bit`: a model computes in 16
    bit."""

    outputs: list[OutputDiff]
    names: tuple[str, ...] | None = None
    samples: int
    data: str = ""
    is_random: bool = False
    is_16_bit: bool = False

    @property
    def worst(self) -> OutputDiff:
        """The output of the largest relative error, one of which nothing could be compared before
        all. Raises: ValueError where there is none."""
        return max(self.outputs, key=lambda out: out.badness)

    def findings(self) -> list[Diagnostic]:
        """What a reader of the numbers must know (O24-034, O24-037, O24-038, O24-058)."""
        found = []
        if self.is_16_bit:
            message = "16-bit nodes were computed in float32, and each of their results rounded"
            found.append(diagnostic("O24-038", message, severity=Severity.NOTE))
        if self.is_random:
            message = f"{self.data}: the comparison says nothing about accuracy"
            found.append(diagnostic("O24-034", message, severity=Severity.WARNING))
        gaps = (gap_finding([out]) for out in self.outputs)
        found += [gap for gap in gaps if gap is not None]
        for out in self.outputs:
            if out.is_complete and not out.mismatches and out.rel_l2 > 1:
                message = f"output {out.name!r} is off by {out.rel_l2:.4g} times its size"
                found.append(diagnostic("O24-058", message, tensor=out.name))
            elif out.faint is not None and out.faint.rel_l2 > 1:
                some = f"{out.faint.channels} of {out.faint.of} channels of output {out.name!r}"
                size = f"{out.faint.rel_l2:.4g} times their size"
                message = f"{some}, which are small beside the others, are off by {size}"
                found.append(diagnostic("O24-058", message, tensor=out.name))
        return found

    def breaches(self) -> list[Diagnostic]:
        """Outputs with values that are NaN or infinite where the reference's are finite: broken,
        whatever limits were asked for (O24-056)."""
        return [
            diagnostic(
                "O24-056",
                f"output {out.name!r}: {out.lost} values are NaN or infinite, and finite in the "
                "original",
                severity=Severity.WARNING if self.is_random else Severity.ERROR,
                tensor=out.name,
                facts={"lost": out.lost, "elements": out.elements},
                hint=_OVERFLOW if self.is_16_bit else "",
            )
            for out in self.outputs
            if out.lost
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "data": self.data,
            "random": self.is_random,
            "outputs": [out.to_json() for out in self.outputs],
        }


def compare(
    a: Model,
    b: Model,
    data: Calibration,
    *,
    outputs: Sequence[str] | None = None,
    also: Sequence[str] = (),
    optimize: bool = True,
) -> Comparison:
    """Run both models on the same samples in ONNX Runtime; `a` is the reference.

    outputs: names of values of both main graphs; the models' outputs where None. also: values to
    compare besides. optimize: as for Session. Only one run's outputs are held at a time.
    Raises: InputError O24-016; O24-031 to O24-033 where the samples do not fit both models;
    O24-801 where the outputs' names differ; O24-039 where a model has no value of a name in `also`.
    """
    own = [value.name for value in a.proto.graph.output] if outputs is None else outputs
    if also:
        for model in (a, b):
            require_values(model, also)
        outputs = list(dict.fromkeys([*own, *also]))
    sessions = Session(a, outputs, optimize=optimize), Session(b, outputs, optimize=optimize)
    ours, theirs = (session.outputs for session in sessions)
    if sorted(ours) != sorted(theirs):
        raise InputError.of("O24-801", f"expected the outputs {ours}, found {theirs}")
    found = Differences()
    for feeds, feeds_b in zip(data.batches(a), data.batches(b), strict=True):
        found.add(sessions[0].run(feeds), sessions[1].run(feeds_b))
    return Comparison(
        outputs=found.results(),
        names=tuple(own) if also else None,
        samples=len(data),
        data=data.describe(),
        is_random=data.is_random,
        is_16_bit=has_16_bit(a) or has_16_bit(b),
    )


def require_values(model: Model, names: Sequence[str]) -> None:
    """Raises: InputError O24-039 unless the main graph computes, or is fed, each of them."""
    graph = model.proto.graph
    known = {name for node in graph.node for name in node.output if name}
    known |= {value.name for value in graph.input}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError.of(
                "O24-039",
                f"{name!r} is no value of the main graph",
                file=str(model.path or ""),
                hint=(f"did you mean {near[0]!r}? " if near else "")
                + f"its outputs are {', '.join(value.name for value in graph.output)}",
            )
