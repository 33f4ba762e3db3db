"""How long prune24 with admm takes, and how that grows with layers, width and samples.

    python benchmarks/solving_time.py [--layers 12] [--samples 64] [--only bert|scaling]
        [--options quality=fast] [--against CHECKOUT] [--plot FILE]

The model is an encoder of BERT-base's shapes (hidden 768, feed-forward 3072, 12 heads, sequences
of 128 tokens) with random weights, written to a temporary folder; the calibration data are random
token embeddings with the correlations of a low-rank mix. Times depend on shapes, not on values.
--against runs the same in another checkout of this repository first, so that both
are measured in one run. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx24 import targets  # noqa: E402
from onnx24.ir.model import Model  # noqa: E402
from onnx24.passmgr.manager import run  # noqa: E402
from onnx24.passmgr.pipeline import parse  # noqa: E402
from onnx24.runtime.data import load_data  # noqa: E402

TOKENS = 128


def encoder(layers: int, hidden: int, inner: int, heads: int) -> onnx.ModelProto:
    """Post-norm transformer blocks over embeddings [n, tokens, hidden]."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def dense(x: str, name: str, k: int, n: int) -> str:
        w = rng.standard_normal((k, n), np.float32) / np.float32(np.sqrt(k))
        y = node("MatMul", [x, constant(f"{name}.weight", w)], f"{name}.matmul")
        bias = constant(f"{name}.bias", np.zeros(n, np.float32))
        return node("Add", [y, bias], f"{name}.add")

    def norm(x: str, name: str) -> str:
        scale = constant(f"{name}.scale", np.ones(hidden, np.float32))
        bias = constant(f"{name}.shift", np.zeros(hidden, np.float32))
        return node("LayerNormalization", [x, scale, bias], name, axis=-1)

    split = constant("split", np.array([0, 0, heads, hidden // heads], np.int64))
    join = constant("join", np.array([0, 0, hidden], np.int64))
    root = constant("root", np.float32(1 / np.sqrt(hidden / heads)))
    x = "x"
    for i in range(layers):
        p = f"layer{i}"
        q, k, v = (
            node(
                "Transpose",
                [node("Reshape", [dense(x, f"{p}.{n}", hidden, hidden), split], f"{p}.{n}.heads")],
                f"{p}.{n}.turned",
                perm=[0, 2, 3, 1] if n == "key" else [0, 2, 1, 3],
            )
            for n in ("query", "key", "value")
        )
        scores = node("Mul", [node("MatMul", [q, k], f"{p}.scores"), root], f"{p}.scaled")
        mixed = node("MatMul", [node("Softmax", [scores], f"{p}.softmax"), v], f"{p}.mixed")
        turned = node("Transpose", [mixed], f"{p}.back", perm=[0, 2, 1, 3])
        out = dense(node("Reshape", [turned, join], f"{p}.joined"), f"{p}.output", hidden, hidden)
        x = norm(node("Add", [out, x], f"{p}.skip1"), f"{p}.norm1")
        up = dense(x, f"{p}.up", hidden, inner)
        down = dense(node("Relu", [up], f"{p}.relu"), f"{p}.down", inner, hidden)
        x = norm(node("Add", [down, x], f"{p}.skip2"), f"{p}.norm2")
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", TOKENS, hidden])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", TOKENS, hidden])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seconds(
    layers: int, hidden: int, inner: int, samples: int, options: str = ""
) -> tuple[float, float, dict[str, float]]:
    """(time of the pass [s], processor time of all its threads [s], its statistics)."""
    heads = max(1, hidden // 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "encoder.onnx")
        onnx.save(encoder(layers, hidden, inner, heads), path)
        rng = np.random.default_rng(1)
        mix = rng.standard_normal((hidden // 4, hidden)).astype(np.float32)
        low = rng.standard_normal((samples, TOKENS, hidden // 4)).astype(np.float32)
        np.savez(Path(folder, "x.npz"), x=low @ mix / np.float32(np.sqrt(hidden / 4)))
        model = Model.load(path)
        data = load_data(str(Path(folder, "x.npz")), model)
        start, start_cpu = time.perf_counter(), time.process_time()
        result = run(
            model,
            parse(f"prune24{options}"),
            target=targets.load(targets.DEFAULT),
            calibration=data,
        )
        took, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        return took, cpu, result.passes[-1].statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--only", choices=("bert", "scaling"))
    parser.add_argument("--options", default="", help="of prune24, for --only bert")
    parser.add_argument("--against", type=Path, help="another checkout, measured first")
    parser.add_argument("--plot", help="write the scaling as a picture")
    args = parser.parse_args()

    if args.against:
        script = str(args.against / "benchmarks" / Path(__file__).name)
        same = ["--layers", str(args.layers), "--samples", str(args.samples), "--only", "bert"]
        print(f"{args.against.name}:", flush=True)
        subprocess.run([sys.executable, script, *same], check=True)
        print("this one:")
    if args.only != "scaling":
        options = f"{{{args.options}}}" if args.options else ""
        took, cpu, numbers = seconds(args.layers, 768, 3072, args.samples, options)
        rows = args.samples * TOKENS
        shapes = f"BERT-base shapes, {args.layers} layers, {args.samples} samples ({rows} rows)"
        print(f"| {shapes} | s | processor s |\n|---|---|---|")
        print(f"| {args.options or 'default'} | {took:.0f} | {cpu:.0f} |")
        print(f"\noutput error {numbers['output_error']:.3f}, ", end="")
        print(f"by magnitude {numbers['output_error_magnitude']:.3f}")
    if args.only == "bert":
        return
    # Processor time: other work on the machine counts less.
    series = {
        "layers (hidden 256, 32 samples)": [
            (n, seconds(n, 256, 1024, 32)[1]) for n in (1, 2, 4, 8)
        ],
        "hidden size K (1 layer, 32 samples)": [
            (k, seconds(1, k, 4 * k, 32)[1]) for k in (128, 256, 512, 768, 1024)
        ],
        "samples (1 layer, hidden 256)": [
            (n, seconds(1, 256, 1024, n)[1]) for n in (16, 32, 64, 128, 256)
        ],
    }
    for name, points in series.items():
        print(f"\n| {name} | processor s |\n|---|---|")
        for x, y in points:
            print(f"| {x} | {y:.2f} |")
    if args.plot:
        plot(series, args.plot)


def plot(series: dict[str, list[tuple[int, float]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(series), figsize=(11, 3.2), constrained_layout=True)
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        axis.loglog([x for x, _ in points], [y for _, y in points], "o-")
        axis.set_ylim(0.1, 200)
        axis.minorticks_off()
        axis.set_xticks([x for x, _ in points], [str(x) for x, _ in points])
        axis.set_xlabel(name)
        axis.set_ylabel("processor seconds")
        axis.grid(True, which="both", alpha=0.3)
    figure.suptitle("prune24 with admm: time of the pass")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
