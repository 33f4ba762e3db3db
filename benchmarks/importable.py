"""Does the preset tensorrt-importable say what TensorRT's parser says? Needs tensorrt-rtx.

python benchmarks/importable.py FOLDER

Each model of FOLDER is judged without TensorRT, and parsed by tensorrt-rtx; where they disagree,
both reasons are printed.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tensorrt_rtx as trt

from onnx24.gate.judge import judge
from onnx24.report.policy import read_policy

TARGET = "sm86-rtx1"


def main() -> None:
    policy = read_policy("tensorrt-importable")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    folder = Path(sys.argv[1])
    table: Counter[tuple[str, str]] = Counter()
    for path in sorted(folder.rglob("*.onnx")):
        result = judge(str(path), policy, target=TARGET)
        network = trt.Builder(logger).create_network(0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse_from_file(str(path))
        table[result.status, "parsed" if parsed else "not parsed"] += 1
        if result.met != parsed:
            ours = ", ".join(sorted({d.code for d in result.all_findings})) or "nothing"
            theirs = parser.get_error(0).desc()[:80] if parser.num_errors else "parsed"
            print(f"{path.relative_to(folder)}: we say {ours}; the parser: {theirs}")
    for (status, parsed), count in sorted(table.items()):
        print(f"{count:5}  {status:8}  {parsed}")


if __name__ == "__main__":
    main()
