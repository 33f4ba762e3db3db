"""A small classifier, dense and 2:4, and samples for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.data import Calibration, load_data
from onnx24.targets import DEFAULT, load

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16] x) => (float[N, 8] logits)
{
    h = Gemm(x, w0, b0)
    a = Relu(h)
    logits = Gemm(a, w1, b1)
}
"""


def net(seed: int = 0) -> Model:
    """A dense model with random weights, whose metadata name an author."""
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(seed)
    sizes = {"w0": (16, 32), "b0": (32,), "w1": (32, 8), "b1": (8,)}
    for name, size in sizes.items():
        values = rng.standard_normal(size).astype(np.float32) / size[0] ** 0.5
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    proto.metadata_props.add(key="author", value="somebody")
    return Model.from_proto(proto)


def sparse(pipe: str = "prune24{method=magnitude refit=false}") -> Model:
    model = net()
    manager.run(model, pipeline.parse(pipe), target=load(DEFAULT))
    return model


def data(folder: Path, samples: int = 128) -> Calibration:
    path = folder / "data.npz"
    rng = np.random.default_rng(1)
    np.savez(path, x=rng.standard_normal((samples, 16)).astype(np.float32))
    return load_data(str(path), net())
