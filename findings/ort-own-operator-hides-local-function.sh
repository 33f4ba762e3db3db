#!/bin/bash
# ort-own-operator-hides-local-function: a model-local function whose domain and name are those of an
# operator that ONNX Runtime has (com.microsoft.FastGelu, ai.onnx.ml.Normalizer, "" :: Neg) is never
# called: the runtime computes its own operator, at every optimization level, also for a node with an
# `overload` that only the function has. onnx.inliner replaces the node by the function's body, so
# inlining, which is expected to change nothing, changes what the model computes. onnx's reference
# evaluator agrees with ONNX Runtime in ONNX's own domain. The checker says nothing.
# Versions: onnxruntime 1.32.0, onnx 1.23.2. Expected of an expert: "model-local functions come first"
# or "inlining keeps the meaning". Output seen:
#   Neg [-1, -2] reference [-1, -2] inlined [2, 4]
#   Neg overload v2 [-1, -2] reference [-1, -2] inlined [2, 4]
#   com.microsoft.FastGelu [0.84, 1.95] inlined [2, 4]
#   ai.onnx.ml.Normalizer [0.5, 1] inlined [2, 4]
set -eu
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"
"$d/v/bin/pip" -q install onnx==1.23.2 onnxruntime==1.32.0
"$d/v/bin/python" - <<'PY'
import numpy as np, onnx, onnx.inliner, onnxruntime as ort
from onnx import TensorProto as T, helper as h
from onnx.reference import ReferenceEvaluator

x = np.array([[1, 2]], np.float32)
OWN = {"Neg": -x, "FastGelu": np.array([[0.841, 1.955]]), "Normalizer": x / 2}

def model(domain, name, overload=""):
    more = {"overload": overload} if overload else {}
    function = h.make_function(domain, name, ["a"], ["b"], [h.make_node("Add", ["a", "a"], ["b"])],
                               [h.make_opsetid("", 17)], **more)
    node = h.make_node(name, ["x"], ["y"], domain=domain, **more)
    value = lambda n: h.make_tensor_value_info(n, T.FLOAT, [1, 2])
    opsets = {"": 17, domain: 17 if not domain else 1}
    graph = h.make_graph([node], "g", [value("x")], [value("y")])
    return h.make_model(graph, functions=[function], ir_version=10,
                        opset_imports=[h.make_opsetid(d, v) for d, v in opsets.items()])

def run(m, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    return ort.InferenceSession(m.SerializeToString(), options).run(None, {"x": x})[0]

for domain, name, overload in [("", "Neg", ""), ("", "Neg", "v2"), ("com.microsoft", "FastGelu", ""),
                               ("ai.onnx.ml", "Normalizer", "")]:
    m = model(domain, name, overload)
    onnx.checker.check_model(m, full_check=True)
    text = [".".join(filter(None, (domain, name))), *(["overload", overload] if overload else [])]
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        y = run(m, level)
        assert np.allclose(y, OWN[name], atol=1e-3), (name, y)
    text.append(y.ravel().round(2).tolist())
    if not domain:
        y = ReferenceEvaluator(m).run(None, {"x": x})[0]
        assert np.array_equal(y, OWN[name]), y
        text += ["reference", y.ravel().tolist()]
    y = run(onnx.inliner.inline_local_functions(m), ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert np.array_equal(y, 2 * x), y
    print(*text, "inlined", y.ravel().tolist())
PY
