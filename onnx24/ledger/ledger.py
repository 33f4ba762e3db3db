"""The ledger: one row per layer of the model, from its weight to what it gained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnx24 import __version__
from onnx24.backends.base import Profile
from onnx24.backends.logs import Layer
from onnx24.ir.model import Model
from onnx24.ledger.engine import Engine, LayerTime, nodes_of
from onnx24.ledger.model_layers import ModelLayer, layers_of
from onnx24.ledger.statistics import Summary
from onnx24.report.jsontext import Document, plain
from onnx24.targets import Target

Verdict = Literal["faster", "not faster", "not measured"]
NOISE = 0.03
"""A layer whose median moved by no more than this share is not faster. --exportProfile has one
median a layer and no spread, so the share is a choice and not a measurement."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer of the model. `layer`: None without a model, where the engine's layers are the
    rows. `shares`: how many rows ended up in the same layer of the engine, which has one time for
    all of them. builder_eligible, chosen: None where nothing says. time_ms, dense_ms: medians of
    the engine's layer here and in the dense engine. traffic_bytes: what the engine's layer reads
    and writes, 0 where no file says."""

    name: str
    layer: ModelLayer | None
    engine_layer: str = ""
    kind: str = ""
    tactic: str = ""
    fused_with: tuple[str, ...] = ()
    shares: int = 1
    builder_eligible: bool | None = None
    chosen: bool | None = None
    time_ms: float | None = None
    dense_ms: float | None = None
    reformats_before: int = 0
    reformats_after: int = 0
    traffic_bytes: int = 0

    @property
    def gain(self) -> float | None:
        """How many times faster than in the dense engine."""
        if self.time_ms is None or self.dense_ms is None or self.time_ms <= 0:
            return None
        return self.dense_ms / self.time_ms

    def verdict(self, noise: float = NOISE) -> Verdict:
        if self.gain is None:
            return "not measured"
        return "faster" if self.gain > 1 + noise else "not faster"

    def to_json(self) -> dict[str, Any]:
        out = {k: v for k, v in vars(self).items() if k != "layer"}
        out |= {"gain": self.gain, "verdict": self.verdict()}
        out["model"] = vars(self.layer) if self.layer else None
        return plain(out)


@dataclass(frozen=True, kw_only=True)
class Ledger(Document):
    """All rows, and what they add up to. counts: (eligible, chosen) as the builder's log numbers
    them, None where it does not. engine_layers: kernels of the engine; reformats: those of them
    that only move data. profiled_ms: the sum of the layers' medians; shares_ms: what of it went
    into layers that hold a row ("rows"), that only move data ("moves"), and into the "rest"."""

    model: str
    target: str
    rows: tuple[Row, ...]
    counts: tuple[int, int] | None = None
    dense_counts: tuple[int, int] | None = None
    engine_layers: int = 0
    reformats: int = 0
    latency: Summary | None = None
    dense_latency: Summary | None = None
    profiled_ms: float | None = None
    shares_ms: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def funnel(self) -> dict[str, int]:
        """How many rows get how far: each step is a question of its own."""
        has = [row for row in self.rows if row.layer is not None]
        return {
            "layers": len(self.rows),
            "with_weight": sum(bool(row.layer.weight) for row in has if row.layer),
            "eligible": sum(row.layer.eligible for row in has if row.layer),
            "weights_24": sum(bool(row.layer.is_24) for row in has if row.layer),
            "eligible_for_builder": sum(bool(row.builder_eligible) for row in self.rows),
            "chosen": sum(bool(row.chosen) for row in self.rows),
            "faster": sum(row.verdict() == "faster" for row in self.rows),
            "not_faster": sum(row.verdict() == "not faster" for row in self.rows),
            "not_measured": sum(row.verdict() == "not measured" for row in self.rows),
        }

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "tool": {"name": "onnx24", "version": __version__},
                "model": self.model or None,
                "target": self.target,
                "counts": {
                    "log": _pair(self.counts),
                    "dense_log": _pair(self.dense_counts),
                },
                "funnel": self.funnel,
                "noise": NOISE,
                "engine": {"layers": self.engine_layers, "reformats": self.reformats},
                "latency": self.latency.to_json() if self.latency else None,
                "dense_latency": self.dense_latency.to_json() if self.dense_latency else None,
                "profiled_ms": self.profiled_ms,
                "shares_ms": dict(self.shares_ms),
                "notes": list(self.notes),
                "rows": [row.to_json() for row in self.rows],
            }
        )


def _pair(counts: tuple[int, int] | None) -> dict[str, int] | None:
    return None if counts is None else {"eligible": counts[0], "chosen": counts[1]}


def make_ledger(
    engine: Engine,
    target: Target,
    *,
    model: Model | None = None,
    model_name: str = "",
    dense: Engine | None = None,
    shapes: Mapping[str, Profile] | None = None,
) -> Ledger:
    """Bring the files of a build together with the model it was built from.

    `dense`: an engine of the same model without sparsity, whose times are compared.
    """
    dense = dense or Engine()
    if model is None:
        rows = _rows_of_engine(engine, dense)
    else:
        layers, order = layers_of(model, target, shapes or {})
        rows = _rows_of_model(layers, order, engine, dense)
    return Ledger(
        model=model_name,
        target=target.name,
        rows=tuple(rows),
        counts=engine.log.counts if engine.log else None,
        dense_counts=dense.log.counts if dense.log else None,
        engine_layers=sum(layer.is_kernel for layer in engine.known_layers()),
        reformats=sum(layer.is_reformat for layer in engine.known_layers()),
        latency=Summary.of(engine.latencies_ms) if engine.latencies_ms else None,
        dense_latency=Summary.of(dense.latencies_ms) if dense.latencies_ms else None,
        profiled_ms=sum(t.median_ms for t in engine.profile) if engine.profile else None,
        shares_ms=_shares_ms(engine, rows),
        notes=tuple(_notes(engine, dense, rows)),
    )


def _shares_ms(engine: Engine, rows: Iterable[Row]) -> dict[str, float]:
    """Where the profiled time went. Nothing without a profile."""
    homes = {row.engine_layer for row in rows}
    moves = {layer.name for layer in engine.known_layers() if layer.is_reformat}
    shares = dict.fromkeys(("rows", "moves", "rest"), 0.0)
    for time in engine.profile:
        kind = "rows" if time.name in homes else "moves" if time.name in moves else "rest"
        shares[kind] += time.median_ms
    return shares if engine.profile else {}


def _rows_of_model(
    layers: list[ModelLayer], order: list[str], engine: Engine, dense: Engine
) -> list[Row]:
    homes = _homes(engine, order)
    dense_homes = _homes(dense, order)
    crowd = Counter(id(homes[layer.name][0]) for layer in layers if layer.name in homes)
    rows = []
    for layer in layers:
        home = homes.get(layer.name)
        if home is None:
            rows.append(Row(name=layer.name, layer=layer))
            continue
        where, nodes = home
        dense_home = dense_homes.get(layer.name)
        rows.append(
            _row(
                engine, dense, layer.name, where, dense_home[0] if dense_home else None,
                layer=layer,
                fused_with=tuple(name for name in nodes if name != layer.name),
                shares=crowd[id(where)],
            )
        )  # fmt: skip
    return rows


def _rows_of_engine(engine: Engine, dense: Engine) -> list[Row]:
    """Without a model: the layers that compute something."""
    by_name = {layer.name: layer for layer in dense.known_layers()}
    return [
        _row(
            engine, dense, layer.name, layer, by_name.get(layer.name),
            layer=None, fused_with=layer.onnx_nodes, shares=1,
        )
        for layer in engine.known_layers()
        if layer.is_kernel and not layer.is_reformat
    ]  # fmt: skip


def _row(
    engine: Engine,
    dense: Engine,
    name: str,
    where: Layer,
    dense_where: Layer | None,
    *,
    layer: ModelLayer | None,
    fused_with: tuple[str, ...],
    shares: int,
) -> Row:
    before, after = engine.reformats(where)
    return Row(
        name=name,
        layer=layer,
        engine_layer=where.name,
        kind=where.kind,
        tactic=where.tactic,
        fused_with=fused_with,
        shares=shares,
        builder_eligible=engine.is_eligible(where),
        chosen=engine.is_chosen(where),
        time_ms=_median(engine.time_of(where)),
        dense_ms=_median(dense.time_of(dense_where)) if dense_where else None,
        reformats_before=before,
        reformats_after=after,
        traffic_bytes=where.traffic_bytes(),
    )


def _median(time: LayerTime | None) -> float | None:
    return time.median_ms if time else None


def _homes(engine: Engine, order: list[str]) -> dict[str, tuple[Layer, list[str]]]:
    """Node → the layer of the engine that holds it, with all nodes of that. Of several layers that
    name a node, as a stretch that Myelin took is cut into kernels, a product's own comes first."""
    found: dict[str, tuple[Layer, list[str]]] = {}
    for layer in sorted(engine.known_layers(), key=_rank):
        for name in (nodes := nodes_of(layer, order)):
            found.setdefault(name, (layer, nodes))
    return found


_PRODUCT_KINDS = ("gemm", "correlation", "conv", "matrixmultiply", "fc", "runtime_fusion")


def _rank(layer: Layer) -> int:
    kind = layer.kind.lower()
    return 0 if any(word in kind for word in _PRODUCT_KINDS) else 1 if layer.is_kernel else 2


def _notes(engine: Engine, dense: Engine, rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    notes = []
    lost = [row.name for row in rows if row.layer is not None and not row.engine_layer]
    if lost and engine.known_layers():
        notes.append(
            f"{len(lost)} layers are in no layer of the engine by name, for instance {lost[0]!r}; "
            "build with detailed profiling verbosity"
        )
    shared = sum(row.shares > 1 for row in rows)
    if shared:
        notes.append(
            f"{shared} layers share a layer of the engine with others: its time is that of all of "
            "them together"
        )
    if engine.log is not None and engine.log.counts is None:
        notes.append("the builder's log does not say which layers it runs sparse")
    elif engine.log is not None and engine.log.eligible is None:
        notes.append("the builder's log numbers the sparse layers and does not name them")
    if engine.profile and not dense.profile:
        notes.append("no times of a dense engine: nothing is said about what sparsity gained")
    return notes
