"""Weights as the layers that read them see them, in float and in INT8."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from onnx24.analysis.layer_rows import form_of
from onnx24.analysis.placement import Flow, Layer
from onnx24.analysis.weight_uses import WeightUses, consumer_view, stored_values
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.quant.rounding import adaptive, mse_amax
from onnx24.quant.rows import Form
from onnx24.quant.scales import channel_amax, dequantize, quantize, symmetric_scale

__all__ = ["Bias", "PairedWeight", "bias_of", "paired_weights"]


@dataclass(eq=False)
class PairedWeight:
    """The weight behind one Q/DQ pair, and the layers that read it there. amax: the magnitudes
    that become 127, by output channel."""

    model: Model
    found: WeightUses
    readers: list[Layer]
    amax: np.ndarray = field(init=False)
    _before: np.ndarray | None = None
    """The floats, where the stored values are replaced."""

    def __post_init__(self) -> None:
        self.amax = channel_amax(self.values(), self.layer.axis)

    @property
    def layer(self) -> Layer:
        return self.readers[0]

    @property
    def form(self) -> Form | None:
        """How `values` make a matrix; None where the product is not followed row by row."""
        return self.form_for(self.layer)

    def form_for(self, layer: Layer) -> Form | None:
        """How a reader's activation makes rows. Readers of one pair differ in that at most: one
        may read the transpose of what another reads."""
        shape = layer.use.chain[-1].shape if layer.use.chain else None
        return form_of(layer, shape or tuple(self.found.tensors[layer.weight].dims))

    def kept(self, layers: Collection[Layer]) -> PairedWeight | None:
        """It as these layers alone read it; None where none of them does."""
        readers = [reader for reader in self.readers if reader in layers]
        if len(readers) == len(self.readers):
            return self
        other = copy(self)
        other.readers = readers
        return other if readers else None

    @property
    def scale(self) -> np.ndarray:
        return symmetric_scale(self.amax, self.layer.dtype)

    def values(self) -> np.ndarray:
        """As the product sees it, in float."""
        return consumer_view(self.found.read(self.model, self.layer.weight), self.layer.use)

    def exact(self) -> np.ndarray:
        """As the product saw it before any rounding."""
        return self.values() if self._before is None else self._before

    def rounded(self) -> np.ndarray:
        """As the product sees it behind Q/DQ."""
        scale, axis = self.scale, self.layer.axis
        return dequantize(quantize(self.values(), scale, axis), scale, axis)

    def narrow(self, power: np.ndarray) -> bool:
        """Choose the ranges of the least error that the inputs' second moments `power` [G, K]
        weigh; whether that can be done for this form."""
        if self.form is None or self.form.kind == "deconv":
            return False
        matrix = self.form.matrix(self.values())
        found = [mse_amax(m, p) for m, p in zip(matrix, power, strict=True)]
        self.amax = np.concatenate(found).astype(np.float32)
        return True

    def adapt(self, second: np.ndarray) -> str:
        """Replace the stored values by their INT8 neighbours that `quant.rounding.adaptive` finds
        with the inputs' second moments [G, K, K]. Returns: "" or why that cannot be done."""
        layer = self.layer
        if self.form is None or self.form.kind == "deconv":
            return "the product is not followed row by row"
        readers = {id(reader.use) for reader in self.readers}
        if any(id(use) not in readers for use in self.found.uses[layer.weight]):
            return "something else reads the weight, too"
        values = self.values()
        matrix = self.form.matrix(values)
        scale = self.scale.astype(np.float32).reshape(matrix.shape[:2])
        steps = np.stack([adaptive(m, s, h) for m, s, h in zip(matrix, scale, second, strict=True)])
        real = self.form.restored(steps * scale[:, :, None], values.shape)
        stored = self.found.read(self.model, layer.weight)
        self._before = np.array(values)
        self.found.replace(self.model, layer.weight, stored_values(real, layer.use, stored))
        return ""


def paired_weights(
    model: Model, found: WeightUses, layers: Sequence[Layer]
) -> dict[tuple[str, int], PairedWeight]:
    """By the value that the pair quantizes and the channel axis there."""
    readers: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.pair, []).append(layer)
    return {key: PairedWeight(model, found, group) for key, group in readers.items()}


@dataclass(frozen=True)
class Bias:
    """A constant that is added to a layer's product. factor: a Gemm's alpha / beta, else 1."""

    key: ValueKey
    factor: float

    def shift(self, model: Model, found: WeightUses, by: np.ndarray) -> None:
        """Make the layer compute as if its product were larger by `by` [N], as far as the bias's
        type can say it."""
        stored = found.read(model, self.key)
        values = stored.astype(np.float32) + (self.factor * by).reshape(stored.shape)
        found.replace(model, self.key, values.astype(stored.dtype))


def bias_of(flow: Flow, layer: Layer) -> Bias | None:
    """A layer's own bias, one value for each output channel, which nothing else reads."""
    node, factor = layer.site.proto, 1.0
    name = node.input[2] if layer.op != "MatMul" and len(node.input) > 2 else ""
    reader = (layer.site.position, 2)
    if layer.op == "Gemm":
        numbers = {a.name: a.f for a in node.attribute}
        beta = numbers.get("beta", 1.0)
        factor = numbers.get("alpha", 1.0) / beta if beta else 0.0
    if layer.op == "MatMul":
        use = flow.only_reader(node.output[0])
        if use is None or not ops.is_onnx(use.site, "Add") or layer.use.input != 1:
            return None
        name = use.site.proto.input[1 - use.input]
        reader = (use.site.position, 1 - use.input)
    key = flow.index.resolve(name) if name else None
    if key is None or not flow.is_constant(name) or not factor:
        return None
    shape = tuple(flow.found.tensors[key].dims) if key in flow.found.tensors else ()
    size = int(np.prod(shape, dtype=np.int64))
    if size != layer.use.N or (shape and shape[-1] != size):
        return None
    if not flow.read_only_by(name, {reader}):
        return None
    return Bias(key, factor)
