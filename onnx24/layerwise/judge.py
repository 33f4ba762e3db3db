"""How far a compressed model is from the dense one, on samples that were held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx24.diagnostics import Diagnostic
from onnx24.layerwise.segments import Piece, in_order
from onnx24.layerwise.store import Store
from onnx24.runtime.difference import Differences, gap_finding, mean_rel_l2

__all__ = ["Agreement", "Judge", "fewest"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """With the dense model. rel_l2: root mean square over the outputs of ‖ŷ − y‖ / ‖y‖. top1:
    share of samples whose largest entry stands at the same place, where a model has one output
    of which that makes sense; else None. gap: O24-037 where an output was not compared in full."""

    rel_l2: float
    top1: float | None
    gap: Diagnostic | None = None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"rel_l2": self.rel_l2}
        return out if self.top1 is None else {**out, "top1": self.top1}


class Judge:
    """Runs the whole model, whose solved weights are fed, on samples that nothing was fitted to.

    piece: of `segments.whole`. samples: gives them anew each time. store: where the dense outputs
    are kept.
    """

    def __init__(
        self,
        piece: Piece,
        samples: Callable[[], Iterable[Mapping[str, np.ndarray]]],
        dense: Mapping[str, np.ndarray],
        store: Store,
        threads: int,
    ) -> None:
        self._piece, self._samples, self._threads = piece, samples, threads
        self._store = store
        for run, outputs in enumerate(self._outputs(dense)):
            for name, value in outputs.items():
                store.put(run, name, value, value)

    def __call__(self, weights: Mapping[str, np.ndarray]) -> Agreement:
        sums = Differences()
        for run, found in enumerate(self._outputs(weights)):
            sums.add({name: self._store.get(run, name)[0] for name in found}, found)
        results = sums.results()
        one = results[0] if len(results) == 1 and len(results[0].shape) >= 2 else None
        top1 = one.top1_agreement if one else None
        return Agreement(rel_l2=mean_rel_l2(results), top1=top1, gap=gap_finding(results))

    def _outputs(self, weights: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        with ThreadPoolExecutor(self._threads) as pool:
            yield from in_order(
                pool,
                lambda feeds: self._piece.run(feeds, weights),
                self._samples(),
                2 * self._threads,
            )


def fewest(count: int, met: Callable[[int], bool], known: Iterable[int] = ()) -> int:
    """The least n of 0..count for which `met(n)`, as far as bisection finds it: n is always one
    that was asked, or `count`, which is taken for granted."""
    low, high = -1, count
    for n in known:
        if n > low and not met(n):
            low = n
    while high - low > 1:
        middle = (low + high) // 2
        if met(middle):
            high = middle
        else:
            low = middle
    return high
