"""How a layer's operands make the matrices that `quant.rows` computes with."""

from __future__ import annotations

import math

from onnx24.analysis.placement import Layer
from onnx24.ir import ops
from onnx24.quant.rows import Form

__all__ = ["form_of"]


def form_of(layer: Layer, weight_shape: tuple[int, ...]) -> Form | None:
    """None where the layer is no plain product of rows and a matrix: a batched weight.

    weight_shape: of the weight as the product sees it.
    """
    if layer.is_conv:
        return _conv_form(layer, weight_shape)
    if len(weight_shape) != 2 or layer.use.k_axis_consumer is None:
        return None
    weight_is_right = layer.use.input == 1
    k_axis = -1 if weight_is_right else -2
    if layer.op == "Gemm" and ops.attribute(
        layer.site, "transA" if weight_is_right else "transB", 0
    ):
        k_axis = -3 - k_axis
    w_axis = layer.use.k_axis_consumer % 2
    return Form("matrix", weight_shape[w_axis], k_axis=k_axis, w_axis=w_axis)


def _conv_form(layer: Layer, shape: tuple[int, ...]) -> Form | None:
    kernel = shape[2:]
    rank = len(kernel)
    groups = int(ops.attribute(layer.site, "group", 1))
    if layer.op == "ConvTranspose":
        return Form("deconv", shape[0] // groups, groups=groups, kernel=kernel)
    pads = tuple(ops.attribute(layer.site, "pads", [0] * (2 * rank)))
    auto = ops.attribute(layer.site, "auto_pad", "NOTSET")
    if auto == "VALID":
        pads = (0,) * (2 * rank)
    return Form(
        "conv",
        shape[1] * math.prod(kernel),
        groups=groups,
        kernel=kernel,
        strides=tuple(ops.attribute(layer.site, "strides", [1] * rank)),
        dilations=tuple(ops.attribute(layer.site, "dilations", [1] * rank)),
        begins=pads[:rank],
        ends=pads[rank:],
        same=auto if auto.startswith("SAME") else "",
    )
