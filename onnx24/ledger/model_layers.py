"""The layers of a model that multiply: sizes, work, and whether 2:4 is possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from onnx import ModelProto

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Verdict, judge
from onnx24.analysis.invariants import seen_violations
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.backends.base import Profile
from onnx24.codes import CODES
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.model import Model
from onnx24.ir.shapes import ShapeTable, infer
from onnx24.ir.weights import numpy_dtype
from onnx24.targets import Target


@dataclass(frozen=True, kw_only=True)
class ModelLayer:
    """One product, of a weight or of two activations (`weight` is "" then). k, n: reduction and
    output sizes [elements]; flops: two for each multiplication and addition, at the sizes asked
    for; None where a size is not known.
    activation_bytes: what it reads and writes besides the weight; is_24: None where the question
    has no meaning. code, reason: why it cannot be sparse; code O24-101 where it can."""

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    k: int
    n: int
    flops: int | None
    activation_bytes: int | None
    is_24: bool | None
    eligible: bool
    code: str
    reason: str

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize if self.weight else 0


def layers_of(
    model: Model, target: Target, shapes: Mapping[str, Profile]
) -> tuple[list[ModelLayer], list[str]]:
    """Every product in document order, and the names of all nodes. Sizes are those of the profiles'
    opt; an unknown size counts as 1."""
    cache = AnalysisCache()
    uses = cache.get(model, WeightUses)
    table = bound_shapes(model, shapes)
    order = {id(site.proto): i for i, site in enumerate(uses.index.nodes)}
    found = []
    for verdict in judge(model, cache, target).values():
        for use in verdict.products:
            if use.kind == "product" and use.consumer is not None:
                position = order.get(id(use.consumer.proto), len(order))
                found.append((position, _layer(model, uses, table, verdict, use)))
    found += [(order[id(site.proto)], _dynamic(table, site)) for site in uses.dynamic]
    found.sort(key=lambda item: item[0])
    return [layer for _, layer in found], [site.name for site in uses.index.nodes]


def _layer(
    model: Model, uses: WeightUses, table: ShapeTable, verdict: Verdict, use: WeightUse
) -> ModelLayer:
    held = uses.tensors.get(verdict.key)
    tensor = held if held is not None else uses.unheld[verdict.key][0]
    shape, dtype = tuple(tensor.dims), numpy_dtype(tensor.data_type)
    flops, moved = _work(table, use, shape, dtype.itemsize)
    groups = held is not None and use.k_axis_consumer is not None and use.K % 4 == 0
    return ModelLayer(
        name=use.node,
        op=use.op,
        weight=verdict.key.name,
        shape=shape,
        dtype=str(verdict.facts.get("dtype", dtype.name)),
        itemsize=dtype.itemsize,
        k=use.K,
        n=use.N,
        flops=flops,
        activation_bytes=moved,
        is_24=not seen_violations(model, uses, verdict.key, use).violating if groups else None,
        eligible=verdict.eligible,
        code=verdict.code,
        reason=verdict.reason or CODES[verdict.code].title,
    )


def _dynamic(table: ShapeTable, site: NodeSite) -> ModelLayer:
    """A product of two activations: QKᵀ and its like."""
    node, scope = site.proto, site.scope
    left, right, out = (_sizes(table, v, scope) for v in (*node.input[:2], node.output[0]))
    data_type = table.dtype(node.input[0], scope)
    dtype = numpy_dtype(data_type) if data_type else np.dtype(np.float32)
    flops = moved = None
    k = left[-1] if left and ops.is_onnx(node, "MatMul") else 0
    if left and right and out is not None and k:
        flops = 2 * math.prod(out) * k
        moved = sum(math.prod(sizes) for sizes in (left, right, out)) * dtype.itemsize
    return ModelLayer(
        name=site.name,
        op=node.op_type,
        weight="",
        shape=(),
        dtype=dtype.name,
        itemsize=dtype.itemsize,
        k=k,
        n=right[-1] if right and len(right) > 1 and k else 0,
        flops=flops,
        activation_bytes=moved,
        is_24=None,
        eligible=False,
        code="O24-117",
        reason=CODES["O24-117"].title,
    )


def _work(
    table: ShapeTable, use: WeightUse, shape: tuple[int, ...], itemsize: int
) -> tuple[int | None, int | None]:
    assert use.consumer is not None
    node, scope = use.consumer.proto, use.consumer.scope
    out = _sizes(table, node.output[0], scope)
    data = _sizes(table, use.data, scope) if use.data else None
    if out is None:
        return None, None
    if use.op == "ConvTranspose":
        if data is None:
            return None, None
        macs = math.prod(data) * math.prod(shape[1:])
    else:
        macs = math.prod(out) * use.K * use.spatial
    moved = math.prod(out) + (math.prod(data) if data is not None else 0)
    return 2 * macs, moved * itemsize


def _sizes(table: ShapeTable, value: str, scope: str) -> list[int] | None:
    shape = table.shape(value, scope)
    return None if shape is None else [s if isinstance(s, int) else 1 for s in shape]


@dataclass(frozen=True)
class _Document:
    """As much of a model as shape inference looks at."""

    proto: ModelProto


def bound_shapes(model: Model, shapes: Mapping[str, Profile]) -> ShapeTable:
    """The shapes of every value when the inputs have the profiles' opt sizes."""
    if not shapes:
        return infer(model)
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    sizes: dict[str, int] = {}
    for value in proto.graph.input:
        profile = shapes.get(value.name)
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, profile.opt, strict=True) if profile else ():
            if dim.dim_param:
                sizes[dim.dim_param] = size
            dim.dim_value = size
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    return infer(cast(Model, _Document(proto)))
