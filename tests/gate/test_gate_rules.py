"""Each rule that reads the model: met, and not met by a near miss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from gate_support import codes, dense_mlp, judged, quantized_conv, sparse_mlp
from onnx import TensorProto, helper, numpy_helper

from onnx24.gate.judge import judge
from onnx24.report.policy import read_policy

ALL_QDQ = "[qdq]\n" + "\n".join(
    f'{rule} = "error"'
    for rule in (
        "zero-point",
        "type",
        "activation-scale",
        "bias",
        "weight-axis",
        "integer-operator",
        "unpaired",
        "one-sided",
        "residual",
        "sparse-output",
        "implied-zero-point",
        "scale",
        "domain",
        "constant",
        "fp8",
        "int4",
        "small-bias",
        "computed-scale",
    )
)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", []),
        ("[sparsity]\nmin_coverage = 0\n", []),
        ("[sparsity]\nmin_coverage = 0.66\n", []),  # 4,096 of 6,144 elements
        ("[sparsity]\nmin_coverage = 0.67\n", ["O24-611"]),
        ("[sparsity]\nmin_weights = 0.5\n", []),
        ("[sparsity]\nmin_weights = 0.51\n", ["O24-611"]),
        ("[sparsity]\nlayers = ['fc0.*']\n", []),
        ("[sparsity]\nlayers = ['fc*']\n", ["O24-610"]),
        ("[sparsity]\nlayers = ['no.such']\n", ["O24-610"]),
        ("[model]\nmin_opset = 18\n", ["O24-620"]),
        ("[model]\nmax_opset = 17\nmin_opset = 17\n", []),
        ("[model]\nmax_opset = 16\nmax_bytes = 99\nmax_nodes = 1\n", ["O24-620"] * 3),
        ("[model]\nmax_ir_version = 3\n", ["O24-620"]),
        ("[model]\ntarget_opsets = true\nexternal_data = false\nfunctions = false\n", []),
        ("[model]\ndtypes = ['float32']\n", []),
        ("[model]\ndtypes = ['float16']\n", ["O24-623"]),
        ("[model]\ndynamic_dims = 'batch'\n", []),
        ("[model]\ndynamic_dims = 'none'\n", ["O24-624"]),
        ("[operators]\nallow = ['MatMul', 'Add', 'Relu']\ndomains = ['ai.onnx']\n", []),
        ("[operators]\nallow = ['MatMul', 'Add']\n", ["O24-621"]),
        ("[operators]\ndeny = ['MatMul']\n", ["O24-621"]),
        ("[operators]\ndomains = ['com.example']\n", ["O24-622"] * 3),
        ("[operators]\ndomains = ['x']\nalso = ['MatMul', 'Add', 'Relu']\n", []),
        ("[operators]\nallow = ['MatMul']\nalso = ['Add', 'Relu']\n", []),
        ("[operators]\ndeny = ['Add']\nalso = ['Add']\n", ["O24-621"]),
        ("[model]\nconsistent_shapes = true\n", []),
        ("[metadata]\nrequired = ['owner']\nvalues = {stage = 'prod*'}\n", []),
        ("[metadata]\nrequired = ['licence']\n", ["O24-625"]),
        ("[metadata]\nvalues = {stage = 'test'}\n", ["O24-625"]),
        ("[provenance]\nrequired = true\n", ["O24-626"] * 5),
        ("[provenance]\nmin_version = '0.1'\n", ["O24-626"]),
    ],
)
def test_rules_of_a_half_sparse_model(tmp_path: Path, policy: str, expected: list[str]) -> None:
    proto = dense_mlp()
    sparse = {t.name: t for t in sparse_mlp().graph.initializer}
    for tensor in proto.graph.initializer:
        if tensor.name == "fc0.weight":
            tensor.CopyFrom(sparse["fc0.weight"])
    helper.set_model_props(proto, {"owner": "team", "stage": "production"})
    result = judged(tmp_path, proto, policy)
    assert codes(result) == expected
    assert result.exit_code == int(bool(expected))
    for finding in result.findings:
        assert finding.where.file.endswith("m.onnx") and finding.facts["rule"]


def test_nothing_eligible_meets_no_coverage(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
    )
    assert codes(judged(tmp_path, proto, "[sparsity]\nmin_coverage = 0.1\n")) == ["O24-611"]
    assert codes(judged(tmp_path, proto, "[sparsity]\nmin_coverage = 0.0\n")) == []


def test_shapes_that_contradict_are_a_warning(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[5] y) { y = Relu(x) }'
    )
    result = judged(tmp_path, proto, "[model]\nconsistent_shapes = true\n")
    assert (codes(result), result.exit_code) == (["O24-627"], 0)
    strict = judged(tmp_path, proto, "fail_on = 'warning'\n[model]\nconsistent_shapes = true\n")
    assert strict.exit_code == 1


def test_severities_decide_what_fails(tmp_path: Path) -> None:
    base = "[sparsity]\nmin_coverage = 1\n"
    for text, exit_code, count in (
        (base, 1, 1),
        (f"{base}[severity]\nO24-611 = 'warning'\n", 0, 1),
        (f"fail_on = 'warning'\n{base}[severity]\nO24-611 = 'warning'\n", 1, 1),
        (f"{base}[severity]\nO24-611 = 'off'\n", 0, 0),
    ):
        result = judged(tmp_path, dense_mlp(), text)
        assert (result.exit_code, len(result.findings)) == (exit_code, count), text


def test_a_target_decides_which_opsets_parse(tmp_path: Path) -> None:
    proto = dense_mlp()
    proto.opset_import[0].version = 21
    policy = "[model]\ntarget_opsets = true\n"
    assert codes(judged(tmp_path, proto, policy, "sm86-trt10")) == ["O24-620"]
    assert codes(judged(tmp_path, proto, policy, "sm86-trt11")) == []
    assert codes(judged(tmp_path, proto, f"target = 'sm86-trt11'\n{policy}", "sm86-trt10")) == []


# --- Q/DQ -------------------------------------------------------------------------------------


def test_a_well_placed_model_has_no_finding(tmp_path: Path) -> None:
    policy = f"{ALL_QDQ}\nmin_coverage = 1.0\n[sparsity]\nmin_coverage = 1\n"
    assert codes(judged(tmp_path, quantized_conv(), policy)) == []


@pytest.mark.parametrize(
    ("edits", "code"),
    [
        ({"int8 z = {0}": "int8 z = {3}"}, "O24-630"),
        ({"float s = {0.1}": "float[1] s = {0.1}", "int8 z = {0}": "int8[1] z = {0}"}, "O24-632"),
        ({"xd, wd, b)": "x, wd, b)"}, "O24-637"),
        (
            {"rq = QuantizeLinear(r, so, z)\n": "", "DequantizeLinear(rq, so, z)": "Exp(r)"},
            "O24-639",
        ),
        ({"y = DequantizeLinear(rq, so, z)": "k = Cast<to = 1>(rq)\n y = Relu(k)"}, "O24-636"),
        (
            {
                "r = Relu(c)": "cq = QuantizeLinear(c, so, z)\n cd = DequantizeLinear(cq, so, z)\n"
                "t = Add(cd, x)\n r = Relu(t)"
            },
            "O24-638",
        ),
        ({"axis = 0>(w, ws, wz)": "axis = 1>(w, ws, wz)"}, "O24-634"),
        ({"DequantizeLinear<axis = 0>(w, ws, wz)": "DequantizeLinear(w, s, z)"}, "O24-634"),
    ],
)
def test_each_qdq_rule_by_a_near_miss(tmp_path: Path, edits: dict[str, str], code: str) -> None:
    result = judged(tmp_path, quantized_conv(**edits), ALL_QDQ)
    assert code in codes(result), [f.render() for f in result.findings]
    rule = next(f for f in result.findings if f.code == code).facts["rule"]
    only = ALL_QDQ.replace('= "error"', '= "off"') + "\n"
    only = only.replace(f'{rule.removeprefix("qdq.")} = "off"', f'{rule[4:]} = "note"')
    noted = judged(tmp_path, quantized_conv(**edits), only)
    assert set(codes(noted)) == {code} and noted.exit_code == 0


def test_a_dense_product_needs_no_int8_result(tmp_path: Path) -> None:
    edits = {"rq = QuantizeLinear(r, so, z)\n": "", "DequantizeLinear(rq, so, z)": "Exp(r)"}
    assert codes(judged(tmp_path, quantized_conv(sparse=False, **edits), ALL_QDQ)) == []


def test_unsigned_types_and_a_quantized_bias(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2,16] x) => (float[2,16] y)
    <float s = {0.1}, uint8 z = {0}, float bs = {0.01}, int32 bz = {0}>
    {
      xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      bd = DequantizeLinear(b, bs, bz)
      y = Gemm(xd, w, bd)
    }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones((16, 16), np.float32), "w"),
            numpy_helper.from_array(np.ones(16, np.int32), "b"),
        ]
    )
    found = codes(judged(tmp_path, proto, ALL_QDQ))
    assert found == ["O24-631", "O24-631", "O24-633", "O24-637"]


def test_integer_operators(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[2,16] x, uint8[16,4] w) => (int32[2,4] y) { y = MatMulInteger(x, w) }
    """
    assert codes(judged(tmp_path, onnx.parser.parse_model(text), ALL_QDQ)) == ["O24-635"]


def test_the_quantized_share_counts_products_with_a_weight(tmp_path: Path) -> None:
    assert codes(judged(tmp_path, dense_mlp(), "[qdq]\nmin_coverage = 0.5\n")) == ["O24-640"]
    assert codes(judged(tmp_path, quantized_conv(), "[qdq]\nmin_coverage = 1.0\n")) == []


def test_functions_and_foreign_domains(tmp_path: Path) -> None:
    proto = dense_mlp()
    proto.functions.append(
        helper.make_function(
            "local",
            "F",
            ["a"],
            ["b"],
            [helper.make_node("Relu", ["a"], ["b"])],
            [helper.make_opsetid("", 17)],
        )
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    node = proto.graph.node[-1]
    last = node.output[0]
    node.output[0] = "before"
    proto.graph.node.append(helper.make_node("F", ["before"], [last], domain="local"))
    assert codes(judged(tmp_path, proto, "[model]\nfunctions = false\n")) == ["O24-620"]
    allow = "[operators]\nallow = ['MatMul', 'Add', 'Relu']\n"
    assert codes(judged(tmp_path, proto, allow)) == []
    result = judged(tmp_path, proto, "[operators]\ndomains = ['ai.onnx']\n")
    assert codes(result) == ["O24-622"] and "canonicalize" in result.findings[0].hint


def test_weights_in_a_data_file(tmp_path: Path) -> None:
    proto = dense_mlp()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    from onnx24.gate.judge import judge
    from onnx24.report.policy import parse_policy

    policy = parse_policy("[model]\nexternal_data = false\n", "p")
    result = judge(str(tmp_path / "m.onnx"), policy, target="sm86-trt10")
    assert codes(result) == ["O24-620"]
    assert TensorProto.EXTERNAL == 1


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_a_form_of_an_operator_is_denied(op, reduction, tmp_path):
    """tensorrt-rtx 1.7.1 parses the operators, and no reduction but `none`."""
    columns = 4 if op == "ScatterElements" else 1
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        f"g (float[4, 4] x, int64[2, {columns}] i, float[2, 4] u) => (float[4, 4] y) "
        f'{{ [s] y = {op}<reduction = "{reduction}">(x, i, u) }}'
    )
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    result = judge(str(path), read_policy("tensorrt-importable"), target="sm86-rtx1")
    found = [(d.code, d.where.node) for d in result.all_findings]
    assert found == ([] if reduction == "none" else [("O24-621", "s")])


@pytest.mark.parametrize(
    ("inputs", "axes"),
    [("1, 4, S, S", [2, 3]), ("N, 4, H, W", None), ("2, 4, 8, 8", None)],
)
def test_dimensions_of_one_input_share_a_name(inputs, axes, tmp_path):
    """tensorrt-rtx 1.7.1 refuses a profile of two sizes, and names neither input nor dimension."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{inputs}] x, float[N] z) '
        f"=> (float[{inputs}] y, float[N] v) {{ y = Relu(x) v = Abs(z) }}"
    )
    result = judged(tmp_path, proto, "[model]\ndistinct_dims = true\n")
    found = [(d.code, d.facts["dimensions"]) for d in result.all_findings]
    assert found == ([("O24-628", axes)] if axes else []) and result.exit_code == 0
