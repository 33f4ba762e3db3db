"""Results of `check` as JUnit XML, which every CI server shows: a suite for each model, a test case
for each rule of the policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from onnx24.diagnostics import Diagnostic, Severity
from onnx24.report.checked import Checked

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write; names of a hostile model may hold them."""


def render_junit(results: Sequence[Checked], *, fail_on: Severity = Severity.ERROR) -> str:
    """The same results give the same text: there are no times in it."""
    root = ElementTree.Element("testsuites", name="onnx24 check")
    for result in results:
        root.append(_suite(result, fail_on))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(result: Checked, fail_on: Severity) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_clean(result.file))
    by_rule: dict[str, list[Diagnostic]] = {"valid": []}
    by_rule |= {rule: [] for rule in result.rules if rule not in ("severity", "fail_on")}
    for finding in result.findings:
        by_rule.setdefault(str(finding.facts.get("rule", "valid")), []).append(finding)
    if result.problem:
        by_rule = {}
        case = _case(suite, result, "read")
        error = ElementTree.SubElement(case, "error", type=result.problem[0].code)
        error.set("message", _clean(result.problem[0].message))
        error.text = _clean("\n".join(item.render() for item in result.problem))
    failures = 0
    for rule, findings in by_rule.items():
        case = _case(suite, result, rule)
        failing = [f for f in findings if f.severity >= fail_on]
        others = [f for f in findings if f.severity < fail_on]
        if failing:
            failures += 1
            failure = ElementTree.SubElement(case, "failure", type=failing[0].code)
            failure.set("message", _clean(failing[0].message))
            failure.text = _clean("\n".join(item.render() for item in failing))
        if others:
            said = ElementTree.SubElement(case, "system-out")
            said.text = _clean("\n".join(item.render() for item in others))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failures))
    suite.set("errors", str(int(bool(result.problem))))
    return suite


def _case(suite: ElementTree.Element, result: Checked, rule: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=_clean(result.file), name=_clean(rule)
    )


def _clean(text: str) -> str:
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
