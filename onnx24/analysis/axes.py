"""Which axes of a node's operands can be permuted together without changing what it computes.

Each rule is a statement about one operator and about nothing else: *if the axes of one tie are
permuted alike, in whichever operands they lie, the node computes the same values in the permuted
places.* What is contracted, normalized over or reduced is such an axis too: sums do not depend on
the order. An axis that a rule does not name must stay as it is. So a wrong answer can only come
from a wrong rule, never from an unknown operator.

Three relations are used. A *tie*: axes of equal size that are permuted alike. A *block*: axes that
together, in row-major order, enumerate the same elements as others (Reshape, groups of a
convolution, blocks of a quantizer). A *piece*: an axis that is a run of a longer one (Concat,
Split, Slice).
Source: onnx/docs/Operators.md, onnx/docs/Changelog.md; for com.microsoft
onnxruntime/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.shapes import Dim

__all__ = ["Block", "NodeAxes", "Operand", "Piece", "Relations", "Slot", "relate"]


class Slot(NamedTuple):
    """An axis of a value; also one of no value, a factor that a rule speaks of, such as the groups
    of a convolution (`NodeAxes.virtual`)."""

    key: ValueKey
    axis: int


class Block(NamedTuple):
    """`left` and `right`, in row-major order, enumerate the same elements."""

    left: tuple[Slot, ...]
    right: tuple[Slot, ...]


class Piece(NamedTuple):
    """`part` is `whole[start : start + size of part]`."""

    whole: Slot
    part: Slot
    start: int


@dataclass
class Relations:
    """What one node demands. `sizes`: of the axes. `mixed`: axes that the node computes
    across, though symmetrically (a normalization, say), other than by summing products."""

    ties: list[tuple[Slot, ...]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    pinned: dict[Slot, str] = field(default_factory=dict)
    sizes: dict[Slot, int] = field(default_factory=dict)
    mixed: set[Slot] = field(default_factory=set)


@dataclass(frozen=True)
class Operand:
    """An input or output of a node. `shape`: None where not even the rank is proved.
    uniform: axes along which a constant does not vary."""

    key: ValueKey
    shape: tuple[Dim, ...] | None
    uniform: frozenset[int] = frozenset()

    @property
    def rank(self) -> int:
        """Raises: _Unknown."""
        if self.shape is None:
            raise _Unknown(f"the rank of {self.key.name!r} is not known")
        return len(self.shape)

    def size(self, axis: int) -> Dim:
        rank = self.rank
        if not -rank <= axis < rank:
            raise _Unknown(f"{self.key.name!r} has no axis {axis}")
        assert self.shape is not None
        return self.shape[axis]

    def at(self, axis: int) -> tuple[Operand, int]:
        self.size(axis)
        return self, axis % self.rank


class _Place(NamedTuple):
    slot: Slot
    size: Dim
    uniform: bool


class _Unknown(Exception):
    """The node can't be judged; everything that it touches stays."""


class NodeAxes:
    """One node with what is known of its operands; rules add to `found`."""

    def __init__(
        self,
        site: NodeSite,
        inputs: Sequence[Operand | None],
        outputs: Sequence[Operand | None],
        constant: Callable[[int], np.ndarray | None],
        opset: int,
    ) -> None:
        self.site = site
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.constant = constant
        """The value of an input that nothing can change, None where it is not constant."""
        self.opset = opset
        self.found = Relations()
        self._handled: set[Slot] = set()

    @property
    def op(self) -> str:
        return ops.type_of(self.site)[1]

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def x(self, i: int = 0) -> Operand:
        found = self.inputs[i] if i < len(self.inputs) else None
        if found is None:
            raise _Unknown(f"input {i} is missing")
        return found

    def y(self, i: int = 0) -> Operand:
        found = self.outputs[i] if i < len(self.outputs) else None
        if found is None:
            raise _Unknown(f"output {i} is missing")
        return found

    def only_output(self) -> Operand:
        if any(o is not None for o in self.outputs[1:]):
            raise _Unknown("it has more than one output")
        return self.y()

    def attribute(self, name: str, default: Any = None) -> Any:
        return ops.attribute(self.site, name, default)

    def numbers(self, position: int, name: str) -> list[int] | None:
        """Constant integers of an input, or of the attribute that they were in older opsets; None
        where neither is there. Raises: _Unknown where they are computed."""
        if self.has(position):
            array = self.constant(position)
            if array is None:
                raise _Unknown(f"its {name} are computed at run time")
            return [int(n) for n in array.reshape(-1)]
        given = self.attribute(name)
        return None if given is None else [int(n) for n in given]

    # --- what rules say --------------------------------------------------------------------
    def tie(self, *places: tuple[Operand, int], mixed: bool = False) -> None:
        """These axes are permuted alike. One alone may be permuted at will."""
        found = [self._place(place) for place in places]
        # Any permutation leaves an axis of size 1, or one that a constant is uniform along.
        found = [place for place in found if place.size != 1 and not place.uniform]
        known = [place for place in found if isinstance(place.size, int)]
        if len(known) < len(found) or len({place.size for place in known}) > 1:
            for place in known:
                self.found.pinned[place.slot] = f"{self.op}: a size differs or is not known"
            return
        if len(known) > 1:
            self.found.ties.append(tuple(place.slot for place in known))
        if mixed:
            self.found.mixed.update(place.slot for place in known)

    def virtual(self, number: int, size: int) -> tuple[Operand, int]:
        """A factor of an axis that is no axis itself, the same for the same number."""
        of = self.y().key
        return Operand(ValueKey(f"\0{of.scope}", f"{of.name}#{number}"), (size,)), 0

    def pin(self, place: tuple[Operand, int], why: str) -> None:
        found = self._place(place)
        if isinstance(found.size, int) and found.size > 1 and not found.uniform:
            self.found.pinned[found.slot] = why

    def block(
        self, left: Sequence[tuple[Operand, int]], right: Sequence[tuple[Operand, int]]
    ) -> None:
        """Both sides enumerate the same elements. All sizes must be known."""
        sides = [[self._place(place) for place in side] for side in (left, right)]
        sizes = [[place.size for place in side] for side in sides]
        known = [[n for n in side if isinstance(n, int)] for side in sizes]
        if known != sizes or math.prod(known[0]) != math.prod(known[1]):
            raise _Unknown("the sizes differ or are not known")
        cores = [
            [p for p, found in zip(side, sides[i], strict=True) if found.size != 1]
            for i, side in enumerate((left, right))
        ]
        if len(cores[0]) == len(cores[1]) == 1:
            self.tie(cores[0][0], cores[1][0])
            return
        places = [place for side in sides for place in side if place.size != 1]
        if any(place.uniform for place in places):
            for place in places:
                self.found.pinned[place.slot] = f"{self.op} reshapes a constant"
            return
        if places:
            slots = [tuple(place.slot for place in side if place.size != 1) for side in sides]
            self.found.blocks.append(Block(*slots))

    def _place(self, place: tuple[Operand, int]) -> _Place:
        operand, axis = place
        size = operand.size(axis)
        slot = Slot(operand.key, axis % operand.rank)
        self._handled.add(slot)
        if isinstance(size, int):
            self.found.sizes[slot] = size
        return _Place(slot, size, slot.axis in operand.uniform)

    def piece(self, whole: tuple[Operand, int], part: tuple[Operand, int], start: int) -> None:
        """`part` is a run of `whole`; both sizes are known."""
        places = [self._place(whole), self._place(part)]
        slots = [place.slot for place in places]
        if places[1].size == 1:
            # One channel: the place in the whole must stay, whatever the part is.
            self.found.pinned[slots[0]] = f"{self.op} takes single channels"
            return
        if any(place.uniform for place in places):
            for slot in slots:
                self.found.pinned[slot] = f"{self.op} cuts a constant"
            return
        self.found.pieces.append(Piece(slots[0], slots[1], start))

    def broadcast(self, inputs: Iterable[Operand], output: Operand, *, mixed: bool = False) -> None:
        """Numpy's rule: axes are counted from the last one."""
        operands = [*inputs, output]
        for back in range(1, max(o.rank for o in operands) + 1):
            self.tie(*((o, o.rank - back) for o in operands if o.rank >= back), mixed=mixed)

    def same(self, *operands: Operand, but: Iterable[int] = (), mixed: bool = False) -> None:
        """Axis by axis, but for some that are not judged."""
        ranks = {o.rank for o in operands}
        if len(ranks) != 1:
            raise _Unknown("the ranks differ")
        (rank,) = ranks
        skip = {axis % rank for axis in but} if rank else set()
        for axis in range(rank):
            if axis not in skip:
                self.tie(*((o, axis) for o in operands), mixed=mixed)

    # --- what is left ----------------------------------------------------------------------
    def slots(self) -> Iterable[Slot]:
        """Every axis of the node's operands that could be permuted."""
        for operand in (*self.inputs, *self.outputs):
            if operand is None or operand.shape is None:
                continue
            for axis, size in enumerate(operand.shape):
                if isinstance(size, int) and size > 1 and axis not in operand.uniform:
                    yield Slot(operand.key, axis)

    def finish(self) -> Relations:
        for slot in self.slots():
            if slot not in self._handled:
                self.found.pinned.setdefault(slot, f"{self.op} depends on the order along it")
        return self.found

    def refuse(self, why: str) -> Relations:
        return Relations(pinned=dict.fromkeys(self.slots(), why))


def relate(node: NodeAxes) -> Relations:
    """What the node demands of the axes of its operands; all of them stay where it is unknown."""
    name = ops.full_name(node.site)
    rule = _RULES.get(ops.type_of(node.site))
    if rule is None:
        return node.refuse(f"{name} is not followed")
    if open_name := ops.open_attribute(node.site):
        return node.refuse(f"the caller of a function decides {open_name} of {name}")
    try:
        rule(node)
    except _Unknown as err:
        return node.refuse(f"{name}: {err}")
    return node.finish()


# --- element by element ----------------------------------------------------------------------
def _unary(node: NodeAxes) -> None:
    node.same(node.x(), node.only_output())


def _nary(node: NodeAxes) -> None:
    if node.opset < 7 and node.attribute("broadcast", 0):
        raise _Unknown("before opset 7 it broadcasts along an axis that it names")
    node.broadcast([o for o in node.inputs if o is not None], node.only_output())


def _clip(node: NodeAxes) -> None:
    # The limits are scalars, which have no axis.
    node.same(node.x(), node.y())


def _cast_like(node: NodeAxes) -> None:
    node.same(node.x(), node.y())
    for axis in range(node.x(1).rank):
        node.tie((node.x(1), axis))  # only its type is read


def _prelu(node: NodeAxes) -> None:
    if node.opset < 7:
        raise _Unknown("before opset 7 its slopes lie along axis 1")
    if node.x(1).rank > node.x().rank:
        raise _Unknown("the slope has more axes than the input")
    node.broadcast([node.x(), node.x(1)], node.y())


def _dropout(node: NodeAxes) -> None:
    if node.has(2):
        training = node.constant(2)
        if training is None or bool(training.any()):
            raise _Unknown("in training mode it is random")
    node.same(node.x(), node.y())
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        node.same(node.x(), node.y(1))


def _expand(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    for back in range(1, x.rank + 1):
        node.tie((x, x.rank - back), (y, y.rank - back))
    for axis in range(y.rank - x.rank):
        node.tie((y, axis))  # copies: the same along it


def _shape_only(node: NodeAxes) -> None:
    for axis in range(node.x().rank):
        node.tie((node.x(), axis))


def _constant_of_shape(node: NodeAxes) -> None:
    for axis in range(node.y().rank):
        node.tie((node.y(), axis))


# --- products --------------------------------------------------------------------------------
def _conv(node: NodeAxes) -> None:
    x, w, y = node.x(), node.x(1), node.y()
    groups = int(node.attribute("group", 1))
    node.tie((x, 0), (y, 0))
    bias = [(node.x(2), 0)] if node.has(2) else []
    node.tie((w, 0), (y, 1), *bias)
    if groups == 1:
        node.tie((x, 1), (w, 1))
        return
    outputs = w.size(0)
    if not isinstance(outputs, int) or outputs % groups:
        raise _Unknown("the groups do not divide the channels")
    group = node.virtual(0, groups)
    node.block([x.at(1)], [group, w.at(1)])
    node.block([y.at(1)], [group, node.virtual(1, outputs // groups)])


def _conv_transpose(node: NodeAxes) -> None:
    x, w, y = node.x(), node.x(1), node.y()
    groups = int(node.attribute("group", 1))
    node.tie((x, 0), (y, 0))
    node.tie((x, 1), (w, 0))
    if node.has(2):
        node.tie((y, 1), (node.x(2), 0))
    if groups == 1:
        node.tie((w, 1), (y, 1))
        return
    channels = x.size(1)
    if not isinstance(channels, int) or channels % groups:
        raise _Unknown("the groups do not divide the channels")
    group = node.virtual(0, groups)
    node.block([x.at(1)], [group, node.virtual(1, channels // groups)])
    node.block([y.at(1)], [group, w.at(1)])


def _gemm(node: NodeAxes) -> None:
    a, b, y = node.x(), node.x(1), node.y()
    if {a.rank, b.rank, y.rank} != {2}:
        raise _Unknown("an operand is no matrix")
    k_a = 0 if node.attribute("transA", 0) else 1
    k_b = 1 if node.attribute("transB", 0) else 0
    node.tie((a, k_a), (b, k_b))
    rows, columns = [(a, 1 - k_a), (y, 0)], [(b, 1 - k_b), (y, 1)]
    if node.has(2):
        c = node.x(2)
        if c.rank > 2:
            raise _Unknown("C has more than two axes")
        if c.rank == 2:
            rows.append((c, 0))
        if c.rank >= 1:
            columns.append((c, c.rank - 1))
    node.tie(*rows)
    node.tie(*columns)


def _matmul(node: NodeAxes) -> None:
    a, b, y = node.x(), node.x(1), node.y()
    if not a.rank or not b.rank:
        raise _Unknown("an operand is a scalar")
    node.tie((a, -1), (b, -2 if b.rank > 1 else 0))
    if a.rank > 1:
        node.tie((a, -2), (y, -2 if b.rank > 1 else -1))
    if b.rank > 1:
        node.tie((b, -1), (y, -1))
    batch_y = y.rank - (a.rank > 1) - (b.rank > 1)
    for back in range(1, max(a.rank, b.rank) - 1):
        places = [(o, o.rank - 2 - back) for o in (a, b) if o.rank - 2 >= back]
        node.tie(*places, (y, batch_y - back))


def _einsum(node: NodeAxes) -> None:
    """Every letter is an axis, in whichever operands it stands."""
    text = node.attribute("equation", "").replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if "." in text or len(terms) != len(node.inputs):
        raise _Unknown(f"the equation {text!r} is not followed")
    if not arrow:
        out = "".join(sorted(c for c in set(left) if c != "," and left.count(c) == 1))
    places: dict[str, list[tuple[Operand, int]]] = {}
    for term, operand in zip([*terms, out], [*node.inputs, node.y()], strict=True):
        if operand is None or len(set(term)) != len(term) or len(term) != operand.rank:
            raise _Unknown(f"the equation {text!r} is not followed")
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((operand, axis))
    for letter in places:
        node.tie(*places[letter])


def _recurrent(node: NodeAxes) -> None:
    """Only the features of the input, which meet the weight W and nothing else."""
    node.tie((node.x(), 2), (node.x(1), 2))


# --- normalizations ----------------------------------------------------------------------------
def _batch_normalization(node: NodeAxes) -> None:
    x, y = node.x(), node.only_output()
    if node.attribute("training_mode", 0) or node.attribute("spatial", 1) != 1 or x.rank < 2:
        raise _Unknown("its statistics are not one number a channel")
    node.same(x, y, but=[1])
    node.tie((x, 1), *((node.x(i), 0) for i in range(1, 5)), (y, 1))


def _instance_normalization(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    node.same(x, y, but=[1], mixed=True)
    node.tie((x, 1), (node.x(1), 0), (node.x(2), 0), (y, 1))


def _layer_normalization(node: NodeAxes) -> None:
    """Mean and variance do not depend on the order of what they are taken over."""
    x, y = node.x(), node.y()
    axis = int(node.attribute("axis", -1))
    axis += x.rank if axis < 0 else 0
    parameters = [o for o in node.inputs[1:3] if o is not None]
    statistics = [o for o in node.outputs[1:] if o is not None]
    if any(o.rank > x.rank for o in parameters):
        raise _Unknown("a parameter has more axes than the input")
    for i in range(x.rank):
        places = [(o, i - x.rank) for o in parameters if o.rank >= x.rank - i]
        # The statistics have size 1 along what they are taken over.
        kept = [(o, i) for o in statistics if o.rank == x.rank]
        node.tie((x, i), *places, (y, i), *kept, mixed=i >= axis)


def _skip_layer_normalization(node: NodeAxes) -> None:
    """com.microsoft: normalizes input + skip (+ bias) over the last axis."""
    x, skip, y = node.x(), node.x(1), node.y()
    if skip.rank != x.rank:
        raise _Unknown("the skip has another rank")
    parameters = [o for o in node.inputs[2:] if o is not None]
    sums = [o for o in node.outputs[3:4] if o is not None]
    node.same(x, skip, y, *sums, but=[-1])
    vectors = [(o, 0) for o in parameters]
    node.tie((x, -1), (skip, -1), (y, -1), *((o, -1) for o in sums), *vectors, mixed=True)


def _group_normalization(node: NodeAxes) -> None:
    x, scale, bias, y = node.x(), node.x(1), node.x(2), node.y()
    groups, channels = int(node.attribute("num_groups", 1)), x.size(1)
    if not isinstance(channels, int) or channels % groups:
        raise _Unknown("the groups do not divide the channels")
    if scale.size(0) != channels:
        raise _Unknown("it scales groups, not channels")  # opsets 18 to 20, deprecated
    node.same(x, y, but=[1], mixed=True)
    inner = node.virtual(1, channels // groups)
    node.tie((x, 1), (scale, 0), (bias, 0), (y, 1), mixed=True)
    node.block([x.at(1)], [node.virtual(0, groups), inner])
    node.tie(inner, mixed=True)


def _symmetric(node: NodeAxes) -> None:
    """Softmax and its like: every axis is either a batch or what is summed over."""
    node.same(node.x(), node.y(), mixed=True)


def _dynamic_quantize(node: NodeAxes) -> None:
    node.same(node.x(), node.y(), mixed=True)


# --- pooling and reductions ----------------------------------------------------------------------
def _pool(node: NodeAxes) -> None:
    x, y = node.x(), node.only_output()
    node.tie((x, 0), (y, 0))
    node.tie((x, 1), (y, 1))


def _global_pool(node: NodeAxes) -> None:
    _pool(node)
    for axis in range(2, node.x().rank):
        node.tie((node.x(), axis), mixed=True)


def _reduce(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    axes = node.numbers(1, "axes")
    if not axes and node.attribute("noop_with_empty_axes", 0):
        node.same(x, y)
        return
    reduced = {a % x.rank for a in axes} if axes and x.rank else set(range(x.rank))
    _along(node, x, y, reduced, bool(node.attribute("keepdims", 1)))
    for axis in reduced:
        node.tie((x, axis), mixed=True)


def _arg_reduce(node: NodeAxes) -> None:
    x = node.x()
    axis = int(node.attribute("axis", 0)) % x.rank
    _along(node, x, node.y(), {axis}, bool(node.attribute("keepdims", 1)))
    node.pin((x, axis), f"{node.op} finds places along it")


def _along(node: NodeAxes, x: Operand, y: Operand, gone: set[int], kept: bool) -> None:
    """Ties all axes but those that are gone, or of size 1 if they are kept."""
    target = 0
    for axis in range(x.rank):
        if axis in gone:
            target += kept
            continue
        node.tie((x, axis), (y, target))
        target += 1
    if target != y.rank:
        raise _Unknown("the ranks do not match")


def _only_along(node: NodeAxes) -> None:
    """Hardmax, TopK, CumSum: the axis matters, the others do not."""
    x = node.x()
    if node.op == "CumSum":
        found = node.constant(1)
        if found is None:
            raise _Unknown("its axis is computed at run time")
        axis = int(found.reshape(-1)[0])
    elif node.op == "Hardmax" and node.opset < 13:
        raise _Unknown("it flattens its input")
    else:
        axis = int(node.attribute("axis", -1))
    node.same(x, *(o for o in node.outputs if o is not None), but=[axis])
    node.pin((x, axis), f"{node.op} depends on the order along it")


# --- data movement -----------------------------------------------------------------------------
def _transpose(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    perm = node.attribute("perm") or list(range(x.rank - 1, -1, -1))
    if sorted(perm) != list(range(x.rank)) or y.rank != x.rank:
        raise _Unknown("its perm does not fit")
    for i, axis in enumerate(perm):
        node.tie((x, axis), (y, i))


def _reshape(node: NodeAxes) -> None:
    """Runs of axes of equal product, matched from both ends; what lies between stays."""
    x, y = node.x(), node.y()
    copied = _copied_axes(node, x, y)
    low_x = low_y = 0
    high_x, high_y = x.rank, y.rank
    while low_x < high_x and low_y < high_y:  # what is certainly the same at the front
        if low_x == low_y and low_x in copied:
            node.tie((x, low_x), (y, low_y))
            low_x, low_y = low_x + 1, low_y + 1
            continue
        run = _run(x, y, range(low_x, high_x), range(low_y, high_y))
        if run is None:
            break
        node.block([(x, a) for a in run[0]], [(y, a) for a in run[1]])
        low_x, low_y = low_x + len(run[0]), low_y + len(run[1])
    while low_x < high_x and low_y < high_y:
        run = _run(x, y, range(high_x - 1, low_x - 1, -1), range(high_y - 1, low_y - 1, -1))
        if run is None:
            break
        node.block([(x, a) for a in sorted(run[0])], [(y, a) for a in sorted(run[1])])
        high_x, high_y = high_x - len(run[0]), high_y - len(run[1])


def _copied_axes(node: NodeAxes, x: Operand, y: Operand) -> set[int]:
    """Axes that the node copies by what it says, whatever their size."""
    if node.op == "Flatten":
        return set()
    if node.op != "Reshape":
        return set()
    target = node.constant(1) if node.has(1) else np.array(node.attribute("shape", ()), np.int64)
    if target is None or node.attribute("allowzero", 0):
        return set()
    out = set()
    for i, n in enumerate(target.reshape(-1)):
        if n != 0 or i >= x.rank:
            break
        out.add(i)
    return out


def _run(
    x: Operand, y: Operand, axes_x: Sequence[int], axes_y: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """The shortest runs of axes, in that order, whose sizes are known and multiply to the same
    number above 1, with the axes of size 1 before them; None where there is none."""
    sides: tuple[list[int], list[int]] = [], []
    products = [1, 1]
    waiting = [list(axes_x), list(axes_y)]
    while products[0] == 1 or products[0] != products[1]:
        shorter = 0 if products[0] <= products[1] else 1
        if products == [1, 1] and not waiting[0]:
            shorter = 1
        if not waiting[shorter]:
            return None
        axis = waiting[shorter].pop(0)
        size = (x, y)[shorter].size(axis)
        if not isinstance(size, int) or size < 1:
            return None
        sides[shorter].append(axis)
        products[shorter] *= size
    return sides


def _squeeze(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    axes = node.numbers(1, "axes")
    if axes is None:
        if not all(isinstance(n, int) for n in x.shape or ()):
            raise _Unknown("a size is not known")
        gone = {i for i, n in enumerate(x.shape or ()) if n == 1}
    else:
        gone = {a % x.rank for a in axes}
    _along(node, x, y, gone, False)


def _unsqueeze(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    axes = node.numbers(1, "axes")
    if axes is None:
        raise _Unknown("it has no axes")
    _along(node, y, x, {a % y.rank for a in axes}, False)


def _concat(node: NodeAxes) -> None:
    y = node.y()
    axis = int(node.attribute("axis", 1)) % y.rank
    inputs = [o for o in node.inputs if o is not None]
    node.same(*inputs, y, but=[axis])
    _pieces(node, y, inputs, axis)


def _split(node: NodeAxes) -> None:
    x = node.x()
    axis = int(node.attribute("axis", 0)) % x.rank
    outputs = [o for o in node.outputs if o is not None]
    if len(outputs) != len(node.outputs):
        raise _Unknown("an output is left out")
    node.same(x, *outputs, but=[axis])
    _pieces(node, x, outputs, axis)


def _pieces(node: NodeAxes, whole: Operand, parts: Sequence[Operand], axis: int) -> None:
    sizes = [part.size(axis) for part in parts]
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) != len(sizes) or sum(known) != whole.size(axis):
        for place in ((whole, axis), *((part, axis) for part in parts)):
            node.pin(place, f"{node.op}: the sizes are not known")
        return
    start = 0
    for part, size in zip(parts, known, strict=True):
        if size:
            node.piece((whole, axis), (part, axis), start)
        start += size


def _slice(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    limits = []
    for position, name in ((1, "starts"), (2, "ends")):
        try:
            limits.append(node.numbers(position, name))
        except _Unknown:
            limits.append(None)
    starts, ends = limits
    count = node.x(1).size(0) if node.has(1) else len(starts or ())
    axes = node.numbers(3, "axes")
    if axes is None:
        if not isinstance(count, int):
            raise _Unknown("its axes are not known")
        axes = list(range(count))
    axes = [a % x.rank for a in axes]
    steps = node.numbers(4, "steps") or [1] * len(axes)
    node.same(x, y, but=axes)
    for i, axis in enumerate(axes):
        size, taken = x.size(axis), y.size(axis)
        if not (starts and ends and isinstance(size, int) and isinstance(taken, int) and taken):
            continue
        begin = min(max(starts[i] + (size if starts[i] < 0 else 0), 0), size)
        end = min(max(ends[i] + (size if ends[i] < 0 else 0), 0), size)
        if steps[i] == 1 and end - begin == taken:
            if taken == size:
                node.tie((x, axis), (y, axis))
            else:
                node.piece((x, axis), (y, axis), begin)


def _gather(node: NodeAxes) -> None:
    x, indices, y = node.x(), node.x(1), node.y()
    axis = int(node.attribute("axis", 0)) % x.rank
    if y.rank != x.rank + indices.rank - 1:
        raise _Unknown("the ranks do not match")
    for i in range(x.rank):
        if i != axis:
            node.tie((x, i), (y, i if i < axis else i + indices.rank - 1))
    for i in range(indices.rank):
        node.tie((indices, i), (y, axis + i))
    node.pin((x, axis), "Gather picks places along it")


def _pad(node: NodeAxes) -> None:
    x, y = node.x(), node.y()
    pads = node.numbers(1, "pads")
    axes = node.numbers(3, "axes") if node.has(3) else list(range(x.rank))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        raise _Unknown("its pads are not known")
    half = len(axes)
    padded = {a % x.rank for i, a in enumerate(axes) if pads[i] or pads[i + half]}
    node.same(x, y, but=padded)


def _resize(node: NodeAxes) -> None:
    """An axis whose scale is exactly 1 is only copied, whatever the interpolation."""
    x, y = node.x(), node.y()
    if node.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise _Unknown("it crops")
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise _Unknown("it keeps the aspect ratio")
    named = node.attribute("axes")
    axes = [a % x.rank for a in named] if named else list(range(x.rank))
    at = 1 if node.op == "Upsample" or node.opset < 11 else 2
    scales = node.constant(at) if node.has(at) else None
    if scales is None and node.op == "Upsample":
        given = node.attribute("scales")
        scales = None if given is None else np.array(given)
    sizes = node.constant(3) if at == 2 and node.has(3) else None
    same = set(range(x.rank)) - set(axes)
    if scales is not None and scales.size == len(axes):
        same |= {a for a, scale in zip(axes, scales.reshape(-1), strict=True) if scale == 1}
    elif sizes is not None and sizes.size == len(axes):
        same |= {a for a, n in zip(axes, sizes.reshape(-1), strict=True) if x.size(a) == n}
    else:
        raise _Unknown("its scales are computed at run time")
    node.same(x, y, but=set(range(x.rank)) - same)


def _depth_to_space(node: NodeAxes) -> None:
    x, y, b = node.x(), node.y(), int(node.attribute("blocksize", 1))
    node.tie((x, 0), (y, 0))
    rows, columns = node.virtual(0, b), node.virtual(1, b)
    if node.op == "SpaceToDepth":
        node.block([y.at(1)], [rows, columns, x.at(1)])
    elif node.attribute("mode", "DCR") == "DCR":
        node.block([x.at(1)], [rows, columns, y.at(1)])
    else:
        node.block([x.at(1)], [y.at(1), rows, columns])
    for place in (rows, columns):
        node.pin(place, f"{node.op} moves them into the image")


# --- quantization ------------------------------------------------------------------------------
def _quantize(node: NodeAxes) -> None:
    x, scale, y = node.x(), node.x(1), node.y()
    parameters = [scale, *([node.x(2)] if node.has(2) else [])]
    block = int(node.attribute("block_size", 0))
    if scale.rank == 0 or (scale.rank == 1 and scale.size(0) == 1 and not block):
        node.same(x, y)
        return
    axis = int(node.attribute("axis", 1)) % x.rank
    if not block:
        if scale.rank != 1:
            raise _Unknown("its scale has more than one axis")
        node.same(x, y, but=[axis])
        node.tie((x, axis), (y, axis), *((o, 0) for o in parameters))
        return
    for i in range(x.rank):
        if i != axis:
            node.tie((x, i), (y, i), *((o, i) for o in parameters))
    size, count = x.size(axis), scale.size(axis)
    if not isinstance(size, int) or not isinstance(count, int) or size != count * block:
        return  # the last block is shorter: the axis stays
    node.tie((x, axis), (y, axis))
    number = node.virtual(0, count)
    node.block([x.at(axis)], [number, node.virtual(1, block)])
    for parameter in parameters:
        node.block([parameter.at(axis)], [number])


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_NARY = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor"
)
_REDUCE = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

_RULES: dict[tuple[str, str], Callable[[NodeAxes], None]] = {
    **{("", op): _unary for op in _UNARY.split()},
    **{("", op): _nary for op in _NARY.split()},
    **{("", f"Reduce{op}"): _reduce for op in _REDUCE.split()},
    ("", "Clip"): _clip,
    ("", "CastLike"): _cast_like,
    ("", "PRelu"): _prelu,
    ("", "Dropout"): _dropout,
    ("", "Expand"): _expand,
    ("", "Shape"): _shape_only,
    ("", "Size"): _shape_only,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "Einsum"): _einsum,
    **{("", op): _recurrent for op in ("LSTM", "GRU", "RNN")},
    ("", "BatchNormalization"): _batch_normalization,
    ("", "InstanceNormalization"): _instance_normalization,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "RMSNormalization"): _layer_normalization,
    ("", "SimplifiedLayerNormalization"): _layer_normalization,
    ("", "GroupNormalization"): _group_normalization,
    **{("", op): _symmetric for op in ("Softmax", "LogSoftmax", "MeanVarianceNormalization")},
    ("", "LpNormalization"): _symmetric,
    ("", "DynamicQuantizeLinear"): _dynamic_quantize,
    **{("", op): _pool for op in ("AveragePool", "LpPool", "MaxPool")},
    **{("", f"Global{op}"): _global_pool for op in ("AveragePool", "LpPool", "MaxPool")},
    ("", "ArgMax"): _arg_reduce,
    ("", "ArgMin"): _arg_reduce,
    **{("", op): _only_along for op in ("CumSum", "Hardmax", "TopK")},
    ("", "Transpose"): _transpose,
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _reshape,
    ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "Pad"): _pad,
    ("", "Resize"): _resize,
    ("", "Upsample"): _resize,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "SpaceToDepth"): _depth_to_space,
    ("", "QuantizeLinear"): _quantize,
    ("", "DequantizeLinear"): _quantize,
    ("com.microsoft", "BiasGelu"): _nary,
    ("com.microsoft", "FastGelu"): _nary,
    ("com.microsoft", "Gelu"): _unary,
    ("com.microsoft", "QuickGelu"): _unary,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_layer_normalization,
}
