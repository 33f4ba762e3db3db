"""How fast prune24's magnitude method is, against `polygraphy surgeon prune` and against memory.

    python benchmarks/prune24_speed.py [--polygraphy COMMAND] [--mib 64]

One run measures, on a generated model in ResNet-50's shapes (25.5 M parameters): polygraphy as a
process, `onnx24 prune24` as a process, the pass in this process, and the kernel alone. Then the
kernel against an in-place np.negative over the same array, for each dtype and place of the axis.
Polygraphy is a tool of this benchmark only (`pip install polygraphy onnx-graphsurgeon`).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx24 import targets  # noqa: E402
from onnx24.analysis.cache import AnalysisCache  # noqa: E402
from onnx24.analysis.eligibility import judge  # noqa: E402
from onnx24.ir.model import Model  # noqa: E402
from onnx24.passmgr.manager import run  # noqa: E402
from onnx24.passmgr.pipeline import parse  # noqa: E402
from onnx24.sparsity import _numba  # noqa: E402
from onnx24.sparsity.masks import prune_24, prune_24_by_stride  # noqa: E402


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """The convolutions and the classifier of ResNet-50 with folded BatchNorm, random weights."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def parameter(name: str, shape: tuple[int, ...]) -> str:
        scale = np.float32(1 / np.sqrt(np.prod(shape[1:]) or 1))
        values = rng.standard_normal(shape, np.float32) * scale
        initializers.append(numpy_helper.from_array(values, name))
        return name

    def conv(x: str, name: str, cin: int, cout: int, k: int, stride: int, relu: bool) -> str:
        inputs = [x, parameter(f"{name}.w", (cout, cin, k, k)), parameter(f"{name}.b", (cout,))]
        out = f"{name}.y"
        pads, strides = [k // 2] * 4, [stride] * 2
        nodes.append(helper.make_node("Conv", inputs, [out], name, pads=pads, strides=strides))
        if relu:
            nodes.append(helper.make_node("Relu", [out], [f"{name}.r"], f"{name}.relu"))
            out = f"{name}.r"
        return out

    x = conv("x", "stem", 3, 64, 7, 2, True)
    pool = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    nodes.append(helper.make_node("MaxPool", [x], ["pool"], "pool", **pool))
    x, channels = "pool", 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            name = f"s{stage}.{block}"
            stride = 2 if stage and not block else 1
            y = conv(x, f"{name}.a", channels, width, 1, 1, True)
            y = conv(y, f"{name}.b", width, width, 3, stride, True)
            y = conv(y, f"{name}.c", width, 4 * width, 1, 1, False)
            skip = x if block else conv(x, f"{name}.d", channels, 4 * width, 1, stride, False)
            nodes.append(helper.make_node("Add", [y, skip], [f"{name}.s"], f"{name}.add"))
            nodes.append(helper.make_node("Relu", [f"{name}.s"], [f"{name}.o"], f"{name}.relu"))
            x, channels = f"{name}.o", 4 * width
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flat"))
    inputs = ["flat", parameter("fc.w", (1000, channels)), parameter("fc.b", (1000,))]
    nodes.append(helper.make_node("Gemm", inputs, ["y"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seconds(call: Callable[[], object], repeat: int = 5) -> float:
    """The shortest of some runs."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def process(command: list[str]) -> float:
    return seconds(
        lambda: subprocess.run(command, check=True, capture_output=True, text=True), repeat=1
    )


def against_polygraphy(polygraphy: str | None, folder: Path) -> None:
    source, out = folder / "resnet50.onnx", folder / "out.onnx"
    source.write_bytes(resnet50().SerializeToString())
    target = targets.load(targets.DEFAULT)
    model = Model.load(source)
    eligible = {k: v for k, v in judge(model, AnalysisCache(), target).items() if v.eligible}
    weights = [(np.array(model.weights[k]), v.k_stride or 1) for k, v in eligible.items()]
    elements = sum(array.size for array, _ in weights)
    print(f"ResNet-50 shapes: {len(weights)} eligible weights, {elements:,} elements")

    def whole() -> None:
        fresh = Model.load(source)
        run(fresh, parse("prune24"), target=target, reproducer_dir=None)
        fresh.save(out)

    def pass_alone() -> float:
        fresh = Model.load(source)
        return run(fresh, parse("prune24"), target=target, reproducer_dir=None).passes[0].seconds

    def kernel() -> None:
        for array, stride in weights:
            prune_24_by_stride(array, stride, engine="numpy")

    cli = [sys.executable, str(ROOT / "cli.py"), "prune24", str(source), "-o", str(out)]
    rows = [
        ("onnx24 prune24, process", process(cli)),
        ("onnx24 load, prune24, save, in process", seconds(whole, 3)),
        ("onnx24 prune24, the pass", min(pass_alone() for _ in range(3))),
        ("onnx24 kernel, numpy", seconds(kernel)),
    ]
    base = None
    if polygraphy:
        command = [*shlex.split(polygraphy), "surgeon", "prune", str(source), "-o", str(out)]
        base = process(command)
        print(f"{'polygraphy surgeon prune, process':40} {base:8.3f} s")
    else:
        print("polygraphy is not installed: no ratio")
    for name, time_ in rows:
        ratio = f"{base / time_:8.1f} x" if base else ""
        print(f"{name:40} {time_:8.3f} s  {elements / time_ / 1e6:8.1f} M weights/s {ratio}")


def against_memory(mib: int) -> None:
    print(f"\nkernel against in-place np.negative, {mib} MiB, GB/s of the array's size")
    print(f"{'dtype':10} {'axis':22} {'negative':>9} {'engine':>7} {'GB/s':>7} {'share':>7}")
    engines = ["numpy", *(["numba"] if _numba.available() else [])]
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        n = (mib << 20) // np.dtype(dtype).itemsize
        flat = rng.standard_normal(n, np.float32).astype(dtype)
        side = 1 << (n.bit_length() // 2)
        rows = n // side
        places = (
            ("last, contiguous", (rows, side), 1),
            ("first of [K, N]", (rows, side), 0),
            ("Conv 3x3 channels", (n // (256 * 9), 256, 3, 3), 1),
        )
        for label, shape, axis in places:
            array = flat[: int(np.prod(shape))].reshape(shape).copy()
            negative = array.nbytes / seconds(lambda: np.negative(array, out=array)) / 1e9  # noqa: B023
            for engine in engines:
                once = lambda: prune_24(array, axis, array, engine=engine)  # noqa: B023, E731
                once()
                rate = array.nbytes / seconds(once) / 1e9
                print(
                    f"{np.dtype(dtype).name:10} {label:22} {negative:9.1f} {engine:>7} "
                    f"{rate:7.2f} {rate / negative:7.1%}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--polygraphy", default=shutil.which("polygraphy"), help="its command")
    parser.add_argument("--mib", type=int, default=64, help="size of the arrays [MiB]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        against_polygraphy(args.polygraphy, Path(folder))
    against_memory(args.mib)


if __name__ == "__main__":
    main()
