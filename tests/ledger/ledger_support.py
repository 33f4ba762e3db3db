"""The net that the recorded files under fixtures/ledger describe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnx24.ir.model import Model

RECORDED = Path(__file__).resolve().parents[2] / "fixtures" / "ledger"

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,16,8,8] x) => (float[64,10] y) <int64[2] flat = {64, 32}> {
  [Conv_0] a = Conv(x, w0)
  [Relu_1] b = Relu(a)
  [Conv_2] c = Conv(b, w2)
  [Conv_4] d = Conv(c, w4)
  [Add_5] e = Add(d, b)
  [Relu_6] f = Relu(e)
  [Reshape_7] h = Reshape(f, flat)
  [MatMul_8] i = MatMul(h, w8)
  [Gemm_10] y = Gemm(i, w10)
}"""


def pruned(values: np.ndarray, axis: int) -> np.ndarray:
    """2:4 along an axis: the first two of each four are zero."""
    flat = np.ascontiguousarray(np.moveaxis(values.copy(), axis, -1))
    flat.reshape(-1, 4)[:, :2] = 0
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis))


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def of(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {"w0": of(32, 16, 1, 1), "w2": of(32, 32, 1, 1), "w4": of(32, 32, 1, 1),
            "w8": of(32, 16), "w10": of(16, 10)}  # fmt: skip


def net(sparse: tuple[str, ...] = ()) -> Model:
    """The net; weights in `sparse` are 2:4 and recorded so."""
    proto = onnx.parser.parse_model(TEXT)
    for name, values in weights().items():
        if name in sparse:
            values = pruned(values, 1 if values.ndim == 4 else 0)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = Model.from_proto(proto)
    for name in sparse:
        model.claims.add(name)
    return model
