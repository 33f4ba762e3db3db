"""Where one channel of an activation can be made smaller, and the weights behind it larger, so that
the model computes the same.

A *link* is an activation that nothing but products with constant weights reads, and that comes from
something whose channels can be scaled: a normalization's scale and bias, a Mul by a constant, a
product's weight and bias; through operators that a positive factor passes (Relu, LeakyRelu,
PRelu, pools, Transpose and Reshape). On which axis the channels lie before and after each of them
is what `analysis.axes` says, and `forms.product_axes` of products; where these do not know, there
is no link. Dividing channel j there by s_j and multiplying input channel j of every reader's
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

from onnx24.analysis.axes import NodeAxes, Operand, Slot, relate
from onnx24.analysis.forms import ProductAxes, product_axes
from onnx24.analysis.placement import Flow, Layer, find_layers
from onnx24.analysis.weight_uses import WeightUse, WeightUses, consumer_view, stored_values
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

__all__ = ["Link", "NoLink", "Part", "find_links"]

Kind = Literal["normalization", "multiplication", "product"]

_HOMOGENEOUS = frozenset(
    {
        "Abs",
        "AveragePool",
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Neg",
        "PRelu",
        "Relu",
        "Reshape",
        "Transpose",
    }
)
"""f(x / s) = f(x) / s for s > 0 in their first input, along every axis that `analysis.axes` ties
from there to the result: what they pool over is not tied."""
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
    """value: the activation; axis: of its channels, from the end; above: what is divided, the
    nearest first; below: the weights that are multiplied. kind: what the scale is absorbed in,
    `site`."""

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
    """From one activation upwards. axis, channels: of the activation; it is counted from the end,
    since products say where they sum without saying of how many axes. makers: layers by what they
    compute."""

    def __init__(
        self, flow: Flow, value: str, readers: list[Layer], makers: Mapping[str, Layer]
    ) -> None:
        self.flow, self.value, self.readers, self.makers = flow, value, readers, makers
        found = {self._axes(layer).k_data for layer in readers}
        if len(found) != 1:
            raise _No("its readers sum over different axes")
        (self.axis,) = found

    def link(self) -> Link:
        flow = self.flow
        if not flow.read_only_by(self.value, {layer.data_edge for layer in self.readers}):
            raise _No(self._other_reader())
        below = self._below()
        sizes = {self._size(part) for part in below}
        if len(sizes) != 1:
            raise _No("its readers see different numbers of channels")
        (self.channels,) = sizes
        above: list[Part] = []
        at, axis = self.value, self.axis
        while True:
            site = flow.index.producer(at)
            if site is None:
                raise _No(f"{at!r} is an input of the model")
            kind, number, axis = self._step(site, axis, above)
            if kind is not None:
                break
            at = site.proto.input[number]
            if flow.only_reader(at) is None:
                raise _No(f"something else reads {at!r}, too")
        parts = (*above, *below)
        if len({part.key for part in parts}) < len(parts):
            raise _No("one constant would be scaled on both sides")
        return Link(
            self.value, self.axis, self.channels, kind, site, above, below, list(self.readers)
        )

    # --- upwards ---------------------------------------------------------------------------
    def _step(self, site: NodeSite, axis: int, above: list[Part]) -> tuple[Kind | None, int, int]:
        """Through the node whose result has the channels on `axis`; what it absorbs is added to
        `above`. Returns: the kind of link, where the node absorbs all; else None, the input to go
        on with and the channels' axis there."""
        node = site.proto
        op = ops.op(site)
        if not op:
            raise _No(f"it comes from {node.domain}.{node.op_type}")
        if op in _NORMALIZATIONS:
            above += self._normalization(site, axis)
            return "normalization", 0, axis
        if op in ("Add", "Mul"):
            return self._with_constant(site, axis, above)
        if (layer := self.makers.get(node.output[0])) is not None:
            above += self._product(layer, axis)
            return "product", 0, axis
        if op not in _HOMOGENEOUS:
            raise _No(f"it comes from {op}, which passes no factor")
        carried = self._carried(site, axis)
        if 0 not in carried:
            raise _No(f"{op} does not keep the channels of its input apart")
        return None, 0, carried[0]

    def _carried(self, site: NodeSite, axis: int) -> dict[int, int]:
        """Input → the axis, from the end, on which it has the channels that the result of the node
        has on `axis`; inputs that have none, or are the same for all, are left out."""
        flow, node = self.flow, site.proto
        shapes = {name: flow.shapes.shape(name) for name in (*node.input, *node.output) if name}

        def operand(name: str) -> Operand | None:
            return Operand(ValueKey("", name), shapes[name]) if name else None

        axes = NodeAxes(
            site,
            [operand(name) for name in node.input],
            [operand(name) for name in node.output],
            lambda i: None,
            flow.opset,
        )
        rank = len(shapes[node.output[0]] or ())
        if rank < -axis:
            raise _No(f"the rank of {node.output[0]!r} is not known")
        relations = relate(axes)
        result = Slot(ValueKey("", node.output[0]), rank + axis)
        tied = next((tie for tie in relations.ties if result in tie), ())
        if result in relations.pinned or relations.sizes.get(result) != self.channels:
            return {}
        found = {}
        for slot in tied:
            for number, name in enumerate(node.input):
                if name == slot.key.name:
                    found[number] = slot.axis - len(shapes[name] or ())
        return found

    def _normalization(self, site: NodeSite, axis: int) -> list[Part]:
        node = site.proto
        rank = self.flow.shapes.rank(node.output[0]) or 0
        if ops.is_onnx(site, "BatchNormalization"):
            if ops.attribute(site, "training_mode", 0) or ops.attribute(site, "spatial", 1) != 1:
                raise _No("BatchNormalization has no number a channel")
            if axis != 1 - rank:
                raise _No("BatchNormalization scales another axis")
        elif axis != -1 or ops.attribute(site, "axis", -1) not in (-1, rank - 1):
            raise _No(f"{node.op_type} scales another axis")
        numbers = [i for i in _NORMALIZATIONS[ops.op(site)] if i < len(node.input)]
        parts = [self._constant(site, i, -1) for i in numbers if node.input[i]]
        if any(len(self._shape(part)) != 1 for part in parts):
            raise _No(f"{node.op_type} scales more than one axis")
        return parts

    def _with_constant(
        self, site: NodeSite, axis: int, above: list[Part]
    ) -> tuple[Kind | None, int, int]:
        node, flow = site.proto, self.flow
        if ops.attribute(site, "broadcast", 0):  # before opset 7: along an axis that it names
            raise _No(f"{node.op_type} broadcasts in a way of its own")
        constants = [i for i in (0, 1) if flow.is_constant(node.input[i])]
        if len(constants) != 1:
            raise _No(f"it comes from {node.op_type} of two activations")
        (number,) = constants
        if ops.is_onnx(site, "Mul") and self._varies(node.input[number], axis):
            # Whatever the other operand is, and be it the same for all channels.
            above.append(self._constant(site, number, axis))
            return "multiplication", number, axis
        carried = self._carried(site, axis)
        if 1 - number not in carried:
            raise _No(f"{node.op_type} does not keep the channels of its input apart")
        if ops.is_onnx(site, "Add"):
            above.append(self._constant(site, number, axis))
        return None, 1 - number, carried[1 - number]

    def _varies(self, name: str, axis: int) -> bool:
        """Whether a constant has a value for each channel on that axis."""
        key = self.flow.index.resolve(name)
        shape = tuple(self.flow.found.tensors[key].dims) if key is not None else ()
        return len(shape) >= -axis and shape[axis] > 1

    def _product(self, layer: Layer, axis: int) -> list[Part]:
        axes = self._axes(layer)
        if axes.n_result is None:
            raise _No(f"the weight of {layer.name!r} is a vector, which makes no axis")
        if axes.n_result != axis:
            raise _No(f"{layer.op} makes another axis")
        if layer.op == "ConvTranspose" and layer.use.groups > 1:
            raise _No("it comes from a grouped ConvTranspose")
        self._check_weight(layer, [layer])
        parts = [Part(layer.weight, layer.axis, layer.use)]
        if self._size(parts[0]) != self.channels:
            raise _No(f"{layer.name!r} makes {self._size(parts[0])} channels, not {self.channels}")
        inputs = layer.site.proto.input
        if len(inputs) > 2 and inputs[2]:
            parts.append(self._constant(layer.site, 2, -1 if layer.is_conv else axis))
        return parts

    def _constant(self, site: NodeSite, number: int, axis: int) -> Part:
        """A constant operand with one value for each channel, on that axis from the end."""
        flow, name = self.flow, site.proto.input[number]
        if not flow.is_constant(name):
            raise _No(f"input {number} of {site.proto.op_type} is computed at run time")
        if not flow.read_only_by(name, {(site.position, number)}):
            raise _No(f"something else reads {name!r}, too")
        key = flow.index.resolve(name)
        assert key is not None
        shape = tuple(flow.found.tensors[key].dims)
        if len(shape) < -axis or shape[axis] != self.channels:
            raise _No(f"{name!r} is {list(shape)}, with no value for each of {self.channels}")
        if not _is_float(flow.found, key):
            raise _No(f"{name!r} is no float")
        return Part(key, len(shape) + axis)

    # --- downwards -------------------------------------------------------------------------
    def _below(self) -> list[Part]:
        by_key: dict[ValueKey, list[Layer]] = {}
        for layer in self.readers:
            by_key.setdefault(layer.weight, []).append(layer)
        parts = []
        for key, layers in by_key.items():
            self._check_weight(layers[0], layers)
            layer = layers[0]
            axis = layer.use.k_axis_consumer
            assert axis is not None
            groups = layer.use.groups if layer.op == "Conv" else 1
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

    # --- what is asked of both ---------------------------------------------------------------
    def _axes(self, layer: Layer) -> ProductAxes:
        rank = self.flow.shapes.rank(layer.data)
        axes = product_axes(layer.site, layer.use.input, len(layer.use.shape), rank)
        if axes is None:
            raise _No(f"the rank of {layer.data!r} is not known")
        return axes

    def _size(self, part: Part) -> int:
        """How many channels a weight has."""
        assert part.use is not None
        return part.use.shape[part.axis] * part.groups

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


def _is_float(found: WeightUses, key: ValueKey) -> bool:
    return found.tensors[key].data_type in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    )
