"""Writing the nodes of a graph anew: operators under fresh names, shapes as constants where they
are known and computed where they are not."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.products import ViewFacts
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, walk
from onnx24.rewrite.forms import Form, Lead, Plan, Twin


@dataclass(frozen=True)
class Dim:
    """The `index`-th size of a lead, which may be known at run time only."""

    lead: Lead
    index: int

    @property
    def known(self) -> int | None:
        size = self.lead.sizes[self.index]
        return size if isinstance(size, int) else None


class ShapeConstants:
    """Shape constants of a view; equal ones are one."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._made: dict[tuple[int, ...], gs.Constant] = {}

    def get(self, sizes: tuple[int, ...], base: str) -> gs.Constant:
        """`base`: its name where it is new."""
        if sizes not in self._made:
            name = fresh(self._root, base)
            self._made[sizes] = gs.Constant(name, np.array(sizes, np.int64))
        return self._made[sizes]


class LayerNames:
    """Names for nodes that stand for a layer of before: an unnamed layer is called by its first
    output, which its successor does not have any more."""

    def __init__(self, root: Any) -> None:
        self._taken = {node.name for graph in walk(root) for node in graph.nodes}

    def keep(self, node: gs.Node, label: str) -> str:
        """The node's own name, else `label`, else "" where another node has that."""
        if node.name or label in self._taken:
            return node.name
        self._taken.add(label)
        return label


class NodeWriter:
    """Collects the nodes that are to be a graph's, in order, in `nodes`."""

    def __init__(self, graph: Any, shapes: ShapeConstants) -> None:
        self.graph = graph
        self.shapes = shapes
        self.nodes: list[gs.Node] = []
        self.computed: dict[tuple[Any, ...], gs.Tensor] = {}
        """Shapes and their pieces, by what they are"""

    def target(self, parts: Sequence[int | Dim], label: str, step: str) -> gs.Tensor:
        """A shape: a constant where at most one size is unknown, computed otherwise."""
        sizes = [part.known if isinstance(part, Dim) else part for part in parts]
        if sum(size in (None, -1) for size in sizes) <= 1:
            known = tuple(-1 if size is None else size for size in sizes)
            return self.shapes.get(known, f"{label}.{step}")
        if tuple(parts) not in self.computed:
            self.computed[tuple(parts)] = self._compute(parts, label, step)
        return self.computed[tuple(parts)]

    def _compute(self, parts: Sequence[int | Dim], label: str, step: str) -> gs.Tensor:
        pieces: list[gs.Tensor] = []
        run: list[int | Dim] = []
        for i, part in enumerate(parts):
            run.append(part)
            ends = i + 1 == len(parts) or isinstance(parts[i + 1], Dim) != isinstance(part, Dim)
            if ends:
                pieces.append(self._piece(run, label))
                run = []
        if len(pieces) == 1:
            return pieces[0]
        return self.op("Concat", label, step, pieces, attrs={"axis": 0}, dtype=np.int64)

    def _piece(self, run: Sequence[int | Dim], label: str) -> gs.Tensor:
        first = run[0]
        if not isinstance(first, Dim):
            return self.shapes.get(tuple(run), f"{label}.columns")  # type: ignore[arg-type]
        lead = first.lead
        rank = len(lead.sizes) + 1
        axes = [i for i in range(rank) if i != rank + lead.axis]
        picked = tuple(axes[part.index] for part in run)  # type: ignore[union-attr]
        indices = self.shapes.get(picked, f"{label}.leading_axes")
        if (lead,) not in self.computed:
            self.computed[lead,] = self.op(
                "Shape", label, "whole_shape", [lead.source], dtype=np.int64
            )
        if (lead, picked) not in self.computed:
            inputs = [self.computed[lead,], indices]
            self.computed[lead, picked] = self.op(
                "Gather", label, "leading_shape", inputs, attrs={"axis": 0}, dtype=np.int64
            )
        return self.computed[lead, picked]

    def transpose(
        self, value: gs.Tensor, rank: int, label: str, step: str, out: gs.Tensor | None = None
    ) -> gs.Tensor:
        """The last two axes of a value of `rank` dimensions change places."""
        perm = [*range(rank - 2), rank - 1, rank - 2]
        return self.op("Transpose", label, step, [value], out, attrs={"perm": perm})

    def op(
        self,
        op: str,
        label: str,
        step: str,
        inputs: Sequence[gs.Tensor],
        out: gs.Tensor | None = None,
        *,
        attrs: dict[str, Any] | None = None,
        dtype: Any = None,
    ) -> gs.Tensor:
        """One more node, named for the layer `label` and the `step`. Returns: its output, `out` or
        a new value (of the first input's dtype unless given)."""
        if out is None:
            out = gs.Variable(fresh(self.graph, f"{label}.{step}"), dtype or inputs[0].dtype)
        name = fresh(self.graph, f"{label}.{step}.{op.lower()}")
        self.nodes.append(gs.Node(op, name, attrs or {}, list(inputs), [out]))
        return out


class FormWriter(NodeWriter, abc.ABC):
    """A writer for a plan: it knows which values stand in another form too."""

    def __init__(self, graph: Any, shapes: ShapeConstants, plan: Plan) -> None:
        super().__init__(graph, shapes)
        self.plan = plan
        self.formed: dict[tuple[int, Form], gs.Tensor] = {}
        """(id of a value, form) → the same in that form"""

    @abc.abstractmethod
    def enter(self, x: gs.Tensor, form: Form, lead: Lead, label: str) -> gs.Tensor:
        """`x` in the form; made once."""

    @abc.abstractmethod
    def leave(
        self, value: gs.Tensor, form: Form, lead: Lead, result: gs.Tensor, label: str
    ) -> None:
        """Make `result`, in the graph's own form, from `value` in `form`."""

    @abc.abstractmethod
    def beside(self, tensor: gs.Tensor, twin: Twin) -> gs.Tensor:
        """A constant operand of an elementwise node, broadcast along the channels where they are
        in the twin's form."""

    @abc.abstractmethod
    def noun(self, form: Form) -> str:
        """What a value of the form is called."""

    def formed_value(self, base: str, form: Form, result: gs.Tensor) -> gs.Tensor:
        """A new value for `result` in the form."""
        return gs.Variable(fresh(self.graph, f"{base}.{self.noun(form)}"), result.dtype)

    def keep(self, node: gs.Node, needed: bool) -> None:
        """An elementwise node goes on working, on values in the form of its twins. `needed`: its
        result in the graph's own form too."""
        result = node.outputs[0]
        twin = self.plan.twins[id(result)]
        data = self.plan.data_inputs(node)
        label = node.name or result.name
        inputs = []
        for tensor in list(node.inputs):
            if any(tensor is d for d in data):
                lead = self.plan.twins[id(tensor)].lead
                inputs.append(self.enter(tensor, twin.form, lead, label))
            else:
                inputs.append(self.beside(tensor, twin))
        out = self.formed_value(result.name, twin.form, result)
        detach(node)
        node.inputs.extend(inputs)
        node.outputs.append(out)
        self.nodes.append(node)
        self.formed[id(result), twin.form] = out
        if needed:
            self.leave(out, twin.form, twin.lead, result, label)


def spread(
    facts: ViewFacts,
    graph: Any,
    old: gs.Constant,
    shape: tuple[int, ...],
    base: str,
    scale: float = 1.0,
) -> gs.Constant:
    """A constant of one value a channel, or of one value, in another shape and times `scale`;
    under its own name where nothing else reads it, else named `base`."""
    alone = len(old.outputs) == 1 and id(old) not in facts.outputs
    name = old.name if alone else fresh(graph, base)
    return Derived(name, shape, old.dtype, _Spread(facts.model, facts.keys[id(old)], shape, scale))


@dataclass(frozen=True)
class _Spread:
    """A constant of one value a channel, or of one value, of any rank, in another shape."""

    model: Model
    key: ValueKey
    shape: tuple[int, ...]
    scale: float

    def __call__(self) -> np.ndarray:
        values = scaled(self.model.weights[self.key].reshape(-1), self.scale)
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.ascontiguousarray(np.broadcast_to(values, (count,))).reshape(self.shape)


def scaled(values: np.ndarray, factor: float) -> np.ndarray:
    """Rounded once, also for 16-bit types."""
    if factor == 1.0:
        return values
    return (values.astype(np.float32) * np.float32(factor)).astype(values.dtype)
