"""The classifiers of the vision study: models, unlabelled data, test data.

They are those of benchmarks/accuracy, whose tasks give the same split of test and other images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "accuracy")]

from tasks import Places, Task, task  # noqa: E402

from onnx24.ir.model import Model  # noqa: E402
from onnx24.runtime.session import Session  # noqa: E402

NAMES = ("cnn", "vit", "mnistfc_256x2", "mnistfc_256x4", "mnistfc_256x6", "cifar_cnn")
SAMPLES = {"cnn": 1024, "vit": 1024, "cifar_cnn": 2048}
"""Unlabelled images; 1,000 for mnistfc, which are all that are left of MNIST's test images."""
ROWS = 250


@dataclass(frozen=True)
class Case:
    """One classifier. `loss`: of the recipes; kl where the outputs are logits by another name."""

    task: Task
    samples: int
    loss: str

    @property
    def name(self) -> str:
        return self.task.name

    @cached_property
    def dense(self) -> bytes:
        """The model with its batch freed, so that INT8 applies (a fixed batch of 1 makes every
        fully connected layer a matrix-vector product, O24-210)."""
        proto = onnx.load(self.task.path)
        for value in (*proto.graph.input, *proto.graph.output):
            batch = value.type.tensor_type.shape.dim[0]
            if batch.dim_value == 1:
                batch.dim_param = "N"
        return proto.SerializeToString()

    def calibration(self, seed: int) -> Path:
        return self.task.make_calibration(self.samples, seed)

    @property
    def test_shape(self) -> Sequence[int]:
        return self.task.data.inputs.shape[1:]

    def right(self, model: Model) -> NDArray[np.bool_]:
        """Which test images the model gets right, run node by node as written."""
        session = Session(model, optimize=False)
        x = self.task.data.inputs
        parts = [
            session.run({self.task.input: x[i : i + ROWS]})[session.outputs[0]]
            for i in range(0, len(x), ROWS)
        ]
        logits = np.concatenate(parts).reshape(len(x), -1)
        return logits.argmax(1) == self.task.data.labels


def case(name: str, places: Places) -> Case:
    """One of NAMES."""
    loss = "kl" if name.startswith("mnistfc") else "auto"
    return Case(task(name, places), SAMPLES.get(name, 1000), loss)
