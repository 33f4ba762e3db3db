"""Where one channel of an activation can be made smaller, and the weights behind it larger, so that
the model computes the same.

A *link* is an activation that nothing but products with constant weights reads, and that comes from
something whose channels can be scaled: a normalization's scale and bias, a Mul by a constant, a
product's weight and bias; through operators that a positive factor passes (Relu, LeakyRelu,
PRelu, MaxPool). Dividing channel j there by s_j and multiplying input channel j of every reader's
weight by s_j changes nothing, and a zero stays a zero, so that a 2:4 pattern survives.

*Source:* Nagel and others, data-free quantization (1906.04721, cross-layer equalization); Xiao and
others, SmoothQuant (2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from onnx24.analysis.placement import Flow, Layer, find_layers
from onnx24.analysis.weight_uses import WeightUse, WeightUses, consumer_view, stored_values
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

__all__ = ["Link", "NoLink", "Part", "find_links"]

Kind = Literal["normalization", "multiplication", "product"]

_HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu"})
"""f(x / s) = f(x) / s for s > 0, channel by channel."""
_NORMALIZATIONS = {
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
}
"""Operator → the inputs that hold its scale and its bias."""


@dataclass(frozen=True, eq=False)
class Part:
    """A constant that takes part. axis: of the channels in the constant as `use` sees it (as it is
    stored, where None). groups: of a convolution whose weight is multiplied: its axis counts the
    input channels of one group, and axis 0 holds the groups one after another."""

    key: ValueKey
    axis: int
    use: WeightUse | None = None
    groups: int = 1

    def read(self, found: WeightUses, model: Model) -> np.ndarray:
        stored = found.read(model, self.key)
        return stored if self.use is None else consumer_view(stored, self.use)

    def peaks(self, found: WeightUses, model: Model) -> np.ndarray:
        """The largest magnitude of each channel: [C] float32."""
        values = np.abs(self._grouped(self.read(found, model).astype(np.float32)))
        axis = self.axis % (values.ndim - 1) + 1
        kept = (0, axis)
        others = tuple(a for a in range(values.ndim) if a not in kept)
        return values.max(axis=others).reshape(-1)

    def scaled(self, found: WeightUses, model: Model, factors: np.ndarray) -> np.ndarray:
        """What to store so that channel j is multiplied by factors[j], a power of two. Raises:
        ValueError where a value would overflow or lose bits."""
        stored = found.read(model, self.key)
        values = self.read(found, model)
        wide = np.float64 if values.dtype == np.float64 else np.float32
        grouped = self._grouped(values.astype(wide))
        shape = [1] * grouped.ndim
        shape[0] = self.groups
        shape[self.axis % (grouped.ndim - 1) + 1] = -1
        by = factors.astype(wide).reshape(shape)
        with np.errstate(over="ignore", under="ignore"):
            new = (grouped * by).reshape(values.shape).astype(values.dtype)
            back = self._grouped(new.astype(wide)) / by
        if not np.array_equal(back, grouped):
            raise ValueError(f"{self.key} would leave the range of {values.dtype}")
        return new if self.use is None else stored_values(new, self.use, stored)

    def _grouped(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.groups, values.shape[0] // self.groups, *values.shape[1:])


@dataclass(eq=False)
class Link:
    """value: the activation; axis: of its channels; above: what is divided, the nearest first;
    below: the weights that are multiplied. kind: what the scale is absorbed in, `site`."""

    value: str
    axis: int
    channels: int
    kind: Kind
    site: NodeSite
    above: list[Part]
    below: list[Part]
    readers: list[Layer]

    @property
    def name(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class NoLink:
    """Layers whose activation cannot be scaled, and why."""

    value: str
    readers: list[Layer]
    reason: str


class _No(Exception):
    """Why there is no link."""


def find_links(flow: Flow) -> tuple[list[Link], list[NoLink]]:
    """Every activation of the main graph that layers read, in document order."""
    by_value: dict[str, list[Layer]] = {}
    layers = [layer for layer in find_layers(flow.found) if not layer.site.scope]
    makers = {layer.site.proto.output[0]: layer for layer in layers}
    for layer in layers:
        if not flow.is_constant(layer.data):
            by_value.setdefault(layer.data, []).append(layer)
    links: list[Link] = []
    refusals: list[NoLink] = []
    for value, readers in by_value.items():
        try:
            links.append(_Search(flow, value, readers, makers).link())
        except _No as no:
            refusals.append(NoLink(value, readers, str(no)))
    return links, refusals


class _Search:
    """makers: layers by what they compute."""

    def __init__(
        self, flow: Flow, value: str, readers: list[Layer], makers: Mapping[str, Layer]
    ) -> None:
        self.flow, self.value, self.readers = flow, value, readers
        self.axis = _channel_axis(readers)
        first = readers[0]
        self.channels = first.use.K * (first.use.groups if first.op == "Conv" else 1)
        self.rank = flow.shapes.rank(value)
        if first.is_conv:
            self.rank = len(_weight_shape(flow.found, first))
        self.makers = makers

    def link(self) -> Link:
        flow = self.flow
        if not flow.read_only_by(self.value, {layer.data_edge for layer in self.readers}):
            raise _No(self._other_reader())
        below = self._below()
        above: list[Part] = []
        at = self.value
        while True:
            site = flow.index.producer(at)
            if site is None:
                raise _No(f"{at!r} is an input of the model")
            kind, above_it = self._step(site, above)
            if kind is not None:
                break
            if flow.only_reader(above_it) is None:
                raise _No(f"something else reads {above_it!r}, too")
            at = above_it
        keys = [part.key for part in (*above, *below)]
        if len(set(keys)) < len(keys):
            raise _No("one constant would be scaled on both sides")
        return Link(
            self.value, self.axis, self.channels, kind, site, above, below, list(self.readers)
        )

    # --- upwards ---------------------------------------------------------------------------
    def _step(self, site: NodeSite, above: list[Part]) -> tuple[Kind | None, str]:
        """What the node absorbs is added to `above`. Returns: (the kind of link, where the node
        absorbs all; the value to go on with, where it does not)."""
        node = site.proto
        op = ops.full_name(node)
        if op in _NORMALIZATIONS:
            above += self._normalization(site)
            return "normalization", ""
        if op in ("Add", "Mul"):
            return self._with_constant(site, above)
        if (layer := self.makers.get(node.output[0])) is not None:
            above += self._product(layer)
            return "product", ""
        if op not in _HOMOGENEOUS:
            raise _No(f"it comes from {op}, which passes no factor")
        if len([name for name in node.output if name]) > 1:
            raise _No(f"{op} has a second output")
        return None, node.input[0]

    def _normalization(self, site: NodeSite) -> list[Part]:
        node = site.proto
        if ops.is_onnx(node, "BatchNormalization"):
            if self.axis != 1 and self.rank != 2:
                raise _No("BatchNormalization scales another axis")
        else:
            axis = ops.attribute(node, "axis", -1)
            if self.axis != -1 or axis not in (-1, (self.rank or 0) - 1):
                raise _No(f"{node.op_type} scales another axis")
        numbers = [i for i in _NORMALIZATIONS[ops.op(node)] if i < len(node.input)]
        parts = [self._constant(site, i) for i in numbers if node.input[i]]
        if any(len(self._shape(part)) != 1 for part in parts):
            raise _No(f"{node.op_type} scales more than one axis")
        return parts

    def _with_constant(self, site: NodeSite, above: list[Part]) -> tuple[Kind | None, str]:
        node, flow = site.proto, self.flow
        constants = [i for i in (0, 1) if flow.is_constant(node.input[i])]
        if len(constants) != 1:
            raise _No(f"it comes from {node.op_type} of two activations")
        (number,) = constants
        other = node.input[1 - number]
        key = flow.index.resolve(node.input[number])
        assert key is not None
        if ops.is_onnx(node, "Mul") and np.prod(tuple(flow.found.tensors[key].dims)) == 1:
            return None, other
        above.append(self._constant(site, number))
        return ("multiplication" if ops.is_onnx(node, "Mul") else None), other

    def _product(self, layer: Layer) -> list[Part]:
        if layer.is_conv != (self.axis == 1) and self.rank != 2:
            raise _No(f"{layer.op} makes another axis")
        if layer.op == "ConvTranspose" and layer.use.groups > 1:
            raise _No("it comes from a grouped ConvTranspose")
        if not layer.is_conv and layer.use.input != 1:
            raise _No(f"{layer.op} has its weight on the left")
        self._check_weight(layer, [layer])
        parts = [Part(layer.weight, layer.axis, layer.use)]
        inputs = layer.site.proto.input
        if len(inputs) > 2 and inputs[2]:
            parts.append(self._constant(layer.site, 2, last=True))
        return parts

    def _constant(self, site: NodeSite, number: int, *, last: bool = False) -> Part:
        """A constant operand with one value for each channel. last: it has its channels last
        whatever the activation's axis is; so have vectors of normalizations."""
        flow, name = self.flow, site.proto.input[number]
        op = ops.op(site)
        if not flow.is_constant(name):
            raise _No(f"input {number} of {op} is computed at run time")
        if not flow.read_only_by(name, {(site.position, number)}):
            raise _No(f"something else reads {name!r}, too")
        key = flow.index.resolve(name)
        assert key is not None
        shape = tuple(flow.found.tensors[key].dims)
        axis = len(shape) - 1
        if self.axis == 1 and not last and op in ("Add", "Mul"):
            axis = len(shape) - (self.rank or 0) + 1
        if not 0 <= axis < len(shape) or shape[axis] != self.channels:
            raise _No(f"{name!r} is {list(shape)}, with no value for each of {self.channels}")
        if not _is_float(flow.found, key):
            raise _No(f"{name!r} is no float")
        return Part(key, axis)

    # --- downwards -------------------------------------------------------------------------
    def _below(self) -> list[Part]:
        by_key: dict[ValueKey, list[Layer]] = {}
        for layer in self.readers:
            by_key.setdefault(layer.weight, []).append(layer)
        parts = []
        for key, layers in by_key.items():
            self._check_weight(layers[0], layers)
            layer = layers[0]
            axis, groups = layer.use.k_axis_consumer, 1
            if layer.op == "Conv":
                axis, groups = 1, layer.use.groups
            elif layer.op == "ConvTranspose":
                axis = 0
            assert axis is not None
            parts.append(Part(key, axis, layer.use, groups))
        return parts

    def _check_weight(self, layer: Layer, layers: list[Layer]) -> None:
        """That nothing but `layers` reads the weight, all in the same way, and as a float."""
        uses = self.flow.found.uses[layer.weight]
        wanted = {id(each.use) for each in layers}
        if any(id(use) not in wanted for use in uses):
            raise _No(f"something else reads {layer.weight.name!r}, too")
        if len({(each.op, each.use.k_axis_consumer, len(each.use.chain)) for each in layers}) > 1:
            raise _No(f"its readers see {layer.weight.name!r} in different forms")
        if len(layers) > 1 and layer.use.chain:
            raise _No(f"its readers see {layer.weight.name!r} through different chains")
        if any(s.op in ("QuantizeLinear", "DequantizeLinear") for s in layer.use.chain):
            raise _No(f"{layer.weight.name!r} stands behind Q/DQ")
        if not _is_float(self.flow.found, layer.weight):
            raise _No(f"{layer.weight.name!r} is no float")

    def _shape(self, part: Part) -> tuple[int, ...]:
        return tuple(self.flow.found.tensors[part.key].dims)

    def _other_reader(self) -> str:
        flow = self.flow
        if flow.is_output(self.value):
            return f"{self.value!r} is an output of the model"
        own = {layer.data_edge for layer in self.readers}
        for use in flow.readers(self.value):
            if use.site.scope or (use.site.position, use.input) not in own:
                return f"{use.site.name!r} ({use.site.proto.op_type}) reads {self.value!r}, too"
        return f"nothing reads {self.value!r}"


def _channel_axis(readers: list[Layer]) -> int:
    """1 for convolutions, -1 for matrix products with their weight on the right."""
    axes = set()
    for layer in readers:
        if layer.is_conv:
            axes.add(1)
            continue
        transposed = any(a.name == "transA" and a.i for a in layer.site.proto.attribute)
        if layer.use.input != 1 or transposed or layer.use.k_axis_consumer is None:
            raise _No(f"{layer.name!r} sums over another axis than the last")
        axes.add(-1)
    if len(axes) != 1:
        raise _No("convolutions and matrix products read it")
    return axes.pop()


def _weight_shape(found: WeightUses, layer: Layer) -> tuple[int, ...]:
    return layer.use.chain[-1].shape if layer.use.chain else tuple(found.tensors[layer.weight].dims)


def _is_float(found: WeightUses, key: ValueKey) -> bool:
    return found.tensors[key].data_type in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    )
