"""Measurements as lines of JSON, one appended as each is made; a kill costs at most the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["append", "read"]


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none where there is no file. A last line that was cut by a kill is left
    out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def append(path: Path, row: dict[str, Any]) -> None:
    """A line, in the place of what a kill may have left of another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.read_text(encoding="utf-8") if path.exists() else ""
    if held and not held.endswith("\n"):
        path.write_text(held[: held.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
