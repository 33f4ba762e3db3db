"""What the guard of `compile` costs, and whether it is ever wrong about the project's own passes.

python benchmarks/guard_cost.py FOLDER [--preset sparse-int8] [--samples 16]

Compiles every model below FOLDER that ONNX Runtime runs, and prints a table: CPU seconds of
`compile` (this process, all threads), CPU seconds of the guard in them, which passes it compared,
and what it took back. Samples are random; sizes of open dimensions are those of the guard's own
first probe.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24.driver.compiling import compile
from onnx24.errors import Onnx24Error
from onnx24.ir.model import Model
from onnx24.runtime.agreement import NotComparable, observe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="sparse-int8")
    parser.add_argument("--samples", type=int, default=16)
    args = parser.parse_args()
    print("| model | compile [s CPU] | guard [s CPU] | share | compared | taken back |")
    print("|---|---:|---:|---:|---|---|")
    whole = guarded = 0.0
    for path in sorted(args.folder.rglob("*.onnx")):
        try:
            spent, guard, taken_back = _compiled(path, args.preset, args.samples)
        except (Onnx24Error, NotComparable) as err:
            print(f"| {path.stem} | – | – | – | {str(err).splitlines()[0]} | |", flush=True)
            continue
        whole, guarded = whole + spent, guarded + guard["cpu_seconds"]
        print(
            f"| {path.stem} | {spent:.2f} | {guard['cpu_seconds']:.2f} "
            f"| {guard['cpu_seconds'] / spent:.1%} | {', '.join(guard['checked']) or 'nothing'} "
            f"| {', '.join(taken_back) or '–'} |",
            flush=True,
        )
    print(f"| all | {whole:.2f} | {guarded:.2f} | {guarded / whole:.1%} | | |")


def _compiled(path: Path, preset: str, samples: int) -> tuple[float, dict, list[str]]:
    feeds = observe(Model.load(path), None).feeds[0]
    shapes = {name: array.shape for name, array in feeds.items()}
    begin = time.process_time()
    result = compile(path, preset=preset, calib=f"random:{samples}", shapes=shapes)
    spent = time.process_time() - begin
    taken_back = [item["pass"] for item in result.report.passes if item.get("rolled_back")]
    return spent, dict(result.report.run["guard"]), taken_back


if __name__ == "__main__":
    main()
