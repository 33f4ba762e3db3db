"""Every weight of a model: what it is, who reads it, what it could be, and why not."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.coverage import Coverage, is_24, whole
from onnx24.analysis.eligibility import Verdict, judge
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.codes import CODES
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.text import dtype_name
from onnx24.ir.weights import element_count, payload_bytes
from onnx24.lines import Block, block
from onnx24.report.jsontext import Document, plain
from onnx24.report.model import NO_PRODUCT
from onnx24.report.table import WIDTH, cut, shape_text, share_text, table
from onnx24.sparsity.metrics import count_zeros

if TYPE_CHECKING:
    from onnx24.targets import Target

_DYNAMIC = "O24-117"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One final consumer. node: "" where the value is an output. input: as which input it reads.
    chain: the operators between the stored tensor and it, but for Identity. axis: its reduction
    axis in the stored tensor; k, n: its sizes [elements], for a product. code, reason: why it can't
    be sparse, None and "" where it can."""

    node: str
    op: str
    scope: str
    input: int
    chain: tuple[str, ...]
    axis: int | None
    k: int | None
    n: int | None
    code: str | None
    reason: str

    @classmethod
    def of(cls, use: WeightUse) -> Reader:
        multiplies = use.kind == "product" and use.K > 0
        return cls(
            node=use.node,
            op=use.op,
            scope=use.scope,
            input=use.input,
            chain=tuple(step.site.proto.op_type for step in use.chain),
            axis=use.k_axis,
            k=use.K if multiplies else None,
            n=use.N if multiplies else None,
            code=use.code,
            reason=use.reason,
        )


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """One weight. axis: the reduction axis in the stored tensor, None where no single axis is it;
    k, n: sizes of the reduction and of the outputs [elements]. density: the share of values that
    are not 0, None where no tensor holds them. is_24: None where the question has no meaning. ops,
    nodes: the final consumers, of which `readers` says more. constant: a Constant node rather than
    an initializer. data_type: dtype as ONNX numbers it. code, reason: the verdict's. small: why
    the target may not gain, "" where it may. unconfirmed: what no public evidence settles about
    the verdict. packed: stored without its zeros, by pack24; nbytes is that of the whole one.
    """

    scope: str
    name: str
    dtype: str
    data_type: int
    shape: tuple[int, ...]
    nbytes: int
    constant: bool
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    readers: tuple[Reader, ...]
    axis: int | None
    k: int | None
    n: int | None
    density: float | None
    is_24: bool | None
    claimed: bool
    eligible: bool
    code: str
    reason: str
    small: str
    unconfirmed: tuple[str, ...]
    packed: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        return f"{self.scope}::{self.name}" if self.scope else self.name

    @property
    def is_bystander(self) -> bool:
        """No matrix product's weight."""
        return self.code == NO_PRODUCT and not self.claimed

    def to_json(self) -> dict[str, Any]:
        out = dict(vars(self))
        out["bytes"] = out.pop("nbytes")
        del out["data_type"]  # dtype says it
        out["readers"] = [vars(reader) for reader in self.readers]
        return {**out, "elements": self.elements}


@dataclass(frozen=True, kw_only=True)
class DynamicProduct:
    """A product whose operands are both computed at run time: it has no weight (O24-117)."""

    scope: str
    node: str
    op: str

    @classmethod
    def of(cls, site: NodeSite) -> DynamicProduct:
        return cls(scope=site.scope, node=site.name, op=site.proto.op_type)


@dataclass(frozen=True, kw_only=True)
class Inspection(Document):
    """All rows in document order, and what they add up to. min_channels: from how many channels
    on the target is said to gain."""

    file: str
    target: str
    opset: int
    min_channels: int
    coverage: Coverage
    rows: tuple[WeightRow, ...]
    dynamic: tuple[DynamicProduct, ...]

    def codes(self) -> dict[str, int]:
        """How many weights and products got each code, sorted by code."""
        counts = Counter(row.code for row in self.rows)
        counts[_DYNAMIC] += len(self.dynamic)
        return {code: count for code, count in sorted(counts.items()) if count}

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "file": self.file,
                "target": self.target,
                "opset": self.opset,
                "coverage": self.coverage.to_json(),
                "codes": self.codes(),
                "weights": [row.to_json() for row in self.rows],
                "dynamic": [vars(product) for product in self.dynamic],
            }
        )


def inspect(model: Model, target: Target, file: str) -> Inspection:
    """Look at every weight of every scope, those of Constant nodes included. Sizes, indices,
    scales and zero points are no weights."""
    cache = AnalysisCache()
    model, packed = whole(model)
    uses = cache.get(model, WeightUses)
    claimed = set(model.claims.keys())
    verdicts = judge(model, cache, target).values()
    rows = [
        replace(_row(model, uses, verdict, claimed), packed=verdict.key in packed)
        for verdict in verdicts
    ]
    found = zip(verdicts, (row.is_24 for row in rows), strict=True)
    return Inspection(
        file=file,
        target=target.name,
        opset=model.opset,
        min_channels=target.sparse_min_channels,
        coverage=Coverage.of(found),
        rows=tuple(rows),
        dynamic=tuple(DynamicProduct.of(site) for site in uses.dynamic),
    )


def _row(model: Model, uses: WeightUses, verdict: Verdict, claimed: set[ValueKey]) -> WeightRow:
    key, products = verdict.key, verdict.products
    held = key in uses.tensors
    tensor = uses.tensors[key] if held else uses.unheld[key][0]
    size = element_count(tensor)
    first = Reader.of(products[0]) if products else None
    row = WeightRow(
        scope=key.scope,
        name=key.name,
        dtype=verdict.facts["dtype"],
        data_type=tensor.data_type,
        shape=tuple(tensor.dims),
        nbytes=payload_bytes(tensor) if tensor.data_type != TensorProto.STRING else 0,
        constant=key in uses.constants,
        ops=tuple(dict.fromkeys(use.op for use in verdict.uses)),
        nodes=tuple(use.node for use in verdict.uses if use.consumer),
        readers=tuple(Reader.of(use) for use in verdict.uses),
        axis=verdict.k_axis,
        k=first.k if first else None,
        n=first.n if first else None,
        density=1 - count_zeros(uses.read(model, key)) / size if held and size else None,
        is_24=is_24(model, uses, verdict),
        claimed=key in claimed,
        eligible=verdict.eligible,
        code=verdict.code,
        reason=verdict.reason,
        small=str(verdict.facts.get("small", "")) if verdict.eligible else "",
        unconfirmed=tuple(verdict.facts.get("unconfirmed", ())) if verdict.eligible else (),
    )
    model.weights.release_pages()
    return row


# --- text --------------------------------------------------------------------------------------
_EXAMPLES = 3
"""Weights of a code that are named below the table, unless all are asked for."""


def render_inspection(found: Inspection, *, show_all: bool = False, width: int = WIDTH) -> Block:
    """A table of the weights, how many of the eligible ones are 2:4, and why the others are none.

    show_all: biases and the like as well, the readers of each weight, and every reason.
    """
    shown = [row for row in found.rows if show_all or not row.is_bystander]
    lines = [f"{found.file} for {found.target}, opset {found.opset}"]
    header, *body = _table(shown, width)
    lines += [header] if shown else ["  no weight of a matrix product"]
    for row, line in zip(shown, body, strict=True):
        lines.append(line)
        if show_all:
            lines += [cut(f"      {_reader(reader)}", width) for reader in row.readers]
    lines += ["", *(f"  {text}" for text in _coverage(found))]
    for code, count in found.codes().items():
        if code != "O24-101":
            for text in _refusals(found, code, count, show_all):
                lines += textwrap.wrap(f"  {text}", width, subsequent_indent=" " * 8)
    return block(lines)


def _table(rows: Sequence[WeightRow], width: int) -> list[str]:
    header = ["weight", "shape", "type", "axis", "K", "N", "nonzero", "2:4", "eligible"]
    cells = [list(_cells(row)) for row in rows]
    if all(row.density in (None, 1.0) for row in rows):  # a dense model: the column says nothing
        for line in (header, *cells):
            line.pop(6)
    right = [i for i, name in enumerate(header) if name in ("axis", "K", "N", "nonzero")]
    whole = [i for i, name in enumerate(header) if name != "weight"]
    return table(header, cells, right=right, whole=whole, width=width).split("\n")


def _cells(row: WeightRow) -> Iterator[str]:
    yield row.label
    yield shape_text(row.shape)
    yield dtype_name(row.data_type)
    for number in (row.axis, row.k, row.n):
        yield "–" if number is None else str(number)
    yield "–" if row.density is None else f"{100 * row.density:.0f} %"
    yield _pattern(row)
    doubt = "*" if row.unconfirmed else ""
    yield f"yes{', small' if row.small else ''}{doubt}" if row.eligible else row.code


def _pattern(row: WeightRow) -> str:
    """A record of 2:4 that the values do not bear out is the first thing to see."""
    if row.claimed:
        return "yes, recorded" if row.is_24 else "RECORDED, IS NOT"
    return {None: "–", True: "yes", False: "no"}[row.is_24]


def _reader(reader: Reader) -> str:
    """`fc1 (MatMul, input 1) behind Transpose: reads rows`."""
    where = f"{reader.scope}::{reader.node}" if reader.scope else reader.node
    text = f"{where} ({reader.op}, input {reader.input})" if reader.node else reader.op
    if reader.chain:
        text += f" behind {', '.join(reader.chain)}"
    return f"{text}: {reader.reason}" if reader.code else text


def _coverage(found: Inspection) -> Iterator[str]:
    eligible, c = [row for row in found.rows if row.eligible], found.coverage
    yield (
        f"{c.sparse} of {c.eligible} eligible weights are 2:4, {c.sparse_elements:,} of "
        f"{c.eligible_elements:,} elements ({share_text(c.sparse_elements, c.eligible_elements)})"
    )
    if small := sum(bool(row.small) for row in eligible):
        yield f"small: K or N below {found.min_channels}, too little to gain ({small})"
    doubts = Counter(doubt for row in eligible for doubt in row.unconfirmed)
    for doubt, count in sorted(doubts.items()):
        yield f"* nothing public confirms {doubt} on {found.target} ({count})"


def _refusals(found: Inspection, code: str, count: int, show_all: bool) -> Iterator[str]:
    """The weights of one code, and why."""
    if code == NO_PRODUCT and not show_all:
        hidden = sum(row.is_bystander for row in found.rows)
        others = "1 other" if hidden == 1 else f"{hidden} others"
        yield f"{others}: no matrix product's weight ({NO_PRODUCT}); --all"
        return
    yield f"{code} {CODES[code].title}: {count}"
    if code == NO_PRODUCT:  # the readers stand below each weight
        return
    reasons = [f"{row.label}: {row.reason}" for row in found.rows if row.code == code]
    if code == _DYNAMIC:
        reasons = [f"{p.node} ({p.op})" for p in found.dynamic]
    shown = reasons if show_all or len(reasons) <= _EXAMPLES + 1 else reasons[:_EXAMPLES]
    yield from (f"    {reason}" for reason in shown)
    if len(shown) < len(reasons):
        yield f"    and {len(reasons) - len(shown)} more; --all"
