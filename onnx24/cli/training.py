"""`recover`: training a compressed model to give the dense model's outputs again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from onnx24.cli import options as o
from onnx24.cli.command import Command
from onnx24.cli.console import Console
from onnx24.cli.files import (
    STANDARD_STREAM,
    check_distinct,
    check_model_output,
    check_reports,
    output_path,
    source_of,
    write_text,
)
from onnx24.cli.options import flag
from onnx24.driver.usage import usage

if TYPE_CHECKING:
    from onnx24.driver.recovering import Recovery

_RECIPE = (
    *("steps", "batch", "micro_batch", "learning_rate", "rate", "optimizer", "loss", "relations"),
    *("masks", "parts", "schedule", "scales", "precision", "ema", "patience"),
)
"""The fields that are a recipe's."""


@dataclass(frozen=True, kw_only=True)
class Recover(o.ImageFlags, Command):
    """Train a compressed model to give the dense model's outputs again, without labels.

    Only values of initializers change; weights that are 2:4 stay so. A tenth of the samples is
    held out, and the weights of the least divergence on it are kept. Needs torch (onnx24[train]).
    Several processes train together: torchrun --nproc-per-node 2 --no-python onnx24 recover …
    """

    model: o.ModelPath
    teacher: Annotated[
        str, flag("--teacher", "DENSE", "The dense model, whose outputs are learnt.")
    ]
    data: Annotated[str, flag("--data", "DATA", f"Samples to train on. {o.DATA_FORMS}")]
    output: o.Output = None
    labels: Annotated[
        str | None, flag("--labels", "FILE.npy", "The right class of each sample, as integers.")
    ] = None
    recipe: Annotated[
        Literal["basic", "progressive", "sparse-qat"],
        flag(
            "--recipe",
            "",
            "Train under the masks that are there; prune in parts while training; or train through "
            "fake quantizers.",
        ),
    ] = "basic"
    steps: Annotated[int, flag("--steps", "N", "Steps.", min=1)] = 200
    batch: Annotated[int, flag("--batch", "N", "Samples a step.", min=1)] = 32
    micro_batch: Annotated[
        int,
        flag(
            "--micro-batch",
            "N",
            "Samples that are run at once, their gradients summed; 0: the whole batch.",
            min=0,
        ),
    ] = 0
    learning_rate: Annotated[
        float,
        flag(
            "--learning-rate",
            "X",
            "At the first step; 0: 0.001, or less for a start that is close.",
        ),
    ] = 0.0
    rate: Annotated[
        Literal["linear", "cosine", "constant"],
        flag("--rate", "", "How the learning rate falls to 0."),
    ] = "linear"
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"], flag("--optimizer", "", "What takes the steps.")
    ] = "adam"
    loss: Annotated[
        Literal["auto", "kl", "mse"],
        flag(
            "--loss",
            "",
            "How outputs are compared: by the divergence of their softmaxes, or by squares.",
        ),
    ] = "auto"
    relations: Annotated[
        float,
        flag("--relations", "X", "Weight of the last attention's query, key and value relations."),
    ] = 0.0
    masks: Annotated[
        Literal["fixed", "recomputed"],
        flag("--masks", "", "Keep the masks, or choose them as it goes."),
    ] = "fixed"
    parts: Annotated[int, flag("--parts", "N", "Parts of progressive pruning.", min=1)] = 2
    schedule: Annotated[
        Literal["linear", "cubic"],
        flag("--schedule", "", "How sparsity grows over the parts."),
    ] = "linear"
    scales: Annotated[
        Literal["calibrated", "learned"],
        flag("--scales", "", "Keep the quantizers' scales, or train them too."),
    ] = "calibrated"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "auto"],
        flag(
            "--precision",
            "",
            "What the model is computed in while it is trained; weights stay in FP32.",
        ),
    ] = "fp32"
    device: Annotated[str, flag("--device", "cpu|cuda", "Where the model is trained.")] = "cpu"
    ema: Annotated[float, flag("--ema", "X", "Keep the weights' running mean of this decay.")] = 0.0
    patience: Annotated[
        int,
        flag(
            "--patience",
            "N",
            "Stop after N evaluations (each 25 steps) that are no better; 0: never.",
            min=0,
        ),
    ] = 0
    target: o.TargetName = o.DEFAULT_TARGET
    seed: Annotated[int, flag("--seed", "N", "Decides the order of samples.", min=0)] = 0
    shapes: o.Shapes = None
    work_dir: Annotated[
        str | None,
        flag(
            "--work-dir",
            "DIR",
            "Keep checkpoints here, so that a run that was stopped goes on with them.",
        ),
        o.KEEPS,
    ] = None
    report: Annotated[
        list[str] | None,
        flag(
            "--report",
            "FILE",
            "Write the result with its loss curve as .json, .txt or .html. May be repeated.",
        ),
        o.WRITES,
    ] = None
    external: o.External = "auto"
    json: o.Json = False

    def run(self) -> int:
        """Of several processes (torchrun), all train and rank 0 writes and speaks."""
        from onnx24.driver.recovering import recover
        from onnx24.recovery.ranks import is_first

        if STANDARD_STREAM in (self.teacher, self.data):
            raise usage("--teacher and --data read no standard input", "give paths")
        out = output_path(self.output, self.model)
        self._check_paths(out)
        console = Console(as_json=self.json, stdout_is_taken=True)
        found = recover(
            source_of(self.model),
            teacher=source_of(self.teacher),
            data=self.samples(self.data),
            recipe=self.recipe,
            labels=self.labels,
            output=None if out == STANDARD_STREAM else out,
            target=self.target,
            seed=self.seed,
            shapes=self.shapes,
            work_dir=self.work_dir,
            device=self.device,
            external=self.external,
            progress=console,
            **{name: getattr(self, name) for name in _RECIPE},
        )
        if is_first():
            for path in self.report or []:
                write_text(path, _rendered(found, Path(path).suffix.lower()))
            console.made(found, out)
        return 0

    def _check_paths(self, out: str) -> None:
        """Before anything is computed."""
        reports = self.report or []
        check_model_output(out, as_json=self.json, external=self.external)
        check_distinct([("-o", out), *(("--report", path) for path in reports)])
        check_reports(reports)


def _rendered(found: Recovery, ending: str) -> str:
    from onnx24.report.jsontext import json_text
    from onnx24.report.recovery import render_recovery

    if ending == ".json":
        return json_text(found.document)
    return render_recovery(dict(found.document)) if ending == ".html" else found.text + "\n"
