"""Accuracy before and after recovery: magnitude 2:4 and prune24's default, at the same steps.

python benchmarks/recovery.py [--steps 100] [--models cnn,vit,mnistfc] [-o TABLE.md]

The fixture models (scikit-learn's digits) and, where the shared zoo is at hand ($ONNX24_SHARED),
mnistfc_256x4 on digits blown up to 28 × 28. Training samples are unlabelled; accuracy is that on
samples that neither pruning nor training saw. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
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
    ("magnitude", "basic", {"masks": "recomputed"}),
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
    return Case(name, path, {"image": held.train_x[:SAMPLES]}, score)


def mnistfc_case(shared: Path) -> Case:
    """Digits blown up to MNIST's 28 × 28, one column a run, as that model takes them."""
    path = shared / "data" / "models" / "zoo" / "mnistfc_256x4.onnx"
    held = digits()
    (value,) = Model.load(path).proto.graph.input[:1]
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]

    def blown_up(images: np.ndarray) -> np.ndarray:
        grown = np.kron(images[:, 0], np.ones((1, 3, 3), np.float32))
        return np.pad(grown, ((0, 0), (2, 2), (2, 2))).reshape(len(images), *dims)

    test = blown_up(held.test_x)

    def score(model: Model) -> float:
        session = Session(model)
        found = [next(iter(session.run({value.name: x}).values())).argmax() for x in test]
        return 100 * float(np.mean(np.array(found) == held.test_y))

    return Case("mnistfc", path, {value.name: blown_up(held.train_x[:SAMPLES])}, score)


def rows(case: Case, steps: int, folder: Path) -> list[str]:
    target = load(DEFAULT)
    np.savez(folder / "data.npz", **case.feeds)  # type: ignore[arg-type]
    dense = Model.load(case.path)
    data = load_data(str(folder / "data.npz"), dense)
    loss = "auto" if case.name in ("cnn", "vit") else "kl"
    best = case.score(dense)
    out = []
    for start, name, options in RUNS:
        model = Model.load(case.path)
        if start != "dense":
            manager.run(model, pipeline.parse(STARTS[start]), target=target, calibration=data)
        before = case.score(model)
        begin = time.monotonic()
        plan = recipe(name, {"steps": steps, "loss": loss, **options})
        found = recover(model, dense, data, plan, target=target)
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
    parser.add_argument("--models", default="cnn,vit,mnistfc")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    shared = Path(os.environ.get("ONNX24_SHARED", ROOT.parent / "shared"))
    table = []
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = mnistfc_case(shared) if name == "mnistfc" else fixture_case(name)
            table += rows(case, given.steps, Path(folder))
    if given.output:
        given.output.write_text(HEAD.format(steps=given.steps) + "\n".join(table) + "\n", "utf-8")


HEAD = """# Recovery

`python benchmarks/recovery.py --steps {steps}`: {steps} steps of 32 samples, 896 unlabelled samples
to train on and 128 held out, Adam at 1e-3 where nothing else is said. *before* and *after*:
accuracy [%] on the 360 test digits; *KL*: divergence from the dense model on the held-out samples,
before and after. *step*: whose weights were kept, 0 for those of the start. mnistfc sees
scikit-learn's digits at 28 × 28, which it was not trained on. Seconds are those of a busy machine.

| model | dense | start | recipe | before | after | KL before | KL after | step | s |
|---|---|---|---|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
