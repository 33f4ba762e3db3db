"""Layers that 2:4 did not make faster go back to their dense weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24.diagnostics import Diagnostic
from onnx24.driver.models import ModelLike, Source, load
from onnx24.driver.progress import ProgressLike, reporter
from onnx24.driver.result import MadeAndDocumented, PathLike
from onnx24.driver.samples import (
    DataLike,
    ShapesLike,
    load_samples,
    profiles_of,
)
from onnx24.driver.usage import usage
from onnx24.errors import InputError
from onnx24.ir.inputs import regular
from onnx24.ir.model import Model
from onnx24.ir.verify import Interface, verify
from onnx24.layerwise.dense import KeptDense
from onnx24.ledger.dense_again import FromModel, FromWorkDir, Origin
from onnx24.ledger.profit_gate import all_dense_again, brought_back, gate, render_gate, rows_of
from onnx24.passmgr.provenance import data_digest, record_step
from onnx24.report.model import ModelFacts
from onnx24.runtime.compare import Comparison, compare
from onnx24.runtime.split import judging

if TYPE_CHECKING:
    from onnx24.ledger.profit_gate import Decision


@dataclass(frozen=True, kw_only=True, eq=False)
class Gated(MadeAndDocumented):
    """The model with dense weights where 2:4 gained nothing. decisions: one a weight."""

    decisions: Sequence[Decision]


def give_back(
    model: ModelLike,
    *,
    ledger: PathLike,
    work_dir: PathLike | None = None,
    dense: ModelLike | None = None,
    output: PathLike | None = None,
    noise: float = 0.03,
    data: DataLike = None,
    seed: int = 0,
    shapes: ShapesLike = None,
    progress: ProgressLike = None,
) -> Gated:
    """Give layers that 2:4 did not make faster their dense weights back (`onnx24 gate`).

    A weight stays 2:4 where one of its layers is faster, and where one was not measured. The dense
    values come from `work_dir`, where they lie as they were right before pruning, or from `dense`,
    which is refused for weights whose channels were scaled or permuted since. With `data` the
    sparse and the gated model are both compared with the dense one, or with the model as it is with
    all its dense weights.

    ledger: its JSON, with the times of a sparse and a dense engine. noise: a layer is faster where
    its time falls by more than this share.

    Raises: InputError.

    >>> import json, pathlib, onnx24
    >>> from onnx24.testing.generate import mlp
    >>> dense = mlp([64, 32])
    >>> rows = [{"name": "m0", "model": {"weight": "fc0.weight"}, "gain": 1.0}]
    >>> _ = pathlib.Path("ledger.json").write_text(json.dumps({"rows": rows}))
    >>> gated = onnx24.give_back(onnx24.prune24(dense), ledger="ledger.json", dense=dense)
    >>> onnx24.diff(dense, gated).values
    []
    """
    kept = _kept(work_dir, has_dense=dense is not None)
    rows = rows_of(_text(os.fspath(ledger)), os.fspath(ledger))
    profiles = profiles_of(shapes)
    source = load(model)
    made = source.load()
    original = load(dense) if dense is not None else None
    reference = original.load() if original is not None else None
    origins: list[Origin] = [FromWorkDir(kept)] if kept is not None else []
    origins += [FromModel(reference)] if reference is not None else []
    samples = load_samples(data, reference or made, profiles, seed)
    told: list[Diagnostic] = []
    if samples is not None:
        samples, _, told = judging(samples, made)
    shows = reporter(progress)
    comparisons: dict[str, Comparison] = {}
    said = "the dense model"
    if samples is not None:
        if reference is None:
            reference, said = _without_24(source, origins)
        with shows.waiting("comparing the sparse model with the dense one"):
            comparisons["sparse"] = compare(reference, made, samples)
    facts = ModelFacts.of(made, source.name)
    interface = Interface.of(made)
    decisions = gate(made, origins, rows, noise=noise)
    problems = verify(made, interface)
    if problems:
        raise InputError(problems)
    if samples is not None and reference is not None:
        with shows.waiting("comparing the gated model with the dense one"):
            comparisons["gated"] = compare(reference, made, samples)
    if any(decision.action == "dense again" for decision in decisions):
        record_step(
            made,
            "gate",
            source_sha256=facts.sha256,
            source_data_sha256=data_digest(facts.data_files),
        )
    if output is not None:
        made.save(output)
    name = source.name if output is None else os.fspath(output)
    return Gated(
        compiled=made,
        name=name,
        decisions=decisions,
        text=render_gate(decisions, comparisons, said),
        diagnostics=(*told, *(comparisons["gated"].findings() if comparisons else ())),
        document={
            "model": source.name,
            "dense": None if original is None else original.name,
            "work_dir": None if work_dir is None else os.fspath(work_dir),
            "ledger": os.fspath(ledger),
            "output": None if output is None else name,
            "noise": noise,
            "weights": [decision.to_json() for decision in decisions],
            "reference": said if comparisons else None,
            "comparisons": {name: found.to_json() for name, found in comparisons.items()},
            "brought_back": brought_back(comparisons),
        },
    )


def _kept(work_dir: PathLike | None, *, has_dense: bool) -> KeptDense | None:
    """Raises: InputError where dense values come from nowhere."""
    if work_dir is None:
        if not has_dense:
            raise usage(
                "gate needs the dense weights",
                "pass --work-dir as `compile` had it, or --dense MODEL",
            )
        return None
    kept = KeptDense(Path(work_dir))
    if not kept.folder.is_dir():
        raise usage(
            f"--work-dir {os.fspath(work_dir)} holds no dense weights: there is no {kept.folder}",
            "`compile --work-dir DIR` and `prune24 --work-dir DIR` keep them there",
        )
    return kept


def _without_24(source: Source, origins: list[Origin]) -> tuple[Model, str]:
    """The compiled model with its dense weights, in whatever types it has."""
    model = source.load()
    back, total = all_dense_again(model, origins)
    of = "all" if back == total else f"{back} of {total}"
    return model, f"the compiled model with {of} weights dense again"


def _text(path: str) -> str:
    try:
        return regular(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is no text"
        raise InputError.of("O24-048", reason or str(err), file=path) from err
