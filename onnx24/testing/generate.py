"""Models made to measure for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def mlp(
    sizes: Sequence[int], *, seed: int = 0, opset: int = 17, batch: int | str = "N"
) -> onnx.ModelProto:
    """A stack of MatMul, Add, Relu with normally distributed weights.

    sizes: features of the input, of every hidden layer and of the output.
    """
    rng = np.random.default_rng(seed)
    nodes, initializers, value = [], [], "x"
    for i, (k, n) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((k, n), np.float32) / np.float32(np.sqrt(k))
        bias = rng.standard_normal(n, np.float32) * np.float32(0.1)
        initializers += [
            onnx.numpy_helper.from_array(weight, f"fc{i}.weight"),
            onnx.numpy_helper.from_array(bias, f"fc{i}.bias"),
        ]
        last = i == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [value, f"fc{i}.weight"], [f"m{i}"], f"fc{i}"))
        nodes.append(
            helper.make_node(
                "Add", [f"m{i}", f"fc{i}.bias"], ["y" if last else f"a{i}"], f"fc{i}.add"
            )
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"))
            value = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, sizes[-1]])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external_mlp(folder: Path, size_bytes: int, *, width: int = 4096, seed: int = 0) -> Path:
    """An MLP whose weights fill about `size_bytes` of one external data file, written layer by
    layer so that memory stays small. Returns the model's path."""
    layer_bytes = width * width * 4
    layers = max(1, size_bytes // layer_bytes)
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((width, width), np.float32) / np.float32(np.sqrt(width))
    nodes, initializers, value = [], [], "x"
    with open(folder / "weights.bin", "wb") as file:
        for i in range(layers):
            tensor = TensorProto(name=f"fc{i}.weight", data_type=TensorProto.FLOAT)
            tensor.dims.extend((width, width))
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "weights.bin", "offset": file.tell(), "length": layer_bytes}
            for key, entry in entries.items():
                tensor.external_data.add(key=key, value=str(entry))
            initializers.append(tensor)
            file.write(np.roll(block, i, axis=0).data)
            out = "y" if i == layers - 1 else f"m{i}"
            nodes.append(helper.make_node("MatMul", [value, tensor.name], [out], f"fc{i}"))
            value = out
    graph = helper.make_graph(
        nodes,
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
