"""Constraints that hold pip to the lowest versions that pyproject.toml allows: `make test-lowest`.

python tests/packaging/lowest.py > constraints.txt
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
EXTRAS = ("fast", "sign")
"""Tried besides the dependencies: the others are hundreds of megabytes, or a server."""


def constraints(text: str) -> list[str]:
    """`name==version` for each lower bound. Not by tomllib, which Python 3.10 lacks."""
    blocks = [_block(text, "dependencies"), *(_block(text, extra) for extra in EXTRAS)]
    found = re.findall(r'"([\w.-]+)>=([\w.]+)', "\n".join(blocks))
    return [f"{name}=={version}" for name, version in found]


def _block(text: str, name: str) -> str:
    match = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"pyproject.toml has no list {name!r}"
    return match[1]


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints(PYPROJECT.read_text(encoding="utf-8"))) + "\n")
