"""Training a compressed model to give the dense model's outputs again."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import targets
from onnx24.diagnostics import Severity, diagnostic
from onnx24.driver.effort import Effort, seconds_of
from onnx24.driver.models import ModelLike, load
from onnx24.driver.progress import ProgressLike, Reporter, reporter
from onnx24.driver.result import MadeAndDocumented, PathLike
from onnx24.driver.samples import Samples, ShapesLike, load_samples, profiles_of, split_of
from onnx24.driver.scoring import LabelsLike, labels_of
from onnx24.driver.usage import usage
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import External, Model
from onnx24.layerwise.prune import HELD_BACK
from onnx24.passmgr.base import SiteRecord
from onnx24.passmgr.manager import PIPELINE_KEY
from onnx24.passmgr.provenance import data_digest, record_step
from onnx24.recovery.recipes import Recipe
from onnx24.report.model import SUCCESSOR, ModelFacts
from onnx24.report.recovery import recovery_text

if TYPE_CHECKING:
    from onnx24.recovery.trainer import Recovered
    from onnx24.runtime.data import Calibration
    from onnx24.runtime.split import Split
    from onnx24.targets import Target


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery(MadeAndDocumented):
    """The trained model, and how it went: `recovered` has the loss curve."""

    recovered: Recovered


def recover(
    model: ModelLike,
    *,
    teacher: ModelLike,
    data: Samples,
    recipe: str = "basic",
    labels: LabelsLike = None,
    output: PathLike | None = None,
    target: str | Target = targets.DEFAULT,
    seed: int = 0,
    shapes: ShapesLike = None,
    work_dir: PathLike | None = None,
    device: str = "cpu",
    external: External = "auto",
    progress: ProgressLike = None,
    **options: Any,
) -> Recovery:
    """Train a compressed model to give the dense model's outputs again, without labels.

    Only values of initializers change; weights that are 2:4 stay so. A tenth of the samples is
    held out, and the weights of the least divergence on it are kept. Needs torch (onnx24[train]).

    teacher: the dense model. data: samples to train on (docs/api.md says in which forms). recipe:
    "basic", "progressive" or "sparse-qat"; options: fields of `onnx24.recovery.recipes.Recipe`,
    such as steps, batch and learning_rate. labels: the right class of each sample, as integers.
    work_dir: where checkpoints go. Of several processes (torchrun) all must call this, and rank 0
    writes `output`.

    Raises: InputError; BackendError O24-155 without torch, O24-159.

    >>> import numpy as np, onnx24
    >>> from onnx24.testing.generate import mlp
    >>> dense, x = mlp([64, 32]), np.random.default_rng(0).standard_normal((64, 64), np.float32)
    >>> found = onnx24.recover(onnx24.prune24(dense), teacher=dense, data={"x": x}, steps=20)
    >>> found.recovered.steps, found.recovered.after <= found.recovered.before
    (20, True)
    """
    from onnx24.recovery.ranks import is_first
    from onnx24.recovery.recipes import recipe as recipe_of

    plan = recipe_of(recipe, {**options, "seed": seed})
    folder = Effort(work_dir=work_dir).folder()
    from onnx24.recovery.trainer import recover as train  # imports torch, which may be missing

    row = targets.load(target)
    source, dense = load(model), load(teacher)
    made, original = source.load(), dense.load()
    facts = ModelFacts.of(made, source.name)
    samples = load_samples(data, made, profiles_of(shapes), seed)
    split = split_of(samples)
    found = train(
        made,
        original,
        samples,
        plan,
        target=row,
        labels=labels_of(labels),
        work_dir=folder,
        progress=reporter(progress).progress,
        device=device,
    )
    if is_first():
        record_step(
            made,
            f"recover{{{plan.name} steps={plan.steps}}}",
            source_sha256=facts.sha256,
            source_data_sha256=data_digest(facts.data_files),
            samples_sha256=split.fitted.digest(),
            held_out_sha256=split.digest(),
        )
        if output is not None:
            made.save(output, external=external)
    found.diagnostics.extend(samples.doubts)
    if samples.is_random:
        text = f"{samples.describe()}: trained on them, the model is good for nothing else"
        found.diagnostics.append(diagnostic("O24-034", text, severity=Severity.WARNING))
    name = source.name if output is None else os.fspath(output)
    return Recovery(
        compiled=made,
        name=name,
        recovered=found,
        text=recovery_text(found.to_json(), found.seconds),
        diagnostics=tuple(found.diagnostics),
        document={
            "model": source.name,
            "teacher": dense.name,
            "output": None if output is None else name,
            "data": samples.describe(),
            "target": row.name,
            "recovery": found.to_json(),
        },
    )


# --- within compile -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What training back may take: so many steps, or so many seconds where those are not 0."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, given: float | str) -> Budget:
        """A count of steps, "200steps", or a time such as "5min". Raises: InputError O24-043."""
        match = re.fullmatch(r"\s*(\d+)\s*(?:steps?)?\s*", str(given))
        if match is None:
            return cls(seconds=seconds_of(given, "--recover"))
        if not int(match[1]):
            raise usage(f"--recover {given}", "a number of steps, or a time such as 5min")
        return cls(steps=int(match[1]))

    @property
    def recipe(self) -> Recipe:
        """`basic`, which stops where the held-out divergence no longer falls."""
        steps = self.steps or Recipe.steps
        return Recipe(steps=steps, eval_every=min(25, max(1, steps // 8)), patience=PATIENCE)


PATIENCE = 6
"""Evaluations without a better one, after which training stops."""


def require_recoverable(original: Model, split: Split | None) -> None:
    """Look before hours of work whether a model could be trained back.

    Raises: InputError O24-043 without real samples, and as `require_trainable`; BackendError
    O24-155 without torch.
    """
    from onnx24.recovery.trainer import require_trainable

    if split is None or not split.is_divided or split.fitted.is_random:
        raise usage(
            "--recover needs 16 real samples or more, in runs that can be divided",
            "pass --calib DATA with more samples; random ones teach nothing",
        )
    require_trainable(original, next(split.fitted.batches(original)))


def train_back(
    made: Model,
    original: Model,
    budget: Budget,
    *,
    fitted: Calibration,
    records: Sequence[SiteRecord],
    target: Target,
    folder: Path | None,
    shows: Reporter,
) -> Recovered | None:
    """Train what passes made of a model, in place. fitted: the samples that they fitted; what
    prune24 held back of them judges here as well. records: what they say of each layer; those that
    err most get time first. Returns: None where no layer was pruned or quantized."""
    from onnx24.recovery.trainer import is_quantized
    from onnx24.recovery.trainer import recover as train

    if not made.claims and not is_quantized(made):
        return None

    fit, judge = fitted.split(1 - HELD_BACK)
    found = train(
        made,
        original,
        fit,
        budget.recipe,
        target=target,
        work_dir=folder,
        progress=shows.progress,
        judge=judge,
        first=most_wrong(records),
        seconds=budget.seconds,
    )
    step = f"recover{{{found.recipe.name} steps={found.recipe.steps}}}"
    made.metadata[PIPELINE_KEY] = ",".join(filter(None, (made.metadata.get(PIPELINE_KEY), step)))
    return found


def most_wrong(records: Sequence[SiteRecord]) -> list[ValueKey]:
    """The fewest weights that make up half of what all layers' outputs err, by what pruning and
    quantization measured of each: relative errors, added as squares."""
    now: dict[ValueKey, ValueKey] = {}
    errors: dict[ValueKey, float] = {}
    for record in records:
        if not record.weight:
            continue
        key = ValueKey(record.scope, record.weight)
        first = next((old for old, new in now.items() if new == key), key)
        now[first] = ValueKey(record.scope, str(record.facts.get(SUCCESSOR, key.name)))
        error = record.facts.get("output_error", 0.0) ** 2
        if "sqnr_db" in record.facts:
            error += 10 ** (-record.facts["sqnr_db"] / 10)
        errors[first] = errors.get(first, 0.0) + error
    order = sorted(errors, key=lambda key: -errors[key])
    chosen: list[ValueKey] = []
    left = sum(errors.values()) / 2
    for key in order:
        if left <= 0:
            break
        chosen.append(now[key])
        left -= errors[key]
    return chosen
