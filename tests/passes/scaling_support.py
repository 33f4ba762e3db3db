"""Small nets for the passes that scale channels, and a check that the model computes the same."""

from __future__ import annotations

import numpy as np
import onnx

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import Calibration, load_data
from onnx24.runtime.session import Session

OUTLIERS = [3, 17]
FACTOR = 40.0


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def build(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\ng {text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def with_outliers(values: np.ndarray, axis: int, factor: float = FACTOR) -> np.ndarray:
    """Some channels along `axis` times a factor that is no power of two."""
    out = np.moveaxis(values.copy(), axis, 0)
    out[OUTLIERS] *= np.float32(factor)
    return np.moveaxis(out, 0, axis)


def samples(model: Model, tmp_path, count: int = 24, seed: int = 7) -> Calibration:
    rng = np.random.default_rng(seed)
    arrays = {}
    for value in model.proto.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays[value.name] = rng.standard_normal((count, *dims)).astype(dtype)
    np.savez(tmp_path / "calib.npz", **arrays)
    return load_data(str(tmp_path / "calib.npz"), model)


def applied(model: Model, text: str, tmp_path, **options) -> RunResult:
    """Run a pipeline; the outputs before and after are equal bit for bit, node by node."""
    data = samples(model, tmp_path)
    before = _outputs(model, data)
    result = run(
        model,
        parse(text),
        target=targets.load("sm86"),
        calibration=data,
        reproducer_dir=None,
        **options,
    )
    for old, new in zip(before, _outputs(model, data), strict=True):
        for name, values in old.items():
            np.testing.assert_array_equal(new[name], values, err_msg=name)
    return result


def _outputs(model: Model, data: Calibration) -> list[dict[str, np.ndarray]]:
    session = Session(model, optimize=False)
    return [session.run(feeds) for feeds in data.batches(model)]


def codes(result: RunResult) -> dict[str, str]:
    return {record.node: record.code for record in result.records}
