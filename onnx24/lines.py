"""Text as lines. Names come from models, and whoever made a model must not write a verdict, a
command of a CI server, or to the terminal: what is printed is a `Block`, made of lines by `block`
alone, and a text that is none is one line, whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 4000
"""Characters of a line; of longer ones the middle is left out."""

_COMMAND = re.compile(r"^(\s*):(?=:)")
_OLD_COMMAND = re.compile(r"##(?=\w*\[)")


class Block(str):
    """Lines that may be printed as they are, without a final newline."""

    __slots__ = ()


def block(lines: Iterable[str], longest: int = LONGEST) -> Block:
    """Below each other; a Block among them stays as it is."""
    return Block("\n".join(shown(line, longest) for line in lines))


def paragraphs(parts: Iterable[str]) -> Block:
    """With an empty line between them; empty ones are left out."""
    return Block("\n\n".join(shown(part) for part in parts if part))


def shown(text: str, longest: int = LONGEST) -> Block:
    """One line, unless it is a Block.

    *Source:* GitHub's runner takes a line for a command where `::` is its first word, Azure
    Pipelines and TeamCity where `##` and a bracket are in it.
    """
    if isinstance(text, Block):
        return text
    text = printable(text, keep="")
    text = _OLD_COMMAND.sub(r"#\\x23", _COMMAND.sub(r"\1\\x3a", text))
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-longest // 2 :]}"
    return Block(text)


def printable(text: str, keep: str = "\n") -> str:
    """The text with control characters but `keep` written out."""
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
