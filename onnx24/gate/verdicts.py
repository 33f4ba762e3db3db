"""What is said of a file that could not be judged, and the limits of judging one. Light: the
process that asks imports this, and not what reads models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnx24 import __version__
from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import BackendError, InputError, InternalError, Onnx24Error
from onnx24.report.checked import REFUSED, Checked
from onnx24.report.policy import Policy

SECONDS, MEMORY_MIB = 60.0, 1024
"""What reading one file may take …"""
RUN_SECONDS, RUN_MEMORY_MIB = 900.0, 8192
"""… and where the policy runs or builds the model."""


def seconds_of(policy: Policy) -> float:
    return policy.get("limits.seconds", RUN_SECONDS if policy.runs_models else SECONDS)


def memory_mib_of(policy: Policy) -> int:
    return policy.get("limits.memory_mib", RUN_MEMORY_MIB if policy.runs_models else MEMORY_MIB)


def fail_on(policy: Policy) -> Severity:
    return Severity[policy.fail_on.upper()]


def failed(path: str, policy: Policy, problem: Iterable[Diagnostic], exit_code: int) -> Checked:
    """The result for a file that could not be judged."""
    named = tuple(
        item if item.where.file else replace(item, where=replace(item.where, file=path))
        for item in problem
    )
    return Checked(
        file=path,
        policy=policy.name,
        exit_code=exit_code,
        problem=named,
        facts={"policy_sha256": policy.digest(), "version": __version__},
        rules=policy.rules(),
    )


def stopped(path: str, policy: Policy, why: str) -> Checked:
    """The result for a file whose reading was stopped."""
    return failed(path, policy, [diagnostic("O24-019", why, file=path)], REFUSED)


def raise_problem(result: Checked) -> None:
    """The error that kept a file from being judged, as an exception."""
    if not result.problem:
        return
    kinds: tuple[type[Onnx24Error], ...] = (InputError, BackendError)
    kind = next((k for k in kinds if k.exit_code == result.exit_code), InternalError)
    raise kind(result.problem)
