"""The report: what happened to a model and to every weight of it, as one object.

`to_json` is documented in docs/report.md. Everything that differs between two runs of the same
command on the same files and versions is in `run`, and nowhere else.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import __version__
from onnx24.diagnostics import Diagnostic, Severity
from onnx24.ir.keys import ValueKey
from onnx24.passmgr.base import SiteRecord
from onnx24.report.jsontext import Document, json_text, plain
from onnx24.report.limits import LimitResult

if TYPE_CHECKING:
    from onnx24.analysis.coverage import Coverage, Covered
    from onnx24.ir.model import Model
    from onnx24.passmgr.manager import RunResult
    from onnx24.runtime.compare import Comparison
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

SCHEMA = 1

PRUNED, ALREADY = "O24-100", "O24-102"
NO_PRODUCT = "O24-110"

FINDINGS = ("pipeline", "passes", "coverage", "weights", "other_sites", "sites")
"""The keys of the JSON document that tell what the passes did. The model carries their digest; the
rest speaks of the written file, and so can't be in it."""


def findings_digest(document: Mapping[str, Any]) -> str:
    """sha256 of the findings of a report's JSON document. Raises: KeyError where one lacks."""
    findings = {key: document[key] for key in FINDINGS}
    return hashlib.sha256(json_text(findings, ascii_only=True).encode()).hexdigest()


SUCCESSOR = "tensor"
"""The fact of a record under which a pass says what the weight's new name is."""


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """An initializer as it stood in the input."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What identifies a model file. `nbytes` counts its data files too, which are read only where
    somebody asks for their digests: that of 6 GiB takes longer than pruning them."""

    file: str
    sha256: str
    nbytes: int
    data_paths: dict[str, Path]
    ir_version: int
    opsets: dict[str, int]
    producer: str
    nodes: int
    weights: tuple[WeightFacts, ...] = field(repr=False)

    @classmethod
    def of(cls, model: Model, file: str) -> ModelFacts:
        """The facts of a model as it was loaded; `file` is what the user called it."""
        data_paths: dict[str, Path] = {}
        if model.path is None:
            data = model.to_bytes()
            digest, nbytes = hashlib.sha256(data).hexdigest(), len(data)
        else:
            digest, nbytes = _digest(model.path)
            for location in model.external_locations():
                data_paths[location] = model.weights.external_path(location, "")
                nbytes += data_paths[location].stat().st_size
        return cls(
            file=file,
            sha256=digest,
            nbytes=nbytes,
            data_paths=data_paths,
            ir_version=model.proto.ir_version if model.changed else model.file_ir_version,
            opsets={domain or "ai.onnx": v for domain, v in sorted(model.opsets.items())},
            producer=f"{model.proto.producer_name} {model.proto.producer_version}".strip(),
            nodes=sum(len(scope.graph.node) for scope in model.scopes()),
            weights=tuple(_weight_facts(model, key) for key in model.weights),
        )

    @cached_property
    def data_files(self) -> dict[str, str]:
        """sha256 of each data file. Raises: OSError where one is gone meanwhile."""
        return {location: _digest(path)[0] for location, path in self.data_paths.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "sha256": self.sha256,
            "data_files": self.data_files,
            "ir_version": self.ir_version,
            "opsets": self.opsets,
            "producer": self.producer,
            "nodes": self.nodes,
            "bytes": self.nbytes,
            "initializers": len(self.weights),
        }


def _weight_facts(model: Model, key: ValueKey) -> WeightFacts:
    info = model.weights.info(key)
    return WeightFacts(
        scope=key.scope,
        name=key.name,
        dtype=info.dtype.name,
        shape=info.shape,
        nbytes=info.nbytes,
    )


def _digest(path: Path) -> tuple[str, int]:
    """sha256 in hex, and the size [bytes]."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest(), os.fstat(file.fileno()).st_size


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Which samples were used, for what. `use`: "calibration", "comparison" or both."""

    use: str
    description: str
    samples: int
    sha256: str
    is_random: bool

    @classmethod
    def of(cls, data: Calibration, use: str) -> DataFacts:
        return cls(
            use=use,
            description=data.describe(),
            samples=len(data),
            sha256=data.digest(),
            is_random=data.is_random,
        )

    def to_json(self) -> dict[str, Any]:
        out = dict(vars(self))
        out["random"] = out.pop("is_random")
        return out


@dataclass(frozen=True, kw_only=True)
class WeightLine:
    """One weight and everything that happened to it, in the order of the passes.

    eligible: by the target, None where nothing judged it. code, reason: the verdict's. is_sparse:
    whether what became of it is 2:4.
    """

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    in_input: bool
    eligible: bool | None
    code: str
    reason: str
    is_sparse: bool
    steps: tuple[SiteRecord, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_bystander(self) -> bool:
        """No matrix product's weight, and nothing was done to it."""
        return not self.eligible and all(step.code == NO_PRODUCT for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name}
        if self.scope:
            out["scope"] = self.scope
        if self.in_input:
            out |= {"dtype": self.dtype, "shape": list(self.shape), "elements": self.elements}
        out["in_input"] = self.in_input
        if self.eligible is not None:
            out["verdict"] = {"eligible": self.eligible, "code": self.code, "reason": self.reason}
        out["sparse"] = self.is_sparse
        out["steps"] = [_step(step) for step in self.steps]
        return out


def _step(record: SiteRecord) -> dict[str, Any]:
    out = record.to_json()
    for key in ("weight", "scope"):
        out.pop(key, None)
    return plain(out)


@dataclass(frozen=True, kw_only=True)
class Report(Document):
    """One run of the compiler. `coverage` is the result's. `backend` and `run` are as their makers
    describe them. output: None where no file was written; with `written` it went to standard
    output."""

    command: str
    status: str
    source: ModelFacts
    output: ModelFacts | None
    target: Mapping[str, Any]
    pipeline: str
    data: tuple[DataFacts, ...]
    passes: tuple[Mapping[str, Any], ...]
    coverage: Coverage
    weights: tuple[WeightLine, ...]
    other_sites: tuple[SiteRecord, ...]
    sites: tuple[str, ...]
    comparison: Mapping[str, Any] | None
    limits: tuple[LimitResult, ...]
    protection: Mapping[str, Any] | None
    recovery: Mapping[str, Any] | None
    backend: Mapping[str, Any] | None
    diagnostics: tuple[Diagnostic, ...]
    run: Mapping[str, Any]
    written: bool = True
    version: str = __version__

    def at_least(self, severity: Severity) -> list[Diagnostic]:
        return [d for d in self.diagnostics if d.severity >= severity]

    def findings(self) -> dict[str, Any]:
        """What the passes did, as in `to_json`."""
        return plain(
            {
                "pipeline": self.pipeline,
                "passes": self.passes,
                "coverage": self.coverage.to_json(),
                "weights": [line.to_json() for line in self.weights],
                "other_sites": [record.to_json() for record in self.other_sites],
                "sites": self.sites,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The document of docs/report.md. Digests the input's and the output's data files."""
        findings = self.findings()
        return plain(
            {
                "schema": SCHEMA,
                "tool": {"name": "onnx24", "version": self.version},
                "command": self.command,
                "status": self.status,
                "input": self.source.to_json(),
                "output": self.output.to_json() if self.output else None,
                "target": self.target,
                "pipeline": findings["pipeline"],
                "data": [d.to_json() for d in self.data],
                **{key: findings[key] for key in FINDINGS if key != "pipeline"},
                "comparison": self.comparison,
                "limits": [limit.to_json() for limit in self.limits],
                "protection": self.protection,
                "recovery": self.recovery,
                "backend": self.backend,
                "diagnostics": [d.to_json() for d in self.diagnostics],
                "run": self.run,
            }
        )


def build_report(
    *,
    command: str,
    source: ModelFacts,
    result: RunResult,
    target: Target,
    found: Covered,
    status: str = "done",
    output: ModelFacts | None = None,
    written: bool = True,
    verdicts: Mapping[ValueKey, Any] | None = None,
    data: Sequence[DataFacts] = (),
    comparison: Comparison | None = None,
    limits: Sequence[LimitResult] = (),
    protection: Mapping[str, Any] | None = None,
    recovery: Mapping[str, Any] | None = None,
    backend: Mapping[str, Any] | None = None,
    diagnostics: Sequence[Diagnostic] = (),
    run: Mapping[str, Any] | None = None,
) -> Report:
    """Put a run's pieces together.

    found: of the result (analysis.coverage).
    verdicts: eligibility of the *input's* weights (objects with eligible, code, reason and facts).
    diagnostics: those that no pass made; a pass's own come with `result`. `run`: whatever is not
    deterministic; the seconds of passes and backend are moved there.
    """
    lines, others = _ledger(source, result.records, verdicts or {}, found)
    passes: list[dict[str, Any]] = []
    seconds: list[dict[str, Any]] = []
    for item in result.passes:
        entry = dict(item.to_json())
        timing: dict[str, Any] = {
            key: entry.pop(key)
            for key in ("seconds", "layer_seconds", "resumed", "peak_bytes")
            if key in entry
        }
        passes.append(entry)
        seconds.append({"pass": item.name, **timing})
    times: dict[str, Any] = {**(run or {}), "passes": seconds}
    if result.guard is not None:
        times["guard"] = result.guard.to_json()
    if recovery is not None:
        times["recovery"] = {"seconds": recovery["seconds"]}
        recovery = {k: v for k, v in recovery.items() if k not in ("seconds", "diagnostics")}
    if backend is not None:
        times["backend"] = {k: v for k, v in backend.items() if k == "seconds"}
        backend = {k: v for k, v in backend.items() if k != "seconds"}
    return Report(
        command=command,
        status=status,
        source=source,
        output=output,
        written=written,
        target=target.to_json(),
        pipeline=result.pipeline_text,
        data=tuple(data),
        passes=tuple(passes),
        coverage=found.coverage,
        weights=tuple(lines),
        other_sites=tuple(others),
        sites=tuple(result.sites),
        comparison=None if comparison is None else comparison.to_json(),
        limits=tuple(limits),
        protection=protection,
        recovery=recovery,
        backend=backend,
        diagnostics=(*result.diagnostics, *diagnostics),
        run=times,
    )


def _ledger(
    source: ModelFacts,
    records: Sequence[SiteRecord],
    verdicts: Mapping[ValueKey, Any],
    found: Covered,
) -> tuple[list[WeightLine], list[SiteRecord]]:
    """One line for every weight of the input, then for weights that only passes name; and the
    records that name no weight."""
    own = {ValueKey(w.scope, w.name): w for w in source.weights}
    own |= {key: _facts_of(key, verdicts[key]) for key in verdicts if key not in own}
    steps: dict[ValueKey, list[SiteRecord]] = {key: [] for key in own}
    others = []
    successors: dict[ValueKey, ValueKey] = {}
    names: dict[ValueKey, list[ValueKey]] = {}
    for record in records:
        if not record.weight:
            others.append(record)
            continue
        key = _weight_of(record, own)
        key = successors.get(key, key)
        steps.setdefault(key, []).append(record)
        if SUCCESSOR in record.facts:
            successor = ValueKey(record.scope, str(record.facts[SUCCESSOR]))
            successors[successor] = key
            names.setdefault(key, []).append(successor)
    lines = []
    for key, happened in steps.items():
        facts, verdict = own.get(key), verdicts.get(key)
        lines.append(
            WeightLine(
                scope=key.scope,
                name=key.name,
                dtype=facts.dtype if facts else "",
                shape=facts.shape if facts else (),
                in_input=facts is not None,
                eligible=None if verdict is None else bool(verdict.eligible),
                code="" if verdict is None else verdict.code,
                reason="" if verdict is None else verdict.reason,
                is_sparse=_became_24(key, names.get(key, ()), happened, found),
                steps=tuple(happened),
            )
        )
    return lines, others


def _facts_of(key: ValueKey, verdict: Any) -> WeightFacts:
    """A weight that is no initializer: a Constant node, or computed."""
    shape, dtype = tuple(verdict.facts["shape"]), verdict.facts["dtype"]
    return WeightFacts(scope=key.scope, name=key.name, dtype=dtype, shape=shape, nbytes=0)


def _became_24(
    key: ValueKey, successors: Iterable[ValueKey], steps: Sequence[SiteRecord], found: Covered
) -> bool:
    """By the values that the result holds under one of the weight's names. Where a pass gave it
    another without a word, by what was done to it."""
    known = [name for name in (key, *successors) if name in found.patterns]
    if known:
        return all(found.patterns[name] for name in known)
    return any(step.code in (PRUNED, ALREADY) for step in steps)


def _weight_of(record: SiteRecord, own: Mapping[ValueKey, WeightFacts]) -> ValueKey:
    """The weight that a record means: a node in a body may read a weight of an outer scope."""
    scope = record.scope
    while (key := ValueKey(scope, record.weight)) not in own and scope:
        scope = scope.rpartition("/")[0]
    return key if key in own else ValueKey(record.scope, record.weight)
