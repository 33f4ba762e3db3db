"""The checksum of large models: its definition, its independence of order, and what it notices."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from onnx24.ir.checksum import BLOCK_BYTES, checksum_part, total_of
from onnx24.sparsity import _numba

SIZES = [0, 1, 8, 4095, 4096, 4097, 40_000, 300_001]
COMPILED = [False, True]


def by_the_definition(data: bytes) -> str:
    """In Python's integers."""
    stream = hashlib.shake_128(b"onnx24 checksum").digest(8192)
    words = lambda b: [int.from_bytes(b[i : i + 4], "little") for i in range(0, 4096, 4)]  # noqa: E731
    keys, sums = [words(stream[:4096]), words(stream[4096:])], [0, 0]
    for b, start in enumerate(range(0, len(data), 4096)):
        w = words(data[start : start + 4096].ljust(4096, b"\0"))
        for n, k in enumerate(keys):
            m = b * 0x9E3779B97F4A7C15
            for j in range(0, 1024, 2):
                m += (w[j] + k[j]) % 2**32 * ((w[j + 1] + k[j + 1]) % 2**32)
            for _ in range(2):
                m %= 2**64
                m = (m ^ m >> 32) * 0xD6E8FEB86659FD93
            m %= 2**64
            sums[n] += m ^ m >> 32
    return b"".join((s % 2**64).to_bytes(8, "little") for s in sums).hex()


def sample(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def checksum(data: np.ndarray, compiled: bool = False) -> str:
    if compiled and not _numba.available():
        pytest.skip("the extra `fast` is not installed")
    return total_of([checksum_part(data, 0, compiled=compiled)])


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_is_defined(size: int, compiled: bool):
    data = sample(size)
    assert checksum(data, compiled) == by_the_definition(data.tobytes())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_parts_may_come_in_any_order(dtype: type):
    data = sample(400_000).view(dtype)
    step = 3 * BLOCK_BYTES // data.itemsize
    parts = [
        checksum_part(data[start : start + step], start * data.itemsize)
        for start in reversed(range(0, data.size, step))
    ]
    assert total_of(parts) == checksum(data)
    with pytest.raises(ValueError, match="inside of a block"):
        checksum_part(data, 8)


def test_it_notices_every_bit_and_every_move():
    data = sample(3 * BLOCK_BYTES)
    changed = []
    for bit in range(0, 8 * data.size, 37):
        other = data.copy()
        other[bit // 8] ^= 1 << bit % 8
        changed.append(other)
    blocks = data.reshape(3, -1)
    changed += [blocks[[1, 0, 2]], blocks[[0, 0, 2]], blocks[:2], np.zeros_like(data), data[::-1]]
    changed += [np.append(data, np.zeros(n, np.uint8)) for n in (BLOCK_BYTES, 2 * BLOCK_BYTES)]
    changed.append(data.view(np.uint32).reshape(-1, 2)[:, ::-1])
    found = {checksum(np.ascontiguousarray(other)) for other in (data, *changed)}
    assert len(found) == 1 + len(changed)
