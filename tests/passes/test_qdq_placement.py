"""Where pairs go: graphs of the shapes that NVIDIA Model-Optimizer tests its INT8 rules on, built
anew, and the table of rules. Where ours differs, decision D22 says why.

*Source of the shapes:* NVIDIA/Model-Optimizer, tests/unit/onnx/quantization/
test_qdq_rules_int8.py.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from test_qdq import (
    TARGET,
    array,
    build,
    codes,
    node,
    ops,
    pairs,
    quantized,
    scale_of,
    source,
    sparse,
)

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.placement import PLACEMENT, REFUSALS
from onnx24.analysis.qdq_rules import Quantized, findings
from onnx24.backends import Profile, get
from onnx24.codes import CODES
from onnx24.ir.model import Model


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {
        name: array(shape, i) / np.float32(np.sqrt(np.prod(shape[1:])))
        for i, (name, shape) in enumerate(shapes.items())
    }


def batchnorm(channels: int) -> dict[str, np.ndarray]:
    return {"g": np.ones(channels, np.float32), "z": np.zeros(channels, np.float32)}


def in_float(model: Model, *names: str) -> bool:
    """Whether none of the nodes reads a dequantized value."""
    return not any(
        source(model, name, i) for name in names for i in range(len(node(model, name).input))
    )


# --- Model-Optimizer's graphs --------------------------------------------------------------
def test_a_first_convolution_with_its_bias_as_an_add(tmp_path):
    model = build(
        "g (float[N, 3, 32, 32] x) => (float[N, 64, 16, 16] y) "
        "{ [conv] h = Conv<pads = [3, 3, 3, 3], strides = [2, 2]>(x, w) [bias] y = Add(h, b) }",
        **weights(w=(64, 3, 7, 7), b=(64, 1, 1)),
    )
    assert codes(quantized(model, tmp_path)) == {"conv": "O24-200"}
    assert pairs(model) == ["w", "x"] and in_float(model, "bias")


BLOCK = """g (float[N, 16, 12, 12] x) => (float[N, 16, 12, 12] y) {
  [c1] a = Conv<pads = [1, 1, 1, 1]>(x, w1)
  [bn1] b = BatchNormalization(a, g, g, z, g)
  [r1] c = Relu(b)
  [c2] d = Conv<pads = [1, 1, 1, 1]>(c, w2)
  [bn2] e = BatchNormalization(d, g, g, z, g)
  DOWN
  [add] f = Add(e, skip)
  [r2] y = Relu(f)
}"""


def test_a_residual_block(tmp_path):
    model = build(
        BLOCK.replace("DOWN", "").replace("skip", "x"),
        **batchnorm(16),
        **weights(w1=(16, 16, 3, 3), w2=(16, 16, 3, 3)),
    )
    result = quantized(model, tmp_path, min_sqnr=25)
    assert codes(result) == {"c1": "O24-200", "c2": "O24-200"}
    assert node(model, "add").input[0] == "e" and source(model, "add", 1) == "x"
    assert in_float(model, "bn1", "r1", "bn2", "r2")


def test_a_residual_block_with_downsampling(tmp_path):
    down = """[c3] h = Conv<pads = [1, 1, 1, 1]>(x, w3)
    [bn3] skip = BatchNormalization(h, g, g, z, g)"""
    model = build(
        BLOCK.replace("DOWN", down),
        **batchnorm(16),
        **weights(w1=(16, 16, 3, 3), w2=(16, 16, 3, 3), w3=(16, 16, 3, 3)),
    )
    result = quantized(model, tmp_path, min_sqnr=25)
    assert set(codes(result).values()) == {"O24-200"}
    assert node(model, "add").input[0] == "e" and source(model, "add", 1) == "skip"
    assert in_float(model, "bn1", "r1", "bn2", "bn3", "r2")


def test_a_transposed_convolution_and_a_residual_add(tmp_path):
    model = build(
        """g (float[N, 39, 6, 8] x) => (float[N, 32, 12, 16] y) {
          [up] a = ConvTranspose<strides = [2, 2]>(x, w1, b1)
          [r1] b = Relu(a)
          [c2] c = Conv<pads = [1, 1, 1, 1]>(b, w2)
          [bn2] d = BatchNormalization(c, g, g, z, g)
          [r2] e = Relu(d)
          [c3] f = Conv<pads = [1, 1, 1, 1]>(e, w3)
          [bn3] h = BatchNormalization(f, g, g, z, g)
          [add] i = Add(b, h)
          [r3] y = Relu(i)
        }""",
        **batchnorm(32),
        **weights(w1=(39, 32, 2, 2), b1=(32,), w2=(32, 32, 3, 3), w3=(32, 32, 3, 3)),
    )
    result = quantized(model, tmp_path, min_sqnr=25)
    assert codes(result) == {"up": "O24-200", "c2": "O24-200", "c3": "O24-200"}
    assert source(model, "add", 0) == "b" and node(model, "add").input[1] == "h"
    assert node(model, "up").input[2] == "b1"  # the bias stays float
    assert scale_of(model, "w1").shape == (32,)


def test_a_convolution_with_swish_before_a_residual_add(tmp_path):
    model = build(
        """g (float[N, 48, 8, 8] x) => (float[N, 48, 8, 8] y) {
          [r0] a = Relu(x)
          [c1] b = Conv<pads = [1, 1, 1, 1]>(a, w)
          [bn] c = BatchNormalization(b, g, g, z, g)
          [sig] d = Sigmoid(c)
          [mul] e = Mul(d, c)
          [add] f = Add(a, e)
          [r2] y = Relu(f)
        }""",
        **batchnorm(48),
        **weights(w=(48, 48, 3, 3)),
    )
    assert codes(quantized(model, tmp_path, min_sqnr=25)) == {"c1": "O24-200"}
    assert source(model, "add", 0) == "a" and node(model, "add").input[1] == "e"
    assert in_float(model, "bn", "sig", "mul")


@pytest.mark.parametrize("reshaped", [False, True])
def test_a_pool_behind_an_activation(reshaped, tmp_path):
    """Model-Optimizer leaves the pair behind the MaxPool; here it stands before (D22)."""
    pooled = "s" if reshaped else "c"
    model = build(
        f"""g (float[N, 8, 8, 8] x) => (float[N, 16, 4, 4] y) {{
          [c1] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
          [bn] b = BatchNormalization(a, g, g, z, g)
          [r1] c = Relu(b)
          {"[view] s = Reshape(c, shape)" if reshaped else ""}
          [pool] d = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>({pooled})
          [c2] y = Conv<pads = [1, 1, 1, 1]>(d, w2)
        }}""",
        shape=np.array([-1, 16, 8, 8], np.int64),
        **batchnorm(16),
        **weights(w1=(16, 8, 3, 3), b1=(16,), w2=(16, 16, 3, 3)),
    )
    result = quantized(model, tmp_path, min_sqnr=25)
    assert codes(result) == {"c1": "O24-200", "c2": "O24-200"}
    assert pairs(model) == ["c", "w1", "w2", "x"] and in_float(model, "bn", "r1", "c2") is False
    assert source(model, "view" if reshaped else "pool", 0) == "c"
    assert node(model, "c2").input[0] == "d"


def test_comparisons_and_where_stay_in_float(tmp_path):
    model = build(
        """g (float[N, 32, 6, 6] x) => (float[N, 32, 6, 6] y) {
          [conv] a = Conv<pads = [1, 1, 1, 1]>(x, w)
          [cast] b = Cast<to = 11>(a)
          [isinf] c = IsInf(b)
          [greater] d = Greater(a, zero)
          [both] e = And(c, d)
          [where] y = Where(e, a, large)
        }""",
        zero=np.zeros(1, np.float32),
        large=np.full(1, 1e4, np.float32),
        **weights(w=(32, 32, 3, 3)),
    )
    # The result is the large constant everywhere, so that nothing can be compared.
    assert codes(quantized(model, tmp_path, min_sqnr=None)) == {"conv": "O24-200"}
    assert pairs(model) == ["w", "x"] and in_float(model, "cast", "greater", "where")


def test_a_convolution_before_a_layer_normalization_is_int8_out(tmp_path):
    text = """g (float[N, 3, 16, 16] x) => (float[N, 32, 4, 4] y) {
      [stem] a = Conv<strides = [4, 4]>(x, w1, b1)
      [t1] b = Transpose<perm = [0, 2, 3, 1]>(a)
      [norm] c = LayerNormalization(b, s, z)
      [t2] d = Transpose<perm = [0, 3, 1, 2]>(c)
      [c2] y = Conv(d, w2, z)
    }"""
    values = weights(w1=(32, 3, 4, 4), b1=(32,), w2=(32, 32, 1, 1))
    values |= {"s": np.ones(32, np.float32), "z": np.zeros(32, np.float32)}
    model = build(text, **values)
    result = quantized(model, tmp_path, min_sqnr=25)
    assert codes(result) == {"stem": "O24-200", "c2": "O24-200"}
    assert source(model, "t1", 0) == "a" and source(model, "t2", 0) == "c"
    # A near miss: something else reads the convolution, so it has to write floats as well.
    other = text.replace("(float[N, 32, 4, 4] y)", "(float[N, 32, 4, 4] y, float[N, 32, 4, 4] t)")
    model = build(other.replace("[norm]", "t = Sigmoid(a) [norm]"), **values)
    quantized(model, tmp_path, min_sqnr=10)
    assert node(model, "t1").input[0] == "a"


def test_small_grouped_convolutions(tmp_path):
    model = build(
        """g (float[N, 64, 4, 4] x) => (float[N, 32, 8, 8] y) {
          [c1] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
          [r1] b = Relu(a)
          [up] c = Resize<mode = "nearest">(b, none, scales)
          [d1] d = Conv<group = 32, pads = [0, 0, 1, 1]>(c, w2)
          [d2] e = Conv<group = 32>(c, w3, b1)
          [d3] f = Conv<group = 32, pads = [0, 0, 1, 1]>(e, w2)
          [mul] y = Mul(d, f)
        }""",
        none=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
        **weights(w1=(32, 64, 3, 3), b1=(32,), w2=(32, 1, 2, 2), w3=(32, 1, 1, 1)),
    )
    result = quantized(model, tmp_path)
    found = codes(result)
    assert found.pop("c1") == "O24-200" and set(found.values()) == {"O24-212"}
    assert pairs(model) == ["w1", "x"] and in_float(model, "d1", "d2", "d3", "mul")


def test_a_matrix_vector_product(tmp_path):
    model = build(
        "g (float[1, 32] x) => (float[1, 64] y) { [fc] y = MatMul(x, w) }", **weights(w=(32, 64))
    )
    assert codes(quantized(model, tmp_path)) == {"fc": "O24-210"} and "QuantizeLinear" not in ops(
        model
    )


# --- moving over operators -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("DepthToSpace<blocksize = 2>(r)", "4, 8, 8"),
        ("SpaceToDepth<blocksize = 2>(r)", "64, 2, 2"),
        ('Resize<mode = "nearest">(r, none, scales)', "16, 8, 8"),
        ("Slice(r, starts, ends)", "16, 4, 4"),
        ("MaxPool<kernel_shape = [2, 2]>(r)", "16, 3, 3"),
        ("Pad(r, frame)", "16, 6, 6"),
        ("Pad(r, frame, zero)", "16, 6, 6"),
    ],
)
def test_operators_that_commute(op, shape, tmp_path):
    channels = int(shape.split(",")[0])
    text = (
        "g (float[N, 16, 4, 4] x) => (float[N, 32, H, W] y) "
        f"{{ r = Relu(x) [move] m = {op} [c] y = Conv(m, w) }}"
    )
    constants = {
        "none": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "starts": np.array([0], np.int64),
        "ends": np.array([1000], np.int64),
        "frame": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "zero": np.array(0, np.float32),
    }
    used = {name: value for name, value in constants.items() if name in op}
    model = build(text, **used, **weights(w=(32, channels, 1, 1)))
    quantized(model, tmp_path)
    assert source(model, "move", 0) == "r" and node(model, "c").input[0] == "m"


@pytest.mark.parametrize(
    "op",
    [
        'Resize<mode = "linear">(r, none, scales)',
        "AveragePool<kernel_shape = [2, 2]>(r)",
        "Sigmoid(r)",
        "Pad(r, frame, one)",
    ],
)
def test_operators_that_do_not(op, tmp_path):
    constants = {
        "none": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "frame": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "one": np.array(1, np.float32),
    }
    used = {name: value for name, value in constants.items() if name in op}
    model = build(
        "g (float[N, 16, 4, 4] x) => (float[N, 32, H, W] y) "
        f"{{ r = Relu(x) [move] m = {op} [c] y = Conv(m, w) }}",
        **used,
        **weights(w=(32, 16, 1, 1)),
    )
    quantized(model, tmp_path)
    assert source(model, "c", 0) == "m" and node(model, "move").input[0] == "r"


def test_a_slice_of_a_narrow_part_keeps_its_own_range(tmp_path):
    text = """g (float[N, 64] x) => (float[N, 24] y) {
      r = Mul(x, ramp) [cut] s = Slice(r, starts, ends, axes) [fc] y = MatMul(s, w)
    }"""
    for factor, seat in ((1.0, "r"), (100.0, "s")):
        ramp = np.repeat(np.array([1, factor], np.float32), 32)
        model = build(
            text,
            ramp=ramp,
            starts=np.array([0], np.int64),
            ends=np.array([32], np.int64),
            axes=np.array([1], np.int64),
            w=array((32, 24)),
        )
        quantized(model, tmp_path)
        assert seat in pairs(model)


@pytest.mark.parametrize("seed", range(12))
def test_pairs_end_at_the_nearest_common_dominator(seed, tmp_path):
    """A random tree of commuting operators whose leaves are all read by layers: one pair, where
    networkx says that every leaf is dominated from."""
    rng = np.random.default_rng(seed)
    values, lines, children = ["x"], [], {}
    for i in range(int(rng.integers(1, 9))):
        parent = values[int(rng.integers(len(values)))] if i else "x"
        name = f"v{i}"
        lines.append(f"{name} = Identity({parent})" if i else f"{name} = Sigmoid({parent})")
        children.setdefault(parent, []).append(name)
        values.append(name)
        if not i:
            values = [name]
    leaves = [name for name in values if name not in children]
    outs = ", ".join(f"float[N, 24] y{i}" for i in range(len(leaves)))
    lines += [f"[fc{i}] y{i} = MatMul({leaf}, w)" for i, leaf in enumerate(leaves)]
    model = build(f"g (float[N, 32] x) => ({outs}) {{ {' '.join(lines)} }}", w=array((32, 24)))
    graph = nx.DiGraph([(p, c) for p, found in children.items() for c in found])
    dominators = nx.immediate_dominators(graph, "x")
    chains = []
    for leaf in leaves:
        chain = [leaf]
        while chain[-1] != "x":
            chain.append(dominators[chain[-1]])
        chains.append(chain)
    common = next(v for v in chains[0] if all(v in chain for chain in chains))
    quantized(model, tmp_path)
    # Identity commutes, so the pair goes on to the value that Sigmoid makes.
    assert pairs(model) == ["v0", "w"]
    assert nx.has_path(graph, "v0", common)


ATTENTION = """g (TYPE[N, 8, 32] x) => (TYPE[N, 8, 32] y) {
  [q] a = MatMul(x, wq) [k] b = MatMul(x, wk) [v] c = MatMul(x, wv)
  [shape] r = Reshape(c, to) [turn] t = Transpose<perm = [0, 2, 1, 3]>(r)
  [back] u = Transpose<perm = [0, 2, 1, 3]>(t) [flat] d = Reshape(u, from)
  [norm] n = LayerNormalization(b, g, g)
  [att] e = Attention<q_num_heads = 2, kv_num_heads = 2>(a, n, d) [o] y = MatMul(e, wo)
}"""


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_what_goes_into_float32_attention_stays_float(dtype, tmp_path):
    """TensorRT-RTX 1.7.1 builds Attention in float32 straight behind products, and not behind
    Q/DQ."""
    values = weights(wq=(32, 32), wk=(32, 32), wv=(32, 32), wo=(32, 32), g=(32,))
    if dtype == "float16":
        values = {name: value.astype(np.float16) for name, value in values.items()}
    model = build(
        ATTENTION.replace("TYPE", dtype),
        opset=23,
        ir=10,
        **values,
        to=np.array([0, 8, 2, 16]),
        **{"from": np.array([0, 8, 32])},
    )
    for name in ("wq", "wk", "wv", "wo"):
        sparse(model, name, 0)
    quantized(model, tmp_path, min_sqnr=10)
    shown = {"a", "c"} & set(pairs(model))
    assert shown == (set() if dtype == "float" else {"a", "c"})
    assert {"b", "e", "x"} <= set(pairs(model))
    if dtype == "float":  # and lint does not ask for them
        judged = Quantized.of(model, AnalysisCache())
        assert not list(findings(judged, sparse_outputs=True))
        pytest.importorskip("tensorrt_rtx", reason="pip install 'onnx24[rtx]'")
        model.save(tmp_path / "m.onnx")
        shape = Profile((2, 8, 32), (2, 8, 32), (2, 8, 32))
        get("tensorrt-rtx").build(
            tmp_path / "m.onnx", TARGET, engine=tmp_path / "e", shapes={"x": shape}
        )


# --- the table -----------------------------------------------------------------------------
def test_every_rule_has_a_code_a_text_and_a_source():
    rules = (*REFUSALS, *PLACEMENT)
    assert len({rule.name for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.code in CODES and rule.text.endswith(".") and rule.source
    assert all(rule.check is not None for rule in REFUSALS)
    assert {rule.name for rule in PLACEMENT} >= {"inputs", "skip branch", "concat", "sparse result"}
