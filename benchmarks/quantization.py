"""INT8 by onnx24: what it costs in accuracy, and what it takes in time and memory, against peers.

    python benchmarks/quantization.py labelled SHARED/data    accuracy on labelled models
    python benchmarks/quantization.py outliers                40x outlier channels in a transformer
    python benchmarks/quantization.py memory [--samples N]    peak memory of the calibration
    python benchmarks/quantization.py peers --model resnet50 --samples 512 [--tool …] [--build]

Peers are tools of this script and no dependency: ONNX Runtime's `quantize_static` runs in this
interpreter, Model-Optimizer in the one that --modelopt-python names (it wants versions of its own).
Each run is a process of its own, whose peak resident memory and wall time are taken. The models are
ResNet-50 and BERT-base in shape, with seeded random weights, so that there is no accuracy to speak
of: the difference of the outputs from the float model's is what is compared.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures"), str(ROOT / "tests" / "real")]
sys.path.append(str(ROOT / "benchmarks" / "accuracy"))


# --- models of known shape -----------------------------------------------------------------
class Builder:
    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        values = self.rng.standard_normal(shape, np.float32)
        return self.constant(values * np.float32(scale if scale is not None else (2 / fan) ** 0.5))

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def model(self, shape: list[int | str], output: str, out: list[int | str]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["y"], "last"))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet50(size: int = 224, width: int = 64) -> onnx.ModelProto:
    """BatchNormalization folded, as tools want it."""
    b = Builder()

    def conv(x: str, c: int, k: int, out: int, stride: int = 1, gain: float = 1.0) -> str:
        w = b.weight(out, c, k, k, scale=gain * (2 / (c * k * k)) ** 0.5)
        bias = b.weight(out, scale=0.1)
        return b.node("Conv", x, w, bias, pads=[k // 2] * 4, strides=[stride] * 2)

    x = b.node("Relu", conv("x", 3, 7, width, 2))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            h = b.node("Relu", conv(x, channels, 1, inner))
            h = b.node("Relu", conv(h, inner, 3, inner, stride))
            h = conv(h, inner, 1, 4 * inner, gain=0.5)
            skip = x if block else conv(x, channels, 1, 4 * inner, stride)
            x = b.node("Relu", b.node("Add", h, skip))
            channels = 4 * inner
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    y = b.node("Gemm", x, b.weight(channels, 1000), b.weight(1000, scale=0.1))
    return b.model(["N", 3, size, size], y, ["N", 1000])


def bert_base(*, outliers: bool = False, layers: int = 12, d: int = 768) -> onnx.ModelProto:
    """The encoder, pre-normalized, behind its embeddings. outliers: 40 times wider channels behind
    every normalization, the function unchanged."""
    b = Builder()
    heads, length = d // 64, 128
    wide = np.arange(0, d, d // 6)

    def scaled(values: np.ndarray, factor: float) -> np.ndarray:
        values = values.astype(np.float32)
        if outliers:
            values[wide] *= np.float32(factor)
        return values

    def norm(x: str) -> str:
        gamma = b.constant(scaled(1 + 0.2 * b.rng.standard_normal(d), 40))
        beta = b.constant(scaled(0.1 * b.rng.standard_normal(d), 40))
        return b.node("LayerNormalization", x, gamma, beta, axis=-1)

    def linear(x: str, k: int, n: int, gain: float = 1.0, normed: bool = False) -> str:
        values = b.rng.standard_normal((k, n), np.float32) * np.float32(gain * k**-0.5)
        w = b.constant(scaled(values, 1 / 40) if normed else values)
        return b.node("Add", b.node("MatMul", x, w), b.weight(n, scale=0.02))

    split = b.constant(np.array([0, length, heads, 64], np.int64))
    merge = b.constant(np.array([0, length, d], np.int64))
    half, one, root2 = (b.constant(np.array(v, np.float32)) for v in (0.5, 1.0, 2**0.5))
    eighth = b.constant(np.array(0.125, np.float32))
    x = "x"
    for _ in range(layers):
        h = norm(x)
        q, k, v = (b.node("Reshape", linear(h, d, d, 2.0, True), split) for _ in range(3))
        q, v = (b.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        k = b.node("Transpose", k, perm=[0, 2, 3, 1])
        p = b.node("Softmax", b.node("Mul", b.node("MatMul", q, k), eighth), axis=-1)
        m = b.node("Transpose", b.node("MatMul", p, v), perm=[0, 2, 1, 3])
        x = b.node("Add", x, linear(b.node("Reshape", m, merge), d, d, 0.5))
        u = linear(norm(x), d, 4 * d, 1.0, True)
        e = b.node("Add", b.node("Erf", b.node("Div", u, root2)), one)
        g = b.node("Mul", b.node("Mul", u, e), half)
        x = b.node("Add", x, linear(g, 4 * d, d, 0.5))
    return b.model(["N", length, d], norm(x), ["N", length, d])


NETS = {
    "resnet50": (resnet50, (3, 224, 224)),
    "bert-base": (bert_base, (128, 768)),
    "bert-base-outliers": (lambda: bert_base(outliers=True), (128, 768)),
}


def sample(shape: tuple[int, ...], index: int) -> np.ndarray:
    return np.random.default_rng([24, index]).standard_normal(shape, np.float32)


def write_samples(path: Path, shape: tuple[int, ...], start: int, count: int) -> None:
    """An `.npz` of one array `x`, sample by sample."""
    out = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float32, (count, *shape))
    for i in range(count):
        out[i] = sample(shape, start + i)
    out.flush()
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(path.with_suffix(".npy"), "x.npy")
    path.with_suffix(".npy").unlink()


# --- our own runs --------------------------------------------------------------------------
def compiled(source: Any, text: str, data: str) -> tuple[Any, Any]:
    """(model, result) of a pipeline; source: a path or a Model."""
    from onnx24.ir.model import Model
    from onnx24.passmgr import manager, pipeline
    from onnx24.runtime.data import load_data
    from onnx24.targets import load

    model = Model.load(source) if isinstance(source, str | Path) else source
    result = manager.run(
        model, pipeline.parse(text), target=load("sm86"), calibration=load_data(data, model)
    )
    return model, result


def outputs(model: Any, x: np.ndarray, rows: int = 64) -> np.ndarray:
    from onnx24.runtime.session import Session

    session = Session(model, optimize=False)
    (name,) = session.inputs
    parts = [session.run({name: x[i : i + rows]}) for i in range(0, len(x), rows)]
    return np.concatenate([part[session.outputs[0]] for part in parts])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sqnr_db(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(10 * np.log10(np.sum(a * a) / max(float(np.sum((a - b) ** 2)), 1e-300)))


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


# --- labelled ------------------------------------------------------------------------------
def labelled_models(data: Path, scratch: Path) -> Iterator[tuple[str, Any, str, np.ndarray, Any]]:
    """(name, model, calibration file, test inputs, test labels)"""
    import tasks
    from data import digits

    from onnx24.ir.model import Model

    split = digits()
    np.savez(scratch / "digits.npz", image=split.train_x[:512])
    for name in ("cnn", "vit"):
        path = ROOT / "fixtures" / "models" / f"{name}.onnx"
        yield name, Model.load(path), str(scratch / "digits.npz"), split.test_x, split.test_y
    with gzip.open(data / "eval/mnist/t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 784, 1)
    with gzip.open(data / "eval/mnist/t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    images = (images / 255).astype(np.float32)
    calib = np.arange(len(images)) % 10 == 0
    np.savez(scratch / "mnist.npz", **{"0": images[calib]})
    for size in (2, 4, 6):
        proto = onnx.load(data / f"models/zoo/mnistfc_256x{size}.onnx")
        for value in (*proto.graph.input, *proto.graph.output):  # the batch is fixed at 1
            if value.type.tensor_type.shape.dim[0].dim_value == 1:
                value.type.tensor_type.shape.dim[0].dim_param = "N"
        model = Model.from_proto(proto)
        name = f"mnistfc {size}, batch freed"
        yield name, model, str(scratch / "mnist.npz"), images[~calib], labels[~calib]
    magika = tasks.task("magika_std_v3_3", tasks.Places.default())
    calib = magika.make_calibration(512)  # other files than the golden cases
    yield "magika v3.3", Model.load(magika.path), str(calib), *magika.data[:2]


def labelled(args: argparse.Namespace) -> None:
    from onnx24.ir.model import Model

    base = "canonicalize,upgrade-opset{to=13}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, calib, x, y in labelled_models(args.data, Path(folder)):
            original = model.to_bytes()
            wanted = outputs(model, x)

            def measured(
                text: str, original: bytes = original, calib: str = calib, x: Any = x, y: Any = y
            ) -> tuple[float, np.ndarray, int]:
                found, result = compiled(Model.from_bytes(original), text, calib)
                got = outputs(found, x)
                count = sum(r.code == "O24-200" for r in result.records)
                return 100 * float(np.mean(got.argmax(1) == y)), got, count

            dense = 100 * float(np.mean(wanted.argmax(1) == y))
            int8, got, count = measured(f"{base},smooth-quant,qdq,fold-qdq")
            pruned, sparse, _ = measured(f"{base},prune24{{quality=magnitude}}")
            both, after, _ = measured(
                f"{base},smooth-quant,prune24{{quality=magnitude}},qdq,fold-qdq"
            )
            rows.append(
                [name, str(len(y)), str(count), f"{dense:.2f}", f"{int8:.2f}",
                 f"{int8 - dense:+.2f}", f"{sqnr_db(wanted, got):.1f}", f"{pruned:.2f}",
                 f"{both:.2f}",
                 f"{both - pruned:+.2f}", f"{sqnr_db(sparse, after):.1f}"]
            )  # fmt: skip
    head = ["model", "test", "INT8 layers", "dense %", "INT8 %", "points", "SQNR dB", "2:4 %",
            "2:4 + INT8 %", "points", "SQNR to 2:4 dB"]  # fmt: skip
    table(head, rows)


# --- outliers ------------------------------------------------------------------------------
def with_outliers(path: Path, factor: float = 40.0) -> bytes:
    """The fixture transformer with three wide channels behind every normalization; the function
    is the same."""
    proto = onnx.load(path)
    tensors = {t.name: t for t in proto.graph.initializer}

    def scale(name: str, by: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[[5, 40, 77]] *= np.float32(by)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    for block in (0, 1):
        for norm, readers in (("norm1", ("query", "key", "value")), ("norm2", ("up",))):
            for vector in ("weight", "bias"):
                scale(f"block{block}.{norm}.{vector}", factor)
            for reader in readers:
                scale(f"block{block}.{reader}.weight", 1 / factor)
    return proto.SerializeToString()


def outliers(_: argparse.Namespace) -> None:
    from data import digits

    from onnx24.ir.model import Model

    split, rows = digits(), []
    path = ROOT / "fixtures" / "models" / "vit.onnx"
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder, "digits.npz")
        np.savez(calib, image=split.train_x[:512])
        for name, data in (("as trained", path.read_bytes()), ("40x", with_outliers(path))):
            wanted = outputs(Model.from_bytes(data), split.test_x)
            for calibrator in ("max", "percentile", "mse", "entropy", "auto"):
                for before in ("", "smooth-quant,"):
                    text = f"{before}qdq{{calibrator={calibrator}}}"
                    model, _result = compiled(Model.from_bytes(data), text, str(calib))
                    got = outputs(model, split.test_x)
                    right = 100 * float(np.mean(got.argmax(1) == split.test_y))
                    rows.append([name, text, f"{right:.2f}", f"{sqnr_db(wanted, got):.2f}"])
    table(["channels", "pipeline", "accuracy %", "SQNR dB"], rows)


# --- memory --------------------------------------------------------------------------------
def memory(args: argparse.Namespace) -> None:
    """Activations of ResNet-50's sizes for `samples` images, generated as they stream, through the
    calibrators and row samples that qdq would use on it; then a real run of the pass."""
    from onnx24.analysis.cache import AnalysisCache
    from onnx24.analysis.layer_rows import form_of
    from onnx24.analysis.placement import find_layers
    from onnx24.analysis.weight_uses import WeightUses
    from onnx24.ir.model import Model
    from onnx24.quant.calibrators import Method, make
    from onnx24.quant.rows import RowSample
    from onnx24.runtime.session import Session

    start = peak_mib()
    model = Model.from_proto(resnet50())
    found = AnalysisCache().get(model, WeightUses)
    layers = find_layers(found)
    names = list(dict.fromkeys(layer.data for layer in layers))
    arrays = Session(model, [n for n in names if n != "x"]).run({"x": sample((1, 3, 224, 224), 0)})
    arrays["x"] = sample((1, 3, 224, 224), 0)
    loaded = peak_mib()
    observers = {name: [make(Method.AUTO)] for name in names}
    forms = {(layer.data, form_of(layer, layer.use.chain[-1].shape if layer.use.chain
             else tuple(found.tensors[layer.weight].dims))) for layer in layers}  # fmt: skip
    samples = [(name, RowSample(form, args.samples)) for name, form in forms]
    began = time.perf_counter()
    for i in range(args.samples):
        factor = np.float32(1 + i % 7 / 7)  # as wide as other images' activations may be
        for name in names:
            arrays[name] *= factor
            observers[name][0].observe(arrays[name])
        for name, each in samples:
            each.observe(arrays[name])
        for name in names:
            arrays[name] /= factor
        if i in (99, args.samples - 1):
            seconds = time.perf_counter() - began
            count = sum(array.size for array in arrays.values())
            print(
                f"{i + 1} samples: peak {peak_mib():.0f} MiB ({start:.0f} before, {loaded:.0f} "
                f"with the model and one image's {count:,} activations), {seconds:.0f} s",
                flush=True,
            )
    for name in names:
        observers[name][0].candidates()  # type: ignore[attr-defined]
    for _, each in samples:
        each.rows()
    print(f"with the results: peak {peak_mib():.0f} MiB")


# --- peers ---------------------------------------------------------------------------------
def tool_onnx24(source: Path, out: Path, calib: Path, pipeline: str) -> None:
    model, _ = compiled(source, pipeline, str(calib))
    model.save(out)


def tool_ort(source: Path, out: Path, calib: Path, method: str) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(np.load(calib)["x"])

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row[None]}

    prepared = out.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


def tool_modelopt(source: Path, out: Path, calib: Path, method: str) -> None:
    sys.path[:] = [p for p in sys.path if not p.startswith(str(ROOT))]  # our folders' names
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"x": np.load(calib)["x"]},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
    )


TOOLS = {
    "onnx24": (tool_onnx24, "canonicalize,smooth-quant,qdq,fold-qdq"),
    "onnx24 max": (tool_onnx24, "canonicalize,qdq{calibrator=max},fold-qdq"),
    "onnx24 best": (
        tool_onnx24,
        "canonicalize,smooth-quant,qdq{rounding=adaptive correct-bias=true},fold-qdq",
    ),
    "ORT minmax": (tool_ort, "MinMax"),
    "ORT entropy": (tool_ort, "Entropy"),
    "ORT percentile": (tool_ort, "Percentile"),
    "ModelOpt max": (tool_modelopt, "max"),
    "ModelOpt entropy": (tool_modelopt, "entropy"),
}


def peers(args: argparse.Namespace) -> None:
    from onnx24.ir.model import Model

    make, shape = NETS[args.model]
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        scratch = Path(folder)
        source, calib = scratch / "net.onnx", scratch / "calib.npz"
        onnx.save(make(), source)
        write_samples(calib, shape, 0, args.samples)
        x = np.stack([sample(shape, 1 << 20 | i) for i in range(args.tests)])
        wanted = outputs(Model.load(source), x, rows=4)
        rows = []
        for name in args.tool or TOOLS:
            out = scratch / "out.onnx"
            out.unlink(missing_ok=True)
            python = args.modelopt_python if name.startswith("ModelOpt") else sys.executable
            if python is None:
                continue
            script = str(Path(__file__).resolve())
            command = [python, script, "tool", "--tool", name, str(source), str(out), str(calib)]
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  timeout=args.timeout)  # fmt: skip
            if done.returncode or not out.exists():
                why = done.stderr.strip().splitlines()[-1:] or ["no output"]
                rows.append([name, f"failed ({done.returncode}): {why[0][:80]}", *[""] * 6])
                print(rows[-1], flush=True)
                continue
            stats = json.loads(done.stdout.strip().splitlines()[-1])
            got = outputs(Model.load(out), x, rows=4)
            top1 = float(np.mean(got.argmax(-1) == wanted.argmax(-1)))
            built = _built(out, scratch) if args.build else ""
            pairs = sum(n.op_type == "QuantizeLinear" for n in onnx.load(out).graph.node)
            rows.append([name, f"{sqnr_db(wanted, got):.2f}", f"{100 * top1:.1f}", str(pairs),
                         f"{stats['seconds']:.1f}", f"{stats['cpu']:.1f}",
                         f"{stats['peak_mib']:.0f}", built])  # fmt: skip
            print(rows[-1], flush=True)
    print(f"\n{args.model}, {args.samples} samples, {args.tests} test inputs\n")
    table(
        ["tool", "SQNR dB", "top-1 agreement %", "Q nodes", "s", "CPU s", "peak MiB", "RTX"], rows
    )


def _built(path: Path, scratch: Path) -> str:
    from onnx24_real import rtx_builds

    error = rtx_builds(path, scratch / "engine")
    return {"": "yes", None: "no package"}.get(error, f"no: {error}")[:60]


def tool(args: argparse.Namespace) -> None:
    """One run of one tool, for `peers`."""
    run, option = TOOLS[args.tool]
    began, cpu = time.perf_counter(), time.process_time()
    run(args.source, args.out, args.calib, option)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print("\n" + json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak_mib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("labelled")
    sub.add_argument("data", type=Path)
    sub.set_defaults(run=labelled)
    sub = commands.add_parser("outliers")
    sub.set_defaults(run=outliers)
    sub = commands.add_parser("memory")
    sub.add_argument("--samples", type=int, default=10_000)
    sub.set_defaults(run=memory)
    sub = commands.add_parser("peers")
    sub.add_argument("--model", choices=NETS, default="resnet50")
    sub.add_argument("--samples", type=int, default=64)
    sub.add_argument("--tests", type=int, default=16)
    sub.add_argument("--tool", action="append", choices=TOOLS)
    sub.add_argument("--modelopt-python")
    sub.add_argument("--build", action="store_true")
    sub.add_argument("--scratch", type=Path)
    sub.add_argument("--timeout", type=float, default=3600)
    sub.set_defaults(run=peers)
    sub = commands.add_parser("tool")
    sub.add_argument("--tool", choices=TOOLS, required=True)
    for name in ("source", "out", "calib"):
        sub.add_argument(name, type=Path)
    sub.set_defaults(run=tool)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
