"""For tests of a pass in Python, the project's and those of plug-ins: a model from text, one pass
over it, its outputs before and after.

    model = text_model("g (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }")
    before = outputs(model)
    ctx = apply(model, MyPass())
    assert_same(before, outputs(model))
    assert [record.code for record in ctx.records] == ["EX-001"]

What a pass does to a graph is better shown by a fixture: onnx24/testing/filecheck.py.
ONNX Runtime runs with graph optimizations off, so that what is compared is the graph itself.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.ir.verify import Interface, verify
from onnx24.passmgr.base import Context, Pass


def apply(
    model: Model, instance: Pass, *, target: str = targets.DEFAULT, limit: int | None = None
) -> Context:
    """Run a pass and check the invariants of ir.verify. Returns: the context with its records."""
    ctx = Context(target=targets.load(target), site_limit=limit)
    ctx.enter(instance)
    interface = Interface.of(model)
    instance.run(model, ctx)
    problems = verify(model, interface)
    assert not problems, "\n".join(problem.render() for problem in problems)
    return ctx


def session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Prepacked constant weights are summed in another order than computed ones.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def feeds(of: ort.InferenceSession, *, dynamic: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs; `dynamic` is the size of every dimension that the model leaves open."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for value in of.get_inputs():
        shape = [dim if isinstance(dim, int) else dynamic for dim in value.shape]
        dtype = np.dtype(_DTYPES[value.type])
        if dtype.kind == "f":
            out[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            out[value.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            out[value.name] = rng.integers(0, 3, shape).astype(dtype)
    return out


def outputs(
    model: Model, inputs: dict[str, np.ndarray] | None = None, *, dynamic: int = 2
) -> dict[str, np.ndarray]:
    run = session(model.to_bytes())
    values = run.run(None, inputs if inputs is not None else feeds(run, dynamic=dynamic))
    return {o.name: v for o, v in zip(run.get_outputs(), values, strict=True)}


def assert_same(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], *, rtol: float = 0.0
) -> None:
    """Outputs are bit-identical, or within `rtol` of the largest value of each output."""
    assert list(before) == list(after)
    for name, a in before.items():
        b = after[name]
        assert a.dtype == b.dtype and a.shape == b.shape, name
        if rtol == 0.0 or a.dtype.kind not in "f":
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            scale = float(np.max(np.abs(a), initial=0.0))
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * scale, err_msg=name)


def ops(model: Model) -> list[str]:
    """Operators of the main graph, in order."""
    return [node.op_type for node in model.proto.graph.node]


def text_model(
    text: str, *, opset: int = 17, ir: int = 8, extra: str = "", weights: dict | None = None
) -> Model:
    """A model from ONNX text without its header; `weights` become initializers."""
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir}, opset_import: ["" : {opset}{extra}]>\n{text}'
    )
    for name, values in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)
