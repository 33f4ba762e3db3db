"""Models in torch: the same outputs as ONNX Runtime's, and gradients that finite differences give."""

# ruff: noqa: E501 - one line an operator
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch")
import torch

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.recovery.interpreter import GraphModule, objections
from onnx24.recovery.node import TORCH_DTYPES
from onnx24.runtime.session import Session

sys.path.append(str(Path(__file__).resolve().parents[1] / "real"))
from onnx24_real import data_for

ILL_CONDITIONED = {"magika_std_v3_3.onnx"}
"""It takes a variance as E[x²] − E[x]², which magnifies the rounding of float32 sums by 10,000:
ONNX Runtime's outputs are 6e-3 from those in float64 for random bytes, torch's 8e-4. Judged by
`check_node_by_node` and `check_against_float64`."""


def check(model: Model, feeds: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Every output: dtype, shape, and values relative to the output's norm."""
    expected = Session(model, None, optimize=False).run(feeds)
    with torch.no_grad():
        given = GraphModule(model)(feeds)
    for name, wanted in expected.items():
        found = given[name].detach().numpy()  # an output may be a parameter itself
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
        if wanted.size == 0:
            continue
        a, b = found.astype(np.float64), wanted.astype(np.float64)
        assert np.array_equal(np.isfinite(a), np.isfinite(b)), name
        a, b = np.nan_to_num(a), np.nan_to_num(b)
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-6), name


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6))


def check_node_by_node(model: Model, feeds: dict[str, np.ndarray]) -> None:
    """Every node of the main graph gives what ONNX Runtime's does on ONNX Runtime's inputs."""
    module = GraphModule(model)
    nodes = module._program.nodes
    made = [name for node in nodes for name in node.outputs if name]
    values = Session(model, made, optimize=False).run(feeds)
    known = {name: torch.from_numpy(np.array(v)) for name, v in (feeds | values).items()}
    for name, key in module._program.local.items():
        is_float = key in module._elements
        known[name] = module.effective(key) if is_float else module._constants[key]
    for node in nodes:
        with torch.no_grad():
            results = module._call(node, [known.get(name) for name in node.inputs], known)
        for name, result in zip(node.outputs, results, strict=False):
            assert relative(result.numpy(), values[name]) < 1e-5, (node.op, name)


def check_against_float64(
    model: Model, feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch is no further from the outputs in float64 than ONNX Runtime is."""
    with torch.no_grad():
        given = GraphModule(model)(feeds)
    monkeypatch.setitem(TORCH_DTYPES, TensorProto.FLOAT, torch.float64)
    module = GraphModule(model).double()
    for node in module._program.nodes:
        for name, value in node.attributes.items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                node.attributes[name] = value.double()  # type: ignore[index]
    with torch.no_grad():
        exact = module(feeds)
    monkeypatch.undo()
    for name, wanted in Session(model, None, optimize=False).run(feeds).items():
        truth = exact[name].numpy()
        assert truth.dtype == np.float64
        assert relative(given[name].numpy(), truth) < max(relative(wanted, truth), 1e-4)


def one_node(op: str, inputs: list, opset: int = 17, outputs: int = 1, **attributes) -> Model:
    """A model of one node; the inputs are arrays, the first one fed, None for one left out."""
    names = [f"i{n}" if value is not None else "" for n, value in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{n}" for n in range(outputs)], name="it", **attributes)
    first = helper.make_tensor_value_info(
        "i0", helper.np_dtype_to_tensor_dtype(inputs[0].dtype), inputs[0].shape
    )
    graph = helper.make_graph(
        [node],
        "one",
        [first],
        [helper.make_empty_tensor_value_info(f"o{n}") for n in range(outputs)],
        [
            numpy_helper.from_array(np.asarray(value), f"i{n}")
            for n, value in enumerate(inputs)
            if n and value is not None
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Model.from_proto(model, check=False)  # outputs have no type, which the checker wants


def f(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


X = f(2, 4, 9, 10)
NODES = {
    "conv-same-upper": ("Conv", [X, f(6, 2, 3, 3), f(6)], 17, {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv-same-lower": ("Conv", [X, f(6, 4, 2, 2)], 17, {"auto_pad": "SAME_LOWER"}),
    "conv-uneven-pads": ("Conv", [X, f(6, 4, 3, 3)], 11, {"pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    "conv-1d": ("Conv", [f(2, 4, 9), f(3, 4, 3)], 17, {"pads": [1, 1]}),
    "conv-3d": ("Conv", [f(1, 2, 5, 5, 5), f(3, 2, 3, 3, 3)], 17, {}),
    "convt-pads": ("ConvTranspose", [X, f(4, 3, 3, 3), f(6)], 17, {"group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
    "convt-shape": ("ConvTranspose", [X, f(4, 3, 3, 3)], 17, {"strides": [2, 2], "output_shape": [18, 20], "auto_pad": "SAME_UPPER"}),
    "maxpool-ceil": ("MaxPool", [X], 17, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
    "maxpool-dilated": ("MaxPool", [X], 17, {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    "avgpool-ceil": ("AveragePool", [X], 19, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "avgpool-pad": ("AveragePool", [X], 17, {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2]}),
    "avgpool-include": ("AveragePool", [X], 17, {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "count_include_pad": 1}),
    "softmax-11": ("Softmax", [X], 11, {"axis": 1}),
    "softmax-13": ("Softmax", [X], 13, {"axis": 1}),
    "logsoftmax-11": ("LogSoftmax", [X], 11, {}),
    "gemm": ("Gemm", [f(5, 3), f(7, 5), f(7)], 17, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    "einsum": ("Einsum", [f(2, 3, 4), f(2, 4, 5)], 17, {"equation": "bij,bjk->bik"}),
    "batchnorm": ("BatchNormalization", [X, f(4), f(4), f(4), np.abs(f(4))], 17, {}),
    "instancenorm": ("InstanceNormalization", [X, f(4), f(4)], 17, {}),
    "groupnorm-18": ("GroupNormalization", [X, f(2), f(2)], 18, {"num_groups": 2}),
    "groupnorm-21": ("GroupNormalization", [X, f(4), f(4)], 21, {"num_groups": 2}),
    "layernorm": ("LayerNormalization", [X, f(9, 10), f(9, 10)], 17, {"axis": 2}),
    "lrn": ("LRN", [X], 17, {"size": 3}),
    "lpnorm": ("LpNormalization", [X], 17, {"axis": 1}),
    "mvn": ("MeanVarianceNormalization", [X], 17, {}),
    "clip-6": ("Clip", [X], 6, {"min": -0.5, "max": 0.5}),
    "clip-13": ("Clip", [X, None, np.float32(0.3)], 13, {}),
    "selu": ("Selu", [X], 17, {}),
    "celu": ("Celu", [X], 17, {"alpha": 0.7}),
    "prelu": ("PRelu", [X, f(4, 1, 1)], 17, {}),
    "shrink": ("Shrink", [X], 17, {"bias": 0.1, "lambd": 0.4}),
    "thresholded": ("ThresholdedRelu", [X], 17, {}),
    "gelu-tanh": ("Gelu", [X], 20, {"approximate": "tanh"}),
    "mish": ("Mish", [X], 18, {}),
    "reduce-attribute": ("ReduceMean", [X], 13, {"axes": [1, -1], "keepdims": 0}),
    "reduce-input": ("ReduceMean", [X, i(1, 3)], 18, {}),
    "reduce-nothing": ("ReduceSum", [X, i()], 13, {"noop_with_empty_axes": 1}),
    "reduce-l2": ("ReduceL2", [X], 13, {"axes": [2]}),
    "reduce-logsumexp": ("ReduceLogSumExp", [X], 13, {}),
    "reduce-prod": ("ReduceProd", [X], 13, {"axes": [0, 2]}),
    "argmax": ("ArgMax", [X], 13, {"axis": 2, "keepdims": 0}),
    "argmin-last": ("ArgMin", [np.round(X)], 13, {"axis": 3, "select_last_index": 1}),
    "cumsum": ("CumSum", [X, np.int64(1)], 17, {"exclusive": 1, "reverse": 1}),
    "reshape-0": ("Reshape", [X, i(0, -1, 10)], 17, {}),
    "squeeze-11": ("Squeeze", [f(1, 3, 1)], 11, {"axes": [-1]}),
    "squeeze-13": ("Squeeze", [f(1, 3, 1), i(0)], 13, {}),
    "unsqueeze": ("Unsqueeze", [f(2, 3), i(0, -1)], 13, {}),
    "slice-1": ("Slice", [X], 1, {"starts": [1, -3], "ends": [3, 1000], "axes": [1, 2]}),
    "slice-backwards": ("Slice", [X, i(-1, 8), i(-1000, 0), i(1, 2), i(-1, -3)], 13, {}),
    "gather": ("Gather", [X, np.array([[0, -1], [2, 1]])], 13, {"axis": 2}),
    "gather-elements": ("GatherElements", [f(3, 4), np.array([[0, -1], [2, 1]])], 13, {"axis": 1}),
    "gather-nd": ("GatherND", [X, np.array([[0, 1], [-1, 2]])], 13, {}),
    "gather-nd-batch": ("GatherND", [X, np.array([[1, 2], [3, -1]])], 13, {"batch_dims": 1}),
    "scatter-nd": ("ScatterND", [f(4, 3), np.array([[1], [3]]), f(2, 3)], 16, {}),
    "scatter-elements": ("ScatterElements", [f(3, 4), np.array([[0, 1], [2, 0]]), f(2, 2)], 16, {"axis": 1}),
    "expand": ("Expand", [f(3, 1), i(2, 1, 4)], 13, {}),
    "tile": ("Tile", [f(2, 3), i(2, 2)], 13, {}),
    "pad-2": ("Pad", [X], 2, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 3.0}),
    "pad-reflect": ("Pad", [X, i(0, 0, 1, 2, 0, 0, 2, 1)], 13, {"mode": "reflect"}),
    "pad-edge-axes": ("Pad", [X, i(1, 2), None, i(1)], 18, {"mode": "edge"}),
    "pad-negative": ("Pad", [X, i(0, 0, -1, 2, 0, 0, 0, -2)], 13, {}),
    "trilu": ("Trilu", [f(4, 5), np.int64(1)], 14, {"upper": 0}),
    "depth-dcr": ("DepthToSpace", [X], 13, {"blocksize": 2}),
    "depth-crd": ("DepthToSpace", [X], 13, {"blocksize": 2, "mode": "CRD"}),
    "space-to-depth": ("SpaceToDepth", [f(1, 2, 4, 6)], 13, {"blocksize": 2}),
    "resize-10": ("Resize", [X, np.float32([1, 1, 2, 2])], 10, {}),
    "resize-nearest": ("Resize", [X, None, np.float32([1, 1, 2, 0.6])], 13, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    "resize-linear": ("Resize", [X, None, None, i(2, 4, 13, 7)], 13, {"mode": "linear"}),
    "resize-corners": ("Resize", [X, None, None, i(2, 4, 13, 7)], 13, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "upsample": ("Upsample", [X, np.float32([1, 1, 2, 3])], 9, {}),
    "one-hot": ("OneHot", [np.array([[1, -1], [0, 3]]), np.int64(4), f(2)], 11, {"axis": 1}),
    "where": ("Where", [X > 0, X, f(1, 4, 1, 1)], 16, {}),
    "pow": ("Pow", [np.abs(X), f(10)], 13, {}),
    "mod": ("Mod", [X, np.float32([0.3])], 13, {"fmod": 1}),
    "div-integers": ("Div", [i(-7, 7, 9), i(2, -2, 4)], 14, {}),
    "cast": ("Cast", [X], 13, {"to": int(TensorProto.INT32)}),
    "quantize": ("QuantizeLinear", [X, np.abs(f(4)) + 0.01, np.int8([0, 1, -2, 3])], 13, {"axis": 1}),
    "shape-part": ("Shape", [X], 15, {"start": 1, "end": -1}),
    "is-inf": ("IsInf", [np.float32([np.inf, -np.inf, 1])], 13, {"detect_negative": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_operators(name: str) -> None:
    op, inputs, opset, attributes = NODES[name]
    check(one_node(op, inputs, opset, **attributes), {"i0": inputs[0]}, 1e-5)


def test_operators_of_several_outputs() -> None:
    x = np.round(f(3, 8))
    check(one_node("TopK", [x, i(5)], 11, 2, axis=1), {"i0": x})
    check(one_node("TopK", [x, i(2)], 11, 2, axis=0, largest=0), {"i0": x})
    check(one_node("Split", [f(3, 8), i(5, 3)], 13, 2, axis=1), {"i0": f(3, 8)})
    check(one_node("Split", [f(3, 8)], 18, 3, axis=1, num_outputs=3), {"i0": f(3, 8)})


@pytest.mark.parametrize("choice", [True, False])
def test_a_condition_chooses_a_body(choice: bool) -> None:
    model = Model.from_text("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4] x, bool c) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}>
        {
            y = If(c) <
                then_branch = yes () => (float[N, 4] p) { p = Mul(x, w) },
                else_branch = no () => (float[N, 4] q) { q = Sub(x, w) }
            >
        }
    """)
    check(model, {"x": f(3, 4), "c": np.array(choice)})


def test_what_cannot_be_run_names_the_node() -> None:
    model = one_node("MaxPool", [X], 12, 2, kernel_shape=[2, 2])
    (found,) = objections(model)
    assert (found.code, found.where.node, found.where.op) == ("O24-150", "it", "MaxPool")
    with pytest.raises(InputError, match="more outputs than the first"):
        GraphModule(model)
    for op, attributes in (
        ("Resize", {"mode": "cubic"}),
        ("Det", {}),
    ):
        inputs = [X, None, np.float32([1, 1, 2, 2])] if op == "Resize" else [f(3, 3)]
        assert [d.code for d in objections(one_node(op, inputs, 13, **attributes))] == ["O24-150"]


def test_a_node_that_fails_is_named() -> None:
    model = Model.from_text("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N] x) => (float[M] y) <int64[2] s = {-1, 3}, int64[1] flat = {-1}>
        { r = Reshape(x, s)  y = Reshape(r, flat) }
    """)
    with pytest.raises(InputError, match="O24-152") as err:
        GraphModule(model)({"x": f(4)})
    assert err.value.diagnostics[0].where.op == "Reshape"


@pytest.mark.slow
def test_every_real_model(shared_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All with float weights that ONNX Runtime runs, Loop, Scan and recurrent layers left out."""
    checked = 0
    for path in sorted(shared_models.rglob("*.onnx")):
        try:
            model = Model.load(path)
            has_floats = any(model.weights.info(k).dtype.kind == "f" for k in model.weights)
            ops = {node.op_type for scope in model.scopes() for node in scope.graph.node}
            if not has_floats or ops & {"Loop", "Scan", "LSTM", "GRU", "RNN"}:
                continue
            data = data_for(model)
            session = Session(model, None, optimize=False)
            feeds = [feeds for feeds, _ in zip(data.batches(model), range(2), strict=False)]
            for values in feeds:
                session.run(values)
        except InputError:
            continue  # not a model, or not one for ONNX Runtime
        for values in feeds:
            if path.name in ILL_CONDITIONED:
                check_node_by_node(model, values)
                check_against_float64(model, values, monkeypatch)
            else:
                check(model, values)
        checked += 1
    assert checked >= 60, checked


def test_fixture_models_at_several_batches(fixture_models, digits) -> None:
    for fixture in fixture_models.values():
        for rows in (1, 5):
            check(Model.load(fixture.path), {fixture.input: digits.test_x[:rows]})


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_gradients_of_models(fixture_models, digits, name: str) -> None:
    """Along the gradient, the loss changes by its squared norm: by finite differences, in double."""
    model = Model.load(fixture_models[name].path)
    module = GraphModule(model).double()
    module._elements = dict.fromkeys(module._elements, int(TensorProto.DOUBLE))
    feeds = {fixture_models[name].input: digits.test_x[:4].astype(np.float64)}

    def loss() -> torch.Tensor:
        return module(feeds)["logits"].square().sum()

    loss().backward()
    for key in module.keys[:: max(len(module.keys) // 8, 1)]:
        parameter = module.parameter(key)
        slope = float(parameter.grad.square().sum())
        step = 1e-6 / max(slope**0.5, 1e-12)
        with torch.no_grad():
            parameter.add_(parameter.grad, alpha=step)
            above = float(loss())
            parameter.sub_(parameter.grad, alpha=2 * step)
            below = float(loss())
            parameter.add_(parameter.grad, alpha=step)
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-3), key


GRADIENTS = ["conv-same-upper", "convt-pads", "avgpool-ceil", "maxpool-ceil", "layernorm",
             "groupnorm-21", "gather-nd", "pad-reflect", "resize-linear", "prelu", "softmax-11",
             "reduce-l2", "slice-backwards", "lrn"]  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_operators(name: str) -> None:
    from onnx24.recovery.interpreter import OPERATORS

    op, inputs, opset, attributes = NODES[name]
    node = GraphModule(one_node(op, inputs, opset, **attributes))._program.nodes[0]
    others = [
        None if v is None else torch.from_numpy(np.asarray(v, np.float64 if np.asarray(v).dtype.kind == "f" else None))
        for v in inputs[1:]
    ]  # fmt: skip
    x = torch.from_numpy(inputs[0].astype(np.float64)).requires_grad_(True)
    weights = [value.requires_grad_(True) for value in others if value is not None and value.is_floating_point()]  # fmt: skip

    def apply(*_: torch.Tensor) -> torch.Tensor:
        return OPERATORS["", op](node, x, *others)

    assert torch.autograd.gradcheck(apply, (x, *weights), eps=1e-6, atol=1e-5)


QDQ = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N] x) => (float[N] y) <float s = {0.5}, int8 z = {3}>
{ q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }
"""


def test_a_pair_is_one_fake_quantizer() -> None:
    """Values as ONNX Runtime's, gradient 1 inside the range and 0 outside."""
    model = Model.from_text(QDQ)
    x = np.float32([-70, -65.5, -1.25, 0.25, 0.75, 61.9, 62.4, 90])
    check(model, {"x": x}, 0)
    given = torch.from_numpy(x.copy()).requires_grad_(True)
    GraphModule(model)({"x": given})["y"].sum().backward()
    assert given.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_what_is_trained(fixture_models) -> None:
    model = Model.load(fixture_models["cnn"].path)
    module = GraphModule(model)
    fixed = [k for k in module._parameters_by_key if k not in set(module.keys)]
    statistics = {k for k in fixed if k.name.endswith((".bn.mean", ".bn.var"))}
    assert len(statistics) == 10
    assert all(model.weights[k].size == 1 for k in fixed if k not in statistics)


def test_half_precision_weights_are_rounded_when_written() -> None:
    w = f(4, 4).astype(np.float16)
    model = one_node("MatMul", [f(2, 4).astype(np.float16), w], 13)
    module = GraphModule(model)
    (key,) = module.keys
    assert module.parameter(key).dtype == torch.float32
    before = model.to_bytes()
    assert module.write_back(model) == [] and model.to_bytes() == before
    with torch.no_grad():
        module.parameter(key).add_(0.1)
    assert module.write_back(model) == [key]
    wanted = (w.astype(np.float32) + np.float32(0.1)).astype(np.float16)
    assert np.array_equal(model.weights[key], wanted)
