"""An ONNX model as a torch module: the graph is run node by node, its float initializers are the
module's parameters.

Nothing is translated into layers, so that what is trained is what the file holds: each parameter
belongs to one initializer, and `write_back` puts it there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import ScopeNames, node_label
from onnx24.recovery import arithmetic, layers, shaping
from onnx24.recovery._torch import torch
from onnx24.recovery.fake import INT8, along, least_scale, round_in_range
from onnx24.recovery.node import CHECKS, OPERATORS, TORCH_DTYPES, Node, Tensor, Unsupported

__all__ = ["GraphModule", "objections"]

_IMPLEMENTATIONS = (arithmetic, layers, shaping)
"""Imported for the operators that they enter."""

_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

_FIXED_INPUTS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "Pow": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
    "Pad": frozenset({2}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
    "OneHot": frozenset({2}),
    "Range": frozenset({0, 1, 2}),
}
"""Inputs that hold statistics, scales and limits, which training leaves as they are."""
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


@dataclass
class _Program:
    """One graph. `last`: for each node, the values that nothing reads after it."""

    scope: str
    nodes: list[Node]
    last: list[tuple[str, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    local: dict[str, ValueKey] = field(default_factory=dict)
    """The initializers of this graph: name → key."""


def objections(model: Model) -> list[Diagnostic]:
    """O24-150 for every node that has no implementation; nothing is run."""
    found = []
    program = _program(model, model.proto.graph, "", ScopeNames(), Index.of(model.proto))
    for node in _every_node(program):
        reason = _objection(node)
        if reason:
            found.append(_refusal(node, reason))
    return found


def _every_node(program: _Program) -> Iterator[Node]:
    for node in program.nodes:
        yield node
        for body in node.bodies.values():
            yield from _every_node(body)


def _objection(node: Node) -> str:
    if (node.domain, node.op) not in OPERATORS and node.op != "If":
        return f"{node.domain + '.' if node.domain else ''}{node.op} has no implementation in torch"
    return CHECKS[node.op](node) if not node.domain and node.op in CHECKS else ""


def _refusal(node: Node, reason: str) -> Diagnostic:
    return diagnostic(
        "O24-150", reason, severity=Severity.ERROR, node=node.name, op=node.op, scope=node.scope
    )


class GraphModule(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A model in torch; on the CPU until `place` moves it.

    `keys`: the initializers that training may change, in the model's order; `parameter(key)` is
    the parameter of one. Those of float16 and bfloat16 are kept as float32 and rounded when they
    are read, so that small steps are not lost. Normalization statistics, quantizers' scales,
    limits and single numbers are parameters that want no gradient; `learn_scales` makes the
    quantizers' scales want one.

    Weights that are stored as INT8 behind DequantizeLinear are parameters of real values, which
    are rounded to integers when they are read: a fake quantizer whose first half the file has
    folded.

    transforms: key → what the graph reads instead of a parameter (a mask, for instance); it may be
    changed at any time.
    Raises: InputError O24-150, one diagnostic for each node that can't be run.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        refused = objections(model)
        if refused:
            raise InputError(refused)
        self.transforms: dict[ValueKey, Callable[[Tensor], Tensor]] = {}
        index = Index.of(model.proto)
        self._program = _program(model, model.proto.graph, "", ScopeNames(), index)
        self.scale_keys: list[ValueKey] = []
        self._constants: dict[ValueKey, Tensor] = {}
        self._parameters_by_key: dict[ValueKey, Any] = {}
        self._elements: dict[ValueKey, int] = {}
        self._folded: dict[ValueKey, _Folded] = {}
        self.device = torch.device("cpu")
        for position, key in enumerate(model.weights):
            self._add_initializer(position, key, model, index)
        self.output_names = self._program.outputs

    def _add_initializer(self, position: int, key: ValueKey, model: Model, index: Index) -> None:
        tensor = model.weights.tensor(key)
        if tensor.data_type == TensorProto.STRING:
            return
        values = _to_torch(model.weights.read(tensor), tensor.data_type)
        folded = _folded(key, tensor, model, index)
        if folded is not None:
            self._folded[key] = folded
            scale = _to_torch(*_read(model, folded.scale)).float()
            values = values.float() * along(scale, folded.axis, values.dim())
        elif tensor.data_type not in _FLOATS:
            self._constants[key] = values
            return
        if tensor.data_type in _HALVES:
            values = values.float()
        trainable = folded is not None or _is_trainable(key, tensor, index)
        parameter = torch.nn.Parameter(values, requires_grad=trainable)
        if _is_scale(key, index):
            self.scale_keys.append(key)
        self.register_parameter(f"initializer{position}", parameter)
        self._parameters_by_key[key] = parameter
        self._elements[key] = tensor.data_type

    @property
    def has_bodies(self) -> bool:
        return any(node.bodies for node in _every_node(self._program))

    @property
    def keys(self) -> list[ValueKey]:
        return [key for key, value in self._parameters_by_key.items() if value.requires_grad]

    def learn_scales(self) -> list[ValueKey]:
        """From now on, the parameter of each quantizer's scale is what it is multiplied by: 1 at
        first, at least LEAST_RATIO, with the gradient of LSQ. Returns: the scales' keys."""
        for key in self.scale_keys:
            parameter = self._parameters_by_key[key]
            start = parameter.detach().clone()
            with torch.no_grad():
                parameter.fill_(1.0)
            parameter.requires_grad_(True)
            least = least_scale(TORCH_DTYPES[self._elements[key]])
            self.transforms[key] = partial(_scaled, start, least)
        return self.scale_keys

    def place(self, device: str) -> None:
        """Move parameters and constants, and run there from now on."""
        self.device = torch.device(device)
        self.to(self.device)
        self._constants = {key: value.to(self.device) for key, value in self._constants.items()}

    def is_integer(self, key: ValueKey) -> bool:
        """Whether it is an initializer that the module reads as it is stored."""
        return key in self._constants

    def parameter(self, key: ValueKey) -> Any:
        """Raises: KeyError where `key` is no float initializer."""
        return self._parameters_by_key[key]

    def effective(self, key: ValueKey) -> Tensor:
        """What the graph reads: the parameter, transformed, in the initializer's own type."""
        value = self._parameters_by_key[key]
        if key in self.transforms:
            value = self.transforms[key](value)
        if key in self._folded:
            folded = self._folded[key]
            scale = self.effective(folded.scale).float()
            return round_in_range(value / along(scale, folded.axis, value.dim()), *INT8)
        return value.to(TORCH_DTYPES[self._elements[key]])

    def forward(
        self, feeds: Mapping[str, np.ndarray | Tensor], outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The values of the main graph's `outputs` (the model's, where None) by name.

        feeds: input name → array, as for ONNX Runtime.
        Raises: InputError O24-152 naming the node that fails on these values.
        """
        wanted = tuple(self._program.outputs if outputs is None else outputs)
        values = {name: _fed(value).to(self.device) for name, value in feeds.items()}
        if self.device.type == "cpu":
            return self._run(self._program, values, {}, wanted)
        with self.device:  # what operators make anew is made there
            return self._run(self._program, values, {}, wanted)

    def _run(
        self,
        program: _Program,
        values: dict[str, Tensor],
        outer: Mapping[str, Tensor],
        wanted: Sequence[str],
    ) -> dict[str, Tensor]:
        for name, key in program.local.items():
            if name in values:
                continue  # an input that is fed, whose initializer is only its default
            values[name] = self.effective(key) if key in self._elements else self._constants[key]
        kept = frozenset(wanted)
        for node, dead in zip(program.nodes, program.last, strict=True):
            given = [self._read(name, values, outer) for name in node.inputs]
            results = self._call(node, given, {**outer, **values} if node.bodies else values)
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result
            for name in dead:
                if name not in kept:
                    values.pop(name, None)
        return {name: self._read(name, values, outer) for name in wanted}

    @staticmethod
    def _read(name: str, values: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> Tensor:
        if not name:
            return None
        return values[name] if name in values else outer[name]

    def _call(
        self, node: Node, given: list[Tensor], visible: Mapping[str, Tensor]
    ) -> Sequence[Tensor]:
        try:
            if node.op == "If":
                body = node.bodies["then_branch" if bool(given[0]) else "else_branch"]
                return list(self._run(body, {}, visible, body.outputs).values())
            result = OPERATORS[node.domain, node.op](node, *given)
        except Unsupported as err:
            raise InputError(_refusal(node, str(err))) from err
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as err:
            reason = " ".join(str(err).split())[:300]
            raise InputError.of(
                "O24-152", f"torch: {reason}", node=node.name, op=node.op, scope=node.scope
            ) from err
        if node.op == "Constant" and isinstance(result, torch.Tensor):
            result = result.to(self.device)
        return result if isinstance(result, tuple) else (result,)

    def write_back(self, model: Model) -> list[ValueKey]:
        """Put what the graph reads for each trainable initializer into the model's.

        Nothing else of the model changes. Returns: the initializers whose values differ now.
        """
        changed = []
        for key in self.keys:
            tensor = model.weights.tensor(key)
            new = _to_numpy(self.effective(key).detach().cpu(), tensor)
            if new.tobytes() != model.weights[key].tobytes():
                model.weights.replace(key, new)
                changed.append(key)
        return changed


def _scaled(start: Tensor, least: float, ratio: Tensor) -> Tensor:
    return (start.to(ratio.device) * ratio).clamp_min(least)


@dataclass(frozen=True)
class _Folded:
    """An INT8 initializer's scale, and the axis that it goes along."""

    scale: ValueKey
    axis: int


def _folded(key: ValueKey, tensor: TensorProto, model: Model, index: Index) -> _Folded | None:
    """Where an INT8 initializer can be trained: DequantizeLinear alone reads it, by one scale that
    is an initializer, without blocks and with zero points of 0."""
    uses = index.consumers(key.name, key.scope)
    if tensor.data_type != TensorProto.INT8 or not uses or key in index.graph_outputs:
        return None
    found = set()
    for use in uses:
        node = use.site.proto
        if not ops.is_onnx(node, "DequantizeLinear") or use.input != 0:
            return None
        if ops.attribute(node, "block_size", 0):
            return None
        scale, *zero_points = (index.resolve(name, use.site.scope) for name in node.input[1:])
        if scale is None or scale not in model.weights:
            return None
        if any(_may_differ_from_0(z, model) for z in zero_points):
            return None
        found.add(_Folded(scale, ops.attribute(node, "axis", 1)))
    return found.pop() if len(found) == 1 else None


def _may_differ_from_0(key: ValueKey | None, model: Model) -> bool:
    if key is None or key not in model.weights:
        return True
    return bool(np.asarray(model.weights[key]).view(np.int8).any())


def _read(model: Model, key: ValueKey) -> tuple[np.ndarray, int]:
    tensor = model.weights.tensor(key)
    return model.weights.read(tensor), tensor.data_type


def _is_scale(key: ValueKey, index: Index) -> bool:
    """Whether quantizers, and nothing else, read it as their scale."""
    uses = index.consumers(key.name, key.scope)
    quantizers = ("QuantizeLinear", "DequantizeLinear")
    is_shown = key in index.graph_outputs
    return (
        bool(uses)
        and not is_shown
        and all(use.input == 1 and ops.op(use.site) in quantizers for use in uses)
    )


def _is_trainable(key: ValueKey, tensor: TensorProto, index: Index) -> bool:
    uses = index.consumers(key.name, key.scope)
    if not uses or int(np.prod(tensor.dims)) <= 1 or key in index.graph_outputs:
        return False
    return not any(
        use.input in _FIXED_INPUTS.get(ops.op(use.site), ()) or ops.op(use.site) in _COMPARISONS
        for use in uses
    )


# --- from the document -----------------------------------------------------------------------
def _program(
    model: Model, graph: GraphProto, scope: str, names: ScopeNames, index: Index
) -> _Program:
    nodes = _sorted([_node(model, node, scope, names, index) for node in graph.node])
    outputs = tuple(value.name for value in graph.output)
    return _Program(
        scope=scope,
        nodes=nodes,
        last=_last_reads(nodes, outputs),
        inputs=tuple(value.name for value in graph.input),
        outputs=outputs,
        local={tensor.name: ValueKey(scope, tensor.name) for tensor in graph.initializer},
    )


def _sorted(nodes: list[Node]) -> list[Node]:
    """Producers before readers, else as they stand: ONNX Runtime takes files in any order."""
    made_here = {name for node in nodes for name in node.outputs if name}
    done: set[str] = set()
    ready: list[Node] = []
    waiting = nodes
    while waiting:
        later = []
        for node in waiting:
            if all(name in done or name not in made_here for name in node.inputs):
                ready.append(node)
                done.update(node.outputs)
            else:
                later.append(node)
        if len(later) == len(waiting):
            return ready + later  # a cycle, which ir.check refuses
        waiting = later
    return ready


def _last_reads(nodes: Sequence[Node], outputs: Sequence[str]) -> list[tuple[str, ...]]:
    """For each node, what may be let go of after it. Bodies may read any value of outer scopes, so
    that nothing is let go of where there is one."""
    if any(node.bodies for node in nodes):
        return [()] * len(nodes)
    seen = set(outputs)
    last: list[tuple[str, ...]] = []
    for node in reversed(nodes):
        names = dict.fromkeys(name for name in (*node.inputs, *node.outputs) if name)
        last.append(tuple(name for name in names if name not in seen))
        seen.update(names)
    return last[::-1]


def _node(model: Model, proto: NodeProto, scope: str, names: ScopeNames, index: Index) -> Node:
    domain, op = ops.type_of(proto)
    attributes, bodies = {}, {}
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH:
            path = names.body(scope, proto, attribute.name)
            bodies[attribute.name] = _program(model, attribute.g, path, names, index)
        elif attribute.type == AttributeProto.TENSOR:
            if attribute.t.data_type in TORCH_DTYPES:
                values = model.weights.read(attribute.t)
                attributes[attribute.name] = _to_torch(values, attribute.t.data_type)
        else:
            attributes[attribute.name] = onnx.helper.get_attribute_value(attribute)
    readers = [use for name in proto.output if name for use in index.consumers(name, scope)]
    shown = [
        bool(name)
        and (
            bool(index.consumers(name, scope)) or index.resolve(name, scope) in index.graph_outputs
        )
        for name in proto.output
    ]
    first = proto.output[0] if proto.output else ""
    return Node(
        op=op,
        domain=domain,
        opset=model.opsets.get(domain, 1),
        name=node_label(proto),
        scope=scope,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes=attributes,
        wanted=tuple(shown),
        integer_output=index.resolve(first, scope) in index.graph_outputs
        or any(not ops.is_onnx(use.site, "DequantizeLinear") for use in readers),
        is_weight=_is_weight(proto, scope, index),
        bodies=bodies,
    )


def _is_weight(node: NodeProto, scope: str, index: Index) -> bool:
    """Whether a quantizer's values come from an initializer."""
    if not ops.op(node).endswith("QuantizeLinear"):
        return False
    name = node.input[0]
    maker = index.producer(name, scope)
    if maker is not None and ops.is_onnx(maker, "QuantizeLinear"):
        name = maker.proto.input[0]
    return index.resolve(name, scope) in index.initializers


# --- between numpy and torch -----------------------------------------------------------------
def _to_torch(array: np.ndarray, element: int) -> Tensor:
    """A copy as a tensor; types that torch has none for stay what numpy makes of them as int64."""
    if element == TensorProto.BFLOAT16:
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    if element not in TORCH_DTYPES:
        return torch.from_numpy(np.array(array, dtype=np.float32))
    return torch.from_numpy(np.array(array))


def _fed(value: np.ndarray | Tensor) -> Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if value.dtype.name == "bfloat16":
        return _to_torch(value, TensorProto.BFLOAT16)
    return torch.from_numpy(np.array(value))


def _to_numpy(value: Tensor, tensor: TensorProto) -> np.ndarray:
    if tensor.data_type == TensorProto.BFLOAT16:
        bits = value.contiguous().view(torch.int16).numpy()
        return bits.view(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    array = np.ascontiguousarray(value.numpy()).reshape(tuple(tensor.dims))
    return array.astype(np.int8) if tensor.data_type == TensorProto.INT8 else array
