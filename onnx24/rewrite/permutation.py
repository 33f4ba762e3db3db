"""Channels put in the order in which 2:4 pruning keeps most, in the constants alone.

No node changes and nothing is computed at run time: a group of coupled channels
(`analysis.coupling`) is permuted in every constant that has them, so the graph computes the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx24.analysis.axes import Slot
from onnx24.analysis.coupling import Axis, Consumer, Coupling, Group
from onnx24.analysis.weight_uses import WeightUse, WeightUses, consumer_view
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.sparsity.masks import is_24_by_stride
from onnx24.sparsity.metrics import count_zeros
from onnx24.sparsity.permutation import kept, most_rows, search

__all__ = ["Permuted", "permute_channels", "reorder"]

LEAST_GAIN = 1e-3
"""A gain below this is one of rounding and of ties: an order found before would be replaced by
another that is as good."""
_CHUNK = 1 << 22
_ROUNDS, _EMPHASIS = 4, 3.0
"""What is best for all weights along the channels on average may be bad for one, the head of a
classifier, say: it then counts so many times as much in another search."""
_TOLERATED = 2e-3


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """What became of one group. `code`: O24-140 where it was permuted, why not otherwise.

    weights: the chosen weights whose groups of four lie along the channels. kept_before,
    kept_after: the share of their saliency that 2:4 keeps, on average over the weights, none of
    which may lose; nan where the group was refused before it was measured. gain: by how much the
    relative error falls, where the error is the root of the share that is lost. digest: of the
    permutation.
    """

    group: Group
    code: str
    reason: str
    weights: tuple[ValueKey, ...]
    kept_before: float = math.nan
    kept_after: float = math.nan
    gain: float = 0.0
    digest: str = ""

    @property
    def done(self) -> bool:
        return self.code == "O24-140"

    def facts(self) -> dict[str, Any]:
        """For the report."""
        group = self.group
        found: dict[str, Any] = {
            "channels": group.size,
            "consumers": [key.name for key in self.weights],
            "members": len(group.members),
        }
        if group.copies > 1:
            found["copies"] = group.copies
        if not math.isnan(self.kept_before):
            found |= {"kept_before": self.kept_before, "kept_after": self.kept_after}
            found["gain"] = self.gain
        if self.digest:
            found["permutation"] = self.digest
        return found

    def note(self) -> Diagnostic:
        """One line for a pass that permutes on the way to something else."""
        scope, name = self.weights[0]
        weights = ", ".join(key.name for key in self.weights)
        message = f"{self.group.size} channels of {weights}"
        facts = {"gain": self.gain, "permutation": self.digest}
        return diagnostic(self.code, message, scope=scope, tensor=name, facts=facts)


def permute_channels(
    model: Model,
    found: WeightUses,
    coupling: Coupling,
    weights: Collection[ValueKey],
    norms: Mapping[str, np.ndarray] | None = None,
    admit: Callable[[str], bool] = lambda site: True,
    *,
    min_gain: float = LEAST_GAIN,
    progress: Callable[[Iterable[Group], int], Iterable[Group]] = lambda groups, total: groups,
) -> list[Permuted]:
    """Permute every free group of channels in which that pays, for the weights that are to be
    pruned. Structure, names, shapes and dtypes stay; with the tensors of Constant nodes, it is the
    nodes' attributes that change.

    found, coupling: of the model as it is. weights: those that will be pruned; others are permuted
    with them, and have no say. norms: the L2 norms of the channels that a weight is multiplied
    with, `[K]`, by the name of the value in the main graph; where there are none, only |w| counts.
    admit: asked before each group with its name. Groups that hold none of the weights are left
    out of the answer.
    """
    # Weights that are 2:4 stay so: a group along whose channels one lies must not be permuted.
    pruned = _Pruned(model, found)
    measure = _Measure(model, found, coupling, frozenset(weights), norms or {})
    perms: dict[int, np.ndarray] = {}
    out: list[Permuted] = []
    groups = [g for g in coupling.groups.values() if measure.searchable(g)]
    for group in progress(groups, len(groups)):
        consumers = measure.consumers(group)
        keys = tuple(dict.fromkeys(c.key for c in consumers))
        if group.refusals:
            first = group.refusals[0]
            where = f" [{first.site.name} ({first.site.proto.op_type})]" if first.site else ""
            out.append(_left(group, keys, first.code, f"{first.reason}{where}"))
        elif (key := pruned.first(group)) is not None:
            reason = f"{key.name!r} is 2:4 along these channels already"
            out.append(_left(group, keys, "O24-143", reason))
        else:
            result, perm = _order(group, keys, measure, perms, min_gain)
            if perm is not None and not admit(group.name):
                result, perm = _left(group, keys, "O24-145", "the limit of sites is reached"), None
            if perm is not None:
                perms[group.number] = perm
            out.append(result)
    reorder(model, found, coupling, perms)
    return out


def _left(group: Group, keys: tuple[ValueKey, ...], code: str, reason: str) -> Permuted:
    return Permuted(group=group, code=code, reason=reason, weights=keys)


def _order(
    group: Group,
    keys: tuple[ValueKey, ...],
    measure: _Measure,
    perms: Mapping[int, np.ndarray],
    min_gain: float,
) -> tuple[Permuted, np.ndarray | None]:
    """The group's permutation, `[size]` or `[copies, size]`; None where it does not pay."""
    first = measure.kept(keys, perms)
    if not all(math.isfinite(share) for share in first):
        return _left(group, keys, "O24-144", "a weight or a norm is not finite"), None
    importance = dict.fromkeys(keys, 1.0)
    for _ in range(_ROUNDS):
        found = [search(matrix) for matrix in measure.matrices(group, importance)]
        perm = found[0] if group.copies == 1 else np.stack(found)
        then = measure.kept(keys, {**perms, group.number: perm})
        worse = [k for k, x, y in zip(keys, first, then, strict=True) if _is_worse(x, y)]
        if not worse:
            break
        importance |= {key: importance[key] * _EMPHASIS for key in worse}
    before, after = sum(first) / len(first), sum(then) / len(then)
    gain = 1 - math.sqrt(max(1 - after, 0) / (1 - before)) if before < 1 else 0.0
    if worse:
        return _left(group, keys, "O24-144", f"{worse[0].name!r} would lose more than now"), None
    done = Permuted(
        group=group,
        code="O24-144",
        reason=f"a permutation would take {max(gain, 0):.2%} off the error",
        weights=keys,
        kept_before=before,
        kept_after=after,
        gain=gain,
    )
    if gain < max(min_gain, LEAST_GAIN):
        return done, None
    reason = f"kept {before:.2%} → {after:.2%} of the saliency, {gain:.1%} less error"
    digest = hashlib.sha256(perm.astype("<i8").tobytes()).hexdigest()[:16]
    return replace(done, code="O24-140", reason=reason, digest=digest), perm


def _is_worse(before: float, after: float) -> bool:
    """Whether a weight's error, the root of what is not kept, would rise by more than rounding."""
    return math.sqrt(max(1 - after, 0)) > math.sqrt(max(1 - before, 0)) * (1 + _TOLERATED) + 1e-9


class _Pruned:
    """Which weights are 2:4, recorded or not; each is looked at once."""

    def __init__(self, model: Model, found: WeightUses) -> None:
        self._model, self._found = model, found
        self._claims = set(model.claims.keys())
        self._known: dict[ValueKey, bool] = {}

    def first(self, group: Group) -> ValueKey | None:
        """A weight of the group that the permutation would take out of 2:4."""
        for consumer in group.consumers:
            factor = consumer.factor
            whole = factor.inner % 4 == 0 and factor.start % 4 == 0
            if not whole and self._is_24(consumer.key, consumer.use):
                return consumer.key
        return None

    def _is_24(self, key: ValueKey, use: WeightUse) -> bool:
        if key in self._claims:
            return True
        if use.k_stride is None:
            return False
        if key not in self._known:
            values = self._found.read(self._model, key)
            # A weight of nothing but zeros, as adapters begin with, stays one in any order.
            self._known[key] = is_24_by_stride(values, use.k_stride) and (
                count_zeros(values) < values.size
            )
        return self._known[key]


class _Measure:
    """The saliency of weights, w² · ‖x‖², a part at a time."""

    def __init__(
        self,
        model: Model,
        found: WeightUses,
        coupling: Coupling,
        weights: frozenset[ValueKey],
        norms: Mapping[str, np.ndarray],
    ) -> None:
        self._model, self._found, self._coupling = model, found, coupling
        self._weights, self._norms = weights, norms
        self._uses: dict[ValueKey, tuple[WeightUse, Axis]] = {}
        for group in coupling.groups.values():
            for consumer in self.consumers(group):
                self._uses.setdefault(consumer.key, (consumer.use, consumer.k_axis))
        self._totals: dict[ValueKey, float] = {}
        self._units: dict[ValueKey, np.float32] = {}

    def consumers(self, group: Group) -> list[Consumer]:
        return [c for c in group.consumers if c.key in self._weights and c.use.K % 4 == 0]

    def searchable(self, group: Group) -> bool:
        return group.size >= 8 and any(c.searchable for c in self.consumers(group))

    def kept(self, keys: Sequence[ValueKey], perms: Mapping[int, np.ndarray]) -> list[float]:
        """The share of each weight's saliency that 2:4 keeps; nan where it is not finite."""
        shares = []
        for key in keys:
            axis = self._uses[key][1]
            order = axis.order(perms)
            total = value = 0.0
            for part in self._parts(key):
                total += float(part.sum(dtype=np.float64))
                value += kept(part, order)
            self._totals[key] = total
            shares.append(value / total if total else 1.0)
        return shares

    def matrices(self, group: Group, importance: Mapping[ValueKey, float]) -> list[np.ndarray]:
        """What the group's permutation, or each of its copies, is searched on: `[R, size]`, the
        rows of all weights, the total of each its importance. `kept` comes first."""
        consumers = [c for c in self.consumers(group) if c.searchable]
        most = max(1, most_rows(group.size) // len(consumers))
        pieces: list[list[np.ndarray]] = [[] for _ in range(group.copies)]
        for consumer in consumers:
            factor, total = consumer.factor, self._totals[consumer.key]
            if not total:
                continue
            rows = max(1, most * group.copies // factor.outer)
            part = self._sample(consumer.key, rows)[:, factor.start : factor.start + factor.length]
            heads = part.reshape(len(part), factor.outer, factor.size)
            scale = importance[consumer.key] / float(part.sum(dtype=np.float64) or 1.0)
            for copy in range(group.copies):
                own = heads[:, copy :: group.copies].reshape(-1, factor.size)
                pieces[copy].append(own * np.float32(scale * group.size))
        empty = np.zeros((0, group.size), np.float32)
        return [np.concatenate(piece) if piece else empty for piece in pieces]

    def _rows(self, key: ValueKey) -> np.ndarray:
        """`[R..., K]`: the values that the consumer sees, K last; a view where that is possible."""
        use, _ = self._uses[key]
        assert use.k_axis_consumer is not None
        values = consumer_view(self._found.read(self._model, key), use)
        return np.moveaxis(values, use.k_axis_consumer, -1)

    def _parts(self, key: ValueKey) -> Iterable[np.ndarray]:
        for rows in self._chunks(key):
            yield self._saliency(key, rows)

    def _chunks(self, key: ValueKey) -> Iterable[np.ndarray]:
        rows = self._rows(key)
        if rows.ndim == 1:
            rows = rows[None]
        step = max(1, _CHUNK // max(1, math.prod(rows.shape[1:])))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def _unit(self, key: ValueKey) -> np.float32:
        """A power of two that brings the weight's values to 1 or below, so that squares neither
        overflow nor vanish; only ratios count."""
        if key not in self._units:
            parts = (np.abs(rows.astype(np.float32)) for rows in self._chunks(key))
            largest = max(float(part.max(initial=0.0)) for part in parts)
            finite = math.isfinite(largest) and largest > 0
            self._units[key] = np.float32(2.0 ** -math.frexp(largest)[1] if finite else 1.0)
        return self._units[key]

    def _sample(self, key: ValueKey, count: int) -> np.ndarray:
        """Evenly spaced rows, about `count` of them."""
        rows = self._rows(key)
        if rows.ndim == 1:
            rows = rows[None]
        inner = math.prod(rows.shape[1:-1])
        first = max(1, count // max(1, inner))
        if len(rows) > first:
            rows = rows[np.arange(first) * len(rows) // first]
        found = self._saliency(key, rows)
        return found if len(found) <= count else found[np.arange(count) * len(found) // count]

    def _saliency(self, key: ValueKey, rows: np.ndarray) -> np.ndarray:
        """`[R, K]`, float32."""
        values = rows.astype(np.float32).reshape(-1, rows.shape[-1]) * self._unit(key)
        norm = self._norm(key)
        if norm is not None:
            values *= (norm / (norm.max() or 1.0)).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.square(values, out=values)

    def _norm(self, key: ValueKey) -> np.ndarray | None:
        use, axis = self._uses[key]
        norm = self._norms.get(use.data) if use.scope == "" else None
        return norm if norm is not None and norm.shape == (axis.size,) else None


def reorder(
    model: Model, found: WeightUses, coupling: Coupling, perms: Mapping[int, np.ndarray]
) -> None:
    """Permute every constant of some groups, along all its axes at once, one constant at a time.

    found, coupling: of the model as it is. perms: by the number of a free group, `[size]`, or
    `[copies, size]` where it has copies: channel i becomes what channel `perm[i]` was.
    """
    by_key: dict[ValueKey, list[int]] = {}
    for slot, axis in coupling.axes.items():
        if any(factor.group in perms for factor in axis.factors):
            by_key.setdefault(slot.key, []).append(slot.axis)
    for key, axes in by_key.items():
        values = found.read(model, key)
        for number in axes:
            order = coupling.axes[Slot(key, number)].order(perms)
            values = np.take(values, order, axis=number)
        _replace(model, found, key, np.ascontiguousarray(values))


def _replace(model: Model, found: WeightUses, key: ValueKey, array: np.ndarray) -> None:
    if key not in found.constants:
        model.weights.replace(key, array)
        return
    # The tensor of a Constant node is an attribute, which is structure.
    tensor = found.tensors[key]
    name = tensor.name
    model.weights.set_values(tensor, array)
    tensor.name = name
    model.touch(Effects.STRUCTURE)
