"""The variants that the study compares, and how each is made from a dense model.

benchmarks/methods.py has variants of the same names for the vision and generation studies. They
differ: those begin with `canonicalize,upgrade-opset{to=13},smooth-quant`, these with `canonicalize`
alone; magnitude is spelled `method=magnitude refit=false` there, `quality=magnitude` here (the same
weights but for the last bit); for sparse-qat `recover` inserts the quantizers there, `qdq` before
it here; learning rates are the recipe's own there, or one tried beside it, chosen for each variant
here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.recovery.recipes import recipe
from onnx24.recovery.trainer import recover
from onnx24.runtime.data import Calibration
from onnx24.targets import DEFAULT, Target, load

TARGET: Target = load(DEFAULT)
MAGNITUDE = "canonicalize,prune24{quality=magnitude permute=off}"
ONE_SHOT = "canonicalize,prune24"
QUANTIZED = "canonicalize,qdq"
BOTH = "canonicalize,prune24,qdq"
FINISH = {
    "fp32": "",
    "fp16": "canonicalize,cast16",
    "int8": "canonicalize,qdq,fold-qdq",
    "qat": "fold-qdq",
}
"""Precision → the pipeline that comes last; `qat`: of a model that holds quantizers already."""


@dataclass(frozen=True)
class Method:
    """start: the pipeline before training; train: the recipe's name, none where nothing is trained;
    options: its fields, other ones where a task has its own; precisions: what the result is
    written in."""

    name: str
    start: str = ""
    train: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("fp16", "int8")
    of_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def for_task(self, task: str) -> Method:
        return replace(self, options={**self.options, **self.of_tasks.get(task, {})})

    def with_options(self, options: dict[str, Any]) -> Method:
        """The same with other values for some of the recipe's fields."""
        if not self.train or not options:
            return self
        return replace(self, options={**self.options, **options}, of_tasks={})


def _rate(value: float) -> dict[str, Any]:
    return {"learning_rate": value, "eval_every": 120}


SLOWER = {"cross-encoder": _rate(1e-4)}
"""One number a pair says little of the gradient: at 5e-4 the divergence never fell."""

METHODS = (
    Method("dense", precisions=("fp32", "fp16", "int8")),
    Method("magnitude", MAGNITUDE),
    Method("one-shot", ONE_SHOT),
    Method("basic", MAGNITUDE, "basic", _rate(1e-3)),
    Method("progressive", "canonicalize", "progressive", _rate(1e-3)),
    Method("sparse-qat", QUANTIZED, "sparse-qat", _rate(1e-3), ("int8",)),
    Method("one-shot + recover", ONE_SHOT, "basic", _rate(5e-4), of_tasks=SLOWER),
    Method("one-shot + sparse-qat", BOTH, "sparse-qat", _rate(5e-4), ("int8",), SLOWER),
)


def start(method: Method, dense: Path, samples: Calibration, folder: Path) -> Model:
    """What is trained, or finished; kept in the folder, since methods share it."""
    digest = hashlib.sha256(method.start.encode() + dense.read_bytes()).hexdigest()[:16]
    path = folder / f"{dense.stem}-{digest}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = Model.load(dense)
        _apply(model, method.start, samples)
        model.save(path)
    return Model.load(path)


def train(
    method: Method,
    model: Model,
    dense: Path,
    samples: Calibration,
    *,
    steps: int,
    seed: int,
    work_dir: Path | None = None,
) -> dict[str, Any]:
    """Train in place, label-free. Returns: what the training says of itself."""
    assert method.train is not None
    plan = recipe(method.train, {"steps": steps, "seed": seed, **method.options})
    found = recover(model, Model.load(dense), samples, plan, target=TARGET, work_dir=work_dir)
    return {
        "divergence": [found.before, found.after],
        "best_step": found.best_step,
        "train_seconds": round(found.seconds, 1),
    }


def finish(model: Model, precision: str, calibration: Calibration) -> Model:
    """A copy in that precision."""
    quantized = any(node.op_type == "QuantizeLinear" for node in model.proto.graph.node)
    done = Model.from_bytes(model.to_bytes())
    _apply(done, FINISH["qat" if quantized else precision], calibration)
    return done


def _apply(model: Model, text: str, calibration: Calibration) -> None:
    if text:
        manager.run(
            model,
            pipeline.parse(text),
            target=TARGET,
            calibration=calibration,
            reproducer_dir=None,
        )
