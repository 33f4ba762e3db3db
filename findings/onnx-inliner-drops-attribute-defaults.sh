#!/usr/bin/env bash
# A model-local function may give its attributes defaults (attribute_proto). Where a call leaves such an
# attribute out, there are three answers: ONNX Runtime, and onnx-ir's InlinePass, take the function's
# default; onnx.inliner.inline_local_functions drops the attribute, so that the operator inside takes
# its OWN default (LeakyRelu 0.01 for 0.5, Gemm 1 for 2: half to 98 % of the output is lost) and the
# checker is content; onnx's reference evaluator raises. Given in the call, all agree (but for the
# reference evaluator's unary operators, LeakyRelu among them, which raise there too). If the operator
# cannot do without (Constant's value_float), what the inliner writes is an invalid model.
# convert_version=True and inline_selected_functions do the same.
# Versions: onnx 1.23.2, onnx-ir 1.1.0, onnxruntime 1.32.0. Expected of an expert: the default, from each.
# Output seen:
#   LeakyRelu, left out: onnxruntime [-0.5, -1.0] onnx-ir inlined [-0.5, -1.0] onnx inlined [-0.01, -0.02] reference TypeError
#   LeakyRelu, given: onnxruntime [-0.5, -1.0] onnx-ir inlined [-0.5, -1.0] onnx inlined [-0.5, -1.0] reference TypeError
#   Gemm, left out: onnxruntime [-6.0, -14.0] onnx-ir inlined [-6.0, -14.0] onnx inlined [-3.0, -7.0] reference ValueError
#   Gemm, given: onnxruntime [-6.0, -14.0] onnx-ir inlined [-6.0, -14.0] onnx inlined [-6.0, -14.0] reference [-6.0, -14.0]
#   Constant, left out: onnxruntime [-0.5, -1.0] onnx-ir inlined [-0.5, -1.0] onnx inlined invalid reference ValueError
#   Constant, given: onnxruntime [-0.5, -1.0] onnx-ir inlined [-0.5, -1.0] onnx inlined [-0.5, -1.0] reference [-0.5, -1.0]
set -eu
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"
"$d/v/bin/pip" -q install onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0
"$d/v/bin/python" - <<'PY'
import numpy as np, onnx, onnx.inliner, onnx_ir as ir, onnxruntime as ort
from onnx import parser
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

x = np.array([[-1, -2]], np.float32)
W = "w = Constant<value = float[2, 2] {1, 3, 1, 2}>()"
BODIES = {  # the function's body, its default, what it computes with that, what the operator's own gives
    "LeakyRelu": ("b = LeakyRelu<alpha: float = @p>(a)", 0.5, [-0.5, -1], [-0.01, -0.02]),
    "Gemm": (W + " b = Gemm<alpha: float = @p>(a, w)", 2.0, [-6, -14], [-3, -7]),
    "Constant": ("c = Constant<value_float: float = @p>() b = Mul(a, c)", 0.5, [-0.5, -1], "invalid"),
}

def model(body, default, given):
    call = f"<p = {default}>" if given else ""
    return parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[1, 2] x) => (float[1, 2] y) {{ y = local.F{call}(x) }}
        <domain: "local", opset_import: ["" : 17]> F <p: float = {default}> (a) => (b) {{ {body} }}""")

def run(m):
    try:
        onnx.checker.check_model(m, full_check=True)
    except Exception:
        return "invalid"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].ravel().astype(float).round(4).tolist()

def reference(m):
    try:
        return ReferenceEvaluator(m).run(None, {"x": x})[0].ravel().astype(float).round(4).tolist()
    except (TypeError, ValueError) as err:
        return type(err).__name__

same = lambda found, expected: found == expected if isinstance(expected, str) else np.allclose(found, expected)
for name, (body, default, right, own) in BODIES.items():
    for given in (False, True):
        m = model(body, default, given)
        onnx.checker.check_model(m, full_check=True)
        found = {"onnxruntime": run(m), "onnx-ir inlined": run(ir.to_proto(InlinePass()(ir.from_proto(m)).model)),
                 "onnx inlined": run(onnx.inliner.inline_local_functions(m)), "reference": reference(m)}
        print(f"{name}, {'given' if given else 'left out'}:", *(f"{k} {v}" for k, v in found.items()))
        assert same(found["onnxruntime"], right) and same(found["onnx-ir inlined"], right), found
        assert same(found["onnx inlined"], right if given else own), found
        works = given and name != "LeakyRelu"
        assert same(found["reference"], right) if works else found["reference"] in ("TypeError", "ValueError"), found
PY
