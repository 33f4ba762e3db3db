"""Activations shown to observers, by running the model on samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import Session, activations

__all__ = ["Observation", "Observer", "doublings", "largest_magnitudes"]

RUN_BYTES = 96 << 20
"""Activations that one run may hold. A run gets fewer rows, and where a single row holds more, the
activations are observed in several rounds over the data."""


class Observer(Protocol):
    def observe(self, array: np.ndarray, /) -> None: ...


class Observation:
    """The activations `names` of the main graph over all samples; names of graph inputs give what
    is fed. One run of at most about RUN_BYTES is held at a time, however many samples there are.

    Raises: InputError O24-016, O24-030 to O24-033.
    """

    def __init__(self, model: Model, names: Sequence[str], data: Calibration) -> None:
        self._model = model
        self._fed = {value.name for value in model.proto.graph.input}
        single = data.with_units_per_run(1)
        self._session = self._open(names)
        first = next(iter(single.batches(model)))
        sizes = {name: array.nbytes for name, array in self._values(names, first).items()}
        total = sum(sizes.values())
        rows = min(data.units_per_run, RUN_BYTES // max(1, total))
        self.data = data.with_units_per_run(max(1, rows))
        self.rounds = [list(names)] if total <= RUN_BYTES else _grouped(sizes)
        if len(self.rounds) > 1:
            self._session = None

    @property
    def runs(self) -> int:
        """How many arrays an observer is shown of each activation."""
        return self.data.runs

    def runs_of(self, part: Calibration) -> int:
        """How many arrays an observer is shown of these samples."""
        return part.with_units_per_run(self.data.units_per_run).runs

    def show(
        self,
        observers: Mapping[str, Sequence[Observer]],
        progress: Callable[..., Iterator[Any]],
        label: str = "calibrate",
        part: Calibration | None = None,
    ) -> None:
        """Every array of each activation to its observers, in the order of the samples.

        progress: as `Context.progress`. part: these of the samples, all where None.
        """
        data = self.data if part is None else part.with_units_per_run(self.data.units_per_run)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for i, names in enumerate(self.rounds, 1):
                wanted = [name for name in names if observers.get(name)]
                if not wanted:
                    continue
                if len(self.rounds) > 1:
                    self._session = self._open(wanted)
                several = f"{label} {i}/{len(self.rounds)}" if len(self.rounds) > 1 else label
                batches = data.batches(self._model)
                for feeds in progress(batches, several, total=data.runs):
                    values = self._values(wanted, feeds)
                    # Each observer works in one thread at a time; numpy leaves the lock.
                    jobs = [
                        pool.submit(observer.observe, values[name])
                        for name in wanted
                        for observer in observers[name]
                    ]
                    for job in jobs:
                        job.result()

    def _open(self, names: Sequence[str]) -> Session | None:
        computed = [name for name in names if name not in self._fed]
        return Session(self._model, computed, fast=True) if computed else None

    def _values(
        self, names: Sequence[str], feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        found = self._session.run(feeds) if self._session else {}
        return {name: found[name] if name in found else feeds[name] for name in names}


def doublings(data: Calibration, first: int) -> Iterator[Calibration]:
    """The samples in parts, each spread evenly over what is left: about `first` of them, then as
    many again as there were so far, and so on."""
    seen, rest = 0, data
    while True:
        wanted = max(seen, first)
        if len(rest) <= wanted:
            yield rest
            return
        part, left = rest.split(wanted / len(rest))
        yield part
        if left is part:  # a single run
            return
        seen, rest = seen + len(part), left


def _grouped(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in order, in groups of at most RUN_BYTES; a larger one is a group of its own."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if size > left:
            groups.append([])
            left = RUN_BYTES
        groups[-1].append(name)
        left -= size
    return groups


def largest_magnitudes(model: Model, names: Sequence[str], data: Calibration) -> dict[str, float]:
    """The largest magnitude of each activation over the data; infinity where one was NaN.

    Raises: InputError O24-016, O24-030 to O24-033.
    """
    largest = dict.fromkeys(names, 0.0)
    for values in activations(model, names, data.batches(model)):
        for name, array in values.items():
            magnitude = np.abs(array).max(initial=0.0)
            largest[name] = max(largest[name], float(np.nan_to_num(magnitude, nan=np.inf)))
    return largest
