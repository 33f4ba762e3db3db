"""Which weights a user's options leave to be pruned, of those that could be 2:4."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.keys import ValueKey

__all__ = ["Conflicting", "Small", "Tied", "WeightChoice"]

Verdicts = Mapping[ValueKey, Verdict]


class Tied(str, enum.Enum):
    REFUSE = "refuse"
    PRUNE = "prune"
    SPLIT = "split"


class Conflicting(str, enum.Enum):
    REFUSE = "refuse"
    SPLIT = "split"


class Small(str, enum.Enum):
    PRUNE = "prune"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class WeightChoice:
    """The options, as fields that a pass inherits. All here is a function of verdicts."""

    include: Annotated[
        tuple[str, ...], "prune only weights whose name, or whose node's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out weights whose name, or whose node's, matches a pattern"
    ] = ()
    tied: Annotated[Tied, "weights that something else than a product reads, too"] = Tied.REFUSE
    conflicting: Annotated[Conflicting, "weights that products reduce along different axes"] = (
        Conflicting.REFUSE
    )
    min_elements: Annotated[int, "leave out weights with fewer elements"] = 0
    small: Annotated[Small, "weights below the channels from which the target is said to gain"] = (
        Small.PRUNE
    )
    skip_first: Annotated[int, "leave out so many eligible weights from the front"] = 0
    skip_last: Annotated[int, "leave out so many eligible weights from the end"] = 0

    def __post_init__(self) -> None:
        if min(self.skip_first, self.skip_last, self.min_elements) < 0:
            raise ValueError("skip-first, skip-last and min-elements are counts: 0 or more")

    def check_patterns(self, owner: str, verdicts: Verdicts) -> None:
        """Raises: InputError O24-023 for a pattern that means no weight."""
        names = [name for verdict in verdicts.values() for name in verdict.names]
        self._patterns.check(owner, names, "weight and no node that reads one")

    def chosen(self, verdicts: Verdicts) -> list[Verdict]:
        """Those that will be pruned, but for the ends."""
        return [chosen for v in verdicts.values() if (chosen := self._judge(v)).eligible]

    def to_copy(self, verdicts: Verdicts) -> list[Verdict]:
        """Those that a copy would make eligible, that may be copied, and that would be pruned."""
        return [
            verdict
            for verdict in verdicts.values()
            if (verdict.tied and self.tied is Tied.SPLIT)
            or (verdict.conflicting and self.conflicting is Conflicting.SPLIT)
            if self._judge(replace(verdict, eligible=True)).eligible
        ]

    def choose(
        self, verdicts: Verdicts, found: WeightUses, origins: Mapping[ValueKey, ValueKey]
    ) -> dict[ValueKey, Verdict]:
        """Every weight's verdict after the options.

        origins: copy → the weight it was made of, by whose name it is chosen as well.
        """
        judged = {key: self._judge(v, origins.get(key)) for key, v in verdicts.items()}
        return self._without_ends(judged, found)

    @property
    def _patterns(self) -> Selection:
        return Selection(self.include, self.exclude)

    def _judge(self, verdict: Verdict, origin: ValueKey | None = None) -> Verdict:
        if verdict.tied and self.tied is Tied.PRUNE:
            verdict = verdict.ruled("O24-101", verdict.reason, eligible=True)
        if not verdict.eligible:
            return verdict
        names = verdict.names + ([origin.name, str(origin)] if origin else [])
        if reason := self._patterns.objection(names):
            return verdict.ruled("O24-120", reason)
        elements = verdict.facts["elements"]
        if elements < self.min_elements:
            reason = f"{elements:,} elements, min-elements={self.min_elements}"
            return verdict.ruled("O24-114", reason)
        if self.small is Small.SKIP and "small" in verdict.facts:
            return verdict.ruled("O24-114", str(verdict.facts["small"]))
        return verdict

    def _without_ends(
        self, verdicts: dict[ValueKey, Verdict], found: WeightUses
    ) -> dict[ValueKey, Verdict]:
        """Without the eligible weights at both ends, in order of their first reader."""
        first, last = self.skip_first, self.skip_last
        if not first and not last:
            return verdicts
        order = {id(site.proto): i for i, site in enumerate(found.index.nodes)}
        eligible = sorted(
            (v for v in verdicts.values() if v.eligible),
            key=lambda v: min(order[id(use.consumer.proto)] for use in v.uses if use.consumer),
        )
        ends = {v.key: f"skip-first={first}" for v in eligible[:first]}
        ends |= {v.key: f"skip-last={last}" for v in eligible[max(len(eligible) - last, 0) :]}
        return {
            key: verdict.ruled("O24-120", ends[key]) if key in ends else verdict
            for key, verdict in verdicts.items()
        }
