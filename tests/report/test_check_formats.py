"""The forms of `check`'s result: SARIF against its schema, JUnit, annotations, text, JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.report.annotations import render_annotations
from onnx24.report.checked import Checked, fingerprint, worst
from onnx24.report.checktext import document, one_document, render_text
from onnx24.report.junit import render_junit
from onnx24.report.sarif import render_sarif

HOSTILE = 'a"<b>\x1b[31m\x00,:%\r\n::error::\ud800é&'


def finding(code: str = "O24-611", rule: str = "sparsity.min_coverage", **more: Any) -> Diagnostic:
    return diagnostic(code, more.pop("message", "too low"), facts={"rule": rule}, **more)


def checked(**changes: Any) -> Checked:
    values: dict[str, Any] = {
        "file": "models/a model.onnx",
        "policy": "p.toml",
        "exit_code": 1,
        "findings": (
            finding(),
            finding("O24-637", "qdq.one-sided", node="conv", op="Conv", scope="loop.body"),
            finding("O24-633", "qdq.bias", node="fc", tensor="b", severity=Severity.NOTE),
        ),
        "facts": {
            "sha256": "ab" * 32,
            "opset": 17,
            "eligible_elements": 10,
            "sparse_elements": 5,
        },
        "rules": {"sparsity.min_coverage": 1.0, "model.max_opset": 17, "fail_on": "warning"},
    }
    return Checked(**{**values, **changes})


MET = checked(file="b.onnx", exit_code=0, findings=())
REFUSED = checked(
    file="c.onnx", exit_code=2, findings=(), problem=(diagnostic("O24-002", "garbage"),), facts={}
)
HOSTILE_ONE = checked(
    file=HOSTILE.replace("\x00", ""),
    findings=(finding(message=HOSTILE, node=HOSTILE, tensor=HOSTILE),),
)
ACCEPTED = checked(file="d.onnx", exit_code=0, findings=(), accepted=(finding(),))
ALL = (checked(), MET, REFUSED, ACCEPTED)


# --- SARIF ------------------------------------------------------------------------------------

# What the standard demands of the parts that are written here: SARIF 2.1.0, §3.13 to §3.58.
_SUBSET: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "required": ["tool"],
                "properties": {
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "uniqueItems": True,
                                        "items": {
                                            "required": ["id"],
                                            "properties": {
                                                "defaultConfiguration": {
                                                    "properties": {
                                                        "level": {"$ref": "#/definitions/level"}
                                                    }
                                                }
                                            },
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "invocations": {"items": {"required": ["executionSuccessful"]}},
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {
                        "items": {
                            "required": ["message"],
                            "properties": {
                                "level": {"$ref": "#/definitions/level"},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "message": {"required": ["text"]},
                                "partialFingerprints": {"additionalProperties": {"type": "string"}},
                                "suppressions": {
                                    "items": {
                                        "required": ["kind"],
                                        "properties": {"kind": {"enum": ["inSource", "external"]}},
                                    }
                                },
                            },
                        }
                    },
                },
            },
        },
    },
    "definitions": {"level": {"enum": ["none", "note", "warning", "error"]}},
}


@pytest.mark.parametrize("results", [ALL, (HOSTILE_ONE,), ()])
def test_sarif_keeps_the_standard(results: tuple[Checked, ...]) -> None:
    log = json.loads(render_sarif(results))
    jsonschema.Draft7Validator(_SUBSET).validate(log)
    official = os.environ.get("ONNX24_SARIF_SCHEMA")
    if official:
        schema = json.loads(Path(official).read_text(encoding="utf-8"))
        jsonschema.Draft4Validator(
            schema, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER
        ).validate(log)


def test_sarif_against_the_official_schema() -> None:
    if not os.environ.get("ONNX24_SARIF_SCHEMA"):
        pytest.skip("set ONNX24_SARIF_SCHEMA to OASIS's sarif-schema-2.1.0.json")
    test_sarif_keeps_the_standard(ALL)


def test_sarif_names_rules_places_and_what_is_accepted() -> None:
    run = json.loads(render_sarif(ALL))["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["O24-002", "O24-611", "O24-633", "O24-637"]
    assert run["invocations"] == [{"executionSuccessful": False, "exitCode": 2}]
    assert run["artifacts"][0]["location"]["uri"] == "models/a%20model.onnx"
    assert run["artifacts"][0]["hashes"] == {"sha-256": "ab" * 32}
    results = run["results"]
    assert [r["level"] for r in results] == ["error", "warning", "note", "error", "error"]
    for result in results:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    place = results[1]["locations"][0]
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "loop.body::conv"
    assert place["physicalLocation"]["artifactLocation"]["index"] == 0
    assert "suppressions" in results[4] and "suppressions" not in results[0]
    assert len({r["partialFingerprints"]["onnx24/v1"] for r in results}) == 5


# --- JUnit ------------------------------------------------------------------------------------


def test_junit_has_a_case_for_each_rule() -> None:
    root = ElementTree.fromstring(render_junit(ALL))
    assert root.attrib == {"name": "onnx24 check", "tests": "12", "failures": "1", "errors": "1"}
    first = root[0]
    names = [case.get("name") for case in first]
    assert names == [
        "valid",
        "sparsity.min_coverage",
        "model.max_opset",
        "qdq.one-sided",
        "qdq.bias",
    ]
    assert first[1].find("failure") is not None and first[2].find("failure") is None
    assert first[3].find("failure") is None and first[3].find("system-out") is not None
    strict = ElementTree.fromstring(render_junit(ALL, fail_on=Severity.WARNING))
    assert strict[0][3].find("failure") is not None
    error = root[2][0].find("error")
    assert error is not None and error.get("type") == "O24-002"


def test_junit_survives_names_that_xml_cannot_hold() -> None:
    root = ElementTree.fromstring(render_junit((HOSTILE_ONE,)))
    failure = root[0][1].find("failure")
    assert failure is not None and "\N{REPLACEMENT CHARACTER}" in (failure.get("message") or "")
    assert "\\x1b[31m\\x00" in (failure.text or "")


# --- annotations ------------------------------------------------------------------------------


def test_annotations_are_one_line_each() -> None:
    lines = render_annotations(ALL).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "::error",
        "::warning",
        "::notice",
        "::error",
    ]
    assert lines[0].startswith("::error file=models/a model.onnx,title=O24-611 2%3A4 coverage")
    hostile = render_annotations((HOSTILE_ONE,))
    assert hostile.count("\n") == 1 and "\\r\\n" in hostile
    assert hostile.split("::")[1].count(",") == 1, "a comma in a name would end the property"


# --- text and JSON ----------------------------------------------------------------------------


def test_text_has_a_verdict_for_each_and_a_summary() -> None:
    text = render_text(ALL)
    assert "a model.onnx: policy p.toml NOT met" in text
    assert "b.onnx: policy p.toml met" in text
    assert "c.onnx: policy p.toml not judged (refused)" in text
    assert text.endswith("4 models: 2 met, 1 not met, 1 refused")
    assert "1 findings are accepted" in text
    assert "coverage too low: Less of what" in render_text(ALL, explain=True)


def test_a_name_cannot_steer_the_terminal() -> None:
    text = render_text((HOSTILE_ONE,))
    assert "\x1b" not in text and "\r" not in text and "\\x1b[31m" in text


def test_documents() -> None:
    one = one_document(checked(), explain=True)
    assert (one["met"], one["status"], one["policy"]["name"]) == (False, "not met", "p.toml")
    assert set(one["explanations"]) == {"O24-611", "O24-633", "O24-637"}
    many = document(ALL)
    assert many["summary"] == {"not met": 1, "met": 2, "refused": 1}
    assert [m["exit_code"] for m in many["models"]] == [1, 0, 2, 0]
    json.dumps(many, allow_nan=False)


@pytest.mark.parametrize("result", [*ALL, HOSTILE_ONE])
def test_a_result_crosses_a_process_boundary(result: Checked) -> None:
    line = result.packed()
    assert "\n" not in line
    assert Checked.unpacked(line) == result


def test_a_fingerprint_does_not_hold_numbers() -> None:
    same = finding(message="another number"), finding(message="a number")
    assert fingerprint("f", same[0]) == fingerprint("f", same[1])
    others = {
        fingerprint("g", finding()),
        fingerprint("f", finding(node="n")),
        fingerprint("f", finding(rule="x")),
        fingerprint("f", finding("O24-610")),
    }
    assert len(others | {fingerprint("f", finding())}) == 5


def test_the_worst_exit_code_counts() -> None:
    assert worst([0, 1, 2, 3, 70]) == 70
    assert worst([1, 3, 2]) == 2 and worst([1, 3]) == 3 and worst([0, 1]) == 1 and worst([]) == 0
