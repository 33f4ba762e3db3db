#!/usr/bin/env bash
# A model that imports one domain twice, with two versions, passes onnx.checker, and what it computes
# depends on who reads it: ONNX Runtime takes the LAST import, onnx's reference evaluator the HIGHEST,
# whatever the order. Softmax tells them apart: up to version 12 it flattens [2, 3, 4] to [2, 12], from
# 13 on it works along the last axis. Merging or concatenating models leaves such imports behind.
# Versions: onnx 1.23.2, onnxruntime 1.32.0. Expected of an expert: an error of the checker, or one rule.
# Output seen:
#   12 then 13: onnxruntime as version 13, reference as version 13
#   13 then 12: onnxruntime as version 12, reference as version 13
set -eu
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"
"$d/v/bin/pip" -q install onnx==1.23.2 onnxruntime==1.32.0
"$d/v/bin/python" - <<'PY'
import numpy as np, onnx, onnxruntime as ort
from onnx import TensorProto as T, helper as h
from onnx.reference import ReferenceEvaluator

x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
value = lambda name: h.make_tensor_value_info(name, T.FLOAT, [2, 3, 4])
graph = h.make_graph([h.make_node("Softmax", ["x"], ["y"])], "g", [value("x")], [value("y")])
e = np.exp(x - x.max())
rows, flat = e / e.sum(2, keepdims=True), e / e.sum((1, 2), keepdims=True)

def version(y):
    return 13 if np.allclose(y, rows, atol=1e-6) else 12 if np.allclose(y, flat, atol=1e-6) else "?"

found = []
for order in ((12, 13), (13, 12)):
    imports = [h.make_opsetid("", v) for v in order]
    model = h.make_model(graph, opset_imports=imports, ir_version=8)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    a, b = version(session.run(None, {"x": x})[0]), version(ReferenceEvaluator(model).run(None, {"x": x})[0])
    print(f"{order[0]} then {order[1]}: onnxruntime as version {a}, reference as version {b}")
    found.append((a, b))
assert found == [(13, 13), (12, 13)], found
PY
