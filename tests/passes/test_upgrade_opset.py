"""upgrade-opset: outputs equal, nothing lost, refusals that name the node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx24.passes.upgrade_opset import UpgradeOpset

import onnx24
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.testing.passes import apply, assert_same, feeds, ops, outputs, session, text_model

X = "g (float[2,3,4] x) => (float[A,B,C] y) "
IMAGE = "g (float[1,3,4,4] x) => (float[A,B,C,D] y) "
BN = (
    "<float[3] s={1.0,2.0,3.0}, float[3] b={0.0,1.0,2.0}, "
    "float[3] m={0.1,0.2,0.3}, float[3] v={1.0,2.0,1.0}> "
)

# Operators whose definition changed somewhere in opsets 7 to 13: (first opset tried, text).
CASES = {
    "softmax-default": (7, X + "{ y = Softmax(x) }"),
    "softmax-axis-1": (7, X + "{ y = Softmax<axis=1>(x) }"),
    "softmax-last": (7, X + "{ y = Softmax<axis=2>(x) }"),
    "softmax-dynamic": (7, "g (float[N,M,4] x) => (float[A,B,C] y) { y = Softmax<axis=1>(x) }"),
    "logsoftmax": (7, X + "{ y = LogSoftmax<axis=1>(x) }"),
    "hardmax-default": (7, X + "{ y = Hardmax(x) }"),
    "hardmax-last": (7, X + "{ y = Hardmax<axis=2>(x) }"),
    "hardmax-read-on": (7, X + "{ h = Hardmax<axis=1>(x) y = Relu(h) }"),
    "clip-min": (7, X + "{ y = Clip<min=0.0>(x) }"),
    "clip-max": (7, X + "{ y = Clip<max=0.25>(x) }"),
    "clip-none": (7, X + "{ y = Clip(x) }"),
    "pad-constant": (7, X + '{ y = Pad<mode="constant",pads=[0,1,0,0,0,2],value=1.5>(x) }'),
    "pad-reflect": (7, X + '{ y = Pad<mode="reflect",pads=[0,1,0,0,0,2]>(x) }'),
    "slice": (7, X + "{ y = Slice<starts=[0,1],ends=[2,3]>(x) }"),
    "slice-axes": (7, X + "{ y = Slice<starts=[1],ends=[1000],axes=[2]>(x) }"),
    "topk": (
        7,
        "g (float[2,3,4] x) => (float[A,B,C] y, int64[A,B,C] z) { y,z = TopK<k=2,axis=1>(x) }",
    ),
    "upsample-attribute": (
        7,
        IMAGE + '{ y = Upsample<mode="nearest",scales=[1.0,1.0,2.0,2.0]>(x) }',
    ),
    "upsample-linear-attribute": (
        7,
        IMAGE + '{ y = Upsample<mode="linear",scales=[1.0,1.0,2.0,2.0]>(x) }',
    ),
    "upsample-nearest": (
        9,
        IMAGE + '<float[4] s={1.0,1.0,1.75,3.0}> { y = Upsample<mode="nearest">(x,s) }',
    ),
    "upsample-linear": (
        9,
        IMAGE + '<float[4] s={1.0,1.0,2.0,2.0}> { y = Upsample<mode="linear">(x,s) }',
    ),
    "resize-nearest-up": (
        10,
        IMAGE + '<float[4] s={1.0,1.0,1.3,2.0}> { y = Resize<mode="nearest">(x,s) }',
    ),
    "resize-nearest-down": (
        10,
        IMAGE + '<float[4] s={1.0,1.0,0.6,0.75}> { y = Resize<mode="nearest">(x,s) }',
    ),
    "resize-linear": (
        10,
        IMAGE + '<float[4] s={1.0,1.0,1.5,2.0}> { y = Resize<mode="linear">(x,s) }',
    ),
    "split-even": (
        7,
        "g (float[2,4,4] x) => (float[A,B,C] y, float[A,B,D] z) { y,z = Split<axis=1>(x) }",
    ),
    "split-sizes": (
        7,
        "g (float[2,4,4] x) => (float[A,B,C] y, float[A,E,D] z) "
        "{ y,z = Split<axis=1,split=[1,3]>(x) }",
    ),
    "squeeze": (7, "g (float[2,1,4] x) => (float[A,B] y) { y = Squeeze<axes=[1]>(x) }"),
    "squeeze-all": (7, "g (float[2,1,4] x) => (float[A,B] y) { y = Squeeze(x) }"),
    "unsqueeze": (7, X.replace("A,B,C", "A,B,C,D") + "{ y = Unsqueeze<axes=[1]>(x) }"),
    "reducesum": (7, X + "{ y = ReduceSum<axes=[1]>(x) }"),
    "reducesum-all": (7, X.replace("[A,B,C]", "") + "{ y = ReduceSum<keepdims=0>(x) }"),
    "dropout": (7, X + "{ y = Dropout<ratio=0.5>(x) }"),
    "dropout-unread-mask": (7, X + "{ y,mask = Dropout<ratio=0.5>(x) }"),
    "batchnorm": (7, X + BN + "{ y = BatchNormalization<epsilon=0.01>(x,s,b,m,v) }"),
    "scatter": (
        9,
        "g (float[3,3] x) => (float[A,B] y) <int64[1,3] i={0,1,2}, float[1,3] u={5.0,6.0,7.0}> "
        "{ y = Scatter<axis=0>(x,i,u) }",
    ),
    "maxpool": (7, IMAGE + "{ y = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x) }"),
    "lstm": (
        7,
        "g (float[3,2,4] x, float[1,20,4] w, float[1,20,5] r) => (float[3,1,2,5] y) "
        "{ y = LSTM<hidden_size=5>(x,w,r) }",
    ),
    "if-body": (
        11,
        "g (bool c, float[1,4] x) => (float[B] y) { y = If(c)<"
        "then_branch=tb () => (float[B] a) { a = Squeeze<axes=[0]>(x) }, "
        "else_branch=eb () => (float[B] b) { q = Neg(x) b = Squeeze<axes=[0]>(q) }> }",
    ),
    "loop-body": (
        8,
        "g (int64 n, bool c, float[4] x) => (float[4] y) { y = Loop(n,c,x)<"
        "body=lb (int64 i, bool ci, float[4] v) => (bool co, float[4] vo) "
        "{ co = Identity(ci) u = Unsqueeze<axes=[0]>(v) s = Softmax<axis=0>(v) "
        "w = Squeeze<axes=[0]>(u) vo = Add(w,s) }> }",
    ),
    "quantize": (
        10,
        "g (float[2,3] x) => (float[2,3] y) <float s={0.5}, uint8 z={3}> "
        "{ q = QuantizeLinear(x,s,z) y = DequantizeLinear(q,s,z) }",
    ),
}
SWEEP = [
    (name, opset)
    for name, (first, _) in CASES.items()
    for opset in range(first, 13)
    # Upsample ends with opset 9, its attribute with 8; attributes became inputs at these opsets.
    if not (name.startswith("upsample") and opset > (8 if "attribute" in name else 9))
    and not (name.startswith(("slice", "topk", "resize", "scatter")) and opset > first)
    and not (name.startswith(("clip", "pad")) and opset > 10)
    and not (name == "dropout" and opset > 11)
    and not (name == "dropout-unread-mask" and opset > 11)
]


@pytest.mark.parametrize(("name", "opset"), SWEEP)
def test_outputs_are_equal(name: str, opset: int) -> None:
    model = text_model(CASES[name][1], opset=opset, ir=6)
    before = outputs(model)
    ctx = apply(model, UpgradeOpset())
    assert model.opset == 13
    assert [d.code for d in ctx.diagnostics] == ["O24-330"]
    assert_same(before, outputs(model))


@pytest.mark.parametrize("to", [14, 17, 18, 21, 24])
@pytest.mark.parametrize(
    "name", ["reducesum", "batchnorm", "split-even", "resize-linear", "loop-body", "quantize"]
)
def test_newer_targets(name: str, to: int) -> None:
    first, text = CASES[name]
    model = text_model(text, opset=first, ir=6)
    before = outputs(model)
    apply(model, UpgradeOpset(to=to))
    assert model.opset == to
    assert_same(before, outputs(model))


FLOAT_RESULTS = [
    name for name in CASES if name not in ("dropout-unread-mask", "if-body", "loop-body")
]


@pytest.mark.parametrize("name", FLOAT_RESULTS)
def test_results_that_a_body_reads(name: str) -> None:
    """The converter rewires readers in the same graph only."""
    first, text = CASES[name]
    proto = text_model(text, opset=first, ir=6).proto
    graph = proto.graph
    for node in graph.node:
        node.output[:] = ["inner" if output == "y" else output for output in node.output]
        node.input[:] = ["inner" if value == "y" else value for value in node.input]
    branches = []
    for op in ("Neg", "Abs"):
        out = onnx.helper.make_tensor_value_info(f"{op}.out", onnx.TensorProto.FLOAT, None)
        body = [onnx.helper.make_node(op, ["inner"], [out.name])]
        branches.append(onnx.helper.make_graph(body, op, [], [out]))
    graph.node.append(
        onnx.helper.make_node("If", ["p"], ["y"], then_branch=branches[0], else_branch=branches[1])
    )
    graph.input.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.BOOL, []))
    model = Model.from_proto(proto)
    before = outputs(model)
    apply(model, UpgradeOpset())
    assert_same(before, outputs(model))


@pytest.mark.parametrize("inputs", [["x"], ["x", ""]], ids=["left out", "empty"])
def test_split_into_equal_parts(inputs: list[str]) -> None:
    """What is "" is absent; the converter took it for sizes."""
    text = "g (float[2,4] x) => (float[2,2] y) { p, q = Split<axis=1>(x) y = Sub(p, q) }"
    model = text_model(text, opset=13)
    model.proto.graph.node[0].input[:] = inputs
    before = outputs(model)
    apply(model, UpgradeOpset(to=18))
    assert_same(before, outputs(model), rtol=0)


def test_a_newer_model_is_not_touched() -> None:
    model = text_model(X + "{ y = Softmax<axis=1>(x) }", opset=13)
    before = model.to_bytes()
    assert "O24-330" not in {d.code for d in apply(model, UpgradeOpset()).diagnostics}
    assert not model.changed and model.to_bytes() == before


def test_a_second_run_changes_nothing() -> None:
    model = text_model(CASES["softmax-axis-1"][1], opset=9)
    apply(model, UpgradeOpset())
    before = model.to_bytes()
    apply(model, UpgradeOpset())
    assert model.to_bytes() == before


def test_nothing_of_the_document_is_lost() -> None:
    text = "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w) s = Squeeze<axes=[0]>(u) "
    text += "a = Add(h, s) y = Softmax<axis=0>(a) }"
    w = np.arange(1024, dtype=np.float32).reshape(8, 128)[:, :8].copy()
    big = np.arange(400, dtype=np.float32)
    proto = onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["" : 9]> {text}')
    for name, values in (("w", w), ("u", w[:1]), ("unused", big)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    proto.graph.node[0].name = "layer"
    proto.graph.node[0].doc_string = "the layer"
    proto.graph.node[3].name = "soft"
    proto.graph.node[3].metadata_props.add(key="origin", value="line 7")
    proto.graph.metadata_props.add(key="graph", value="kept")
    proto.metadata_props.add(key="author", value="me")
    proto.doc_string = "a model"
    model = Model.from_proto(proto)
    before = outputs(model)
    initializers = [t.SerializeToString() for t in model.proto.graph.initializer]
    apply(model, UpgradeOpset())

    graph = model.proto.graph
    assert [t.SerializeToString() for t in graph.initializer][:3] == initializers
    assert graph.node[0].SerializeToString() == proto.graph.node[0].SerializeToString()
    soft = next(node for node in graph.node if node.op_type == "Softmax")
    assert soft.name == "soft" and soft.metadata_props[0].value == "line 7"
    assert graph.metadata_props[0].value == "kept"
    assert model.metadata["author"] == "me" and model.proto.doc_string == "a model"
    assert "Constant" not in ops(model)  # the converter's constants are initializers
    assert [n.name for n in graph.node if n.name] == ["layer", "soft", "soft.reshape"]
    assert_same(before, outputs(model))


def test_large_weights_are_not_read() -> None:
    w = np.ones((64, 64), np.float32)
    model = text_model(
        "g (float[2,64] x) => (float[2,64] y) { h = MatMul(x, w) y = Softmax(h) }",
        opset=9,
        ir=4,
        weights={"w": w},
    )
    model.weights.read = model.weights.payload = None  # type: ignore[assignment, method-assign]
    UpgradeOpset().run(model, _context())
    assert model.opset == 13 and "w" in model.weights


def test_sparse_initializers_stay() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 6, opset_import: ["" : 11]> '
        "g (float[3] x) => (float[3] y) { a = Add(x, s) y = Softmax<axis=0>(a) }"
    )
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [2.0])
    indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [1])
    sparse = onnx.helper.make_sparse_tensor(values, indices, [3])
    proto.graph.sparse_initializer.append(sparse)
    model = Model.from_proto(proto)
    apply(model, UpgradeOpset())
    assert len(model.proto.graph.sparse_initializer) == 1
    assert not model.proto.graph.initializer


def test_layer_normalization_ahead_of_its_opset() -> None:
    """Exporters of ONNX Runtime write it below opset 17; the converter has no adapter."""
    model = text_model(
        "g (float[2,4] x) => (float[2,4] y) <float[4] s={1.0,1.0,2.0,1.0}> "
        "{ y = LayerNormalization(x, s) }",
        opset=12,
    )
    before = outputs(model)
    for to in (13, 17, 20):
        apply(model, UpgradeOpset(to=to))
        assert model.opset == to and ops(model) == ["LayerNormalization"]
        assert_same(before, outputs(model))


def test_other_domains_are_passed_by() -> None:
    model = text_model(
        "g (float[2,4] x) => (float[2,4] y) { a = com.microsoft.Gelu(x) y = Softmax<axis=0>(a) }",
        opset=11,
        extra=', "com.microsoft" : 1',
    )
    before = outputs(model)
    apply(model, UpgradeOpset())
    assert model.opsets == {"": 13, "com.microsoft": 1}
    assert_same(before, outputs(model))


def _refusal(model: Model, to: int = 13) -> InputError:
    before = model.to_bytes()
    with pytest.raises(InputError) as caught:
        UpgradeOpset(to=to).run(model, _context())
    assert caught.value.code == "O24-331"
    assert model.to_bytes() == before
    return caught.value


def _context():
    from onnx24 import targets
    from onnx24.passmgr.base import Context

    return Context(target=targets.load(targets.DEFAULT))


def test_refusal_names_the_node() -> None:
    model = text_model(X + BN + "{ y = BatchNormalization<spatial=0>(x,s,b,m,v) }", opset=8, ir=6)
    where = _refusal(model).diagnostics[0].where
    assert (where.op, where.node) == ("BatchNormalization", "y")


def test_a_read_mask_is_refused() -> None:
    model = text_model("g (float[2] x) => (float[2] y, bool[2] m) { y,m = Dropout(x) }", opset=10)
    where = _refusal(model).diagnostics[0].where
    assert (where.op, where.node) == ("Dropout", "y")


def test_local_functions_are_refused() -> None:
    model = Model.from_text(
        '<ir_version: 8, opset_import: ["" : 12, "l" : 1]> '
        "g (float[2] x) => (float[2] y) { y = l.f(x) } "
        '<domain: "l", opset_import: ["" : 12]> f (a) => (b) { b = Relu(a) }'
    )
    assert "canonicalize" in _refusal(model).diagnostics[0].hint


def test_an_opset_that_does_not_exist_is_refused() -> None:
    _refusal(text_model(X + "{ y = Relu(x) }", opset=12), to=1000)


def test_site_limit_leaves_the_model() -> None:
    model = text_model(X + "{ y = Softmax(x) }", opset=9)
    apply(model, UpgradeOpset(), limit=0)
    assert model.opset == 9 and not model.changed


ZOO = [
    "dtln_model_1", "dtln_model_2", "mjp_apollo_policy", "mjp_g1_policy", "mjp_go1_policy",
    "mjp_leap_reorient_policy", "mjp_t1_policy", "mnist8_cntk", "mnistfc_256x2",
    "mnistfc_256x4", "mnistfc_256x6", "ultraface_rfb320", "yolox_nano",
]  # fmt: skip


@pytest.mark.parametrize("to", [13, 17])
@pytest.mark.parametrize("name", ZOO)
def test_real_models(shared_models: Path, name: str, to: int) -> None:
    """Every model of the zoo below opset 13. ONNX Runtime's kernels of different versions sum in
    different orders at most: 1e-5 of the largest output."""
    model = Model.load(shared_models / "zoo" / f"{name}.onnx")
    assert model.opset < 13
    names = [node.name for node in model.proto.graph.node if node.name]
    inputs = feeds(session(model.to_bytes()))
    before = outputs(model, inputs)
    apply(model, UpgradeOpset(to=to))
    assert_same(before, outputs(model, inputs), rtol=1e-5)
    assert set(names) <= {node.name for node in model.proto.graph.node}


@pytest.mark.parametrize("passes", ["canonicalize,upgrade-opset{to=19}", "upgrade-opset{to=19}"])
@pytest.mark.parametrize("versions", [(21, 12), (12, 13)], ids=str)
def test_the_last_of_two_imports_of_one_domain_counts(passes, versions) -> None:
    """As in ONNX Runtime, where Softmax of opset 12 sums over all axes from `axis` on."""
    first, last = versions
    text = X + "{ y = Softmax<axis=1>(x) }"
    model = text_model(text, opset=first, extra=f', "ai.onnx" : {last}')
    before = outputs(model)
    assert model.opset == last
    result = onnx24.optimize(model.proto, passes)
    assert_same(before, outputs(Model.from_proto(result.model)), rtol=1e-6)
    assert [(e.domain, e.version) for e in result.model.opset_import] == [("", 19)]
