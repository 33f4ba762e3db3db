"""How fast prune24's magnitude method is, against `polygraphy surgeon prune` and against memory.

    python benchmarks/prune24_speed.py [--polygraphy COMMAND] [--shapes resnet50,bert-base]
                                       [--mib 64] [--markdown]

One run measures, for each of the shapes, on a generated model: polygraphy as a process and its
pruning alone; `onnx24 prune24` as a process, the pass in this process with its checks and report,
and the kernel alone. Like with like is polygraphy's pruning against the pass; the bar of 300 is
for that, and for ResNet-50 and BERT-base. The pass takes numba by itself only for models from
268 M weights on, or where it is loaded; both engines are given, numba's compiled and loaded.
Polygraphy takes half a minute for ResNet-50 and two minutes for BERT-base: `--shapes none` leaves
it out. It is a tool of this benchmark only
(`pip install polygraphy onnx-graphsurgeon`).

Then the kernel, in place, against an in-place np.negative over the same array, for each dtype,
place of the axis and engine; bars: 15 % of its speed in numpy, 60 % with numba. np.negative of
16-bit floats is computed in software and slow (a sixth of memory's speed here), so the same bytes
are negated as integers, too, which is memory's limit, and both shares are given. Times are CPU time
of one thread, the shortest of several runs in turn, so that other work on the machine counts less.
Last, `prune_24_measured`: the same with the facts of a report.
"""

from __future__ import annotations

import argparse
import os
import platform
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
from onnx24.rewrite import magnitude  # noqa: E402
from onnx24.sparsity import _numba  # noqa: E402
from onnx24.sparsity.masks import (  # noqa: E402
    Engine,
    prune_24,
    prune_24_by_stride,
    prune_24_measured,
)


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


def bert_base(seed: int = 0) -> onnx.ModelProto:
    """The matrix products of BERT-base's 12 layers, 768 and 3072 wide, [K, N] as exporters write
    them, random weights; attention itself has no weights and is left out."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def product(x: str, name: str, k: int, n: int) -> str:
        values = rng.standard_normal((k, n), np.float32) / np.float32(np.sqrt(k))
        initializers.append(numpy_helper.from_array(values, f"{name}.w"))
        nodes.append(helper.make_node("MatMul", [x, f"{name}.w"], [f"{name}.y"], name))
        return f"{name}.y"

    x = "x"
    for layer in range(12):
        parts = [product(x, f"{layer}.{part}", 768, 768) for part in ("query", "key", "value")]
        nodes.append(helper.make_node("Sum", parts, [f"{layer}.sum"], f"{layer}.attention"))
        y = product(f"{layer}.sum", f"{layer}.output", 768, 768)
        y = product(y, f"{layer}.up", 768, 3072)
        nodes.append(helper.make_node("Relu", [y], [f"{layer}.relu"], f"{layer}.relu"))
        x = product(f"{layer}.relu", f"{layer}.down", 3072, 768)
    graph = helper.make_graph(
        nodes,
        "bert",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 128, 768])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 128, 768])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SHAPES = {"resnet50": resnet50, "bert-base": bert_base}


def seconds(call: Callable[[], object], repeat: int = 5) -> float:
    """CPU time of this thread, the shortest of some runs."""
    best = float("inf")
    for _ in range(repeat):
        start = time.thread_time()
        call()
        best = min(best, time.thread_time() - start)
    return best


def process(command: list[str]) -> tuple[float, str]:
    """(CPU time of a process, all of its threads; what it wrote to stderr)."""
    before = os.times()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system, done.stderr


# Polygraphy's command line with the time of its pruning printed.
TIMED = """
import sys, time
from polygraphy.tools import main, sparse
prune = sparse.SparsityPruner.prune
def timed(*args, **options):
    start = time.process_time()
    result = prune(*args, **options)
    print("pruning took", time.process_time() - start, file=sys.stderr)
    return result
sparse.SparsityPruner.prune = timed
sys.exit(main())
"""


def polygraphy_times(command: str, source: Path, out: Path) -> tuple[float, float]:
    """(the whole process, its pruning alone) [s]. command: the script in its environment's bin."""
    python = Path(shutil.which(command) or command).parent / Path(sys.executable).name
    arguments = ["surgeon", "prune", str(source), "-o", str(out)]
    whole, stderr = process([str(python), "-c", TIMED, *arguments])
    return whole, float(stderr.split("pruning took")[1].split()[0])


def against_polygraphy(polygraphy: str | None, name: str, folder: Path, table: Table) -> None:
    source, out = folder / "model.onnx", folder / "out.onnx"
    source.write_bytes(SHAPES[name]().SerializeToString())
    target = targets.load(targets.DEFAULT)
    model = Model.load(source)
    eligible = {k: v for k, v in judge(model, AnalysisCache(), target).items() if v.eligible}
    weights = [(np.array(model.weights[k]), v.k_stride or 1) for k, v in eligible.items()]
    elements = sum(array.size for array, _ in weights)

    def whole() -> float:
        start = time.process_time()
        fresh = Model.load(source)
        run(fresh, parse("prune24"), target=target, reproducer_dir=None)
        fresh.save(out)
        return time.process_time() - start

    def pass_alone(engine: Engine) -> float:
        magnitude.engine_for = lambda elements: engine
        fresh = Model.load(source)
        start = time.process_time()
        run(fresh, parse("prune24"), target=target, reproducer_dir=None)
        return time.process_time() - start

    def kernel(engine: Engine) -> None:
        for array, stride in weights:
            prune_24_by_stride(array, stride, engine=engine)

    def facts(engine: Engine) -> None:
        for array, stride in weights:
            prune_24_measured(array, stride, array, engine=engine)

    cli = [sys.executable, str(ROOT / "cli.py"), "prune24", str(source), "-o", str(out)]
    rows = [
        ("`onnx24 prune24`, the process", process(cli)[0], "process"),
        ("load, prune24, save, in process", min(whole() for _ in range(3)), "process"),
        *(
            (f"the pass, checks and report, {e}", min(pass_alone(e) for _ in range(7)), "pruning")
            for e in ENGINES
        ),
        *((f"prune_24_measured, {e}", seconds(lambda e=e: facts(e)), "pruning") for e in ENGINES),  # type: ignore[misc]
        *((f"the kernel alone, {e}", seconds(lambda e=e: kernel(e)), "pruning") for e in ENGINES),  # type: ignore[misc]
    ]
    theirs: dict[str, float] = {}
    if polygraphy:
        theirs["process"], theirs["pruning"] = polygraphy_times(polygraphy, source, out)
    table.title(f"{name} shapes: {len(weights)} eligible weights, {elements:,} elements")
    table.row("what", "seconds", "M weights/s", "ratio", "to polygraphy's", "bar 300")
    for part, time_ in theirs.items():
        rate = f"{elements / time_ / 1e6:.2f}"
        table.row(f"polygraphy, {part}", f"{time_:.2f}", rate, "1", part, "")
    for label, time_, part in rows:
        ratio = theirs[part] / time_ if theirs else 0.0
        verdict = ""
        if label.startswith("the pass") and theirs:
            verdict = "met" if ratio >= 300 else "missed"
        shown = f"{ratio:.0f}" if theirs else "-"
        rate = f"{elements / time_ / 1e6:.1f}"
        table.row(label, f"{time_:.4f}", rate, shown, part, verdict)


ENGINES: list[Engine] = ["numpy", *(["numba"] if _numba.available() else [])]  # type: ignore[list-item]
BARS = {"numpy": 0.15, "numba": 0.60}


def against_memory(mib: int, table: Table) -> None:
    table.title(f"the kernel in place against in-place np.negative, {mib} MiB, GB/s of the array")
    table.row(
        "dtype", "axis of K", "engine", "kernel", "negative", "share", "as int", "share", "bar"
    )
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        n = (mib << 20) // np.dtype(dtype).itemsize
        flat = rng.standard_normal(n, np.float32).astype(dtype)
        places = (
            ("Linear [N, K]", (n // 4096, 4096), 1),
            ("MatMul [K, N]", (n // 3072 // 4 * 4, 3072), 0),
            ("Conv 3x3 [K, C, 3, 3]", (n // (256 * 9), 256, 3, 3), 1),
        )
        for label, shape, axis in places:
            array = flat[: int(np.prod(shape))].reshape(shape).copy()
            whole = array.view(f"i{array.itemsize}")
            for engine in ENGINES:
                calls: list[Callable[[], object]] = [
                    lambda: prune_24(array, axis, array, engine=engine),  # noqa: B023
                    lambda: np.negative(array, out=array),  # noqa: B023
                    lambda: np.negative(whole, out=whole),  # noqa: B023
                ]
                calls[0]()  # compiles
                times = [
                    min(column)
                    for column in zip(
                        *([seconds(c, 3) for c in calls] for _ in range(5)), strict=True
                    )
                ]
                kernel, negative, memory = (array.nbytes / t / 1e9 for t in times)
                met = [kernel / other >= BARS[engine] for other in (negative, memory)]
                verdict = "met" if all(met) else "met, not as int" if met[0] else "missed"
                table.row(
                    np.dtype(dtype).name,
                    label,
                    engine,
                    f"{kernel:.2f}",
                    f"{negative:.1f}",
                    f"{kernel / negative:.1%}",
                    f"{memory:.1f}",
                    f"{kernel / memory:.1%}",
                    f"{BARS[engine]:.0%}: {verdict}",
                )


def measured(mib: int, table: Table) -> None:
    table.title(f"prune_24_measured, {mib} MiB: pruning in place and all facts, GB/s of the array")
    table.row("dtype", "stride", *ENGINES)
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        n = (mib << 20) // np.dtype(dtype).itemsize
        flat = rng.standard_normal(n, np.float32).astype(dtype)
        for stride in (1, 3072, 9):
            array = flat[: n // (4 * stride) * 4 * stride].copy()
            rates = []
            for engine in ENGINES:
                once = lambda: prune_24_measured(array, stride, array, engine=engine)  # noqa: B023, E731
                once()
                rates.append(f"{array.nbytes / seconds(once, 3) / 1e9:.2f}")
            table.row(np.dtype(dtype).name, str(stride), *rates)


class Table:
    """Prints rows as Markdown, or in columns."""

    def __init__(self, markdown: bool) -> None:
        self.markdown, self.fresh = markdown, True

    def title(self, text: str) -> None:
        print(f"\n## {text}\n" if self.markdown else f"\n{text}", flush=True)
        self.fresh = True

    def row(self, *cells: str) -> None:
        if self.markdown:
            print("|", " | ".join(cells), "|", flush=True)
            if self.fresh:
                print("|" + "---|" * len(cells))
        else:
            print(f"{cells[0]:34}", *(f"{cell:>15}" for cell in cells[1:]), flush=True)
        self.fresh = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--polygraphy", default=shutil.which("polygraphy"), help="its command")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="models, by comma, or none")
    parser.add_argument("--mib", type=int, default=64, help="size of the arrays [MiB]")
    parser.add_argument("--markdown", action="store_true", help="tables for a results page")
    args = parser.parse_args()
    table = Table(args.markdown)
    print(f"{platform.machine()}, numpy {np.__version__}, load {os.getloadavg()[0]:.1f}")
    for name in args.shapes.split(","):
        if name != "none":
            with tempfile.TemporaryDirectory() as folder:
                against_polygraphy(args.polygraphy, name, Path(folder), table)
    against_memory(args.mib, table)
    measured(args.mib, table)


if __name__ == "__main__":
    main()
