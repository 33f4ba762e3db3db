"""Diagnostics for a terminal: a code that repeats is said a few times and then counted."""

from __future__ import annotations

from collections.abc import Iterable

from onnx24.codes import CODES
from onnx24.diagnostics import Diagnostic
from onnx24.lines import Block, block

_SHOWN_PER_CODE = 3


def aggregate(items: Iterable[Diagnostic], *, shown: int = _SHOWN_PER_CODE) -> list[Block]:
    """One text per diagnostic, errors first; of a code that repeats only the first few, then how
    many more there are. A hint is given once per code."""
    groups: dict[tuple[int, str], list[Diagnostic]] = {}
    for item in items:
        groups.setdefault((-item.severity, item.code), []).append(item)
    texts = []
    for (_, code), group in sorted(groups.items(), key=lambda pair: pair[0][0]):
        said = set()
        for item in group[:shown]:
            lines = item.render().split("\n", 1)
            hint = lines[1] if len(lines) > 1 and lines[1] not in said else ""
            said.add(hint)
            texts.append(block([lines[0], Block(hint)] if hint else [lines[0]]))
        if len(group) > shown:
            texts.append(
                block(
                    [
                        f"{group[0].severity}: … and {len(group) - shown} more: "
                        f"{CODES[code].title} ({code})"
                    ]
                )
            )
    return texts
