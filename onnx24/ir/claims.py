"""The weights that are recorded as 2:4, so that later passes and registries can hold them to it.

The record lives in the model's metadata_props under `onnx24.sparse24`, as a JSON list of
[scope, name], sorted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Set
from typing import TYPE_CHECKING

from onnx24.ir.keys import ValueKey, as_key

if TYPE_CHECKING:
    from onnx24.ir.model import Metadata

METADATA_KEY = "onnx24.sparse24"


class Claims24:
    """A set of ValueKeys kept in the model's metadata."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._text = "[]"
        self._keys: dict[ValueKey, None] = {}

    def keys(self) -> list[ValueKey]:
        """The recorded weights, sorted. A record that does not parse counts as empty: it is
        metadata of a file that anybody may have written."""
        return list(self._parsed())

    def _parsed(self) -> dict[ValueKey, None]:
        """The record's keys, sorted, each once; the text is parsed where it is another."""
        text = self._metadata.get(METADATA_KEY, "[]")
        if text != self._text:
            try:
                found = sorted(
                    {ValueKey(str(scope), str(name)) for scope, name in json.loads(text)}
                )
            except (ValueError, TypeError, RecursionError):
                found = []
            self._text, self._keys = text, dict.fromkeys(found)
        return self._keys

    def __contains__(self, key: str | ValueKey) -> bool:
        return as_key(key) in self._parsed()

    def __len__(self) -> int:
        return len(self._parsed())

    def __iter__(self) -> Iterator[ValueKey]:
        return iter(self.keys())

    def add(self, key: str | ValueKey) -> None:
        self._write({*self.keys(), as_key(key)})

    def update(self, keys: list[ValueKey]) -> None:
        self._write({*self.keys(), *keys})

    def discard(self, *keys: str | ValueKey) -> None:
        gone = {as_key(key) for key in keys}
        if not gone.isdisjoint(self._parsed()):
            self._write(self._parsed().keys() - gone)

    def move(self, old: str | ValueKey, new: str | ValueKey) -> None:
        """`new` stands for `old` from now on; nothing happens where `old` is not recorded."""
        self.move_all([(as_key(old), as_key(new))])

    def move_all(self, moves: Iterable[tuple[ValueKey, ValueKey]]) -> None:
        """`move` for each (old, new), one after the other."""
        keys = set(self._parsed())
        for old, new in moves:
            if old in keys:
                keys.remove(old)
                keys.add(new)
        self._write(keys)

    def _write(self, keys: Set[ValueKey]) -> None:
        if keys == self._parsed().keys():
            return
        if keys:
            self._metadata[METADATA_KEY] = json.dumps(sorted(keys))
        else:
            del self._metadata[METADATA_KEY]
