"""A checksum of payloads at the speed of memory, in any order and by pieces: for models whose
values sha256 would take longer to read than everything else that is done with them.

It is made against accidents (a flipped bit, a block that is missing, swapped or zeroed): two that
differ by chance agree with a probability of about 2**-64. It is **not** made against people: who
wants to can construct other values with the same checksum. Who needs that excluded needs sha256.

The payload is cut into blocks of 4 KiB, the last filled up with zeros. With w the 1,024
little-endian 32-bit words of block b and k_0, k_1 two lists of as many keys (SHAKE-128 of
"onnx24 checksum", 4,096 bytes each, little-endian), for n in 0, 1, modulo 2**64:

    m = b * 0x9E3779B97F4A7C15
        + Σ_j ((w[2j] + k_n[2j]) mod 2**32) * ((w[2j+1] + k_n[2j+1]) mod 2**32)
    m = (m ^ m >> 32) * 0xD6E8FEB86659FD93, twice
    m = m ^ m >> 32

and the checksum is the pair of sums of all m, so blocks can be added in any order.

*Source:* Black, Halevi, Krawczyk, Krovetz, Rogaway, UMAC, CRYPTO 1999 (NH: the sum of products of
32-bit words is 2**-32-almost universal, for words that do not depend on the keys).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import numpy as np

from onnx24.sparsity import _numba

__all__ = ["BLOCK_BYTES", "checksum_part", "total_of"]

BLOCK_BYTES = 4096
_WORDS = BLOCK_BYTES // 8
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xD6E8FEB86659FD93)
_LOW = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)
_BLOCKS = 32
"""Blocks that numpy works on at a time: a few arrays of 128 KiB."""


def checksum_part(data: np.ndarray, at: int, *, compiled: bool = False) -> np.ndarray:
    """What a part of a payload adds to its checksum: uint64 [2]. data: flat, contiguous, `at` bytes
    behind the payload's beginning; whole blocks, unless it ends with the payload. compiled: by
    numba; the same sums.

    Raises: ValueError where it begins inside a block.
    """
    if at % BLOCK_BYTES:
        raise ValueError(f"a part begins {at} bytes behind the beginning, inside of a block")
    raw = data.reshape(-1).view(np.uint8)
    whole = raw.size - raw.size % BLOCK_BYTES
    first = at // BLOCK_BYTES
    sums = _sums(raw[:whole], first, compiled)
    if whole < raw.size:
        last = np.zeros(BLOCK_BYTES, np.uint8)
        last[: raw.size - whole] = raw[whole:]
        sums += _sums(last, first + whole // BLOCK_BYTES, compiled)
    return sums


def total_of(parts: Iterable[np.ndarray]) -> str:
    """The checksum of a payload in hex, given what its parts add to it, in any order."""
    total = np.zeros(2, np.uint64)
    for part in parts:
        total += part
    return total.astype("<u8").tobytes().hex()


def _sums(raw: np.ndarray, first: int, compiled: bool) -> np.ndarray:
    if compiled:
        return _numba.checksum(raw.view("<u8"), _keys(), first, _STEP, _FACTOR)
    sums = np.zeros(2, np.uint64)
    blocks = raw.view("<u4").reshape(-1, 2 * _WORDS)
    for start in range(0, len(blocks), _BLOCKS):
        words = blocks[start : start + _BLOCKS]
        numbers = np.arange(first + start, first + start + len(words), dtype=np.uint64)
        for n, keys in enumerate(_keys()):
            pairs = (words + keys.view("<u4")).view("<u8")
            products = pairs >> _HALF
            pairs &= _LOW
            products *= pairs
            m = products.sum(axis=1) + numbers * _STEP
            for _ in range(2):
                m = (m ^ (m >> _HALF)) * _FACTOR
            sums[n : n + 1] += (m ^ (m >> _HALF)).sum()
    return sums


@functools.cache
def _keys() -> np.ndarray:
    """Two lists of keys, in pairs: uint64 [2, _WORDS]."""
    stream = hashlib.shake_128(b"onnx24 checksum").digest(2 * BLOCK_BYTES)
    return np.frombuffer(stream, "<u8").reshape(2, _WORDS)
