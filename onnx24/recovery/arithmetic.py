"""Elementwise operators, comparisons, reductions and products in torch.

*Source:* the ONNX operator specification (onnx/docs/Operators.md and Changelog.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from onnx24.recovery._torch import functional, torch
from onnx24.recovery.node import (
    TORCH_DTYPES,
    Node,
    Tensor,
    Unsupported,
    check,
    input_or_attribute,
    integers,
    operator,
)

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _enter_simple() -> None:
    for name, unary in _UNARY.items():
        operator(name)(lambda node, x, _f=unary: _f(x))
    for name, binary in _BINARY.items():
        operator(name)(lambda node, a, b, _f=binary: _f(a, b))
    for name, folded in _VARIADIC.items():
        operator(name)(lambda node, *values, _f=folded: functools.reduce(_f, values))


_enter_simple()


@check("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
def _old_broadcast(node: Node) -> str:
    return "broadcasts by an attribute (opset 6 or older)" if node.get("broadcast") else ""


@operator("Mean")
def _mean(node: Node, *values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


@operator("Div")
def _div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def _pow(node: Node, a: Tensor, b: Tensor) -> Tensor:
    # Tensors as exponents have no shortcut for squares, whose gradient at 0 is then 0 · log 0.
    if b.numel() == 1 and not b.requires_grad:
        result = torch.pow(a, b.item())
        shape = torch.broadcast_shapes(a.shape, b.shape)
        return result.to(a.dtype).expand(shape)
    return torch.pow(a, b).to(a.dtype)


@operator("Where")
def _where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("Clip")
def _clip(node: Node, x: Tensor, low: Tensor = None, high: Tensor = None) -> Tensor:
    low = node.get("min") if low is None else low
    high = node.get("max") if high is None else high
    for bound, limit in ((low, torch.maximum), (high, torch.minimum)):
        if bound is not None:
            x = limit(x, torch.as_tensor(bound, dtype=x.dtype).reshape(()))
    return x


@operator("IsInf")
def _is_inf(node: Node, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.get("detect_positive", 1):
        found = found | (x == math.inf)
    if node.get("detect_negative", 1):
        found = found | (x == -math.inf)
    return found


@operator("Dropout")
def _dropout(node: Node, x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.ones_like(x, dtype=torch.bool)


# --- activations -----------------------------------------------------------------------------
@operator("Elu")
def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def _celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.0507010221481)
    return gamma * functional.elu(x, alpha)


@operator("LeakyRelu")
def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Shrink")
def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, lambd = node.get("bias", 0.0), node.get("lambd", 0.5)
    shrunk = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, shrunk)


@operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0.0, 1.0)


@operator("Swish")
def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@operator("Gelu")
def _gelu(node: Node, x: Tensor) -> Tensor:
    approximate = node.get("approximate", b"none")
    return functional.gelu(x, approximate=_text(approximate))


@operator("Gelu", domain="com.microsoft")
def _ms_gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x)


@operator("FastGelu", "BiasGelu", domain="com.microsoft")
def _ms_biased_gelu(node: Node, x: Tensor, bias: Tensor = None) -> Tensor:
    x = x if bias is None else x + bias
    return functional.gelu(x, approximate="tanh" if node.op == "FastGelu" else "none")


@operator("QuickGelu", domain="com.microsoft")
def _ms_quick_gelu(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    """Up to opset 12 over everything from `axis` on, as one; since 13 along `axis`."""
    apply = torch.softmax if node.op == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return apply(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.dim(), 1)
    return apply(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


# --- products --------------------------------------------------------------------------------
@operator("MatMul")
def _matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = a @ b if alpha == 1.0 else alpha * (a @ b)
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


@operator("Einsum")
def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(_text(node.get("equation")), *values)


# --- reductions ------------------------------------------------------------------------------
def _dims(node: Node, x: Tensor, axes: Tensor) -> list[int] | None:
    """The axes that are reduced; None for none at all."""
    given = input_or_attribute(node, axes, "axes")
    if not given:
        return None if node.get("noop_with_empty_axes", 0) else list(range(x.dim()))
    return [axis % max(x.dim(), 1) for axis in given]


_REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, d, k: x.mean(d, k),
    "ReduceSum": lambda x, d, k: x.sum(d, k, dtype=x.dtype),
    "ReduceMax": lambda x, d, k: x.amax(d, k),
    "ReduceMin": lambda x, d, k: x.amin(d, k),
    "ReduceL1": lambda x, d, k: x.abs().sum(d, k),
    "ReduceL2": lambda x, d, k: x.square().sum(d, k).sqrt(),
    "ReduceSumSquare": lambda x, d, k: x.square().sum(d, k, dtype=x.dtype),
    "ReduceLogSum": lambda x, d, k: x.sum(d, k).log(),
    "ReduceLogSumExp": lambda x, d, k: torch.logsumexp(x, d, k),
}


@operator(*_REDUCE)
def _reduce(node: Node, x: Tensor, axes: Tensor = None) -> Tensor:
    dims = _dims(node, x, axes)
    if dims is None or not x.dim():
        return x
    return _REDUCE[node.op](x, dims, bool(node.get("keepdims", 1)))


@operator("ReduceProd")
def _reduce_prod(node: Node, x: Tensor, axes: Tensor = None) -> Tensor:
    keep = bool(node.get("keepdims", 1))
    for axis in sorted(_dims(node, x, axes) or [], reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


@operator("ArgMax", "ArgMin")
def _arg_extreme(node: Node, x: Tensor) -> Tensor:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    find = torch.argmax if node.op == "ArgMax" else torch.argmin
    if not node.get("select_last_index", 0):
        return find(x, axis, keep)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)


@operator("CumSum")
def _cumsum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    dim = integers(axis)[0]
    x = x.flip(dim) if node.get("reverse", 0) else x
    total = x.cumsum(dim, dtype=x.dtype)
    total = total - x if node.get("exclusive", 0) else total
    return total.flip(dim) if node.get("reverse", 0) else total


@operator("TopK")
def _topk(node: Node, x: Tensor, k: Tensor = None) -> tuple[Tensor, Tensor]:
    count = integers(k)[0] if k is not None else node.get("k")
    largest = bool(node.get("largest", 1))
    # Among equals the lower index comes first, which torch.topk does not promise.
    values, indices = torch.sort(x, dim=node.get("axis", -1), descending=largest, stable=True)
    axis = node.get("axis", -1)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


# --- types -----------------------------------------------------------------------------------
@operator("Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    dtype = TORCH_DTYPES.get(node.get("to"))
    if dtype is None:
        raise Unsupported(f"casts to ONNX's element type {node.get('to')}")
    return x.to(dtype)


@check("Cast")
def _known_type(node: Node) -> str:
    known = node.get("to") in TORCH_DTYPES
    return "" if known else f"casts to ONNX's element type {node.get('to')}"


@operator("CastLike")
def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)
