"""equalize: let the weights of two products in a row reach equally far, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.placement import Flow, Layer
from onnx24.analysis.scaling import Link, find_links
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.quant.smoothing import equalizing_scales
from onnx24.rewrite.scaling import apply_scales


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Cross-layer equalization: divide output channel j of one product and multiply input channel j
    of the next, so that both weights reach equally far there.

    A channel whose weights are small gives an activation that uses few of the 127 levels, and one
    whose weights are large sets the scale for all. With s_j = sqrt(r1_j / r2_j), r1_j and r2_j
    the largest magnitudes of the first weight's output and the second's input channel j, neither
    stands out. s_j is relative to the median channel's and rounded to a power of two: not a bit of
    the model's results changes, zeros stay zeros, and a second run changes nothing.

    Taken are Conv, ConvTranspose, Gemm and MatMul with constant weights, one behind the other,
    directly or over Relu, LeakyRelu, PRelu, pools, Transpose and Reshape that keep the channels on
    an axis of their own, a constant bias and a Mul by what is the same for all channels. It looks
    at weights only and needs no data. In no preset: weights have a scale for each channel anyway,
    and smooth-quant, which looks at the activations, does more for these.

    Refused (O24-344): what smooth-quant refuses, and activations that do not come from a product.

    Example: `equalize,qdq`.

    *Source:* Nagel and others, data-free quantization (1906.04721).
    """

    name: ClassVar[str] = "equalize"
    effects: ClassVar[Effects] = Effects.WEIGHTS | Effects.STRUCTURE  # tensors of Constant nodes
    enters_functions: ClassVar[bool] = False
    codes: ClassVar[tuple[str, ...]] = ("O24-343", "O24-344", "O24-345")
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "upgrade-opset")

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        links, refusals = find_links(Flow(found, ctx.analysis(model, Shapes), model.opset))
        for refusal in refusals:
            _record(ctx, refusal.readers, "refused", "O24-344", refusal.reason)
        done = 0
        for link in links:
            if link.kind != "product":
                reason = f"it comes from a {link.kind}, which has no weights to equalize"
                _record(ctx, link.readers, "refused", "O24-344", reason)
                continue
            first, second = _peaks(model, found, link)
            scales = equalizing_scales(first, second)
            if (scales == 1).all():
                _record(ctx, link.readers, "kept", "O24-345", "no channel is off by a factor of 2")
                continue
            if not ctx.admit(link.name):
                continue
            try:
                apply_scales(model, found, link, scales)
            except ValueError as err:
                _record(ctx, link.readers, "refused", "O24-344", str(err))
                continue
            done += 1
            channels = int((scales != 1).sum())
            reason = f"{channels} of {link.channels} channels, by up to {scales.max():g}"
            _record(ctx, link.readers, "equalized", "O24-343", reason,
                    activation=link.value, absorbed_in=link.site.name)  # fmt: skip
        ctx.statistics.update(equalized=done, links=len(links))


def _peaks(model: Model, found: WeightUses, link: Link) -> tuple[np.ndarray, np.ndarray]:
    """The largest magnitudes of the producer's output and the readers' input channels: [C]."""
    above = next(part for part in link.above if part.use is not None)
    first = above.peaks(found, model)
    return first, np.max([part.peaks(found, model) for part in link.below], axis=0)


def _record(
    ctx: Context, readers: list[Layer], action: str, code: str, reason: str, **facts: Any
) -> None:
    for layer in readers:
        ctx.record(
            action,
            code,
            weight=layer.weight.name,
            node=layer.name,
            op=layer.op,
            scope=layer.site.scope,
            reason=reason,
            **facts,
        )
