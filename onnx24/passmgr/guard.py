"""Holds passes to what they say of the outputs (`Pass.numeric`).

Passes that keep the function and follow each other are checked together: the model before the
first and after the last run on the same probes (runtime/probes.py). Only where those differ, the
states between are compared one by one, which names the pass. The manager takes that pass back and
goes on without it.

Not checked, with a note that says so: a model that ONNX Runtime can't run (operators without
kernels, inputs that can't be made up, probes that all give NaN); one whose weights, three times
over, don't fit into the run's memory (`--memory`): the model before, the one after, and a moved
copy; and what follows once the checks have taken `seconds` of CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model, Snapshot
from onnx24.ir.scopes import tensors
from onnx24.ir.weights import payload_bytes
from onnx24.passmgr.base import Context, Pass

if TYPE_CHECKING:
    from onnx24.runtime.agreement import Difference, Layer, Observed
    from onnx24.runtime.data import Calibration

MODES = ("off", "on", "each")

SECONDS = 120.0
"""Default of what the checks of one run may take [s of CPU time]."""


def guard_of(mode: str) -> Guard | None:
    """For one of MODES. Raises: ValueError for another."""
    if mode not in MODES:
        raise ValueError(f"expected one of {', '.join(MODES)}, found {mode!r}")
    return None if mode == "off" else Guard(each=mode == "each")


@dataclass(frozen=True)
class Stage:
    """A pass that has run. `before`: the model's state until then."""

    instance: Pass
    before: Snapshot


@dataclass(frozen=True, kw_only=True)
class Breach:
    """`stage`: position of the pass that broke its word. `feeds`: what shows it."""

    stage: int
    difference: Difference
    layer: Layer | None
    feeds: dict[str, np.ndarray]

    def diagnostic(self, instance: Pass, *, strict: bool) -> Diagnostic:
        layer, difference = self.layer, self.difference
        begins = f"; it begins at value {layer.value!r}" if layer else ""
        goes_on = "" if strict else "; the pass was taken back, the run goes on without it"
        found = diagnostic(
            "O24-902" if strict else "O24-904",
            f"pass {instance.name!r} says that it keeps the outputs ({instance.numeric}), and "
            f"{difference}{begins}{goes_on}",
            node=layer.node if layer else "",
            op=layer.op if layer else "",
            tensor=layer.value if layer else "",
            facts={
                "output": difference.output,
                "kind": difference.kind,
                "error": difference.error,
                "allowed": difference.allowed,
            },
        )
        return replace(found, pass_name=instance.name)


@dataclass
class Guard:
    """Checks of one run. strict: a breach is an error. each: every pass by itself, and of those
    that only stay close, whether what was finite stays finite. data, memory_bytes: the run's where
    None; without any samples, random ones.

    Afterwards: cpu_seconds that the checks took; which passes were checked; why others were
    skipped.
    """

    data: Calibration | None = None
    strict: bool = False
    each: bool = False
    seconds: float = SECONDS
    seed: int = 0
    memory_bytes: int | None = None
    cpu_seconds: float = 0.0
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def begin(self, context: Context) -> None:
        """Take from the run what was not given."""
        self.data = self.data or context.calibration
        self.memory_bytes = self.memory_bytes or context.resources.memory_bytes

    def watches(self, instance: Pass) -> bool:
        return self.each or instance.numeric != "close"

    def ends_before(self, following: Pass | None) -> bool:
        """Whether what is pending must be checked before that pass runs."""
        return self.each or following is None or following.numeric == "close"

    def check(self, stages: Sequence[Stage], model: Model) -> Breach | None:
        """Whether the passes kept their word; `model` is in the state after the last."""
        from onnx24.runtime.agreement import NotComparable, observe

        if not stages or stages[0].before.proto == model.snapshot().proto:
            return None
        names = [stage.instance.name for stage in stages]
        if reason := self._beyond_means(model):
            self._skip(names, reason)
            return None
        with self._clock():
            try:
                before = observe(_state(model, stages[0].before), self.data, seed=self.seed)
                found = self._search(before, stages, model)
            except NotComparable as err:
                self._skip(names, str(err))
                return None
        self.checked += names
        return found

    def to_json(self) -> dict[str, object]:
        return {
            "cpu_seconds": round(self.cpu_seconds, 3),
            "checked": list(self.checked),
            "skipped": dict(self.skipped),
        }

    def notes(self) -> Iterator[Diagnostic]:
        """What was not checked and why, one for each reason."""
        for reason in dict.fromkeys(self.skipped.values()):
            names = ", ".join(name for name, why in self.skipped.items() if why == reason)
            yield diagnostic("O24-905", f"{names}: not checked whether outputs are kept: {reason}")

    def _search(self, before: Observed, stages: Sequence[Stage], model: Model) -> Breach | None:
        from onnx24.runtime.agreement import NotComparable, judge, observed_again

        words = {stage.instance.numeric for stage in stages}
        verdict = judge(before, model, words.pop() if len(words) == 1 else "rounding")
        for name in (stage.instance.name for stage in stages):
            for note in verdict.notes:
                self.skipped.setdefault(name, note)
        if verdict.difference is None:
            return None
        for i, stage in enumerate(stages):
            after = _state(model, stages[i + 1].before) if i + 1 < len(stages) else model
            if len(stages) > 1:
                try:
                    verdict = judge(before, after, stage.instance.numeric)
                except NotComparable:  # then the next pass's result is held against this state
                    continue
            if verdict.difference is not None:
                return self._breach(before, after, i, stage, verdict.difference)
            before = observed_again(before, after)
        return None  # each kept its word; only the sum of what they round went further

    def _breach(
        self, before: Observed, after: Model, at: int, stage: Stage, difference: Difference
    ) -> Breach:
        from onnx24.runtime.agreement import first_layer

        layer = None
        if stage.instance.numeric != "close" and difference.kind != "refused":
            layer = first_layer(before, after, stage.instance.numeric, difference)
        feeds = before.feeds[difference.probe]
        return Breach(stage=at, difference=difference, layer=layer, feeds=dict(feeds))

    def _beyond_means(self, model: Model) -> str:
        size = sum(payload_bytes(tensor) for tensor in tensors(model.proto))
        if self.memory_bytes is not None and 3 * size > self.memory_bytes:
            return (
                f"three copies of its {size / 2**20:.0f} MiB of weights don't fit into "
                f"{self.memory_bytes / 2**20:.0f} MiB (--memory)"
            )
        if self.cpu_seconds > self.seconds:
            return f"the checks before have taken {self.cpu_seconds:.0f} s of CPU time"
        return ""

    def _skip(self, names: Sequence[str], reason: str) -> None:
        self.skipped |= dict.fromkeys(names, reason)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        begin = time.process_time()
        try:
            yield
        finally:
            self.cpu_seconds += time.process_time() - begin


def _state(model: Model, snapshot: Snapshot) -> Model:
    return model.variant(ModelProto.FromString(snapshot.proto))
