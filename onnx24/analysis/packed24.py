"""The operator onnx24::SpMM24: products whose weight is stored without its zeros.

    y = cast(out, (x @ W) * scale)        onnx24::SpMM24(x, values, metadata, scale)

x: [..., K], of W's type; y: [..., N], of type `out`. W [K, N] is 2:4 along K; it is given as
`values` [N, K/2] and `metadata` int32 [N, ceil(K/32)], which are what `sparsity.pack.pack24` makes
of W's transpose, with four bytes of metadata in one little-endian word (the last word of a row is
filled up with 0). scale: float32, [N] or [1]. Attributes: K, N; dtype, the ONNX type of the values;
out, that of the result. Sums are in float32, or exact for int8.

`analysis.packable` says which products of a model can become one.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.weights import numpy_dtype
from onnx24.sparsity.pack import Packed24, unpack24

__all__ = [
    "DOMAIN",
    "OP",
    "is_packed",
    "packed_problem",
    "packed_product",
    "words_of",
]

DOMAIN, OP = "onnx24", "SpMM24"


def is_packed(site: NodeSite) -> bool:
    return ops.type_of(site) == (DOMAIN, OP)


def packed_product(index: Index, key: ValueKey) -> NodeSite | None:
    """The first SpMM24 that has the initializer as its packed values; None where none has."""
    if key not in index.initializers:
        return None
    uses = index.consumers(key.name, key.scope)
    return next((use.site for use in uses if use.input == 1 and is_packed(use.site)), None)


def packed_problem(model: Model, index: Index, site: NodeSite) -> str | None:
    """Why the weight of an SpMM24 is no 2:4 array any more; None where it is one. Two values for
    each four are 2:4 as long as shapes and metadata say where they belong."""
    inputs = site.proto.input
    if len(inputs) != 4:
        return f"{site.name} has {len(inputs)} inputs, expected x, values, metadata and scale"
    k, n = (int(ops.attribute(site, name, 0)) for name in ("K", "N"))
    tensors = []
    for name in (inputs[1], inputs[2]):
        key = index.resolve(name, site.scope)
        if key not in index.initializers:
            return f"{name!r}, an input of {site.name}, is no initializer"
        tensors.append(model.weights.read(index.initializers[key]))
    values, words = tensors
    if words.dtype != np.int32 or words.shape != (n, -(-k // 32)) or values.shape != (n, k // 2):
        return (
            f"{site.name} has values {list(values.shape)} and metadata {words.dtype}"
            f"{list(words.shape)}, which are no packed [{k}, {n}]"
        )
    if int(ops.attribute(site, "dtype", 0)) not in TensorProto.DataType.values():
        return f"{site.name} has no dtype"
    if values.dtype != numpy_dtype(int(ops.attribute(site, "dtype"))):
        return f"{site.name} has values of type {values.dtype}, which is not its dtype"
    metadata = np.ascontiguousarray(words.astype("<i4")).view(np.uint8)
    used = -(-k // 8)
    if np.any(metadata[:, used:]):
        return f"{site.name}: the unused bits of a row's last word are not 0"
    try:
        unpack24(Packed24(values, np.ascontiguousarray(metadata[:, :used])))
    except ValueError as err:
        return f"{site.name}: {err}"
    return None


def words_of(metadata: np.ndarray) -> np.ndarray:
    """pack24's metadata, uint8 [R, B], as int32 [R, ceil(B/4)]. TensorRT holds int32 constants in
    every version; uint8 ones it does not, and int8 ones mean quantized values to it."""
    rows, size = metadata.shape
    padded = np.zeros((rows, -(-size // 4) * 4), np.uint8)
    padded[:, :size] = metadata
    return padded.view("<i4").astype(np.int32)
