"""Training a compressed model to give the dense model's outputs again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24 import targets
from onnx24.diagnostics import Severity, diagnostic
from onnx24.driver.effort import Effort
from onnx24.driver.models import ModelLike, load
from onnx24.driver.progress import ProgressLike, reporter
from onnx24.driver.result import MadeAndDocumented, PathLike
from onnx24.driver.samples import Samples, ShapesLike, load_samples, profiles_of, split_of
from onnx24.errors import InputError
from onnx24.ir.model import External
from onnx24.lines import Block, block
from onnx24.passmgr.provenance import data_digest, record_step
from onnx24.report.model import ModelFacts

if TYPE_CHECKING:
    import numpy as np

    from onnx24.recovery.trainer import Recovered
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
    labels: np.ndarray | PathLike | None = None,
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
        labels=_labels(labels),
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
    if samples.is_random:
        text = f"{samples.describe()}: trained on them, the model is good for nothing else"
        found.diagnostics.append(diagnostic("O24-034", text, severity=Severity.WARNING))
    name = source.name if output is None else os.fspath(output)
    return Recovery(
        compiled=made,
        name=name,
        recovered=found,
        text=recovery_text(found),
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


def _labels(labels: Any) -> np.ndarray | None:
    """Integers, or those of an .npy. Raises: InputError O24-030."""
    if labels is None:
        return None
    import numpy as np

    file = ""
    if isinstance(labels, str | os.PathLike):
        file = os.fspath(labels)
        try:
            labels = np.load(Path(file), allow_pickle=False)
        except (OSError, ValueError, EOFError) as err:
            raise InputError.of("O24-030", f"labels: {err}", file=file) from err
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise InputError.of("O24-030", "labels are an .npy of integers", file=file)
    return labels


def recovery_text(found: Recovered) -> Block:
    """The result in a few lines, with the held-out curve."""
    kinds = ", ".join(f"{name} by {kind}" for name, kind in found.outputs.items())
    apart = "" if found.is_divided else " (too few to hold any out: the same)"
    lines = [
        f"recipe {found.recipe.name}, {found.steps} of {found.recipe.steps} steps in "
        f"{found.seconds:.0f} s, learning rate {found.learning_rate:.3g}; {kinds}",
        f"{found.samples} samples to train on, {found.held_out_samples} held out{apart}",
        f"held-out divergence {found.before:.4g} before, {found.after:.4g} after "
        f"(step {found.best_step})",
        f"{found.changed} initializers changed, {len(found.weights)} trained weights are 2:4",
    ]
    if found.resumed_at:
        lines.append(f"went on from a checkpoint at step {found.resumed_at}")
    losses = dict(found.losses)
    lines += [
        f"  step {step:>6}  training loss {losses.get(step - 1, float('nan')):.4g}  held out "
        f"{value:.4g}"
        for step, value in found.held_out
    ]
    return block(lines)
