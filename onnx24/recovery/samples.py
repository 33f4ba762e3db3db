"""Training and held-out samples, in memory, in an order that a seed and a step decide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration, Feeds
from onnx24.runtime.split import held_out

__all__ = ["Samples"]

_EVALUATED_ROWS = 64


class Samples:
    """All samples of DATA. `train`, `held_out`: indices, as runtime.split divides them, so that
    nothing that an earlier step fitted judges; the same where there are too few to divide. Rows of
    a dynamic batch are fed `batch` at once, other samples one by one.

    labels: one integer for each sample, in the order of DATA. judge: other samples of the same
    kind, which are held out instead; all of DATA are trained on then.
    Raises: InputError as `Calibration.batches`; O24-032 where the labels are not one a sample.
    """

    def __init__(
        self,
        data: Calibration,
        model: Model,
        labels: np.ndarray | None = None,
        judge: Calibration | None = None,
    ) -> None:
        parts = [list(each.batches(model)) for each in (data, judge) if each is not None]
        runs = [run for part in parts for run in part]
        self._stacked: Feeds | None = None
        self._runs: list[Feeds] = runs
        counts = [len(part) for part in parts]
        if data.units_per_run > 1:
            self._stacked = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
            first = next(iter(runs[0]))
            counts = [sum(len(run[first]) for run in part) for part in parts]
        count = counts[0]
        if labels is not None and labels.shape != (count,):
            raise InputError.of(
                "O24-032", f"labels: expected {count}, one a sample, found {list(labels.shape)}"
            )
        self.labels = None if labels is None else labels.astype(np.int64)
        every = np.arange(count)
        if judge is not None:
            self.is_divided = True
            self.train, self.held_out = every, np.arange(count, count + counts[1])
            return
        apart = held_out(data.units, len(data))
        self.is_divided = apart is not None
        self.train = every if apart is None else every[~apart]
        self.held_out = every if apart is None else every[apart]

    def batch(self, step: int, size: int, seed: int) -> np.ndarray:
        """The samples of a step: one permutation after another, a new one each epoch."""
        count = len(self.train)
        size = min(size, count)
        places = np.arange(step * size, (step + 1) * size)
        chosen = np.empty(size, np.int64)
        for epoch in np.unique(places // count):
            inside = places // count == epoch
            order = np.random.default_rng([seed, int(epoch)]).permutation(self.train)
            chosen[inside] = order[places[inside] % count]
        return chosen

    def feeds(self, indices: np.ndarray, at_once: int = 0) -> Iterator[tuple[Feeds, np.ndarray]]:
        """What to run for these samples, and which of them each run holds: all of them, or
        `at_once` [rows], where the batch is dynamic."""
        if self._stacked is not None:
            size = at_once or max(len(indices), 1)
            for start in range(0, len(indices), size):
                chosen = indices[start : start + size]
                yield {name: rows[chosen] for name, rows in self._stacked.items()}, chosen
            return
        for i in indices:
            yield self._runs[int(i)], np.array([i])

    def held_out_feeds(self) -> Iterator[tuple[Feeds, np.ndarray]]:
        for start in range(0, len(self.held_out), _EVALUATED_ROWS):
            yield from self.feeds(self.held_out[start : start + _EVALUATED_ROWS])
