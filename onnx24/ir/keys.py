"""Names that are unique in a model: a value's name and the scope that defines it."""

from __future__ import annotations

from typing import NamedTuple


class ValueKey(NamedTuple):
    """`scope` is "" for the main graph; a body is "<node>.<attribute>", nested bodies are joined
    with "/"; a local function is "function:<domain>:<name>", and ":<overload>" where it has
    one."""

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}::{self.name}" if self.scope else self.name


def as_key(key: str | ValueKey) -> ValueKey:
    """A plain string names a value of the main graph."""
    return key if isinstance(key, ValueKey) else ValueKey("", key)
