"""How far one model's outputs are from another's, over a stream of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.difference import Differences, OutputDiff
from onnx24.runtime.session import Session

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`samples`: how many the outputs were measured on; `data`: which, in words."""

    outputs: list[OutputDiff]
    samples: int
    data: str = ""
    is_random: bool = False

    @property
    def worst(self) -> OutputDiff:
        """The output of the largest relative error, one of which nothing could be compared before
        all. Raises: ValueError where there is none."""
        return max(self.outputs, key=lambda out: out.badness)

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
    optimize: bool = True,
) -> Comparison:
    """Run both models on the same samples in ONNX Runtime; `a` is the reference.

    outputs: names of values of both main graphs; the models' outputs where None. optimize: as for
    Session. Only one run's outputs are held at a time.
    Raises: InputError O24-016; O24-031 to O24-033 where the samples do not fit both models;
    O24-801 where the outputs' names differ.
    """
    sessions = Session(a, outputs, optimize=optimize), Session(b, outputs, optimize=optimize)
    ours, theirs = (session.outputs for session in sessions)
    if sorted(ours) != sorted(theirs):
        raise InputError.of("O24-801", f"expected the outputs {ours}, found {theirs}")
    found = Differences()
    for feeds, feeds_b in zip(data.batches(a), data.batches(b), strict=True):
        found.add(sessions[0].run(feeds), sessions[1].run(feeds_b))
    return Comparison(
        outputs=found.results(),
        samples=len(data),
        data=data.describe(),
        is_random=data.is_random,
    )
