"""cast16: compute in 16-bit floats where that is safe."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.precision import Range16, Slots, dtype16, slots
from onnx24.diagnostics import diagnostic
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import fresh, insert_after, walk
from onnx24.ir.weights import INLINE_BYTES
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.runtime.session import activations

FLOAT = TensorProto.FLOAT
_DEFAULT_DOMAINS = ("", "ai.onnx", None)

SENSITIVE = (
    # sums of many terms, or of squares
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "CumSum",
    # their compounds
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "RMSNormalization",
    "MeanVarianceNormalization",
    "LpNormalization",
    "Softmax",
    "LogSoftmax",
    # steep functions
    "Pow",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Softplus",
    "Sin",
    "Cos",
)
"""Operators that lose range or precision in 16 bit. Source: the fp32 lists of PyTorch's CUDA
autocast (docs.pytorch.org, "Automatic Mixed Precision package")."""

_PRODUCTS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
)
_BOUNDED = frozenset({"Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Clip", "Erf", "Softsign"})
_QDQ = ("QuantizeLinear", "DequantizeLinear")


class Dtype(str, enum.Enum):
    FP16 = "fp16"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class Cast16(Pass):
    """Compute in FP16 (or BF16) instead of FP32: weights are stored in 16 bit, and a Cast stands
    where a value crosses from one precision to the other, one for each value and direction.
    Inputs and outputs keep their types. TensorRT 11 and TensorRT-RTX take the types of the model
    as they are, so there this pass decides what is computed in which precision.

    Kept in FP32, each with a record O24-241: the operators of `fp32-ops` (long sums, Softmax,
    normalizations, steep functions); operators that have no 16-bit form in the model's opset or no
    definition at all; nodes with bodies and what is in the bodies; arithmetic on values that came
    from integers (sizes, positions); quantized layers below opset 19, where QuantizeLinear and
    DequantizeLinear know only FP32 (upgrade-opset{to=19} changes that); nodes that read a constant
    of one element below the 16-bit type's normal range (an epsilon). What lies between two such
    nodes stays FP32 too, to save the Casts, and so does a patch without a matrix product.

    Activations beyond half of FP16's range on the calibration data keep their node and its readers
    in FP32 (O24-243, warning). Without data nothing is known of them, which O24-244 notes.

    A constant beyond the 16-bit range stays FP32 with all that reads it, up to the next Softmax,
    Clip or other bounding operator (O24-242, warning): in masks the value would become -inf and
    a fully masked row NaN.

    A weight that is read in both precisions is stored twice. A weight recorded as 2:4 stays so.
    Local functions are not entered (canonicalize inlines them). ONNX Runtime's CPU provider runs
    FP16 by casting back; for BF16 it has few kernels.

    Example: `cast16{dtype=bf16}`.
    *Source:* onnx.defs type constraints; PyTorch's autocast lists; NVIDIA TensorRT developer guide,
    strongly typed networks.
    """

    name: ClassVar[str] = "cast16"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    requires: ClassVar[tuple[type, ...]] = (Shapes,)
    codes: ClassVar[tuple[str, ...]] = ("O24-240", "O24-241", "O24-242", "O24-243", "O24-244")
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "prune24", "matmul-to-conv1x1")
    numeric: ClassVar[str] = "close"

    dtype: Annotated[Dtype, "the 16-bit type"] = Dtype.FP16
    fp32_ops: Annotated[tuple[str, ...], "operators that stay in FP32"] = SENSITIVE

    def run(self, model: Model, ctx: Context) -> None:
        to = TensorProto.FLOAT16 if self.dtype is Dtype.FP16 else TensorProto.BFLOAT16
        shapes = ctx.analysis(model, Shapes)
        if not _has_float32(model, shapes):
            return
        with model.surgeon() as root:
            plan = _Plan(model, ctx, shapes, root, to, frozenset(self.fp32_ops))
            plan.decide()
            stored = _Rewriter(plan).run()
        for key, name in stored.items():
            if key in model.claims and name != key.name:
                model.claims.add(ValueKey(key.scope, name))


def _has_float32(model: Model, shapes: Shapes) -> bool:
    return any(
        shapes.dtype(name, scope.path) == FLOAT
        for scope in model.scopes()
        if scope.path == ""
        for node in scope.graph.node
        for name in (*node.input, *node.output)
        if name
    )


class _Plan:
    """Decides for every operand of the main graph's nodes whether it becomes 16-bit."""

    def __init__(
        self,
        model: Model,
        ctx: Context,
        shapes: Shapes,
        root: Any,
        to: int,
        sensitive: frozenset[str],
    ) -> None:
        self.model, self.ctx, self.shapes, self.root, self.to = model, ctx, shapes, root, to
        self.sensitive = sensitive
        self.slots: dict[int, Slots] = {}
        self.kept: dict[int, str] = {}
        """id(node) → why it stays FP32; "" where its neighbours are the reason."""
        self.own = {id(node) for node in root.nodes}
        self.outputs = {id(tensor) for tensor in root.outputs}
        self.body_outputs = {
            id(tensor) for graph in walk(root) if graph is not root for tensor in graph.outputs
        }
        self.ranges: dict[int, Range16] = {}

    # --- facts ---------------------------------------------------------------------------
    def is_float32(self, tensor: gs.Tensor) -> bool:
        if isinstance(tensor, gs.Constant):
            return tensor.dtype == np.float32
        return bool(tensor.name) and self.shapes.dtype(tensor.name) == FLOAT

    def key(self, constant: gs.Constant) -> ValueKey:
        return ValueKey("", constant.name)

    def range_of(self, constant: gs.Constant) -> Range16:
        if id(constant) not in self.ranges:
            key = self.key(constant)
            known = key in self.model.weights
            values = self.model.weights[key] if known else np.zeros(0, np.float32)
            self.ranges[id(constant)] = Range16.of(values)
        return self.ranges[id(constant)]

    def constants(self, node: gs.Node) -> Iterator[gs.Constant]:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and self.is_float32(tensor):
                yield tensor

    def computed(self, node: gs.Node) -> Iterator[gs.Tensor]:
        """The float32 inputs that are no constants."""
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) and self.is_float32(tensor):
                yield tensor

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        return tensor.inputs[0] if tensor.inputs else None

    # --- decisions -----------------------------------------------------------------------
    def decide(self) -> None:
        for node in self.root.nodes:
            reason = self._own_reason(node)
            if reason is not None:
                self.kept[id(node)] = reason
        self._spread(self._is_integer_arithmetic)
        self._keep_beyond_range()
        self._keep_observed()
        self._spread(self._is_quantized_in_float32)
        self._spread(self._is_between_kept)
        self._keep_without_products()
        for node in self.root.nodes:
            if _is_cast(node) or id(node) in self.kept or not self._any16(node):
                continue
            if not self.ctx.admit(_label(node)):
                self.kept[id(node)] = ""
        for node in self.root.nodes:
            if reason := self.kept.get(id(node)):
                self.ctx.record("kept", "O24-241", node=_label(node), op=node.op, reason=reason)

    def _any16(self, node: gs.Node) -> bool:
        found = self.slots.get(id(node))
        return found is not None and any((*found.inputs, *found.outputs))

    def _own_reason(self, node: gs.Node) -> str | None:
        """Why a node stays FP32 whatever its neighbours do; None for those that may change or
        have nothing to do with float32. Fills `slots`."""
        inputs = tuple(self.is_float32(t) for t in node.inputs)
        outputs = tuple(self.is_float32(t) for t in node.outputs)
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return "it has bodies"
        if not any((*inputs, *outputs)) or _is_cast(node):
            return None
        domain = node.domain if node.domain not in _DEFAULT_DOMAINS else ""
        opset = self.model.opsets.get(domain, 1)
        found = slots(node.op, domain, opset, inputs, outputs, self.to)
        if found is None:
            return "the operator has no definition here"
        self.slots[id(node)] = found
        if any(
            t.name and not isinstance(t, gs.Constant) and self.shapes.dtype(t.name) is None
            for t in (*node.inputs, *node.outputs)
        ):
            return "the type of an operand is unknown"
        if not self._any16(node):
            return "the operator has no 16-bit form in this opset" if any(inputs) else None
        if node.op in self.sensitive:
            return "the operator loses precision or range in 16 bit"
        for constant in self.constants(node):
            single = int(np.prod(constant.shape, dtype=np.int64)) == 1
            scale = node.op in _QDQ and constant is node.inputs[1]
            if not single and not scale:
                continue
            facts = self.range_of(constant)
            # A scale may lose some bits; 1/64 of the smallest normal leaves five.
            if facts.vanishes(self.to) and (single or facts.smallest < _SMALLEST_SCALE):
                return f"constant {constant.name!r} holds {facts.smallest:.3g}, which vanishes"
        return None

    def _spread(self, rule: Callable[[gs.Node], str | None]) -> None:
        """Keep what a rule says until it says nothing new. "" keeps without a record."""
        changed = True
        while changed:
            changed = False
            for node in self.root.nodes:
                if id(node) in self.kept or not self._any16(node):
                    continue
                reason = rule(node)
                if reason is not None:
                    self.kept[id(node)] = reason
                    changed = True

    def _is_integer_arithmetic(self, node: gs.Node) -> str | None:
        """Sizes and positions: above 2,048 a 16-bit float skips integers."""
        if node.op in _PRODUCTS:
            return None
        inputs = list(self.computed(node))
        if inputs and all(self._comes_from_integers(tensor) for tensor in inputs):
            return _FROM_INTEGERS
        return None

    def _comes_from_integers(self, tensor: gs.Tensor) -> bool:
        producer = self.producer(tensor)
        if producer is None:
            return False
        if _is_cast(producer):
            dtype = self.shapes.dtype(producer.inputs[0].name)
            return dtype in _INTEGERS
        return producer.op == "Range" or self.kept.get(id(producer)) == _FROM_INTEGERS

    def _keep_beyond_range(self) -> None:
        """Constants that would become infinite, and what is computed from them."""
        pending: list[gs.Node] = []
        told: set[int] = set()
        for node in self.root.nodes:
            for constant in self.constants(node):
                facts = self.range_of(constant)
                if not facts.overflows(self.to):
                    continue
                pending.append(node)
                if id(constant) in told or not self._any16(node):
                    continue
                told.add(id(constant))
                self.ctx.diagnostics.add(
                    diagnostic(
                        "O24-242",
                        f"holds {facts.largest:.4g}, which is beyond the 16-bit range; it and "
                        "what reads it stay float32",
                        tensor=constant.name,
                        node=_label(node),
                        op=node.op,
                        facts={"largest": facts.largest},
                    )
                )
        seen: set[int] = set()
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if id(node) not in self.kept and self._any16(node):
                self.kept[id(node)] = "a constant beyond the 16-bit range goes into it"
            if node.op in _BOUNDED or node.op in _PRODUCTS:
                continue
            for tensor in node.outputs:
                if self.is_float32(tensor):
                    pending += [reader for reader in tensor.outputs if id(reader) in self.own]

    def _keep_observed(self) -> None:
        """Nodes with an operand that left the 16-bit range on the calibration data."""
        candidates = [
            node for node in self.root.nodes if self._any16(node) and id(node) not in self.kept
        ]
        names = dict.fromkeys(
            tensor.name
            for node in candidates
            for tensor in (*self.computed(node), *node.outputs)
            if tensor.name and self.is_float32(tensor)
        )
        if not names or self.to == TensorProto.BFLOAT16:
            return  # the range of bfloat16 is that of float32
        data = self.ctx.calibration
        if data is None:
            self.ctx.diagnostics.add(
                diagnostic("O24-244", "no calibration data: activations were not looked at")
            )
            return
        # An input with a default value may not be in the data: the default stands for it.
        defaults = {name for name in names if ValueKey("", name) in self.model.weights}
        observed = [name for name in names if name not in defaults]
        largest = dict.fromkeys(names, 0.0)
        for name in defaults:
            largest[name] = Range16.of(self.model.weights[name]).largest
        for values in activations(self.model, observed, data.batches(self.model)):
            for name, array in values.items():
                magnitude = np.abs(array).max(initial=0.0)
                largest[name] = max(largest[name], float(np.nan_to_num(magnitude, nan=np.inf)))
        limit = float(np.finfo(np.float16).max) / _HEADROOM
        for node in candidates:
            for tensor in (*node.outputs, *self.computed(node)):
                reached = largest.get(tensor.name, 0.0)
                if reached <= limit:
                    continue
                self.kept.setdefault(id(node), f"{tensor.name!r} reaches {reached:.4g}")
                if all(tensor is not output for output in node.outputs):
                    continue
                self.ctx.diagnostics.add(
                    diagnostic(
                        "O24-243",
                        f"reaches {reached:.4g} on the calibration data; it stays float32",
                        tensor=tensor.name,
                        node=_label(node),
                        op=node.op,
                        facts={"largest": reached, "limit": limit},
                    )
                )

    def _keep_without_products(self) -> None:
        """A patch of 16-bit nodes without a matrix product in it gains less than its Casts
        cost."""
        group = {id(node): id(node) for node in self.root.nodes}

        def find(node: int) -> int:
            while group[node] != node:
                group[node] = node = group[group[node]]
            return node

        for node in self.root.nodes:
            for tensor in node.outputs:
                # A Q/DQ pair is one: its halves share the scale.
                pair = node.op == "QuantizeLinear" and id(node) not in self.kept
                if not pair and not self.gives16(tensor):
                    continue
                for reader in tensor.outputs:
                    if id(reader) in group and (pair or self.wants16(reader, tensor)):
                        group[find(id(reader))] = find(id(node))
        worth = {find(id(node)) for node in self.root.nodes if node.op in _PRODUCTS}
        for node in self.root.nodes:
            if self._any16(node) and find(id(node)) not in worth:
                self.kept.setdefault(id(node), "")

    def _is_quantized_in_float32(self, node: gs.Node) -> str | None:
        """Q/DQ pairs and the layers between them are of one precision: a Cast between a
        DequantizeLinear and its layer keeps TensorRT from seeing an INT8 layer."""
        if node.op in _QDQ:
            partners = [self.producer(node.inputs[0])]
            partners += [reader for tensor in node.outputs for reader in tensor.outputs]
            for other in partners:
                if other is None or id(other) not in self.kept:
                    continue
                if other.op in _QDQ or (node.op == "DequantizeLinear" and other.op in _PRODUCTS):
                    return f"{_label(other)} ({other.op}) of the same Q/DQ layer is float32"
            return None
        if node.op not in _PRODUCTS:
            return None
        for tensor in self.computed(node):
            producer = self.producer(tensor)
            if producer is None or producer.op != "DequantizeLinear":
                continue
            if id(producer) in self.kept:
                return f"its operand's DequantizeLinear ({_label(producer)}) is float32"
        return None

    def _is_between_kept(self, node: gs.Node) -> str | None:
        """A cheap node whose inputs come in FP32 and whose readers want FP32."""
        if node.op in _PRODUCTS or node.op in _QDQ:
            return None
        inputs = list(self.computed(node))
        readers = [
            (tensor, reader)
            for tensor in node.outputs
            if self.is_float32(tensor)
            for reader in tensor.outputs
        ]
        if not inputs or not readers:
            return None
        if any(self.producer(tensor) is None for tensor in inputs):
            return None
        if all(not self.gives16(tensor) for tensor in inputs) and all(
            not self.wants16(reader, tensor) for tensor, reader in readers
        ):
            return ""
        return None

    # --- what follows ----------------------------------------------------------------------
    def wants16(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether a reader takes the value in 16 bit. Casts take either."""
        if id(node) not in self.own or id(node) in self.kept:
            return False
        if _is_cast(node):
            return self.gives16(tensor)
        found = self.slots.get(id(node))
        return found is not None and any(
            slot for slot, t in zip(found.inputs, node.inputs, strict=True) if t is tensor
        )

    def slot16(self, node: gs.Node, i: int) -> bool:
        """As `wants16`, for one input."""
        if id(node) not in self.own or id(node) in self.kept:
            return False
        if _is_cast(node):
            return self.gives16(node.inputs[i])
        found = self.slots.get(id(node))
        return found is not None and found.inputs[i]

    def gives16(self, tensor: gs.Tensor) -> bool:
        """Whether a float32 value is computed in 16 bit from now on."""
        producer = self.producer(tensor)
        if producer is None or isinstance(tensor, gs.Constant):
            return False
        if id(producer) not in self.own or id(producer) in self.kept:
            return False
        if _is_cast(producer):
            return self._cast_gives16(producer)
        found = self.slots.get(id(producer))
        if found is None:
            return False
        return any(
            slot for slot, t in zip(found.outputs, producer.outputs, strict=True) if t is tensor
        )

    def _cast_gives16(self, cast: gs.Node) -> bool:
        """A Cast to float32 goes to 16 bit at once where all its readers want that."""
        result = cast.outputs[0]
        if cast.attrs.get("to") != FLOAT or id(result) in self.outputs | self.body_outputs:
            return False
        readers = result.outputs
        return bool(readers) and all(
            id(reader) in self.own
            and id(reader) not in self.kept
            and not _is_cast(reader)
            and self.wants16(reader, result)
            for reader in readers
        )


_SMALLEST_SCALE = 2.0**-20
_HEADROOM = 2.0
"""Of what was seen in calibration to the largest FP16 value: data to come may be larger."""
_FROM_INTEGERS = "it computes on values that came from integers"
_INTEGERS = frozenset(
    getattr(TensorProto, name) for name in ("INT64", "INT32", "INT16", "UINT64", "UINT32", "UINT16")
)


def _is_cast(node: gs.Node) -> bool:
    return node.op == "Cast" and node.domain in _DEFAULT_DOMAINS


def _label(node: gs.Node) -> str:
    return node.name or next((t.name for t in node.outputs if t.name), node.op)


class _Rewriter:
    """Carries a plan out in the view."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.root = plan.root
        self.dtype = dtype16(plan.to)
        self.suffix = "fp16" if plan.to == TensorProto.FLOAT16 else "bf16"

    def run(self) -> dict[ValueKey, str]:
        """Returns: the key of each weight that was converted → the name of its 16-bit form."""
        plan = self.plan
        values = self._values()
        # Decide everything before the first edit: the answers depend on the graph.
        gives = {id(tensor): plan.gives16(tensor) for tensor in values}
        wants = {
            (id(node), i): plan.slot16(node, i)
            for tensor in values
            for node in tensor.outputs
            for i, t in enumerate(node.inputs)
            if t is tensor
        }
        stored: dict[ValueKey, str] = {}
        for tensor in values:
            if isinstance(tensor, gs.Constant):
                self._constant(tensor, wants, stored)
            else:
                self._variable(tensor, gives[id(tensor)], wants)
        self._drop_empty_casts()
        counts = plan.ctx.statistics
        if stored:
            counts["weights"] = len(stored)
        return stored

    def _values(self) -> list[gs.Tensor]:
        """Every float32 value that the main graph defines."""
        seen: dict[int, gs.Tensor] = {}
        candidates = [*self.root.inputs, *self.root.initializers.values()]
        candidates += [tensor for node in self.root.nodes for tensor in node.outputs]
        for tensor in candidates:
            if self.plan.is_float32(tensor):
                seen.setdefault(id(tensor), tensor)
        return list(seen.values())

    def _readers(
        self, tensor: gs.Tensor, wants: dict[tuple[int, int], bool], want16: bool
    ) -> list[tuple[gs.Node, int]]:
        found: dict[tuple[int, int], tuple[gs.Node, int]] = {}
        for node in tensor.outputs:
            for i, t in enumerate(node.inputs):
                if t is tensor and wants[(id(node), i)] is want16:
                    found[(id(node), i)] = (node, i)
        return list(found.values())

    def _constant(
        self,
        constant: gs.Constant,
        wants: dict[tuple[int, int], bool],
        stored: dict[ValueKey, str],
    ) -> None:
        readers = self._readers(constant, wants, True)
        key = self.plan.key(constant)
        if not readers or key not in self.plan.model.weights:
            return
        others = self._readers(constant, wants, False)
        visible = id(constant) in self.plan.outputs | self.plan.body_outputs
        name = constant.name
        if others or visible:
            name = fresh(self.root, f"{constant.name}.{self.suffix}")
        new = Derived(
            name, tuple(constant.shape), self.dtype, _Rounded(self.plan.model, key, self.dtype)
        )
        for node, i in readers:
            node.inputs[i] = new
        stored[key] = name
        nbytes = int(np.prod(constant.shape, dtype=np.int64)) * 4
        if len(constant.shape) > 1 or nbytes > INLINE_BYTES:
            self.plan.ctx.record(
                "cast",
                "O24-240",
                weight=key.name,
                scope=key.scope,
                reason="stored twice: float32 is read too" if name != key.name else "",
                dtype=self.suffix,
            )

    def _variable(
        self, tensor: gs.Variable, gives16: bool, wants: dict[tuple[int, int], bool]
    ) -> None:
        readers = self._readers(tensor, wants, not gives16)
        producer = self.plan.producer(tensor)
        if gives16:
            assert producer is not None
            if _is_cast(producer):
                producer.attrs["to"] = int(self.plan.to)
            if id(tensor) in self.plan.outputs | self.plan.body_outputs:
                self._split_output(tensor, producer, self._readers(tensor, wants, True))
                return
            tensor.dtype = self.dtype
        if not readers:
            return
        suffix, dtype, to = (
            ("fp32", np.dtype(np.float32), FLOAT)
            if gives16
            else (self.suffix, self.dtype, self.plan.to)
        )
        other = gs.Variable(fresh(self.root, f"{tensor.name}.{suffix}"), dtype, tensor.shape)
        self._insert(self._cast(tensor, other, to), producer)
        for node, i in readers:
            node.inputs[i] = other

    def _split_output(
        self, tensor: gs.Variable, producer: gs.Node, readers: list[tuple[gs.Node, int]]
    ) -> None:
        """An output keeps its name and type: the computed value gets another name."""
        name = fresh(self.root, f"{tensor.name}.{self.suffix}")
        computed = gs.Variable(name, self.dtype, tensor.shape)
        position = next(i for i, t in enumerate(producer.outputs) if t is tensor)
        producer.outputs[position] = computed
        for node, i in readers:
            node.inputs[i] = computed
        self._insert(self._cast(computed, tensor, FLOAT), producer)

    def _cast(self, source: gs.Tensor, result: gs.Tensor, to: int) -> gs.Node:
        self.plan.ctx.statistics["casts"] = self.plan.ctx.statistics.get("casts", 0) + 1
        name = fresh(self.root, f"{result.name}.cast")
        return gs.Node("Cast", name, {"to": int(to)}, [source], [result])

    def _insert(self, cast: gs.Node, producer: gs.Node | None) -> None:
        if producer is None:
            self.root.nodes.insert(0, cast)
        else:
            insert_after(self.root, producer, [cast])

    def _drop_empty_casts(self) -> None:
        """Casts of the model that convert nothing any more."""
        for node in list(self.root.nodes):
            if not _is_cast(node) or node.attrs.get("to") != self.plan.to:
                continue
            source, result = node.inputs[0], node.outputs[0]
            was16 = self.plan.shapes.dtype(source.name) == self.plan.to
            is16 = source.dtype == self.dtype and not isinstance(source, gs.Constant)
            if not (is16 or was16) or id(result) in self.plan.outputs | self.plan.body_outputs:
                continue
            for reader in list(result.outputs):
                for i, tensor in enumerate(reader.inputs):
                    if tensor is result:
                        reader.inputs[i] = source
            node.inputs.clear()
            node.outputs.clear()
            self.root.nodes.pop(next(i for i, n in enumerate(self.root.nodes) if n is node))


@dataclass(frozen=True)
class _Rounded:
    """A weight in 16 bit, rounded to nearest even."""

    model: Model
    key: ValueKey
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        return self.model.weights[self.key].astype(self.dtype)
