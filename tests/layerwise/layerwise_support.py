"""Small models and data for the tests of layer-by-layer solving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.layerwise.resources import Resources
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import Calibration, load_data
from onnx24.runtime.session import Session

RNG = np.random.default_rng


def model_of(
    nodes: list[Any],
    weights: dict[str, np.ndarray],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    opset: int = 17,
) -> Model:
    """A float32 model from nodes and named arrays."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def weight(*shape: int, seed: int = 0, fan: int | None = None) -> np.ndarray:
    scale = np.float32(1 / np.sqrt(fan or shape[0]))
    return RNG(seed).standard_normal(shape).astype(np.float32) * scale


def mlp(width: int = 32, layers: int = 3) -> Model:
    """MatMul, Add, Relu, `layers` times, with correlated inputs in mind."""
    nodes, weights, x = [], {}, "x"
    for i in range(layers):
        weights[f"w{i}"] = weight(width, width, seed=i) * np.float32(1.6)
        weights[f"b{i}"] = weight(width, seed=100 + i, fan=100)
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"], f"matmul{i}"),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"], f"add{i}"),
        ]
        x = f"s{i}"
        if i < layers - 1:
            nodes.append(helper.make_node("Relu", [x], [f"r{i}"], f"relu{i}"))
            x = f"r{i}"
    return model_of(nodes, weights, {"x": ["n", width]}, [x])


def correlated(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows whose columns hang together, as activations do."""
    rng = RNG(seed)
    mix = RNG(width).standard_normal((width // 2, width))
    noise = 0.2 * rng.standard_normal((rows, width))
    return (rng.standard_normal((rows, width // 2)) @ mix / 4 + noise).astype(np.float32)


def data_for(folder: Path, model: Model, **arrays: np.ndarray) -> Calibration:
    path = folder / "calib.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return load_data(str(path), model)


def compiled(
    model: Model, text: str, data: Calibration | None, **options: Any
) -> tuple[Model, RunResult]:
    target = targets.load("sm86-trt10")
    return model, run(
        model,
        parse(text),
        target=target,
        calibration=data,
        resources=options.pop("resources", Resources(workers=1)),
        reproducer_dir=None,
        **options,
    )


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(Session(model).run(feeds).values()))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
