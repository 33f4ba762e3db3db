"""Loop states that stay what they were are constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.session import Session

LOOP = """g (float[4, 16] x) => (float[4, 16] y) {
  [loop] y, last = Loop(n, , x, w) <
    body = b (int64 i, bool c, float[4, 16] h, float[16, 16] v)
      => (bool again, float[4, 16] next, float[16, 16] handed) {
      again = Identity(c) next = MatMul(h, v) handed = HANDED
    }
  >
}"""


@pytest.mark.parametrize(("handed", "eligible"), [("Identity(v)", True), ("Neg(v)", False)])
def test_a_weight_that_travels_through_a_loop_is_pruned(handed, eligible):
    text = '<ir_version: 8, opset_import: ["" : 17]>\n' + LOOP.replace("HANDED", handed)
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    values = {"w": rng.standard_normal((16, 16)).astype(np.float32) / 4, "n": np.array(3)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in values.items())
    model = Model.from_proto(proto)
    feeds = {"x": rng.standard_normal((4, 16)).astype(np.float32)}
    before = Session(model).run(feeds)["y"]
    target = targets.load("sm86")
    result = run(model, parse("canonicalize"), target=target, reproducer_dir=None)
    assert ("O24-249" in {record.code for record in result.records}) == eligible
    assert np.array_equal(Session(model).run(feeds)["y"], before)
    assert not run(model, parse("canonicalize"), target=target, reproducer_dir=None).records
    run(model, parse("prune24"), target=target, reproducer_dir=None)
    assert bool(model.claims.keys()) == eligible
