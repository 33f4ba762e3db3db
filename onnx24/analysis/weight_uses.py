"""Who reads each weight, through which chain of nodes, and along which axis it is reduced.

A weight is followed from its initializer (of any scope, embedded or external) or its Constant
node through Identity, Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Cast, QuantizeLinear and
DequantizeLinear (of com.microsoft and TensorRT as well), and a Clip of the integers between them,
to every final consumer, into nested bodies too. The consumer's reduction axis is
led back to the stored tensor by `analysis.layout`. What is not followed is reported as such, never
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import ml_dtypes
import numpy as np
from onnx import GraphProto, SparseTensorProto, TensorProto

from onnx24.analysis.cache import Analysis, AnalysisCache
from onnx24.analysis.crossing import is_qdq, is_trt_fp8, qdq_kind
from onnx24.analysis.dataflow import Dataflow, Shapes
from onnx24.analysis.folding import can_fold
from onnx24.analysis.forms import foreign_operand, is_product, product_form
from onnx24.analysis.layout import Layout, axis_with_stride
from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite, Use
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.weights import numpy_dtype

__all__ = [
    "COMPUTED",
    "Kind",
    "Step",
    "WeightUse",
    "WeightUses",
    "consumer_view",
    "followed",
    "stored_values",
]

Kind = Literal["product", "recurrent", "foreign", "parameter", "untraced", "visible", "other"]
"""What a final consumer does with the values: multiplies and sums them (the only kind that can be
sparse); so does a recurrent layer; so does an operator whose products are not judged, or one that
nobody knows; takes them as scale or zero point; rearranges or computes in a way that is not
followed, on the way to a product; shows them outside the graph; anything else."""

COMPUTED = "O24-057"
"""The code of an operand that is constant and that no tensor holds."""
_SPMM24 = "function:onnx24:SpMM24"
"""The scope of the function that says what SpMM24 means (analysis.packed24): its product has a
weight, the packed one."""
_SHAPE_ONLY = frozenset({"Shape", "Size"})
_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_BODIES = {
    "If": "chooses a body",
    "Loop": "is the first value of a state that Loop changes",
    "Scan": "is a state or is sliced by Scan",
    "SequenceMap": "is sliced by SequenceMap",
}
_MOVING = frozenset(
    {
        "Cast",
        "CenterCropPad",
        "Compress",
        "DepthToSpace",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "Expand",
        "Flatten",
        "Identity",
        "Optional",
        "OptionalGetElement",
        "Pad",
        "QuantizeLinear",
        "Reshape",
        "ReverseSequence",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceInsert",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    }
)
"""Operators whose results hold values of one operand, whatever the others are: behind them the
same values may still reach a product."""
_LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND"})

_FOLLOWED = frozenset(
    {
        "Cast",
        "Clip",
        "DequantizeLinear",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def followed(node: ops.AnyNode) -> str:
    """The operator's name where it is one that is followed from input 0 to output 0, its parameters
    being constant; else ""."""
    name = qdq_kind(node) or ops.op(node)
    return name if name in _FOLLOWED else ""


@dataclass(frozen=True, eq=False)
class Step:
    """One node of a chain. `perm` for Transpose; `shape`: the output's, for the reshaping ones;
    `dtype`: the output's, for Cast, Q and DQ; scale, zero_point, axis and block for Q and DQ
    (axis None: per tensor; block 0: none); bounds for Clip."""

    op: str
    site: NodeSite
    shape: tuple[int, ...]
    dtype: np.dtype
    perm: tuple[int, ...] = ()
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int | None = None
    block: int = 0
    bounds: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightUse:
    """One final consumer of a weight. `consumer` is None where the value is a graph output.

    code: why this use can't be sparse, None where it can. `data`: the name, in the consumer's
    scope, of the operand that the weight is multiplied with. k_axis: the reduction axis in the
    stored tensor, None where no single axis is it; k_stride: how far apart, in the flat stored
    tensor, the members of a group of four lie, None where groups straddle. K and N: sizes
    [elements] of the reduction axis (input channels, for a convolution) and of the outputs.
    spatial: positions of a convolution's kernel. batch: matrices of a batched product.
    """

    kind: Kind
    consumer: NodeSite | None
    input: int = 0
    op: str = ""
    code: str | None = None
    reason: str = ""
    chain: tuple[Step, ...] = ()
    data: str = ""
    k_axis_consumer: int | None = None
    k_axis: int | None = None
    k_stride: int | None = None
    shape: tuple[int, ...] = ()
    K: int = 0
    N: int = 0
    groups: int = 1
    spatial: int = 1
    batch: int = 1
    notes: tuple[str, ...] = ()

    @property
    def eligible(self) -> bool:
        return self.kind == "product" and self.code is None

    @property
    def node(self) -> str:
        return self.consumer.name if self.consumer else ""

    @property
    def scope(self) -> str:
        return self.consumer.scope if self.consumer else ""


@dataclass
class WeightUses(Analysis):
    """`uses`: every initializer of every scope, and every tensor of a Constant node (under the
    node's scope and output), with its final consumers in document order."""

    depends: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    """Zero points and the shapes of Reshape are values."""

    uses: dict[ValueKey, list[WeightUse]]
    tensors: dict[ValueKey, TensorProto]
    constants: frozenset[ValueKey]
    """Those that are Constant nodes."""
    unheld: dict[ValueKey, tuple[TensorProto, list[WeightUse]]]
    """Numbers that no TensorProto holds (sparse initializers, lists in Constant nodes, what nodes
    compute from constants): a tensor without values, and uses of which none is eligible."""
    dynamic: list[NodeSite]
    """Products whose operands are both computed at run time."""
    index: Index
    fixed: set[ValueKey]
    """What depends on nothing but constants, those included."""
    looked_at: set[ValueKey]
    """Initializers whose values decided something: scales, zero points, shapes. Those of weights
    decide nothing."""

    @classmethod
    def compute(cls, model: Model, cache: AnalysisCache) -> WeightUses:
        index = cache.get(model, Dataflow).index
        tensors = dict(index.initializers)
        constants = dict(_constant_tensors(index))
        tensors.update(constants)
        unheld = dict(_unheld(model, index))
        tracer = _Tracer(model, index)
        uses = {key: tracer.trace(key, tensor) for key, tensor in tensors.items()}
        elsewhere = {
            key: (tensor, [_refused(use, why) for use in tracer.trace(key, tensor)])
            for key, (tensor, why) in unheld.items()
        }
        weighted = {
            id(use.consumer.proto)
            for found in (*uses.values(), *(found for _, found in elsewhere.values()))
            for use in found
            if use.kind == "product" and use.consumer
        }
        dynamic = []
        for site in index.nodes:
            if (
                not is_product(site, 1)
                or site.scope == _SPMM24
                or len(site.proto.input) < 2
                or id(site.proto) in weighted
            ):
                continue
            fixed = [tracer.is_fixed(name, site.scope) for name in site.proto.input[:2]]
            if not any(fixed):
                dynamic.append(site)
            elif not all(fixed) and is_product(site, fixed.index(True)):
                key, tensor, use = _computed(site, fixed.index(True), cache.get(model, Shapes))
                elsewhere.setdefault(key, (tensor, []))[1].append(use)
        return cls(
            uses,
            tensors,
            frozenset(constants),
            elsewhere,
            dynamic,
            index,
            tracer.fixed,
            tracer.looked_at,
        )

    def rests_on(self, replaced: Set[ValueKey]) -> bool:
        return not self.looked_at.isdisjoint(replaced)

    def read(self, model: Model, key: ValueKey) -> np.ndarray:
        """The stored values, as a read-only array."""
        return model.weights.read(self.tensors[key])

    def replace(self, model: Model, key: ValueKey, array: np.ndarray) -> None:
        """Store new values of the same shape and dtype, whatever holds them."""
        if key not in self.constants:
            model.weights.replace(key, array)
            return
        # The tensor of a Constant node is an attribute, which is structure.
        tensor = self.tensors[key]
        name = tensor.name
        model.weights.set_values(tensor, array)
        tensor.name = name
        model.touch(Effects.STRUCTURE)

    def products(self, key: ValueKey) -> list[WeightUse]:
        return [use for use in self.uses[key] if use.kind == "product"]


def consumer_view(array: np.ndarray, use: WeightUse) -> np.ndarray:
    """The values as the consumer sees them: the chain applied. A view where it can be.

    Q and DQ are computed in float32, as ONNX Runtime does.
    """
    for step in use.chain:
        if step.op == "Transpose":
            array = array.transpose(step.perm)
        elif step.op == "Reshape":
            array = array.reshape(step.shape)
        elif step.op == "Cast":
            array = array.astype(step.dtype)
        elif step.op == "Clip":
            array = array.clip(*step.bounds)
        elif step.op == "QuantizeLinear":
            array = _quantize(array, step, step.dtype)
        elif step.op == "DequantizeLinear":
            array = _dequantize(array, step, step.dtype)
    return array


def stored_values(values: np.ndarray, use: WeightUse, stored: np.ndarray) -> np.ndarray:
    """The inverse of `consumer_view`: what to store so that the consumer sees `values`, as nearly
    as the stored dtype can say it.

    stored: the array as it is; it gives shape and dtype.
    """
    dtypes = [stored.dtype, *(step.dtype for step in use.chain)]
    shapes = [stored.shape, *(step.shape for step in use.chain)]
    for i in range(len(use.chain) - 1, -1, -1):
        step = use.chain[i]
        if step.op == "Transpose":
            values = values.transpose(np.argsort(step.perm))
        elif step.op == "Reshape":
            values = values.reshape(shapes[i])
        elif step.op == "Cast":
            values = values.astype(dtypes[i])
        elif step.op == "QuantizeLinear":
            values = _dequantize(values, step, dtypes[i])
        elif step.op == "DequantizeLinear":
            values = _quantize(values, step, dtypes[i])
    return np.ascontiguousarray(values.astype(stored.dtype, copy=False))


def _per_element(parameter: np.ndarray, step: Step, shape: tuple[int, ...]) -> np.ndarray:
    """A scale or zero point in a shape that broadcasts over the tensor's."""
    if step.axis is None:
        return parameter.reshape(())
    if step.block:
        repeated = np.repeat(parameter, step.block, axis=step.axis)
        return repeated[tuple(slice(n) for n in shape)]
    return parameter.reshape([-1 if i == step.axis else 1 for i in range(len(shape))])


def _dequantize(array: np.ndarray, step: Step, dtype: np.dtype) -> np.ndarray:
    assert step.scale is not None
    values = array.astype(np.float32)
    if step.zero_point is not None:
        values = values - _per_element(step.zero_point.astype(np.float32), step, array.shape)
    return (values * _per_element(step.scale.astype(np.float32), step, array.shape)).astype(dtype)


def _quantize(array: np.ndarray, step: Step, dtype: np.dtype) -> np.ndarray:
    assert step.scale is not None
    values = array.astype(np.float32)
    values = values / _per_element(step.scale.astype(np.float32), step, array.shape)
    info: Any
    if _is_integer(dtype):
        info = np.iinfo(dtype) if dtype.kind in "iu" else ml_dtypes.iinfo(dtype)
        values = np.rint(values)
    else:
        info = ml_dtypes.finfo(dtype)
    if step.zero_point is not None:
        values = values + _per_element(step.zero_point.astype(np.float32), step, array.shape)
    return np.clip(values, float(info.min), float(info.max)).astype(dtype)


_WITHOUT_ZERO = frozenset({np.dtype(ml_dtypes.float8_e8m0fnu)})


def _is_integer(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" or dtype.name in ("int4", "uint4", "int2", "uint2")


def _is_foldable(site: NodeSite) -> bool:
    """Whether the node's results depend on nothing but its inputs."""
    proto = site.proto
    return (
        (ops.is_onnx(site) or is_qdq(site))
        and (any(proto.input) or ops.is_onnx(proto, "Constant"))
        and ops.op(proto) not in _RANDOM
        and not any(attr.HasField("g") or attr.graphs for attr in proto.attribute)
        and not ops.open_attribute(site)
    )


def _constant_tensors(index: Index) -> Iterator[tuple[ValueKey, TensorProto]]:
    for site in index.nodes:
        if not ops.is_onnx(site, "Constant") or not site.proto.output:
            continue
        for attr in site.proto.attribute:
            if attr.name == "value" and attr.HasField("t"):
                yield ValueKey(site.scope, site.proto.output[0]), attr.t


def _unheld(model: Model, index: Index) -> Iterator[tuple[ValueKey, tuple[TensorProto, str]]]:
    """Each with a tensor that has no values, and why it is no weight yet."""
    sparse = "a sparse initializer keeps coordinates, no 2:4 layout; make it dense"
    for scope in model.scopes():
        if isinstance(scope.graph, GraphProto):
            for proto in scope.graph.sparse_initializer:
                yield ValueKey(scope.path, proto.values.name), (_dense_shape(proto), sparse)
    for site in index.nodes:
        if not ops.is_onnx(site, "Constant") or not site.proto.output:
            continue
        key = ValueKey(site.scope, site.proto.output[0])
        for attr in site.proto.attribute:
            if attr.name == "value_floats" and attr.floats:
                tensor = TensorProto(dims=[len(attr.floats)], data_type=TensorProto.FLOAT)
                yield key, (tensor, "a list in a Constant node; canonicalize makes it a tensor")
            elif attr.name == "sparse_value" and attr.HasField("sparse_tensor"):
                yield key, (_dense_shape(attr.sparse_tensor), sparse)


def _computed(
    site: NodeSite, position: int, shapes: Shapes
) -> tuple[ValueKey, TensorProto, WeightUse]:
    """A product's operand that nodes compute from constants, as a tensor without values; empty
    where its size is not known."""
    name = site.proto.input[position]
    shape = shapes.shape(name, site.scope)
    known = shape is not None and all(isinstance(size, int) for size in shape)
    tensor = TensorProto(
        dims=shape if known else [0],  # type: ignore[arg-type]
        data_type=shapes.dtype(name, site.scope) or TensorProto.FLOAT,
    )
    use = WeightUse(
        kind="product",
        consumer=site,
        input=position,
        op=site.proto.op_type,
        code=COMPUTED,
        reason="nodes compute it from constants, and canonicalize has not folded them",
    )
    return shapes.table.index.resolve(name, site.scope) or ValueKey(site.scope, name), tensor, use


def _dense_shape(sparse: SparseTensorProto) -> TensorProto:
    return TensorProto(dims=sparse.dims, data_type=sparse.values.data_type)


def _refused(use: WeightUse, why: str) -> WeightUse:
    return replace(use, code="O24-121", reason=why) if use.eligible else use


@dataclass(frozen=True)
class _Value:
    """Where the trace stands: a value, how it lies in the stored tensor, and how it came there."""

    key: ValueKey
    layout: Layout
    dtype: np.dtype
    steps: tuple[Step, ...]
    layouts: tuple[Layout, ...]
    """The layout at the input of each step."""


class _Tracer:
    def __init__(self, model: Model, index: Index) -> None:
        self._model = model
        self._index = index
        self._overridable = index.graph_inputs
        self._functions = ops.functions(model.proto)
        self._behind: dict[ValueKey, str] = {}
        self.looked_at: set[ValueKey] = set()
        self.fixed = self._fixed_values(model)

    def _fixed_values(self, model: Model) -> set[ValueKey]:
        """Every value that depends on no input: what a runtime folds before it runs."""
        fixed = self._index.initializers.keys() - self._overridable
        fixed |= {
            ValueKey(scope.path, sparse.values.name)
            for scope in model.scopes()
            if isinstance(scope.graph, GraphProto)
            for sparse in scope.graph.sparse_initializer
        }
        left = [site for site in self._index.nodes if _is_foldable(site)]
        size = -1
        while size != len(fixed):  # a second round, and more only where nodes are not sorted
            size = len(fixed)
            waiting = []
            for site in left:
                keys = (self._index.resolve(n, site.scope) for n in site.proto.input if n)
                if all(key in fixed for key in keys):
                    fixed.update(ValueKey(site.scope, n) for n in site.proto.output if n)
                else:
                    waiting.append(site)
            left = waiting
        return fixed

    def is_fixed(self, name: str, scope: str) -> bool:
        return self._index.resolve(name, scope) in self.fixed

    def trace(self, key: ValueKey, tensor: TensorProto) -> list[WeightUse]:
        if tensor.data_type == TensorProto.STRING:
            return [
                self._unfollowed("other", use.site, use.input, (), "no numbers")
                for use in self._index.consumers(key.name, key.scope)
            ]
        shape = tuple(tensor.dims)
        if 0 in shape:
            return [
                WeightUse(
                    kind="other",
                    consumer=use.site,
                    input=use.input,
                    op=use.site.proto.op_type,
                    code="O24-110",
                    reason="the tensor is empty",
                )
                for use in self._index.consumers(key.name, key.scope)
            ]
        found: list[WeightUse] = []
        if key in self._overridable:
            found.append(_visible("an initializer that is a graph input may be overridden"))
        start = _Value(key, Layout.of(shape), numpy_dtype(tensor.data_type), (), ())
        self._follow(start, found)
        return found

    def _follow(self, start: _Value, found: list[WeightUse]) -> None:
        """Depth first, in document order; chains may be longer than Python's stack."""
        left: list[tuple[_Value, Use | None]] = [(start, None)]
        while left:
            value, use = left.pop()
            if use is None:
                found.extend(self._shown(value))
                readers = self._index.consumers(value.key.name, value.key.scope)
                left.extend((value, reader) for reader in reversed(readers))
            elif (following := self._pass_through(value, use.site, use.input)) is not None:
                left.append((following, None))
            elif consumer := self._consumer(value, use.site, use.input):
                found.append(consumer)

    def _shown(self, value: _Value) -> Iterator[WeightUse]:
        """The use by whoever sees the outputs of the graph or body."""
        key = value.key
        if key not in self._index.graph_outputs:
            return
        if key.scope == "":
            yield _visible(f"{key.name!r} is an output of the graph")
            return
        yield WeightUse(
            kind="untraced",
            consumer=None,
            op=f"output of {key.scope}",
            code="O24-121",
            reason=f"{key.name!r} leaves the body {key.scope!r} as a result",
            chain=value.steps,
        )

    # --- chains ----------------------------------------------------------------------------
    def _pass_through(self, value: _Value, site: NodeSite, position: int) -> _Value | None:
        """The value behind a node that only rearranges, casts, quantizes or dequantizes it."""
        op = followed(site)
        if position != 0 or not op:
            return None
        if not site.proto.output or ops.open_attribute(site):
            return None
        layout, dtype = value.layout, value.dtype
        step: Step | None = None
        if op == "Identity":
            pass
        elif op == "Transpose":
            rank = len(layout.dims)
            perm = tuple(ops.attribute(site, "perm") or range(rank - 1, -1, -1))
            if sorted(perm) != list(range(rank)):
                return None
            layout = layout.transposed(perm)
            step = Step(op, site, layout.shape, dtype, perm=perm)
        elif op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            shape = self._new_shape(layout.shape, site)
            reshaped = layout.reshaped(shape) if shape is not None else None
            if reshaped is None:
                return None
            layout = reshaped
            step = Step("Reshape", site, layout.shape, dtype)
        elif op == "Cast":
            target = numpy_dtype(ops.attribute(site, "to", TensorProto.FLOAT))
            if _is_integer(target) or target.kind not in "fV" or target in _WITHOUT_ZERO:
                return None
            dtype = target
            step = Step(op, site, layout.shape, dtype)
        elif op in ("QuantizeLinear", "DequantizeLinear"):
            step = self._quantizer(site, layout.shape)
            if step is None:
                return None
            dtype = step.dtype
        else:
            bounds = self._bounds(site, value)
            if bounds is None:
                return None
            step = Step(op, site, layout.shape, dtype, bounds=bounds)
        steps, layouts = value.steps, value.layouts
        if step is not None:
            steps, layouts = (*steps, step), (*layouts, value.layout)
        out = self._index.resolve(site.proto.output[0], site.scope)
        return None if out is None else _Value(out, layout, dtype, steps, layouts)

    def _new_shape(self, shape: tuple[int, ...], site: NodeSite) -> tuple[int, ...] | None:
        op = ops.op(site)
        if op == "Flatten":
            axis = ops.attribute(site, "axis", 1)
            axis += len(shape) if axis < 0 else 0
            return math.prod(shape[:axis]), math.prod(shape[axis:])
        if op == "Reshape":
            wanted = self._numbers(site, 1, "shape")
            if wanted is None:
                return None
            if not ops.attribute(site, "allowzero", 0):
                wanted = [
                    shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(wanted)
                ]
            if wanted.count(-1) == 1:
                known = math.prod(n for n in wanted if n != -1)
                if known <= 0 or math.prod(shape) % known:
                    return None
                wanted = [math.prod(shape) // known if n == -1 else n for n in wanted]
            if min(wanted, default=1) < 1 or math.prod(wanted) != math.prod(shape):
                return None
            return tuple(wanted)
        axes = self._numbers(site, 1, "axes")
        if op == "Squeeze":
            if axes is None:
                if len(site.proto.input) > 1 and site.proto.input[1]:
                    return None
                return tuple(n for n in shape if n != 1)
            dropped = {a % len(shape) for a in axes} if shape else set()
            return tuple(n for i, n in enumerate(shape) if i not in dropped)
        if axes is None:
            return None
        rank = len(shape) + len(axes)
        added = {a % rank for a in axes}
        rest = iter(shape)
        return tuple(1 if i in added else next(rest) for i in range(rank))

    def _numbers(self, site: NodeSite, position: int, name: str) -> list[int] | None:
        """Constant integers that a node takes as an input, or as an attribute in old opsets."""
        if len(site.proto.input) > position and site.proto.input[position]:
            array = self._constant(site.proto.input[position], site.scope)
            return None if array is None else [int(n) for n in array.reshape(-1)]
        given = ops.attribute(site, name)
        return None if given is None else [int(n) for n in given]

    def _bounds(self, site: NodeSite, value: _Value) -> tuple[int, int] | None:
        """Those of a Clip of integers that keeps the one which stands for 0; None for others."""
        if not _is_integer(value.dtype) or value.dtype.kind not in "iu":
            return None
        info = np.iinfo(value.dtype)
        given = []
        for position, whole in ((1, info.min), (2, info.max)):
            names = site.proto.input[position : position + 1]
            bound = self._constant(names[0], site.scope) if any(names) else np.array(whole)
            if bound is None or bound.size != 1:
                return None
            given.append(int(bound.item()))
        zero = value.steps[-1].zero_point if value.steps else None
        zeros = np.zeros(1) if zero is None else zero.astype(np.int64)
        low, high = given
        return (low, high) if low <= zeros.min() and zeros.max() <= high else None

    def _quantizer(self, site: NodeSite, shape: tuple[int, ...]) -> Step | None:
        """A Q or DQ with constant parameters; None for anything else."""
        inputs = list(site.proto.input)
        scale = self._constant(inputs[1], site.scope) if len(inputs) > 1 else None
        if scale is None:
            return None
        zero_point = None
        if len(inputs) > 2 and inputs[2]:
            zero_point = self._constant(inputs[2], site.scope)
            if zero_point is None:
                return None
        block = int(ops.attribute(site, "block_size", 0))
        axis: int | None = int(ops.attribute(site, "axis", 1)) if shape else None
        if axis is not None and -len(shape) <= axis < len(shape):
            axis %= len(shape)
        elif scale.size > 1:
            return None
        if scale.size == 1 and not block:
            axis = None
        if axis is not None:
            expected = shape[axis] if not block else -(-shape[axis] // block)
            actual = scale.shape[axis] if block and scale.ndim == len(shape) else scale.size
            if actual != expected:
                return None
        output = ops.attribute(site, "output_dtype", 0)
        if is_qdq(site, "DequantizeLinear"):
            dtype = numpy_dtype(output) if output else scale.dtype
        elif is_trt_fp8(site):
            dtype = np.dtype(ml_dtypes.float8_e4m3fn)
        elif zero_point is not None:
            dtype = zero_point.dtype
        else:
            dtype = numpy_dtype(output or TensorProto.UINT8)
        return Step(
            qdq_kind(site),
            site,
            shape,
            dtype,
            scale=scale,
            zero_point=zero_point,
            axis=axis,
            block=block,
        )

    def _constant(self, name: str, scope: str) -> np.ndarray | None:
        return ops.constant_behind(self._model, self._index, name, scope, self.looked_at)

    # --- final consumers -------------------------------------------------------------------
    def _consumer(self, value: _Value, site: NodeSite, position: int) -> WeightUse | None:
        op, steps = ops.full_name(site), value.steps
        shape = value.layout.shape

        def unfollowed(kind: Kind, why: str) -> WeightUse:
            return self._unfollowed(kind, site, position, steps, why)

        if op == "onnx24.SpMM24":
            return unfollowed("other", "a part of a packed weight; only SpMM24 knows what it means")
        if is_qdq(site) and position > 0:
            return unfollowed("parameter", "a scale or zero point")
        if ops.called(site) in self._functions:
            why = f"goes into {op}, which is not inlined; canonicalize inlines it"
            return unfollowed("untraced", why)
        if foreign_operand(site, position):
            return unfollowed("foreign", f"a weight of {op}, whose products are not judged")
        if not ops.is_onnx(site):
            why = f"{op} is unknown"
            may_multiply = len(shape) > 1 and math.prod(shape) >= 4
            return unfollowed("foreign" if may_multiply else "other", why)
        if op in _SHAPE_ONLY:
            return None
        if op in ("Reshape", "Squeeze", "Unsqueeze", "Expand", "Slice") and position > 0:
            return unfollowed("parameter", f"a parameter of {op}")
        if op in _RECURRENT and position in (1, 2):
            return unfollowed("recurrent", f"a weight of {op}")
        product = self._product(value, site, position)
        if product is not None:
            return product
        if op in _BODIES:
            return unfollowed("untraced", f"{_BODIES[op]}, so that its values are not followed")
        if math.prod(shape) < 4:
            return unfollowed("other", f"read by {op}")
        fixed = all(self.is_fixed(name, site.scope) for name in site.proto.output if name)
        if op in _LOOKUPS and position == 0 and not fixed:
            return unfollowed("other", "rows are looked up")
        if not (fixed or (op in _MOVING and position == 0)):
            return unfollowed("other", f"read by {op}")
        behind = self._product_behind(site)
        if not behind:
            return unfollowed("other", f"read by {op}")
        if not fixed:
            why = f"{op} rearranges or converts it at run time on the way to {behind}"
        elif can_fold(site.proto) and not any(
            step.op in ("QuantizeLinear", "DequantizeLinear") for step in steps
        ):
            why = f"{op} is not followed on the way to {behind}; canonicalize folds it"
        else:
            why = f"{op} makes a constant of it for {behind}; fold constants when exporting"
        return unfollowed("untraced", why)

    def _product_behind(self, site: NodeSite) -> str:
        """The first product that multiplies what the node makes of a weight; "" where none is
        found behind nodes that move values or compute constants."""
        left = [ValueKey(site.scope, name) for name in reversed(site.proto.output) if name]
        seen: set[ValueKey] = set()
        answer = ""
        while left and not answer:
            key = left.pop()
            if key in seen:
                continue
            seen.add(key)
            if key in self._behind:
                answer = self._behind[key]
                continue
            if key in self._index.graph_outputs and key.scope:
                answer = f"the outside of the body {key.scope!r}"
            for use in self._index.consumers(key.name, key.scope):
                node, op = use.site.proto, ops.full_name(use.site)
                multiplied = is_product(use.site, use.input) or foreign_operand(use.site, use.input)
                recurrent = op in _RECURRENT and use.input in (1, 2)
                if multiplied or recurrent or op in _BODIES or not ops.is_onnx(use.site):
                    answer = f"{use.site.name} ({op})"
                    break
                outputs = [ValueKey(use.site.scope, name) for name in node.output if name]
                moves = op in _MOVING and use.input == 0
                left.extend(k for k in reversed(outputs) if moves or k in self.fixed)
        if not answer:
            self._behind.update(dict.fromkeys(seen, ""))
        elif site.proto.output:
            self._behind[ValueKey(site.scope, site.proto.output[0])] = answer
        return answer

    @staticmethod
    def _unfollowed(
        kind: Kind, site: NodeSite, position: int, steps: tuple[Step, ...], why: str
    ) -> WeightUse:
        return WeightUse(
            kind=kind,
            consumer=site,
            input=position,
            op=ops.full_name(site),
            code=_CODES.get(kind, "O24-110"),
            reason=why,
            chain=steps,
        )

    def _product(self, value: _Value, site: NodeSite, position: int) -> WeightUse | None:
        """The use as operand of a matrix product, or None if it is none."""
        shape = value.layout.shape
        form = product_form(site, position, shape)
        if form is None:
            return None
        inputs = site.proto.input
        data = ""
        if len(inputs) > 1:
            data = inputs[1 - position] if position < 2 else ""
        use = WeightUse(
            kind="product",
            consumer=site,
            input=position,
            op=ops.full_name(site),
            code=form.code,
            reason=form.reason,
            chain=value.steps,
            data=data,
            k_axis_consumer=form.k_axis,
            shape=shape,
            K=form.K,
            N=form.N,
            groups=form.groups,
            spatial=form.spatial,
            batch=form.batch,
            notes=form.notes,
        )
        if form.k_axis is None:
            return use
        if use.code is None and self.is_fixed(data, site.scope):
            why = "both operands are constant: the product is computed before anything runs"
            return replace(use, code="O24-121", reason=why)
        stored = value.layouts[0].shape if value.layouts else shape
        stride = value.layout.group_stride(form.k_axis)
        step = value.layout.step(form.k_axis) if stride is None else stride
        k_axis = None if step is None else axis_with_stride(stored, step)
        if stride is not None and k_axis is not None and stored[k_axis] % 4:
            k_axis = None  # the groups run on from one row into the next
        use = replace(use, k_stride=stride, k_axis=k_axis)
        if use.code is not None:
            return use
        if form.K % 4:
            where = "input channels" if ops.is_onnx(site, "Conv") else "K"
            return replace(use, code="O24-113", reason=f"{where} = {form.K} is not a multiple of 4")
        if stride is None:
            why = "a reshape between weight and consumer cuts through the groups of four"
            if all(can_fold(step.site.proto) for step in use.chain):
                why += "; canonicalize folds it"
            return replace(use, code="O24-121", reason=why)
        return _through_quantizers(use, value, stride)


_CODES = {"untraced": "O24-121", "recurrent": "O24-119", "foreign": "O24-129"}


def _visible(reason: str) -> WeightUse:
    return WeightUse(kind="visible", consumer=None, op="graph", code="O24-126", reason=reason)


def _through_quantizers(use: WeightUse, value: _Value, stride: int) -> WeightUse:
    """A stored integer stands for a real number through its DequantizeLinear: the smallest stored
    values of a group are the smallest real ones only under one scale, and a stored zero is a real
    zero only under zero point 0. Floats that the graph itself quantizes may have any scale and
    zero point, as long as DequantizeLinear undoes what QuantizeLinear does."""
    quantizer: Step | None = None
    moved = False
    for step, layout in zip(value.steps, value.layouts, strict=True):
        if step.op == "QuantizeLinear":
            quantizer, moved = step, False
            continue
        if step.op != "DequantizeLinear":
            moved |= step.op in ("Transpose", "Reshape")
            continue
        if not _keeps_zero(quantizer, step, moved):
            reason = f"the zero point of {step.site.name!r} is not 0"
            if quantizer is not None:
                reason = f"{step.site.name!r} has another zero point than {quantizer.site.name!r}"
            return replace(use, code="O24-124", reason=reason)
        if quantizer is None and _mixes_scales(step, layout, stride):
            reason = f"the scale of {step.site.name!r} changes within groups of four"
            return replace(use, code="O24-124", reason=reason)
        quantizer = None
    if quantizer is not None and not _is_zero(quantizer.zero_point):
        reason = f"the zero point of {quantizer.site.name!r} is not 0"
        return replace(use, code="O24-124", reason=reason)
    return use


def _mixes_scales(step: Step, layout: Layout, stride: int) -> bool:
    """Whether the members of a group, `stride` apart, are dequantized by different scales. Blocked
    scales run in blocks along one axis and element by element along all others."""
    if step.axis is None:
        return False
    if not step.block:
        return layout.varies(step.axis, stride)
    return any(
        layout.varies(axis, stride, step.block if axis == step.axis else 1)
        for axis in range(len(layout.dims))
    )


def _keeps_zero(quantizer: Step | None, dequantizer: Step, moved: bool) -> bool:
    """Whether what was zero is zero behind the DequantizeLinear. moved: a Transpose or Reshape
    stands between the two, so that parameters an axis each can't be compared."""
    if quantizer is None or quantizer.zero_point is None or dequantizer.zero_point is None:
        return _is_zero(dequantizer.zero_point) and (
            quantizer is None or _is_zero(quantizer.zero_point)
        )
    first, second = quantizer.zero_point, dequantizer.zero_point
    if _is_zero(first) and _is_zero(second):
        return True
    if first.size == second.size == 1:
        return bool(first.reshape(()) == second.reshape(()))
    same_place = (quantizer.axis, quantizer.block) == (dequantizer.axis, dequantizer.block)
    return not moved and same_place and np.array_equal(first, second)


def _is_zero(zero_point: np.ndarray | None) -> bool:
    return zero_point is None or not np.any(zero_point.astype(np.float32) != 0)


def names_of(uses: Sequence[WeightUse]) -> str:
    """The consumers of a weight in a few words, for messages: `conv1 (Conv), 2 more`."""
    texts = [f"{use.node} ({use.op})" if use.node else use.op for use in uses]
    if len(texts) <= 2:
        return ", ".join(texts)
    return f"{texts[0]}, {texts[1]} and {len(texts) - 2} more"
