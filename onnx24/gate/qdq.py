"""What is wrong with a model's Q/DQ nodes for TensorRT.

*Source:* TensorRT documentation, explicit quantization; experiments with tensorrt-rtx 1.7.1 (a
[1] scale of an activation disabled INT8 Conv, a bias behind DQ does not parse); NVIDIA/TensorRT
issues 1992, 3270 (residual Add); Model-Optimizer pull request 1664 (sparse INT8 needs INT8 out).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from onnx24.diagnostics import Diagnostic
from onnx24.gate.subject import Subject
from onnx24.ir.index import NodeSite, Use

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
_TAKEN = frozenset(
    getattr(TensorProto, name)
    for name in ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
)
_EPILOGUE = ("Add", "BatchNormalization", "Clip", "LeakyRelu", "Relu")
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def findings(subject: Subject) -> Iterator[Diagnostic]:
    """Every finding of every rule, whatever the policy says of its severity. `facts["rule"]` is
    the rule's key in the policy's section [qdq]."""
    sites = [site for site in subject.index.nodes if _is_onnx(site)]
    for site in sites:
        op = site.proto.op_type
        if op in (_Q, _DQ):
            yield from _quantizer(subject, site)
        elif op in _INTEGER_OPS:
            yield _at(subject, "O24-635", f"{op} does not parse", "integer-operator", site)
        if op in PRODUCTS:
            yield from _product(subject, site)
    yield from _sparse_outputs(subject)


def quantized_products(subject: Subject) -> tuple[int, int]:
    """(products with both operands behind DQ, products with a constant weight)."""
    quantized = total = 0
    for site in subject.index.nodes:
        if site.proto.op_type not in PRODUCTS or not _is_onnx(site):
            continue
        operands = [_dq_behind(subject, site, i) for i in (0, 1)]
        if not any(_is_constant(subject, site, i, operands[i]) for i in (0, 1)):
            continue
        total += 1
        quantized += all(operands)
    return quantized, total


def _quantizer(subject: Subject, site: NodeSite) -> Iterator[Diagnostic]:
    node, op = site.proto, site.proto.op_type
    is_q = op == _Q
    zero = subject.constant(node.input[2], site.scope) if _has(node, 2) else None
    if zero is not None and np.any(zero.astype(np.float32) != 0):
        yield _at(subject, "O24-630", "the zero point is not 0", "zero-point", site)
    kind = subject.shapes.dtype(node.output[0] if is_q else node.input[0], site.scope)
    if kind is None and is_q and not _has(node, 2):
        kind = _output_dtype(node)
    if kind is not None and kind not in _TAKEN and kind != TensorProto.INT32:
        name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else kind
        yield _at(subject, "O24-631", f"{op} uses {name}", "type", site)
    if not is_q:
        return
    computed = subject.constant(node.input[0], site.scope) is None
    rank = _scale_rank(subject, site)
    if computed and rank not in (None, 0):
        message = f"the scale of the activation has rank {rank}, expected a scalar"
        yield _at(subject, "O24-632", message, "activation-scale", site)
    readers = _readers(subject, site)
    if readers and not all(use.site.proto.op_type == _DQ for use in readers):
        others = sorted({u.site.proto.op_type for u in readers if u.site.proto.op_type != _DQ})
        message = f"its result is read by {', '.join(others)}"
        yield _at(subject, "O24-636", message, "unpaired", site)


def _product(subject: Subject, site: NodeSite) -> Iterator[Diagnostic]:
    node = site.proto
    operands = [_dq_behind(subject, site, i) for i in (0, 1)]
    if node.op_type != "MatMul" and _has(node, 2) and _dq_behind(subject, site, 2):
        yield _at(subject, "O24-633", f"the bias of {node.op_type} is behind DQ", "bias", site)
    for i, dq in enumerate(operands):
        if dq is not None and _is_constant(subject, site, i, dq):
            yield from _weight_axis(subject, site, dq)
    one_sided = sum(dq is not None for dq in operands) == 1
    weight_only = any(dq is not None and _is_int4(subject, dq) for dq in operands)
    if one_sided and not weight_only:
        message = f"only input {int(operands[1] is not None)} of {node.op_type} is quantized"
        yield _at(subject, "O24-637", message, "one-sided", site)
    if all(operands) and node.op_type in ("Conv", "ConvTranspose"):
        yield from _residual(subject, site)


def _weight_axis(subject: Subject, site: NodeSite, dq: NodeSite) -> Iterator[Diagnostic]:
    rank = _scale_rank(subject, dq)
    if rank == 0:
        message = f"one scale for the whole weight of {site.proto.op_type}"
        yield _at(subject, "O24-634", message, "weight-axis", site)
        return
    direct = subject.index.producer(site.proto.input[1], site.scope) is dq
    if rank != 1 or not direct or _attribute(dq.proto, "block_size", 0):
        return
    expected = {"Conv": 0, "ConvTranspose": 1}.get(site.proto.op_type)
    if site.proto.op_type == "Gemm":
        expected = 0 if _attribute(site.proto, "transB", 0) else 1
    shape = subject.shapes.shape(site.proto.input[1], site.scope)
    if shape is None:
        return
    if expected is None:
        expected = len(shape) - 1
    axis = _attribute(dq.proto, "axis", 1)
    if axis % max(len(shape), 1) != expected:
        message = f"the weight is quantized along axis {axis}, expected {expected}"
        yield _at(subject, "O24-634", message, "weight-axis", site)


def _residual(subject: Subject, site: NodeSite) -> Iterator[Diagnostic]:
    """Conv → Q → DQ → Add, where the Add's other operand is computed too."""
    for use in _readers(subject, site):
        if use.site.proto.op_type != _Q:
            continue
        for dq in _readers(subject, use.site):
            for add in _readers(subject, dq.site):
                if add.site.proto.op_type != "Add":
                    continue
                other = add.site.proto.input[1 - add.input]
                if subject.constant(other, add.site.scope) is None:
                    message = f"a pair stands between it and the Add {add.site.name!r}"
                    yield _at(subject, "O24-638", message, "residual", site)
                    return


def _sparse_outputs(subject: Subject) -> Iterator[Diagnostic]:
    if not subject.target.output_qdq_for_sparse:
        return
    sparse = {(row.scope, row.name) for row in subject.inspection.rows if row.is_24}
    for key, uses in subject.uses.uses.items():
        if (key.scope, key.name) not in sparse:
            continue
        for use in uses:
            site = use.consumer
            if use.kind != "product" or site is None or site.proto.op_type not in PRODUCTS:
                continue
            if not all(_dq_behind(subject, site, i) for i in (0, 1)):
                continue
            if not _is_quantized_behind(subject, site):
                message = f"{site.proto.op_type} is 2:4 and INT8, and its result stays float"
                yield _at(subject, "O24-639", message, "sparse-output", site, tensor=key.name)


def _is_quantized_behind(subject: Subject, site: NodeSite) -> bool:
    """Whether the end of the product's epilogue is read by QuantizeLinear alone; a graph output
    may stay float."""
    while True:
        readers = _readers(subject, site)
        if not readers:
            return True
        if all(use.site.proto.op_type == _Q for use in readers):
            return True
        if len(readers) != 1 or readers[0].site.proto.op_type not in _EPILOGUE:
            return False
        site = readers[0].site


def _readers(subject: Subject, site: NodeSite) -> list[Use]:
    return [
        use
        for name in site.proto.output
        if name
        for use in subject.index.consumers(name, site.scope)
    ]


def _dq_behind(subject: Subject, site: NodeSite, position: int) -> NodeSite | None:
    """The DequantizeLinear that makes an operand; a Transpose or Reshape may stand between."""
    if not _has(site.proto, position):
        return None
    name, scope = site.proto.input[position], site.scope
    for _ in range(8):
        producer = subject.index.producer(name, scope)
        if producer is None or not producer.proto.input:
            return None
        if producer.proto.op_type == _DQ:
            return producer
        if producer.proto.op_type not in ("Transpose", "Reshape", "Identity", "Squeeze"):
            return None
        name, scope = producer.proto.input[0], producer.scope
    return None


def _is_constant(subject: Subject, site: NodeSite, position: int, dq: NodeSite | None) -> bool:
    """Whether an operand is a weight, stored in float behind Q → DQ, or quantized behind DQ."""
    if dq is None:
        if not _has(site.proto, position):
            return False
        return subject.constant(site.proto.input[position], site.scope) is not None
    name, scope = dq.proto.input[0], dq.scope
    q = subject.index.producer(name, scope)
    if q is not None and q.proto.op_type == _Q:
        name, scope = q.proto.input[0], q.scope
    return subject.constant(name, scope) is not None


def _is_int4(subject: Subject, dq: NodeSite) -> bool:
    kind = subject.shapes.dtype(dq.proto.input[0], dq.scope)
    return kind in (getattr(TensorProto, "INT4", -1), getattr(TensorProto, "UINT4", -1))


def _scale_rank(subject: Subject, site: NodeSite) -> int | None:
    if not _has(site.proto, 1):
        return None
    scale = subject.constant(site.proto.input[1], site.scope)
    if scale is not None:
        return scale.ndim
    return subject.shapes.rank(site.proto.input[1], site.scope)


def _output_dtype(node: NodeProto) -> int:
    """*Source:* ONNX QuantizeLinear: UINT8 where neither output_dtype nor a zero point is given."""
    return int(_attribute(node, "output_dtype", 0)) or TensorProto.UINT8


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name and attribute.type == AttributeProto.INT:
            return attribute.i
    return default


def _has(node: NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])


def _is_onnx(site: NodeSite) -> bool:
    return site.proto.domain in ("", "ai.onnx")


def _at(
    subject: Subject, code: str, message: str, rule: str, site: NodeSite, tensor: str = ""
) -> Diagnostic:
    return subject.finding(
        code,
        message,
        f"qdq.{rule}",
        scope=site.scope,
        node=site.name,
        op=site.proto.op_type,
        tensor=tensor,
    )
