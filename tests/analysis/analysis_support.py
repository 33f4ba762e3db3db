"""Models with one weight and a chain, for the tests of analyses."""

from __future__ import annotations

import numpy as np
import onnx

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility, Verdict
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.ir.keys import ValueKey, as_key
from onnx24.ir.model import Model


def array(shape: tuple[int, ...], dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    if np.dtype(dtype).kind in "iu":
        return (values * 40).astype(dtype)
    return values.astype(dtype)


def build(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> Model:
    """A model from the body of an ONNX text, with initializers by keyword."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def uses_of(model: Model, key: str | ValueKey = "w") -> list[WeightUse]:
    return AnalysisCache().get(model, WeightUses).uses[as_key(key)]


def use_of(model: Model, key: str | ValueKey = "w") -> WeightUse:
    (use,) = uses_of(model, key)
    return use


def verdict_of(model: Model, key: str | ValueKey = "w") -> Verdict:
    return AnalysisCache().get(model, Eligibility).verdicts[as_key(key)]
