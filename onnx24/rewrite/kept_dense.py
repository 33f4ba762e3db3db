"""Keeping what a weight was before it is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.product_rows import as_rows, has_alpha
from onnx24.analysis.weight_uses import WeightUses, consumer_view
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model
from onnx24.ir.weights import element_count
from onnx24.layerwise.dense import DenseLayer, KeptDense

__all__ = ["DenseKeeper"]

_SHARE = 4
"""A weight is kept where so many of its size fit into the memory that a run may use."""


class DenseKeeper:
    """Keeps the dense values of one model's weights in a work dir; without one, nothing.

    `left_out`: weights for which there was no room, in the folder or in memory.
    """

    def __init__(
        self, model: Model, found: WeightUses, work_dir: Path | None, memory_bytes: int
    ) -> None:
        self._model, self._found = model, found
        self._kept = KeptDense(work_dir) if work_dir is not None else None
        self._largest_bytes = memory_bytes // _SHARE
        self.left_out: list[str] = []

    @contextmanager
    def watching(
        self, verdict: Verdict, bias: tuple[np.ndarray, np.ndarray] | None
    ) -> Iterator[None]:
        """Inside, the weight is pruned. bias: as it was, and what it becomes, where it moves."""
        if self._kept is None:
            yield
            return
        if 4 * element_count(self._found.tensors[verdict.key]) > self._largest_bytes:
            self.left_out.append(verdict.key.name)
            yield
            return
        before = np.array(self._rows(verdict))
        yield
        after = self._rows(verdict)
        if np.array_equal(before, after, equal_nan=before.dtype.kind in "fc"):
            return
        use = verdict.products[0]
        layer = DenseLayer(
            rows=before,
            op=use.op,
            has_alpha=has_alpha(use),
            bias=bias[0].reshape(-1) if bias else None,
            bias_moved=bias[1].reshape(-1) if bias else None,
        )
        if self._kept.store(verdict.key.name, layer, after) is None:
            self.left_out.append(verdict.key.name)

    def notes(self) -> list[Diagnostic]:
        """O24-137 where some were not kept."""
        if not self.left_out:
            return []
        message = f"the dense values of {len(self.left_out)} weights were not kept"
        return [diagnostic("O24-137", message, facts={"weights": self.left_out})]

    def _rows(self, verdict: Verdict) -> np.ndarray:
        use = verdict.products[0]
        return as_rows(consumer_view(self._found.read(self._model, verdict.key), use), use)
