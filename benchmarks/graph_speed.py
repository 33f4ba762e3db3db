"""What a run costs by the number of nodes, of this build and of another one.

python benchmarks/graph_speed.py [--base PYTHON] [--sizes 2000,4000,8000,16000] [--qdq-sizes 2000]

The model is a chain of MatMul [16, 16], Add (bias), Relu, Add (of the chain's own value before the
MatMul), with random weights (seed 0), so that next to nothing is computed and what is left is the
graph's. A table for each pipeline: CPU seconds (user and system, all threads, start included) of
`onnx24 opt` by either build, their ratio, and the exponent of growth from one size to the next,
start apart: that is what the same run takes of 40 nodes. base: the Python of an environment with
the other build.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
START = 40
PRUNE = "canonicalize,prune24{small=prune},check24"
QUANTIZE = "canonicalize,prune24{small=prune},qdq{min-sqnr=0},fold-qdq,check24"
_RUN = "import sys; from onnx24.cli import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", help="the Python of another build's environment")
    parser.add_argument("--sizes", default="2000,4000,8000,16000", type=_numbers)
    parser.add_argument("--qdq-sizes", default="2000", type=_numbers)
    args = parser.parse_args()
    builds = [*([args.base] if args.base else []), sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        for pipeline, sizes in ((PRUNE, args.sizes), (QUANTIZE, args.qdq_sizes)):
            if sizes:
                _table(Path(folder), pipeline, sizes, builds)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _table(folder: Path, pipeline: str, sizes: list[int], builds: list[str]) -> None:
    names = ["base", "this"][-len(builds) :]
    heads = [f"{name} [s CPU]" for name in names] + [f"exponent, {name}" for name in names]
    heads[len(names) : len(names)] = ["ratio"] if len(names) > 1 else []
    print(f"\n`{pipeline}`\n\n| nodes | {' | '.join(heads)} |")
    print("|" + "---:|" * (len(heads) + 1))
    start = [_cpu_seconds(folder, START, pipeline, build) for build in builds]
    before: list[float] = []
    for n, nodes in enumerate([START, *sizes]):
        spent = start if not n else [_cpu_seconds(folder, nodes, pipeline, b) for b in builds]
        cells = [f"{seconds:.2f}" for seconds in spent]
        if len(spent) > 1:
            cells.append(f"{spent[1] / spent[0]:.2f}")
        graph = [whole - least for whole, least in zip(spent, start, strict=True)]
        if before:
            doubled = math.log(nodes / sizes[n - 2])
            exponents = (math.log(b / a) / doubled for a, b in zip(before, graph, strict=True))
            cells += [f"{exponent:.2f}" for exponent in exponents]
        else:
            cells += ["–"] * len(spent)
        print(f"| {nodes:,} | {' | '.join(cells)} |", flush=True)
        before = graph if n else []


def _cpu_seconds(folder: Path, nodes: int, pipeline: str, build: str) -> float:
    path = folder / f"chain{nodes}.onnx"
    if not path.exists():
        onnx.save(chain(nodes), path)
    command = [build, "-c", _RUN, "opt", str(path), "-o", str(folder / "out.onnx")]
    command += ["--calib", "random:4", "--pipeline", pipeline]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def chain(nodes: int) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    graph = onnx.GraphProto(name="chain")
    value = "x"
    for i in range(nodes // 4):
        weight = random.standard_normal((WIDTH, WIDTH), np.float32) * 0.25
        bias = random.standard_normal(WIDTH, np.float32) * 0.1
        graph.initializer.append(numpy_helper.from_array(weight, f"w{i}"))
        graph.initializer.append(numpy_helper.from_array(bias, f"b{i}"))
        for op, inputs, output in (
            ("MatMul", [value, f"w{i}"], f"product{i}"),
            ("Add", [f"product{i}", f"b{i}"], f"biased{i}"),
            ("Relu", [f"biased{i}"], f"positive{i}"),
            ("Add", [f"positive{i}", value], f"y{i}"),
        ):
            graph.node.append(helper.make_node(op, inputs, [output], f"{op}_{output}"))
        value = f"y{i}"
    for values, name in ((graph.input, "x"), (graph.output, value)):
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, WIDTH]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
