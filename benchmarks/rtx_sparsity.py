"""What TensorRT-RTX does with the flag SPARSE_WEIGHTS: the plans, and on a GPU their times.

    python benchmarks/rtx_sparsity.py [--target sm86-rtx1] [--width 1024] [--inner 4096]
        [--m 1,64,1024] [--rounds 12]

Builds one 2:4 feed-forward block in fp16 with the flag, without it, and its dense original,
compares the plans, and runs the three in turns where a CUDA device of the target is. Without one
the builds are made and compared, and it ends with exit code 3. It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24 import targets
from onnx24.backends.base import BuildOptions, Profile, cuda_devices
from onnx24.backends.running import run_with_python
from onnx24.backends.tensorrt_rtx import TensorRTRTX
from onnx24.ledger.measure import from_interleaved, render_measurements
from onnx24.sparsity.masks import prune_24


def block(width: int, inner: int, *, sparse: bool) -> onnx.ModelProto:
    """x: [M, width] fp16 → up, Relu, down."""
    rng = np.random.default_rng(0)
    weights = {"up": rng.standard_normal((width, inner)) / np.sqrt(width),
               "down": rng.standard_normal((inner, width)) / np.sqrt(inner)}  # fmt: skip
    tensors = [
        numpy_helper.from_array((prune_24(w, 0) if sparse else w).astype(np.float16), name)
        for name, w in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "down"], ["y"], name="down"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["M", width]) for name in "xy")
    graph = helper.make_graph(nodes, "block", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="sm86-rtx1")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=4096)
    parser.add_argument("--m", default="1,64,1024", help="row counts")
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    rtx, found = TensorRTRTX(), []
    print(f"tensorrt-rtx {rtx.version()}, {args.width} to {args.inner} to {args.width}, fp16")
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for sparse in (False, True):
            models[sparse] = Path(folder, f"{sparse}.onnx")
            onnx.save_model(block(args.width, args.inner, sparse=sparse), models[sparse])
        for m in map(int, args.m.split(",")):
            shapes = {"x": Profile.static((m, args.width))}
            engines = {}
            for name, sparse, flag in (
                ("dense", False, False), ("2:4", True, False), ("2:4, flag", True, True),
            ):  # fmt: skip
                engines[name] = Path(folder, f"{len(engines)}.engine")
                rtx.build(
                    models[sparse], targets.load(args.target), engine=engines[name], shapes=shapes,
                    options=BuildOptions(sparsity=flag), timeout_s=300,
                )  # fmt: skip
            plans = {name: path.read_bytes() for name, path in engines.items()}
            for name, plan in plans.items():
                print(
                    f"M {m}, {name}: {len(plan):,} bytes, {hashlib.sha256(plan).hexdigest()[:12]}"
                )
            same = plans["2:4"] == plans["2:4, flag"]
            print(f"M {m}: the flag {'leaves the plan as it is' if same else 'changes the plan'}")
            if cuda_devices():
                times = run_with_python(
                    rtx, engines, shapes, rounds=args.rounds, runs=50, timeout_s=300
                )
                found.append(from_interleaved(times, batch=str(m)))
    if not found:
        print("no CUDA device is present: no engine was run", file=sys.stderr)
        return 3
    print(render_measurements("in turns", found, {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
