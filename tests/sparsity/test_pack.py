"""pack24 and unpack24: every bit comes back, and lies where the module says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx24.sparsity.masks import prune_24
from onnx24.sparsity.pack import Packed24, pack24, packed_bytes, unpack24

DTYPES = [
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int8,
    np.float32,
]


def name(dtype: type) -> str:
    return np.dtype(dtype).name


@st.composite
def sparse(draw: st.DrawFn, dtype: type) -> np.ndarray:
    """[R, K] of random bits (NaN, -0 and subnormals among them), at most two of four not +0."""
    rows, groups = draw(st.integers(0, 5)), draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    unsigned = f"u{np.dtype(dtype).itemsize}"
    bits = rng.integers(0, np.iinfo(unsigned).max, (rows, groups, 4), unsigned, endpoint=True)
    sign = np.array(1 << 8 * bits.itemsize - 1, unsigned)
    bits[rng.random(bits.shape) < 0.2] = sign  # -0
    place = rng.random(bits.shape).argsort(axis=-1)
    bits[place >= rng.integers(0, 3, (rows, groups, 1))] = 0  # 0, 1 or 2 of each group stay
    return bits.reshape(rows, 4 * groups).view(dtype)


def naive(w: np.ndarray) -> tuple[list[bytes], list[list[int]]]:
    """(values of each row, metadata of each row) by the docstring, a group at a time."""
    values, metadata = [], []
    zero = bytes(w.itemsize)
    for row in w:
        kept, nibbles = b"", []
        for g in range(0, row.size, 4):
            group = [value.tobytes() for value in row[g : g + 4]]
            places = [p for p in range(4) if group[p] != zero]
            for p in range(4):
                if len(places) < 2 and p not in places:
                    places.append(p)
            places.sort()
            kept += group[places[0]] + group[places[1]]
            nibbles.append(places[0] + 4 * places[1])
        if len(nibbles) % 2:
            nibbles.append(0)
        values.append(kept)
        metadata.append([a + 16 * b for a, b in zip(nibbles[::2], nibbles[1::2], strict=True)])
    return values, metadata


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@given(data=st.data())
def test_every_bit_comes_back(dtype: type, data: st.DataObject):
    w = data.draw(sparse(dtype))
    packed = pack24(w)
    values, metadata = naive(w)
    assert packed.shape == w.shape and packed.values.dtype == w.dtype
    assert [row.tobytes() for row in packed.values] == values
    assert packed.metadata.tolist() == metadata
    assert packed.nbytes == packed_bytes(*w.shape, w.itemsize)
    back = unpack24(packed)
    assert back.dtype == w.dtype and back.shape == w.shape and back.tobytes() == w.tobytes()


@pytest.mark.parametrize(
    ("dtype", "share"),
    [(np.float16, 9 / 16), (ml_dtypes.bfloat16, 9 / 16), (np.int8, 10 / 16), (np.float32, 17 / 32)],
)
def test_the_sizes_are_cusparselts(dtype: type, share: float):
    w = prune_24(np.arange(64 * 256).reshape(64, 256).astype(dtype), 1)
    assert pack24(w).nbytes == share * w.nbytes


def test_the_layout_bit_by_bit():
    w = np.array([[0, 5, 0, 7, 1, 2, 0, 0, 0, 0, 3, 0], [0] * 8 + [0, 0, 8, 9]], np.int8)
    packed = pack24(w)
    assert packed.values.tolist() == [[5, 7, 1, 2, 0, 3], [0, 0, 0, 0, 8, 9]]
    # places (1, 3), (0, 1) and (0 filled up, 2); (0, 1), (0, 1) and (2, 3)
    assert packed.metadata.tolist() == [[0b0100_1101, 0b0000_1000], [0b0100_0100, 0b0000_1110]]


def test_negative_zero_and_nan_are_values():
    w = np.array([[-0.0, 0, np.nan, 0], [-0.0, -0.0, 0, 0]], np.float32)
    packed = pack24(w)
    assert np.signbit(packed.values).tolist()[1] == [True, True]
    assert unpack24(packed).tobytes() == w.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_what_prune_24_leaves_can_be_packed(dtype: type):
    rng = np.random.default_rng(0)
    w = np.round(rng.standard_normal((8, 64)) * 3).astype(dtype)  # ties, zeros, negative zeros
    pruned = prune_24(w, 1)
    assert unpack24(pack24(pruned)).tobytes() == pruned.tobytes()


def test_a_transposed_array():
    w = prune_24(np.random.default_rng(1).standard_normal((16, 5)).astype(np.float16), 0)
    np.testing.assert_array_equal(unpack24(pack24(w.T)), w.T)


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match=r"1 of 4 groups .* first at \[1, 4\]"):
        pack24(np.array([[0] * 8, [0] * 4 + [1, 1, 1, 0]], np.int8))
    with pytest.raises(ValueError, match="-0 counts as a value"):
        pack24(np.array([[-0.0, 1, 1, 0]], np.float16))
    with pytest.raises(ValueError, match="K = 6"):
        pack24(np.zeros((2, 6), np.float16))
    with pytest.raises(ValueError, match="3 dimensions"):
        pack24(np.zeros((2, 4, 1), np.float16))
    with pytest.raises(TypeError, match="float64 cannot be packed"):
        pack24(np.zeros((2, 4)))


def test_metadata_that_no_array_has():
    values = np.ones((1, 2), np.float16)
    for bits, message in [(0b0101, "ascending"), (0b0001, "ascending"), (0x44, "unused bits")]:
        with pytest.raises(ValueError, match=message):
            unpack24(Packed24(values, np.array([[bits]], np.uint8)))
    with pytest.raises(ValueError, match="metadata are uint8"):
        unpack24(Packed24(values, np.zeros((1, 2), np.uint8)))
    with pytest.raises(ValueError, match=r"values are \[1, 3\]"):
        unpack24(Packed24(np.ones((1, 3), np.float16), np.zeros((1, 1), np.uint8)))
