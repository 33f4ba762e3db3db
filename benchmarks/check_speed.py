"""How fast `onnx24 check` reads weights, on one core: MB of model file a second.

python benchmarks/check_speed.py [--mib 384]

One model a row, of one type, 2:4 and dense; the built-in policy (valid, recorded and eligible
weights 2:4) with the file's digest included. The smallest time of five counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# One core: before numpy starts its threads.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from onnx24.gate.judge import judge  # noqa: E402
from onnx24.report.policy import BUILT_IN  # noqa: E402

SIZE = 2048


def chain(dtype: type, count: int, *, sparse: bool) -> onnx.ModelProto:
    """A chain of MatMuls of SIZE × SIZE."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(count):
        w = rng.standard_normal((SIZE, SIZE)).astype(dtype)
        if sparse:
            w[0::4] = w[1::4] = 0
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"y{i}"]))
        value = f"y{i}"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [helper.make_tensor_value_info(name, kind, ["n", SIZE]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=384)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        for dtype in (np.float32, np.float16):
            count = max(1, (options.mib << 20) // (SIZE * SIZE * np.dtype(dtype).itemsize))
            for sparse in (True, False):
                onnx.save(chain(dtype, count, sparse=sparse), path)
                best = min(_seconds(path) for _ in range(5))
                size = path.stat().st_size / 1e6
                kind = "2:4" if sparse else "dense"
                print(
                    f"{np.dtype(dtype).name:8} {kind:5} {size:4.0f} MB {best:5.2f} s "
                    f"{size / best:5.0f} MB/s"
                )


def _seconds(path: Path) -> float:
    begin = time.perf_counter()
    judge(str(path), BUILT_IN, target="sm86-trt10")
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
