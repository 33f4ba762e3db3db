"""Pruning to 2:4 by magnitude, piece by piece, so that a weight may be larger than memory.

Each weight is read once and written once. While a piece of it is in the cache it is searched for
NaN and infinity, measured and pruned, and the result is looked at again by other code than that
which pruned it, so that the verifier need not read it a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.weight_uses import WeightUses, consumer_view
from onnx24.diagnostics import Diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.checksum import BLOCK_BYTES
from onnx24.ir.model import Model
from onnx24.ir.pieces import Piece, pieces
from onnx24.ir.weights import element_count, numpy_dtype
from onnx24.sparsity.masks import Engine, Violations, engine_for, prune_24_by_stride
from onnx24.sparsity.metrics import (
    Survey,
    count_nonfinite,
    count_violating,
    count_zeros,
    energy,
    survey,
    survey_24,
)

__all__ = ["Magnitude"]

T = TypeVar("T")

_BEGINNING = 1 << 12
"""Elements that are looked at first: a dense weight shows itself there."""


@dataclass(frozen=True)
class _Measured:
    """before: of the values as they were. kept: the sum of squares afterwards. is_24: whether no
    group has more than two nonzeros then."""

    before: Survey
    kept: float
    is_24: bool


class Magnitude:
    """Looks at weights and prunes them. The weights with NaN or infinity are remembered, and
    `check_finite` names them all; after the first of them nothing is changed any more."""

    def __init__(self, model: Model, found: WeightUses) -> None:
        self._model = model
        self._found = found
        self._problems: list[Diagnostic] = []
        elements = sum(element_count(tensor) for tensor in found.tensors.values())
        self._compiled = engine_for(elements) == "numba"

    def facts_if_24(self, verdict: Verdict) -> dict[str, Any] | None:
        """How many `zeros` a weight has that is 2:4; None for any other, which is told by its
        beginning."""
        tensor, stride = self._tensor(verdict), verdict.k_stride or 1
        beginning = next(pieces(element_count(tensor), stride, _BEGINNING), None)
        if beginning and any(self._model.weights.scan(tensor, [beginning], _violating)):
            return None
        nonfinite = zeros = 0
        for violating, bad, zero in self._scan(verdict, _look):
            if violating:
                return None
            nonfinite, zeros = nonfinite + bad, zeros + zero
        self._note(verdict, nonfinite)
        return {"zeros": zeros}

    def search_nonfinite(self, verdict: Verdict) -> None:
        """For a weight that is chosen, and stays as it is all the same."""
        self._note(verdict, sum(self._scan(verdict, lambda _, values: count_nonfinite(values))))

    def prune(self, verdict: Verdict) -> dict[str, Any]:
        """Zero two of every four values. Returns: zeros: before. energy_kept: Σw² of the survivors
        over Σw² of all. relative_error: ‖W − Ŵ‖ / ‖W‖. Both in the consumer's values where
        quantization scales rows differently."""
        tensor, stride = self._tensor(verdict), verdict.k_stride
        assert stride is not None
        if self._problems:
            self.search_nonfinite(verdict)
            return {}
        draft = self._model.weights.draft(tensor, _pieces(tensor, stride), self._prune_piece)
        said = draft.said
        if self._note(verdict, sum(part.before.nonfinite for part in said)):
            return {}
        share = _share(sum(part.before.energy for part in said), sum(part.kept for part in said))
        if _is_quantized(tensor, verdict):
            before = consumer_view(self._found.read(self._model, verdict.key), verdict.products[0])
            total = energy(before)
            del before
        self._model.weights.commit(draft)
        if _is_quantized(tensor, verdict):
            after = consumer_view(self._found.read(self._model, verdict.key), verdict.products[0])
            share = _share(total, energy(after))
        if all(part.is_24 for part in said):
            clean = Violations(element_count(tensor) // 4, 0, None)
            self._model.weights.remember(tensor, stride, clean)
        # The tensor of a Constant node is an attribute, which is structure.
        if verdict.key in self._found.constants:
            self._model.touch(Effects.STRUCTURE)
        else:
            self._model.touch(Effects.WEIGHTS, values_of=verdict.key)
        return {
            "zeros": sum(part.before.zeros for part in said),
            "energy_kept": share,
            "relative_error": math.sqrt(max(0.0, 1.0 - share)),
        }

    def check_finite(self) -> None:
        """Raises: InputError O24-008, one diagnostic for each weight with NaN or infinity."""
        if self._problems:
            raise InputError(self._problems)

    def _prune_piece(self, piece: Piece, values: np.ndarray) -> _Measured:
        before = survey(values, compiled=self._compiled)
        engine: Engine = "numba" if self._compiled else "numpy"
        prune_24_by_stride(values, piece.stride, values, engine=engine)
        kept, is_24 = survey_24(values, piece.stride, compiled=self._compiled)
        return _Measured(before, kept, is_24)

    def _tensor(self, verdict: Verdict) -> TensorProto:
        return self._found.tensors[verdict.key]

    def _scan(self, verdict: Verdict, look: Callable[[Piece, np.ndarray], T]):
        tensor = self._tensor(verdict)
        return self._model.weights.scan(tensor, _pieces(tensor, verdict.k_stride or 1), look)

    def _note(self, verdict: Verdict, nonfinite: int) -> bool:
        """Whether there are any; they are kept for `check_finite`."""
        if not nonfinite:
            return False
        elements = element_count(self._tensor(verdict))
        error = InputError.of(
            "O24-008",
            f"{nonfinite:,} of {elements:,} values are NaN or infinite",
            tensor=verdict.key.name,
            scope=verdict.key.scope,
            node=verdict.products[0].node,
            op=verdict.products[0].op,
            facts={"nonfinite": nonfinite, "elements": elements},
        )
        self._problems += error.diagnostics
        return True


def _pieces(tensor: TensorProto, stride: int) -> Sequence[Piece]:
    align = BLOCK_BYTES // numpy_dtype(tensor.data_type).itemsize  # checksums go by blocks
    return list(pieces(element_count(tensor), stride, align=align))


def _look(piece: Piece, values: np.ndarray) -> tuple[int, int, int]:
    """Violating groups, and, where there are none, nonfinite values and zeros."""
    violating = count_violating(values, piece.stride)
    if violating:
        return violating, 0, 0
    return 0, count_nonfinite(values), count_zeros(values)


def _violating(piece: Piece, values: np.ndarray) -> int:
    return count_violating(values, piece.stride)


def _is_quantized(tensor: TensorProto, verdict: Verdict) -> bool:
    steps = verdict.products[0].chain[:1]
    is_int8 = tensor.data_type == TensorProto.INT8
    return is_int8 or any(step.op == "DequantizeLinear" for step in steps)


def _share(total: float, kept: float) -> float:
    return kept / total if total else 1.0
