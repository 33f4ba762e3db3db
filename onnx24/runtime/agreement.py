"""Whether two models compute the same function, as far as a few runs can tell.

Two correct ways to compute one thing differ by rounding, and how far that shows at an output is a
property of the model: one amplifies a unit in the last place a thousandfold, another flips an
argmax by it. So no fixed tolerance is right. Outputs that lie within a few units in the last place
of their scale agree. Where one does not, the original itself says what rounding does to it: it is
run again with every weight and every input moved at random by a few units in the last place.
A sum that is computed in another order is, by backward error analysis, the exact sum of operands
that were moved like that; so a difference up to a small multiple of what such a move does is
rounding, and a larger one is another function.

*Source:* N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §3.1 (an inner
product's computed value is the exact one of operands changed by at most nu / (1 - nu)) and §3.5.

What cannot be said: outputs that two runs of the same model give differently (random numbers),
and outputs whose shape hangs on rounding (rows that survive a threshold), are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.scopes import bodies, tensors
from onnx24.ir.weights import element_count, numpy_dtype
from onnx24.runtime.data import Calibration
from onnx24.runtime.difference import is_float, leaves, widened
from onnx24.runtime.probes import Feeds, candidates
from onnx24.runtime.session import Session

__all__ = ["Difference", "NotComparable", "Observed", "Verdict", "first_layer", "judge", "observe"]

Outputs = dict[str, Any]


@dataclass(frozen=True)
class _Word:
    """What a declaration allows. ulps, ulps16: how far operands are moved to measure what rounding
    does, in units in the last place of 32 and 64-bit and of 16-bit types. times: a difference may
    be so many times what that did. near: units in the last place of an output's scale below which
    nothing is measured."""

    ulps: float
    ulps16: float
    times: float
    near: float


WORDS = {
    # The same operations on the same numbers: what is left is a runtime's choice of kernels.
    "exact": _Word(ulps=2, ulps16=1, times=3, near=4),
    # Sums in another order, factors moved into weights. A sum of K products errs by about
    # sqrt(K / 2) units in the last place of its terms: 45 for K = 4096, less with the partial
    # sums of vector units; 8 · 4 covers it.
    "rounding": _Word(ulps=8, ulps16=1, times=4, near=16),
}

RUNS = 3
"""Moved copies that are run."""
MOVED = frozenset({"float64", "float32", "float16", "bfloat16"})
MIN_MOVED = 9
"""Elements of the least tensor that is moved: sizes, scales and epsilons are no weights."""
MIN_SLICE = 16
"""Elements of the least slice whose error is held against its own scale."""
LEAST = 0.25
"""Units in the last place of the whole's scale that no slice is held to."""


class NotComparable(Exception):
    """Why nothing can be said, in words."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where two models differ. kind: "values", "shape", "type", "decisions" (integers, strings,
    Booleans, places of NaN and infinities), "lost" (NaN or infinite where it was finite) or
    "refused" (`reason`). error, allowed: relative to
    the output's scale; shares of the elements for decisions. probe: which feeds show it."""

    output: str
    kind: str
    error: float = math.inf
    allowed: float = 0.0
    probe: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.kind == "refused":
            return f"ONNX Runtime refuses the result: {self.reason}"
        if self.kind in ("shape", "type"):
            return f"output {self.output!r} changed its {self.kind}"
        if self.kind == "lost":
            return (
                f"output {self.output!r} became NaN or infinite in {self.error:.3g} of its elements"
            )
        if self.kind == "decisions":
            return f"output {self.output!r} differs in {self.error:.3g} of its elements"
        return (
            f"output {self.output!r} moved by {self.error:.3g} of its scale, where rounding "
            f"explains {self.allowed:.3g}"
        )


@dataclass(frozen=True)
class Observed:
    """A model's outputs on the feeds that it runs with."""

    model: Model
    feeds: Sequence[Feeds]
    outputs: Sequence[Outputs]


@dataclass(frozen=True)
class Verdict:
    """difference: the worst, None where the models agree. notes: what could not be compared.
    weighed: whether outputs were so far apart that rounding had to be measured."""

    difference: Difference | None = None
    notes: tuple[str, ...] = ()
    weighed: bool = False


# --- running ----------------------------------------------------------------------------------


def observe(model: Model, data: Calibration | None, *, seed: int = 0) -> Observed:
    """Run the model on what `probes` proposes. Raises: NotComparable."""
    try:
        session = Session(model)
    except InputError as err:
        raise NotComparable(_first_line(err)) from err
    feeds: list[Feeds] = []
    outputs: list[Outputs] = []
    reason = "it has no inputs that could be made up"
    try:
        for options in candidates(model, data, seed=seed):
            for option in options:
                try:
                    found = session.run(option)
                except (InputError, ValueError, TypeError) as err:
                    reason = _first_line(err)
                    continue
                if _says_something(found):
                    feeds.append(option)
                    outputs.append(found)
                else:
                    reason = "its outputs are empty, NaN or infinite on all samples"
                break
    except InputError as err:
        reason = _first_line(err)
    if not feeds:
        raise NotComparable(reason)
    return Observed(model, feeds, outputs)


def observed_again(before: Observed, model: Model) -> Observed:
    """Another model on the same feeds. Raises: InputError O24-016."""
    session = Session(model)
    return Observed(model, before.feeds, [session.run(feeds) for feeds in before.feeds])


def _first_line(err: Exception) -> str:
    return err.diagnostics[0].message if isinstance(err, InputError) else str(err).split("\n")[0]


def _says_something(outputs: Outputs) -> bool:
    arrays = [a for name, value in outputs.items() for _, a, _ in leaves(name, value, value)]
    return any(a.size and (not is_float(a) or np.isfinite(widened(a)).any()) for a in arrays)


_NO_KERNEL = ("Could not find an implementation", "is not a registered function/op")
"""ONNX Runtime's words for operators that it does not know."""


def lacks_kernel(message: str) -> bool:
    return any(words in message for words in _NO_KERNEL)


# --- judging ----------------------------------------------------------------------------------


def judge(before: Observed, after: Model, word: str) -> Verdict:
    """Hold `after` to a declaration: a key of WORDS, or "close": then what was finite stays finite.
    Raises: NotComparable where ONNX Runtime has no kernels for the result."""
    try:
        found = observed_again(before, after)
    except InputError as err:
        message = _first_line(err)
        if lacks_kernel(message):
            raise NotComparable(message) from err
        return Verdict(Difference(output="", kind="refused", reason=message))
    if word == "close":
        return Verdict(_lost(before.outputs, found.outputs))
    allowance = WORDS[word]
    suspects = [
        i
        for i, (a, b) in enumerate(zip(before.outputs, found.outputs, strict=True))
        if any(not gap.is_near(allowance.near) for gap in _gaps(a, b).values())
    ]
    if not suspects:
        return Verdict()
    return _weigh(before, after, suspects, allowance)


def _lost(before: Sequence[Outputs], after: Sequence[Outputs]) -> Difference | None:
    for i, (ours, theirs) in enumerate(zip(before, after, strict=True)):
        for name in ours:
            for label, a, b in leaves(name, ours[name], theirs[name]):
                if a.dtype != b.dtype:
                    return Difference(output=label, kind="type", probe=i)
                if a.shape != b.shape or not is_float(a):
                    continue
                lost = np.isfinite(widened(a)) & ~np.isfinite(widened(b))
                if lost.any():
                    return Difference(output=label, kind="lost", error=lost.mean(), probe=i)
    return None


def _weigh(before: Observed, after: Model, suspects: Sequence[int], word: _Word) -> Verdict:
    """Nodes run as they are written here: what an optimizer makes of either is not the question."""
    ours, theirs = Session(before.model, optimize=False), Session(after, optimize=False)
    noise = _Noise(before.model, word)
    notes: dict[str, None] = {}
    worst: Difference | None = None
    for i in suspects:
        feeds = before.feeds[i]
        reference, again = ours.run(feeds), ours.run(feeds)
        try:
            gaps = _gaps(reference, theirs.run(feeds))
        except InputError as err:
            return Verdict(Difference(output="", kind="refused", reason=_first_line(err)), (), True)
        random = {name for name, gap in _gaps(reference, again).items() if not gap.is_equal}
        for name in random & set(gaps):
            notes[f"output {name!r} is not determined by the inputs"] = None
        gaps = {n: g for n, g in gaps.items() if n not in random and not g.is_near(word.near)}
        if not gaps:
            continue
        moved = noise.measured(reference, feeds)
        for name, gap in gaps.items():
            floor = moved.get(name)
            if floor is not None and not floor.same_shape:
                notes[f"the shape of output {name!r} hangs on rounding"] = None
                continue
            difference = gap.beyond(floor, word, name, i)
            if difference and (worst is None or difference.error > worst.error):
                worst = difference
    return Verdict(worst, tuple(notes), True)


class _Noise:
    """What rounding does to a model's values."""

    def __init__(self, model: Model, word: _Word, outputs: Sequence[str] | None = None) -> None:
        self._word = word
        self._sessions = [
            Session(moved(model, word.ulps, word.ulps16, seed), outputs, optimize=False)
            for seed in range(RUNS)
        ]

    def measured(self, reference: Outputs, feeds: Feeds) -> dict[str, _Gap]:
        """The largest gap of each value between the reference and the moved models."""
        found: dict[str, _Gap] = {}
        for seed, session in enumerate(self._sessions):
            rng = np.random.default_rng([seed, 1])
            nudged = {
                name: _nudged(a, self._word.ulps, self._word.ulps16, rng)
                if a.dtype.name in MOVED
                else a
                for name, a in feeds.items()
            }
            try:
                values = session.run(nudged)
            except InputError:  # a value that decides whether the model runs
                continue
            for name, gap in _gaps(reference, values).items():
                found[name] = found[name].joined(gap) if name in found else gap
        return found


def moved(model: Model, ulps: float, ulps16: float, seed: int) -> Model:
    """A copy whose float weights are each moved by so many units in the last place, up or down."""
    rng = np.random.default_rng(seed)
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in tensors(proto):
        if element_count(tensor) < MIN_MOVED or not tensor.data_type:
            continue
        if numpy_dtype(tensor.data_type).name in MOVED:
            array = _nudged(model.weights.read(tensor), ulps, ulps16, rng)
            for field_name in ("float_data", "double_data", "int32_data", "external_data"):
                tensor.ClearField(field_name)
            tensor.ClearField("data_location")
            tensor.raw_data = array.tobytes()
    return model.variant(proto)


def _nudged(array: np.ndarray, ulps: float, ulps16: float, rng: np.random.Generator) -> np.ndarray:
    step = (ulps if array.dtype.itemsize >= 4 else ulps16) * _epsilon(array.dtype)
    signs = rng.integers(0, 2, array.shape, np.int8) * 2 - 1
    wide = np.float64 if array.dtype.itemsize >= 4 else np.float32
    with np.errstate(all="ignore"):
        return (array.astype(wide) * (1 + step * signs)).astype(array.dtype)


def _epsilon(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


# --- one value against another ------------------------------------------------------------------


@dataclass(frozen=True)
class _Gap:
    """How far an array lies from its reference.

    odd: elements that are unequal and no finite numbers on both sides, or integers; of `size`.
    errors, scales: for the whole and for the slices along each axis, the largest |b - a| and |a|.
    Slices, because one small channel beside large ones would hide whatever happens to it.
    """

    same_shape: bool = True
    same_type: bool = True
    odd: int = 0
    size: int = 1
    epsilon: float = 0.0
    errors: tuple[np.ndarray, ...] = ()
    scales: tuple[np.ndarray, ...] = ()

    @property
    def is_equal(self) -> bool:
        return self.is_near(0)

    def is_near(self, ulps: float) -> bool:
        if not (self.same_shape and self.same_type) or self.odd:
            return False
        allowed = self._near(ulps)
        return all(bool((e <= a).all()) for e, a in zip(self.errors, allowed, strict=True))

    def _near(self, ulps: float) -> list[np.ndarray]:
        """So many units in the last place of each slice's scale, and a part of one of the whole's:
        what is below is lost in any sum over the slices."""
        least = min(ulps, LEAST) * self.epsilon * self.scales[0] if self.scales else 0.0
        return [np.maximum(ulps * self.epsilon * s, least) for s in self.scales]

    def joined(self, other: _Gap) -> _Gap:
        if not (self.same_shape and other.same_shape):
            return self if not self.same_shape else other
        return _Gap(
            odd=max(self.odd, other.odd),
            size=self.size,
            epsilon=self.epsilon,
            errors=tuple(map(np.maximum, self.errors, other.errors)),
            scales=self.scales,
        )

    def beyond(self, noise: _Gap | None, word: _Word, name: str, probe: int) -> Difference | None:
        """What the noise does not explain. noise: None where none could be measured."""
        if not self.same_type or not self.same_shape:
            kind = "shape" if self.same_type else "type"
            return Difference(output=name, kind=kind, probe=probe)
        odd = noise.odd if noise else 0
        if self.odd > word.times * odd:
            return Difference(
                output=name,
                kind="decisions",
                error=self.odd / self.size,
                allowed=word.times * odd / self.size,
                probe=probe,
            )
        worst: Difference | None = None
        nearest = self._near(word.near)
        for at, (errors, scales) in enumerate(zip(self.errors, self.scales, strict=True)):
            allowed = nearest[at]
            if noise and at < len(noise.errors):
                allowed = np.maximum(allowed, word.times * noise.errors[at])
            over = errors > allowed
            if not over.any():
                continue
            excess = np.where(over, errors - allowed, -1.0)
            i = int(excess.argmax())
            scale = float(scales[i]) or math.inf
            error = float(errors[i]) / scale if math.isfinite(scale) else math.inf
            if worst is None or error > worst.error:
                worst = Difference(
                    output=name,
                    kind="values",
                    error=error,
                    allowed=float(allowed[i]) / scale,
                    probe=probe,
                )
        return worst


def _gaps(reference: Outputs, values: Outputs) -> dict[str, _Gap]:
    out: dict[str, _Gap] = {}
    for name in reference:
        for label, a, b in leaves(name, reference[name], values.get(name, np.zeros(0))):
            out[label] = _gap(a, b)
    return out


def _gap(a: np.ndarray, b: np.ndarray) -> _Gap:
    if a.dtype != b.dtype and not (a.dtype.kind in "OSU" and b.dtype.kind in "OSU"):
        return _Gap(same_type=False)
    if a.shape != b.shape:
        return _Gap(same_shape=False)
    if not is_float(a) and a.dtype.kind != "c":
        return _Gap(odd=int(np.count_nonzero(np.asarray(a != b))), size=max(1, a.size))
    epsilon = _epsilon(a.real.dtype if a.dtype.kind == "c" else a.dtype)
    x, y = widened(a), widened(b)
    finite = np.isfinite(x) & np.isfinite(y)
    odd = 0
    if not finite.all():
        equal = (x == y) | (np.isnan(x) & np.isnan(y))
        odd = int(np.count_nonzero(~finite & ~equal))
        x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    error, scale = np.abs(y - x), np.abs(x)
    errors, scales = [], []
    for axes in _slices(x.shape):
        errors.append(np.atleast_1d(error.max(axis=axes, initial=0.0)).reshape(-1))
        scales.append(np.atleast_1d(scale.max(axis=axes, initial=0.0)).reshape(-1))
    return _Gap(
        odd=odd, size=max(1, a.size), epsilon=epsilon, errors=tuple(errors), scales=tuple(scales)
    )


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Axes to take the largest over: all, and all but one where a slice is large enough."""
    every = tuple(range(len(shape)))
    yield every
    size = math.prod(shape)
    for axis in every:
        if shape[axis] > 1 and size // shape[axis] >= MIN_SLICE:
            yield tuple(a for a in every if a != axis)


# --- where it begins ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node of the model before, and the value of it that differs."""

    node: str
    op: str
    value: str


@dataclass
class _Values:
    """Which values that keep their name in both models agree."""

    differing: set[str] = field(default_factory=set)
    agreeing: set[str] = field(default_factory=set)


def first_layer(before: Observed, after: Model, word: str, difference: Difference) -> Layer | None:
    """The first layer whose value differs and stays different up to the output.

    Values keep their names in both models where a pass leaves a node be. Some differ rightly (a
    factor that was moved into the next layer), so the search goes backwards from the output and
    ends at values that agree. None where ONNX Runtime can't say.
    """
    graph = before.model.proto.graph
    producers = {value: i for i, node in enumerate(graph.node) for value in node.output if value}
    kept = {value for node in after.proto.graph.node for value in node.output if value}
    names = [value for value in producers if value in kept]
    found = _compared(before, after, names, WORDS[word], difference.probe)
    if found is None:
        return None
    output = difference.output.split("[")[0]
    starts = [output] if output in producers else [v.name for v in graph.output]
    reached: set[str] = set()
    work = [value for value in starts if value in producers]
    while work:
        value = work.pop()
        if value in reached or value in found.agreeing:
            continue
        reached.add(value)
        node = graph.node[producers[value]]
        inner = {name for _, body in bodies(node) for n in body.node for name in n.input}
        work += [name for name in (*node.input, *inner) if name in producers]
    culprits = sorted(reached & found.differing, key=lambda value: producers[value])
    if not culprits:
        return None
    node = graph.node[producers[culprits[0]]]
    return Layer(node=node.name, op=node.op_type, value=culprits[0])


def _compared(
    before: Observed, after: Model, names: Sequence[str], word: _Word, probe: int
) -> _Values | None:
    feeds = before.feeds[probe]
    try:
        reference = Session(before.model, names, optimize=False).run(feeds)
        gaps = _gaps(reference, Session(after, names, optimize=False).run(feeds))
        noise = _Noise(before.model, word, names).measured(reference, feeds)
    except InputError:
        return None
    found = _Values()
    for label, gap in gaps.items():
        name = label if label in reference else label.split("[")[0]
        differs = not gap.is_near(word.near) and gap.beyond(noise.get(label), word, label, probe)
        (found.differing if differs else found.agreeing).add(name)
    found.agreeing -= found.differing
    return found
