"""Mixed precision carried out: constants stored in 16 bit, and Casts where values cross over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx24.analysis.mixed_precision import Plan, is_cast, takes_output_dtype
from onnx24.analysis.precision import dtype16
from onnx24.ir import ops
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, insert_after, redirect

__all__ = ["Rewriter", "Stored"]

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Stored:
    """A constant that was converted, and the name of its 16-bit form: its own where nothing reads
    the float32 any more."""

    key: ValueKey
    name: str
    shape: tuple[int, ...]

    @property
    def twice(self) -> bool:
        return self.name != self.key.name


class Rewriter:
    """Carries a plan out in the view. casts: how many were put in."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.root = plan.root
        self.dtype = dtype16(plan.to)
        self.suffix = "fp16" if plan.to == TensorProto.FLOAT16 else "bf16"
        self.casts = 0

    def run(self) -> list[Stored]:
        """Returns: the constants that were converted."""
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
        stored: list[Stored] = []
        for tensor in values:
            if isinstance(tensor, gs.Constant):
                stored += self._constant(tensor, wants)
            else:
                self._variable(tensor, gives[id(tensor)], wants)
        self._drop_empty_casts()
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
        self, constant: gs.Constant, wants: dict[tuple[int, int], bool]
    ) -> Iterator[Stored]:
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
        yield Stored(key, name, tuple(constant.shape))

    def _variable(
        self, tensor: gs.Variable, gives16: bool, wants: dict[tuple[int, int], bool]
    ) -> None:
        readers = self._readers(tensor, wants, not gives16)
        producer = self.plan.producer(tensor)
        if gives16:
            assert producer is not None
            if is_cast(producer):
                producer.attrs["to"] = int(self.plan.to)
            if takes_output_dtype(producer):
                # By default it is the scale's type: ONNX Runtime 1.32 loads no model that says so.
                del producer.attrs["output_dtype"]
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
        self.casts += 1
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
            if not is_cast(node) or ops.attribute(node, "to") != self.plan.to:
                continue
            source, result = node.inputs[0], node.outputs[0]
            was16 = self.plan.shapes.dtype(source.name) == self.plan.to
            is16 = source.dtype == self.dtype and not isinstance(source, gs.Constant)
            if not (is16 or was16) or id(result) in self.plan.outputs | self.plan.body_outputs:
                continue
            redirect(result, source)
            detach(node)
            self.root.nodes.pop(next(i for i, n in enumerate(self.root.nodes) if n is node))


@dataclass(frozen=True)
class _Rounded:
    """A weight in 16 bit, rounded to nearest even."""

    model: Model
    key: ValueKey
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        return self.model.weights[self.key].astype(self.dtype)
