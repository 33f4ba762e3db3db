"""The weights that are recorded as 2:4, so that later passes and registries can hold them to it.

The record lives in the model's metadata_props under `onnx24.sparse24`, as a JSON list of
[scope, name], sorted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnx24.ir.keys import ValueKey, as_key

if TYPE_CHECKING:
    from onnx24.ir.model import Metadata

METADATA_KEY = "onnx24.sparse24"


class Claims24:
    """A set of ValueKeys kept in the model's metadata."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def keys(self) -> list[ValueKey]:
        """The recorded weights, sorted. A record that does not parse counts as empty: it is
        metadata of a file that anybody may have written."""
        try:
            entries = json.loads(self._metadata.get(METADATA_KEY, "[]"))
            return sorted(ValueKey(str(scope), str(name)) for scope, name in entries)
        except (ValueError, TypeError):
            return []

    def __contains__(self, key: str | ValueKey) -> bool:
        return as_key(key) in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[ValueKey]:
        return iter(self.keys())

    def add(self, key: str | ValueKey) -> None:
        self._write({*self.keys(), as_key(key)})

    def update(self, keys: list[ValueKey]) -> None:
        self._write({*self.keys(), *keys})

    def discard(self, key: str | ValueKey) -> None:
        self._write(set(self.keys()) - {as_key(key)})

    def move(self, old: str | ValueKey, new: str | ValueKey) -> None:
        """`new` stands for `old` from now on; nothing happens where `old` is not recorded."""
        keys = set(self.keys())
        if as_key(old) in keys:
            self._write(keys - {as_key(old)} | {as_key(new)})

    def _write(self, keys: set[ValueKey]) -> None:
        if keys == set(self.keys()):
            return
        if keys:
            self._metadata[METADATA_KEY] = json.dumps(sorted(keys))
        else:
            del self._metadata[METADATA_KEY]
