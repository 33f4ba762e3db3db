"""Whole small nets through qdq: what the rules make of them together."""

import numpy as np

from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.data import load_data
from onnx24.targets import load
from onnx24.testing.generate import mlp

SPP = """<ir_version: 8, opset_import: ["" : 17]>
spp (float[1,16,8,8] x) => (float[1,32,8,8] y) <float[32,32,1,1] w, float[32,16,3,3] v> {
  h = Conv <pads = [1,1,1,1]> (x, v)
  p = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1], strides = [1,1]> (x)
  q = MaxPool <kernel_shape = [5,5], pads = [2,2,2,2], strides = [1,1]> (p)
  c = Concat <axis = 1> (p, q)
  g = Conv (c, w)
  y = Add (g, h)
}"""


def test_placement_ends_and_shares_one_scale():
    """A Concat of a tensor with its own poolings, as in YOLO: the poolings' pairs move up onto the
    shared input."""
    text = SPP.replace("<float[32,32,1,1] w, float[32,16,3,3] v>", "")
    text = text.replace("x) =>", "x, float[32,32,1,1] w, float[32,16,3,3] v) =>")
    proto = Model.from_text(text).full_proto()
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        value = next(i for i in proto.graph.input if i.name == name)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        tensor = proto.graph.initializer.add(name=name, data_type=1, dims=shape)
        tensor.raw_data = rng.standard_normal(shape, np.float32).tobytes()
        proto.graph.input.remove(value)
    model = Model.from_proto(proto)
    data = load_data("random:2", model)
    result = manager.run(
        model, pipeline.parse("qdq,fold-qdq"), target=load("sm86"), calibration=data
    )
    assert sum(r.code == "O24-200" for r in result.records) == 2
    producers = {o: n for n in model.proto.graph.node for o in n.output}
    concat = next(n for n in model.proto.graph.node if n.op_type == "Concat")
    scales = set()
    for name in concat.input:
        while producers[name].op_type == "MaxPool":
            name = producers[name].input[0]
        assert producers[name].op_type == "DequantizeLinear"
        scales.add(float(model.weights[producers[name].input[1]]))
    assert len(scales) == 1


def test_it_is_said_when_no_layer_was_quantized():
    for batch, warned in ((1, True), (32, False)):
        model = Model.from_proto(mlp([64, 32, 16], batch=batch))
        data = load_data("random:4", model)
        result = manager.run(model, pipeline.parse("qdq"), target=load("sm86"), calibration=data)
        found = [d for d in result.diagnostics if d.code == "O24-222"]
        assert bool(found) is warned
        assert not found or "O24-210" in found[0].message
