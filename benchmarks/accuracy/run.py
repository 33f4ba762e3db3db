"""The accuracy of one-shot 2:4: every method on every model, in one table.

    python benchmarks/accuracy/run.py [--models A,B] [--methods A,B|NAME=PIPELINE]
        [--samples 512,1000] [--seeds 0] [--json FILE] [--again] [--layers]
    python benchmarks/accuracy/run.py --table [--json FILE] [--markdown FILE]

Each line of FILE is one measurement; what is there already is not measured again (--again does).
README.md says what the models, data and scores are, and where the trained models come from.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import json_lines  # noqa: E402
import tables  # noqa: E402
from tasks import NAMES, ROOT, Places, Task, task  # noqa: E402

from onnx24.errors import Onnx24Error  # noqa: E402
from onnx24.ir.model import Model  # noqa: E402
from onnx24.passmgr import manager, pipeline  # noqa: E402
from onnx24.runtime.data import load_data  # noqa: E402
from onnx24.targets import DEFAULT, load  # noqa: E402


@dataclass(frozen=True)
class Method:
    """text: the pipeline; `<augment>` in it stands for the task's own augmentation, if it has one.
    data: whether calibration data are passed."""

    name: str
    text: str
    data: bool = True

    def pipeline(self, task: Task) -> str:
        augment = f" augment={task.augment}" if task.augment else ""
        return self.text.replace("<augment>", augment)


def _prune(options: str) -> str:
    return f"canonicalize,prune24{{{options}}}"


METHODS = {
    method.name: method
    for method in (
        Method("magnitude", _prune("quality=magnitude"), data=False),
        Method("magnitude+refit", _prune("method=magnitude")),
        Method("wanda", _prune("method=wanda")),
        Method("ria", _prune("method=ria")),
        Method("sparsegpt", _prune("method=obs refit=false")),
        Method("obs", _prune("method=obs")),
        Method("fast", _prune("quality=fast")),
        Method("default", "canonicalize,prune24"),
        Method("max", _prune("quality=max")),
        Method("augment", _prune("quality=default<augment>")),
        Method("max+augment", _prune("quality=max<augment>")),
    )
}


def method(text: str) -> Method:
    """A known name, or `NAME=PIPELINE`."""
    name, equals, rest = text.partition("=")
    if text in METHODS:
        return METHODS[text]
    if not equals or "{" in name or "," in name:
        raise SystemExit(f"no method {text!r}; there are {', '.join(METHODS)}, or NAME=PIPELINE")
    return Method(name, rest)


def measure(
    task: Task, method: Method, samples: int, seed: int, *, layers: bool = False
) -> dict[str, Any]:
    """Compile the task's model by the method and score the result."""
    model = Model.load(task.path)
    calibration = None
    if method.data:
        calibration = load_data(str(task.make_calibration(samples, seed)), model)
    started = time.perf_counter()
    result = manager.run(
        model,
        pipeline.parse(method.pipeline(task)),
        target=load(DEFAULT),
        calibration=calibration,
        reproducer_dir=None,
    )
    seconds = time.perf_counter() - started
    found = task.evaluate(model)
    pruned = [record for record in result.records if record.action == "pruned"]
    row: dict[str, Any] = {
        "score": found.score,
        "agreement": found.agreement,
        "output_error": found.output_error,
        "seconds": round(seconds, 2),
        "pruned": len(pruned),
        "codes": sorted({d.code for d in result.diagnostics}),
    }
    if layers:
        row["layers"] = [record.to_json() for record in pruned]
    return row


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def run(args: argparse.Namespace) -> None:
    places = Places.default(args.out, args.cifar)
    known = set() if args.again else {tables.key(row) for row in tables.read(args.json)}
    methods = [method(text) for text in args.methods]
    commit = _commit()
    for name in args.models:
        current = task(name, places)
        if not current.path.exists():
            print(f"{name}: left out, {current.path} is missing; README.md says how to get it")
            continue
        wanted = []
        for chosen in methods:
            runs = [(n, s) for n in args.samples for s in args.seeds] if chosen.data else [(0, 0)]
            for samples, seed in runs:
                labels = {"model": name, "method": chosen.name, "samples": samples, "seed": seed}
                if tables.key({**labels, "pipeline": chosen.pipeline(current)}) not in known:
                    wanted.append((chosen, samples, seed, labels))
        if not wanted:
            continue
        dense = current.evaluate(Model.load(current.path)).score
        print(f"{name}: dense {dense:.4g} {current.unit}", flush=True)
        for chosen, samples, seed, labels in wanted:
            row = {
                **labels,
                "pipeline": chosen.pipeline(current),
                "commit": commit,
                "unit": current.unit,
                "dense": dense,
            }
            label = f"  {chosen.name}" + (f", {samples} samples, seed {seed}" if samples else "")
            try:
                row.update(measure(current, chosen, samples, seed, layers=args.layers))
            except Onnx24Error as err:
                print(f"{label}: {err}", flush=True)
                continue
            row["loss"] = current.loss_points(row["score"], dense)
            print(
                f"{label}: {row['score']:.4g}, loss {row['loss']:.2f} points, agreement "
                f"{row['agreement']:.2f} %, output error {row['output_error']:.3f}, "
                f"{row['pruned']} weights, {row['seconds']:.1f} s",
                flush=True,
            )
            json_lines.append(args.json, row)


def main() -> None:
    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=words, default=list(NAMES))
    parser.add_argument(
        "--methods",
        action="append",
        help=f"known: {', '.join(METHODS)}; or NAME=PIPELINE, once for each",
    )
    parser.add_argument("--samples", type=numbers, default=[512, 1000])
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--json", type=Path, default=Path("out/bench/accuracy.jsonl"))
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--layers", action="store_true", help="record each weight's facts")
    parser.add_argument("--out", type=Path, help="trained models and caches; out/bench")
    parser.add_argument("--cifar", type=Path, help="as given to train_cifar_cnn.py")
    parser.add_argument("--table", action="store_true", help="only print the table of FILE")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    args = parser.parse_args()
    given: list[str] = []
    for text in args.methods or list(METHODS):
        given += [text] if "=" in text.split(",")[0] else words(text)
    args.methods = given
    if not args.table:
        run(args)
    text = tables.render(tables.read(args.json))
    print("\n" + text)
    if args.markdown:
        args.markdown.write_text(tables.HEAD + text, encoding="utf-8")


if __name__ == "__main__":
    main()
