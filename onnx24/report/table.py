"""Aligned tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx24.lines import Block, block, printable

WIDTH = 100
_GAP = "  "


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    prose: Sequence[int] = (),
    whole: Sequence[int] = (),
    indent: int = 2,
    width: int = WIDTH,
) -> Block:
    """A header line and one line a row, without a final newline.

    right: columns aligned to the right. These and `whole` are never shortened; the widest of the
    others are until a line fits into `width`: those in `prose` at their end, names in the middle.
    """
    rows = [[printable(text, keep="") for text in row] for row in rows]
    columns = list(zip(header, *rows, strict=True)) if rows else [(text,) for text in header]
    widths = [max(map(len, column)) for column in columns]
    room = width - indent - len(_GAP) * (len(widths) - 1)
    movable = [i for i in range(len(widths)) if i not in right and i not in whole]
    while sum(widths) > room and movable:
        widest = max(movable, key=lambda i: widths[i])
        if widths[widest] <= max(8, len(header[widest])):
            break
        widths[widest] -= 1
    lines = []
    for row in (header, *rows):
        cells = [
            text.rjust(size)
            if i in right
            else (cut(text, size) if i in prose else shorten(text, size)).ljust(size)
            for i, (text, size) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + _GAP.join(cells).rstrip())
    return block(lines)


def shorten(text: str, width: int) -> str:
    """The text with its middle left out, so that both ends of a path stay readable."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def cut(text: str, width: int) -> str:
    """The beginning of a sentence."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def bytes_text(count: int) -> str:
    """A size with three digits: 312 B, 1.05 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError


def share_text(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def number_text(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def statistics_text(numbers: Mapping[str, Any]) -> str:
    """A pass's statistics: the first, which is its main count, and of the others what is not 0."""
    parts = []
    for i, (name, value) in enumerate(numbers.items()):
        if i and not value:
            continue
        words = name.split("_")
        if "bytes" in words:
            words.remove("bytes")
            shown = bytes_text(value)
        else:
            shown = number_text(value) if isinstance(value, float) else str(value)
        parts.append(f"{' '.join(words)} {shown}")
    return ", ".join(parts)


def shape_text(shape: Sequence[object]) -> str:
    return "×".join("?" if dim is None else str(dim) for dim in shape) or "scalar"
