"""Results of `check` as SARIF 2.1.0, for code-scanning dashboards.

A finding's place in the graph is a logical location (`scope::node`), since a model has no lines;
the physical location is the file, at line 1 because dashboards ask for a line. What the baseline
accepts is there with a suppression.

*Source:* Static Analysis Results Interchange Format 2.1.0, OASIS Standard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from onnx24 import __version__
from onnx24.codes import CODES, Code
from onnx24.diagnostics import Diagnostic, Severity
from onnx24.report.checked import OUR_FAULT, REFUSED, Checked, fingerprint, worst
from onnx24.report.jsontext import json_text

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_DOCS = "https://github.com/onnx24/onnx24/blob/main/docs/codes.md"


def render_sarif(results: Sequence[Checked]) -> str:
    """One SARIF log with one run; the same results give the same text."""
    used = sorted({d.code for r in results for d in (*r.all_findings, *r.accepted)})
    index = {code: i for i, code in enumerate(used)}
    exit_code = worst([result.exit_code for result in results])
    run = {
        "tool": {
            "driver": {
                "name": "onnx24",
                "version": __version__,
                "informationUri": _DOCS,
                "rules": [_rule(CODES[code]) for code in used],
            }
        },
        "columnKind": "utf16CodeUnits",
        "invocations": [
            {
                "executionSuccessful": exit_code not in (REFUSED, OUR_FAULT),
                "exitCode": exit_code,
            }
        ],
        "artifacts": [_artifact(result) for result in results],
        "results": [
            _result(result, i, finding, index, accepted=accepted)
            for i, result in enumerate(results)
            for accepted, findings in ((False, result.all_findings), (True, result.accepted))
            for finding in findings
        ],
    }
    return json_text({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, ascii_only=True)


def _rule(entry: Code) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": entry.id,
        "name": "".join(word.capitalize() for word in _words(entry.title)),
        "shortDescription": {"text": entry.title},
        "fullDescription": {"text": entry.explanation},
        "helpUri": _DOCS,
        "defaultConfiguration": {"level": entry.severity},
    }
    if entry.hint:
        rule["help"] = {"text": entry.hint}
    return rule


def _words(title: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in title).split()


def _artifact(result: Checked) -> dict[str, Any]:
    out: dict[str, Any] = {
        "location": {"uri": _uri(result.file)},
        "properties": {"status": result.status, "policy": result.policy},
    }
    if sha256 := result.facts.get("sha256"):
        out["hashes"] = {"sha-256": sha256}
    return out


def _result(
    result: Checked, artifact: int, finding: Diagnostic, rules: dict[str, int], *, accepted: bool
) -> dict[str, Any]:
    where: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(result.file), "index": artifact},
            "region": {"startLine": 1},
        }
    }
    if logical := _logical(finding):
        where["logicalLocations"] = logical
    out: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": rules[finding.code],
        "level": _LEVELS[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [where],
        "partialFingerprints": {"onnx24/v1": fingerprint(result.file, finding)},
    }
    if finding.facts:
        out["properties"] = {"facts": dict(finding.facts)}
    if accepted:
        out["suppressions"] = [{"kind": "external", "justification": "in the baseline"}]
    return out


_LEVELS = {Severity.NOTE: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


def _message(finding: Diagnostic) -> str:
    return f"{finding.message}. {finding.hint}" if finding.hint else finding.message


def _logical(finding: Diagnostic) -> list[dict[str, str]]:
    where = finding.where
    places = []
    for name, kind in ((where.node, "object"), (where.tensor, "variable")):
        if name:
            full = f"{where.scope}::{name}" if where.scope else name
            places.append({"name": name, "fullyQualifiedName": full, "kind": kind})
    if not places and where.scope:
        places.append({"name": where.scope, "fullyQualifiedName": where.scope, "kind": "module"})
    return places


def _uri(path: str) -> str:
    return quote(path.replace("\\", "/"), safe="/:@", errors="surrogatepass")
