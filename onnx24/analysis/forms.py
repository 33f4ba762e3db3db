"""Which inputs of which operators are multiplied and summed, and along which axis.

Source: onnx/docs/Operators.md; onnxruntime/docs/ContribOperators.md (inputs of com.microsoft).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onnx24.ir import ops
from onnx24.ir.index import NodeSite

__all__ = [
    "Form",
    "ProductAxes",
    "channel_axis",
    "foreign_operand",
    "is_product",
    "product_axes",
    "product_form",
]

_PRODUCTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Einsum": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
}

_DECISIVE = frozenset({"equation", "group", "transA", "transB"})

_MS = "com.microsoft"
_FOREIGN: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Attention"): (0, 1, 2),
    ("", "ConvInteger"): (1,),
    ("", "DeformConv"): (1,),
    ("", "MatMulInteger"): (0, 1),
    ("", "QLinearConv"): (3,),
    ("", "QLinearMatMul"): (0, 3),
    (_MS, "Attention"): (1,),
    (_MS, "DecoderAttention"): (2, 3),
    (_MS, "DynamicQuantizeLSTM"): (1, 2),
    (_MS, "DynamicQuantizeMatMul"): (1,),
    (_MS, "FusedConv"): (1,),
    (_MS, "FusedGemm"): (0, 1),
    (_MS, "FusedMatMul"): (0, 1),
    (_MS, "FusedMatMulActivation"): (0, 1),
    (_MS, "GemmFastGelu"): (1,),
    (_MS, "GemmFloat8"): (0, 1),
    (_MS, "GroupQueryAttention"): (0, 1, 2),
    (_MS, "LongformerAttention"): (1,),
    (_MS, "MatMulBnb4"): (1,),
    (_MS, "MatMulFpQ4"): (1,),
    (_MS, "MatMulInteger16"): (0, 1),
    (_MS, "MatMulIntegerToFloat"): (0, 1),
    (_MS, "MatMulNBits"): (1,),
    (_MS, "MoE"): (2, 4, 6),
    (_MS, "MultiHeadAttention"): (0, 1, 2),
    (_MS, "NhwcConv"): (1,),
    (_MS, "NhwcFusedConv"): (1,),
    (_MS, "PackedAttention"): (1,),
    (_MS, "QAttention"): (1,),
    (_MS, "QGemm"): (0, 3),
    (_MS, "QLinearConv"): (3,),
    (_MS, "QMoE"): (2, 5, 8),
    (_MS, "QOrderedAttention"): (2, 4, 6),
    (_MS, "QOrderedMatMul"): (0, 2),
    (_MS, "SparseToDenseMatMul"): (0, 1),
    (_MS, "TransposeMatMul"): (0, 1),
}
"""(domain, operator) → inputs that it multiplies and sums, of operators whose products are not
judged: TensorRT's parser has no sparse layer for them."""


def is_product(site: NodeSite, position: int) -> bool:
    """Whether the input of a Conv, ConvTranspose, Gemm, MatMul or Einsum is multiplied and
    summed; the other operand of a convolution is data and never a weight."""
    return position in _PRODUCTS.get(ops.op(site), ())


def foreign_operand(site: NodeSite, position: int) -> bool:
    """Whether an operator whose products are not judged multiplies and sums the input."""
    return position in _FOREIGN.get(ops.type_of(site), ())


@dataclass(frozen=True)
class ProductAxes:
    """Where the axes of a product lie, each counted from the end: what is summed over (`k_data` in
    the activation, `k_weight` in the constant; of a convolution the input channels), and what the
    constant adds (`n_weight` there, `n_result` in the result; the output channels). Both of the
    latter are None where the constant is a vector: it adds no axis."""

    k_data: int
    k_weight: int
    n_weight: int | None
    n_result: int | None


def product_axes(
    site: NodeSite, position: int, rank: int, data_rank: int | None = None
) -> ProductAxes | None:
    """The axes of a Conv, ConvTranspose, Gemm or MatMul whose input `position` is a constant of
    that rank. data_rank: of the other operand, None where it is not known; the answer is None where
    it is needed."""
    op = ops.op(site)
    if op == "Conv":
        return ProductAxes(1 - rank, 1 - rank, -rank, 1 - rank)
    if op == "ConvTranspose":
        return ProductAxes(1 - rank, -rank, 1 - rank, 1 - rank)
    if op == "Gemm":
        flip_a, flip_b = (bool(ops.attribute(site, name, 0)) for name in ("transA", "transB"))
        a, b = (-2, -1) if flip_a else (-1, -2), (-1, -2) if flip_b else (-2, -1)
        return ProductAxes(a[0], b[0], b[1], -1) if position else ProductAxes(b[0], a[0], a[1], -2)
    if position:  # a vector on the left is one row, its last axis is K as well
        return ProductAxes(-1, -2, -1, -1) if rank > 1 else ProductAxes(-1, -1, None, None)
    if data_rank is None:
        return None
    k_data, n_result = (-2, -2) if data_rank > 1 else (-1, -1)
    n_weight = -2 if rank > 1 else None
    return ProductAxes(k_data, -1, n_weight, n_result if rank > 1 else None)


def channel_axis(site: NodeSite, position: int, rank: int) -> int:
    """Of the output channels in the operand of a Conv, ConvTranspose, Gemm or MatMul; a vector's
    only axis."""
    axes = product_axes(site, position, rank, 2)
    return 0 if axes is None or axes.n_weight is None else axes.n_weight % rank


@dataclass(frozen=True, kw_only=True)
class Form:
    """How one operand of one product is reduced."""

    k_axis: int | None
    K: int = 0
    N: int = 0
    groups: int = 1
    spatial: int = 1
    batch: int = 1
    code: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def product_form(site: NodeSite, position: int, shape: tuple[int, ...]) -> Form | None:
    """How the input of that shape is reduced; None where it is no operand of a product."""
    op = ops.op(site)
    decided = _DECISIVE.intersection(a.name for a in site.proto.attribute if a.ref_attr_name)
    if is_product(site, position) and decided:
        reason = f"the caller of a function decides {min(decided)}"
        return Form(k_axis=None, code="O24-121", reason=reason)
    if op in ("Conv", "ConvTranspose"):
        return _conv_form(site, shape) if position == 1 and len(shape) >= 3 else None
    rank = len(shape)
    if (op == "Gemm" and position < 2 and rank == 2) or (op == "MatMul" and position < 2 and rank):
        axes = product_axes(site, position, rank, 2)
        assert axes is not None
        k_axis = axes.k_weight % rank
        columns = 1 if axes.n_weight is None else shape[axes.n_weight]
        return Form(k_axis=k_axis, K=shape[k_axis], N=columns, batch=math.prod(shape[:-2]))
    if op == "Einsum":
        return _einsum_form(site, position, shape)
    return None


def _conv_form(site: NodeSite, shape: tuple[int, ...]) -> Form:
    groups = int(ops.attribute(site, "group", 1))
    spatial = math.prod(shape[2:])
    notes = []
    if len(shape) == 5:
        notes.append("3-D convolution")
    if any(d != 1 for d in ops.attribute(site, "dilations") or ()):
        notes.append("dilation")
    if ops.is_onnx(site, "ConvTranspose"):
        return Form(
            k_axis=0,
            K=shape[0] // groups,
            N=shape[1] * groups,
            groups=groups,
            spatial=spatial,
            code="O24-122",
            reason="the weight of a transposed convolution",
        )
    form = Form(
        k_axis=1, K=shape[1], N=shape[0], groups=groups, spatial=spatial, notes=tuple(notes)
    )
    if groups > 1 and shape[1] == 1:
        reason = f"depthwise: {groups} groups of one input channel"
        return replace(form, code="O24-112", reason=reason)
    if groups > 1:
        reason = f"{groups} groups of {shape[1]} input channels"
        return replace(form, code="O24-111", reason=reason)
    return form


def _einsum_form(site: NodeSite, position: int, shape: tuple[int, ...]) -> Form | None:
    """A plain product: two operands, one letter summed, each letter once in an operand."""
    text = ops.attribute(site, "equation", "").replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    if len(terms) != 2 or len(site.proto.input) != 2:
        return None
    mine, other = terms[position], terms[1 - position]
    if not arrow:
        letters = "".join(terms).replace("...", "")
        output = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    unfit = Form(
        k_axis=None,
        code="O24-121",
        reason=f"the Einsum {text!r} is no plain product of two matrices",
    )
    if "..." in mine or len(mine) != len(shape) or len(set(mine)) != len(mine):
        return unfit
    loose = other.replace("...", "")
    if len(set(loose)) != len(loose):
        return unfit
    summed = [c for c in mine if c in loose and c not in output]
    lost = [c for c in {*mine, *loose} if c not in output and not (c in mine and c in loose)]
    if len(summed) != 1 or lost:
        return unfit
    sizes = dict(zip(mine, shape, strict=True))
    free = [c for c in mine if c not in loose]
    batch = [c for c in mine if c in loose and c in output]
    return Form(
        k_axis=mine.index(summed[0]),
        K=sizes[summed[0]],
        N=math.prod(sizes[c] for c in free),
        batch=math.prod(sizes[c] for c in batch),
    )
