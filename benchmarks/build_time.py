"""How long `onnx24 build` takes for a ResNet-50-shaped model, the whole process included.

    python benchmarks/build_time.py [--runs N] [--keep FILE]

The model has ResNet-50's 53 convolutions and its classifier with random weights, batch 1, FP32 or
FP16; the backend is tensorrt-rtx, which needs no GPU. Printed: the seconds of each run, from the
process's start to its end, and what of them the builder's own process took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = ((64, 3), (128, 4), (256, 6), (512, 3))


def resnet50(dtype: type = np.float32) -> onnx.ModelProto:
    """ResNet-50 with its batch norms folded: shapes as published, weights random."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def conv(x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
        w = rng.standard_normal((cout, cin, kernel, kernel)) * np.sqrt(2 / (cin * kernel * kernel))
        weights.append(numpy_helper.from_array(w.astype(dtype), f"{name}.w"))
        weights.append(numpy_helper.from_array(np.zeros(cout, dtype), f"{name}.b"))
        pad = kernel // 2
        nodes.append(
            helper.make_node(
                "Conv", [x, f"{name}.w", f"{name}.b"], [f"{name}.y"], name=name,
                kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4,
            )
        )  # fmt: skip
        return f"{name}.y"

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.r"], name=f"{x}.relu"))
        return f"{x}.r"

    x = relu(conv("image", "stem", 3, 64, 7, 2))
    nodes.append(
        helper.make_node("MaxPool", [x], ["pool"], kernel_shape=[3, 3], strides=[2, 2],
                         pads=[1] * 4, name="maxpool")
    )  # fmt: skip
    x, channels = "pool", 64
    for stage, (width, count) in enumerate(BLOCKS):
        for block in range(count):
            name = f"s{stage}.b{block}"
            stride = 2 if stage and not block else 1
            y = relu(conv(x, f"{name}.a", channels, width, 1))
            y = relu(conv(y, f"{name}.b", width, width, 3, stride))
            y = conv(y, f"{name}.c", width, 4 * width, 1)
            if not block:
                x = conv(x, f"{name}.skip", channels, 4 * width, 1, stride)
            nodes.append(helper.make_node("Add", [y, x], [f"{name}.sum"], name=f"{name}.add"))
            x, channels = relu(f"{name}.sum"), 4 * width
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], name="mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flatten"))
    w = (rng.standard_normal((1000, channels)) / np.sqrt(channels)).astype(dtype)
    weights.append(numpy_helper.from_array(w, "fc.w"))
    weights.append(numpy_helper.from_array(np.zeros(1000, dtype), "fc.b"))
    nodes.append(
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", transB=1)
    )
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", kind, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("logits", kind, [1, 1000])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="write the FP32 model there and stop")
    args = parser.parse_args()
    if args.keep:
        onnx.save_model(resnet50(), args.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (np.float32, np.float16):
            model = Path(folder, f"{np.dtype(dtype).name}.onnx")
            onnx.save_model(resnet50(dtype), model)
            for _ in range(args.runs):
                begin = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, str(ROOT / "cli.py"), "build", str(model), "--target",
                     "sm86-rtx1", "--backend", "tensorrt-rtx", "--engine", f"{model}.engine",
                     "--json"],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                seconds = time.perf_counter() - begin
                built = json.loads(done.stdout)
                print(
                    f"{np.dtype(dtype).name}: {seconds:.2f} s, builder {built['seconds']:.2f} s, "
                    f"{len(built['layers'])} layers, {built['engine_bytes'] / 2**20:.1f} MiB"
                )


if __name__ == "__main__":
    main()
