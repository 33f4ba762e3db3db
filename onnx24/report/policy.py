"""What a model must be, as a TOML file: a first small set of rules.

    [sparsity]
    min_coverage = 0.9    # share of the eligible elements that lie in 2:4 weights, 0 to 1
    claims = true         # weights that are recorded as 2:4 are 2:4
    [model]
    min_opset = 13
    max_opset = 20
    max_bytes = 100000000

What is not written is not checked, except that the model is valid. Unknown keys are refused: a
rule that is silently ignored is worse than none.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules; None and False stand for "not checked"."""

    name: str
    min_coverage: float | None = None
    claims: bool = False
    min_opset: int | None = None
    max_opset: int | None = None
    max_bytes: int | None = None

    def rules(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "name" and v not in (None, False)}


BUILT_IN = Policy(name="built-in", min_coverage=1.0, claims=True)
"""A model that calls itself sparse and is dense must not pass: everything eligible is 2:4."""

_KEYS: dict[str, dict[str, type]] = {
    "sparsity": {"min_coverage": float, "claims": bool},
    "model": {"min_opset": int, "max_opset": int, "max_bytes": int},
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a policy is held against. eligible_elements, sparse_elements: of the weights that the
    target could run sparse, and of those that are 2:4."""

    file: str
    opset: int
    nbytes: int
    eligible_elements: int
    sparse_elements: int
    broken_claims: tuple[Diagnostic, ...]
    problems: tuple[Diagnostic, ...]

    @property
    def coverage(self) -> float | None:
        return self.sparse_elements / self.eligible_elements if self.eligible_elements else None


def read_policy(path: str) -> Policy:
    """Raises: InputError O24-044, with the nearest key."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise _bad(path, f"cannot be read: {err.strerror or err}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise _bad(path, f"is no TOML: {err}") from err
    values: dict[str, Any] = {}
    for section, content in document.items():
        if section not in _KEYS:
            raise _bad(path, f"unknown section [{section}]", _near(section, _KEYS))
        if not isinstance(content, dict):
            raise _bad(path, f"{section!r}: expected a table, got {content!r}")
        for key, value in content.items():
            if key not in _KEYS[section]:
                known = _KEYS[section]
                raise _bad(path, f"unknown key {key!r} in [{section}]", _near(key, known))
            values[key] = _value(path, section, key, value)
    return Policy(name=path, **values)


def _value(path: str, section: str, key: str, value: Any) -> Any:
    kind = _KEYS[section][key]
    # A TOML integer is a number, and true is none.
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (kind is not bool and isinstance(value, bool)):
        names = {float: "a number", int: "an integer", bool: "true or false"}
        raise _bad(path, f"{section}.{key}: expected {names[kind]}, got {value!r}")
    if key == "min_coverage" and not 0 <= value <= 1:
        raise _bad(path, f"{section}.{key}: expected a share from 0 to 1, got {value!r}")
    if kind is int and value < 0:
        raise _bad(path, f"{section}.{key}: expected no negative number, got {value!r}")
    return kind(value)


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}known are {', '.join(known)}"


def _bad(path: str, message: str, hint: str | None = None) -> InputError:
    return InputError.of("O24-044", message, file=path, hint=hint)


def findings(policy: Policy, facts: Facts) -> list[Diagnostic]:
    """Every rule that is not met; empty where the model may pass."""
    found = list(facts.problems)
    if policy.claims:
        found += facts.broken_claims
    if policy.min_coverage is not None:
        found += _coverage(policy.min_coverage, facts)
    for rule, actual, ok in (
        ("min_opset", facts.opset, policy.min_opset is None or facts.opset >= policy.min_opset),
        ("max_opset", facts.opset, policy.max_opset is None or facts.opset <= policy.max_opset),
        ("max_bytes", facts.nbytes, policy.max_bytes is None or facts.nbytes <= policy.max_bytes),
    ):
        if not ok:
            limit = getattr(policy, rule)
            found.append(
                diagnostic(
                    "O24-620",
                    f"{rule} is {limit:,}, the model has {actual:,}",
                    file=facts.file,
                    facts={"rule": rule, "limit": limit, "actual": actual},
                )
            )
    return found


def _coverage(least: float, facts: Facts) -> list[Diagnostic]:
    share = facts.coverage
    if share is not None and share >= least:
        return []
    if share is None:
        # Nothing to prune is no defect unless coverage is asked for: then there is none.
        message = "no weight of the model is eligible for 2:4"
    else:
        message = (
            f"{facts.sparse_elements:,} of {facts.eligible_elements:,} eligible elements are in "
            f"2:4 weights ({share:.2%}), expected at least {least:.2%}"
        )
    if least == 0:
        return []
    return [
        diagnostic(
            "O24-611",
            message,
            file=facts.file,
            facts={
                "coverage": share,
                "min_coverage": least,
                "eligible_elements": facts.eligible_elements,
                "sparse_elements": facts.sparse_elements,
            },
        )
    ]
