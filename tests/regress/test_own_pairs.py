"""What qdq places, lint accepts and check counts: lint once looked for pairs over fewer operators
than qdq moves them over (deepcut: 1 of 26 products counted where 13 are quantized). The graphs of
tests/passes/test_qdq*.py are judged too, one by one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.qdq_rules import Quantized, findings, quantized_products
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import load_data

BETWEEN = {
    "nothing": "{o} = Identity({i})",
    "pool": "{o} = MaxPool<kernel_shape = [2, 2], pads = [0, 0, 1, 1]>({i})",
    "depth": "{o}a = SpaceToDepth<blocksize = 2>({i}) {o} = DepthToSpace<blocksize = 2>({o}a)",
    "resize": '{o}a = Resize<mode = "nearest">({i}, none, twice) {o} = Resize({o}a, none, half)',
    "shape": "{o}a = Unsqueeze({i}, one) {o}b = Squeeze({o}a, one) {o}c = Flatten({o}b) "
    "{o}d = Reshape({o}c, shape) {o}e = Transpose<perm = [0, 1, 3, 2]>({o}d) {o} = Identity({o}e)",
    "part": "{o}a = Slice({i}, zero, far, one) {o} = Gather<axis = 2>({o}a, rows)",
    "swish": "{o}a = Sigmoid({i}) {o} = Mul({i}, {o}a)",
    "gated": "{o}a = Neg({i}) {o} = Softplus({o}a)",
    "residual": "{o} = Add({i}, r)",
    "pooled residual": "{o}a = Add({i}, r) {o} = MaxPool<kernel_shape = [1, 1]>({o}a)",
    "few channels": "{o}a = Conv(r, few) {o}b = Conv({o}a, back) {o} = Add({o}b, {i})",
}
CONSTANTS = {
    "none": np.zeros(0, np.float32),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "half": np.array([1, 1, 0.5, 0.5], np.float32),
    "one": np.array([1]),
    "zero": np.array([0]),
    "far": np.array([99]),
    "rows": np.arange(8),
    "shape": np.array([0, 16, 8, 8]),
}


def _net(seed: int) -> Model:
    """Five 2:4 convolutions and a product, with what a pair crosses, and what it does not, between
    them in an order of the seed."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.choice(list(BETWEEN), 5, replace=False)]
    text, value = ["r = Relu(x)"], "r"
    for i, name in enumerate(names):
        text.append(f"c{i} = Conv<pads = [1, 1, 1, 1]>({value}, w{i})")
        text.append(BETWEEN[name].format(i=f"c{i}", o=f"v{i}"))
        value = f"v{i}"
    text.append(f"f = Reshape({value}, flat) y = MatMul(f, wf)")
    shapes = {**{f"w{i}": (16, 16, 3, 3) for i in range(5)}, "wf": (1024, 32)}
    shapes |= {"few": (3, 16, 1, 1), "back": (16, 3, 1, 1)}
    constants = {**CONSTANTS, "flat": np.array([0, 1024])}
    constants |= {
        key: (rng.standard_normal(shape) / np.sqrt(np.prod(shape) / shape[0])).astype(np.float32)
        for key, shape in shapes.items()
    }
    body = " ".join(text)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"g (float[N, 16, 8, 8] x) => (float[N, 32] y) {{ {body} }}"
    )
    for key, values in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, key))
    return Model.from_proto(proto)


@pytest.mark.parametrize("seed", range(8))
def test_lint_accepts_and_check_counts_what_qdq_places(seed):
    model = _net(seed)
    options = "min-agreement=0 calibrator=max rounding=nearest correct-bias=false"
    result = run(
        model,
        parse(f"prune24{{method=magnitude}},qdq{{{options}}}"),
        target=targets.load("sm86"),
        calibration=load_data("random:4", model),
        reproducer_dir=None,
    )
    placed = {(r.scope, r.node) for r in result.records if r.code == "O24-200"}
    judged = Quantized.of(model, AnalysisCache())
    assert not [found.message for found in findings(judged, sparse_outputs=True)]
    assert len(placed) >= 5 and quantized_products(judged)[0] == len(placed)
