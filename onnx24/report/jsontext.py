"""JSON that any reader takes: no NaN, no infinities, no numpy."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Document:
    """What has a JSON document: `to_json` makes it."""

    def to_json(self) -> Any:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The document, as plain values that any JSON writer takes."""
        found: dict[str, Any] = plain(self.to_json())
        return found


def json_text(document: Any, *, ascii_only: bool = False) -> str:
    """The document as indented JSON with a final newline; the same document, the same text."""
    return json.dumps(plain(document), indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n"


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
