"""Models for the gate's tests, as ONNX text, and a judgement of them in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx24.gate.judge import judge
from onnx24.report.checked import Checked
from onnx24.report.policy import parse_policy
from onnx24.testing.generate import mlp

TARGET = "sm86-trt10"

QDQ_CONV = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,16,8,8] x) => (float[N,16,8,8] y)
<float s = {0.1}, int8 z = {0}, float[16] ws = {SCALES}, int8[16] wz = {ZEROS},
 float so = {0.2}, float[16] b = {ZEROS}>
{
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear<axis = 0>(w, ws, wz)
  c = Conv<pads = [1,1,1,1], kernel_shape = [3,3]>(xd, wd, b)
  r = Relu(c)
  rq = QuantizeLinear(r, so, z)
  y = DequantizeLinear(rq, so, z)
}
"""


def quantized_conv(*, sparse: bool = True, **edits: str) -> onnx.ModelProto:
    """An INT8 convolution as TensorRT wants it; `edits` replaces pieces of its text, with "_" for
    the blanks of a name in a keyword: pass them as a dict."""
    text = QDQ_CONV
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    text = text.replace("SCALES", ",".join(["0.01"] * 16)).replace("ZEROS", ",".join(["0"] * 16))
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    weight[weight == 0] = 1
    if sparse:
        weight[:, 0::4] = weight[:, 1::4] = 0
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def dense_mlp() -> onnx.ModelProto:
    return mlp([64, 64, 32])


def sparse_mlp(*, broken: bool = False) -> onnx.ModelProto:
    """Two weights, 2:4 along K; `broken`: but for one group of the first."""
    proto = mlp([64, 64, 32])
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("weight"):
            values = numpy_helper.to_array(tensor).copy()
            values[::4] = values[1::4] = 0
            if broken and tensor.name == "fc0.weight":
                values[4, 7] = 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def judged(folder: Path, proto: onnx.ModelProto, policy: str, target: str = TARGET) -> Checked:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return judge(str(path), parse_policy(policy, "p", str(folder)), target=target)


def codes(result: Checked) -> list[str]:
    return [finding.code for finding in result.all_findings]
