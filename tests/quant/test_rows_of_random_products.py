"""The rows that layers are said to see, times the weight as a matrix, are what ONNX Runtime
computes, value for value, whatever the place. The products are those of random graphs; each runs
alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.layer_rows import form_of
from onnx24.analysis.placement import find_layers
from onnx24.analysis.weight_uses import WeightUses, consumer_view
from onnx24.ir.model import Model
from onnx24.layerwise.sites import site_of
from onnx24.runtime.session import Session
from onnx24.testing.random_graphs import random_graph


def alone(use, x: np.ndarray, w: np.ndarray, opset: int) -> np.ndarray:
    names = ["x", "w"] if use.input else ["w", "x"]
    node = onnx.helper.make_node(use.op, names, ["y"])
    kept = [a for a in use.consumer.proto.attribute if a.name not in ("alpha", "beta")]
    node.attribute.extend(kept)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", x.shape), ("w", w.shape), ("y", None))
    ]
    graph = onnx.helper.make_graph([node], "alone", values[:2], values[2:])
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = Model.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return Session(model, optimize=False, threads=1).run({"x": x, "w": w})["y"]


def assert_same_values(mine: np.ndarray, y: np.ndarray, use) -> None:
    said = f"{use.node} ({use.op}) {use.shape}"
    np.testing.assert_allclose(
        np.sort(mine.reshape(-1)), np.sort(y.reshape(-1)), rtol=1e-3, atol=1e-3, err_msg=said
    )


@pytest.mark.parametrize("seed", range(6))
def test_rows_times_matrix_is_the_product(seed: int) -> None:
    graph = random_graph(seed, equal=seed % 2 == 0, steps=14)
    model = Model.from_proto(graph.proto)
    found = AnalysisCache().get(model, WeightUses)
    layers = {id(layer.use): layer for layer in find_layers(found)}
    uses = {
        use: found.read(model, key)
        for key in found.uses
        for use in found.products(key)
        if use.data and use.scope == ""
    }
    names = [use.data for use in uses if use.data not in graph.feeds]
    seen = {**graph.feeds, **Session(model, names, optimize=False).run(graph.feeds)}
    rng = np.random.default_rng(seed)
    for use, stored in uses.items():
        w = consumer_view(stored, use)
        x = rng.standard_normal(seen[use.data].shape).astype(np.float32)
        y = alone(use, x, w, model.opset)
        site = site_of(use) if use.code is None else None
        if site is not None:
            rows, matrices = site.rows(x, 1 << 30), site.matrices(stored)
            assert_same_values(np.einsum("bnk,brk->bnr", rows, matrices), y, use)
            np.testing.assert_array_equal(site.stored(matrices, stored), stored)
        form = form_of(layers[id(use)], w.shape) if id(use) in layers else None
        if form is not None and form.kind != "deconv":
            rows = form.take(x, np.arange(form.count(x.shape)))
            matrix = form.matrix(w)
            assert_same_values(np.einsum("ngk,grk->ngr", rows, matrix), y, use)
            np.testing.assert_array_equal(form.restored(matrix, w.shape), w)


def test_a_vector_has_one_axis_to_sum_over() -> None:
    """W · x: the activation is one row, wherever the weight stands."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[8] x) => (float[4] y) '
        "<float[4, 8] w> { y = MatMul(w, x) }"
    )
    w = np.arange(32, dtype=np.float32).reshape(4, 8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    (layer,) = find_layers(AnalysisCache().get(Model.from_proto(proto), WeightUses))
    form = form_of(layer, w.shape)
    x = np.arange(8, dtype=np.float32)
    assert form is not None and form.count(x.shape) == 1 and form.row_at(x.shape, 5) == 0
    np.testing.assert_array_equal(form.take(x, np.array([0]))[0] @ form.matrix(w)[0].T, [w @ x])
