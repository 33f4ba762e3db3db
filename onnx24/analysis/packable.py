"""Which products of a model can become an onnx24::SpMM24, and why the others not.

*Source:* for types and sizes, cuSPARSELt's documentation of `cusparseLtMatmulDescriptorInit`,
`cusparseLtStructuredDescriptorInit` (multiples of 16 for 16-bit and of 32 for 8-bit types in the
structured matrix) and of the matmul's scalar and vector `alpha`, which is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnx24.analysis.invariants import seen_violations
from onnx24.analysis.weight_uses import Step, WeightUse, WeightUses, consumer_view
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import is_in_function
from onnx24.ir.weights import numpy_dtype

__all__ = ["Packable", "Refusal", "find_packable"]

_FLOATS = {"float16": 16, "bfloat16": 16, "float32": 4}
"""Type → what K and N must be multiples of."""
_INT8_MULTIPLE = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Packable:
    """A MatMul or Gemm that can become an SpMM24. x: the name of its activation, behind the
    DequantizeLinear where the weight is int8. K, N, dtype, out: the operator's attributes; the
    weight's `dtype` as numpy's too."""

    key: ValueKey
    use: WeightUse
    x: str
    K: int
    N: int
    dtype: np.dtype
    out: int
    x_scale: float = 1.0

    @property
    def site(self) -> NodeSite:
        assert self.use.consumer is not None
        return self.use.consumer

    def weight(self, model: Model, found: WeightUses) -> np.ndarray:
        """[N, K], of `dtype`, as pack24 takes it; -0 is 0."""
        array = _without_scales(found.read(model, self.key), self.use)
        if self.use.k_axis_consumer == 0:
            array = array.T
        return np.where(array == 0, np.zeros((), array.dtype), array)

    def scale(self) -> np.ndarray:
        """float32 [N] or [1]: those of weight and activation, and Gemm's alpha."""
        scale = _scale_of_n(self.use)
        assert scale is not None
        alpha = np.float32(ops.attribute(self.site, "alpha", 1.0))
        return (scale * np.float32(self.x_scale) * alpha).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Refusal:
    key: ValueKey
    use: WeightUse
    code: str
    reason: str


def find_packable(
    model: Model, found: WeightUses, *, storage: bool = False
) -> Iterator[Packable | Refusal]:
    """Each MatMul and Gemm with a weight, in document order of the weights.

    storage: also what cuSPARSELt has no product for, and which is only stored smaller so.
    """
    claims = set(model.claims.keys())
    for key in found.tensors:
        for use in found.products(key):
            if use.op in ("MatMul", "Gemm") and use.consumer is not None:
                yield _judge(model, found, key, use, key in claims, storage)


class _No(Exception):
    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


def _judge(
    model: Model, found: WeightUses, key: ValueKey, use: WeightUse, claimed: bool, storage: bool
) -> Packable | Refusal:
    try:
        if not claimed:
            raise _No("O24-336", "the weight is not recorded as 2:4")
        return _packable(model, found, key, use, storage)
    except _No as no:
        return Refusal(key, use, no.code, no.reason)


def _packable(
    model: Model, found: WeightUses, key: ValueKey, use: WeightUse, storage: bool
) -> Packable:
    assert use.consumer is not None
    if is_in_function(use.scope):
        raise _No("O24-333", "it stands in a local function; canonicalize inlines it first")
    if use.code is not None:
        raise _No("O24-333", use.reason)
    if use.input != 1:
        raise _No("O24-333", "the weight is the left operand")
    if len(use.shape) != 2:
        raise _No("O24-333", f"the weight is {list(use.shape)}, not a matrix")
    steps = [step.op for step in use.chain]
    if "QuantizeLinear" in steps:
        raise _No("O24-333", "the weight is quantized at run time; fold-qdq folds it")
    if "Clip" in steps:
        raise _No("O24-333", "a Clip stands before DequantizeLinear; canonicalize computes it")
    stored = numpy_dtype(found.tensors[key].data_type)
    seen = use.chain[-1].dtype if use.chain else stored
    if "DequantizeLinear" in steps:
        return _quantized(model, found, key, use, stored, seen, storage)
    if seen.name not in _FLOATS:
        raise _No("O24-334", f"cuSPARSELt has no 2:4 product of {seen}")
    if seen.name == "float32" and not storage:
        raise _No("O24-334", "cuSPARSELt takes float32 in a 1:2 pattern, not in 2:4")
    _check_pattern(model, found, key, use)
    _check_sizes(use, _FLOATS[seen.name], seen)
    out = _onnx_type(seen)
    return Packable(key=key, use=use, x=use.data, K=use.K, N=use.N, dtype=seen, out=out)


def _quantized(
    model: Model,
    found: WeightUses,
    key: ValueKey,
    use: WeightUse,
    stored: np.dtype,
    seen: np.dtype,
    storage: bool,
) -> Packable:
    """W8A8: the activation comes out of a DequantizeLinear too, and its integers are taken."""
    if stored != np.dtype(np.int8):
        raise _No("O24-334", f"cuSPARSELt has no 2:4 product of {stored} values")
    if sum(step.op == "DequantizeLinear" for step in use.chain) > 1:
        raise _No("O24-333", "the weight goes through two DequantizeLinear")
    if _scale_of_n(use) is None:
        raise _No("O24-333", "the scale of the weight changes along K")
    if seen.name == "float32" and not storage:
        raise _No("O24-334", "cuSPARSELt has no int8 product with a float32 result")
    x, x_scale = _activation(model, found, use)
    _check_pattern(model, found, key, use)
    _check_sizes(use, _INT8_MULTIPLE, stored)
    return Packable(
        key=key,
        use=use,
        x=x,
        K=use.K,
        N=use.N,
        dtype=stored,
        out=_onnx_type(seen),
        x_scale=x_scale,
    )


def _check_pattern(model: Model, found: WeightUses, key: ValueKey, use: WeightUse) -> None:
    """A weight that two products read along different axes may be 2:4 for one of them only."""
    result = seen_violations(model, found, key, use)
    if result.violating:
        why = f"{result.violating:,} of {result.groups:,} groups have more than two values here"
        raise _No("O24-336", why)


def _check_sizes(use: WeightUse, multiple: int, dtype: np.dtype) -> None:
    if use.K % multiple or use.N % multiple:
        raise _No(
            "O24-335",
            f"K = {use.K} and N = {use.N}, expected multiples of {multiple} for {dtype}",
        )


def _activation(model: Model, found: WeightUses, use: WeightUse) -> tuple[str, float]:
    """The int8 activation's name and scale. Raises: _No where it is not int8 about 0."""
    producer = found.index.producer(use.data, use.scope)
    if producer is None or not ops.is_onnx(producer, "DequantizeLinear"):
        raise _No("O24-334", "the weight is int8 and the activation is not")
    if producer.scope != use.scope:
        raise _No("O24-333", "the activation is dequantized outside the body")
    parameters = []
    for name in list(producer.proto.input)[1:3]:
        key = found.index.resolve(name, producer.scope) if name else None
        if key not in found.tensors or key in found.index.graph_inputs:
            raise _No("O24-333", "the scale of the activation is computed at run time")
        parameters.append(found.read(model, key))
    if len(parameters) < 2 or parameters[1].dtype != np.int8:
        raise _No("O24-334", "the activation has no explicit int8 zero point")
    scale, zero_point = parameters
    if scale.size != 1 or np.any(zero_point != 0):
        raise _No("O24-334", "the activation needs one scale and zero point 0")
    return producer.proto.input[0], float(scale.astype(np.float32).reshape(()))


def _without_scales(array: np.ndarray, use: WeightUse) -> np.ndarray:
    """`consumer_view` up to the multiplication by a scale, in the stored integers."""
    if all(step.op != "DequantizeLinear" for step in use.chain):
        return consumer_view(array, use)
    for step in use.chain:
        if step.op == "Transpose":
            array = array.transpose(step.perm)
        elif step.op == "Reshape":
            array = array.reshape(step.shape)
    return array


def _scale_of_n(use: WeightUse) -> np.ndarray | None:
    """float32 [N] or [1]: the weight's scale for each output; None where it changes along K."""
    place = next((i for i, s in enumerate(use.chain) if s.op == "DequantizeLinear"), None)
    if place is None:
        return np.ones(1, np.float32)
    step = use.chain[place]
    assert step.scale is not None
    if step.axis is None:
        return step.scale.astype(np.float32).reshape(1)
    if step.block:
        return None
    spread = [-1 if i == step.axis else 1 for i in range(len(step.shape))]
    scales = np.broadcast_to(step.scale.astype(np.float32).reshape(spread), step.shape)
    scales = _moved(scales, use.chain[place + 1 :])
    assert use.k_axis_consumer is not None
    first = np.take(scales, [0], axis=use.k_axis_consumer)
    return first.reshape(-1).copy() if np.all(scales == first) else None


def _moved(array: np.ndarray, steps: tuple[Step, ...]) -> np.ndarray:
    for step in steps:
        array = array.transpose(step.perm) if step.op == "Transpose" else array.reshape(step.shape)
    return array


def _onnx_type(dtype: np.dtype) -> int:
    names = {
        "float16": TensorProto.FLOAT16,
        "bfloat16": TensorProto.BFLOAT16,
        "float32": TensorProto.FLOAT,
    }
    return int(names[dtype.name])
