"""Values that stand in another form between the layers that want it: which elementwise nodes of a
graph go along, so that neighbouring layers share one pair of reshapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import onnx_graphsurgeon as gs

from onnx24.analysis.products import count_of, is_per_channel, producer_of
from onnx24.ir import ops

Sizes = tuple[int | str | None, ...]

_UNARY = frozenset(
    {
        "Abs", "Cast", "Ceil", "Celu", "Clip", "DequantizeLinear", "Elu", "Erf", "Exp", "Floor",
        "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg",
        "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
        "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""One value in; what else they read holds one number."""
_NARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_BROADCASTS_SINCE = 7
"""Before this opset, Add and its like have an attribute that says how they broadcast."""


@dataclass(frozen=True)
class Form:
    """How a layer wants a value. layout: the rewriter's name for it; axis: where the channels lie
    in the graph's own value, counted from the end; channels: their number; rank: the dimensions
    of the graph's own value."""

    layout: str
    axis: int
    channels: int
    rank: int


@dataclass(eq=False)
class Lead:
    """The dimensions of a value besides its channels. `source`: a value of the graph that has
    them, with its channels at `axis`; `seeded`: it comes from a seed of the plan."""

    source: gs.Tensor
    axis: int
    sizes: Sizes
    seeded: bool = False

    @classmethod
    def of(cls, source: gs.Tensor, axis: int, shape: Sizes, *, seeded: bool = False) -> Lead:
        at = len(shape) + axis
        return cls(source, axis, shape[:at] + shape[at + 1 :], seeded)

    def matches(self, other: Lead) -> bool:
        """Surely the same sizes."""
        if self is other:
            return True
        if self.sizes != other.sizes or None in self.sizes:
            return False
        return (self.axis, self.seeded) == (other.axis, other.seeded)


@dataclass(frozen=True)
class Twin:
    """A value of the graph that also stands in `form`."""

    form: Form
    lead: Lead


class Site(Protocol):
    """A layer that a rewriter replaces, as it wants to see its input and gives its result."""

    @property
    def node(self) -> gs.Node: ...
    @property
    def x(self) -> gs.Tensor: ...
    @property
    def x_shape(self) -> Sizes: ...
    @property
    def result(self) -> gs.Tensor: ...
    @property
    def enter(self) -> Form: ...
    @property
    def leave(self) -> Form | None:
        """None: the result stands in the graph's own form only."""


class Plan:
    """What of one graph goes along.

    `twins`: id of a tensor → the form it takes; `kept`: ids of the elementwise nodes that work on
    twins. Only nodes between sites are kept, so that no reshape is added. `opset` of the model;
    `constant`: whether a tensor has values that can be read. `seeds`: id of a tensor → a twin that
    it has already; `exits`: whether a node that reads a twin gives what the twin is in any case,
    as the reshape back does.
    """

    def __init__(
        self,
        graph: gs.Graph,
        sites: Iterable[Site],
        outputs: set[int],
        opset: int,
        constant: Callable[[gs.Tensor], bool],
        seeds: Mapping[int, Twin] | None = None,
        exits: Callable[[gs.Node, Twin], bool] = lambda node, twin: False,
    ) -> None:
        self.graph = graph
        self.sites: Mapping[int, Site] = {id(site.node): site for site in sites}
        self.outputs = outputs
        self.opset = opset
        self.constant = constant
        self.seeds = dict(seeds or {})
        self.exits = exits
        self.twins: dict[int, Twin] = {}
        self.leads: dict[int, Lead] = {}
        """id of a site's node → the lead of its input"""
        self.kept: set[int] = set()
        self.here = {id(node) for node in graph.nodes}
        self._pulled = self._pulled_pairs()
        banned: set[int] = set()
        while True:
            self.kept = self._between(self._forward(banned))
            torn = {id(n) for n in graph.nodes if id(n) in self.kept and self._is_torn(n)}
            if not torn:
                break
            banned |= torn

    def is_needed_outside(self, tensor: gs.Tensor) -> bool:
        """Whether something reads the value in the graph's own form."""
        return id(tensor) in self.outputs or any(
            not self._is_inside(reader, tensor) for reader in tensor.outputs
        )

    def is_exit(self, reader: gs.Node, twin: Twin) -> bool:
        return id(reader) in self.here and self.exits(reader, twin)

    def data_inputs(self, node: gs.Node) -> list[gs.Tensor]:
        """The inputs of an elementwise node that are no constants."""
        inputs = node.inputs[:1] if ops.op(node) in _UNARY else node.inputs
        return [t for t in inputs if not isinstance(t, gs.Constant)]

    def _pulled_pairs(self) -> dict[int, tuple[Form, Sizes]]:
        """id of a QuantizeLinear → the form that the reader of its pair wants: the reshape goes
        before the pair, so that quantizer and layer stay neighbours."""
        found: dict[int, tuple[Form, Sizes]] = {}
        for site in self.sites.values():
            dq = producer_of(site.x)
            q = producer_of(dq.inputs[0]) if dq is not None else None
            if dq is None or q is None or (dq.op, q.op) != ("DequantizeLinear", "QuantizeLinear"):
                continue
            if id(q) in self.here and id(dq) in self.here:
                found.setdefault(id(q), (site.enter, site.x_shape))
        return found

    def _forward(self, banned: set[int]) -> list[gs.Node]:
        """Every elementwise node that could work on twins, in order."""
        self.twins, self.leads = dict(self.seeds), {}
        candidates = []
        for node in self.graph.nodes:
            site = self.sites.get(id(node))
            if site is not None:
                self._visit_site(site)
                continue
            if id(node) in banned or not ops.is_onnx(node):
                continue
            if id(node) in self._pulled and id(node.inputs[0]) not in self.twins:
                form, shape = self._pulled[id(node)]
                lead = Lead.of(node.inputs[0], form.axis, shape)
                self.twins[id(node.inputs[0])] = Twin(form, lead)
            twin = self._elementwise(node)
            if twin is not None:
                self.twins[id(node.outputs[0])] = twin
                candidates.append(node)
        return candidates

    def _visit_site(self, site: Site) -> None:
        found = self.twins.get(id(site.x))
        if found is not None and found.form == site.enter:
            lead = found.lead
        else:
            lead = Lead.of(site.x, site.enter.axis, site.x_shape)
            self.twins.setdefault(id(site.x), Twin(site.enter, lead))
        self.leads[id(site.node)] = lead
        if site.leave is not None:
            self.twins[id(site.result)] = Twin(site.leave, lead)

    def _elementwise(self, node: gs.Node) -> Twin | None:
        """The twin of the node's output, where all that it reads is a twin of the same form or a
        constant that fits."""
        if len(node.outputs) != 1 or ops.op(node) not in _UNARY | _NARY:
            return None
        data = self.data_inputs(node)
        twins = [self.twins.get(id(t)) for t in data]
        first = twins[0] if twins else None
        if first is None:
            return None
        for twin in twins:
            if twin is None or twin.form != first.form or not twin.lead.matches(first.lead):
                return None
        others = [t for t in node.inputs if all(t is not d for d in data) and not t.is_empty()]
        if ops.op(node) in _UNARY:
            return first if all(_is_single(t) for t in others) else None
        if self.opset < _BROADCASTS_SINCE or (
            ops.is_onnx(node, "PRelu") and data[0] is not node.inputs[0]
        ):
            return None
        form = first.form
        fit = all(
            self.constant(t) and is_per_channel(t.shape, form.channels, form.rank, form.axis)
            for t in others
        )
        return first if fit else None

    def _between(self, candidates: list[gs.Node]) -> set[int]:
        """Of the candidates, those whose result a site reads, perhaps over other candidates."""
        wanted = {
            id(site.x) for site in self.sites.values() if self.twins[id(site.x)].form == site.enter
        }
        kept = set()
        for node in reversed(candidates):
            if id(node.outputs[0]) in wanted:
                kept.add(id(node))
                wanted.update(id(t) for t in self.data_inputs(node))
        return kept

    def _is_torn(self, node: gs.Node) -> bool:
        """A reshape would stand between a quantizer and a reader, which then does not see it."""
        return ops.op(node) in _QUANTIZERS and self.is_needed_outside(node.outputs[0])

    def _is_inside(self, reader: gs.Node, tensor: gs.Tensor) -> bool:
        twin = self.twins.get(id(tensor))
        if id(reader) in self.kept or (twin is not None and self.is_exit(reader, twin)):
            return True
        site = self.sites.get(id(reader))
        if site is None or site.x is not tensor or sum(t is tensor for t in reader.inputs) > 1:
            return False
        return twin is not None and twin.form == site.enter


def _is_single(tensor: gs.Tensor) -> bool:
    return tensor.shape is not None and count_of(tensor) == 1
