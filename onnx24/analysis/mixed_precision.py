"""Which nodes compute in 16-bit floats, where a graph is to be of mixed precision.

`analysis.precision` says what one operator and one constant allow; here their neighbours count as
well. The plan is made in steps, in the order of `Plan`'s methods: between them, a caller reports
what was found, and runs the model if there are samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto, TensorProto

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.precision import Range16, Slots, dtype16, result_types, rounding_loss, slots
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import label, walk

__all__ = ["LIMIT", "SENSITIVE", "Finding", "Plan", "is_cast", "takes_output_dtype"]

FLOAT = TensorProto.FLOAT

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

PRODUCTS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
)
_BOUNDED = frozenset({"Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Clip", "Erf", "Softsign"})
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_SMALLEST_SCALE = 2.0**-20
LIMIT = float(np.finfo(np.float16).max) / 2
"""Of what is seen in calibration, in FP16: data to come may be larger."""
SMALLEST = float(np.finfo(np.float16).tiny)
"""A value that never exceeds this has fewer than 11 bits in FP16, and may become 0."""
NO_FORM = "the operator has no 16-bit form in this opset"
_FROM_INTEGERS = "it computes on values that came from integers"
_INTEGERS = frozenset(
    getattr(TensorProto, name) for name in ("INT64", "INT32", "INT16", "UINT64", "UINT32", "UINT16")
)


@dataclass(frozen=True, eq=False)
class Finding:
    """A value beyond the 16-bit range: its largest magnitude, and the node where it was met."""

    tensor: str
    node: gs.Node
    largest: float


def takes_output_dtype(node: gs.Node) -> bool:
    """A DequantizeLinear that says which float type it results in; by default it is the scale's."""
    return ops.is_onnx(node, "DequantizeLinear") and bool(ops.attribute(node, "output_dtype"))


def is_cast(node: gs.Node) -> bool:
    return ops.is_onnx(node, "Cast")


class Plan:
    """Decides for every operand of the main graph's nodes whether it becomes 16-bit."""

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        root: Any,
        to: int,
        sensitive: frozenset[str],
    ) -> None:
        self.model, self.shapes, self.root, self.to = model, shapes, root, to
        self.sensitive = sensitive
        self.slots: dict[int, Slots] = {}
        self.protos = {
            id(node): proto for node, proto in zip(root.nodes, model.proto.graph.node, strict=True)
        }
        self.kept: dict[int, str] = {}
        """id(node) → why it stays FP32; "" where its neighbours are the reason."""
        self.own = {id(node) for node in root.nodes}
        self.outputs = {id(tensor) for tensor in root.outputs}
        self.body_outputs = {
            id(tensor) for graph in walk(root) if graph is not root for tensor in graph.outputs
        }
        self.ranges: dict[int, Range16] = {}
        self.losses: dict[int, float] = {}

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

    def loss_of(self, constant: gs.Constant) -> float:
        if id(constant) not in self.losses:
            key = self.key(constant)
            known = key in self.model.weights
            self.losses[id(constant)] = (
                rounding_loss(self.model.weights[key], self.to) if known else 0.0
            )
        return self.losses[id(constant)]

    def is_sparse(self, tensor: gs.Tensor) -> bool:
        """A constant in ONNX's sparse form, which has no 16-bit copy."""
        if isinstance(tensor, gs.Constant):
            return self.key(tensor) not in self.model.weights
        made_by = self.producer(tensor)
        return made_by is not None and "sparse_value" in made_by.attrs

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
    def keep_by_rules(self) -> list[Finding]:
        """First: what operators and constants demand. Returns: constants beyond the range."""
        for node in self.root.nodes:
            reason = self._own_reason(node)
            if reason is not None:
                self.kept[id(node)] = reason
        self._spread(self._is_integer_arithmetic)
        return self._keep_beyond_range()

    def to_observe(self) -> list[str]:
        """Then: the values whose range decides. None are needed of bfloat16, whose range is that
        of float32."""
        if self.to == TensorProto.BFLOAT16:
            return []
        names = dict.fromkeys(
            tensor.name
            for node in self._candidates()
            for tensor in (*self.computed(node), *node.outputs)
            if tensor.name and self.is_float32(tensor)
        )
        return list(names)

    def keep_observed(self, largest: Mapping[str, float]) -> list[Finding]:
        """Keep nodes with an operand beyond the range, or all of it below the normal range, by its
        largest magnitude. Returns: the results that are beyond."""
        found = []
        for node in self._candidates():
            for tensor in (*node.outputs, *self.computed(node)):
                reached = largest.get(tensor.name, 0.0)
                if 0 < reached < SMALLEST:
                    why = f"{tensor.name!r} is {reached:.4g} at most, which vanishes"
                    self.kept.setdefault(id(node), why)
                if reached <= LIMIT:
                    continue
                self.kept.setdefault(id(node), f"{tensor.name!r} reaches {reached:.4g}")
                if any(tensor is output for output in node.outputs):
                    found.append(Finding(tensor.name, node, reached))
        return found

    def keep_for_neighbours(self) -> None:
        """Last: what follows from the nodes that are kept so far."""
        self._spread(self._is_quantized_in_float32)
        self._spread(self._is_between_kept)
        self._keep_without_products()

    def changing(self) -> Iterator[gs.Node]:
        """The nodes that will compute in 16 bit. A caller may `keep` each while iterating."""
        for node in self._candidates():
            if not is_cast(node):
                yield node

    def keep(self, node: gs.Node) -> None:
        """Leave a node in FP32 for no reason of its own."""
        self.kept[id(node)] = ""

    def reasons(self) -> Iterator[tuple[gs.Node, str]]:
        """The nodes that stay FP32 for a reason of their own."""
        for node in self.root.nodes:
            if reason := self.kept.get(id(node)):
                yield node, reason

    def _candidates(self) -> list[gs.Node]:
        return [node for node in self.root.nodes if self._any16(node) and id(node) not in self.kept]

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
        if not any((*inputs, *outputs)) or is_cast(node):
            return None
        domain = "" if ops.is_onnx(node) else node.domain
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
            return NO_FORM if any(inputs) else None
        if not self._types_follow(node, found):
            return "an attribute decides the type of a result"
        if ops.op(node) in self.sensitive:
            return "the operator loses precision or range in 16 bit"
        sparse = next((t for t in (*node.inputs, *node.outputs) if self.is_sparse(t)), None)
        if sparse is not None:
            return f"constant {sparse.name!r} is stored sparse"
        for constant in self.constants(node):
            single = int(np.prod(constant.shape, dtype=np.int64)) == 1
            scale = ops.op(node) in _QDQ and constant is node.inputs[1]
            if not single and not scale:
                loss = self.loss_of(constant)
                if loss > 2 * float(ml_dtypes.finfo(dtype16(self.to)).eps):
                    return f"constant {constant.name!r} loses {loss:.2g} of its size by rounding"
                continue
            facts = self.range_of(constant)
            # A scale may lose some bits; 1/64 of the smallest normal leaves five.
            if facts.vanishes(self.to) and (single or facts.smallest < _SMALLEST_SCALE):
                return f"constant {constant.name!r} holds {facts.smallest:.3g}, which vanishes"
        return None

    def _types_follow(self, node: gs.Node, found: Slots) -> bool:
        """Whether the results get the types that the slots say, by onnx's own inference."""
        inputs = [
            self._dtype_after(t, slot) for t, slot in zip(node.inputs, found.inputs, strict=True)
        ]
        expected = [
            self._dtype_after(t, slot) for t, slot in zip(node.outputs, found.outputs, strict=True)
        ]
        proto = self.protos[id(node)]
        if takes_output_dtype(node) and any(found.outputs):
            proto = NodeProto.FromString(proto.SerializeToString())
            kept = [attr for attr in proto.attribute if attr.name != "output_dtype"]
            del proto.attribute[:]
            proto.attribute.extend(kept)
        inferred = result_types(proto, self.model.opsets.get(node.domain or "", 1), inputs)
        return inferred is not None and all(
            got in (0, want) for got, want in zip(inferred, expected, strict=True) if want
        )

    def _dtype_after(self, tensor: gs.Tensor, changes: bool) -> int:
        """0 where there is no tensor, or nobody knows."""
        if changes:
            return self.to
        if isinstance(tensor, gs.Constant):
            return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
        return self.shapes.dtype(tensor.name) or 0 if tensor.name else 0

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
        if ops.op(node) in PRODUCTS:
            return None
        inputs = list(self.computed(node))
        if inputs and all(self._comes_from_integers(tensor) for tensor in inputs):
            return _FROM_INTEGERS
        return None

    def _comes_from_integers(self, tensor: gs.Tensor) -> bool:
        producer = self.producer(tensor)
        if producer is None:
            return False
        if is_cast(producer):
            dtype = self.shapes.dtype(producer.inputs[0].name)
            return dtype in _INTEGERS
        return ops.is_onnx(producer, "Range") or self.kept.get(id(producer)) == _FROM_INTEGERS

    def _keep_beyond_range(self) -> list[Finding]:
        """Constants that would become infinite, and what is computed from them."""
        found: dict[int, Finding] = {}
        pending: list[gs.Node] = []
        for node in self.root.nodes:
            for constant in self.constants(node):
                facts = self.range_of(constant)
                if not facts.overflows(self.to):
                    continue
                pending.append(node)
                if self._any16(node):
                    finding = Finding(constant.name, node, facts.largest)
                    found.setdefault(id(constant), finding)
        seen: set[int] = set()
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if id(node) not in self.kept and self._any16(node):
                self.kept[id(node)] = "a constant beyond the 16-bit range goes into it"
            if ops.op(node) in _BOUNDED or ops.op(node) in PRODUCTS:
                continue
            for tensor in node.outputs:
                if self.is_float32(tensor):
                    pending += [reader for reader in tensor.outputs if id(reader) in self.own]
        return list(found.values())

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
                pair = ops.is_onnx(node, "QuantizeLinear") and id(node) not in self.kept
                if not pair and not self.gives16(tensor):
                    continue
                for reader in tensor.outputs:
                    if id(reader) in group and (pair or self.wants16(reader, tensor)):
                        group[find(id(reader))] = find(id(node))
        worth = {find(id(node)) for node in self.root.nodes if ops.op(node) in PRODUCTS}
        for node in self.root.nodes:
            if self._any16(node) and find(id(node)) not in worth:
                self.kept.setdefault(id(node), "")

    def _is_quantized_in_float32(self, node: gs.Node) -> str | None:
        """Q/DQ pairs and the layers between them are of one precision: a Cast between a
        DequantizeLinear and its layer keeps TensorRT from seeing an INT8 layer."""
        if ops.op(node) in _QDQ:
            partners = [self.producer(node.inputs[0])]
            partners += [reader for tensor in node.outputs for reader in tensor.outputs]
            for other in partners:
                if other is None or id(other) not in self.kept:
                    continue
                if ops.op(other) in _QDQ or (
                    ops.is_onnx(node, "DequantizeLinear") and ops.op(other) in PRODUCTS
                ):
                    return f"{label(other)} ({other.op}) of the same Q/DQ layer is float32"
            return None
        if ops.op(node) not in PRODUCTS:
            return None
        for tensor in self.computed(node):
            producer = self.producer(tensor)
            if producer is None or not ops.is_onnx(producer, "DequantizeLinear"):
                continue
            if id(producer) in self.kept:
                return f"its operand's DequantizeLinear ({label(producer)}) is float32"
        return None

    def _is_between_kept(self, node: gs.Node) -> str | None:
        """A cheap node whose inputs come in FP32 and whose readers want FP32."""
        if ops.op(node) in PRODUCTS or ops.op(node) in _QDQ:
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
        if is_cast(node):
            return self.gives16(tensor)
        found = self.slots.get(id(node))
        return found is not None and any(
            slot for slot, t in zip(found.inputs, node.inputs, strict=True) if t is tensor
        )

    def slot16(self, node: gs.Node, i: int) -> bool:
        """As `wants16`, for one input."""
        if id(node) not in self.own or id(node) in self.kept:
            return False
        if is_cast(node):
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
        if is_cast(producer):
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
        if ops.attribute(cast, "to") != FLOAT or id(result) in self.outputs | self.body_outputs:
            return False
        readers = result.outputs
        return bool(readers) and all(
            id(reader) in self.own
            and id(reader) not in self.kept
            and not is_cast(reader)
            and self.wants16(reader, result)
            for reader in readers
        )
