"""How far a compressed model is from the dense one, on samples that were held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx24.diagnostics import Diagnostic
from onnx24.layerwise.segments import Piece, in_order
from onnx24.layerwise.store import Store
from onnx24.runtime.difference import Differences, gap_finding, mean_rel_l2
from onnx24.runtime.trials import Margins

__all__ = ["FEWEST", "Agreement", "Budget", "Judge", "fewest"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """With the dense model. rel_l2: root mean square over the outputs of ‖ŷ − y‖ / ‖y‖. top1:
    share of samples whose largest entry stands at the same place, where a model has one output
    of which that makes sense; else None. expected: share of samples that would change it, as
    `runtime.trials.Margins` has it, of outputs [N, C]; samples: by which that was judged. gap:
    O24-037 where an output was not compared in full."""

    rel_l2: float
    top1: float | None
    expected: float = 0.0
    samples: int = 0
    gap: Diagnostic | None = None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"rel_l2": self.rel_l2}
        return out if self.top1 is None else {**out, "top1": self.top1}


FEWEST = 200
"""Samples from which on the share of equal classes is counted; of fewer it is expected. One of 200
is qdq's default of half a per cent."""


@dataclass(frozen=True)
class Budget:
    """What outputs must keep. rel_l2: their largest relative error; agreement: the least share of
    samples whose class stays, for classifiers. 0: any."""

    rel_l2: float = 0.0
    agreement: float = 0.0

    @property
    def any(self) -> bool:
        return self.rel_l2 > 0 or self.agreement > 0

    def met_by(self, found: Agreement) -> bool:
        return self.share_left(found) >= 1

    def share_left(self, found: Agreement) -> float:
        """What is allowed as a share of what was found; 1 and more where that is within it."""
        shares = [math.inf]
        if self.rel_l2:
            shares.append(_share(self.rel_l2, found.rel_l2))
        if self.agreement and found.top1 is not None:
            changed = 1 - found.top1
            if 0 < found.samples < FEWEST:  # one of them would be a large share
                changed = found.expected
            shares.append(_share(1 - self.agreement + 1e-12, changed))
        return min(shares)


def _share(allowed: float, found: float) -> float:
    if found <= allowed:
        return math.inf
    return allowed / found if math.isfinite(found) else 0.0


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
        sums, margins = Differences(), Margins()
        for run, found in enumerate(self._outputs(weights)):
            dense = {name: self._store.get(run, name)[0] for name in found}
            sums.add(dense, found)
            margins.add(dense, found)
        results = sums.results()
        one = results[0] if len(results) == 1 and len(results[0].shape) >= 2 else None
        top1 = one.top1_agreement if one else None
        return Agreement(
            rel_l2=mean_rel_l2(results),
            top1=top1,
            expected=margins.expected,
            samples=margins.rows,
            gap=gap_finding(results),
        )

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
