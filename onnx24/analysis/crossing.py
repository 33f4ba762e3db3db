"""What may stand between a Q/DQ pair and the operator that it is for.

`qdq` moves pairs over these operators, and whoever asks whether a value is quantized looks over
the same ones: there is no second list. *Source:* TensorRT documentation, explicit quantization,
"Q/DQ propagation".
"""

from __future__ import annotations

from onnx import TensorProto, numpy_helper

from onnx24.analysis.dataflow import Shapes
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.ops import AnyNode, attribute, is_onnx, op, type_of

__all__ = [
    "ACTIVATIONS",
    "COMMUTING",
    "FP8_COPIES",
    "REARRANGING",
    "SELECTING",
    "crosses",
    "dq_behind",
    "is_qdq",
    "is_quantized_ahead",
    "is_trt_fp8",
    "qdq_kind",
    "reaches_float_attention",
    "swish",
]

REARRANGING = frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "Identity",
        "MaxPool",
        "Reshape",
        "SpaceToDepth",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that commute with rounding and show (nearly) the values that they are given."""
SELECTING = frozenset({"Gather", "Slice"})
"""Operators that commute with rounding and may leave out what the range comes from."""
COMMUTING = REARRANGING | SELECTING
FP8_COPIES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Of these the ones that FP8 pairs move over: they change the shape alone. Nothing public says that
MaxPool and the others take FP8."""

ACTIVATIONS = frozenset({"Clip", "HardSwish", "LeakyRelu", "Relu"})
"""What TensorRT fuses behind a product as its activation."""


_QDQ = {
    **{(domain, name): name for domain in ("", "com.microsoft")
       for name in ("QuantizeLinear", "DequantizeLinear")},
    ("trt", "TRT_FP8QuantizeLinear"): "QuantizeLinear",
    ("trt", "TRT_FP8DequantizeLinear"): "DequantizeLinear",
}  # fmt: skip


def qdq_kind(node: AnyNode) -> str:
    """ "QuantizeLinear" or "DequantizeLinear" where a node is one of them, else "": ONNX's own;
    those of com.microsoft, which ONNX Runtime writes below opset 21 and TensorRT takes alike; and
    TensorRT's TRT_FP8QuantizeLinear and TRT_FP8DequantizeLinear (`is_trt_fp8`).
    *Source:* experiment with tensorrt-rtx 1.7.1, whose parser does not look at the domain.
    """
    return _QDQ.get(type_of(node), "")


def is_qdq(node: AnyNode, *names: str) -> bool:
    """Whether a node is a QuantizeLinear or DequantizeLinear, as in `qdq_kind`; of `names` where
    any are given."""
    kind = qdq_kind(node)
    return kind in names if names else bool(kind)


def is_trt_fp8(node: AnyNode) -> bool:
    """Whether a node quantizes to, or dequantizes from, FP8 (E4M3) under TensorRT's own name:
    NVIDIA ModelOpt writes it from PyTorch. It has a scale and no zero point."""
    return type_of(node)[0] == "trt" and is_qdq(node)


_BARRIERS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "MatMul",
        "RMSNormalization",
    }
)
"""Behind these Attention does not see that a value was quantized."""


def crosses(index: Index, site: NodeSite) -> bool:
    """Whether the node computes the same from rounded values as it would round: it copies or
    selects values of its first input, or puts zeros around them, which scales of zero point 0
    keep. *Source:* NVIDIA/TensorRT issue 2592 (a Pad is fused into the convolution behind it where
    the pair stands before both)."""
    if is_onnx(site, "Resize"):
        return bool(attribute(site, "mode", "nearest") == "nearest")
    return op(site) in COMMUTING or _pads_with_zeros(index, site)


def _pads_with_zeros(index: Index, site: NodeSite) -> bool:
    if not is_onnx(site, "Pad") or attribute(site, "mode", "constant") != "constant":
        return False
    value = site.proto.input[2] if len(site.proto.input) > 2 else ""
    if not value:
        return not attribute(site, "value", 0.0)
    key = index.resolve(value, site.scope)
    tensor = index.initializers.get(key) if key and key not in index.graph_inputs else None
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return False
    return not numpy_helper.to_array(tensor).any()


def reaches_float_attention(index: Index, shapes: Shapes, value: str, scope: str = "") -> bool:
    """Whether a value goes into ONNX's Attention in float32, before another product or a
    normalization. TensorRT-RTX has kernels for it straight behind products, and none behind a Q/DQ
    pair; in 16 bit it builds both. *Source:* experiment with tensorrt-rtx 1.7.1."""
    pending, seen = [(value, scope)], {(value, scope)}
    while pending:
        name, scope = pending.pop()
        for use in index.consumers(name, scope):
            if is_onnx(use.site, "Attention"):
                if shapes.dtype(use.site.proto.input[0], use.site.scope) == TensorProto.FLOAT:
                    return True
            elif op(use.site) not in _BARRIERS:
                new = {(out, use.site.scope) for out in use.site.proto.output if out} - seen
                seen |= new
                pending += new
    return False


def dq_behind(index: Index, value: str, scope: str = "") -> NodeSite | None:
    """The DequantizeLinear that a value comes from, over operators that pairs cross."""
    producer = index.producer(value, scope)
    while producer is not None and producer.proto.input:
        node = producer.proto
        if is_qdq(producer, "DequantizeLinear"):
            return producer
        if not crosses(index, producer) or value != node.output[0]:
            return None
        value = node.input[0]
        producer = index.producer(value, producer.scope)
    return None


def is_quantized_ahead(index: Index, value: str, scope: str = "") -> bool:
    """Whether nothing but QuantizeLinear reads a value, over operators that pairs cross; of what
    nothing reads, it is true."""
    uses = index.consumers(value, scope)
    while uses:
        use = uses.pop()
        if use.input == 0 and is_qdq(use.site, "QuantizeLinear"):
            continue
        if use.input or not crosses(index, use.site):
            return False
        for name in filter(None, use.site.proto.output):
            uses += index.consumers(name, use.site.scope)
    return True


def swish(index: Index, value: str, scope: str = "") -> NodeSite | None:
    """The Mul of x · sigmoid(x) or x · hardsigmoid(x), as exporters write them, where nothing else
    reads x or the gate."""
    if index.resolve(value, scope) in index.graph_outputs:
        return None
    readers = [use.site for use in index.consumers(value, scope)]
    by_op = {op(site): site for site in readers}
    sigmoid = by_op.get("Sigmoid") or by_op.get("HardSigmoid")
    if len(readers) != 2 or "Mul" not in by_op or sigmoid is None:
        return None
    gate = sigmoid.proto.output[0]
    uses = index.consumers(gate, sigmoid.scope)
    shown = index.resolve(gate, sigmoid.scope) in index.graph_outputs
    if shown or len(uses) != 1 or uses[0].site is not by_op["Mul"]:
        return None
    return by_op["Mul"]
