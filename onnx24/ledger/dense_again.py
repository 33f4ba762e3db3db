"""The dense values of a 2:4 weight, in the form in which a compiled model stores it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.product_rows import as_rows, from_rows, has_alpha
from onnx24.analysis.weight_uses import WeightUse, WeightUses, consumer_view, stored_values
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.dense import DenseLayer, KeptDense

__all__ = ["Edit", "FromModel", "FromWorkDir", "NotReturned", "Origin", "apply", "dense_again"]

_CORRELATION = 0.7
"""Of survivors with their dense values: 0.92 to 1 as solved, at most 0.07 in another order of
channels. Source: cnn and vit of the fixtures, all methods and qualities of prune24."""
_MOST_OUTPUTS = (0.75, 1.6)
"""Norm of an output's survivors over that of their dense values, for eight of ten outputs: 1.0 to
1.4 as solved."""
_ANY_CHANNEL = (0.6, 2.8)
"""The same for every input and output but weak ones: 0.85 to 2.4 as solved."""
_WEAK = 0.1
"""Channels below this share of the largest norm."""


class NotReturned(Exception):
    """Why a weight can't get its dense values back, in words."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One constant that changes. `is_bias`: it goes back with a weight."""

    key: ValueKey
    values: np.ndarray
    is_bias: bool = False


@dataclass(frozen=True, eq=False)
class Place:
    """A weight of the compiled model: its product, and the rows that this sees [outputs and
    positions, K]."""

    model: Model
    uses: WeightUses
    key: ValueKey
    use: WeightUse
    rows: np.ndarray


class Origin(Protocol):
    """Where dense values are found."""

    def layers(self, place: Place) -> list[DenseLayer]:
        """All that fit, the best first; at least one. Raises: NotReturned."""
        ...

    def biases(self, place: Place, layer: DenseLayer) -> list[Edit]:
        """What goes back with the weight. Raises: NotReturned."""
        ...


def dense_again(
    model: Model, uses: WeightUses, key: ValueKey, origins: Sequence[Origin]
) -> list[Edit]:
    """What gives the weight, and the bias that moved with it, the dense values. The first origin
    that has them is taken. Raises: NotReturned, with the reason of the last."""
    use = _product(uses, key)
    if use is None:
        raise NotReturned("it is no product's weight")
    stored = uses.read(model, key)
    view = consumer_view(stored, use)
    place = Place(model, uses, key, use, as_rows(view, use))
    refusal = NotReturned("there are no dense values to take")
    for origin in origins:
        try:
            layer, biases = _choose(origin, place)
            if layer.op != use.op and layer.has_alpha:
                raise NotReturned("a Gemm's alpha went into its values; prune with it excluded")
            try:
                values = from_rows(layer.rows, use, view.shape)
            except ValueError as err:
                raise NotReturned(f"its dense form does not fit: {err}") from err
        except NotReturned as err:
            refusal = err
            continue
        weight = Edit(key, stored_values(values.astype(view.dtype), use, stored))
        return [weight, *biases]
    raise refusal


def _choose(origin: Origin, place: Place) -> tuple[DenseLayer, list[Edit]]:
    """The first layer whose bias is found as well."""
    refusal = NotReturned("it has no dense values")
    for layer in origin.layers(place):
        try:
            return layer, origin.biases(place, layer)
        except NotReturned as err:
            refusal = err
    raise refusal


def apply(model: Model, uses: WeightUses, edits: Sequence[Edit]) -> None:
    """Write the values, and take the weights off the record of 2:4."""
    for edit in edits:
        if edit.is_bias:
            model.weights.replace(edit.key, edit.values)
        else:
            uses.replace(model, edit.key, edit.values)
            model.claims.discard(edit.key)


@dataclass(frozen=True)
class FromWorkDir:
    """What prune24 kept."""

    kept: KeptDense

    def layers(self, place: Place) -> list[DenseLayer]:
        found = self.kept.find(place.key.name, place.rows)
        if not found:
            raise NotReturned("the work dir has no dense values that this weight was pruned from")
        rows = found[0].rows
        if any(not np.array_equal(layer.rows, rows) for layer in found[1:]):
            raise NotReturned("the work dir has several dense weights that it may come from")
        return found

    def biases(self, place: Place, layer: DenseLayer) -> list[Edit]:
        if layer.bias is None or layer.bias_moved is None:
            return []
        for key in _bias_keys(place.model, place.uses, place.key):
            now = place.model.weights[key]
            if now.size == layer.bias_moved.size and _is_close(now.reshape(-1), layer.bias_moved):
                return [Edit(key, layer.bias.reshape(now.shape).astype(now.dtype), is_bias=True)]
        raise NotReturned("pruning moved its bias, which is not found any more")


class FromModel:
    """The model before it was pruned. Its weights fit where neither scale nor order of channels
    changed since."""

    def __init__(self, dense: Model) -> None:
        self._dense = dense
        self._uses = AnalysisCache().get(dense, WeightUses)

    def layers(self, place: Place) -> list[DenseLayer]:
        key, use = self._source(place)
        rows = as_rows(consumer_view(self._uses.read(self._dense, key), use), use)
        if rows.shape != place.rows.shape:
            raise NotReturned(
                f"its rows are {list(rows.shape)} in the dense model and "
                f"{list(place.rows.shape)} here; prune with it excluded"
            )
        if change := _changed(place.rows, rows):
            raise NotReturned(
                f"{change} since the dense model; compile with --work-dir, and give that to gate"
            )
        return [DenseLayer(rows=rows, op=use.op, has_alpha=has_alpha(use, place.use))]

    def _source(self, place: Place) -> tuple[ValueKey, WeightUse]:
        """The weight of that name, else the one whose name a later pass put an ending to."""
        name = place.key.name
        for key in (place.key, ValueKey("", name), *self._earlier(name)):
            if key not in self._uses.tensors:
                continue
            use = _product(self._uses, key)
            if use is None:
                raise NotReturned("it is no product's weight in the dense model")
            return key, use
        raise NotReturned("the dense model has no weight of that name")

    def _earlier(self, name: str) -> list[ValueKey]:
        """Weights of products whose name is the beginning of this one, the longest first."""
        found = [
            key
            for key in self._uses.tensors
            if key.name and name.startswith(key.name) and _product(self._uses, key) is not None
        ]
        return sorted(found, key=lambda key: len(key.name), reverse=True)

    def biases(self, place: Place, layer: DenseLayer) -> list[Edit]:
        """Those whose values differ: the constants of the same name, a new one, which was 0."""
        edits = []
        for key in _bias_keys(place.model, place.uses, place.key):
            now = place.model.weights[key]
            was = self._bias(key, place)
            if was is None or was.dtype.kind not in "fV" or was.size != now.size:
                continue
            values = was.reshape(now.shape).astype(now.dtype)
            if not np.array_equal(values, now):
                edits.append(Edit(key, values, is_bias=True))
        return edits

    def _bias(self, key: ValueKey, place: Place) -> np.ndarray | None:
        """What it was in the dense model. prune24 gives a layer that has none `NODE.24.bias`, and
        one that shares its own a copy `NAME.24`."""
        if key in self._dense.weights:
            return self._dense.weights[key]
        if key.name.startswith(f"{place.use.node}.24.bias"):
            return np.zeros(place.model.weights.info(key).shape, np.float32)
        copy = re.fullmatch(r"(.+)\.24(?:\.\d+)?", key.name)
        if copy is None or ValueKey(key.scope, copy[1]) not in self._dense.weights:
            return None
        return self._dense.weights[ValueKey(key.scope, copy[1])]


def _changed(now: np.ndarray, dense: np.ndarray) -> str:
    """What happened to a weight besides pruning, where something did: [outputs, K] both."""
    survivors = np.where(now != 0, dense, 0).astype(np.float64)
    now = now.astype(np.float64)
    total = np.linalg.norm(survivors) * np.linalg.norm(now)
    if not total:
        return ""
    if (survivors * now).sum() / total < _CORRELATION:
        return "its channels were permuted or scaled"
    outputs, inputs = (_ratios(now, survivors, axis) for axis in (1, 0))
    low, high = np.quantile(outputs, [0.1, 0.9])
    if low < _MOST_OUTPUTS[0] or high > _MOST_OUTPUTS[1]:
        return "its outputs were scaled"
    channels = np.concatenate([outputs, inputs])
    if channels.min() < _ANY_CHANNEL[0] or channels.max() > _ANY_CHANNEL[1]:
        return "some of its channels were scaled"
    return ""


def _ratios(now: np.ndarray, was: np.ndarray, axis: int) -> np.ndarray:
    """Norms of the channels that are not weak, now over before."""
    norms = np.linalg.norm(was, axis=axis)
    strong = norms > _WEAK * norms.max()
    return np.linalg.norm(now, axis=axis)[strong] / norms[strong]


def _product(uses: WeightUses, key: ValueKey) -> WeightUse | None:
    if key not in uses.uses:
        return None
    return next((use for use in uses.products(key) if use.k_axis_consumer is not None), None)


def _bias_keys(model: Model, uses: WeightUses, key: ValueKey) -> list[ValueKey]:
    """The bias of each layer of the weight: an input of it, or the constant of an Add behind it."""
    found: dict[ValueKey, None] = {}
    for use in uses.products(key):
        for name, scope in _bias_names(uses, use):
            bias = uses.index.resolve(name, scope)
            if bias is None or bias not in model.weights or bias in model.claims:
                continue
            if model.weights.info(bias).dtype.kind in "fV":
                found[bias] = None
    return list(found)


def _bias_names(uses: WeightUses, use: WeightUse) -> Iterator[tuple[str, str]]:
    if use.consumer is None:
        return
    node, scope = use.consumer.proto, use.consumer.scope
    if ops.is_onnx(node, "Conv", "Gemm"):
        yield from ((name, scope) for name in node.input[2:3] if name)
    for reader in uses.index.consumers(node.output[0], scope):
        if ops.is_onnx(reader.site, "Add"):
            yield from ((name, reader.site.scope) for name in reader.site.proto.input)


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    """To the rounding of 16 bits."""
    b = b.astype(np.float64)
    return bool(np.allclose(a.astype(np.float64), b, rtol=0.01, atol=0.01 * np.abs(b).max()))
