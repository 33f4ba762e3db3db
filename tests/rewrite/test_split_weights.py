"""A copy for each class of readers: the same function bit for bit, and each copy prunable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey, as_key
from onnx24.ir.model import Model
from onnx24.ir.verify import verify
from onnx24.passmgr import manager, pipeline
from onnx24.rewrite.split_weights import reader_classes, split_bytes, split_weight
from onnx24.sparsity.masks import is_24

RNG = np.random.default_rng(0)
TARGET = targets.load(targets.DEFAULT)


def parsed(body: str, *, ir: int = 8, opset: int = 17, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{body}')
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
        if ir < 4:
            dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
            proto.graph.input.append(helper.make_tensor_value_info(name, dtype, values.shape))
    return Model.from_proto(proto)


def square(n: int = 16) -> np.ndarray:
    return RNG.standard_normal((n, n), np.float32)


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def split(model: Model, key: str | ValueKey = "w") -> list[ValueKey]:
    cache = AnalysisCache()
    verdict = cache.get(model, Eligibility).verdicts[as_key(key)]
    return split_weight(model, cache.get(model, WeightUses), verdict)


def judged(model: Model) -> dict[str, tuple[str, int | None]]:
    verdicts = AnalysisCache().get(model, Eligibility).verdicts
    return {key.name: (v.code, v.k_axis) for key, v in verdicts.items()}


def assert_same(model: Model, feeds: dict[str, np.ndarray], copies: int, key="w") -> None:
    """Splitting changes no bit of any output; a second split does nothing."""
    before = outputs(model, feeds)
    made = split(model, key)
    assert len(made) == copies
    assert verify(model) == []
    for a, b in zip(before, outputs(Model.from_bytes(model.to_bytes()), feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    assert split(model, key) == []


X = {"x": RNG.standard_normal((4, 16)).astype(np.float32)}
TIED = """g (int64[T] ids) => (float[T, 32] logits) {
  [lookup] e = Gather(w, ids)
  [turn] t = Transpose(w)
  [head] logits = MatMul(e, t)
}"""
AXES = """g (float[N, 16] x) => (float[N, 16] y) {
  [first] a = MatMul(x, w)
  [second] y = Gemm<transB=1>(a, w)
}"""
IDS = {"ids": np.array([3, 1, 31])}


def test_two_axes():
    model = parsed(AXES, w=square())
    assert_same(model, X, 1)
    assert judged(model) == {"w": ("O24-101", 0), "w.24.1": ("O24-101", 1)}


def test_a_tied_embedding_keeps_its_name_for_the_lookup():
    model = parsed(TIED, w=RNG.standard_normal((32, 16), np.float32))
    assert_same(model, IDS, 1)
    assert judged(model) == {"w": ("O24-110", None), "w.24.1": ("O24-101", 1)}
    assert [node.name for node in model.proto.graph.node] == ["lookup", "turn", "head"]


def test_three_classes_and_a_shared_chain():
    """Gather wants dense values, the Transpose is shared by both axes, an Identity by all."""
    text = """g (float[N, 16] x, int64[T] ids) => (float[N, 16] y, float[T, 16] e) {
      i = Identity(w)
      t = Transpose(i)
      e = Gather(t, ids)
      [first] a = MatMul(x, t)
      [second] b = MatMul(a, i)
      [third] y = Gemm<transB=1>(b, t)
    }"""
    model = parsed(text, w=square())
    feeds = {**X, "ids": np.array([0, 5])}
    verdict = AnalysisCache().get(model, Eligibility).verdicts[as_key("w")]
    classes = [[use.op for use in uses] for uses in reader_classes(verdict)]
    assert classes == [["Gather"], ["MatMul"], ["Gemm", "MatMul"]]
    assert_same(model, feeds, 2)
    assert judged(model) == {
        "w": ("O24-110", None),
        "w.24.1": ("O24-101", 1),
        "w.24.2": ("O24-101", 0),
    }


def test_bodies_constants_and_nested_copies():
    text = """g (float[N, 16] x, bool c) => (float[N, 16] y) {
      w = Constant<value: tensor = float[1] {1}>()
      t = Transpose(w)
      [if] h = If(c)<
        then_branch = then () => (float[N, 16] a) {
          u = Transpose(t)
          [inner] a = MatMul(x, u)
        },
        else_branch = other () => (float[N, 16] b) { [other] b = MatMul(x, t) }
      >
      [last] y = MatMul(h, w)
    }"""
    model = parsed(text)
    proto = model.proto
    proto.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(square(24)[:16, :16]))
    model = Model.from_proto(proto)
    for c in (True, False):
        again = Model.from_proto(model.full_proto())
        assert_same(again, {**X, "c": np.array(c)}, 1)
        assert judged(again) == {"w": ("O24-101", 0), "w.24.1": ("O24-101", 1)}


def test_names_that_are_taken():
    proto = parsed(AXES, w=square()).full_proto()
    proto.graph.node[0].name = "w.24.1"
    model = Model.from_proto(proto)
    assert split(model) == [ValueKey("", "w.24.2")]


def test_ir_3_gets_no_new_input():
    text = """g (float[N, 16] x) => (float[N, 16] y) {
      t = Transpose(w)
      a = MatMul(x, w)
      y = MatMul(a, t)
    }"""
    model = parsed(text, ir=3, opset=9, w=square())
    assert_same(model, X, 1)
    assert [value.name for value in model.proto.graph.input] == ["x"]


def test_quantized_weights_share_their_scales():
    text = """g (float[N, 16] x) => (float[N, 16] y) {
      v = DequantizeLinear(w, s)
      [first] a = MatMul(x, v)
      [second] y = Gemm<transB=1>(a, v)
    }"""
    weight = RNG.integers(-99, 99, (16, 16)).astype(np.int8)
    model = parsed(text, w=weight, s=np.float32(0.02))
    assert_same(model, X, 1)
    assert sum(n.op_type == "DequantizeLinear" for n in model.proto.graph.node) == 2


def test_records_of_24_follow_the_products():
    model = parsed(TIED, w=RNG.standard_normal((32, 16), np.float32))
    model.claims.add("w")
    split(model)
    assert model.claims.keys() == [ValueKey("", "w.24.1")]


def test_a_shape_that_leads_far_is_not_followed():
    lines = "\n".join(f"s{i + 1} = Min(s{i}, s{i})" for i in range(60))
    text = f"""g (float[N, 16] x) => (float[N, 16] y, int64[2] s60) {{
      s0 = Shape(w)
      {lines}
      [first] a = MatMul(x, w)
      [second] y = Gemm<transB=1>(a, w)
    }}"""
    assert_same(parsed(text, w=square()), X, 1)


# --- through prune24 --------------------------------------------------------------------------
def prune(model: Model, options: str) -> dict[str, str]:
    """Run it. Returns: each weight's last code."""
    text = f"prune24{{{options}}}" if options else "prune24"
    done = manager.run(model, pipeline.parse(text), target=TARGET, reproducer_dir=None)
    return {record.weight: record.code for record in done.records if record.weight}


@pytest.mark.parametrize("external", [False, True])
def test_both_copies_are_pruned_along_their_own_axes(external: bool, tmp_path: Path):
    model = parsed(AXES, w=square(32)[:16, :16])
    if external:
        model.save(tmp_path / "m.onnx", external="external")
        model = Model.load(tmp_path / "m.onnx")
    dense = model.weights["w"].copy()
    codes = prune(model, "conflicting=split")
    assert codes == {"w": "O24-100", "w.24.1": "O24-100"}
    model.save(tmp_path / "out.onnx")
    after = Model.load(tmp_path / "out.onnx")
    assert is_24(after.weights["w"], 0) and is_24(after.weights["w.24.1"], 1)
    for name in ("w", "w.24.1"):
        kept = after.weights[name] != 0
        np.testing.assert_array_equal(after.weights[name][kept], dense[kept])
    assert sorted(after.claims.keys()) == [ValueKey("", "w"), ValueKey("", "w.24.1")]
    data = (tmp_path / "out.onnx").read_bytes()
    prune(after, "conflicting=split")
    assert after.to_bytes() == data or external


def test_the_lookup_of_a_tied_embedding_stays_dense():
    model = parsed(TIED, w=RNG.standard_normal((32, 16), np.float32))
    dense = model.weights["w"].copy()
    done = manager.run(
        model, pipeline.parse("prune24{tied=split}"), target=TARGET, reproducer_dir=None
    )
    (copied,) = (record for record in done.records if record.code == "O24-103")
    assert copied.facts["bytes_added"] == 32 * 16 * 4 and "w.24.1" in copied.reason
    np.testing.assert_array_equal(model.weights["w"], dense)
    assert is_24(model.weights["w.24.1"], 1)
    before = parsed(TIED.replace("logits)", "logits, float[T, 16] e)"), w=dense)
    lookup = outputs(before, IDS)[1]
    np.testing.assert_array_equal(lookup, dense[IDS["ids"]])


def test_without_the_option_nothing_is_copied():
    for text, options in ((AXES, ""), (AXES, "tied=split"), (TIED, "conflicting=split")):
        model = parsed(text, w=square(32) if text is TIED else square())
        data = model.to_bytes()
        assert "O24-103" not in prune(model, options).values()
        assert model.to_bytes() == data


def test_what_would_not_be_pruned_is_not_copied():
    for options in ("exclude=w", "min-elements=9999", "small=skip", "include=lookup exclude=head"):
        model = parsed(TIED, w=RNG.standard_normal((32, 16), np.float32))
        data = model.to_bytes()
        prune(model, f"tied=split {options}")
        assert model.to_bytes() == data
    model = parsed(TIED, w=RNG.standard_normal((32, 16), np.float32))
    assert prune(model, "tied=split include=w")["w.24.1"] == "O24-100"
    turing = targets.load("sm75")
    model = parsed(AXES, w=square())
    data = model.to_bytes()
    text = pipeline.parse("prune24{conflicting=split}")
    manager.run(model, text, target=turing, reproducer_dir=None)
    assert model.to_bytes() == data


def test_values_that_are_not_finite_are_refused_before_anything_is_copied():
    weight = square()
    weight[3, 3] = np.nan
    model = parsed(AXES, w=weight)
    data = model.to_bytes()
    with pytest.raises(InputError, match="O24-008"):
        prune(model, "conflicting=split")
    assert model.to_bytes() == data


def test_the_cost_is_known_beforehand():
    model = parsed(AXES, w=square())
    cache = AnalysisCache()
    found, verdicts = cache.get(model, WeightUses), cache.get(model, Eligibility).verdicts
    assert split_bytes(found, verdicts[as_key("w")]) == 16 * 16 * 4
    model = parsed(AXES.replace("Gemm<transB=1>", "Gemm"), w=square())
    cache = AnalysisCache()
    found, verdicts = cache.get(model, WeightUses), cache.get(model, Eligibility).verdicts
    assert split_bytes(found, verdicts[as_key("w")]) == 0


def test_loop_bodies_and_scopes():
    """The copies of a body's own weight stay in the body; an outer weight is captured."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c2"]),
            helper.make_node("MatMul", ["h", "own"], ["h1"], name="own_product"),
            helper.make_node("Gemm", ["h1", "own"], ["h2"], name="own_turned", transB=1),
            helper.make_node("Gemm", ["h2", "w"], ["h3"], name="captured", transB=1),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [4, 16]),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h3", TensorProto.FLOAT, [4, 16]),
        ],
        [numpy_helper.from_array(square() / 8, "own")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["n", "", "x"], ["z"], name="loop", body=body),
            helper.make_node("MatMul", ["z", "w"], ["y"], name="outer"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16])],
        [numpy_helper.from_array(square() / 8, "w"), numpy_helper.from_array(np.int64(2), "n")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = Model.from_proto(proto)
    assert_same(model, X, 1)
    assert_same(model, X, 1, ValueKey("loop.body", "own"))
    assert prune(model, "") == dict.fromkeys(["w", "w.24.1", "own", "own.24.1"], "O24-100")
