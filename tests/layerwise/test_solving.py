"""Solving whole models: order, bias, branches, guards, budget, resuming, and the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from layerwise_support import (
    RNG,
    compiled,
    correlated,
    data_for,
    mlp,
    model_of,
    outputs,
    relative,
    weight,
)
from onnx import TensorProto, helper

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.resources import Resources
from onnx24.layerwise.stages import make_plan
from onnx24.layerwise.store import Store
from onnx24.sparsity.masks import is_24


def plan_of(model: Model, *names: str):
    found = AnalysisCache().get(model, WeightUses)
    return make_plan(model, found, [ValueKey("", name) for name in names])


def record(result, name):
    (found,) = [r for r in result.records if r.weight == name and r.action == "pruned"]
    return found


# --- stages ------------------------------------------------------------------------------------
def test_a_chain_has_a_stage_for_each_layer():
    plan = plan_of(mlp(), "w0", "w1", "w2")
    assert [(layer.name, layer.stage) for layer in plan.layers] == [
        ("w0", 0),
        ("w1", 1),
        ("w2", 2),
    ]
    assert [layer.bias.name for layer in plan.layers] == ["b0", "b1", "b2"]


def attention(width: int = 32) -> Model:
    """Query, key and value of one input, a residual Add, tokens [n, t, width]."""
    names = ("q", "k", "v", "o")
    weights = {f"w{n}": weight(width, width, seed=i) for i, n in enumerate(names)}
    weights |= {f"b{n}": weight(width, seed=9 + i, fan=99) for i, n in enumerate(names)}

    def dense(x: str, n: str) -> list:
        return [
            helper.make_node("MatMul", [x, f"w{n}"], [f"p{n}"], f"m{n}"),
            helper.make_node("Add", [f"p{n}", f"b{n}"], [n], f"a{n}"),
        ]

    nodes = [
        *dense("x", "q"),
        *dense("x", "k"),
        *dense("x", "v"),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], "scores"),
        helper.make_node("Softmax", ["s"], ["soft"], "soft"),
        helper.make_node("MatMul", ["soft", "v"], ["mixed"], "mix"),
        *dense("mixed", "o"),
        helper.make_node("Add", ["o", "x"], ["y"], "residual"),
    ]
    return model_of(nodes, weights, {"x": ["n", "t", width]}, ["y"])


def test_siblings_share_a_stage_and_a_branch_is_found():
    plan = plan_of(attention(), "wq", "wk", "wv", "wo")
    stages = {layer.name: layer.stage for layer in plan.layers}
    assert stages == {"wq": 0, "wk": 0, "wv": 0, "wo": 1}
    residuals = {layer.name: layer.residual for layer in plan.layers}
    assert residuals["wo"] is not None and residuals["wo"].value == "x"
    assert residuals["wq"] is None
    assert len(plan.segments) == 2


def test_a_shared_weight_is_solved_at_its_last_reader():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "u"], ["c"], "between"),
        helper.make_node("MatMul", ["c", "w"], ["y"], "second"),
    ]
    weights = {"w": weight(16, 16), "u": weight(16, 16, seed=1)}
    plan = plan_of(model_of(nodes, weights, {"x": ["n", 16]}, ["y"]), "w", "u")
    stages = {layer.name: (layer.stage, len(layer.sites)) for layer in plan.layers}
    assert stages == {"u": (0, 1), "w": (1, 2)}


def test_a_weight_in_a_body_is_left_to_magnitude(tmp_path):
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], "inner")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 16])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"], "same")],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n", 16])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["h"], "outer"),
        helper.make_node("ReduceMax", ["h"], ["m"], "max", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"], "greater"),
        helper.make_node("If", ["c"], ["i"], "choose", then_branch=then, else_branch=other),
        helper.make_node("Add", ["i", "h"], ["y"], "sum"),
    ]
    weights = {"w": weight(16, 16), "u": weight(16, 16, seed=1), "zero": np.zeros((), np.float32)}
    model = model_of(nodes, weights, {"x": ["n", 16]}, ["y"])
    data = data_for(tmp_path, model, x=correlated(200, 16))
    model, result = compiled(model, "prune24", data)
    assert "output_error" in record(result, "u").facts
    inner = record(result, "w")
    assert "stands in a body" in inner.facts["unsolved"]
    assert is_24(model.weights["w"], 0) and is_24(model.weights["u"], 0)


# --- results -----------------------------------------------------------------------------------
@pytest.mark.parametrize("build", [mlp, attention])
def test_the_default_is_far_better_than_magnitude(tmp_path, build):
    shape = (400, 32) if build is mlp else (100, 6, 32)
    x = correlated(600, 32).reshape(-1)[: np.prod(shape)].reshape(shape)
    fresh = correlated(64, 32, seed=5).reshape(-1, *shape[1:]) if build is mlp else x[:20]
    dense = outputs(build(), {"x": fresh})
    errors = {}
    for text in ("prune24{quality=magnitude}", "prune24", "prune24{method=obs}"):
        model = build()
        model, _ = compiled(model, text, data_for(tmp_path, model, x=x))
        errors[text] = relative(outputs(model, {"x": fresh}), dense)
    assert errors["prune24"] < 0.45 * errors["prune24{quality=magnitude}"]
    assert errors["prune24"] < errors["prune24{method=obs}"]


def test_outputs_spread_as_the_dense_ones(tmp_path):
    """What least squares leaves unexplained is made up for."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    data, fresh = correlated(8000, 32, seed=1), correlated(4000, 32, seed=2)

    def build() -> Model:
        return model_of(nodes, {"w": weight(32, 16)}, {"x": ["n", 32]}, ["y"])

    dense = outputs(build(), {"x": fresh})
    spreads = {}
    for text in ("prune24", "prune24{method=admm asymmetric=off}"):
        model, _ = compiled(build(), text, data_for(tmp_path, build(), x=data))
        spreads[text] = outputs(model, {"x": fresh}).std(0) / dense.std(0)
    shrunk = 1 - spreads["prune24{method=admm asymmetric=off}"]
    assert np.all(shrunk > 0.001)
    assert np.abs(1 - spreads["prune24"]).mean() < 0.5 * shrunk.mean()


def convnet() -> Model:
    """Conv without bias, BatchNormalization, Relu, a strided Conv beside a skip, Gemm."""
    rng = RNG(4)
    weights = {
        "c0": weight(16, 8, 3, 3, fan=72),
        "c1": weight(16, 16, 3, 3, seed=1, fan=144),
        "g": weight(10, 16, seed=2, fan=16),
    }
    for n in ("0", "1"):
        weights |= {
            f"gamma{n}": rng.uniform(0.5, 1.5, 16).astype(np.float32),
            f"beta{n}": rng.standard_normal(16).astype(np.float32),
            f"mean{n}": 0.1 * rng.standard_normal(16).astype(np.float32),
            f"var{n}": rng.uniform(0.5, 2, 16).astype(np.float32),
        }

    def block(x: str, n: str) -> list:
        bn = [f"v{n}", f"gamma{n}", f"beta{n}", f"mean{n}", f"var{n}"]
        return [
            helper.make_node("Conv", [x, f"c{n}"], [f"v{n}"], f"conv{n}", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", bn, [f"n{n}"], f"bn{n}"),
        ]

    nodes = [
        *block("x", "0"),
        helper.make_node("Relu", ["n0"], ["r0"], "relu0"),
        *block("r0", "1"),
        helper.make_node("Add", ["n1", "r0"], ["sum"], "skip"),
        helper.make_node("Relu", ["sum"], ["r1"], "relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "g"], ["y"], "head", transB=1),
    ]
    return model_of(nodes, weights, {"x": ["n", 8, 8, 8]}, ["y"])


def images(count: int, seed: int = 0) -> np.ndarray:
    flat = correlated(count * 64, 8, seed)
    return np.ascontiguousarray(flat.reshape(count, 8, 8, 8).transpose(0, 3, 1, 2))


def test_convolutions_get_a_bias_where_it_is_moved(tmp_path):
    plan = plan_of(convnet(), "c0", "c1", "g")
    branch = {layer.name: layer.residual for layer in plan.layers}["c1"]
    assert branch is not None and branch.value == "r0" and branch.factor is not None
    x, fresh = images(100), images(20, seed=7)
    dense = outputs(convnet(), {"x": fresh})
    errors = []
    for text in ("prune24{quality=magnitude}", "prune24"):
        model = convnet()
        model, result = compiled(model, text, data_for(tmp_path, model, x=x))
        errors.append(relative(outputs(model, {"x": fresh}), dense))
    assert errors[1] < 0.4 * errors[0]
    assert record(result, "c0").facts["bias"] == "conv0.24.bias"
    conv = next(node for node in model.proto.graph.node if node.name == "conv0")
    assert list(conv.input) == ["x", "c0", "conv0.24.bias"]
    assert np.abs(model.weights["conv0.24.bias"]).max() > 0
    for name, axis in (("c0", 1), ("c1", 1), ("g", 1)):
        assert is_24(model.weights[name], axis)


def test_a_bias_that_others_read_is_copied(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "m"),
        helper.make_node("Add", ["p", "b"], ["s"], "a"),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("Add", ["r", "b"], ["y"], "again"),
    ]
    weights = {"w": weight(16, 16), "b": weight(16, seed=3)}
    model = model_of(nodes, weights, {"x": ["n", 16]}, ["y"])
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=correlated(300, 16)))
    assert record(result, "w").facts["bias"] == "b.24"
    np.testing.assert_array_equal(model.weights["b"], weights["b"])
    again = next(node for node in model.proto.graph.node if node.name == "again")
    assert list(again.input) == ["r", "b"]


@pytest.mark.parametrize("dtype", [np.float16])
def test_half_precision_weights(tmp_path, dtype):
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"], "m"),
        helper.make_node("Cast", ["p"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {"w": weight(16, 16).astype(dtype)}, {"x": ["n", 16]}, ["y"])
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=correlated(300, 16)))
    facts = record(result, "w").facts
    assert facts["output_error"] < facts["output_error_magnitude"]
    assert model.weights["w"].dtype == dtype and is_24(model.weights["w"], 0)


def test_batched_weights(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    model = model_of(nodes, {"w": weight(3, 16, 8, fan=16)}, {"x": ["n", 3, 5, 16]}, ["y"])
    x = correlated(600, 16).reshape(40, 3, 5, 16)
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=x))
    facts = record(result, "w").facts
    assert facts["output_error"] < 0.7 * facts["output_error_magnitude"]
    assert is_24(model.weights["w"], 1)


def test_fixed_batch_of_one(tmp_path):
    model = mlp()
    model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    x = correlated(200, 32)
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=x))
    assert record(result, "w2").facts["rows"] == 180


# --- guards ------------------------------------------------------------------------------------
def test_few_rows_are_named_and_never_worse_than_magnitude(tmp_path):
    model = mlp(width=64)
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=correlated(24, 64)))
    assert sum(d.code == "O24-131" for d in result.diagnostics) == 3
    numbers = result.passes[-1].statistics
    assert numbers["output_error"] <= numbers["output_error_magnitude"]
    for name in ("w0", "w1", "w2"):
        facts = record(result, name).facts
        assert facts["output_error"] <= facts["output_error_magnitude"]


def test_a_model_that_agrees_less_goes_back_to_magnitude(tmp_path, monkeypatch):
    """Sabotaged: layers look well and the model is not."""
    from onnx24.layerwise import solver

    measure = solver._Walk._measure

    def lie(self, layer, W, Q, shift, held, result):
        measure(self, layer, W, Q, shift, held, result)
        result.stored = result.stored * np.float32(-1)

    monkeypatch.setattr(solver._Walk, "_measure", lie)
    x = correlated(300, 32)
    model = mlp()
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=x))
    assert any(d.code == "O24-132" and "went back" in d.message for d in result.diagnostics)
    numbers = result.passes[-1].statistics
    assert numbers["output_error"] <= numbers["output_error_magnitude"]


def test_one_sample_is_not_judged(tmp_path):
    x, found = correlated(1, 32), {}
    for text in ("prune24", "prune24{method=admm}", "prune24{permute=on}"):
        model = mlp()
        model, result = compiled(model, text, data_for(tmp_path, model, x=x))
        assert [d.code for d in result.diagnostics].count("O24-135") == 1
        assert "output_error" not in record(result, "w0").facts
        assert is_24(model.weights["w0"], 0)
        found[text] = "rows" in record(result, "w0").facts
    assert found == {"prune24": False, "prune24{method=admm}": True, "prune24{permute=on}": False}


def test_data_that_is_asked_for_and_missing():
    for text in ("prune24{method=admm}", "prune24{budget=0.1}"):
        with pytest.raises(InputError, match="O24-035"):
            compiled(mlp(), text, None)


def test_random_data_are_not_fitted(tmp_path):
    from onnx24.runtime.data import load_data

    model = mlp()
    data = load_data("random:40", model)
    model, result = compiled(model, "prune24", data)
    assert "O24-125" in {d.code for d in result.diagnostics}
    assert "output_error" not in record(result, "w0").facts


def test_budget_leaves_dense_what_costs_most(tmp_path):
    x, errors, dense = correlated(400, 32), [], []
    for budget in (0.0, 0.1, 0.02, 1e-6):
        model = mlp()
        data = data_for(tmp_path, model, x=x)
        model, result = compiled(model, f"prune24{{quality=fast budget={budget}}}", data)
        numbers = result.passes[-1].statistics
        errors.append(numbers["output_error"])
        dense.append(sum(r.code == "O24-134" for r in result.records))
        if budget:
            assert numbers["output_error"] <= budget
    assert dense[0] == 0 and dense == sorted(dense) and dense[-1] == 3
    assert errors[-1] == 0


@pytest.mark.parametrize("share", [0.75, 0.45])
def test_a_budget_below_the_error_of_all_still_prunes_many(share, tmp_path):
    """Layers are fitted to those before them: making one dense without solving the others anew
    made the error larger, so that nothing was pruned."""
    x, found = correlated(400, 32), []
    for budget in (0.0, None):
        model = mlp(layers=8)
        data = data_for(tmp_path, model, x=x)
        options = f"budget={budget if budget is not None else share * found[0]}"
        model, result = compiled(model, f"prune24{{{options}}}", data)
        found.append(result.passes[-1].statistics["output_error"])
        dense = sum(r.code == "O24-134" for r in result.records)
    assert found[1] <= share * found[0]
    assert 1 <= dense <= 5


# --- the same bytes ----------------------------------------------------------------------------
def digest(model: Model) -> bytes:
    return model.to_bytes()


@pytest.mark.parametrize("method", ["magnitude", "wanda", "ria", "obs", "admm"])
def test_threads_and_memory_change_no_byte(tmp_path, method):
    found = set()
    for workers, memory in ((1, 4 << 30), (2, 4 << 30), (3, 1 << 10)):
        model = attention()
        x = correlated(600, 32).reshape(100, 6, 32)
        resources = Resources(workers=workers, memory_bytes=memory, folder=tmp_path)
        data = data_for(tmp_path, model, x=x)
        model, _ = compiled(model, f"prune24{{method={method}}}", data, resources=resources)
        found.add(digest(model))
    assert len(found) == 1
    assert not list(tmp_path.glob("onnx24-*"))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ray", "dask"])
def test_a_cluster_changes_no_byte(tmp_path, executor):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[executor])
    found = set()
    for where in ("local", executor):
        model = mlp()
        resources = Resources(workers=2, executor=where)
        data = data_for(tmp_path, model, x=correlated(200, 32))
        model, _ = compiled(model, "prune24", data, resources=resources)
        found.add(digest(model))
    assert len(found) == 1


def test_a_run_goes_on_with_the_layers_it_has(tmp_path):
    x = correlated(300, 32)
    wanted = mlp()
    compiled(wanted, "prune24", data_for(tmp_path, wanted, x=x))
    work = tmp_path / "work"
    model = mlp()
    compiled(model, "prune24", data_for(tmp_path, model, x=x), work_dir=work)
    kept = sorted(work.glob("layers-*/*.npz"))
    assert len(kept) == 3
    kept[1].unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (kept[0], kept[2])}
    model = mlp()
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=x), work_dir=work)
    assert result.passes[-1].resumed == 2
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert digest(model) == digest(wanted)
    other = mlp()
    _, result = compiled(
        other, "prune24{method=obs}", data_for(tmp_path, other, x=x), work_dir=work
    )
    assert not result.passes[-1].resumed


KILLED = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from layerwise_support import compiled, correlated, data_for, mlp
from onnx24.layerwise import progress
store = progress.Saved.store
def slowly(self, key, result):
    store(self, key, result)
    time.sleep(0.5)
progress.Saved.store = slowly
folder = Path(sys.argv[3])
model = mlp(layers=6)
compiled(model, "prune24", data_for(folder, model, x=correlated(300, 32)), work_dir=folder / "work")
"""


def test_killed_in_the_middle(tmp_path):
    root, here = Path(__file__).resolve().parents[2], Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), str(here), str(tmp_path)], cwd=root
    )
    try:
        for _ in range(600):
            if len(list(tmp_path.glob("work/layers-*/*.npz"))) >= 2 or child.poll() is not None:
                break
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.wait()
    x = correlated(300, 32)
    model = mlp(layers=6)
    model, result = compiled(
        model, "prune24", data_for(tmp_path, model, x=x), work_dir=tmp_path / "work"
    )
    assert 2 <= result.passes[-1].resumed < 6
    wanted = mlp(layers=6)
    compiled(wanted, "prune24", data_for(tmp_path, wanted, x=x))
    assert digest(model) == digest(wanted)


def test_store_spills_and_gives_back(tmp_path):
    with Store(100, tmp_path) as store:
        a, b = np.arange(20, dtype=np.float32), np.ones(50, np.float32)
        store.put(0, "a", a, a)
        store.put(0, "b", b, b + 1)
        assert store.spilled_bytes == 400
        dense, compressed = store.get(0, "b")
        np.testing.assert_array_equal(compressed, dense + 1)
        one, other = store.get(0, "a")
        assert one is other
        store.drop("b", 1)
        with pytest.raises(KeyError):
            store.get(0, "b")
        assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.iterdir())
