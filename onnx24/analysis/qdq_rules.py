"""What is wrong with a model's Q/DQ nodes for TensorRT: the rules that the gate and the pass lint
judge by, and that what qdq writes must meet.

The rules are data: `RULES` holds each with its code, its text and what it rests on. A rule finds;
it edits nothing (rewrite/qdq_repairs.py does).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto, TensorProto

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.crossing import (
    ACTIVATIONS,
    dq_behind,
    is_qdq,
    is_quantized_ahead,
    is_trt_fp8,
    reaches_float_attention,
    swish,
)
from onnx24.analysis.dataflow import Dataflow, Shapes
from onnx24.analysis.forms import channel_axis
from onnx24.analysis.invariants import is_seen_24
from onnx24.analysis.placement import OPS as PRODUCTS
from onnx24.analysis.placement import find_layers, is_residual
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.ir.index import Index, NodeSite, Use
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.ops import attribute, is_onnx

__all__ = [
    "RULES",
    "Finding",
    "Misplaced",
    "QdqRule",
    "Quantized",
    "findings",
    "misplaced_pairs",
    "quantized_products",
    "sparse_float_results",
]

_INTEGER_OPS = (
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
)
_TAKEN = frozenset(
    getattr(TensorProto, name)
    for name in ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
)
_EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
_EPILOGUE = ACTIVATIONS | {"Add", "BatchNormalization"}
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One defect at one node. `rule`: the name of the rule; `tensor`: the weight, where it is one
    that the rule is about."""

    rule: str
    code: str
    message: str
    site: NodeSite
    tensor: str = ""


@dataclass(frozen=True)
class Quantized:
    """A model, and what the rules ask of it."""

    model: Model
    index: Index
    shapes: Shapes
    uses: WeightUses

    @classmethod
    def of(cls, model: Model, cache: AnalysisCache) -> Quantized:
        index = cache.get(model, Dataflow).index
        return cls(model, index, cache.get(model, Shapes), cache.get(model, WeightUses))

    @cached_property
    def sparse(self) -> dict[int, list[str]]:
        """id of the proto of each quantized product with a 2:4 weight → names of such weights."""
        return _sparse_uses(self)

    def constant(self, name: str, scope: str) -> np.ndarray | None:
        """The values behind a name; None where they are computed at run time."""
        key: ValueKey | None = self.index.resolve(name, scope)
        tensor = None if key is None else self.uses.tensors.get(key)
        return None if tensor is None else self.model.weights.read(tensor)

    def is_constant(self, name: str, scope: str) -> bool:
        """Whether a value is stored, or computed from what is stored alone."""
        key = self.index.resolve(name, scope)
        return key in self.uses.tensors or key in self.uses.fixed

    def is_output(self, name: str, scope: str) -> bool:
        return self.index.resolve(name, scope) in self.index.graph_outputs

    def readers(self, site: NodeSite) -> list[Use]:
        return [
            use
            for name in site.proto.output
            if name
            for use in self.index.consumers(name, site.scope)
        ]

    def dq_behind(self, site: NodeSite, position: int) -> NodeSite | None:
        """The DequantizeLinear that an operand comes from, over operators that pairs cross."""
        if not _has(site.proto, position):
            return None
        return dq_behind(self.index, site.proto.input[position], site.scope)

    def is_weight(self, site: NodeSite, position: int, dq: NodeSite | None) -> bool:
        """Whether an operand is constant: stored in float behind Q → DQ, quantized behind DQ, or,
        without a DQ, in float."""
        if dq is None:
            given = _has(site.proto, position)
            return given and self.is_constant(site.proto.input[position], site.scope)
        name, scope = dq.proto.input[0], dq.scope
        q = self.index.producer(name, scope)
        if q is not None and is_qdq(q, _Q):
            name, scope = q.proto.input[0], q.scope
        return self.is_constant(name, scope)

    def operands(self, site: NodeSite) -> list[NodeSite | None]:
        """The DequantizeLinear behind each of a product's two operands."""
        return [self.dq_behind(site, i) for i in (0, 1)]

    def bias(self, site: NodeSite) -> NodeSite | None:
        """The DequantizeLinear behind a product's bias."""
        return None if is_onnx(site, "MatMul") else self.dq_behind(site, 2)

    def scale_rank(self, site: NodeSite) -> int | None:
        if not _has(site.proto, 1):
            return None
        scale = self.constant(site.proto.input[1], site.scope)
        if scale is not None:
            return scale.ndim
        return self.shapes.rank(site.proto.input[1], site.scope)

    def element(self, site: NodeSite) -> int | None:
        """The quantized type of a Q or DQ, as TensorProto.DataType."""
        if is_trt_fp8(site):
            return int(TensorProto.FLOAT8E4M3FN)
        node, is_q = site.proto, is_qdq(site, _Q)
        kind = self.shapes.dtype(node.output[0] if is_q else node.input[0], site.scope)
        if kind is None and _has(node, 2):  # of com.microsoft's nothing is inferred
            return self.shapes.dtype(node.input[2], site.scope)
        return _output_dtype(node) if kind is None and is_q else kind


def findings(found: Quantized, *, sparse_outputs: bool, fp8: bool = True) -> Iterator[Finding]:
    """Every finding of every rule, in document order.

    sparse_outputs: the target takes sparse INT8 kernels INT8-out only. fp8: it has FP8 kernels.
    """
    sparse = found.sparse if sparse_outputs else {}
    floats = {id(site.proto) for site in sparse_float_results(found)} if sparse else set()
    stored: dict[int, list[str]] = {}
    for reader, message in _constant_readers(found):
        stored.setdefault(id(reader.proto), []).append(message)
    for site in found.index.nodes:
        for rule in RULES:
            if rule.name == "fp8" and fp8:
                continue
            if not (is_onnx(site, *rule.ops) or is_qdq(site, *rule.ops)):
                continue
            for message in rule.check(found, site):
                yield Finding(rule=rule.name, code=rule.code, message=message, site=site)
        for message in stored.get(id(site.proto), ()):
            yield Finding(rule="constant", code="O24-253", message=message, site=site)
        for name in sparse.get(id(site.proto), ()):
            if id(site.proto) in floats:
                yield Finding(
                    rule="sparse-output",
                    code="O24-639",
                    message=f"{site.proto.op_type} is 2:4 and INT8, and its result stays float",
                    site=site,
                    tensor=name,
                )


def sparse_float_results(found: Quantized) -> list[NodeSite]:
    """The 2:4 INT8 products whose result stays float, in document order."""
    return [
        site
        for site in found.index.nodes
        if id(site.proto) in found.sparse and not _is_quantized_behind(found, site)
    ]


@dataclass(frozen=True)
class Misplaced:
    """A pair between a convolution and the residual Add behind it. value: what it quantizes; add:
    the Add's read."""

    site: NodeSite
    value: str
    add: Use


def misplaced_pairs(found: Quantized) -> list[Misplaced]:
    """Those of O24-638."""
    return [
        each
        for site in found.index.nodes
        if is_onnx(site, "Conv", "ConvTranspose")
        for each in [_misplaced(found, site)]
        if each is not None
    ]


def quantized_products(found: Quantized) -> tuple[int, int]:
    """(products with both operands behind DQ, products with a constant weight)."""
    sites = {id(layer.site.proto): layer.site for layer in find_layers(found.uses)}
    return sum(all(found.operands(site)) for site in sites.values()), len(sites)


# --- Q and DQ --------------------------------------------------------------------------------
def _zero_point(found: Quantized, site: NodeSite) -> Iterator[str]:
    if not _has(site.proto, 2):
        return
    zero = found.constant(site.proto.input[2], site.scope)
    if zero is not None and np.any(zero.astype(np.float32) != 0):
        yield "the zero point is not 0"


def _implied_zero_point(found: Quantized, site: NodeSite) -> Iterator[str]:
    if not _has(site.proto, 2) and not attribute(site, "block_size", 0) and not is_trt_fp8(site):
        yield f"{site.proto.op_type} has no zero point"


def _type(found: Quantized, site: NodeSite) -> Iterator[str]:
    kind = found.element(site)
    if kind is None or kind in _TAKEN or kind == TensorProto.INT32:
        return
    yield f"{site.proto.op_type} uses {_type_name(kind)}"


def _type_name(kind: int) -> str:
    known = kind in TensorProto.DataType.values()
    return TensorProto.DataType.Name(kind) if known else str(kind)


def _activation_scale(found: Quantized, site: NodeSite) -> Iterator[str]:
    rank = found.scale_rank(site)
    if rank not in (None, 0) and not found.is_constant(site.proto.input[0], site.scope):
        yield f"the scale of the activation has rank {rank}, expected a scalar"


def _scale_sign(found: Quantized, site: NodeSite) -> Iterator[str]:
    scale = found.constant(site.proto.input[1], site.scope) if _has(site.proto, 1) else None
    if scale is not None and not (scale.astype(np.float32) > 0).all():
        yield "a scale is 0, negative or NaN"


def _domain(found: Quantized, site: NodeSite) -> Iterator[str]:
    if not is_onnx(site):
        yield f"{site.proto.op_type} is that of {site.proto.domain}"


def _fp8(found: Quantized, site: NodeSite) -> Iterator[str]:
    if found.element(site) == TensorProto.FLOAT8E4M3FN:
        yield f"{site.proto.op_type} is FP8, which the target has no kernels for"


def _scalar_constant(found: Quantized, site: NodeSite) -> Iterator[str]:
    key = found.index.resolve(site.proto.input[0], site.scope)
    tensor = None if key is None else found.uses.tensors.get(key)
    if tensor is not None and not tensor.dims and tensor.data_type in _TAKEN:
        name = site.proto.input[0]
        yield f"the {_type_name(tensor.data_type)} constant {name!r} has rank 0"


def _constant_readers(found: Quantized) -> Iterator[tuple[NodeSite, str]]:
    """Constants of quantized types that something else than DQ reads as data: (reader, name); of
    integer operators O24-635 says all there is to say."""
    for key, tensor in found.uses.tensors.items():
        if tensor.data_type not in _TAKEN:
            continue
        for use in found.index.consumers(key.name, key.scope):
            is_data = use.input == 0 or not is_onnx(use.site, "Clip")
            integer = is_onnx(use.site, *_INTEGER_OPS)
            if is_data and not integer and not is_qdq(use.site) and is_onnx(use.site):
                kind = _type_name(tensor.data_type)
                yield use.site, f"{use.site.proto.op_type} reads the {kind} constant {key.name!r}"


def _unpaired(found: Quantized, site: NodeSite) -> Iterator[str]:
    readers = (use.site for use in found.readers(site))
    if others := sorted({each.proto.op_type for each in readers if not is_qdq(each, _DQ)}):
        yield f"its result is read by {', '.join(others)}"


def _integer_bias(found: Quantized, site: NodeSite) -> Iterator[str]:
    """What is no product's own bias, which `_bias` finds at the product."""
    if found.element(site) != TensorProto.INT32:
        return
    readers = found.readers(site)
    if not readers or any(is_onnx(use.site, *PRODUCTS) for use in readers):
        return
    yield "INT32 stands behind DequantizeLinear"


# --- products --------------------------------------------------------------------------------
def _integer_operator(found: Quantized, site: NodeSite) -> Iterator[str]:
    yield f"{site.proto.op_type} does not parse"


def _bias(found: Quantized, site: NodeSite) -> Iterator[str]:
    if (dq := found.bias(site)) is not None and found.element(dq) == TensorProto.INT32:
        yield f"the bias of {site.proto.op_type} is INT32 behind DQ"


def _small_bias(found: Quantized, site: NodeSite) -> Iterator[str]:
    if (dq := found.bias(site)) is not None and found.element(dq) != TensorProto.INT32:
        yield f"the bias of {site.proto.op_type} is behind DQ, of 8 bits or fewer"


def _int4_beside_int8(found: Quantized, site: NodeSite) -> Iterator[str]:
    operands = found.operands(site)
    if not all(operands):
        return
    four = [dq for dq in operands if dq is not None and _is_int4(found, dq)]
    if len(four) != 1:
        return
    if is_onnx(site, "Conv", "ConvTranspose"):
        yield f"the weight of {site.proto.op_type} is INT4 and its activation INT8"
    elif found.scale_rank(four[0]) == 0:
        yield f"the weight of {site.proto.op_type} is INT4 with one scale beside INT8"


_FOLDED = frozenset(
    {"Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Exp",
     "Expand", "Greater", "Identity", "Max", "Min", "Mul", "Neg", "Reciprocal", "Reshape", "Slice",
     "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
"""What tensorrt-rtx 1.7.1 computes of constants before it looks at a scale."""


def _computed_scale(found: Quantized, site: NodeSite) -> Iterator[str]:
    operands = [dq for dq in found.operands(site) if dq is not None]
    for dq in operands if len(operands) == 2 else ():
        if (op := _left_to_compute(found, dq.proto.input[1], dq.scope)) is not None:
            what = f"by {op}" if op else "at run time"
            yield f"a scale of {site.proto.op_type} is computed {what} ({dq.proto.input[1]!r})"


def _left_to_compute(found: Quantized, name: str, scope: str) -> str | None:
    """The operator that makes a scale no constant for the builder, "" for one that is fed; None
    where it is one."""
    values, seen = [(name, scope)], set()
    while values:
        name, scope = values.pop()
        key = found.index.resolve(name, scope)
        if key in seen or key in found.uses.tensors:
            continue
        seen.add(key)
        producer = found.index.producer(name, scope)
        if producer is None:
            return ""
        if not is_onnx(producer, *_FOLDED):
            return str(producer.proto.op_type)
        values += [(name, producer.scope) for name in producer.proto.input if name]
    return None


def _weight_axis(found: Quantized, site: NodeSite) -> Iterator[str]:
    for i, dq in enumerate(found.operands(site)):
        if dq is None or not found.is_weight(site, i, dq):
            continue
        rank = found.scale_rank(dq)
        if rank == 0:
            yield f"one scale for the whole weight of {site.proto.op_type}"
            continue
        direct = found.index.producer(site.proto.input[i], site.scope) is dq
        shape = found.shapes.shape(site.proto.input[i], site.scope)
        if rank != 1 or not direct or attribute(dq, "block_size", 0) or not shape:
            continue
        axis, expected = attribute(dq, "axis", 1), channel_axis(site, i, len(shape))
        # Which of the two TensorRT takes is not settled (docs/targets.md, deconv_scale_axis).
        if is_onnx(site, "ConvTranspose") and axis % len(shape) in (0, 1):
            continue
        if axis % len(shape) != expected:
            yield f"the weight is quantized along axis {axis}, expected {expected}"


def _one_sided(found: Quantized, site: NodeSite) -> Iterator[str]:
    operands = found.operands(site)
    quantized = [i for i, dq in enumerate(operands) if dq is not None]
    if len(quantized) != 1:
        return
    (which,) = quantized
    dq = operands[which]
    assert dq is not None
    if _is_int4(found, dq):
        return
    q = found.index.producer(dq.proto.input[0], dq.scope)
    above = None if q is None else _fused(found, q.proto.input[0], q.scope, PRODUCTS)
    is_weighted = any(found.is_weight(site, i, operands[i]) for i in (0, 1))
    if above is not None and (not is_weighted or id(above.proto) in found.sparse):
        return  # a product in float behind one that is INT8-out, which is what the pair is for
    yield f"only input {which} of {site.proto.op_type} is quantized"


def _residual(found: Quantized, site: NodeSite) -> Iterator[str]:
    if (each := _misplaced(found, site)) is not None:
        yield f"a pair stands between it and the Add {each.add.site.name!r}"


def _misplaced(found: Quantized, site: NodeSite) -> Misplaced | None:
    """Conv → Q → DQ → Add, where the Add's other operand is computed, and is not the result of a
    convolution that the sum is fused to (of two convolutions one must be the skip branch, and one
    that feeds the other can't be the last)."""
    if not all(found.operands(site)):
        return None
    end = _end_of_convolution(found, site)
    add = _add_behind_a_pair(found, end)
    if add is None or found.is_constant(add.site.proto.input[1 - add.input], add.site.scope):
        return None
    if not is_residual(found.shapes, add.site):
        return None
    other = _fused(found, add.site.proto.input[1 - add.input], add.site.scope)
    if other is None or _feeds(found, other, site):
        return Misplaced(site, end.proto.output[0], add)
    return None


def _add_behind_a_pair(found: Quantized, site: NodeSite) -> Use | None:
    """The Add that alone reads what a pair makes of the node's result, which nothing else reads:
    what others see leaves the kernel anyway."""
    for name in (_Q, _DQ):
        (use,) = readers if len(readers := found.readers(site)) == 1 else (None,)
        if use is None or not is_qdq(use.site, name) or use.input:
            return None
        site = use.site
    readers = found.readers(site)
    return readers[0] if len(readers) == 1 and is_onnx(readers[0].site, "Add") else None


def _feeds(found: Quantized, first: NodeSite, last: NodeSite) -> bool:
    """Whether one node's result reaches another, in one scope."""
    waiting, seen = [last], set()
    while waiting:
        site = waiting.pop()
        for name in site.proto.input:
            above = found.index.producer(name, site.scope) if name else None
            if above is first:
                return True
            if above is None or above.scope != first.scope or above.position < first.position:
                continue
            if above.position not in seen:
                seen.add(above.position)
                waiting.append(above)
    return False


def _end_of_convolution(found: Quantized, site: NodeSite) -> NodeSite:
    """The last node of its bias Add and BatchNormalization."""
    while True:
        readers = found.readers(site)
        if len(readers) != 1:
            return site
        use = readers[0]
        if is_onnx(use.site, "Add"):
            other = use.site.proto.input[1 - use.input]
            if not found.is_constant(other, use.site.scope):
                return site
        elif not is_onnx(use.site, "BatchNormalization") or use.input:
            return site
        site = use.site


def _fused(
    found: Quantized, name: str, scope: str, ops: Collection[str] = ("Conv", "ConvTranspose")
) -> NodeSite | None:
    """The quantized product that a value comes from with nothing but its epilogue between."""
    producer = found.index.producer(name, scope)
    while producer is not None and is_onnx(producer, *_EPILOGUE):
        computed = [
            value
            for value in producer.proto.input
            if value and not found.is_constant(value, producer.scope)
        ]
        if len(computed) != 1:
            return None
        producer = found.index.producer(computed[0], producer.scope)
    if producer is None or not is_onnx(producer, *ops) or not all(found.operands(producer)):
        return None
    return producer


# --- 2:4 -------------------------------------------------------------------------------------
# Source: NVIDIA Model-Optimizer pull request 1664 (none of 196 layers without a pair behind them).
def _sparse_uses(found: Quantized) -> dict[int, list[str]]:
    sparse: dict[int, list[str]] = {}
    for key, uses in found.uses.uses.items():
        grouped = [u for u in uses if u.kind == "product" and u.k_axis_consumer is not None]
        quantized = [use for use in grouped if _is_quantized(found, use)]
        if not quantized or not is_seen_24(found.model, found.uses, key):
            continue
        for use in quantized:
            assert use.consumer is not None
            sparse.setdefault(id(use.consumer.proto), []).append(key.name)
    return sparse


def _is_quantized(found: Quantized, use: WeightUse) -> bool:
    site = use.consumer
    if site is None or not is_onnx(site, *PRODUCTS):
        return False
    operands = found.operands(site)
    return all(dq is not None and found.element(dq) in _EIGHT_BITS for dq in operands)


def _is_quantized_behind(found: Quantized, site: NodeSite) -> bool:
    """Whether the end of the product's epilogue is read by QuantizeLinear alone; what leaves the
    graph, as its output or for a body, may stay float, and what `qdq` leaves so before
    Attention."""
    while True:
        name = site.proto.output[0]
        if found.is_output(name, site.scope):
            return True
        if is_quantized_ahead(found.index, name, site.scope):
            return True
        if reaches_float_attention(found.index, found.shapes, name, site.scope):
            return True
        readers = found.readers(site)
        if any(use.site.scope != site.scope for use in readers):
            return True
        if (mul := swish(found.index, name, site.scope)) is not None:
            site = mul
        elif len(readers) == 1 and is_onnx(readers[0].site, *_EPILOGUE):
            site = readers[0].site
        else:
            return False


# --- the table -------------------------------------------------------------------------------
@dataclass(frozen=True)
class QdqRule:
    """name: its key in a policy's section [qdq]. ops: the operators that it looks at. check: says
    what is wrong at such a node, nothing where all is well."""

    name: str
    code: str
    text: str
    source: str
    ops: tuple[str, ...]
    check: Callable[[Quantized, NodeSite], Iterator[str]]


_EXPLICIT = "TensorRT documentation, explicit quantization"
_EXPERIMENT = "experiment with tensorrt-rtx 1.7.1"

RULES = (
    QdqRule("zero-point", "O24-630", "Zero points are 0.", _EXPLICIT, (_Q, _DQ), _zero_point),
    QdqRule(
        "implied-zero-point",
        "O24-228",
        "Zero points are written out: without one QuantizeLinear makes UINT8.",
        "ONNX operator QuantizeLinear",
        (_Q, _DQ),
        _implied_zero_point,
    ),
    QdqRule(
        "type",
        "O24-631",
        "INT8, or INT4, FP8, FP4 where they belong.",
        f"{_EXPERIMENT} (UINT8 does not parse)",
        (_Q, _DQ),
        _type,
    ),
    QdqRule(
        "activation-scale",
        "O24-632",
        "An activation's scale has rank 0.",
        f"{_EXPERIMENT} (a scale of shape [1] disabled INT8 Conv)",
        (_Q,),
        _activation_scale,
    ),
    QdqRule(
        "scale",
        "O24-250",
        "Scales are positive.",
        f"{_EXPERIMENT} (a scale of 0 or below does not parse)",
        (_Q, _DQ),
        _scale_sign,
    ),
    QdqRule(
        "domain",
        "O24-251",
        "Q and DQ are ONNX's own.",
        f"{_EXPERIMENT} (others are built alike; ONNX Runtime runs none of trt's)",
        (_Q, _DQ),
        _domain,
    ),
    QdqRule(
        "constant",
        "O24-252",
        "No quantized constant has rank 0.",
        f"{_EXPERIMENT} (parses, and the builder refuses it)",
        (_DQ,),
        _scalar_constant,
    ),
    QdqRule(
        "fp8",
        "O24-255",
        "FP8 is for targets that have it.",
        f"{_EXPERIMENT} (refused for sm86)",
        (_Q, _DQ),
        _fp8,
    ),
    QdqRule("unpaired", "O24-636", "A Q is read by DQ alone.", _EXPLICIT, (_Q,), _unpaired),
    QdqRule(
        "bias",
        "O24-633",
        "INT32 stands behind no DequantizeLinear.",
        f"{_EXPERIMENT} (does not parse)",
        (_DQ,),
        _integer_bias,
    ),
    QdqRule(
        "integer-operator",
        "O24-635",
        "No integer products: TensorRT parses none.",
        "onnx-tensorrt, docs/operators.md",
        _INTEGER_OPS,
        _integer_operator,
    ),
    QdqRule(
        "bias",
        "O24-633",
        "Biases are float.",
        f"{_EXPERIMENT} (does not parse)",
        PRODUCTS,
        _bias,
    ),
    QdqRule(
        "small-bias",
        "O24-256",
        "Biases are float.",
        f"{_EXPLICIT}; tensorrt-rtx 1.7.1 builds biases of INT8",
        PRODUCTS,
        _small_bias,
    ),
    QdqRule(
        "int4",
        "O24-254",
        "INT4 beside INT8 is for MatMul and Gemm, by channel or block.",
        f"{_EXPERIMENT} (others fail in the compiler)",
        PRODUCTS,
        _int4_beside_int8,
    ),
    QdqRule(
        "computed-scale",
        "O24-260",
        "The scales of a convolution are constants.",
        f"{_EXPERIMENT} (it ends in a failed check or a crash; MatMul and Gemm build)",
        ("Conv",),
        _computed_scale,
    ),
    QdqRule(
        "weight-axis",
        "O24-634",
        "Weights are quantized along their output channels.",
        _EXPLICIT,
        PRODUCTS,
        _weight_axis,
    ),
    QdqRule(
        "one-sided",
        "O24-637",
        "Both operands of a product are quantized, or none; INT4 is for weights alone.",
        _EXPLICIT,
        PRODUCTS,
        _one_sided,
    ),
    QdqRule(
        "residual",
        "O24-638",
        "No pair between a convolution and a residual Add, but on the other branch.",
        "NVIDIA/TensorRT issues 1992, 3270",
        ("Conv", "ConvTranspose"),
        _residual,
    ),
)
"""What Q/DQ for TensorRT must look like, but for `sparse-output`, and `constant` of other readers
than DQ, which start from the weights."""


# --- what nodes say --------------------------------------------------------------------------
def _is_int4(found: Quantized, dq: NodeSite) -> bool:
    kind = found.shapes.dtype(dq.proto.input[0], dq.scope)
    return kind in (getattr(TensorProto, "INT4", -1), getattr(TensorProto, "UINT4", -1))


def _output_dtype(node: NodeProto) -> int:
    """*Source:* ONNX QuantizeLinear: UINT8 where neither output_dtype nor a zero point is given."""
    return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8


def _has(node: NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])
