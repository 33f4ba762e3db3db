"""Which channels of a graph can be permuted, and what has to be permuted with them.

Every axis of every value is a vertex, `analysis.axes` says which of them a node ties, and a
component of that graph can be permuted as one: each node computes the same in other places, so
the graph does, provided that nothing of the component is pinned. Pinned are the axes of graph
inputs and outputs, of the inputs and results of nested bodies, and what a node's rule does not
name. Constants are the leaves: a free component is permuted by permuting its constants, and no
node changes.

Axes are followed through Concat, Split and Slice in *segments* and through Reshape in *factors*:
an axis is a sequence of segments, a segment a product of factors, outermost first. A factor of a
segment (an *atom*) is what components are made of: the channels of an image that is flattened, the
features of a head, the channels of a group.

Shapes are inferred from the inputs and the nodes alone; what a file declares of its inner values
is believed only of the outputs of operators that ONNX does not define.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnx24.analysis.axes import Block, NodeAxes, Operand, Piece, Relations, Slot, relate
from onnx24.analysis.cache import Analysis, AnalysisCache
from onnx24.analysis.dataflow import Dataflow
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import is_in_function, scopes
from onnx24.ir.shapes import INFERENCE_ERRORS, Dim, inferred, value_type

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Axis", "Consumer", "Coupling", "Factor", "Group", "Member", "Refusal"]

Role = Literal["output", "input", "parameter"]

_UNIFORM_ELEMENTS = 1 << 16
"""Constants up to this size are looked at for axes that they do not vary along: a zero point or a
zero bias that many layers share couples none of them."""


class Factor(NamedTuple):
    """One factor of one segment of an axis: index = start + outer · (size · inner) + i · inner +
    rest, with i permuted by `group`. length: of the segment."""

    group: int
    start: int
    length: int
    size: int
    inner: int

    @property
    def outer(self) -> int:
        return self.length // (self.size * self.inner)


@dataclass(frozen=True)
class Axis:
    """An axis of a value, made of factors: all of them, segment by segment, outermost first."""

    size: int
    factors: tuple[Factor, ...]

    def order(self, perms: Mapping[int, np.ndarray]) -> np.ndarray:
        """The whole axis' permutation, where some groups have one; others stay: position p of the
        permuted axis holds what was at `order[p]`.

        perms: by group, `[size]`, or `[copies, size]` where each outer index has its own.
        """
        order = np.arange(self.size)
        for factor in self.factors:
            perm = perms.get(factor.group)
            if perm is None:
                continue
            part = order[factor.start : factor.start + factor.length]
            view = part.reshape(factor.outer, factor.size, factor.inner)
            if perm.ndim == 1:
                view[:] = view[:, perm]
            else:
                full = np.tile(perm, (factor.outer // len(perm), 1))
                view[:] = np.take_along_axis(view, full[:, :, None], axis=1)
        return order


@dataclass(frozen=True)
class Member:
    """A constant with an axis that is permuted with the group. role: output, where the axis makes
    the channels (a product's N); input, where they are summed (its K); parameter otherwise."""

    key: ValueKey
    axis: int
    role: Role


@dataclass(frozen=True, eq=False)
class Consumer:
    """A product whose groups of four lie along the channels, its K axis as it sees it, and where
    the channels lie there.
    searchable: a permutation of the group moves channels between whole groups of four."""

    key: ValueKey
    use: WeightUse
    k_axis: Axis
    factor: Factor

    @property
    def searchable(self) -> bool:
        factor = self.factor
        return factor.inner == 1 and factor.size % 4 == 0 and factor.start % 4 == 0


@dataclass(frozen=True)
class Refusal:
    """Why the channels stay. `code`: O24-141 or O24-142. `site`: the node that asks for it, None
    where it is the graph."""

    code: str
    reason: str
    site: NodeSite | None


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are permuted together: `size` of them, by one permutation, or by `copies` of
    them where each outer index (a head) may have its own.

    refusals: why they can't be, in document order; empty where they can.
    """

    number: int
    size: int
    members: tuple[Member, ...]
    consumers: tuple[Consumer, ...]
    refusals: tuple[Refusal, ...]
    copies: int = 1

    @property
    def name(self) -> str:
        """The first consumer's node, for messages."""
        return self.consumers[0].use.node if self.consumers else f"#{self.number}"


@dataclass
class Coupling(Analysis):
    """`groups`: those with a product's K axis among them, by number; `axes`: of every constant
    axis that belongs to some group."""

    depends: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS

    groups: dict[int, Group]
    axes: dict[Slot, Axis]

    @classmethod
    def compute(cls, model: Model, cache: AnalysisCache) -> Coupling:
        found = cache.get(model, WeightUses)
        index = cache.get(model, Dataflow).index
        builder = _Builder(model, index, found)
        return builder.result()

    def axis(self, key: ValueKey, axis: int) -> Axis | None:
        """None where no group reaches that axis."""
        return self.axes.get(Slot(key, axis))


@dataclass
class _Class:
    """Axes that are permuted alike as a whole. `cuts`: where segments begin, besides 0. `strides`:
    by the start of a segment, the sizes that its factors step by, besides 1 and its length."""

    size: int
    cuts: set[int] = field(default_factory=set)
    strides: dict[int, set[int]] = field(default_factory=dict)
    broken: str = ""

    def segments(self) -> list[tuple[int, int]]:
        """(start, length)."""
        marks = [0, *sorted(self.cuts), self.size]
        return [(a, b - a) for a, b in pairwise(marks)]

    def cut(self, at: int) -> bool:
        """Begin a segment at `at`. Returns: whether that is new."""
        if at <= 0 or at >= self.size or at in self.cuts:
            return False
        start = max([0, *(c for c in self.cuts if c < at)])
        if self.strides.get(start):
            self.broken = "its factors are cut into pieces"
        self.cuts.add(at)
        return True

    def refine(self, start: int, length: int, strides: Iterable[int]) -> bool:
        """Factor a segment. Returns: whether that is new."""
        own = self.strides.setdefault(start, set())
        new = {s for s in strides if 1 < s < length} - own
        if not new:
            return False
        own |= new
        chain = [1, *sorted(own), length]
        if any(b % a for a, b in pairwise(chain)):
            self.broken = "it is divided in two ways that do not fit"
        return True

    def atoms(self) -> list[tuple[int, int, int, int]]:
        """(start, length, size, inner), segment by segment, outermost first."""
        out = []
        for start, length in self.segments():
            chain = [length, *sorted(self.strides.get(start, ()), reverse=True), 1]
            if self.broken:
                chain = [length, 1]
            out += [(start, length, a // b, b) for a, b in pairwise(chain)]
        return out


class _Atom(NamedTuple):
    of: int
    """Number of the class."""
    start: int
    inner: int


class _Pin(NamedTuple):
    code: str
    reason: str
    site: NodeSite | None


class _Builder:
    def __init__(self, model: Model, index: Index, found: WeightUses) -> None:
        self._model = model
        self._index = index
        self._found = found
        self._shapes = proved_shapes(model, index)
        self._constants = _constants(model, index, found)
        self._uniform: dict[ValueKey, frozenset[int]] = {}
        self._operands: dict[ValueKey, Operand] = {}
        self._pins: dict[Slot, list[_Pin]] = {}
        self._relations: list[tuple[NodeSite, Relations]] = []
        self._sizes: dict[Slot, int] = {}

    # --- reading the graph -------------------------------------------------------------------
    def result(self) -> Coupling:
        self._read()
        self._join()
        self._refine()
        return self._groups()

    def _read(self) -> None:
        functions = ops.functions(self._model.proto)
        for site in self._index.nodes:
            proto = site.proto
            if ops.is_onnx(proto, "Constant"):
                continue
            node = NodeAxes(
                site,
                [self._operand(name, site.scope) for name in proto.input],
                [self._operand(name, site.scope) for name in proto.output],
                lambda i, site=site: self._value(site, i),  # type: ignore[misc]
                self._model.opset,
            )
            if is_in_function(site.scope) or ops.called(site) in functions:
                relations = node.refuse("it belongs to a local function")
            else:
                relations = relate(node)
            self._relations.append((site, relations))
            self._sizes.update(relations.sizes)
            for slot, why in relations.pinned.items():
                self._pin(slot, _Pin("O24-142", why, site))
        for key in [*self._index.graph_inputs, *self._index.graph_outputs]:
            if key in self._constants and key not in self._index.graph_outputs:
                continue
            kind = "input" if key in self._index.graph_inputs else "output"
            of = f"body {key.scope!r}" if key.scope else "graph"
            self._pin_all(key, _Pin("O24-141", f"{key.name!r} is an {kind} of the {of}", None))
        for key, shape in self._shapes.items():
            made = self._index.producer(key.name, key.scope)
            known = key in self._constants or key in self._index.graph_inputs
            if made is None and not known and shape is not None:
                self._pin_all(key, _Pin("O24-142", f"{key.name!r} is not followed", None))

    def _operand(self, name: str, scope: str) -> Operand | None:
        if not name:
            return None
        key = self._index.resolve(name, scope)
        if key is None:
            return Operand(ValueKey("\0undefined", name), None)
        if key in self._operands:
            return self._operands[key]
        shape = self._shapes.get(key)
        operand = self._operands[key] = Operand(key, shape, self._uniform_axes(key))
        for axis, size in enumerate(shape or ()):
            if isinstance(size, int):
                self._sizes[Slot(key, axis)] = size
        made = self._index.producer(name, scope)
        if made is not None and ops.is_onnx(made, "Constant") and key not in self._constants:
            # A Constant without a tensor: its values stay.
            self._pin_all(key, _Pin("O24-142", f"{name!r} holds its values in attributes", made))
        return operand

    def _uniform_axes(self, key: ValueKey) -> frozenset[int]:
        if key not in self._constants:
            return frozenset()
        if key not in self._uniform:
            tensor = self._constants[key]
            axes = []
            if math.prod(tensor.dims) <= _UNIFORM_ELEMENTS and tensor.dims:
                array = self._model.weights.read(tensor)
                for axis, size in enumerate(array.shape):
                    if size > 1 and bool((array == array.take([0], axis)).all()):
                        axes.append(axis)
            self._uniform[key] = frozenset(axes)
        return self._uniform[key]

    def _value(self, site: NodeSite, i: int) -> np.ndarray | None:
        """A constant operand."""
        name = site.proto.input[i] if i < len(site.proto.input) else ""
        key = self._index.resolve(name, site.scope) if name else None
        if key is None:
            return None
        if key in self._constants:
            return self._model.weights.read(self._constants[key])
        made = self._index.producer(name, site.scope)
        return None if made is None else ops.constant_of(self._model, made)

    def _pin(self, slot: Slot, pin: _Pin) -> None:
        self._pins.setdefault(slot, []).append(pin)

    def _pin_all(self, key: ValueKey, pin: _Pin) -> None:
        for axis, size in enumerate(self._shapes.get(key) or ()):
            if isinstance(size, int) and size > 1:
                slot = Slot(key, axis)
                self._sizes[slot] = size
                if pin not in self._pins.get(slot, ()):
                    self._pin(slot, pin)

    # --- classes of axes -----------------------------------------------------------------------
    def _join(self) -> None:
        """Axes that are tied become one class."""
        parent = {slot: slot for slot in self._sizes}

        def root(slot: Slot) -> Slot:
            while (above := parent[slot]) != slot:
                parent[slot] = slot = parent[above]  # half the way for who comes next
            return slot

        for _, relations in self._relations:
            for tie in relations.ties:
                for slot in tie[1:]:
                    parent[root(slot)] = root(tie[0])
        components: dict[Slot, list[Slot]] = {}
        for slot in self._sizes:
            components.setdefault(root(slot), []).append(slot)
        self._of: dict[Slot, int] = {}
        self._classes: list[_Class] = []
        for component in components.values():
            sizes = {self._sizes[slot] for slot in component}
            cls = _Class(max(sizes))
            if len(sizes) > 1:
                cls.broken = "its sizes contradict one another"
            self._of.update(dict.fromkeys(component, len(self._classes)))
            self._classes.append(cls)

    def _refine(self) -> None:
        """Cut and factor the classes until every relation sees the same on both sides."""
        self._links: list[tuple[NodeSite, Piece | Block]] = []
        for site, relations in self._relations:
            self._links += [(site, piece) for piece in relations.pieces]
            self._links += [(site, block) for block in relations.blocks]
        changed = True
        while changed:
            changed = False
            for _, link in self._links:
                if isinstance(link, Piece):
                    changed |= self._refine_piece(link)
                else:
                    changed |= self._refine_block(link)

    def _class(self, slot: Slot) -> _Class:
        return self._classes[self._of[slot]]

    def _refine_piece(self, link: Piece) -> bool:
        whole, part, start = self._class(link.whole), self._class(link.part), link.start
        changed = whole.cut(start)
        changed |= whole.cut(start + part.size)
        for cut in list(part.cuts):
            changed |= whole.cut(start + cut)
        for cut in list(whole.cuts):
            if start < cut < start + part.size:
                changed |= part.cut(cut - start)
        for begin, length in part.segments():
            ours = part.strides.get(begin, set())
            theirs = whole.strides.get(start + begin, set())
            changed |= part.refine(begin, length, theirs)
            changed |= whole.refine(start + begin, length, ours)
        return changed

    def _refine_block(self, link: Block) -> bool:
        flat = set()
        for side in (link.left, link.right):
            for cls, inner in self._inner(side):
                flat.add(inner)
                flat |= {inner * s for s in cls.strides.get(0, ())}
        changed = False
        for side in (link.left, link.right):
            for cls, inner in self._inner(side):
                mine = [s for s in flat if inner < s < inner * cls.size]
                if any(s % inner for s in mine):
                    changed |= not cls.broken
                    cls.broken = cls.broken or "it is reshaped in a way that divides no axis"
                    continue
                changed |= cls.refine(0, cls.size, [s // inner for s in mine])
        return changed

    def _inner(self, side: Sequence[Slot]) -> list[tuple[_Class, int]]:
        """Each class with the product of the sizes behind it."""
        out, inner = [], 1
        for slot in reversed(side):
            cls = self._class(slot)
            out.append((cls, inner))
            inner *= cls.size
        return out

    # --- components of atoms -------------------------------------------------------------------
    def _groups(self) -> Coupling:
        import networkx as nx

        graph = nx.Graph()
        sizes: dict[_Atom, int] = {}
        for number, cls in enumerate(self._classes):
            for start, _, size, inner in cls.atoms():
                sizes[_Atom(number, start, inner)] = size
        graph.add_nodes_from(sizes)
        pins: dict[_Atom, list[_Pin]] = {}
        for site, link in self._links:
            reason = self._unfit(link)
            slots = (
                (*link.left, *link.right) if isinstance(link, Block) else (link.whole, link.part)
            )
            if reason:
                for slot in slots:
                    self._pin(slot, _Pin("O24-142", f"{site.proto.op_type}: {reason}", site))
            elif isinstance(link, Block):
                self._tie_block(graph, link)
            else:
                self._tie_piece(graph, link)
        for slot, found in self._pins.items():
            number = self._of[slot]
            for start, _, _, inner in self._classes[number].atoms():
                pins.setdefault(_Atom(number, start, inner), []).extend(found)
        for number, cls in enumerate(self._classes):
            if cls.broken:
                for start, _, _, inner in cls.atoms():
                    pin = _Pin("O24-142", cls.broken, None)
                    pins.setdefault(_Atom(number, start, inner), []).append(pin)
        group_of: dict[_Atom, int] = {}
        components = list(nx.connected_components(graph))
        for number, component in enumerate(components):
            group_of.update(dict.fromkeys(component, number))
        return self._describe(components, sizes, pins, group_of)

    def _unfit(self, link: Piece | Block) -> str:
        """Why both sides of a relation do not have the same segments or factors; "" where they
        do."""
        if isinstance(link, Piece):
            whole, part = self._class(link.whole), self._class(link.part)
            if whole.broken or part.broken:
                return whole.broken or part.broken
            end = link.start + part.size
            theirs = [a for a in whole.atoms() if link.start <= a[0] < end]
            ours = [(a[0] + link.start, *a[1:]) for a in part.atoms()]
            return "" if theirs == ours else "the pieces do not fit"
        sides = []
        for side in (link.left, link.right):
            flat = []
            for cls, inner in self._inner(side):
                if cls.broken or cls.cuts:
                    return cls.broken or "what is reshaped is put together from pieces"
                flat += [(size, step * inner) for _, _, size, step in reversed(cls.atoms())]
            sides.append(flat)
        return "" if sides[0] == sides[1] else "the factors do not fit"

    def _tie_piece(self, graph: nx.Graph, link: Piece) -> None:
        whole, part = self._of[link.whole], self._of[link.part]
        for start, _, _, inner in self._classes[part].atoms():
            graph.add_edge(_Atom(part, start, inner), _Atom(whole, start + link.start, inner))

    def _tie_block(self, graph: nx.Graph, link: Block) -> None:
        sides = []
        for side in (link.left, link.right):
            atoms = []
            for slot in reversed(side):
                number = self._of[slot]
                atoms += [_Atom(number, 0, a[3]) for a in reversed(self._classes[number].atoms())]
            sides.append(atoms)
        graph.add_edges_from(zip(*sides, strict=True))

    def _describe(
        self,
        components: list[set[_Atom]],
        sizes: dict[_Atom, int],
        pins: dict[_Atom, list[_Pin]],
        group_of: dict[_Atom, int],
    ) -> Coupling:
        axes = [
            Axis(
                cls.size,
                tuple(
                    Factor(group_of[_Atom(n, start, inner)], start, length, size, inner)
                    for start, length, size, inner in cls.atoms()
                ),
            )
            for n, cls in enumerate(self._classes)
        ]
        consumers: dict[int, list[Consumer]] = {}
        for key in self._found.uses:
            seen: set[tuple[Slot, int]] = set()
            for use in self._found.products(key):
                if use.consumer is None or use.k_axis_consumer is None:
                    continue
                name = use.consumer.proto.input[use.input]
                operand = self._index.resolve(name, use.consumer.scope)
                if operand is None:
                    continue
                slot = Slot(operand, use.k_axis_consumer)
                if slot not in self._of or (slot, use.input) in seen:
                    continue
                seen.add((slot, use.input))
                axis = axes[self._of[slot]]
                for factor in axis.factors:
                    consumers.setdefault(factor.group, []).append(Consumer(key, use, axis, factor))
        members = self._members(axes)
        order = {id(site): i for i, site in enumerate(self._index.nodes)}
        groups = {}
        heads = _Heads(self._index, self._relations, self._of, axes, self._constants)
        for number in sorted(consumers):
            component = components[number]
            if sizes[next(iter(component))] == 1:
                continue
            found = {pin: None for atom in sorted(component) for pin in pins.get(atom, ())}
            refusals = sorted(
                (Refusal(*pin) for pin in found),
                key=lambda r: (r.site is None, order.get(id(r.site), -1), r.code, r.reason),
            )
            groups[number] = Group(
                number,
                sizes[next(iter(component))],
                tuple(members.get(number, ())),
                tuple(consumers[number]),
                tuple(refusals),
                1 if refusals else heads.copies(number, consumers[number]),
            )
        of_constants = {
            slot: axes[n] for slot, n in self._of.items() if slot.key in self._constants
        }
        return Coupling(groups, of_constants)

    def _members(self, axes: list[Axis]) -> dict[int, list[Member]]:
        """By group, the constants that are permuted, in document order."""
        out: dict[int, list[Member]] = {}
        for key, tensor in self._constants.items():
            for axis in range(len(tensor.dims)):
                slot = Slot(key, axis)
                if slot not in self._of or axis in self._uniform_axes(key):
                    continue
                for factor in axes[self._of[slot]].factors:
                    role = self._role(key, axis)
                    out.setdefault(factor.group, []).append(Member(key, axis, role))
        return out

    def _role(self, key: ValueKey, axis: int) -> Role:
        uses = self._found.products(key) if key in self._found.uses else []
        if not uses:
            return "parameter"
        return "input" if any(use.k_axis == axis for use in uses) else "output"


class _Heads:
    """Whether each index of the factor outside a group's (each head) may have a permutation of its
    own. That holds where every value that has the one factor has the other, in every constant just
    outside it on the same axis, and where every node works on each outer index by itself, moves
    data only, or takes both factors together."""

    def __init__(
        self,
        index: Index,
        relations: list[tuple[NodeSite, Relations]],
        of: dict[Slot, int],
        axes: list[Axis],
        constants: Mapping[ValueKey, TensorProto],
    ) -> None:
        self._index, self._relations, self._constants = index, relations, constants
        self._groups = {slot: [f.group for f in axes[n].factors] for slot, n in of.items()}
        self._axes = {slot: axes[n] for slot, n in of.items()}
        self._slots: dict[int, list[Slot]] = {}
        for slot, groups in self._groups.items():
            for group in groups:
                self._slots.setdefault(group, []).append(slot)
        self._links_of: dict[int, list[tuple[NodeSite, Relations]]] = {}
        for item in relations:
            touched = {group for slot in _slots_of(item[1]) for group in self._groups[slot]}
            for group in touched:
                self._links_of.setdefault(group, []).append(item)

    def copies(self, inner: int, consumers: Sequence[Consumer]) -> int:
        """How many permutations the group may have, 1 where they must be the same."""
        outer = {self._outside(c.factor, c.k_axis) for c in consumers}
        if len(outer) != 1 or None in outer:
            return 1
        (found,) = outer
        assert found is not None
        if not self._paired(inner, found.group):
            return 1
        items = self._links_of.get(inner, ())
        fits = all(self._separates(site, rel, inner, found.group) for site, rel in items)
        return found.size if fits else 1

    @staticmethod
    def _outside(factor: Factor, axis: Axis) -> Factor | None:
        for other in axis.factors:
            if other.start == factor.start and other.inner == factor.size * factor.inner:
                return other
        return None

    def _paired(self, inner: int, outer: int) -> bool:
        """Each value has both factors once, or neither; constants have them side by side."""
        places: dict[ValueKey, list[Slot]] = {}
        for slot in self._slots[inner]:
            places.setdefault(slot.key, []).append(slot)
        outside: dict[ValueKey, list[Slot]] = {}
        for slot in self._slots[outer]:
            outside.setdefault(slot.key, []).append(slot)
        for key, slots in places.items():
            if key.scope.startswith("\0"):
                return False
            if len(slots) != 1 or self._groups[slots[0]].count(inner) != 1:
                return False
            partners = outside.get(key, ())
            if len(partners) != 1 or self._groups[partners[0]].count(outer) != 1:
                return False
            if key in self._constants:
                axis = self._axes[slots[0]]
                factor = next(f for f in axis.factors if f.group == inner)
                found = self._outside(factor, axis)
                if found is None or found.group != outer:
                    return False
        return True

    def _separates(self, site: NodeSite, relations: Relations, inner: int, outer: int) -> bool:
        if relations.blocks and not ops.is_onnx(site, "Reshape", "Flatten"):
            touched = {g for b in relations.blocks for s in (*b[0], *b[1]) for g in self._groups[s]}
            if inner in touched:
                return False
        results = {self._index.resolve(n, site.scope) for n in site.proto.output if n}
        for tie in relations.ties:
            if inner not in self._groups[tie[0]]:
                continue
            if outer in self._groups[tie[0]]:
                continue  # the whole axis may be permuted at will
            keys = {slot.key for slot in tie}
            partners = [
                other
                for other in relations.ties
                if outer in self._groups[other[0]] and keys <= {slot.key for slot in other}
            ]
            if not any(self._by_itself(p, relations, results, keys) for p in partners):
                return False
        return True

    @staticmethod
    def _by_itself(
        tie: tuple[Slot, ...],
        relations: Relations,
        results: set[ValueKey | None],
        keys: set[ValueKey],
    ) -> bool:
        """Whether the node treats each index of that tie alone, or sums over both factors."""
        if any(slot in relations.mixed for slot in tie):
            return False
        if any(slot.key in results for slot in tie):
            return True
        return {slot.key for slot in tie} == keys


def _slots_of(relations: Relations) -> Iterable[Slot]:
    for tie in relations.ties:
        yield from tie
    for block in relations.blocks:
        yield from (*block.left, *block.right)
    for piece in relations.pieces:
        yield from (piece.whole, piece.part)


def _constants(model: Model, index: Index, found: WeightUses) -> dict[ValueKey, TensorProto]:
    """Tensors whose values can be permuted: initializers that nobody overrides, and Constants."""
    return {
        key: tensor
        for key, tensor in found.tensors.items()
        if key not in index.graph_inputs and tensor.data_type != TensorProto.STRING
        if not is_in_function(key.scope)
    }


def proved_shapes(model: Model, index: Index) -> dict[ValueKey, tuple[Dim, ...] | None]:
    """Shapes by inference from the graph's inputs, initializers and nodes. What the file declares
    of other values is taken only for the outputs of operators that ONNX does not define."""
    skeleton, opsets = ModelProto(), model.opsets
    skeleton.CopyFrom(model.proto)
    for scope in scopes(skeleton):
        if isinstance(scope.graph, GraphProto):
            for node in scope.graph.node:
                _make_identity(node, opsets)
            foreign = {
                name
                for node in scope.graph.node
                if not _is_defined(node, opsets)
                for name in node.output
            }
            kept = [info for info in scope.graph.value_info if info.name in foreign]
            del scope.graph.value_info[:]
            scope.graph.value_info.extend(kept)
            for output in scope.graph.output:
                if output.name not in foreign and output.type.HasField("tensor_type"):
                    output.type.tensor_type.ClearField("shape")
    for data_prop in (True, False):
        with contextlib.suppress(*INFERENCE_ERRORS):
            skeleton = inferred(skeleton, data_prop=data_prop)
            break
    out: dict[ValueKey, tuple[Dim, ...] | None] = {}
    for scope in scopes(skeleton):
        if isinstance(scope.graph, GraphProto):
            for info in (*scope.graph.value_info, *scope.graph.input, *scope.graph.output):
                if value := value_type(info.type):
                    key = index.resolve(info.name, scope.path)
                    if key is not None and (key.scope == scope.path or key not in out):
                        out[key] = value.shape
    for key, tensor in index.initializers.items():
        out[key] = tuple(tensor.dims)
    return out


_SAME_SHAPE = frozenset(
    {
        ("", "GroupNormalization"),
        ("", "LayerNormalization"),
        ("", "SimplifiedLayerNormalization"),
        ("com.microsoft", "BiasGelu"),
        ("com.microsoft", "FastGelu"),
        ("com.microsoft", "Gelu"),
        ("com.microsoft", "QuickGelu"),
        ("com.microsoft", "SkipLayerNormalization"),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"),
    }
)
"""Operators whose first output has the first input's shape, which ONNX does not infer for all of
them, or not in every opset."""


def _make_identity(node: NodeProto, opsets: Mapping[str, int]) -> None:
    """For inference only: a node that keeps the shape, and that ONNX does not know, is as good as
    an Identity."""
    if ops.type_of(node) not in _SAME_SHAPE:
        return
    if _is_defined(node, opsets) and not ops.is_onnx(node, "GroupNormalization"):
        return
    node.op_type, node.domain = "Identity", ""
    del node.attribute[:]
    del node.input[1:]
    del node.output[1:]


def _is_defined(node: NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether ONNX knows the operator in the model's opset, and so infers its shapes."""
    domain, name = ops.type_of(node)
    try:
        onnx.defs.get_schema(name, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    return True
