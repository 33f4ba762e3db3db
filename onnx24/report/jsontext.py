"""JSON that any reader takes: no NaN, no infinities, no numpy."""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring, encode_basestring_ascii
from pathlib import Path
from typing import Any


class Document(abc.ABC):
    """What has a JSON document: `to_json` makes it."""

    @abc.abstractmethod
    def to_json(self) -> Any: ...

    def to_dict(self) -> dict[str, Any]:
        """The document, as plain values that any JSON writer takes."""
        found: dict[str, Any] = plain(self.to_json())
        return found


def json_text(document: Any, *, ascii_only: bool = False) -> str:
    """The document as indented JSON with a final newline; the same document, the same text."""
    out: list[str] = []
    _write(
        plain(document),
        "\n",
        encode_basestring_ascii if ascii_only else encode_basestring,
        out.append,
    )
    return "".join(out) + "\n"


def _write(value: Any, line: str, quote: Callable[[str], str], write: Callable[[str], Any]) -> None:
    """What json.dumps writes with indent=2, in a third of its time: with an indent, it goes through
    a generator a level for each item. line: the line break of this level."""
    if isinstance(value, str):
        write(quote(value))
    elif value is None or value is True or value is False:
        write("null" if value is None else "true" if value else "false")
    elif isinstance(value, int):
        write(int.__repr__(value))
    elif isinstance(value, float):
        write(float.__repr__(value))
    elif not value:
        write("{}" if isinstance(value, dict) else "[]")
    elif isinstance(value, dict):
        inner = line + "  "
        lead = "{" + inner
        for key, item in value.items():
            write(f"{lead}{quote(key)}: ")
            _write(item, inner, quote, write)
            lead = "," + inner
        write(line + "}")
    else:
        inner = line + "  "
        lead = "[" + inner
        for item in value:
            write(lead)
            _write(item, inner, quote, write)
            lead = "," + inner
        write(line + "]")


def plain(value: Any) -> Any:
    """The value in JSON's own types. What is not finite becomes "nan", "inf" or "-inf"; sets are
    sorted; numpy scalars and small arrays become numbers and lists.

    Raises: TypeError for what has no such form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")
