"""Search relevance before and after 2:4: train what is missing, measure what is missing, tabulate.

    python benchmarks/search_relevance/run.py [--tasks A,B] [--methods A,B] [--seeds 0,1,2]
        [--data FOLDER] [--out out/bench/search_relevance] [--steps N] [--quick] [--markdown FILE]
    python benchmarks/search_relevance/run.py --table

One measurement is one line of OUT/rows.jsonl and one file in OUT/scores; what is there is not done
again, and a training that was killed goes on from its last checkpoint. README.md says what the
tasks, methods and numbers are. Needs torch (extra `train`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
sys.path.append(str(Path(__file__).resolve().parents[1] / "accuracy"))

import comparison  # noqa: E402
import json_lines  # noqa: E402
import picture  # noqa: E402
import relevance_methods as methods  # noqa: E402
from corpora import Banking, data_folder  # noqa: E402
from relevance import TASKS, Part, Task, make_task  # noqa: E402
from relevance_methods import METHODS, TARGET, Method  # noqa: E402
from training import Settings, train_missing, vocabulary  # noqa: E402

from onnx24.backends.base import Profile  # noqa: E402
from onnx24.ir.model import Model  # noqa: E402
from onnx24.ledger.estimate import VARIANTS, estimate  # noqa: E402
from onnx24.ledger.model_layers import layers_of  # noqa: E402
from onnx24.runtime.data import Calibration, load_data  # noqa: E402
from onnx24.targets.gpus import gpu_of  # noqa: E402

CALIBRATION = 1000
"""Inputs that the last quantization sees; pruning and training see all there are."""
STEPS = 240
BATCH = 64
"""Rows of the estimated speed."""


class Study:
    """One folder of models, measurements and scores."""

    def __init__(
        self, out: Path, data: Path | None, settings: Settings, *, steps: int, part: Part
    ) -> None:
        self.out, self.settings, self.steps, self.part = out, settings, steps, part
        self.data = data_folder(data)
        self.rows = out / "rows.jsonl"
        self.scores = out / "scores"
        self.scores.mkdir(parents=True, exist_ok=True)

    def run(self, tasks: list[str], chosen: list[Method], seeds: list[int]) -> None:
        train_missing(self.out, self.data, self.settings, tasks, seeds)
        pieces = vocabulary(self.out, Banking.read(self.data), self.settings)
        lengths = self.settings.query_length, self.settings.half_length
        made = [make_task(name, self.data, pieces, *lengths) for name in tasks]
        for seed in seeds:
            for task in made:
                self.measure_all(task, seed, chosen)

    def measure_all(self, task: Task, seed: int, chosen: list[Method]) -> None:
        known = {comparison.key(row) for row in json_lines.read(self.rows)}
        dense = self.out / f"{task.name}-{seed}.onnx"
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            given = Model.load(dense)
            calibration = _data(Path(folder, "calibration.npz"), task.samples(CALIBRATION), given)
            samples = _data(Path(folder, "samples.npz"), task.samples(), given)
            for method in (method.for_task(task.name) for method in chosen):
                wanted = [
                    precision
                    for precision in method.precisions
                    if comparison.key(self._label(task, seed, method, precision)) not in known
                ]
                if wanted:
                    self._measure(task, seed, method, wanted, dense, calibration, samples)

    def _label(self, task: Task, seed: int, method: Method, precision: str) -> dict[str, Any]:
        steps = self.steps if method.train else 0
        return {
            "task": task.name,
            "seed": seed,
            "method": method.name,
            "precision": precision,
            "part": self.part,
            "steps": steps,
            "options": method.options if steps else {},
        }

    def _measure(
        self,
        task: Task,
        seed: int,
        method: Method,
        precisions: list[str],
        dense: Path,
        calibration: Calibration,
        samples: Calibration,
    ) -> None:
        started = time.perf_counter()
        model = methods.start(method, dense, samples, self.out / "starts")
        facts: dict[str, Any] = {"start_seconds": round(time.perf_counter() - started, 1)}
        if method.train:
            facts |= methods.train(
                method,
                model,
                dense,
                samples,
                steps=self.steps,
                seed=seed,
                work_dir=self.out / "checkpoints",
            )
        for precision in precisions:
            done = methods.finish(model, precision, calibration)
            found = task.score(done, self.part)
            row = {
                **self._label(task, seed, method, precision),
                **facts,
                "accuracy": found.accuracy(),
                "pnr": found.pnr(),
                "ndcg": found.ndcg_at_10(),
                "prediction": found.performance_prediction(),
                "queries": len(found),
                "bytes": len(done.to_bytes()),
                "estimate_us": _estimates(Model.load(dense)),
            }
            found.save(self.scores / f"{comparison.key(row)}.npz")
            json_lines.append(self.rows, row)
            print(
                f"{task.name} {seed}, {method.name} {precision}: accuracy {row['accuracy']:.2f}, "
                f"PNR {row['pnr']:.2f}, NDCG@10 {row['ndcg']:.4f}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )


def _data(path: Path, feeds: dict[str, np.ndarray], model: Model) -> Calibration:
    np.savez(path, **feeds)
    return load_data(str(path), model)


def _estimates(model: Model) -> dict[str, float]:
    """Roofline bounds [µs] of the products with a weight, by variant; the ledger's estimate."""
    shapes = {}
    for value in model.proto.graph.input:
        width = value.type.tensor_type.shape.dim[1].dim_value
        shapes[value.name] = Profile.static([BATCH, width])
    layers, _ = layers_of(model, TARGET, shapes)
    found = estimate(layers, TARGET, gpu_of(TARGET), str(BATCH))
    return {variant: found.total_us(variant) for variant in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(method.name for method in METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, help="folder with banking77/ and lightgbm_rank/")
    parser.add_argument("--out", type=Path, default=Path("out/bench/search_relevance"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of every method that trains")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument(
        "--option", action="append", default=[], help="NAME=VALUE of every recipe, for tuning"
    )
    parser.add_argument("--quick", action="store_true", help="short trainings, one seed, OUT-quick")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--svg", type=Path, help="draw NDCG of the INT8 models there")
    args = parser.parse_args()
    settings = Settings()
    if args.quick:
        settings, args.steps, args.seeds = settings.quick(), 20, "0"
        args.out = args.out.with_name(args.out.name + "-quick")
    options = {name: json.loads(value) for name, value in (o.split("=") for o in args.option)}
    chosen = [
        method.with_options(options) for method in METHODS if method.name in args.methods.split(",")
    ]
    if not args.table:
        study = Study(args.out, args.data, settings, steps=args.steps, part=args.part)
        study.run(args.tasks.split(","), chosen, [int(seed) for seed in args.seeds.split(",")])
    text = comparison.render(args.out, chosen, args.steps, args.part)
    print("\n" + text)
    if args.markdown:
        args.markdown.write_text(comparison.HEAD + text, encoding="utf-8")
    if args.svg:
        args.svg.write_text(picture.draw(args.out, chosen, args.steps, args.part), "utf-8")


if __name__ == "__main__":
    main()
