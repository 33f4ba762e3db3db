"""Hold one model file to a policy, in this process. `gate.sandbox` does it in one of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from onnx24 import __version__, targets
from onnx24.diagnostics import Diagnostic, Severity
from onnx24.errors import InternalError, Onnx24Error
from onnx24.gate import rules
from onnx24.gate.subject import Subject
from onnx24.gate.verdicts import fail_on, failed, memory_mib_of, stopped
from onnx24.ir.bounds import Bounds
from onnx24.ir.model import Model
from onnx24.ir.packed import unpacked
from onnx24.passmgr.provenance import data_digest
from onnx24.report.checked import NOT_MET, OK, OUR_FAULT, Checked
from onnx24.report.model import ModelFacts
from onnx24.report.policy import Policy


def bounds_of(policy: Policy) -> Bounds:
    default = Bounds.default()
    return replace(
        default,
        nodes=policy.get("limits.nodes", default.nodes),
        messages=policy.get("limits.messages", default.messages),
    )


def judge(
    path: str,
    policy: Policy,
    *,
    target: str,
    name: str | None = None,
    digest_data: bool = False,
) -> Checked:
    """Whether the file is what the policy says. Never raises: what goes wrong is in the result.

    target: for a policy that names none. name: what the user calls the file. digest_data: the
    result names the sha256 of the model's data files.
    """
    shown = path if name is None else name
    try:
        return _judge(path, shown, policy, target, digest_data)
    except Onnx24Error as err:
        return failed(shown, policy, err.diagnostics, err.exit_code)
    except MemoryError:
        return stopped(shown, policy, f"reading it took more than {memory_mib_of(policy)} MiB")
    except RecursionError:
        return stopped(shown, policy, "it is nested deeper than Python can follow")
    except Exception as err:  # noqa: BLE001 - a bug of ours must not stop the other files' checks
        bug = InternalError.of("O24-900", f"{type(err).__name__}: {err}", hint=_origin(err))
        return failed(shown, policy, bug.diagnostics, OUR_FAULT)


def _judge(path: str, shown: str, policy: Policy, target: str, digest_data: bool) -> Checked:
    row = targets.load(policy.target or target)
    model = Model.load(path, bounds=bounds_of(policy))
    subject = Subject(unpacked(model), shown, row, policy, stored=model)
    found = _with_severities(rules.findings(subject), policy)
    if any(policy.has(section) for section in ("numeric", "task", "latency", "backend")):
        from onnx24.gate import running

        if all(finding.severity < Severity.ERROR for finding in found):
            runs = running.findings(subject)
        else:  # running what is refused already tells nobody anything
            runs = running.findings(replace(subject, policy=_without_runs(policy)))
        found += _with_severities(runs, policy)
    threshold = fail_on(policy)
    coverage = subject.inspection.coverage
    return Checked(
        file=shown,
        policy=policy.name,
        exit_code=NOT_MET if any(f.severity >= threshold for f in found) else OK,
        findings=tuple(found),
        facts={
            "sha256": subject.facts.sha256,
            **(_digests_of_data(subject.facts) if digest_data else {}),
            "target": row.name,
            "coverage": coverage.share,
            "eligible_elements": coverage.eligible_elements,
            "sparse_elements": coverage.sparse_elements,
            "opset": model.opset,
            "bytes": subject.facts.nbytes,
            "nodes": subject.facts.nodes,
            "measured": subject.measured,
            "policy_sha256": policy.digest(),
            "version": __version__,
        },
        rules=policy.rules(),
    )


def _digests_of_data(facts: ModelFacts) -> dict[str, Any]:
    """Nothing for a model that is one file. whole_sha256: of that file and its data files."""
    if not facts.data_files:
        return {}
    whole = data_digest({**facts.data_files, "": facts.sha256})
    return {"data_files": facts.data_files, "whole_sha256": whole}


def _without_runs(policy: Policy) -> Policy:
    kept = {key: value for key, value in policy.values.items() if key.startswith("latency.")}
    return replace(policy, values=kept)


def _with_severities(found: Iterable[Diagnostic], policy: Policy) -> list[Diagnostic]:
    """The findings with the severities that the policy gives their codes, without those it turns
    off."""
    kept = []
    for finding in found:
        severity = policy.severity.get(finding.code)
        if severity is None:
            kept.append(finding)
        elif severity != "off":
            kept.append(replace(finding, severity=Severity[severity.upper()]))
    return kept


def _origin(err: BaseException) -> str:
    """Where in our code a bug came up, for a report that has no traceback."""
    trace, place = err.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "onnx24" in code.co_filename:
            place = f"{code.co_filename.rpartition('onnx24/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"please report it, with the file (raised in {place})" if place else "please report it"
