"""Which layer is asked for in which format, and why the others stay in float."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx24.analysis.formats import MIN_OPSETS, Format, Formats, weight_only_objection
from onnx24.analysis.placement import Edge, Flow, Layer, Request, find_layers
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.quant.scales import channel_amax

__all__ = ["Choice", "Kernels", "check_finite", "check_opset", "choose_formats"]

Objection = tuple[str, str]
"""(code, reason)"""


@dataclass(frozen=True)
class Kernels:
    """What a target's builder has. name: the target's; deconv_axis: as of `find_layers`."""

    name: str
    formats: frozenset[Format]
    deconv_axis: int = 1

    def objection(self, wanted: Format, opset: int) -> Objection | None:
        if wanted not in self.formats:
            if wanted is Format.INT8:
                return "O24-221", f"{self.name} lists no INT8 kernels"
            return "O24-235", f"{self.name} lists no {wanted.name}"
        if wanted is not Format.INT8 and opset < MIN_OPSETS[wanted]:
            least = MIN_OPSETS[wanted]
            reason = f"{wanted.name} is there from opset {least} on, the model has {opset}"
            return "O24-235", reason
        return None


@dataclass
class Choice:
    """`layers`: all products with a constant operand. `formats`: of those that are quantized.
    `refusals`: of the others, and why. `products`: of two activations, that are quantized.
    `sparse`: weights whose layers' results are quantized, too. `results`, `skips`: layers that are
    quantized already, whose result, or whose residual Add's other operand, is not."""

    layers: list[Layer]
    formats: dict[Layer, Format] = field(default_factory=dict)
    refusals: dict[Layer, Objection] = field(default_factory=dict)
    products: list[NodeSite] = field(default_factory=list)
    sparse: frozenset[ValueKey] = frozenset()
    results: list[Layer] = field(default_factory=list)
    skips: list[Layer] = field(default_factory=list)

    @property
    def any_int8(self) -> bool:
        """Whether any value is asked for in INT8."""
        return bool(self.of(Format.INT8) or self.products or self.results or self.skips)

    def of(self, *formats: Format) -> list[Layer]:
        """The layers in these formats, in document order."""
        return [layer for layer in self.layers if self.formats.get(layer) in formats]

    def refuse(self, layer: Layer, objection: Objection) -> None:
        self.formats.pop(layer, None)
        self.refusals[layer] = objection

    def request(self, element: Format) -> Request:
        """What to place pairs of that format for. The sparse rule and products of activations are
        INT8's."""
        layers = self.of(element)
        if element is not Format.INT8:
            return Request(layers)
        sparse = [layer for layer in layers if layer.weight in self.sparse]
        return Request(layers, [*sparse, *self.results], self.products, self.skips)

    def without(self, layers: Collection[Layer]) -> Choice:
        """The same but for these layers, which stay in float."""
        formats = {layer: f for layer, f in self.formats.items() if layer not in layers}
        return replace(self, formats=formats)

    def only(self, layer: Layer) -> Choice:
        """Nothing else quantized."""
        return Choice(self.layers, {layer: self.formats[layer]}, {}, [], self.sparse)


def choose_formats(
    flow: Flow, formats: Formats, selection: Selection, kernels: Kernels, *, attention: bool
) -> Choice:
    """What options, target and rules say of each layer, before anything is measured. `sparse` is
    the caller's to fill in.

    Raises: InputError O24-023 for a pattern that matches nothing, or a layer that two name.
    """
    found = flow.found
    choice = Choice(find_layers(found, kernels.deconv_axis))
    names = [name for layer in choice.layers for name in names_of(layer)]
    selection.check("qdq", names, "layer and no layer's weight")
    formats.check(names)
    for layer in choice.layers:
        wanted = formats.of(names_of(layer))
        if reason := selection.objection(names_of(layer)):
            choice.refusals[layer] = "O24-218", reason
        elif wanted is None:
            choice.refusals[layer] = "O24-218", "none= leaves it out"
        elif objection := _objection(layer, wanted, flow, kernels):
            choice.refusals[layer] = objection
        else:
            choice.formats[layer] = wanted
    _refuse_second_formats(choice)
    if attention and Format.INT8 in kernels.formats:
        choice.products = [s for s in found.dynamic if flow.product_objection(s) is None]
    return choice


def _refuse_second_formats(choice: Choice) -> None:
    """Layers that read one weight through the same Transpose read one pair."""
    owners: dict[Edge, Layer] = {}
    for layer in choice.of(Format.INT8, Format.FP8):
        owner = owners.setdefault(layer.weight_edge()[0], layer)
        if choice.formats[owner] is not choice.formats[layer]:
            wanted = choice.formats[owner].name
            reason = f"its weight is {wanted} for {owner.name!r}, and both read it through one node"
            choice.refuse(layer, ("O24-235", reason))


def check_opset(model: Model) -> None:
    """That scales by channel can be written. Raises: InputError O24-009."""
    least = MIN_OPSETS[Format.INT8]
    if model.opset < least:
        raise InputError.of(
            "O24-009",
            f"qdq: expected opset {least} or newer (scales by channel), the model has "
            f"{model.opset}",
            hint=f"put upgrade-opset{{to={least}}} before qdq",
        )


def check_finite(model: Model, found: WeightUses, choice: Choice) -> None:
    """Raises: InputError O24-008, one diagnostic for each weight with NaN or infinity."""
    problems = []
    for layer in {layer.weight: layer for layer in choice.formats}.values():
        if not np.isfinite(channel_amax(found.read(model, layer.weight), None)):
            problems += InputError.of(
                "O24-008",
                "the weight holds NaN or infinity",
                tensor=layer.weight.name,
                node=layer.name,
                op=layer.op,
            ).diagnostics
    if problems:
        raise InputError(problems)


def names_of(layer: Layer) -> Sequence[str]:
    """What a pattern may match."""
    return [layer.name, layer.weight.name, str(layer.weight)]


def _objection(layer: Layer, wanted: Format, flow: Flow, kernels: Kernels) -> Objection | None:
    if objection := kernels.objection(wanted, flow.opset):
        return objection
    return weight_only_objection(flow, layer) if wanted is Format.INT4 else flow.objection(layer)
