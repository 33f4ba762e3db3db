"""2:4 and INT8 on image classifiers: magnitude, one-shot and trained, at equal steps.

    python benchmarks/vision/vision_study.py [--models A,B] [--seeds 0,1,2] [--steps 100]
    python benchmarks/vision/vision_study.py --table [--markdown benchmarks/results/vision.md]

Each line of --json is one measurement or one trial of a learning rate; what is there already is
not done again. README.md says what the models, data and methods are. Needs torch; one thread is
enough (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "accuracy")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

import json_lines  # noqa: E402
import vision_report  # noqa: E402
from methods import METHODS, ONE_SHOT, Method, Trained, Workshop, estimated_us  # noqa: E402
from vision_cases import NAMES, Case, Places, case  # noqa: E402

from onnx24.ir.model import Model  # noqa: E402
from onnx24.runtime.data import load_data  # noqa: E402

NEAR_RATES, FAR_RATES = (0.0,), (0.0, 3e-3)
"""Learning rates that are tried on the first seed: from a one-shot start, and from any other. 0 is
the recipe's own choice, which is 1e-3 far from dense."""
BATCH = 64
"""Images a run in the estimate of speed."""


class Book:
    """The lines of a file, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json_lines.read(path)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        json_lines.append(self.path, row)

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        return [r for r in self.rows if all(r.get(k) == v for k, v in wanted.items())]


def tune(
    shop: Workshop, current: Case, method: Method, book: Book
) -> tuple[float, dict[float, Trained]]:
    """(the learning rate whose best weights diverge least on held-out unlabelled samples, and the
    models that were trained to find it); the smallest of those that leave the start as it is."""
    labels = {"model": current.name, "method": method.name, "steps": shop.steps, "kind": "trial"}
    made: dict[float, Trained] = {}
    for rate in NEAR_RATES if method.prune == ONE_SHOT else FAR_RATES:
        if book.find(rate=rate, **labels):
            continue
        made[rate] = shop.trained(method, rate)
        found = made[rate].recovered
        assert found is not None
        book.add(
            {
                **labels,
                "rate": rate,
                "used": found.learning_rate,
                "before": found.before,
                "after": found.after,
                "best_step": found.best_step,
            }
        )
        print(
            f"  {method.name}, rate {rate:g}: {found.before:.5f} → {found.after:.5f} at step "
            f"{found.best_step}, {found.seconds:.0f} s",
            flush=True,
        )
    trials = book.find(**labels)
    return min(trials, key=lambda row: (row["after"], row["rate"]))["rate"], made


def study(current: Case, seed: int, steps: int, book: Book) -> None:
    """Every method on one model with one draw of the samples."""
    dense = Model.from_bytes(current.dense)
    data = load_data(str(current.calibration(seed)), dense)
    shop = Workshop(dense, data, steps, seed, loss=current.loss)
    shapes = {current.task.input: (BATCH, *current.test_shape)}
    for method in METHODS.values():
        labels = {
            "kind": "result", "model": current.name, "method": method.name, "seed": seed,
            "steps": steps,
        }  # fmt: skip
        missing = [end for end in method.ends if not book.find(end=end, **labels)]
        if not missing:
            continue
        begin = time.perf_counter()
        rate: float | None = None
        tried: dict[float, Trained] = {}
        if method.recipe:
            rate, tried = tune(_first_seed(shop, current), current, method, book)
        made = tried[rate] if seed == 0 and rate in tried else shop.trained(method, rate)
        seconds = time.perf_counter() - begin
        for end in missing:
            model = shop.finished(made.model, method, end)
            right = current.right(model)
            us, int8, sparse = estimated_us(model, shapes)
            row: dict[str, Any] = {
                **labels,
                "end": end,
                "right": vision_report.packed(right),
                "images": len(right),
                "bytes": len(model.to_bytes()),
                "us": us,
                "int8": int8,
                "sparse": sparse,
            }
            if made.recovered is not None:
                found = made.recovered
                row |= {"rate": found.learning_rate, "is_chosen_by_recipe": not rate}
                row |= {"before": found.before, "after": found.after}
                row["best_step"] = found.best_step
            book.add(row)
            print(
                f"{current.name} seed {seed}: {method.name}, {end}: {100 * right.mean():.2f} %, "
                f"{int8} INT8, {sparse} 2:4, {seconds:.0f} s before its end",
                flush=True,
            )


def _first_seed(shop: Workshop, current: Case) -> Workshop:
    """What learning rates are tried on."""
    if shop.seed == 0:
        return shop
    data = load_data(str(current.calibration(0)), shop.dense)
    return Workshop(shop.dense, data, shop.steps, 0, loss=shop.loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(NAMES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="trained models and caches; out/bench")
    parser.add_argument("--cifar", type=Path, help="as given to train_cifar_cnn.py")
    parser.add_argument("--json", type=Path, default=Path("out/bench/vision.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of --json")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    given = parser.parse_args()
    places = Places.default(given.out, given.cifar)
    book = Book(given.json)
    for name in () if given.table else given.models.split(","):
        current = case(name, places)
        if not current.task.path.exists():
            print(f"{name}: left out, {current.task.path} is missing; see accuracy/README.md")
            continue
        for seed in map(int, given.seeds.split(",")):
            study(current, seed, given.steps, book)
    text = vision_report.render(book.rows)
    print(text)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
