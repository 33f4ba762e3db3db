"""A byte-pair vocabulary over lower-case words, learnt from the training queries alone.

*Source:* Sennrich et al., Neural machine translation of rare words with subword units (1508.07909).
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")
_END = "_"
"""Closes the last piece of a word."""


class WordPieces:
    """pieces: all known ones; their places are the token ids, 0 for padding, 1 for unknown
    characters. merges: pairs in the order in which they are joined."""

    def __init__(self, pieces: list[str], merges: list[tuple[str, str]]) -> None:
        self.pieces, self.merges = pieces, merges
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._ranks = {pair: i for i, pair in enumerate(merges)}
        self._known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> WordPieces:
        """At most `size` pieces; pairs that occur once are not joined."""
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
        words = {word: _characters(word) for word in sorted(counts)}
        letters = sorted({piece for split in words.values() for piece in split})
        pieces, merges = ["<padding>", "<unknown>", *letters], []
        while len(pieces) < size:
            pairs: Counter[tuple[str, str]] = Counter()
            for word, split in words.items():
                for pair in itertools.pairwise(split):
                    pairs[pair] += counts[word]
            if not pairs:
                break
            best, often = min(pairs.items(), key=lambda item: (-item[1], item[0]))
            if often < 2:
                break
            merges.append(best)
            if "".join(best) not in pieces:
                pieces.append("".join(best))
            words = {word: _joined(split, best) for word, split in words.items()}
        return cls(pieces, merges)

    def ids(self, texts: Iterable[str], length: int) -> np.ndarray:
        """[texts, length] int64: cut or padded at the end."""
        rows = []
        for text in texts:
            found = [i for word in _WORD.findall(text.lower()) for i in self._word(word)][:length]
            rows.append(found + [PADDING] * (length - len(found)))
        return np.array(rows, np.int64).reshape(-1, length)

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            split = _characters(word)
            while len(split) > 1:
                pairs = list(itertools.pairwise(split))
                first = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
                if first not in self._ranks:
                    break
                split = _joined(split, first)
            self._known[word] = [self._ids.get(piece, UNKNOWN) for piece in split]
        return self._known[word]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"pieces": self.pieces, "merges": self.merges}), "utf-8")

    @classmethod
    def load(cls, path: Path) -> WordPieces:
        held = json.loads(path.read_text("utf-8"))
        return cls(held["pieces"], [(a, b) for a, b in held["merges"]])


def _characters(word: str) -> list[str]:
    return [*word[:-1], word[-1] + _END]


def _joined(split: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in split:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out
