"""What layers meet that no friendly model has: branches from outside, shared biases, NaN, huge and
tiny activations, inputs that never vary, empty batches, budgets that can't be judged."""

from __future__ import annotations

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

from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.judge import Agreement, Budget
from onnx24.layerwise.progress import Saved
from onnx24.layerwise.prune import Solved, _keep_budget
from onnx24.layerwise.results import LayerResult
from onnx24.layerwise.stages import Layer
from onnx24.runtime.augment import parse_augmentation
from onnx24.runtime.data import load_data
from onnx24.sparsity.masks import is_24

NODE = helper.make_node


def product(*more, width: int = 32) -> Model:
    """y = x·w with further nodes behind the product `y`."""
    nodes = [NODE("MatMul", ["x", "w"], ["y"], "m"), *more]
    return model_of(nodes, {"w": weight(width, width)}, {"x": ["n", width]}, [nodes[-1].output[0]])


def pruned(result, name):
    (found,) = [r for r in result.records if r.weight == name and r.code == "O24-100"]
    return found.facts


def test_the_other_branch_is_a_graph_input(tmp_path):
    nodes = [NODE("MatMul", ["x", "w"], ["p"]), NODE("Add", ["p", "other"], ["y"])]
    model = model_of(nodes, {"w": weight(32, 32)}, {"x": ["n", 32], "other": ["n", 32]}, ["y"])
    x = correlated(300, 32)
    data = data_for(tmp_path, model, x=x, other=x[::-1].copy())
    _, result = compiled(model, "prune24", data)
    facts = pruned(result, "w")
    assert facts["output_error"] < 0.6 * facts["output_error_magnitude"]


def test_a_bias_that_two_layers_share_becomes_two(tmp_path):
    nodes = [
        NODE("MatMul", ["x", "w0"], ["p"]),
        NODE("Add", ["p", "b"], ["s"]),
        NODE("Relu", ["s"], ["r"]),
        NODE("MatMul", ["r", "w1"], ["q"]),
        NODE("Add", ["q", "b"], ["y"]),
    ]
    weights = {"w0": weight(32, 32), "w1": weight(32, 32, seed=3), "b": weight(32, seed=2)}
    model = model_of(nodes, weights, {"x": ["n", 32]}, ["y"])
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=correlated(400, 32) + 1))
    read = [node.input[1] for node in model.proto.graph.node if node.op_type == "Add"]
    assert read == ["b.24", "b.24.2"]
    assert not np.array_equal(model.weights["b.24"], model.weights["b.24.2"])
    numbers = result.passes[-1].statistics
    assert numbers["output_error"] < 0.5 * numbers["output_error_magnitude"]


def test_alpha_scales_what_the_branch_lacks(tmp_path):
    """A Gemm's alpha is not part of the rows; the branch has to be made up for all the same."""
    errors = []
    for alpha in (1.0, -4.0):
        weights = {"w0": weight(32, 32), "w1": weight(32, 32, seed=1) / np.float32(alpha)}
        nodes = [
            NODE("MatMul", ["x", "w0"], ["h"]),
            NODE("Gemm", ["h", "w1"], ["g"], alpha=alpha),
            NODE("Add", ["g", "h"], ["y"]),
        ]
        model = model_of(nodes, weights, {"x": ["n", 32]}, ["y"])
        data = data_for(tmp_path, model, x=correlated(400, 32))
        _, result = compiled(model, "prune24", data)
        errors.append(pruned(result, "w1")["output_error"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize(
    "text", ["prune24{method=admm}", "prune24{method=obs}", "permute24{norms=on}"]
)
def test_samples_that_are_stacked_along_k(tmp_path, text):
    """With dynamic sizes only the product itself finds out; it need not have run before."""
    weights = {"w": weight(32, 16), "v": weight(16, 16)}
    nodes = [NODE("Gemm", ["x", "w"], ["h"], "turned", transA=1), NODE("MatMul", ["h", "v"], ["y"])]
    model = model_of(nodes, weights, {"x": ["k", "n"]}, ["y"])
    data = data_for(tmp_path, model, x=correlated(400, 24))
    with pytest.raises(InputError) as caught:
        compiled(model, text, data)
    assert caught.value.code == "O24-016"


def test_rows_with_nan_are_left_out_and_named(tmp_path):
    x = correlated(400, 32)
    x[3, 3], x[57, 1] = np.nan, np.inf
    model = product()
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=x))
    (named,) = [d for d in result.diagnostics if d.code == "O24-136"]
    assert named.message.startswith("2 rows")
    facts = pruned(result, "w")
    assert facts["rows_not_finite"] == 2
    assert facts["output_error"] < 0.6 * facts["output_error_magnitude"]


@pytest.mark.parametrize("rows", [1, 200])
def test_nothing_but_nan_spreads_into_no_weight(tmp_path, rows):
    nodes = [NODE("Sub", ["x", "x"], ["zero"]), NODE("Div", ["x", "zero"], ["d"], "divide")]
    nodes += [NODE("MatMul", ["d", "w"], ["y"], "m")]
    model = model_of(nodes, {"w": weight(32, 32)}, {"x": ["n", 32]}, ["y"])
    data = data_for(tmp_path, model, x=correlated(rows, 32))
    model, result = compiled(model, "prune24{method=admm}", data)
    assert "NaN or infinite" in pruned(result, "w")["unsolved"]
    (warning,) = [d for d in result.diagnostics if d.code == "O24-125"]
    assert "NaN or infinite" in warning.message and len(warning.facts["reasons"]) == 1
    assert np.isfinite(model.weights["w"]).all() and is_24(model.weights["w"], 0)


@pytest.mark.parametrize("method", ["obs", "admm"])
@pytest.mark.parametrize("factor", [1e-25, 1e-3, 1e25])
def test_the_size_of_activations_does_not_matter(tmp_path, method, factor):
    found = []
    for by in (1.0, factor):
        model = product()
        data = data_for(tmp_path, model, x=correlated(400, 32) * np.float32(by))
        _, result = compiled(model, f"prune24{{method={method}}}", data)
        found.append(pruned(result, "w")["output_error"])
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize("method", ["wanda", "ria", "obs", "admm"])
def test_inputs_that_never_vary_take_no_places(tmp_path, method):
    """A third of the inputs are always zero, the others small: theirs are the places of a group."""
    x = correlated(400, 32) * (np.arange(32) % 3 != 0) * np.float32(1e-3)
    model = product()
    model, result = compiled(model, f"prune24{{method={method}}}", data_for(tmp_path, model, x=x))
    facts = pruned(result, "w")
    assert facts["output_error"] < 0.5 * facts["output_error_magnitude"]


def folder_of(folder: Path, *arrays: np.ndarray) -> str:
    folder.mkdir()
    for i, array in enumerate(arrays):
        np.savez(folder / f"{i}.npz", x=array)
    return str(folder)


def test_empty_batches(tmp_path):
    nodes = [NODE("Conv", ["x", "w"], ["y"], "c", pads=[1, 1, 1, 1])]
    model = model_of(nodes, {"w": weight(8, 8, 3, 3, fan=72)}, {"x": ["n", 8, 4, 4]}, ["y"])
    x = correlated(320, 8).reshape(-1, 4, 4, 8).transpose(0, 3, 1, 2)
    runs = [x[i : i + 2] if i % 2 else x[:0] for i in range(18)]
    model, result = compiled(model, "prune24", load_data(folder_of(tmp_path / "a", *runs), model))
    assert pruned(result, "w")["rows"] > 0 and is_24(model.weights["w"], 1)
    model = model_of(nodes, {"w": weight(8, 8, 3, 3, fan=72)}, {"x": ["n", 8, 4, 4]}, ["y"])
    empty = load_data(folder_of(tmp_path / "b", *[x[:0]] * 4), model)
    model, result = compiled(model, "prune24", empty)
    assert "no calibration sample" in pruned(result, "w")["unsolved"]


@pytest.mark.parametrize("always", [False, True])
def test_rows_that_the_compressed_model_selects_otherwise(tmp_path, always):
    """What stands behind NonZero has another shape where the compressed model picks others."""
    nodes = [
        NODE("MatMul", ["x", "w0"], ["h"]),
        NODE("ReduceSum", ["h", "one"], ["m"], keepdims=0),
        NODE("Greater", ["m", "zero"], ["c"]),
        NODE("Compress", ["h", "c"], ["some"], axis=0),
        NODE("MatMul", ["some", "w1"], ["p"]),
        NODE("Add", ["p", "some"], ["y"]),
    ]
    weights = {"w0": weight(32, 32), "w1": weight(32, 32, seed=1)}
    weights |= {"one": np.ones(1, np.int64), "zero": np.zeros((), np.float32)}
    model = model_of(nodes, weights, {"x": ["n", 32]}, ["y"])
    runs = correlated(40 * (300 if always else 3), 32).reshape(40, -1, 32)
    data = load_data(folder_of(tmp_path / "runs", *runs), model)
    model, result = compiled(model, "prune24{method=wanda}", data)
    facts = pruned(result, "w1")
    assert is_24(model.weights["w1"], 0)
    assert facts["rows"] > 10 and facts["output_error"] < 0.9 * facts["output_error_magnitude"]


def test_sequences_of_different_lengths(tmp_path):
    x = correlated(800, 32)
    nodes = [NODE("MatMul", ["x", "w"], ["p"]), NODE("Add", ["p", "x"], ["y"])]
    model = model_of(nodes, {"w": weight(32, 32)}, {"x": ["n", "t", 32]}, ["y"])
    lengths = [1 + 3 * i for i in range(20)]
    starts = np.cumsum([0, *lengths])
    runs = [x[None, a : a + n] for a, n in zip(starts, lengths, strict=False)]
    data = load_data(folder_of(tmp_path / "runs", *runs), model)
    _, result = compiled(model, "prune24", data)
    facts = pruned(result, "w")
    assert facts["output_error"] < 0.6 * facts["output_error_magnitude"]


# --- budgets that can't be judged ----------------------------------------------------------------
def test_a_budget_with_one_sample_is_refused(tmp_path):
    model = mlp()
    data = data_for(tmp_path, model, x=correlated(1, 32))
    with pytest.raises(InputError, match="O24-035"):
        compiled(model, "prune24{budget=0.1}", data)


def test_a_budget_leaves_dense_what_it_cannot_judge(tmp_path):
    """A sequence crosses from one layer's segment to the next one's."""
    nodes = [
        NODE("MatMul", ["x", "w"], ["p"]),
        NODE("SequenceConstruct", ["p", "p"], ["s"]),
        NODE("MatMul", ["p", "u"], ["q"]),
        NODE("ReduceMax", ["q"], ["m"], keepdims=0),
        NODE("Greater", ["m", "m"], ["never"]),
        NODE("Cast", ["never"], ["i"], to=TensorProto.INT64),
        NODE("SequenceAt", ["s", "i"], ["t"]),
        NODE("MatMul", ["t", "v"], ["y"]),
    ]
    weights = {name: weight(32, 32, seed=i) for i, name in enumerate("wuv")}
    for text, code in (("prune24", "O24-100"), ("prune24{budget=0.5}", "O24-134")):
        model = model_of(nodes, weights, {"x": ["n", 32]}, ["y"])
        model, result = compiled(model, text, data_for(tmp_path, model, x=correlated(100, 32)))
        assert "O24-133" in {d.code for d in result.diagnostics}
        assert {r.code for r in result.records if r.weight} == {code}
        assert is_24(model.weights["v"], 0) is (code == "O24-100")


def test_weights_in_bodies_count_in_what_is_judged(tmp_path):
    """By magnitude and unsolved, but part of the model whose error is said."""
    inner = helper.make_graph(
        [NODE("MatMul", ["h", "u"], ["t"], "inner")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 32])],
    )
    nodes = [
        NODE("MatMul", ["x", "w"], ["h"]),
        NODE("ReduceMax", ["h"], ["m"], keepdims=0),
        NODE("Equal", ["m", "m"], ["c"]),
        NODE("If", ["c"], ["y"], "choose", then_branch=inner, else_branch=inner),
    ]
    weights = {"w": weight(32, 32), "u": weight(32, 32, seed=1)}
    x = correlated(300, 32)

    def run(text):
        model = model_of(nodes, weights, {"x": ["n", 32]}, ["y"])
        feeds = {"x": x[-30:]}
        dense = outputs(model, feeds)
        model, result = compiled(model, text, data_for(tmp_path, model, x=x))
        return result, relative(outputs(model, feeds), dense)

    result, error = run("prune24")
    assert result.passes[-1].statistics["output_error"] == pytest.approx(error, rel=0.3)
    assert error > 0.2
    result, error = run("prune24{budget=0.15}")
    assert result.passes[-1].statistics["output_error"] == pytest.approx(error, rel=0.3)
    left = {r.weight: r.code for r in result.records if r.weight}
    assert left["u"] == "O24-134" and left["w"] == "O24-100"


def test_models_that_draw_random_numbers(tmp_path):
    """Their outputs differ from themselves; the result must not differ from run to run."""
    found = set()
    for _ in range(2):
        nodes = [NODE("RandomNormalLike", ["x"], ["e"], "noise"), NODE("Add", ["x", "e"], ["z"])]
        nodes += [NODE("MatMul", ["z", "w"], ["y"])]
        model = model_of(nodes, {"w": weight(32, 32)}, {"x": ["n", 32]}, ["y"])
        model, result = compiled(model, "prune24", data_for(tmp_path, model, x=correlated(99, 32)))
        (said,) = [d for d in result.diagnostics if d.code == "O24-133"]
        assert said.message.startswith("noise (RandomNormalLike)")
        found.add(model.to_bytes())
    assert len(found) == 1


def test_a_budget_is_kept_by_magnitude_too(tmp_path):
    model = mlp()
    data = data_for(tmp_path, model, x=correlated(200, 32))
    model, result = compiled(model, "prune24{quality=magnitude budget=0.2}", data)
    assert result.passes[-1].statistics["output_error"] <= 0.2
    assert "O24-134" in {r.code for r in result.records}
    for name, code in {(r.weight, r.code) for r in result.records if r.weight in ("w0", "w1")}:
        if code == "O24-100":  # as they were, or zero
            now, was = model.weights[name], mlp().weights[name]
            np.testing.assert_allclose(now, np.where(now != 0, was, 0), rtol=1e-6)


def test_outputs_that_are_no_tensors_are_not_judged(tmp_path):
    nodes = [
        NODE("MatMul", ["x", "w"], ["y"]),
        NODE("SequenceConstruct", ["y", "y"], ["s"]),
    ]
    model = model_of(nodes, {"w": weight(32, 32)}, {"x": ["n", 32]}, ["y", "s"])
    model.proto.graph.output[1].CopyFrom(
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n", 32])
    )
    model, result = compiled(model, "prune24", data_for(tmp_path, model, x=correlated(200, 32)))
    facts = pruned(result, "w")
    assert facts["output_error"] < 0.6 * facts["output_error_magnitude"]
    assert result.passes[-1].statistics["output_error"] < 0.3


# --- resuming ------------------------------------------------------------------------------------
def test_what_another_selection_solved_is_not_taken(tmp_path):
    """A layer is fitted to those before it: with another limit of sites it is another."""
    x, work = correlated(300, 32), tmp_path / "work"

    def run(work_dir, limit=None):
        model = mlp()
        data = data_for(tmp_path, model, x=x)
        model, result = compiled(model, "prune24", data, work_dir=work_dir, site_limit=limit)
        return model.to_bytes(), result.passes[-1].resumed

    run(work, 2)
    assert run(work) == (run(None)[0], 0)
    assert run(work)[1] == 3


def test_a_damaged_file_is_solved_again(tmp_path):
    key, other = ValueKey("", "w"), ValueKey("", "u")
    saved = Saved(tmp_path, "one")
    result = LayerResult(stored=RNG(0).standard_normal((4, 4)), bias=None)
    like = {"w": result.stored, "u": result.stored}
    saved.store(key, result)
    assert saved.load([key], like) is not None and saved.load([key, other], like) is None
    assert saved.load([key], {"w": result.stored[:, :2]}) is None
    assert saved.load([key], {"w": result.stored.astype(np.float32)}) is None
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert Saved(tmp_path, "one").load([key], like) is None


@pytest.mark.parametrize("text", ["shift2x0", "shift2@0x8"])
def test_augmentations_of_nothing(text):
    with pytest.raises(ValueError, match="1 or more"):
        parse_augmentation(text)


def test_the_pruned_model_keeps_its_promise_under_a_low_memory(tmp_path):
    from onnx24.layerwise.resources import Resources

    x = correlated(300, 32)
    model = mlp()
    resources = Resources(workers=2, memory_bytes=1 << 10, folder=tmp_path)
    data = data_for(tmp_path, model, x=x)
    model, result = compiled(model, "prune24", data, resources=resources)
    held = x[-30:]
    error = relative(outputs(model, {"x": held}), outputs(mlp(), {"x": held}))
    assert error == pytest.approx(result.passes[-1].statistics["output_error"], rel=0.3)
    assert not list(tmp_path.glob("onnx24-*"))


def test_pixels_of_eight_bits_are_shifted(tmp_path):
    nodes = [
        NODE("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        NODE("Conv", ["f", "w"], ["y"], "c"),
    ]
    model = model_of(nodes, {"w": weight(8, 4, 3, 3, fan=36)}, {"x": ["n", 4, 8, 8]}, ["y"])
    model.proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    x = RNG(0).integers(0, 256, (20, 4, 8, 8)).astype(np.uint8)
    _, result = compiled(model, "prune24{augment=shift2x4}", data_for(tmp_path, model, x=x))
    assert result.passes[-1].statistics["samples"] == 4 * 18


def test_layers_that_err_only_together():
    """No layer by itself says which to leave dense; the rest, solved anew, is not by magnitude."""
    keys = [ValueKey("", "a"), ValueKey("", "b")]
    dense = {key.name: np.ones((4, 4), np.float32) for key in keys}
    layers = {key: Layer(key, (), helper.make_node("Relu", ["x"], ["y"]), 0) for key in keys}

    def results(chosen):
        return {key: LayerResult(stored=np.zeros((4, 4)), bias=None) for key in chosen}

    def judge(weights):
        return Agreement(
            rel_l2=float(all(not value.any() for value in weights.values())), top1=None
        )

    solved = Solved(results=results(keys), layers=layers, unsolved={}, fallen_back=[keys[1]])
    solved.agreement = Agreement(rel_l2=1.0, top1=None)
    _keep_budget(
        judge,
        solved,
        dense,
        list(layers.values()),
        Budget(rel_l2=0.5),
        lambda back: results(key for key in keys if key not in back),
        lambda items, *_, **__: iter(items),
    )
    assert (list(solved.dense_again), list(solved.results)) == (keys[:1], keys[1:])
    assert solved.fallen_back == [] and solved.agreement.rel_l2 == 0 and solved.predicted is None
