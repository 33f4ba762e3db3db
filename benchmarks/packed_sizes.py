"""What 2:4 weights weigh in a file (fp32, int8, 2:4 int8 plain and packed, both behind zstd), and
how long ONNX Runtime takes to load the packed file and to run it, against the plain one.

python benchmarks/packed_sizes.py MODEL.onnx [MODEL.onnx …] > benchmarks/results/packed_sizes.md

zstd: level 19 of the package `zstandard` (pip install zstandard). Times are medians of CPU time
over --repeats, plain and packed in turns in one process. Weights are pruned by magnitude on random
samples: sizes depend on the pattern and hardly on the values. A layer that `qdq` leaves in float
counts as float in every column.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.passmgr import manager
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import load_data

STEPS = {
    "int8": "canonicalize,upgrade-opset{to=13},qdq{min-sqnr=0 budget=1e9},fold-qdq",
    "plain": "canonicalize,upgrade-opset{to=13},prune24{quality=magnitude},"
    "qdq{min-sqnr=0 budget=1e9},fold-qdq",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    print(
        "| model | fp32 | int8 | 2:4 int8 | packed | 2:4 int8 + zstd | packed + zstd | load | run |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for path in given.models:
        try:
            print(_row(path, given.repeats), flush=True)
        except Exception as err:  # noqa: BLE001 - one model's refusal is a line of the table
            print(f"| {path.stem} | {type(err).__name__}: {str(err).splitlines()[0][:90]} |")


def _row(path: Path, repeats: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: Path(folder) / f"{name}.onnx" for name in ("fp32", "int8", "plain", "packed")
        }
        Model.load(path).save(files["fp32"], external="embed")
        for name, text in STEPS.items():
            _run(files["fp32"], text, files[name])
        _run(files["plain"], "pack24", files["packed"])
        size = {name: file.stat().st_size for name, file in files.items()}
        squeezed = {
            name: len(zstandard.ZstdCompressor(level=19).compress(files[name].read_bytes()))
            for name in ("plain", "packed")
        }
        load, run = _times(files["plain"], files["packed"], repeats)
    cells = [f"{size['fp32']:,}"]
    cells += [
        f"{n:,} ({n / size['fp32']:.3f})" for n in (size["int8"], size["plain"], size["packed"])
    ]
    cells += [f"{n:,} ({n / size['fp32']:.3f})" for n in squeezed.values()]
    return f"| {path.stem} | {' | '.join(cells)} | {load:.2f} | {run:.2f} |"


def _run(source: Path, text: str, out: Path) -> None:
    model = Model.load(source)
    samples = load_data("random:4", model)
    target = targets.load(targets.DEFAULT)
    manager.run(model, parse(text), target=target, calibration=samples, reproducer_dir=None)
    model.save(out, external="embed")


def _times(plain: Path, packed: Path, repeats: int) -> tuple[float, float]:
    """(load, run) of packed over plain: ratios of medians of CPU time."""
    loads: dict[Path, list[float]] = {plain: [], packed: []}
    runs: dict[Path, list[float]] = {plain: [], packed: []}
    sessions = {}
    for _ in range(repeats):
        for file in (plain, packed):
            begin = time.process_time()
            sessions[file] = _session(file)
            loads[file].append(time.process_time() - begin)
    whole = Model.load(plain)
    samples = load_data("random:2", whole)
    feeds = next(iter(samples.batches(whole)))
    results = {}
    for _ in range(repeats):
        for file in (plain, packed):
            begin = time.process_time()
            for _ in range(3):
                results[file] = sessions[file].run(None, feeds)
            runs[file].append(time.process_time() - begin)
    for a, b in zip(results[plain], results[packed], strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    ratio = [statistics.median(t[packed]) / statistics.median(t[plain]) for t in (loads, runs)]
    return ratio[0], ratio[1]


def _session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
