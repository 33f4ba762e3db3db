#!/usr/bin/env bash
# INT8 Q/DQ models with one scale a channel in ONNX Runtime's default session: the fusions into integer
# kernels do not look at DequantizeLinear's axis. Scales of a weight along its INPUT channels (a valid
# form: MatMul and Gemm axis 0, Gemm transB axis 1, Conv axis 1) are applied to the output channels: a
# square weight gives wrong numbers without a word; of another shape, MatMul and Conv fail in run() with
# messages about a zero point and a scale's shape (Gemm is right). A MatMul weight of rank 3 or 4 fails
# with scales along any axis, the output channels' too. quantize_static itself writes such a model
# (per_channel, MatMul of rank 3, output left float by its option OpTypesToExcludeOutputQuantization; the
# axis it takes there, 1, is the input channels'). With Q/DQ behind the operator too, Gemm and Conv are
# wrong and MatMul is right; with float behind it, MatMul and Gemm are wrong and Conv is right.
# ORT_ENABLE_BASIC, and session.disable_quant_qdq at the default level, compute what ONNX says.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, CPU. Expected of an expert: a fusion that cannot take a form
# leaves it alone, and an optimization level changes roundings only.
# Output seen (relative L2 error against the reference evaluator):
#   MatMul [16, 16] axis 1: basic 0.0 default 0.0 no quant_qdq 0.0
#   MatMul [16, 16] axis 0: basic 0.0 default 0.55 no quant_qdq 0.0
#   MatMul [16, 8] axis 0: basic 0.0 default refused no quant_qdq 0.0
#   MatMul [3, 16, 8] axis 2: basic 0.0 default refused no quant_qdq 0.0
#   MatMul [1, 1, 16, 8] axis 3: basic 0.0 default refused no quant_qdq 0.0
#   MatMul [16, 16] axis 0, Q/DQ behind: basic 0.0 default 0.0 no quant_qdq 0.0
#   Gemm<transB = 1> [16, 16] axis 0: basic 0.0 default 0.0 no quant_qdq 0.0
#   Gemm<transB = 1> [16, 16] axis 1: basic 0.0 default 0.591 no quant_qdq 0.0
#   Gemm<transB = 1> [16, 16] axis 1, Q/DQ behind: basic 0.0 default 0.864 no quant_qdq 0.0
#   Gemm<transB = 1> [8, 16] axis 1: basic 0.0 default 0.0 no quant_qdq 0.0
#   Conv [8, 8, 3, 3] axis 0, Q/DQ behind: basic 0.0 default 0.0 no quant_qdq 0.0
#   Conv [8, 8, 3, 3] axis 1, Q/DQ behind: basic 0.0 default 0.777 no quant_qdq 0.0
#   Conv [4, 8, 3, 3] axis 1, Q/DQ behind: basic 0.0 default refused no quant_qdq 0.0
#   Conv [8, 8, 3, 3] axis 1: basic 0.0 default 0.0 no quant_qdq 0.0
#   quantize_static, MatMul [3, 16, 8]: basic 0.0 default refused no quant_qdq 0.0
set -eu
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"
"$d/v/bin/pip" -q install onnx==1.23.2 onnxruntime==1.32.0
cd "$d"
"$d/v/bin/python" - <<'PY' 2>stderr || { cat stderr; exit 1; }
import numpy as np, onnx, onnxruntime as ort
from onnx import numpy_helper as nh, parser
from onnx.reference import ReferenceEvaluator
from onnxruntime import quantization as q

LEVEL, KEY = ort.GraphOptimizationLevel, "session.disable_quant_qdq"
RUNS = {"basic": (LEVEL.ORT_ENABLE_BASIC, "0"), "default": (LEVEL.ORT_ENABLE_ALL, "0"), "no quant_qdq": (LEVEL.ORT_ENABLE_ALL, "1")}
rng = np.random.default_rng(0)

def errors(m, x):
    onnx.checker.check_model(m, full_check=True)
    want = ReferenceEvaluator(m).run(None, {"x": x})[0]
    found = {}
    for name, (level, off) in RUNS.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        options.add_session_config_entry(KEY, off)
        session = ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
        try:
            got = session.run(None, {"x": x})[0]
            found[name] = round(float(np.linalg.norm(got - want) / np.linalg.norm(want)), 3)
        except Exception as err:
            assert "b zero point is not valid" in str(err) or "filter scale shape invalid" in str(err), err
            found[name] = "refused"
    return found

def graph(body, xs, ys, **constants):
    m = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g (float{xs} x) => (float{ys} y) {{ {body} }}')
    m.graph.initializer.extend(nh.from_array(np.asarray(v), k) for k, v in constants.items())
    return m

def model(op, weight, axis, xs, ys, output):
    end = "m = OP(xd, wd) mq = QuantizeLinear(m, o, z) y = DequantizeLinear(mq, o, z)" if output else "y = OP(xd, wd)"
    body = f"xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis = {axis}>(W, ws, wz) "
    n = weight[axis]
    return graph(body + end.replace("OP", op), xs, ys, W=rng.integers(-127, 128, weight).astype(np.int8), s=np.float32(0.02),
                 z=np.int8(0), o=np.float32(0.1), ws=rng.uniform(0.002, 0.02, n).astype(np.float32), wz=np.zeros(n, np.int8))

WRONG = "wrong"
CASES = [  # operator, weight, axis, input, output, Q/DQ behind it, what the default session does
    ("MatMul", (16, 16), 1, [4, 16], [4, 16], False, "right"),
    ("MatMul", (16, 16), 0, [4, 16], [4, 16], False, WRONG),
    ("MatMul", (16, 8), 0, [4, 16], [4, 8], False, "refused"),
    ("MatMul", (3, 16, 8), 2, [3, 4, 16], [3, 4, 8], False, "refused"),
    ("MatMul", (1, 1, 16, 8), 3, [1, 2, 4, 16], [1, 2, 4, 8], False, "refused"),
    ("MatMul", (16, 16), 0, [4, 16], [4, 16], True, "right"),
    ("Gemm<transB = 1>", (16, 16), 0, [4, 16], [4, 16], False, "right"),
    ("Gemm<transB = 1>", (16, 16), 1, [4, 16], [4, 16], False, WRONG),
    ("Gemm<transB = 1>", (16, 16), 1, [4, 16], [4, 16], True, WRONG),
    ("Gemm<transB = 1>", (8, 16), 1, [4, 16], [4, 8], False, "right"),
    ("Conv", (8, 8, 3, 3), 0, [1, 8, 5, 5], [1, 8, 3, 3], True, "right"),
    ("Conv", (8, 8, 3, 3), 1, [1, 8, 5, 5], [1, 8, 3, 3], True, WRONG),
    ("Conv", (4, 8, 3, 3), 1, [1, 8, 5, 5], [1, 4, 3, 3], True, "refused"),
    ("Conv", (8, 8, 3, 3), 1, [1, 8, 5, 5], [1, 8, 3, 3], False, "right"),
]

def judge(label, m, x, expected):
    found = errors(m, x)
    print(label + ":", *(f"{k} {v}" for k, v in found.items()))
    assert found["basic"] < 0.03 and found["no quant_qdq"] < 0.03, found
    value = found["default"]
    assert (value if value == "refused" else WRONG if value > 0.2 else "right") == expected, (label, found)

for op, weight, axis, xs, ys, output, expected in CASES:
    label = f"{op} {list(weight)} axis {axis}{', Q/DQ behind' if output else ''}"
    judge(label, model(op, weight, axis, xs, ys, output), rng.standard_normal(xs).astype(np.float32), expected)

class Reader(q.CalibrationDataReader):
    rows = iter([{"x": rng.standard_normal((3, 4, 16)).astype(np.float32)} for _ in range(4)])
    def get_next(self):
        return next(self.rows, None)

onnx.save(graph("y = MatMul(x, W)", [3, 4, 16], [3, 4, 8], W=rng.standard_normal((3, 16, 8)).astype(np.float32)), "f.onnx")
q.quantize_static("f.onnx", "q.onnx", Reader(), per_channel=True,
                  extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]})
judge("quantize_static, MatMul [3, 16, 8]", onnx.load("q.onnx"), rng.standard_normal((3, 4, 16)).astype(np.float32), "refused")
PY
