"""lint and the preset tensorrt-importable agree, form by form, with what tensorrt-rtx built."""

from __future__ import annotations

import json

import pytest
from conftest import BENCHMARKS

from onnx24 import targets
from onnx24.analysis.quantized_otherwise import quantized_otherwise
from onnx24.diagnostics import Severity
from onnx24.errors import NotMetError
from onnx24.gate.judge import judge
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.report.policy import read_policy

FOLDERS = ("",)
TABLE = json.loads((BENCHMARKS / "results" / "rtx_forms.json").read_text())
FORMS = TABLE["forms"]


@pytest.mark.parametrize("name", FORMS)
def test_lint_and_check_say_what_tensorrt_rtx_says(name, module, tmp_path):
    forms = module("rtx_forms")
    model = Model.from_proto(forms.model_of(forms.forms()[name]))
    model.save(tmp_path / "m.onnx")
    builds = FORMS[name]["verdict"] == "built"
    target = targets.load(TABLE["target"])
    try:
        run(model, parse("lint"), target=target, reproducer_dir=None)
        errors = []
    except NotMetError as err:
        errors = [d.code for d in err.diagnostics if d.severity is Severity.ERROR]
    assert bool(errors) != builds, errors
    policy = read_policy("tensorrt-importable")
    result = judge(str(tmp_path / "m.onnx"), policy, target=TABLE["target"])
    assert result.met == builds, [d.code for d in result.all_findings]


def test_the_table_is_that_of_the_script(module):
    assert list(module("rtx_forms").forms()) == list(FORMS)


@pytest.mark.parametrize("name", [name for name, row in FORMS.items() if row["verdict"] != "built"])
def test_a_cure_that_is_named_is_one(name, module):
    """O24-245 of compile: said where canonicalize does not cure it, and `lint --fix --symmetric`
    named exactly where that does."""
    forms, target = module("rtx_forms"), targets.load(TABLE["target"])

    def after(pipeline):
        model = Model.from_proto(forms.model_of(forms.forms()[name]))
        run(model, parse(pipeline), target=target, reproducer_dir=None)
        return quantized_otherwise(model, fp8=target.fp8)

    found = after("canonicalize")
    if found is None:
        assert name in CURED_BY_CANONICALIZE
    else:
        assert ("lint MODEL" in found.hint) == (after("lint{fix symmetric}") is None)


CURED_BY_CANONICALIZE = {
    *(f"INT8 weight -> {op} -> DQ" for op in ("Clip", "Transpose", "Reshape", "Identity")),
    "INT8 weight -> Cast -> Mul",
    "Conv, weight's scale by a reduction",
}
"""tensorrt-rtx 1.7.1 builds them then."""
