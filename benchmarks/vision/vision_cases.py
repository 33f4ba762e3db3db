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
COPIES = 7
ROWS = 250


@dataclass(frozen=True)
class Case:
    """One classifier. loss: of the recipes; kl where the outputs are logits by another name.
    copies: of each sample, moved by up to two pixels, for a pool that is small."""

    task: Task
    samples: int
    loss: str
    copies: int = 0

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
        """The samples, and behind them all again, `copies` times, each moved a little. A copy
        stands a multiple of ten behind its original, so both are held out or both are not."""
        plain = self.task.make_calibration(self.samples, seed)
        if not self.copies:
            return plain
        path = plain.with_name(f"{plain.stem}-moved{self.copies}.npz")
        if not path.exists():
            with np.load(plain) as file:
                images = file[self.task.input]
            rng = np.random.default_rng(seed)
            parts = [images, *(moved(images, rng) for _ in range(self.copies))]
            np.savez(path, **{self.task.input: np.concatenate(parts)})
        return path

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


def moved(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Each of MNIST's images, flat `[N, 784, 1]`, moved by up to two pixels along both axes."""
    square = np.pad(images.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    out = np.empty((len(square), 28, 28), np.float32)
    for place, (dy, dx) in enumerate(rng.integers(0, 5, (len(square), 2))):
        out[place] = square[place, dy : dy + 28, dx : dx + 28]
    return out.reshape(images.shape)


def case(name: str, places: Places) -> Case:
    """One of NAMES."""
    if name.startswith("mnistfc"):
        return Case(task(name, places), 1000, "kl", COPIES)
    return Case(task(name, places), SAMPLES[name], "auto")
