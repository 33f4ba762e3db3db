"""The result of holding one model to a policy, in a form that crosses a process boundary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx24.diagnostics import Diagnostic, Severity, Where
from onnx24.report.jsontext import Document, plain

OK, NOT_MET, REFUSED, NO_BACKEND, OUR_FAULT = 0, 1, 2, 3, 70
_WORST = (OUR_FAULT, REFUSED, NO_BACKEND, NOT_MET, OK)


@dataclass(frozen=True, kw_only=True)
class Checked(Document):
    """findings: what the policy found, accepted ones aside; accepted: those of the baseline.
    problem: why the file could not be judged, empty where it was. facts: what was measured.

    exit_code: 0 met; 1 not met; 2 the file is refused; 3 a backend is missing; 70 our own fault.
    """

    file: str
    policy: str
    exit_code: int
    findings: tuple[Diagnostic, ...] = ()
    problem: tuple[Diagnostic, ...] = ()
    accepted: tuple[Diagnostic, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.exit_code == OK

    @property
    def status(self) -> str:
        return {
            OK: "met",
            NOT_MET: "not met",
            REFUSED: "refused",
            NO_BACKEND: "backend missing",
        }.get(self.exit_code, "internal error")

    @property
    def all_findings(self) -> tuple[Diagnostic, ...]:
        return (*self.problem, *self.findings)

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "file": self.file,
                "status": self.status,
                "met": self.met,
                "exit_code": self.exit_code,
                "policy": {"name": self.policy, **self.rules},
                **self.facts,
                "findings": [d.to_json() for d in self.all_findings],
                "accepted": [d.to_json() for d in self.accepted],
            }
        )

    def packed(self) -> str:
        """One line of JSON from which `unpacked` makes the same object."""
        document = {
            **vars(self),
            **{name: [d.to_json() for d in getattr(self, name)] for name in _LISTS},
        }
        return json.dumps(plain(document))

    @classmethod
    def unpacked(cls, line: str) -> Checked:
        """Raises: ValueError, KeyError or TypeError for a line that `packed` did not make."""
        document = json.loads(line)
        for name in _LISTS:
            document[name] = tuple(from_json(item) for item in document[name])
        return cls(**document)

    def accepting(self, known: frozenset[str], fail_on: Severity) -> Checked:
        """Without the findings whose fingerprint is known. A file that could not be judged stays
        as it is: there is nothing to accept about it."""
        if self.problem or not known:
            return self
        left = tuple(d for d in self.findings if fingerprint(self.file, d) not in known)
        accepted = tuple(d for d in self.findings if fingerprint(self.file, d) in known)
        code = NOT_MET if any(d.severity >= fail_on for d in left) else OK
        return replace(self, findings=left, accepted=accepted, exit_code=code)


_LISTS = ("findings", "problem", "accepted")


def from_json(document: Mapping[str, Any]) -> Diagnostic:
    """The diagnostic that `Diagnostic.to_json` wrote."""
    return Diagnostic(
        code=document["code"],
        message=document["message"],
        severity=Severity[document["severity"].upper()],
        where=Where(**document.get("where", {})),
        pass_name=document.get("pass", ""),
        facts=document.get("facts", {}),
        hint=document.get("hint", ""),
    )


def fingerprint(file: str, finding: Diagnostic) -> str:
    """What names a finding from one run to the next: file, code, rule and place, and not the
    numbers in its message."""
    where = finding.where
    parts = (
        file.replace("\\", "/"),
        finding.code,
        finding.facts.get("rule", ""),
        finding.facts.get("key", ""),
        where.scope,
        where.node,
        where.op,
        where.tensor,
    )
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[
        :32
    ]


def worst(codes: Sequence[int]) -> int:
    """The exit code of a run over several models."""
    return next((code for code in _WORST if code in codes), OK)
