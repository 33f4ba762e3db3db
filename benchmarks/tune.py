"""What `tune` saves within a limit, against the better of INT8 alone and 2:4 alone with a budget.

    python benchmarks/tune.py --shared DIR [--models A,B] [--samples 512] [--json FILE]
    python benchmarks/tune.py --table [--json FILE] > benchmarks/results/tune.md

Models and data are those of benchmarks/accuracy (its README). The limit is tune's default: 1 % of
the labels for classifiers, 20 dB for the others. Alone: the largest `budget=` of BUDGETS with which
`qdq`, or `prune24`, meets the same limit on the samples held out (which favours it: tune does not
choose by those). Costs are the same roofline estimates for all. Then every result is held against
the limit on --fresh further samples that nothing has seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "accuracy")]

import json_lines  # noqa: E402
from tasks import NAMES, Places, task  # noqa: E402

import onnx24  # noqa: E402
from onnx24 import targets  # noqa: E402
from onnx24.ledger.model_layers import layers_of  # noqa: E402
from onnx24.runtime.split import Split  # noqa: E402
from onnx24.targets.gpus import gpu_of  # noqa: E402
from onnx24.tuning.costs import DENSE, units_of  # noqa: E402

BUDGETS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)
ALONE = {
    "int8": ("qdq{{budget={0} min-agreement=0 min-output=0}}", "quantized", "int8"),
    "sparse": ("prune24{{budget={0}}}", "pruned", "sparse"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--models", default="cnn,vit,mnistfc_256x2,mnistfc_256x4,mnistfc_256x6")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--fresh", type=int, default=512)
    parser.add_argument("--json", type=Path, default=HERE / "tune.jsonl")
    parser.add_argument("--cache", type=Path, default=Path(".tune-cache"))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        _print(json_lines.read(given.json))
        return
    for name in given.models.split(","):
        assert name in NAMES, f"{name}: one of {', '.join(NAMES)}"
        row = _measure(name, given)
        json_lines.append(given.json, row)
        print(row, flush=True)


def _measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    job = task(name, Places(given.shared, given.cache, given.cache / "repos"))
    everything = np.load(job.make_calibration(given.samples + given.fresh))[job.input]
    rows = {job.input: everything[: given.samples]}
    fresh = {job.input: everything[given.samples :]}
    begin = time.process_time()
    try:
        tuned = onnx24.tune(job.path, calib=rows)
    except onnx24.NotMetError as err:
        tuned = err.result
    seconds = time.process_time() - begin
    limits = list(tuned.tuning.limits)
    row = {
        "model": name,
        "limit": limits[0],
        "tune": tuned.tuning.saving,
        "seconds": seconds,
        "tune_fresh": _fresh(job.path, tuned, fresh, limits),
    }
    for kind in ALONE:
        row[kind], row[f"{kind}_budget"] = _alone(kind, job.path, rows, limits)
    return row


def _fresh(path: Path, result: Any, fresh: dict[str, np.ndarray], limits: list[str]) -> str:
    found = onnx24.compare(path, result, fresh, max_drop=limits)
    worst = found.limits[0]
    return f"{worst.value:.4g} ({'met' if worst.met else 'not met'})"


def _alone(
    kind: str, path: Path, rows: dict[str, np.ndarray], limits: list[str]
) -> tuple[float, float]:
    """(saving, budget) of the largest budget that meets the limit; (0, 0) for none."""
    text, action, form = ALONE[kind]
    target = targets.load(targets.DEFAULT)
    base = onnx24.optimize(path, "canonicalize,upgrade-opset{to=13}")
    layers, _ = layers_of(base.compiled, target, {})
    units = units_of(layers, target, gpu_of(target), "latency")
    dense = sum(unit.costs[DENSE] for unit in units)
    data = onnx24.driver.samples.load_samples(rows, base.compiled, {}, 0)
    held_out = Split.of(data).held_out
    for budget in BUDGETS:
        made = onnx24.optimize(base, text.format(budget), calib=rows)
        if onnx24.compare(base, made, held_out, max_drop=limits).met:
            taken = {w["name"] for w in made.weights if any(s.endswith(action) for s in w["steps"])}
            cost = sum(unit.costs[form if unit.weight in taken else DENSE] for unit in units)
            return 1 - cost / dense, budget
    return 0.0, 0.0


def _print(rows: list[dict[str, Any]]) -> None:
    print(
        "| model | limit | tune saves | INT8 alone | 2:4 alone | ratio | on fresh samples | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        best = max(row["int8"], row["sparse"])
        ratio = f"{row['tune'] / best:.2f}" if best else "–"
        cells = [row["model"], row["limit"]]
        cells += [f"{100 * row[kind]:.0f} %" for kind in ("tune", "int8", "sparse")]
        cells += [ratio, row["tune_fresh"], f"{row['seconds']:.0f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
