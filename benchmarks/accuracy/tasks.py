"""The models of the accuracy study: where each lies, its calibration data, its score.

Every task has one ONNX model, an evaluation set that no calibration sample is taken from, and a
score in its own unit. Calibration data are inputs alone, never labels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import boxes  # noqa: E402
import file_types  # noqa: E402
import photos  # noqa: E402
import train_byte_lm as byte_lm  # noqa: E402
from _fixture_code import load  # noqa: E402
from digits32 import cifar10, digits32, mnist_test  # noqa: E402
from sources import Sources  # noqa: E402

from onnx24.ir.model import Model  # noqa: E402
from onnx24.runtime.session import Session  # noqa: E402

Outputs = list[list[NDArray]]
"""One list of the model's outputs for each run."""


class Places(NamedTuple):
    """shared: the folder with `data/`. out: trained models and caches. repos: bare git copies."""

    shared: Path
    out: Path
    repos: Path
    cifar: Path | None = None

    @staticmethod
    def default(out: Path | None = None, cifar: Path | None = None) -> Places:
        """$ONNX24_SHARED or `../shared`; `out/bench`; the folder `repos` in it."""
        shared = Path(os.environ.get("ONNX24_SHARED") or ROOT.parent / "shared")
        out = out or Path(os.environ.get("ONNX24_BENCH") or ROOT / "out" / "bench")
        return Places(shared, out, out / "repos", cifar)


class Evaluation(NamedTuple):
    """What a model does on its task's evaluation set.

    score: in the task's unit. agreement: with the dense model [%]: of the most likely class, or
    for detectors the F1 of their boxes. output_error: ‖y − ŷ‖/‖y‖ over all outputs.
    """

    score: float
    agreement: float
    output_error: float


class Data(NamedTuple):
    """inputs: the evaluation set `[N, …]`. labels: `[N]` or empty. pool: (count, seed) →
    calibration inputs, stacked."""

    inputs: NDArray
    labels: NDArray[np.int64]
    pool: Callable[[int, int], NDArray]


@dataclass
class Task:
    """One model of the study.

    unit: of the score. score: (outputs, the dense model's outputs, data) → score. points_per_unit:
    what a loss of one unit counts in the mean over models; negative where a lower score is better.
    batch: evaluation inputs a run. augment: the option that suits this model's inputs, or "".
    """

    name: str
    path: Path
    input: str
    unit: str
    make_data: Callable[[], Data]
    score: Callable[[Outputs, Outputs, Data], float]
    cache: Path
    batch: int = 1
    points_per_unit: float = 1.0
    augment: str = ""
    detector: bool = False

    @cached_property
    def data(self) -> Data:
        return self.make_data()

    @cached_property
    def dense_outputs(self) -> Outputs:
        return self.run(Model.load(self.path))

    def make_calibration(self, count: int, seed: int = 0) -> Path:
        """An `.npz` of `count` samples, made once. The samples of a smaller count are the first
        of a larger one with the same seed."""
        path = self.cache / f"{self.name}-{count}-{seed}.npz"
        if not path.exists():
            rows = self.data.pool(count, seed)
            if len(rows) != count:
                raise SystemExit(f"{self.name}: {count} samples asked for; there are {len(rows)}")
            self.cache.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part.npz")
            np.savez(part, **{self.input: rows})
            part.replace(path)
        return path

    def run(self, model: Model) -> Outputs:
        """The model's outputs on the evaluation set, run by run."""
        session = Session(model, None)
        outputs = []
        for start in range(0, len(self.data.inputs), self.batch):
            found = session.run({self.input: self.data.inputs[start : start + self.batch]})
            outputs.append([np.asarray(value) for value in found.values()])
        return outputs

    def evaluate(self, model: Model) -> Evaluation:
        outputs = self.run(model)
        dense = self.dense_outputs
        score = self.score(outputs, dense, self.data)
        same = score if self.detector else 100 * np.mean(_winners(outputs) == _winners(dense))
        return Evaluation(score, float(same), _output_error(outputs, dense))

    def loss_points(self, score: float, dense: float) -> float:
        """What was lost against the dense score, in points; negative for a gain."""
        return (dense - score) * self.points_per_unit


def _winners(outputs: Outputs) -> NDArray[np.int64]:
    return np.concatenate([run[0].argmax(axis=-1).ravel() for run in outputs])


def _output_error(outputs: Outputs, dense: Outputs) -> float:
    error = total = 0.0
    for run, reference in zip(outputs, dense, strict=True):
        for y, z in zip(run, reference, strict=True):
            error += float(np.square(y.astype(np.float64) - z).sum())
            total += float(np.square(z, dtype=np.float64).sum())
    return (error / total) ** 0.5


def _accuracy(outputs: Outputs, dense: Outputs, data: Data) -> float:
    """Top-1 [%]."""
    return 100 * float(np.mean(_winners(outputs) == data.labels))


def _drawn(rows: NDArray) -> Callable[[int, int], NDArray]:
    """The first rows for seed 0, randomly drawn ones otherwise."""

    def pool(count: int, seed: int) -> NDArray:
        order = np.random.RandomState(seed).permutation(len(rows)) if seed else slice(None)
        return rows[order][:count]

    return pool


# --- the models -----------------------------------------------------------------------------


def _digits_task(places: Places, name: str) -> Task:
    def data() -> Data:
        digits = load("fixtures/data.py").digits()
        return Data(digits.test_x, digits.test_y, _drawn(digits.train_x))

    path = ROOT / "fixtures" / "models" / f"{name}.onnx"
    return Task(
        name, path, "image", "accuracy %", data, _accuracy, places.out / "calib",
        batch=120, augment="shift1",
    )  # fmt: skip


def _mnistfc(places: Places, depth: int) -> Task:
    """Calibration on every tenth test image (there are no training images at hand), evaluation
    on the other 9,000."""

    def data() -> Data:
        images, labels = mnist_test(places.shared / "data/eval/mnist")
        images = images.reshape(-1, 784, 1)
        tenth = np.arange(len(images)) % 10 == 0
        return Data(images[~tenth], labels[~tenth], _drawn(images[tenth]))

    name = f"mnistfc_256x{depth}"
    path = places.shared / "data/models/zoo" / f"{name}.onnx"
    return Task(
        name, path, "0", "accuracy %", data, _accuracy, places.out / "calib", augment="shift2@28x28"
    )


def _detector(
    places: Places,
    name: str,
    input_name: str,
    listed: list[tuple[str, str]],
    more: tuple[tuple[str, str], ...],
    aspect: tuple[float, float],
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    decode: Callable[[list[NDArray]], boxes.Found],
    count: int,
) -> Task:
    def data() -> Data:
        split = photos.photos(Sources(places.repos), listed, more)

        def pool(samples: int, seed: int) -> NDArray:
            drawn = photos.views(split.calibration, max(samples, 1000), 100 + seed, aspect)
            return np.stack([prepare(view) for view in drawn[:samples]])

        held = photos.views(split.evaluation, count, 1, aspect)
        return Data(np.stack([prepare(view) for view in held]), np.empty(0, np.int64), pool)

    def score(outputs: Outputs, dense: Outputs, data: Data) -> float:
        found, reference = ([decode(run) for run in runs] for runs in (outputs, dense))
        return 100 * boxes.agreement(reference, found)

    path = places.shared / "data/models/zoo" / f"{name}.onnx"
    return Task(
        name, path, input_name, "box F1 %", data, score, places.out / "calib",
        augment="shift8+flipx2", detector=True,
    )  # fmt: skip


def _ultraface_input(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB, 320 x 240, (x − 127)/128. *Source:* the model's demo."""
    return ((photos.resized(view, 320, 240).astype(np.float32) - 127) / 128).transpose(2, 0, 1)


def _yolox_input(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    """BGR, 0 to 255, letterboxed to 416 x 416. *Source:* YOLOX's `preproc`."""
    return photos.letterboxed(view, 416)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)


def _magika(places: Places) -> Task:
    """Calibration on files of other projects, never on the golden cases."""

    def data() -> Data:
        sources = Sources(places.repos)
        inputs, labels = file_types.golden(places.shared / "data/eval/magika", sources)

        def pool(count: int, seed: int) -> NDArray:
            return file_types.calibration(sources, count, seed)

        return Data(inputs, labels, pool)

    path = places.shared / "data/models/zoo/magika_std_v3_3.onnx"
    return Task(
        "magika_std_v3_3", path, "bytes", "label agreement %", data, _accuracy,
        places.out / "calib", batch=32,
    )  # fmt: skip


def _byte_lm(places: Places) -> Task:
    """100 points are one nat a byte."""

    def data() -> Data:
        text, held = byte_lm.source_text()
        rows = byte_lm.windows(held, 512)

        def pool(count: int, seed: int) -> NDArray:
            return byte_lm.windows(text, count, 1000 + seed)[:, :-1]

        return Data(rows[:, :-1], rows[:, 1:], pool)

    def score(outputs: Outputs, dense: Outputs, data: Data) -> float:
        logits = np.concatenate([run[0] for run in outputs]).reshape(-1, byte_lm.VOCABULARY)
        return byte_lm.cross_entropy(logits, data.labels.ravel())

    return Task(
        "byte_lm", places.out / "byte_lm.onnx", byte_lm.INPUT, "nats/byte", data, score,
        places.out / "calib", batch=16, points_per_unit=-100.0,
    )  # fmt: skip


def _cifar_cnn(places: Places) -> Task:
    def data() -> Data:
        mnist = places.shared / "data/eval/mnist"
        found = cifar10(places.cifar) if places.cifar else digits32(mnist, places.out)
        return Data(found.test_x, found.test_y, _drawn(found.train_x))

    return Task(
        "cifar_cnn", places.out / "cifar_cnn.onnx", "image", "accuracy %", data, _accuracy,
        places.out / "calib", batch=100, augment="shift2",
    )  # fmt: skip


NAMES = (
    "cnn", "vit", "mnistfc_256x2", "mnistfc_256x4", "mnistfc_256x6", "ultraface_rfb320",
    "yolox_nano", "magika_std_v3_3", "byte_lm", "cifar_cnn",
)  # fmt: skip


def task(name: str, places: Places) -> Task:
    """The task of this name, one of NAMES."""
    if name in ("cnn", "vit"):
        return _digits_task(places, name)
    if name.startswith("mnistfc_256x"):
        return _mnistfc(places, int(name[-1]))
    if name == "ultraface_rfb320":
        return _detector(
            places, name, "input", photos.FACES, photos.MORE_FACES,
            (4 / 3, 4 / 3), _ultraface_input, boxes.ultraface, 400,
        )  # fmt: skip
    if name == "yolox_nano":
        return _detector(
            places, name, "images", photos.OBJECTS, photos.MORE_OBJECTS,
            (0.75, 1.5), _yolox_input, boxes.yolox, 300,
        )  # fmt: skip
    made = {"magika_std_v3_3": _magika, "byte_lm": _byte_lm, "cifar_cnn": _cifar_cnn}
    if name not in made:
        raise SystemExit(f"no model {name!r}; there are {', '.join(NAMES)}")
    return made[name](places)
