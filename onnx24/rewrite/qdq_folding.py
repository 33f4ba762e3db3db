"""Quantizers of constants computed, and Q/DQ pairs that do nothing removed, graph by graph.

Nothing is recorded here: each change, and each weight that a target makes stay, is an `Edit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnx24.analysis.folding import can_fold
from onnx24.analysis.folding import fold as compute
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, label, redirect, walk
from onnx24.ir.weights import numpy_dtype
from onnx24.quant.scales import quantize, quantize_blocks

__all__ = ["Edit", "fold"]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FOLDED = frozenset({"int8", "float8_e4m3fn", "int4", "uint4"})
"""What a weight is folded to. Not uint8: TensorRT-RTX 1.7.1 builds a float weight
behind a UINT8 pair of zero point 0, and parses no UINT8 constant."""
_SPANS = {
    "int8": (1, 255),
    "uint8": (1, 255),
    "int4": (1, 15),
    "uint4": (1, 15),
    "float8_e4m3fn": (2**-9, 448),
}
"""Types whose values survive DequantizeLinear and QuantizeLinear of one scale, with the least and
the largest number that the scale multiplies: a real value is off by at most half a unit in its last
place, which is below half a step in float32, float16 and bfloat16 alike."""


@dataclass(frozen=True)
class Edit:
    """What happened to one node. action: "folded", "removed" or "kept". weight, tensor: of a
    weight, and of the integers that it became; before, after: their sizes [bytes]."""

    action: str
    node: str
    op: str
    scope: str
    reason: str
    weight: ValueKey | None = None
    tensor: str = ""
    before: int = 0
    after: int = 0


def fold(
    model: Model, found: WeightUses, admit: Callable[[str], bool], kept_because: str = ""
) -> list[Edit]:
    """Edit every graph of the model. admit: asked before each edit. kept_because: why weights stay
    in float, "" where they do not.

    Raises: InputError O24-008 for a weight with NaN or infinity.
    """
    edits: list[Edit] = []
    with model.surgeon() as root:
        shown = {id(value) for graph in walk(root) for value in graph.outputs}
        for graph in list(walk(root)):
            editor = _Editor(model, found, graph, shown, admit, edits)
            while editor.merge() or editor.cancel():
                pass
            editor.fold_weights(kept_because)
            editor.drop_dead()
    return edits


class _Unbuildable(Exception):
    """Why a weight can't be folded to what TensorRT builds."""


@dataclass(frozen=True)
class _Form:
    """A weight's integers on their way to DequantizeLinear: the tensor that they are in the graph,
    and what they are."""

    value: gs.Tensor
    values: np.ndarray


def _dequantizes(node: gs.Node, value: gs.Tensor) -> bool:
    """Whether the node dequantizes the value and reads it nowhere else."""
    if not ops.is_onnx(node, DEQUANTIZE):
        return False
    return [i for i, tensor in enumerate(node.inputs) if tensor is value] == [0]


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a computed operator can have."""
    return {k: v for k, v in attrs.items() if isinstance(v, (int, float, str, list))}


@dataclass
class _Editor:
    """Q/DQ of one graph of the view. `shown`: ids of the values that are outputs of some graph."""

    model: Model
    found: WeightUses
    graph: gs.Graph
    shown: set[int]
    admit: Callable[[str], bool]
    edits: list[Edit]

    # --- redundant nodes -------------------------------------------------------------------
    def merge(self) -> bool:
        """Keep the first of identical nodes; False where each is one of its kind."""
        kept: dict[Any, gs.Node] = {}
        twins = []
        for node in self._quantizers():
            first = kept.setdefault(self._signature(node), node)
            if first is not node and id(node.outputs[0]) not in self.shown:
                twins.append((node, first))
        return self._remove(
            (node, first.outputs[0], f"the same as {first.name or first.outputs[0].name!r}")
            for node, first in twins
        )

    def cancel(self) -> bool:
        """Bypass each Q whose input is a DQ of the same parameters; False where there is none."""
        pairs = []
        for node in self._quantizers(QUANTIZE):
            value = node.inputs[0]
            source = value.inputs[0] if value.inputs else None
            if source is None or not ops.is_onnx(source, DEQUANTIZE):
                continue
            same = self._signature(node)[2:] == self._signature(source)[2:]
            stored = self._constant_key(source.inputs[0]) is not None
            result = node.outputs[0]
            if stored and not all(_dequantizes(reader, result) for reader in result.outputs):
                continue  # nothing else may read quantized constants
            if same and id(result) not in self.shown and self._is_exact(node):
                pairs.append((node, source))
        return self._remove(
            (node, source.inputs[0], f"gives back what {source.name or value.name!r} took")
            for node, source in pairs
        )

    def drop_dead(self) -> None:
        """Remove Q/DQ that nothing reads, and those before them."""
        while True:
            dead = [
                node
                for node in self._quantizers()
                if not node.outputs[0].outputs and id(node.outputs[0]) not in self.shown
            ]
            if not self._remove((node, None, "nothing reads it") for node in dead):
                return

    def _remove(self, plans: Iterator[tuple[gs.Node, gs.Tensor | None, str]]) -> bool:
        """Take nodes out; their readers read the given value instead. False if nothing went."""
        gone = set()
        for node, instead, why in plans:
            if not self.admit(label(node)):
                continue
            if instead is not None:
                redirect(node.outputs[0], instead)
            self._say("removed", node, why)
            detach(node)
            gone.add(id(node))
        self._keep(lambda node: id(node) not in gone)
        return bool(gone)

    # --- weights ---------------------------------------------------------------------------
    def fold_weights(self, kept_because: str) -> None:
        gone: set[int] = set()
        for node in self._quantizers(QUANTIZE):
            key = self._constant_key(node.inputs[0])
            parameters = [self._constant_key(tensor) for tensor in node.inputs[1:3]]
            if key is None or None in parameters or len(parameters) < 2:
                continue
            if not self._is_foldable(node) or id(node.outputs[0]) in self.shown:
                continue
            if kept_because:
                self._say("kept", node, kept_because, weight=key)
                continue
            try:
                forms, steps = self._forms(node, key)
            except _Unbuildable as why:
                self._say("kept", node, str(why), weight=key)
                continue
            if self.admit(str(key)):
                gone |= {id(each) for each in self._fold(node, key, forms, steps)}
        self._keep(lambda node: id(node) not in gone)

    def _forms(self, node: gs.Node, key: ValueKey) -> tuple[list[_Form], list[gs.Node]]:
        """(the weight as each DequantizeLinear reads it, the nodes between that are computed for
        it). TensorRT takes quantized constants before a DequantizeLinear alone, and none of rank 0.

        Raises: _Unbuildable where that can't be; InputError O24-008.
        """
        forms, steps = [], []
        pending = [_Form(node.outputs[0], self._quantized(node, key))]
        while pending:
            form = pending.pop()
            if id(form.value) in self.shown:
                raise _Unbuildable(f"{form.value.name!r} is an output")
            between = [each for each in form.value.outputs if not _dequantizes(each, form.value)]
            pending += [self._step(each, form) for each in between]
            steps += between
            if len(between) == len(form.value.outputs):
                continue
            if not form.values.ndim:
                raise _Unbuildable("TensorRT builds no quantized constant of rank 0")
            forms.append(form)
        return forms, steps

    def _step(self, node: gs.Node, form: _Form) -> _Form:
        """What a node makes of the quantized weight."""
        proto = helper.make_node(node.op, ["x"], ["y"], domain=node.domain, **_plain(node.attrs))
        others = [self._constant_key(t) if t.name else None for t in node.inputs[1:]]
        known = all(key or not t.name for key, t in zip(others, node.inputs[1:], strict=True))
        here = any(each is node for each in self.graph.nodes)
        result = None
        if can_fold(proto) and known and here and node.inputs[0] is form.value:
            rest = [key and self.found.read(self.model, key) for key in others]
            result = compute(proto, [form.values, *rest])
        if result is None or result.dtype != form.values.dtype:
            raise _Unbuildable(f"{node.op} {label(node)!r} reads the integers")
        return _Form(node.outputs[0], result)

    def _quantized(self, node: gs.Node, key: ValueKey) -> np.ndarray:
        weight, scale, zero_point = (self._values(tensor) for tensor in node.inputs[:3])
        block, axis = int(ops.attribute(node, "block_size", 0)), int(ops.attribute(node, "axis", 1))
        try:
            if block:
                return quantize_blocks(weight, scale, axis, block, zero_point, zero_point.dtype)
            along = None if scale.size == 1 else axis
            return quantize(weight, scale, along, zero_point, zero_point.dtype)
        except ValueError as err:
            raise InputError.of(
                "O24-008", str(err), tensor=key.name, scope=key.scope, node=node.name, op=node.op
            ) from err

    def _fold(
        self, node: gs.Node, key: ValueKey, forms: list[_Form], steps: list[gs.Node]
    ) -> list[gs.Node]:
        """Returns: the nodes that are to go, detached."""
        source = node.inputs[0]
        before = self.found.tensors[key]
        left = math.prod(before.dims) * numpy_dtype(before.data_type).itemsize
        for form in forms:
            values = form.values
            name = fresh(self.graph, f"{key.name}_{values.dtype}")
            constant = gs.Constant(name, values)
            for reader in [n for n in form.value.outputs if _dequantizes(n, form.value)]:
                reader.inputs[0] = constant
            packed = values.dtype.name in ("int4", "uint4")
            nbytes = -(-values.size // 2) if packed else values.nbytes
            why = f"{left:,} to {nbytes:,} bytes"
            self._say("folded", node, why, key, name, left, nbytes)
            left = 0  # a second form of the weight frees nothing more
        gone = [node, *steps]
        maker = source.inputs[0] if source.inputs else None
        for each in gone:
            detach(each)
        # A Constant node's values would stay in the file.
        if maker is not None and not source.outputs and id(source) not in self.shown:
            detach(maker)
            gone.append(maker)
        return gone

    # --- what is asked of the view ---------------------------------------------------------
    def _quantizers(self, *names: str) -> list[gs.Node]:
        wanted = names or (QUANTIZE, DEQUANTIZE)
        return [
            node
            for node in self.graph.nodes
            if ops.is_onnx(node, *wanted) and len(node.inputs) >= 2 and node.outputs
        ]

    def _keep(self, wanted: Callable[[gs.Node], bool]) -> None:
        if not all(map(wanted, self.graph.nodes)):
            self.graph.nodes[:] = [node for node in self.graph.nodes if wanted(node)]

    def _constant_key(self, tensor: gs.Tensor) -> ValueKey | None:
        """The key of a tensor whose values are known; None for what is computed or may be
        overridden, and for the integers that this pass has just made."""
        key = self.found.index.resolve(tensor.name, self.graph.scope)
        if key not in self.found.tensors or key in self.found.index.graph_inputs:
            return None
        return key

    def _values(self, tensor: gs.Tensor) -> np.ndarray:
        key = self._constant_key(tensor)
        assert key is not None
        return self.found.read(self.model, key)

    def _content(self, tensor: gs.Tensor) -> Any:
        """Equal for constants of equal values, and for the same value."""
        key = self._constant_key(tensor)
        if key is None:
            return id(tensor)
        proto = self.found.tensors[key]
        return proto.data_type, tuple(proto.dims), self.model.weights.digest_of(proto)

    def _signature(self, node: gs.Node) -> tuple[Any, ...]:
        """(op, input, scale, zero point, attributes)"""
        parameters = [self._content(tensor) for tensor in node.inputs[1:3] if tensor.name]
        attrs = dict(node.attrs)
        scale = self._constant_key(node.inputs[1])
        if scale is not None and not self.found.tensors[scale].dims:
            attrs.pop("axis", None)  # without meaning for a scale of rank 0
        else:
            attrs.setdefault("axis", 1)
        rest = tuple(sorted((name, repr(value)) for name, value in attrs.items()))
        # By name, not by content: equal weights may be recorded as 2:4 each under its own name.
        source = self._constant_key(node.inputs[0]) or id(node.inputs[0])
        return node.op, source, tuple(parameters), rest

    def _is_foldable(self, node: gs.Node) -> bool:
        """Whether it goes from a float to a type of _SPANS, for a weight of _FOLDED, by an explicit
        zero point. What casts on the way or rounds otherwise is left to the runtime."""
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return False
        if ops.attribute(node, "precision") or not ops.attribute(node, "saturate", 1):
            return False
        zero_point, weight, scale = (self._constant_key(node.inputs[i]) for i in (2, 0, 1))
        types = _FOLDED if weight is not None else _SPANS
        if zero_point is None or self._dtype_name(zero_point) not in types:
            return False
        if weight is None:
            return True
        names = {self._dtype_name(key) for key in (weight, scale) if key is not None}
        return names <= {"float32", "float16", "bfloat16"} and len(names) == 1

    def _dtype_name(self, key: ValueKey) -> str:
        return numpy_dtype(self.found.tensors[key].data_type).name

    def _is_exact(self, node: gs.Node) -> bool:
        """Whether Q(DQ(q)) = q for every q."""
        zero_point = self._constant_key(node.inputs[2]) if len(node.inputs) > 2 else None
        if not self._is_foldable(node) or zero_point is None:
            return False
        if not self._constant_key(node.inputs[1]):
            return False
        scale = self._values(node.inputs[1])
        info = ml_dtypes.finfo(scale.dtype)
        wide = scale.astype(np.float64)
        least, largest = _SPANS[self._dtype_name(zero_point)]
        fits = (wide * least >= float(info.tiny)) & (wide * largest < float(info.max))
        return bool(fits.all())

    def _say(
        self, action: str, node: gs.Node, reason: str, weight: ValueKey | None = None, *rest: Any
    ) -> None:
        scope = weight.scope if weight else self.graph.scope
        self.edits.append(Edit(action, node.name, node.op, scope, reason, weight, *rest))
