"""What the compiler says to its user: one record per fact, with a stable code.

A diagnostic carries where it applies and the numbers behind it, so that the terminal can
aggregate, JSON can list, and a policy can decide without parsing sentences.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnx24.codes import lookup
from onnx24.lines import Block, block


class Severity(enum.IntEnum):
    NOTE = 0
    WARNING = 1
    ERROR = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Where:
    """A place in a model: any subset of file, scope, node, op and tensor."""

    file: str = ""
    scope: str = ""
    node: str = ""
    op: str = ""
    tensor: str = ""

    def __str__(self) -> str:
        parts = []
        if self.file:
            parts.append(self.file)
        if self.scope:
            parts.append(f"in {self.scope}")
        if self.node or self.op:
            parts.append(f"node {self.node!r} ({self.op})" if self.op else f"node {self.node!r}")
        if self.tensor:
            parts.append(f"tensor {self.tensor!r}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, str]:
        return {k: v for k, v in vars(self).items() if v}


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One thing that happened, was refused, or is wrong."""

    code: str
    message: str
    severity: Severity
    where: Where = Where()
    pass_name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""

    def render(self) -> Block:
        """A line for a terminal: subject, what is wrong, code; below it the next step."""
        where = f"{self.where}: " if str(self.where) else ""
        text = f"{self.severity}: {where}{self.message} ({self.code})"
        return block([text, *(f"  {line}" for line in self.hint.split("\n") if self.hint)])

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "code": self.code,
            "severity": str(self.severity),
            "message": self.message,
        }
        if where := self.where.to_json():
            out["where"] = where
        if self.pass_name:
            out["pass"] = self.pass_name
        if self.facts:
            out["facts"] = dict(self.facts)
        if self.hint:
            out["hint"] = self.hint
        return out


def diagnostic(
    code: str,
    message: str,
    *,
    severity: Severity | None = None,
    file: str = "",
    scope: str = "",
    node: str = "",
    op: str = "",
    tensor: str = "",
    facts: Mapping[str, Any] | None = None,
    hint: str | None = None,
) -> Diagnostic:
    """Build a diagnostic; severity and hint default to what the code table says.

    Raises: KeyError for a code that is not in the table.
    """
    entry = lookup(code)
    return Diagnostic(
        code=code,
        message=message,
        severity=Severity[entry.severity.upper()] if severity is None else severity,
        where=Where(file=file, scope=scope, node=node, op=op, tensor=tensor),
        facts=dict(facts or {}),
        hint=entry.hint if hint is None else hint,
    )


class Diagnostics:
    """An append-only list of diagnostics that stamps the pass that is running."""

    def __init__(self) -> None:
        self._items: list[Diagnostic] = []
        self.pass_name = ""
        self.admits: Callable[[Diagnostic], None] | None = None
        """Asked before each is added; raises for what must not be said."""

    def add(self, item: Diagnostic) -> Diagnostic:
        if self.pass_name and not item.pass_name:
            item = replace(item, pass_name=self.pass_name)
        if self.admits is not None:
            self.admits(item)
        self._items.append(item)
        return item

    def extend(self, items: Iterable[Diagnostic]) -> None:
        for item in items:
            self.add(item)

    def truncate(self, length: int) -> None:
        """Keep the first `length` only."""
        del self._items[length:]

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def at_least(self, severity: Severity) -> list[Diagnostic]:
        return [d for d in self._items if d.severity >= severity]
