"""lint and the preset tensorrt-importable agree, form by form, with what tensorrt-rtx built."""

from __future__ import annotations

import json

import pytest
from conftest import BENCHMARKS

from onnx24 import targets
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
