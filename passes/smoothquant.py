"""smooth-quant: move outlier channels of activations into the weights behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.placement import Flow
from onnx24.analysis.scaling import Link, NoLink, find_links
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.quant.smoothing import OUTLIER, ChannelPeaks, outlier_ratio, smoothing_scales
from onnx24.rewrite.scaling import apply_scales
from onnx24.runtime.ranges import Observation, doublings

MAX_SAMPLES, FIRST_SAMPLES = 64, 16
ENOUGH_ROWS = 1024
"""Outlier channels are the same for every input: 16 samples are enough where each holds 64 rows of
every activation, and 64 samples are in any case."""


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Pass):
    """Divide outlier channels of an activation, and multiply the weights behind them by as much.

    A tensor has one INT8 scale, so a channel that reaches 40 times as far as the others leaves
    those 3 of 127 levels. Transformers have such channels behind their normalizations. Where a
    channel's largest magnitude exceeds `outlier` times the median of all, channel j is divided by
    s_j = amax(x_j)^alpha / amax(w_j)^(1 - alpha) where it is made, and the weights of all MatMul
    and Gemm that read it are multiplied; s_j is relative to the median channel's and rounded to a
    power of two, so that not a bit of the model's results changes, zeros stay zeros, and a second
    run finds nothing to do. A model without outliers is left as it is (O24-341).

    The scale is absorbed in the scale and bias of a LayerNormalization, RMSNormalization or
    BatchNormalization, in a Mul by a constant (a normalization that is spelled out), or in the
    weight and bias of a product, through Relu, LeakyRelu, PRelu, pools, Transpose and Reshape where
    these keep the channels on an axis of their own.

    Refused (O24-342): an activation that something else reads, too (a residual Add behind a
    post-normalization), that comes from an operator which passes no factor (Gelu, Softmax), whose
    weights or scales are read elsewhere, are computed or stand behind Q/DQ, or would overflow.
    Bodies of If, Loop, Scan and functions are not entered. At most 64 samples are run, 16 where
    each holds 64 rows; an error where there is none (O24-035) and a link exists.

    Example: `smooth-quant{alpha=0.5},qdq`.

    *Source:* Xiao and others, SmoothQuant (2211.10438).
    """

    name: ClassVar[str] = "smooth-quant"
    effects: ClassVar[Effects] = Effects.WEIGHTS | Effects.STRUCTURE  # tensors of Constant nodes
    enters_functions: ClassVar[bool] = False
    codes: ClassVar[tuple[str, ...]] = ("O24-035", "O24-340", "O24-341", "O24-342")
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "upgrade-opset", "equalize")

    alpha: Annotated[float, "share of the activation's range that goes into the weights"] = 0.5
    outlier: Annotated[float, "ratio to the median channel from which on it is done"] = OUTLIER

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha lies between 0 and 1, not at {self.alpha}")
        if not self.outlier >= 1:
            raise ValueError(f"outlier is 1 or more, not {self.outlier}")

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        links, refusals = find_links(Flow(found, ctx.analysis(model, Shapes), model.opset))
        for refusal in refusals:
            if not refusal.readers[0].is_conv:
                _refuse(ctx, refusal, refusal.reason)
        links = [link for link in links if not link.readers[0].is_conv]
        smoothed = 0
        for link, peaks in _peaks(model, ctx, links):
            ratio = outlier_ratio(peaks)
            if not ratio > self.outlier:
                _record(ctx, link, "kept", "O24-341", f"the widest channel is {ratio:.1f} medians")
                continue
            weights = np.max([part.peaks(found, model) for part in link.below], axis=0)
            scales = smoothing_scales(peaks, weights, self.alpha)
            if (scales == 1).all():
                reason = f"the widest channel is {ratio:.1f} medians, and its weights are as small"
                _record(ctx, link, "kept", "O24-341", reason)
                continue
            if not ctx.admit(link.name):
                continue
            try:
                apply_scales(model, found, link, scales)
            except ValueError as err:
                _refuse(ctx, NoLink(link.value, link.readers, str(err)), str(err))
                continue
            smoothed += 1
            after = outlier_ratio(peaks / scales)
            reason = f"the widest channel was {ratio:.1f} medians and is {after:.1f}"
            _record(ctx, link, "smoothed", "O24-340", reason, before=ratio, after=after,
                    channels=int((scales != 1).sum()))  # fmt: skip
        ctx.statistics.update(smoothed=smoothed, links=len(links))


def _peaks(model: Model, ctx: Context, links: list[Link]) -> list[tuple[Link, np.ndarray]]:
    """The largest magnitude of each channel. Raises: InputError O24-035 without samples."""
    if not links:
        return []
    data = ctx.calibration
    if data is None:
        raise InputError.of(
            "O24-035", "smooth-quant: expected samples to find outlier channels on, found none"
        )
    if len(data) > MAX_SAMPLES:
        data, _ = data.split(MAX_SAMPLES / len(data))
    observers = {link.value: ChannelPeaks(link.axis, link.channels) for link in links}
    observation = Observation(model, list(observers), data)
    shown = {name: [each] for name, each in observers.items()}
    for part in doublings(data, FIRST_SAMPLES):
        observation.show(shown, ctx.progress, "outliers", part)
        if all(each.rows >= ENOUGH_ROWS for each in observers.values()):
            break
    return [(link, observers[link.value].peaks) for link in links]


def _refuse(ctx: Context, refusal: NoLink, reason: str) -> None:
    for layer in refusal.readers:
        ctx.record(
            "refused",
            "O24-342",
            weight=layer.weight.name,
            node=layer.name,
            op=layer.op,
            scope=layer.site.scope,
            reason=reason,
        )


def _record(ctx: Context, link: Link, action: str, code: str, reason: str, **facts: Any) -> None:
    for layer in link.readers:
        ctx.record(
            action,
            code,
            weight=layer.weight.name,
            node=layer.name,
            op=layer.op,
            reason=reason,
            activation=link.value,
            absorbed_in=link.site.name,
            **facts,
        )
