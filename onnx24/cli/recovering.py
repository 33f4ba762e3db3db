"""`onnx24 recover`: training a compressed model to give the dense model's outputs again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24.backends.base import parse_shapes
from onnx24.cli.console import Console
from onnx24.cli.files import (
    STANDARD_STREAM,
    check_distinct,
    check_model_output,
    check_output,
    output_path,
    source_of,
)
from onnx24.diagnostics import Severity, diagnostic
from onnx24.driver.effort import Effort
from onnx24.driver.models import Source
from onnx24.driver.samples import load_samples, split_of
from onnx24.driver.usage import usage
from onnx24.errors import InputError
from onnx24.passmgr.provenance import data_digest, record_step
from onnx24.report.model import ModelFacts

if TYPE_CHECKING:
    import numpy as np

    from onnx24.recovery.trainer import Recovered


@dataclass(frozen=True, kw_only=True)
class RecoverRequest:
    """`recover`, as the user wrote it."""

    model: str
    teacher: str
    data: str
    output: str | None
    labels: str | None
    recipe: str
    options: dict[str, Any]
    target: str
    seed: int
    shapes: tuple[str, ...]
    work_dir: str | None
    reports: tuple[str, ...]
    external: str
    as_json: bool
    device: str = "cpu"


def recover_model(request: RecoverRequest) -> int:
    """Returns: 0. Of several processes (torchrun), all train and rank 0 writes and speaks.
    Raises: InputError; BackendError O24-155, O24-159."""
    from onnx24.recovery.ranks import is_first
    from onnx24.recovery.recipes import recipe

    if STANDARD_STREAM in (request.teacher, request.data):
        raise usage("--teacher and --data read no standard input", "give paths")
    plan = recipe(request.recipe, {**request.options, "seed": request.seed})
    folder = Effort(work_dir=request.work_dir).folder()
    source = source_of(request.model)
    out = output_path(request.output, request.model)
    _check_paths(request, source, out)

    from onnx24.recovery.trainer import recover  # imports torch, which may be missing
    from onnx24.targets import load

    target = load(request.target)
    model, teacher = source.load(), source_of(request.teacher).load()
    facts = ModelFacts.of(model, request.model)
    samples = load_samples(request.data, model, parse_shapes(request.shapes), request.seed)
    console = Console(as_json=request.as_json, stdout_is_taken=True)
    found = recover(
        model,
        teacher,
        samples,
        plan,
        target=target,
        labels=_labels(request.labels),
        work_dir=folder,
        progress=console.progress,
        device=request.device,
    )
    if not is_first():
        return 0
    split = split_of(samples)
    record_step(
        model,
        f"recover{{{plan.name} steps={plan.steps}}}",
        source_sha256=facts.sha256,
        source_data_sha256=data_digest(facts.data_files),
        samples_sha256=split.fitted.digest(),
        held_out_sha256=split.digest(),
    )
    model.save(out, external=request.external)  # type: ignore[arg-type]
    if samples.is_random:
        text = f"{samples.describe()}: trained on them, the model is good for nothing else"
        found.diagnostics.append(diagnostic("O24-034", text, severity=Severity.WARNING))
    document = {
        "model": request.model,
        "teacher": request.teacher,
        "output": out,
        "data": samples.describe(),
        "target": request.target,
        "recovery": found.to_json(),
    }
    for path in request.reports:
        _write_report(path, document, found)
    if request.as_json:
        console.document(document)
    else:
        console.note(f"{out}\n{recovery_text(found)}")
    console.diagnostics(found.diagnostics)
    return 0


def _check_paths(request: RecoverRequest, source: Source, out: str) -> None:
    """Before anything is computed."""
    check_model_output(out, request.model, as_json=request.as_json, external=request.external)
    check_distinct([("-o", out), *(("--report", path) for path in request.reports)])
    for path in request.reports:
        if Path(path).suffix.lower() not in (".json", ".txt", ".html"):
            raise usage(
                f"--report {path}: expected a name that ends in .json, .txt or .html",
                "the ending chooses the form",
            )
        check_output(path, request.model)
    for path in (out, *request.reports):
        if path != STANDARD_STREAM:
            check_output(path, request.teacher)


def _labels(path: str | None) -> np.ndarray | None:
    """The integers of an .npy. Raises: InputError O24-030."""
    if path is None:
        return None
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise InputError.of("O24-030", f"labels: {err}", file=path) from err
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu":
        raise InputError.of("O24-030", "labels are an .npy of integers", file=path)
    return found


def _write_report(path: str, document: dict[str, Any], found: Recovered) -> None:
    from onnx24.ir.files import atomic_write
    from onnx24.report.jsontext import json_text
    from onnx24.report.recovery import render_recovery

    ending = Path(path).suffix.lower()
    if ending == ".json":
        text = json_text(document)
    elif ending == ".html":
        text = render_recovery(document)
    else:
        text = recovery_text(found) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def recovery_text(found: Recovered) -> str:
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
    return "\n".join(lines)
