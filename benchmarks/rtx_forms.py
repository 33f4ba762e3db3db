"""Which forms of Q/DQ does TensorRT-RTX take? Needs tensorrt-rtx, and no GPU.

python benchmarks/rtx_forms.py [-o benchmarks/results/rtx_forms.json]

Each form is a valid model that ONNX Runtime runs. It is parsed and built; the verdict is `built`,
`parser` or `builder` (who refuses it), or `other type` where it builds and a QuantizeLinear's
result has another type than ONNX gives it. tests/benchmarks/test_rtx_forms.py holds lint and the
preset tensorrt-importable to the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TARGET = "sm86-rtx1"
F32, I8, U8, I16, I32 = np.float32, np.int8, np.uint8, np.int16, np.int32
N = 32


@dataclass
class Form:
    """text: nodes between the input x and the output y. given: the constants that it names, beside
    those of CONSTANTS. shape: of x and y."""

    text: str
    given: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    shape: str = f"8, {N}"
    out: str = ""


ACT = "q = QuantizeLinear(x, a, z) d = DequantizeLinear(q, a, z) "
WEIGHT = "wd = DequantizeLinear<axis = 1>(w, s, wz) "
PRODUCT = "y = MatMul(d, wd)"
BIAS = "bd = DequantizeLinear<axis = 0>(b, bs, bz) y = Gemm(d, wd, bd)"
IMAGE = f"1, {N}, 8, 8"
CONV_WEIGHT = "wd = DequantizeLinear<axis = 0>(wc, s, wz) "
CONV = "y = Conv<pads = [1, 1, 1, 1]>(d, wd)"


def _constants() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (N, N)).astype(I8)
    return {
        "a": F32(0.02),
        "a1": np.array([0.02], F32),
        "ac": np.full(N, 0.02, F32),
        "z": I8(0),
        "z1": np.zeros(1, I8),
        "u": U8(0),
        "u128": U8(128),
        "z3": I8(3),
        "w": values,
        "wu": values.astype(U8),
        "wf": (values * 0.01).astype(F32),
        "flat": values.reshape(-1),
        "wc": rng.integers(-127, 128, (N, N, 3, 3)).astype(I8),
        "s": np.full(N, 0.01, F32),
        "s0": np.r_[0, np.full(N - 1, 0.01)].astype(F32),
        "sn": np.r_[-0.01, np.full(N - 1, 0.01)].astype(F32),
        "st": F32(0.01),
        "wz": np.zeros(N, I8),
        "wzu": np.zeros(N, U8),
        "wzu128": np.full(N, 128, U8),
        "c": I8(100),
        "c1": np.array([100], I8),
        "b": rng.integers(-99, 99, N).astype(I32),
        "b8": rng.integers(-99, 99, N).astype(I8),
        "bs": np.full(N, 2e-4, F32),
        "bz": np.zeros(N, I32),
        "lo": I8(-127),
        "hi": I8(127),
        "matrix": np.array([N, N]),
        "back": np.array([8, N]),
        "axes": np.array([1]),
    }


def _small(kind: int, shape: tuple[int, ...], values: np.ndarray) -> TensorProto:
    return helper.make_tensor("", kind, shape, values.reshape(-1).tolist())


def forms() -> dict[str, Form]:
    """Name → form."""
    rng = np.random.default_rng(1)
    int4, fp8 = TensorProto.INT4, TensorProto.FLOAT8E4M3FN
    w4 = rng.integers(-7, 8, (N, N))
    c4 = rng.integers(-7, 8, (N, N, 3, 3))
    w8 = rng.standard_normal((N, N)).astype(ml_dtypes.float8_e4m3fn).astype(F32)
    fp8_given = {
        "z": _small(fp8, (), np.zeros(1)),
        "w": _small(fp8, (N, N), w8),
        "wz": _small(fp8, (N,), np.zeros(N)),
    }
    found = {
        "INT8 pair and channel weight, MatMul": Form(ACT + WEIGHT + PRODUCT),
        "INT8 pair and channel weight, Conv": Form(ACT + CONV_WEIGHT + CONV, shape=IMAGE),
        "float weight -> Q -> DQ": Form(
            ACT + "wq = QuantizeLinear<axis = 1>(wf, s, wz) "
            "wd = DequantizeLinear<axis = 1>(wq, s, wz) " + PRODUCT
        ),
        "weight per tensor": Form(ACT + "wd = DequantizeLinear(w, st, z) " + PRODUCT),
        "weight along the reduced axis": Form(
            ACT + "wd = DequantizeLinear<axis = 0>(w, s, wz) " + PRODUCT
        ),
        "weight scale with a 0": Form(ACT + WEIGHT.replace(" s,", " s0,") + PRODUCT),
        "weight scale negative": Form(ACT + WEIGHT.replace(" s,", " sn,") + PRODUCT),
        "weight without a zero point": Form(
            ACT + "wd = DequantizeLinear<axis = 1>(w, s) " + PRODUCT
        ),
        "weight UINT8, zero point 0": Form(
            ACT + "wd = DequantizeLinear<axis = 1>(wu, s, wzu) " + PRODUCT
        ),
        "weight UINT8, zero point 128": Form(
            ACT + "wd = DequantizeLinear<axis = 1>(wu, s, wzu128) " + PRODUCT
        ),
        "weight alone": Form(WEIGHT + "y = MatMul(x, wd)"),
        "activation alone": Form(ACT + "y = MatMul(d, wf)"),
        "activation scale [1]": Form(
            "q = QuantizeLinear(x, a1, z1) d = DequantizeLinear(q, a1, z1) " + WEIGHT + PRODUCT
        ),
        "activation scale by channel, MatMul": Form(
            "q = QuantizeLinear<axis = 1>(x, ac, wz) d = DequantizeLinear<axis = 1>(q, ac, wz) "
            + WEIGHT
            + PRODUCT
        ),
        "activation scale by channel, Conv": Form(
            "q = QuantizeLinear<axis = 1>(x, ac, wz) d = DequantizeLinear<axis = 1>(q, ac, wz) "
            + CONV_WEIGHT
            + CONV,
            shape=IMAGE,
        ),
        "activation zero point 3": Form(
            ACT.replace(" z)", " z3)") + WEIGHT + PRODUCT,
        ),
        "activation UINT8, zero point 0": Form(ACT.replace(" z)", " u)") + WEIGHT + PRODUCT),
        "activation UINT8, zero point 128": Form(ACT.replace(" z)", " u128)") + WEIGHT + PRODUCT),
        "activation without zero points": Form(
            "q = QuantizeLinear(x, a) d = DequantizeLinear(q, a) " + WEIGHT + PRODUCT
        ),
        "activation INT8 by output_dtype, no zero points": Form(
            "q = QuantizeLinear<output_dtype = 3>(x, a) d = DequantizeLinear(q, a) "
            + WEIGHT
            + PRODUCT,
            opset=21,
        ),
        "activation INT16": Form(
            "q = QuantizeLinear(x, a, z16) d = DequantizeLinear(q, a, z16) " + WEIGHT + PRODUCT,
            {"z16": I16(0)},
            opset=21,
        ),
        "scale computed at run time": Form(
            "m = ReduceMax<keepdims = 0>(x) e = Abs(m) k = Div(e, big) "
            "q = QuantizeLinear(x, k, z) d = DequantizeLinear(q, k, z) " + WEIGHT + PRODUCT,
            {"big": F32(127)},
        ),
        "Conv, weight's scale by arithmetic on constants": Form(
            ACT + "k = Div(s, half) " + CONV_WEIGHT.replace(" s,", " k,") + CONV,
            {"half": F32(2)},
            shape=IMAGE,
        ),
        "Conv, weight's scale by a reduction": Form(
            ACT
            + "k = ReduceMax<axes = [1], keepdims = 0>(sm) "
            + CONV_WEIGHT.replace(" s,", " k,")
            + CONV,
            {"sm": np.full((N, N), 0.01, F32)},
            shape=IMAGE,
        ),
        "MatMul, weight's scale by a reduction": Form(
            ACT
            + "k = ReduceMax<axes = [1], keepdims = 0>(sm) "
            + WEIGHT.replace(" s,", " k,")
            + PRODUCT,
            {"sm": np.full((N, N), 0.01, F32)},
        ),
        "DynamicQuantizeLinear": Form(
            "q, k, p = DynamicQuantizeLinear(x) d = DequantizeLinear(q, k, p) " + WEIGHT + PRODUCT
        ),
        "Q and DQ of two scales": Form(
            "q = QuantizeLinear(x, a, z) d = DequantizeLinear(q, st, z) " + WEIGHT + PRODUCT
        ),
        "bias INT32": Form(ACT + WEIGHT + BIAS),
        "bias INT8": Form(ACT + WEIGHT + BIAS.replace("(b, bs, bz)", "(b8, bs, wz)")),
        "bias INT8, one scale": Form(
            ACT
            + WEIGHT
            + BIAS.replace("DequantizeLinear<axis = 0>(b, bs, bz)", "DequantizeLinear(b8, st, z)")
        ),
        "INT32 constant elsewhere": Form(
            ACT + "bd = DequantizeLinear<axis = 0>(b, bs, bz) y = Add(d, bd)"
        ),
        "INT8 scalar constant": Form(ACT + "cd = DequantizeLinear(c, st, z) y = Mul(d, cd)"),
        "INT8 constant [1]": Form(ACT + "cd = DequantizeLinear(c1, st, z) y = Mul(d, cd)"),
        "INT8 weight -> Clip -> DQ": Form(
            ACT + "r = Clip(w, lo, hi) wd = DequantizeLinear<axis = 1>(r, s, wz) " + PRODUCT
        ),
        "INT8 weight -> Transpose -> DQ": Form(
            ACT + "r = Transpose(w) wd = DequantizeLinear<axis = 1>(r, s, wz) " + PRODUCT
        ),
        "INT8 weight -> Reshape -> DQ": Form(
            ACT + "r = Reshape(flat, matrix) wd = DequantizeLinear<axis = 1>(r, s, wz) " + PRODUCT
        ),
        "INT8 weight -> Identity -> DQ": Form(
            ACT + "r = Identity(w) wd = DequantizeLinear<axis = 1>(r, s, wz) " + PRODUCT
        ),
        "INT8 weight -> Cast": Form(ACT + "wd = Cast<to = 1>(w) " + PRODUCT),
        "INT8 weight -> Cast -> Mul": Form(
            "wi = Cast<to = 1>(w) wd = Mul(wi, s) y = MatMul(x, wd)"
        ),
        "DQ -> Transpose of a weight": Form(
            ACT + "v = DequantizeLinear<axis = 0>(w, s, wz) wd = Transpose(v) " + PRODUCT
        ),
        "float weight -> Q -> Transpose -> DQ": Form(
            ACT + "wq = QuantizeLinear<axis = 0>(wf, s, wz) r = Transpose(wq) "
            "wd = DequantizeLinear<axis = 1>(r, s, wz) " + PRODUCT
        ),
        "float weight -> Q -> Clip -> DQ": Form(
            ACT + "wq = QuantizeLinear<axis = 1>(wf, s, wz) r = Clip(wq, lo, hi) "
            "wd = DequantizeLinear<axis = 1>(r, s, wz) " + PRODUCT
        ),
        "INT8 table -> Gather -> DQ": Form(
            "i = Cast<to = 7>(x) k = Clip(i, none, top) e = Gather(w, k) "
            "y = DequantizeLinear(e, st, z)",
            {"none": np.array(0), "top": np.array(N - 1)},
            out=f"8, {N}, {N}",
        ),
        "INT8 table -> DQ -> Gather": Form(
            "i = Cast<to = 7>(x) k = Clip(i, none, top) e = DequantizeLinear(w, st, z) "
            "y = Gather(e, k)",
            {"none": np.array(0), "top": np.array(N - 1)},
            out=f"8, {N}, {N}",
        ),
        "INT4 channel weight, float activation": Form(
            "wd = DequantizeLinear<axis = 1>(w, s) y = MatMul(x, wd)",
            {"w": _small(int4, (N, N), w4)},
            opset=21,
        ),
        "INT4 channel weight, INT8 activation": Form(
            ACT + "wd = DequantizeLinear<axis = 1>(w, s) " + PRODUCT,
            {"w": _small(int4, (N, N), w4)},
            opset=21,
        ),
        "INT4 block weight, INT8 activation": Form(
            ACT + "wd = DequantizeLinear<axis = 0, block_size = 16>(w, sb) " + PRODUCT,
            {"w": _small(int4, (N, N), w4), "sb": np.full((N // 16, N), 0.01, F32)},
            opset=21,
        ),
        "INT4 weight per tensor, float activation": Form(
            "wd = DequantizeLinear(w, st) y = MatMul(x, wd)",
            {"w": _small(int4, (N, N), w4)},
            opset=21,
        ),
        "INT4 weight per tensor, INT8 activation": Form(
            ACT + "wd = DequantizeLinear(w, st) " + PRODUCT,
            {"w": _small(int4, (N, N), w4)},
            opset=21,
        ),
        "INT4 Conv, INT8 activation": Form(
            ACT + "wd = DequantizeLinear<axis = 0>(wc, s) " + CONV,
            {"wc": _small(int4, (N, N, 3, 3), c4)},
            opset=21,
            shape=IMAGE,
        ),
        "INT4 Conv, float activation": Form(
            "wd = DequantizeLinear<axis = 0>(wc, s) y = Conv<pads = [1, 1, 1, 1]>(x, wd)",
            {"wc": _small(int4, (N, N, 3, 3), c4)},
            opset=21,
            shape=IMAGE,
        ),
        "FP8 pair and channel weight, sm86": Form(ACT + WEIGHT + PRODUCT, fp8_given, opset=21),
        "Q -> Relu -> DQ": Form(
            "q = QuantizeLinear(x, a, z) r = Relu(q) d = DequantizeLinear(r, a, z) "
            + WEIGHT
            + PRODUCT
        ),
        "Q -> Clip -> DQ": Form(
            "q = QuantizeLinear(x, a, z) r = Clip(q, lo, hi) d = DequantizeLinear(r, a, z) "
            + WEIGHT
            + PRODUCT
        ),
        "Q -> MaxPool -> DQ": Form(
            "q = QuantizeLinear(x, a, z) r = MaxPool<kernel_shape = [3, 3], "
            "pads = [1, 1, 1, 1]>(q) y = DequantizeLinear(r, a, z)",
            shape=IMAGE,
        ),
        "Q as the graph's output": Form("y = QuantizeLinear(x, a, z)"),
        "Q -> Cast": Form("q = QuantizeLinear(x, a, z) y = Cast<to = 1>(q)"),
    }
    for op in ("Identity", "Transpose", "Reshape", "Unsqueeze"):
        more = {"Reshape": ", back", "Unsqueeze": ", axes"}.get(op, "")
        rest = {"Transpose": " e = Transpose(d) ", "Unsqueeze": " e = Squeeze(d, axes) "}
        last = rest.get(op, " e = Identity(d) ")
        found[f"Q -> {op} -> DQ"] = Form(
            f"q = QuantizeLinear(x, a, z) r = {op}(q{more}) d = DequantizeLinear(r, a, z)"
            f"{last}{WEIGHT}y = MatMul(e, wd)"
        )
    for name in (
        "INT8 pair and channel weight, MatMul",
        "activation UINT8, zero point 0",
        "activation UINT8, zero point 128",
        "activation without zero points",
        "bias INT32",
    ):
        contrib = found[name].text
        for op in ("QuantizeLinear", "DequantizeLinear"):
            contrib = contrib.replace(f"= {op}", f"= com.microsoft.{op}")
        found[f"com.microsoft: {name}"] = Form(contrib)
    return found


def model_of(form: Form) -> onnx.ModelProto:
    """The form as a model that the checker and ONNX Runtime take."""
    ir = 8 if form.opset < 21 else 10
    out_type = "int8" if form.text.startswith("y = QuantizeLinear") else "float"
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir}, opset_import: ["" : {form.opset}, "com.microsoft" : 1]> '
        f"g (float[{form.shape}] x) => ({out_type}[{form.out or form.shape}] y) {{ {form.text} }}"
    )
    read = {name for node in proto.graph.node for name in node.input}
    for name, value in {**_constants(), **form.given}.items():
        if name not in read:
            continue
        tensor = (
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
        )
        tensor.name = name
        proto.graph.initializer.append(tensor)
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{i}"
    return proto


def judge(proto: onnx.ModelProto) -> tuple[str, str]:
    """(verdict, the first thing that TensorRT-RTX says)"""
    import tensorrt_rtx as trt

    said: list[str] = []

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        return "parser", parser.get_error(0).desc()
    others = list(_other_types(proto, network, trt))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    if builder.build_serialized_network(network, config) is None:
        return "builder", said[0] if said else ""
    return ("other type", others[0]) if others else ("built", "")


def _other_types(proto: onnx.ModelProto, network: Any, trt: Any) -> Iterator[str]:
    inferred = onnx.shape_inference.infer_shapes(proto)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    zeros = {t.name: t.data_type for t in proto.graph.initializer}
    for node in proto.graph.node:  # onnx infers nothing for the other domain
        if node.op_type == "QuantizeLinear" and node.output[0] not in types:
            kind = zeros.get(node.input[2]) if len(node.input) > 2 else TensorProto.UINT8
            types[node.output[0]] = kind or TensorProto.UINT8
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type != trt.LayerType.QUANTIZE:
            continue
        value = layer.get_output(0)
        if types.get(value.name) == TensorProto.UINT8 and value.dtype == trt.int8:
            yield f"{value.name} is UINT8 and read as INT8"


def table() -> dict[str, dict[str, str]]:
    """Form → verdict and message."""
    found = {}
    for name, form in forms().items():
        proto = model_of(form)
        onnx.checker.check_model(proto, full_check=True)
        verdict, message = judge(proto)
        found[name] = {"verdict": verdict, "message": " ".join(message.split())[:160]}
        print(f"{verdict:10} {name}: {found[name]['message']}", flush=True)
    return found


def main() -> None:
    import tensorrt_rtx as trt

    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).with_name("results") / "rtx_forms.json"
    parser.add_argument("-o", "--output", type=Path, default=default)
    output = parser.parse_args().output
    rows = {"tensorrt-rtx": trt.__version__, "target": TARGET, "forms": table()}
    output.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
