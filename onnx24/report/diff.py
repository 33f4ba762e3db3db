"""How two models differ: structure, values, interface, metadata.

Nodes are matched by scope and name. Of those that are left over, a node that computes the same of
the same inputs and weights (by a fingerprint over everything that leads to it) is *renamed*; of
those matched, one that only reads other values is *rewired*.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.coverage import is_24
from onnx24.analysis.eligibility import Eligibility
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.packed import unpacked
from onnx24.ir.scopes import node_label
from onnx24.ir.shapes import ValueType, value_type
from onnx24.ir.text import type_text
from onnx24.lines import Block, block, paragraphs
from onnx24.report.jsontext import Document, plain
from onnx24.report.table import number_text, table

_CHUNK = 1 << 20  # elements compared at a time, so that memory stays bounded
_SHOWN = 20


@dataclass(frozen=True)
class Change:
    """One property that differs. `before` or `after` is None for what came or went. `how`, of a
    node that is in both: "renamed" (it computes the same), "rewired" (it reads other values), or
    "" (operator or attributes differ)."""

    name: str
    before: str | None
    after: str | None
    how: str = ""

    @property
    def kind(self) -> str:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else self.how or "changed"

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.name}: {self.after}"
        if self.after is None:
            return f"- {self.name}: {self.before}"
        how = f" ({self.how})" if self.how else ""
        return f"~ {self.name}{how}: {self.before} → {self.after}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True, kw_only=True)
class ValueChange:
    """An initializer whose shape and dtype stayed and whose values did not.

    max_abs, rel_l2: None where the values are no numbers. zeros: counts before and after.
    mask: how many values became zero, and how many ceased to be. is_24: before and after, as the
    model's own products group the values; None where none does.
    """

    name: str
    type: str
    elements: int
    changed: int
    max_abs: float | None
    rel_l2: float | None
    zeros: tuple[int, int] | None
    mask: tuple[int, int] | None = None
    is_24: tuple[bool | None, bool | None] = (None, None)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class ModelDiff(Document):
    """Everything that differs; nothing is left out but the order of initializers."""

    header: list[Change] = field(default_factory=list)
    interface: list[Change] = field(default_factory=list)
    metadata: list[Change] = field(default_factory=list)
    nodes: list[Change] = field(default_factory=list)
    initializers: list[Change] = field(default_factory=list)
    values: list[ValueChange] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not any(vars(self).values())

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"equal": self.is_empty}
        for name, changes in vars(self).items():
            out[name] = [change.to_json() for change in changes]
        return plain(out)


def diff(a: Model, b: Model) -> ModelDiff:
    """Compare two models. Nodes are matched by scope and name (an unnamed node's first output),
    then by fingerprint; initializers by scope and name. Weights that pack24 stored count as what
    they are."""
    a, b = unpacked(a), unpacked(b)
    moved, values = _initializers(a, b)
    return ModelDiff(
        header=_changes(_header(a), _header(b)),
        interface=_changes(_interface(a), _interface(b)),
        metadata=_changes(dict(a.metadata), dict(b.metadata)),
        nodes=_node_changes(_nodes(a), _nodes(b)),
        initializers=moved,
        values=values,
    )


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = [*before, *(name for name in after if name not in before)]
    return [
        Change(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _header(model: Model) -> dict[str, str]:
    proto = model.proto
    out = {f"opset {domain or 'ai.onnx'}": str(v) for domain, v in sorted(model.opsets.items())}
    out["ir_version"] = str(model.file_ir_version)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        value = getattr(proto, name)
        if value:
            out[name] = str(value)
    return out


def _interface(model: Model) -> dict[str, str]:
    graph = model.proto.graph
    out = {}
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for position, value in enumerate(values):
            known: ValueType | None = value_type(value.type)
            text = type_text(known) if known else (value.type.WhichOneof("value") or "untyped")
            out[f"{kind} {value.name}"] = f"{text} at {position}"
    return out


@dataclass(frozen=True)
class _Node:
    """`text`: the node in one line. `what`: operator and attributes. `fingerprint`: of the
    computation that leads to it, names of values aside."""

    text: str
    what: str
    fingerprint: str


def _nodes(model: Model) -> dict[str, _Node]:
    """A unique label → the node. Nodes that share a label are numbered."""
    seen: dict[str, int] = {}
    out = {}
    known: dict[str, dict[str, str]] = {}
    for scope in model.scopes():
        values = known[scope.path] = (
            dict(known.get(scope.parent or "", {})) if (scope.parent is not None) else {}
        )
        for tensor in scope.initializers:
            values[tensor.name] = _hash("initializer", model.weights.digest_of(tensor))
        for node in scope.graph.node:
            label = str(ValueKey(scope.path, node_label(node)))
            count = seen[label] = seen.get(label, 0) + 1
            what = _what(model, node)
            # A name that nothing before has made is an input, or made later in an unsorted graph.
            reads = [values.get(name, f"input {name}") for name in node.input]
            print_ = _hash(what, str(len(node.output)), *reads)
            for i, name in enumerate(node.output):
                values[name] = _hash(print_, str(i))
            text = f"{', '.join(node.output)} = {_call(node, what)}"
            out[label if count == 1 else f"{label}#{count}"] = _Node(text, what, print_)
    return out


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _node_changes(before: Mapping[str, _Node], after: Mapping[str, _Node]) -> list[Change]:
    gone = {label: node for label, node in before.items() if label not in after}
    fresh: dict[str, list[str]] = {}
    for label, node in after.items():
        if label not in before:
            fresh.setdefault(node.fingerprint, []).append(label)
    renamed = {
        label: found.pop(0)
        for label, node in gone.items()
        if (found := fresh.get(node.fingerprint))
    }
    taken = set(renamed.values())
    changes = []
    for label, old in before.items():
        new = after.get(renamed.get(label, label))
        if label in renamed and new is not None:
            changes.append(Change(f"{label} → {renamed[label]}", old.text, new.text, "renamed"))
        elif new is None:
            changes.append(Change(label, old.text, None))
        elif new.text != old.text:
            changes.append(Change(label, old.text, new.text, _how(old, new)))
    changes += [
        Change(label, None, node.text)
        for label, node in after.items()
        if label not in before and label not in taken
    ]
    return changes


def _how(old: _Node, new: _Node) -> str:
    if old.what != new.what:
        return ""
    return "renamed" if old.fingerprint == new.fingerprint else "rewired"


def _what(model: Model, node: NodeProto) -> str:
    op = ops.full_name(node)
    attributes = ", ".join(
        f"{a.name}={_attribute_text(model, a)}"
        for a in sorted(node.attribute, key=lambda a: a.name)
    )
    return f"{op} {{{attributes}}}" if attributes else op


def _call(node: NodeProto, what: str) -> str:
    op, brace, rest = what.partition(" {")
    return f"{op}({', '.join(node.input)}){brace}{rest}"


def _attribute_text(model: Model, attribute: AttributeProto) -> str:
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    if attribute.type == AttributeProto.TENSOR:
        tensor = attribute.t
        kind = type_text(ValueType(tensor.data_type, tuple(tensor.dims)))
        return f"{kind} sha={model.weights.digest_of(tensor)[:12]}"
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return "…"  # its nodes are listed under their own scope
    value = onnx.helper.get_attribute_value(attribute)
    return repr(value) if isinstance(value, int | float | bytes) else str(list(value))


def _initializers(a: Model, b: Model) -> tuple[list[Change], list[ValueChange]]:
    before, after = _types(a), _types(b)
    names = {str(key): key for key in (*before, *after)}
    moved = _changes(
        {str(key): text for key, text in before.items()},
        {str(key): text for key, text in after.items()},
    )
    differ = [
        key
        for key in names.values()
        if key in before
        and before[key] == after.get(key)
        and a.weights.digest(key) != b.weights.digest(key)
    ]
    if not differ:
        return moved, []
    caches = AnalysisCache(), AnalysisCache()
    return moved, [
        replace(
            _value_change(a, b, key, before[key]),
            is_24=(_is_24(a, caches[0], key), _is_24(b, caches[1], key)),
        )
        for key in differ
    ]


def _is_24(model: Model, cache: AnalysisCache, key: ValueKey) -> bool | None:
    verdict = cache.get(model, Eligibility).verdicts.get(key)
    return None if verdict is None else is_24(model, cache.get(model, WeightUses), verdict)


def _types(model: Model) -> dict[ValueKey, str]:
    out = {}
    for key in model.weights:
        tensor = model.weights.tensor(key)
        out[key] = type_text(ValueType(tensor.data_type, tuple(tensor.dims)))
    return out


def _value_change(a: Model, b: Model, key: ValueKey, kind: str) -> ValueChange:
    old, new = a.weights[key].reshape(-1), b.weights[key].reshape(-1)
    if old.dtype.kind in "OSU":
        changed = int(np.count_nonzero(old != new))
        return ValueChange(
            name=str(key),
            type=kind,
            elements=old.size,
            changed=changed,
            max_abs=None,
            rel_l2=None,
            zeros=None,
        )
    changed, largest, error, energy, zeros, mask = 0, 0.0, 0.0, 0.0, [0, 0], [0, 0]
    for x, y in _chunks(old, new):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):  # inf - inf, where both are the same
            delta = np.where(same, 0.0, np.abs(x - y))
        changed += int(np.count_nonzero(~same))
        largest = float(np.maximum(largest, delta.max()))  # NaN stays NaN, unlike with max()
        error += float(np.dot(delta, delta))
        energy += float(np.vdot(x, x).real)
        zeros[0] += int(np.count_nonzero(x == 0))
        zeros[1] += int(np.count_nonzero(y == 0))
        mask[0] += int(np.count_nonzero((x != 0) & (y == 0)))
        mask[1] += int(np.count_nonzero((x == 0) & (y != 0)))
    rel_l2 = math.sqrt(error / energy) if energy else math.inf
    return ValueChange(
        name=str(key),
        type=kind,
        elements=old.size,
        changed=changed,
        max_abs=largest,
        rel_l2=rel_l2,
        zeros=(zeros[0], zeros[1]),
        mask=(mask[0], mask[1]),
    )


def _chunks(old: np.ndarray, new: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    wide = np.complex128 if old.dtype.kind == "c" else np.float64
    for start in range(0, old.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield old[part].astype(wide), new[part].astype(wide)


def render_diff(result: ModelDiff, *, shown: int = _SHOWN) -> Block:
    """The difference as text: a section for each kind, long ones cut."""
    if result.is_empty:
        return block(["the models are equal"])
    parts = []
    for name in ("header", "interface", "metadata", "nodes", "initializers"):
        changes: Sequence[Change] = getattr(result, name)
        if changes:
            parts.append(_section(name, [f"  {change}" for change in changes], shown))
    if result.values:
        rows = [
            (
                change.name,
                change.type,
                f"{change.changed:,} of {change.elements:,}",
                number_text(change.max_abs),
                number_text(change.rel_l2),
                "–" if change.zeros is None else f"{change.zeros[0]:,} → {change.zeros[1]:,}",
                "–" if change.mask is None else f"+{change.mask[0]:,} −{change.mask[1]:,}",
                pattern_text(change.is_24),
            )
            for change in result.values[:shown]
        ]
        header = ("initializer", "type", "changed", "max abs", "rel L2", "zeros", "mask", "2:4")
        found = table(header, rows, right=(2, 3, 4, 5, 6))
        title = f"values ({len(result.values)})"
        parts.append(block([title, found, *_more(len(result.values), shown)]))
    return paragraphs(parts)


def pattern_text(is_24: tuple[bool | None, bool | None]) -> str:
    """`no → yes`: whether a weight was 2:4 and is."""
    if is_24 == (None, None):
        return "–"
    before, after = ({None: "–", True: "yes", False: "no"}[state] for state in is_24)
    return before if before == after else f"{before} → {after}"


def _section(name: str, lines: Sequence[str], shown: int) -> Block:
    return block([f"{name} ({len(lines)})", *lines[:shown], *_more(len(lines), shown)])


def _more(count: int, shown: int) -> list[str]:
    return [f"  … and {count - shown} more (--json lists all)"] if count > shown else []
