"""Accuracy before and after recovery: magnitude 2:4 and prune24's default, at the same steps.

python benchmarks/recovery.py [--steps 100] [--models cnn,vit,mnistfc] [-o TABLE.md]

The fixture models (scikit-learn's digits) and, where the shared zoo is at hand ($ONNX24_SHARED),
mnistfc_256x4 on MNIST's test images. Training samples are unlabelled; accuracy is that on samples
that neither pruning nor training saw. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fixtures.data import digits
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.recovery.recipes import recipe
from onnx24.recovery.trainer import recover
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session
from onnx24.targets import DEFAULT, load

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 1024
STARTS = {
    "magnitude": "canonicalize,prune24{method=magnitude refit=false}",
    "prune24": "canonicalize,prune24",
}
RUNS = (
    ("magnitude", "basic", {}),
    ("dense", "progressive", {}),
    ("prune24", "basic", {}),
    ("prune24", "basic", {"learning_rate": 1e-4}),
    ("prune24", "sparse-qat", {"learning_rate": 1e-4}),
)


@dataclass(frozen=True)
class Case:
    """`score` is the share of test digits that a model has right [%]."""

    name: str
    path: Path
    feeds: dict[str, np.ndarray]
    score: Callable[[Model], float]


def fixture_case(name: str) -> Case:
    held = digits()

    def score(model: Model) -> float:
        logits = Session(model).run({"image": held.test_x})["logits"]
        return 100 * float(np.mean(logits.argmax(1) == held.test_y))

    path = ROOT / "fixtures" / "models" / f"{name}.onnx"
    return Case(name, path, {"image": held.train_x}, score)


def mnistfc_case(shared: Path) -> Case:
    """MNIST's test images: every fifth to train on, unlabelled, and 1,000 others to score."""
    path = shared / "data" / "models" / "zoo" / "mnistfc_256x4.onnx"
    folder = shared / "data" / "eval" / "mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    (value,) = Model.load(path).proto.graph.input[:1]
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    images = pixels.reshape(-1, *dims).astype(np.float32) / 255
    places = np.arange(len(images))
    test, right = images[places % 5 > 0][::8], labels[places % 5 > 0][::8]

    def score(model: Model) -> float:
        session = Session(model)
        found = [next(iter(session.run({value.name: x}).values())).argmax() for x in test]
        return 100 * float(np.mean(np.array(found) == right))

    return Case("mnistfc", path, {value.name: images[places % 5 == 0]}, score)


def rows(case: Case, steps: int, samples: int, folder: Path) -> list[str]:
    target = load(DEFAULT)
    np.savez(folder / "data.npz", **{name: x[:samples] for name, x in case.feeds.items()})
    dense = Model.load(case.path)
    data = load_data(str(folder / "data.npz"), dense)
    loss = "auto" if case.name in ("cnn", "vit") else "kl"
    best = case.score(dense)
    starts = {"dense": dense.to_bytes()}
    out = []
    for start, name, options in RUNS:
        if start not in starts:
            pruned = Model.load(case.path)
            manager.run(pruned, pipeline.parse(STARTS[start]), target=target, calibration=data)
            starts[start] = pruned.to_bytes()
        model = Model.from_bytes(starts[start])
        before = case.score(model)
        begin = time.monotonic()
        plan = recipe(name, {"steps": steps, "loss": loss, **options})
        found = recover(model, dense, data, plan, target=target)
        if any(item.code == "O24-158" for item in found.diagnostics):
            continue
        said = ", ".join(f"{key} {value}" for key, value in options.items())
        shown = "" if start == "dense" else f"{before:.2f}"
        out.append(
            f"| {case.name} | {best:.2f} | {start} | {name}{' (' + said + ')' if said else ''} | "
            f"{shown} | {case.score(model):.2f} | {found.before:.4f} | {found.after:.4f} | "
            f"{found.best_step} | {time.monotonic() - begin:.0f} |"
        )
        print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--models", default="cnn,vit,mnistfc")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    shared = Path(os.environ.get("ONNX24_SHARED", ROOT.parent / "shared"))
    table = []
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = mnistfc_case(shared) if name == "mnistfc" else fixture_case(name)
            table += rows(case, given.steps, given.samples, Path(folder))
    if given.output:
        held_out = given.samples // 8
        head = HEAD.format(
            steps=given.steps,
            samples=given.samples,
            train=given.samples - held_out,
            held_out=held_out,
        )
        given.output.write_text(head + "\n".join(table) + "\n", "utf-8")


HEAD = """# Recovery

`OMP_NUM_THREADS=1 python benchmarks/recovery.py --steps {steps} --samples {samples}`: {steps} steps
of 32 samples, {train} unlabelled samples to train on and {held_out} held out, Adam at 1e-3 where
nothing else is said.

*before* and *after*: accuracy [%] on samples that neither pruning nor training saw, 360 digits for
cnn and vit, 1,000 of MNIST for mnistfc (one sample is 0.28 and 0.1 points). *KL*: divergence from
the dense model on the held-out samples, before and after; a progressive run's *before* is that of
the dense weights under the magnitude masks, sparse-qat's is that with the quantizers. *step*: whose
weights were kept, 0 for those of the start. Seconds are those of a busy machine. One seed. A
sparse-qat that inserts no quantizers has no row: mnistfc's products are matrix-vector (O24-210).

| model | dense | start | recipe | before | after | KL before | KL after | step | s |
|---|---|---|---|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
