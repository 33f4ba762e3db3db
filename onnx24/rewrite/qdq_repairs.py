"""Q/DQ of other tools, said in the form that TensorRT takes.

    uint8 q, zero point z   =   int8 q - 128, zero point z - 128      (saturation moves along)
    DQ(int32 bias)          =   a float constant
    scale [1]               =   a scalar
    com.microsoft's Q, DQ   =   ONNX's; so are TensorRT's TRT_FP8QuantizeLinear, …
    Q, Clip, DQ             =   Clip, Q, DQ     (of floats, and none where Q saturates so)
    Mul(Cast(int8), scale)  =   DQ(int8, scale)

These are exact. `symmetric` is not: the zero point becomes 0 and the step wide enough for the
whole range, which rounds otherwise. *Source:* ONNX operators QuantizeLinear, DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx24.analysis.crossing import COMMUTING, is_qdq, is_trt_fp8, qdq_kind
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir import ops
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, insert_before, label, redirect, walk
from onnx24.ir.weights import numpy_dtype
from onnx24.quant.scales import channel_amax, dequantize, quantize, symmetric_scale

__all__ = ["Repair", "Repairs", "may_be_recognised"]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm")
_FOLDABLE = frozenset({"Clip", "Identity", "Reshape", "Transpose"})
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid"})
_KEEPS_SIGN = COMMUTING | {"AveragePool", "GlobalAveragePool"}
SHIFT = 128


@dataclass(frozen=True)
class Repair:
    """What was done at a node. is_exact: whether the outputs stay the same. facts: numbers."""

    node: str
    op: str
    scope: str
    reason: str
    is_exact: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    code: str = "O24-226"


class Repairs:
    """The repairs of one surgeon view; `run` makes them.

    admit: asked with a node's name before each; where it says no, the node stays as it is.
    """

    def __init__(
        self, model: Model, found: WeightUses, root: gs.Graph, admit: Callable[[str], bool]
    ) -> None:
        self._model, self._found, self._root, self._admit = model, found, root, admit
        self._shown = {id(value) for graph in walk(root) for value in graph.outputs}
        self._made: dict[int, np.ndarray] = {}
        self._shared: dict[tuple[Any, ...], gs.Constant] = {}
        self._graph = root

    def run(self, *, symmetric: bool) -> Iterator[Repair]:
        for graph in list(walk(self._root)):
            self._graph = graph
            yield from self._standard()
            yield from self._integer_weights()
            yield from self._folded_constants()
            yield from self._float_biases()
            yield from self._explicit_zero_points()
            yield from self._lifted()
            yield from self._saturated()
            yield from self._signed()
            yield from self._scalars()
            if symmetric:
                yield from self._symmetric()

    def recognise(self) -> Iterator[Repair]:
        """Only what says in other words that a value is quantized."""
        for graph in list(walk(self._root)):
            self._graph = graph
            yield from self._standard()
            yield from self._integer_weights()

    # --- the repairs -----------------------------------------------------------------------
    def _standard(self) -> Iterator[Repair]:
        """Q and DQ of com.microsoft and TensorRT as ONNX's, where the opset has their types.

        *Source:* onnxruntime/docs/ContribOperators.md; ONNX: an axis from opset 13 on, scales of 16
        bits from 19, other integers than these from 21.
        """
        opset = self._model.opset
        for node in self._graph.nodes:
            if not is_qdq(node) or ops.is_onnx(node) or len(node.inputs) < 2:
                continue
            scale = self._values(node.inputs[1])
            if is_trt_fp8(node):
                if scale is not None and opset >= 19 and self._admit(label(node)):
                    yield self._fp8(node, scale)
                continue
            made = self._made_type(node) if is_qdq(node, _Q) else None
            kind = self._dtype(node.inputs[2]) if len(node.inputs) > 2 else made
            kind = kind or self._dtype(node.inputs[0])
            if scale is None or kind is None:
                continue
            least = 13 if scale.size > 1 else 10
            if scale.dtype != np.float32:
                least = 19
            if kind not in (np.int8, np.uint8) and not (kind == np.int32 and is_qdq(node, _DQ)):
                least = 21
            if opset < least or not self._admit(label(node)):
                continue
            node.domain = ""
            if opset < 13:
                node.attrs.pop("axis", None)
            reason = "com.microsoft's is ONNX's now"
            yield Repair(label(node), node.op, self._graph.scope, reason, code="O24-258")

    def _fp8(self, node: gs.Node, scale: np.ndarray) -> Repair:
        """TensorRT's FP8 Q or DQ, which says its type by its name, as ONNX's."""
        was, node.op, node.domain = node.op, qdq_kind(node), ""
        if scale.size == 1:
            scale = scale.reshape(())
            node.attrs.pop("axis", None)
        else:
            node.attrs.setdefault("axis", 0)
        zeros = np.zeros(scale.shape, ml_dtypes.float8_e4m3fn)
        source, given = node.inputs[:2]
        parameters = (f"{given.name}_fp8", scale), ("zero_point_fp8", zeros)
        node.inputs.clear()
        node.inputs.extend([source, *(self._parameter(*each) for each in parameters)])
        if ops.is_onnx(node, _Q):
            node.outputs[0].dtype = zeros.dtype
        return Repair(
            label(node), node.op, self._graph.scope, f"{was} is ONNX's now", code="O24-258"
        )

    def _integer_weights(self) -> Iterator[Repair]:
        """int8 → Cast → Sub? → Mul by a constant scale, as DequantizeLinear. Exact: 8 bits, and
        their difference, are exact in every float, and each form rounds the product once."""
        for mul in list(self._graph.nodes):
            if not ops.is_onnx(mul, "Mul") or len(mul.inputs) != 2:
                continue
            for position in (0, 1):
                form = self._integers_times_scale(mul, position)
                if form is not None and self._admit(label(mul)):
                    break
            else:
                continue
            stored, zero, scale, axis = form
            mul.op = _DQ
            mul.attrs.clear()
            if axis is not None:
                mul.attrs["axis"] = axis
            parameters = [self._parameter(f"{stored.name}_scale", scale)]
            if zero is not None:
                parameters.append(self._parameter(f"{stored.name}_zero_point", zero))
            cast = mul.inputs[position]
            mul.inputs.clear()
            mul.inputs.extend([stored, *parameters])
            self._drop_unread(cast)
            reason = "Cast and Mul of the stored integers are DequantizeLinear now"
            yield Repair(label(mul), _DQ, self._graph.scope, reason, code="O24-257")

    def _integers_times_scale(
        self, mul: gs.Node, position: int
    ) -> tuple[gs.Tensor, np.ndarray | None, np.ndarray, int | None] | None:
        """(what is stored, its zero point, scale, axis) of a Mul that dequantizes."""
        scale, value, zero = self._values(mul.inputs[1 - position]), mul.inputs[position], None
        maker = value.inputs[0] if value.inputs else None
        if maker is not None and ops.is_onnx(maker, "Sub"):
            zero, value = self._values(maker.inputs[1]), maker.inputs[0]
            maker = value.inputs[0] if value.inputs else None
            if zero is None or zero.size != 1:
                return None
        if scale is None or maker is None or not ops.is_onnx(maker, "Cast"):
            return None
        stored = maker.inputs[0]
        integers = self._values(stored)
        if integers is None or integers.dtype not in (np.int8, np.uint8):
            return None
        kind, shape = integers.dtype, integers.shape
        to = int(ops.attribute(maker, "to", 0))
        if to not in (TensorProto.FLOAT, TensorProto.FLOAT16) or numpy_dtype(to) != scale.dtype:
            return None
        if (to != TensorProto.FLOAT and self._model.opset < 19) or not (scale > 0).all():
            return None
        if np.broadcast_shapes(shape, scale.shape) != shape or not shape:
            return None
        wide = [len(shape) - scale.ndim + i for i, n in enumerate(scale.shape) if n != 1]
        if len(wide) > 1 or (wide and self._model.opset < 13) or self._model.opset < 10:
            return None
        axis = wide[0] if wide else None
        scale = scale.reshape(() if axis is None else (-1,))
        if zero is not None:
            info = np.iinfo(kind)
            if zero != np.rint(zero) or not info.min <= zero.item() <= info.max:
                return None
            zero = np.full(scale.shape, zero.item(), kind)
        else:
            zero = np.zeros(scale.shape, kind)
        return stored, zero, scale, axis

    def _folded_constants(self) -> Iterator[Repair]:
        """INT8 constant → Clip, Transpose, Reshape, Identity → DQ, with the result stored; a scalar
        as the float that DQ makes of it."""
        for dq in self._quantizers(_DQ):
            source = dq.inputs[0]
            stored = self._values(source)
            if stored is None:
                folded = self._folded(source)
                if folded is None or not self._admit(label(dq)):
                    continue
                dq.inputs[0] = self._constant(f"{source.name}_folded", folded)
                self._drop_unread(source)
                yield self._repair(dq, "what stood between the constant and it is computed")
            elif not stored.ndim and id(dq.outputs[0]) not in self._shown:
                real = self._dequantized(dq)
                if real is None or not self._admit(label(dq)):
                    continue
                value, name = dq.outputs[0], label(dq)
                redirect(value, self._constant(f"{value.name}_float", real))
                self._drop_dead(dq)
                yield Repair(name, _DQ, self._graph.scope, "the quantized scalar is a float now")

    def _folded(self, value: gs.Tensor) -> np.ndarray | None:
        """What a chain of these operators makes of a constant of 8 bits; None for others."""
        if (stored := self._values(value)) is not None:
            return stored if stored.dtype.name in ("int8", "uint8") else None
        maker = value.inputs[0] if value.inputs else None
        if maker is None or not ops.is_onnx(maker, *_FOLDABLE):
            return None
        stored = self._folded(maker.inputs[0])
        others = [self._values(tensor) if tensor.name else None for tensor in maker.inputs[1:]]
        given = [other for other in others if other is not None]
        if stored is None or len(given) != sum(bool(tensor.name) for tensor in maker.inputs[1:]):
            return None
        if ops.is_onnx(maker, "Clip") and given:
            low, high = (*others, None, None)[:2]
            return np.clip(stored, low, high)
        if ops.is_onnx(maker, "Transpose"):
            return stored.transpose(ops.attribute(maker, "perm"))
        if ops.is_onnx(maker, "Reshape"):
            if ops.attribute(maker, "allowzero") or 0 in given[0]:
                return None
            return stored.reshape(given[0])
        return stored

    def _float_biases(self) -> Iterator[Repair]:
        """INT32 behind DQ, and every bias of a product behind DQ, as the floats that DQ gives."""
        for dq in self._quantizers(_DQ):
            value = dq.outputs[0]
            biases = [
                (node, i)
                for node in value.outputs
                for i, tensor in enumerate(node.inputs)
                if tensor is value and i == 2 and ops.op(node) in _PRODUCTS
            ]
            is_int32 = self._dtype(dq.inputs[0]) == np.int32
            if not (biases or is_int32) or id(value) in self._shown:
                continue
            real = self._dequantized(dq)
            if real is None or not self._admit(label(dq)):
                continue
            constant = self._constant(f"{value.name}_float", real)
            if is_int32:
                redirect(value, constant)
            for node, i in biases:
                node.inputs[i] = constant
            name, op = label(dq), dq.op
            self._drop_dead(dq)
            was = "int32" if is_int32 else "quantized"
            reason = f"the {was} bias is a float now, of {real.size:,} elements"
            yield Repair(name, op, self._graph.scope, reason)

    def _explicit_zero_points(self) -> Iterator[Repair]:
        for node in self._quantizers():
            if len(node.inputs) > 2 and node.inputs[2].name:
                continue
            scale = self._values(node.inputs[1])
            dtype = self._dtype(node.inputs[0]) if ops.is_onnx(node, _DQ) else self._made_type(node)
            if scale is None or dtype is None or dtype == np.int32 or not self._admit(label(node)):
                continue
            if ops.is_onnx(node, _Q):
                node.attrs.pop("output_dtype", None)
            zero = self._parameter("zero_point", np.zeros(scale.shape, dtype))
            if len(node.inputs) > 2:
                node.inputs[2] = zero
            else:
                node.inputs.append(zero)
            yield self._repair(node, f"its zero point of 0 is written out, as {dtype}")

    def _saturated(self) -> Iterator[Repair]:
        """Q → Clip → DQ as Q → DQ of INT8 and zero point 0, where that says the same: Q saturates
        as the Clip does, or a Clip of the floats does before it. Rounding is monotone and maps the
        float bounds, which are whole steps, on the integer ones, so that this is exact."""
        for q in self._quantizers(_Q):
            clip = self._only_clip(q)
            if clip is None:
                continue
            if self._values(q.inputs[0]) is not None:
                if self._clips_nothing(q, clip) and self._admit(label(clip)):
                    name = label(clip)
                    redirect(clip.outputs[0], q.outputs[0])
                    self._drop_unread(clip.outputs[0])
                    reason = "no integer of the weight lies beyond the Clip, which is gone"
                    yield Repair(name, "Clip", self._graph.scope, reason)
                continue
            form = self._saturation(q, clip)
            if form is None or not self._admit(label(clip)):
                continue
            (low, high), readers, scale = form
            if low is not None or high is not None:
                self._clip(q, low, high)
            zero = self._parameter("zero_point", np.zeros(scale.shape, np.int8))
            for node in (q, *readers):
                node.inputs[2] = zero
            for dq in readers:
                dq.inputs[0] = q.outputs[0]
            q.attrs.pop("output_dtype", None)
            q.outputs[0].dtype = np.dtype(np.int8)
            name = label(clip)
            self._drop_unread(clip.outputs[0])
            reason = "the Clip between Q and DQ is what INT8 saturates to now"
            yield Repair(name, "Clip", self._graph.scope, reason)

    def _lifted(self) -> Iterator[Repair]:
        """Q → operators that move numbers → DQ as Q → DQ → those operators, from the last on: the
        same numbers, and nothing but DQ reads what a Q makes, as the other repairs want it."""
        for node in reversed(list(self._graph.nodes)):
            q = self._behind_moves(node)
            if q is None or any(value.outputs for value in node.outputs[1:]):
                continue
            readers = self._readers(node)
            if readers is None or not all(self._same_parameters(q, dq) for dq in readers):
                continue
            readers.sort(key=lambda dq: id(dq.outputs[0]) not in self._shown)
            kept, *others = readers
            if any(id(dq.outputs[0]) in self._shown for dq in others):
                continue
            if not self._admit(label(node)):
                continue
            source, real = node.inputs[0], kept.outputs[0]
            name = fresh(self._graph, f"{source.name}_dequantized")
            value = gs.Variable(name, real.dtype, source.shape)
            made = fresh(self._graph, f"{name}_{_DQ}")
            dq = gs.Node(_DQ, made, {}, [source, *kept.inputs[1:]], [value])
            for other in others:
                redirect(other.outputs[0], real)
            for each in readers:
                detach(each)
            self._graph.nodes[:] = [
                n for n in self._graph.nodes if all(n is not r for r in readers)
            ]
            node.inputs[0], node.outputs[0] = value, real
            insert_before(self._graph, node, [dq])
            reason = f"{node.op} stands behind DequantizeLinear now"
            yield Repair(label(node), node.op, self._graph.scope, reason)

    def _behind_moves(self, node: gs.Node) -> gs.Node | None:
        """The Q, of one scale for the whole activation, whose numbers a node moves."""
        while ops.is_onnx(node, *COMMUTING) and node.inputs[0].inputs:
            node = node.inputs[0].inputs[0]
            if ops.is_onnx(node, _Q):
                scale = self._values(node.inputs[1])
                stored = self._values(node.inputs[0]) is not None
                return None if stored or scale is None or scale.size != 1 else node
        return None

    def _clips_nothing(self, q: gs.Node, clip: gs.Node) -> bool:
        stored = self._quantized(q)
        bounds = [self._values(tensor) if tensor.name else None for tensor in clip.inputs[1:3]]
        known = all(
            b is not None or not t.name for b, t in zip(bounds, clip.inputs[1:3], strict=True)
        )
        if stored is None or not known or id(clip.outputs[0]) in self._shown:
            return False
        low, high = (*bounds, None, None)[:2]
        return bool(np.array_equal(np.clip(stored, low, high), stored))

    def _only_clip(self, q: gs.Node) -> gs.Node | None:
        """The Clip that alone reads what a Q makes."""
        value = q.outputs[0]
        if id(value) in self._shown or len(value.outputs) != 1:
            return None
        (node,) = value.outputs
        here = any(each is node for each in self._graph.nodes)
        return node if here and ops.is_onnx(node, "Clip") and node.inputs[0] is value else None

    def _saturation(
        self, q: gs.Node, clip: gs.Node
    ) -> tuple[tuple[float | None, float | None], list[gs.Node], np.ndarray] | None:
        """((bounds that floats have to be clipped to, None where Q saturates there), the DQ, their
        scale); None where that is not the same."""
        scale = self._values(q.inputs[1])
        zero = self._values(q.inputs[2]) if len(q.inputs) > 2 else None
        readers = self._readers(clip)
        if scale is None or zero is None or zero.dtype not in (np.int8, np.uint8) or not readers:
            return None
        if scale.size != 1 or scale.dtype != np.float32 or not float(scale.reshape(())) > 0:
            return None
        if not all(self._same_parameters(q, dq) for dq in readers):
            return None
        info, bounds = np.iinfo(zero.dtype), []
        for position, whole in ((1, info.min), (2, info.max)):
            given = clip.inputs[position] if len(clip.inputs) > position else None
            bound = np.array(whole) if given is None or not given.name else self._values(given)
            if bound is None or bound.size != 1:
                return None
            bounds.append(int(bound.item()) - int(zero.reshape(-1)[0]))
        low, high = bounds
        if not -128 <= low <= 0 <= high <= 127:
            return None
        floats: list[float | None] = []
        for steps, edge in ((low, -128), (high, 127)):
            real = np.float32(steps) * scale.reshape(()).astype(np.float32)
            if np.rint(real / scale.reshape(())) != steps:
                return None
            is_needless = steps == edge or (
                edge < 0 and not low and self._is_not_negative(q.inputs[0])
            )
            floats.append(None if is_needless else float(real))
        return (floats[0], floats[1]), readers, scale

    def _clip(self, q: gs.Node, low: float | None, high: float | None) -> None:
        """Clip what a Q quantizes; a Relu where it is at 0 alone, which TensorRT fuses."""
        if low == 0 and high is None:
            self._clip_below(q)
            return
        source = q.inputs[0]
        name = fresh(self._graph, f"{source.name}_clipped")
        value = gs.Variable(name, source.dtype, source.shape)
        bounds = [
            gs.Variable.empty() if bound is None else self._parameter("bound", np.float32(bound))
            for bound in (low, high)
        ]
        node = gs.Node("Clip", fresh(self._graph, f"{name}_Clip"), {}, [source, *bounds], [value])
        q.inputs[0] = value
        insert_before(self._graph, q, [node])

    def _signed(self) -> Iterator[Repair]:
        """uint8 as int8. A Q and its readers change together; so does a constant's DQ."""
        for node in self._quantizers():
            readers = self._readers(node) if ops.is_onnx(node, _Q) else [node]
            if readers is None or self._unsigned(node) is None:
                continue
            constant = self._values(node.inputs[0]) if ops.is_onnx(node, _DQ) else None
            if ops.is_onnx(node, _DQ) and constant is None:
                continue  # behind a Q, which takes it along, or computed by something else
            if any(self._unsigned(reader) is None for reader in readers):
                continue
            if not self._admit(label(node)):
                continue
            for each in {id(n): n for n in (node, *readers)}.values():
                zero = self._unsigned(each)
                assert zero is not None
                each.inputs[2] = self._parameter("zero_point", _shifted(zero))
            if ops.is_onnx(node, _Q):
                node.attrs.pop("output_dtype", None)
                node.outputs[0].dtype = np.dtype(np.int8)
            elif constant is not None:
                node.inputs[0] = self._replaced(node.inputs[0], node, _shifted(constant))
            yield self._repair(node, "uint8 is int8 now, its zero point 128 less")

    def _scalars(self) -> Iterator[Repair]:
        """Scales and zero points of one element, of activations, as scalars."""
        for node in self._quantizers():
            if self._values(self._stored(node)) is not None or ops.attribute(node, "block_size"):
                continue
            scale = self._values(node.inputs[1])
            zero = self._values(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
            if scale is None or zero is None or scale.shape != (1,) or zero.size != 1:
                continue
            if not self._admit(label(node)):
                continue
            node.inputs[1] = self._parameter(f"{node.inputs[1].name}_scalar", scale.reshape(()))
            if len(node.inputs) > 2:
                node.inputs[2] = self._parameter("zero_point", zero.reshape(()))
            node.attrs.pop("axis", None)
            yield self._repair(node, "its scale of shape [1] is a scalar now")

    def _symmetric(self) -> Iterator[Repair]:
        for node in self._quantizers():
            if ops.attribute(node, "block_size") or len(node.inputs) < 3:
                continue
            scale, zero = (self._values(tensor) for tensor in node.inputs[1:3])
            if scale is None or zero is None or zero.dtype != np.int8 or not zero.any():
                continue
            if ops.is_onnx(node, _Q):
                yield from self._symmetric_pair(node, scale, zero)
            elif self._values(node.inputs[0]) is not None:
                yield from self._symmetric_constant(node, scale)

    def _symmetric_pair(self, q: gs.Node, scale: np.ndarray, zero: np.ndarray) -> Iterator[Repair]:
        readers = self._readers(q)
        if readers is None or not all(self._same_parameters(q, dq) for dq in readers):
            return
        constant = self._values(q.inputs[0]) is not None
        real = self._dequantized(readers[0]) if constant else None
        if (constant and real is None) or not self._admit(label(q)):
            return
        reason = "its zero point is 0 now"
        if real is not None:
            axis = None if scale.size == 1 else int(ops.attribute(q, "axis", 1))
            new = symmetric_scale(channel_amax(real, axis), scale.dtype).reshape(scale.shape)
            q.inputs[0] = self._constant(f"{q.inputs[0].name}_clipped", real)
        else:
            info, wide = np.iinfo(np.int8), zero.astype(np.float64)
            reach = np.maximum(wide - info.min, info.max - wide) * scale.astype(np.float64)
            new = symmetric_scale(reach, scale.dtype)
            if (zero == info.min).all() and not self._is_not_negative(q.inputs[0]):
                self._clip_below(q)
                reason += "; what its range clipped below 0, a Relu does"
        self._set_parameters([q, *readers], new)
        yield self._inexact(q, reason, scale, new)

    def _symmetric_constant(self, dq: gs.Node, scale: np.ndarray) -> Iterator[Repair]:
        real = self._dequantized(dq)
        if real is None or not self._admit(label(dq)):
            return
        axis = None if scale.size == 1 else int(ops.attribute(dq, "axis", 1))
        new = symmetric_scale(channel_amax(real, axis), scale.dtype)
        new = new.reshape(scale.shape)
        stored = quantize(real, new, axis)
        dq.inputs[0] = self._replaced(dq.inputs[0], dq, stored)
        self._set_parameters([dq], new)
        yield self._inexact(dq, "the constant's zero point is 0 now", scale, new)

    # --- what they are made of -------------------------------------------------------------
    def _clip_below(self, q: gs.Node) -> None:
        source = q.inputs[0]
        name = fresh(self._graph, f"{source.name}_not_negative")
        value = gs.Variable(name, source.dtype, source.shape)
        relu = gs.Node("Relu", fresh(self._graph, f"{name}_Relu"), {}, [source], [value])
        q.inputs[0] = value
        insert_before(self._graph, q, [relu])

    def _set_parameters(self, nodes: list[gs.Node], scale: np.ndarray) -> None:
        for node in nodes:
            node.inputs[1] = self._parameter(f"{node.inputs[1].name}_symmetric", scale)
            node.inputs[2] = self._parameter("zero_point", np.zeros(scale.shape, np.int8))

    def _drop_unread(self, value: gs.Tensor) -> None:
        """Remove the nodes of a chain that nothing reads any more."""
        while value.inputs and not value.outputs and id(value) not in self._shown:
            maker = value.inputs[0]
            value = maker.inputs[0]
            detach(maker)
            self._graph.nodes[:] = [other for other in self._graph.nodes if other is not maker]

    def _drop_dead(self, node: gs.Node) -> None:
        """Remove a DQ that nothing reads any more, and the Q before it."""
        while not node.outputs[0].outputs and id(node.outputs[0]) not in self._shown:
            source = node.inputs[0]
            maker = source.inputs[0] if source.inputs else None
            detach(node)
            self._graph.nodes[:] = [other for other in self._graph.nodes if other is not node]
            if maker is None or not ops.is_onnx(maker, _Q):
                return
            node = maker

    def _parameter(self, base: str, values: np.ndarray) -> gs.Constant:
        """One constant for each name and content."""
        key = base, values.dtype, values.shape, values.tobytes()
        if key not in self._shared:
            self._shared[key] = self._constant(base, values)
        return self._shared[key]

    def _constant(self, base: str, values: np.ndarray) -> gs.Constant:
        constant = gs.Constant(fresh(self._graph, base), np.asarray(values, order="C"))
        self._made[id(constant)] = constant.values
        return constant

    def _replaced(self, old: gs.Tensor, reader: gs.Node, values: np.ndarray) -> gs.Constant:
        """A constant of other values, under the old name where nothing else reads the old one, so
        that what is recorded of it stays."""
        alone = all(node is reader for node in old.outputs) and id(old) not in self._shown
        if not alone or old.inputs or not isinstance(old, gs.Constant):
            return self._constant(f"{old.name}_int8", values)
        constant = gs.Constant(old.name, np.asarray(values, order="C"))
        self._made[id(constant)] = constant.values
        return constant

    def _repair(self, node: gs.Node, reason: str) -> Repair:
        return Repair(label(node), node.op, self._graph.scope, reason)

    def _inexact(self, node: gs.Node, reason: str, before: np.ndarray, after: np.ndarray) -> Repair:
        steps = [float(np.max(scale.astype(np.float64))) for scale in (before, after)]
        reason += f", its step {steps[1]:.4g} instead of {steps[0]:.4g}"
        facts = {"step_before": steps[0], "step_after": steps[1], "moves_by": sum(steps) / 2}
        return Repair(label(node), node.op, self._graph.scope, reason, False, facts, "O24-227")

    # --- what is asked of the view ---------------------------------------------------------
    def _quantizers(self, *names: str) -> list[gs.Node]:
        wanted = names or (_Q, _DQ)
        return [
            node
            for node in self._graph.nodes
            if ops.is_onnx(node, *wanted) and len(node.inputs) >= 2 and node.outputs
        ]

    def _readers(self, q: gs.Node) -> list[gs.Node] | None:
        """The DequantizeLinear nodes that read it; None where anything else does, or nothing."""
        value = q.outputs[0]
        plain = [
            node for node in value.outputs if ops.is_onnx(node, _DQ) and node.inputs[0] is value
        ]
        if id(value) in self._shown or not plain or len(plain) != len(value.outputs):
            return None
        return plain

    def _stored(self, node: gs.Node) -> gs.Tensor:
        """What a Q quantizes, or what the Q before a DQ does."""
        source = node.inputs[0]
        if ops.is_onnx(node, _DQ) and source.inputs and ops.is_onnx(source.inputs[0], _Q):
            return source.inputs[0].inputs[0]
        return source

    def _is_not_negative(self, value: gs.Tensor) -> bool:
        while value.inputs:
            node = value.inputs[0]
            if ops.op(node) in _NOT_NEGATIVE:
                return True
            if ops.is_onnx(node, "Clip") and len(node.inputs) > 1 and node.inputs[1].name:
                least = self._values(node.inputs[1])
                return least is not None and bool((least >= 0).all())
            if ops.is_onnx(node, _DQ) and (q := self._quantizer(node.inputs[0])) is not None:
                if self._starts_at_zero(q):
                    return True
                value = q.inputs[0]
                continue
            if ops.op(node) not in _KEEPS_SIGN:
                return False
            value = node.inputs[0]
        return False

    @staticmethod
    def _quantizer(value: gs.Tensor) -> gs.Node | None:
        """The QuantizeLinear that makes a value."""
        maker = value.inputs[0] if value.inputs else None
        return maker if maker is not None and ops.is_onnx(maker, _Q) else None

    def _starts_at_zero(self, q: gs.Node) -> bool:
        """Whether a quantizer's range has nothing below 0."""
        zero = self._values(q.inputs[2]) if len(q.inputs) > 2 else None
        if zero is None or zero.dtype not in (np.int8, np.uint8):
            return False
        return bool((zero == np.iinfo(zero.dtype).min).all())

    def _unsigned(self, node: gs.Node) -> np.ndarray | None:
        """Its zero point, where that is constant and uint8."""
        zero = self._values(node.inputs[2]) if len(node.inputs) > 2 else None
        return zero if zero is not None and zero.dtype == np.uint8 else None

    def _same_parameters(self, a: gs.Node, b: gs.Node) -> bool:
        if len(a.inputs) < 3 or len(b.inputs) < 3:
            return False
        pairs = [(self._values(a.inputs[i]), self._values(b.inputs[i])) for i in (1, 2)]
        return all(
            x is not None and y is not None and x.dtype == y.dtype and np.array_equal(x, y)
            for x, y in pairs
        )

    def _dequantized(self, dq: gs.Node) -> np.ndarray | None:
        """What a DQ gives of a constant, perhaps behind a Q; None where that is not known."""
        if ops.attribute(dq, "block_size"):
            return None
        scale = self._values(dq.inputs[1])
        zero = self._values(dq.inputs[2]) if len(dq.inputs) > 2 else np.zeros(1, np.int8)
        if scale is None or zero is None:
            return None
        stored = self._values(dq.inputs[0])
        source = dq.inputs[0].inputs[0] if dq.inputs[0].inputs else None
        if stored is None and source is not None and ops.is_onnx(source, _Q):
            stored = self._quantized(source)
        if stored is None or stored.dtype not in (np.int8, np.uint8, np.int32):
            return None
        axis = None if scale.size == 1 else int(ops.attribute(dq, "axis", 1))
        try:
            return dequantize(stored, scale, axis, zero.reshape(scale.shape))
        except ValueError:  # parameters that do not fit
            return None

    def _quantized(self, q: gs.Node) -> np.ndarray | None:
        real, scale = (self._values(tensor) for tensor in q.inputs[:2])
        zero = self._values(q.inputs[2]) if len(q.inputs) > 2 else None
        if real is None or scale is None or zero is None or zero.dtype.itemsize != 1:
            return None
        axis = None if scale.size == 1 else int(ops.attribute(q, "axis", 1))
        try:
            return quantize(real, scale, axis, zero, zero.dtype)
        except ValueError:  # NaN, or parameters that do not fit
            return None

    def _made_type(self, q: gs.Node) -> np.dtype:
        """*Source:* ONNX QuantizeLinear: UINT8 where neither output_dtype nor a zero point is."""
        return numpy_dtype(int(ops.attribute(q, "output_dtype", 0)) or TensorProto.UINT8)

    def _dtype(self, tensor: gs.Tensor) -> np.dtype | None:
        if id(tensor) in self._made:
            return self._made[id(tensor)].dtype
        key = self._key(tensor)
        if key is not None:
            return numpy_dtype(self._found.tensors[key].data_type)
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None:
            return None if tensor.dtype is None else np.dtype(tensor.dtype)
        if not ops.is_onnx(maker, _Q):
            return None
        zero = self._values(maker.inputs[2]) if len(maker.inputs) > 2 else None
        return self._made_type(maker) if zero is None else zero.dtype

    def _key(self, tensor: gs.Tensor) -> ValueKey | None:
        """Of a constant that the model had before; None for what the caller may override."""
        key = self._found.index.resolve(tensor.name, self._graph.scope) if tensor.name else None
        if key not in self._found.tensors or key in self._found.index.graph_inputs:
            return None
        return key

    def _values(self, tensor: gs.Tensor) -> np.ndarray | None:
        if id(tensor) in self._made:
            return self._made[id(tensor)]
        key = self._key(tensor)
        return None if key is None else self._found.read(self._model, key)


def may_be_recognised(model: Model) -> bool:
    """Whether `Repairs.recognise` could find anything: asked before a view is made."""
    small = (TensorProto.INT8, TensorProto.UINT8)
    stored = any(model.weights.tensor(key).data_type in small for key in model.weights)
    nodes = [node for scope in model.scopes() for node in scope.graph.node]
    return any(is_qdq(node) and not ops.is_onnx(node) for node in nodes) or (
        stored and any(ops.is_onnx(node, "Cast") for node in nodes)
    )


def _shifted(values: np.ndarray) -> np.ndarray:
    """uint8 → int8, 128 less."""
    return (values.astype(np.int16) - SHIFT).astype(np.int8)


def parameters_that_are_inputs(model: Model, index: Index) -> list[str]:
    """Initializers that are inputs of the graph as well, and that Q or DQ, or what stands between
    the two, reads: TensorRT takes them for constants, as exporters that list every initializer
    among the inputs mean them."""
    between = (
        use.site
        for site in index.nodes
        if is_qdq(site, "QuantizeLinear")
        for use in index.consumers(site.proto.output[0], site.scope)
    )
    sites = [*(site for site in index.nodes if is_qdq(site)), *between]
    read = {index.resolve(name, site.scope) for site in sites for name in site.proto.input if name}
    found = read & index.graph_inputs & index.initializers.keys()
    return sorted(key.name for key in found if key is not None)
