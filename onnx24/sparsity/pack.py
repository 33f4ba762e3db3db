"""2:4 arrays without their zeros: half of the values, and two bits for the place of each.

**The layout is ours.** What cuSPARSELt's `SpMMACompress` writes is opaque and changes between
versions, and TensorRT packs weights itself while it builds an engine; neither reads these arrays.
Public are the sizes, which are kept (9/16 of the dense array at 16 bits, 10/16 at 8 bits), and the
four bits that `mma.sp` takes for a group, which are used.

A row `w[r]` of K values is K/4 groups; group g is `w[r, 4g : 4g + 4]`. It is stored as

- two values, `values[r, 2g]` and `values[r, 2g + 1]`, in the order of their places;
- a nibble, `i0 | i1 << 2`, with i0 < i1 the places 0..3 of the two: so only 4, 8, 9, 12, 13 and 14
  occur (PTX's 0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110).

`metadata[r, g // 2]` holds the nibble of group g in bits 0-3 if g is even, in bits 4-7 if g is
odd. A row's bytes are its own: with an odd number of groups, bits 4-7 of its last byte are 0. Four
bytes, read as a little-endian word, are so the nibbles of 8 groups, 32 values, the first in the
lowest bits, which is PTX's order within a word. Beyond that nothing is aligned, swizzled or padded:
`values` is [R, K/2] and `metadata` [R, ceil(K/8)], both C-contiguous.

A value survives if any of its bits is set: a -0 is a value, a +0 is none. A group with fewer than
two such is filled up with +0 at its lowest free places: all zeros are nibble 4 (places 0 and 1). So
the packed form of an array is unique, and unpacking gives back every bit.

**float32** is packed in the same way, with two of four. Tensor cores read float32 as TF32 in a 1:2
pattern, one of two, which most 2:4 arrays are not: for 4-byte values this is a way to store, 17/32
of the dense array, and no operand of a sparse product.

*Source:* cuSPARSELt documentation, `cusparseLtSparsity_t` (2:4 for 16- and 8-bit types, 1:2 for
float) and `cusparseLtSpMMACompressedSize`; PTX ISA, `mma.sp`, sparse matrix storage (the nibble;
for .tf32 0b0100 and 0b1110 only).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Packed24", "pack24", "packed_bytes", "unpack24"]

_ITEMSIZES = (1, 2, 4)
_BAD = 0xFF


def _nibble(pattern: int) -> int:
    """The nibble of a group whose bits `pattern` say which of its four values survive."""
    places = [place for place in range(4) if pattern >> place & 1]
    if len(places) > 2:
        return _BAD
    places += [place for place in range(4) if place not in places][: 2 - len(places)]
    first, second = sorted(places)
    return first | second << 2


_NIBBLES = np.array([_nibble(pattern) for pattern in range(16)], np.uint8)
_NIBBLES.flags.writeable = False


@dataclass(frozen=True)
class Packed24:
    """A packed array [R, K]. values: [R, K/2], of its dtype. metadata: uint8 [R, ceil(K/8)]."""

    values: np.ndarray
    metadata: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(R, K) of the array that was packed."""
        return self.values.shape[0], 2 * self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.metadata.nbytes


def packed_bytes(rows: int, columns: int, itemsize: int) -> int:
    """The size [bytes] of a packed [rows, columns] array of `itemsize`-byte values."""
    return rows * (columns // 2 * itemsize + -(-columns // 8))


def pack24(w: np.ndarray) -> Packed24:
    """Pack `w`: [R, K], 2:4 along K, of any dtype with 1, 2 or 4 bytes a value.

    An array [K, N] is packed as its transpose. -0 counts as a value; `masks.prune_24` leaves none
    among what it drops.

    Raises: ValueError for another shape, a K that is no multiple of 4, and a group with more than
    two values; TypeError for another itemsize.
    """
    if w.ndim != 2:
        raise ValueError(f"{list(w.shape)} has {w.ndim} dimensions; pack24 takes [R, K]")
    rows, columns = w.shape
    if columns % 4:
        raise ValueError(f"{list(w.shape)}: K = {columns} is no multiple of 4: pad it")
    if w.dtype.itemsize not in _ITEMSIZES or w.dtype.hasobject:
        raise TypeError(f"{w.dtype} cannot be packed: expected values of 1, 2 or 4 bytes")
    groups = np.ascontiguousarray(w).view(f"u{w.dtype.itemsize}").reshape(rows, columns // 4, 4)
    set_ = (groups != 0).view(np.uint8)
    pattern = set_[..., 0] | set_[..., 1] << 1 | set_[..., 2] << 2 | set_[..., 3] << 3
    nibbles = _NIBBLES[pattern]
    if np.any(bad := nibbles == _BAD):
        row, group = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{int(bad.sum()):,} of {bad.size:,} groups have more than two values, the first at "
            f"[{row}, {4 * group}]; prune the array first (-0 counts as a value)"
        )
    values = np.take_along_axis(groups, _places(nibbles), axis=2)
    metadata = np.zeros((rows, -(-columns // 8)), np.uint8)
    metadata |= nibbles[:, ::2]
    metadata[:, : columns // 8] |= nibbles[:, 1::2] << 4
    return Packed24(values.reshape(rows, columns // 2).view(w.dtype), metadata)


def unpack24(packed: Packed24) -> np.ndarray:
    """The array that was packed, bit for bit: [R, K], C-contiguous.

    Raises: ValueError for shapes that do not belong together and metadata that pack24 does not
    write.
    """
    values, metadata = packed.values, packed.metadata
    if values.ndim != 2 or values.shape[1] % 2:
        raise ValueError(f"values are {list(values.shape)}, expected [R, K/2] with K/2 even")
    rows, columns = packed.shape
    expected = (rows, -(-columns // 8))
    if metadata.dtype != np.uint8 or metadata.shape != expected:
        raise ValueError(
            f"metadata are {metadata.dtype}{list(metadata.shape)}, expected uint8{list(expected)}"
        )
    nibbles = np.empty((rows, 2 * expected[1]), np.uint8)
    nibbles[:, ::2] = metadata & 0x0F
    nibbles[:, 1::2] = metadata >> 4
    if np.any(nibbles[:, columns // 4 :]):
        raise ValueError("metadata: the unused bits of a row's last byte are not 0")
    nibbles = nibbles[:, : columns // 4]
    places = _places(nibbles)
    if np.any(places[..., 0] >= places[..., 1]):
        raise ValueError("metadata: a group's two places are not in ascending order")
    groups = np.zeros((rows, columns // 4, 4), f"u{values.dtype.itemsize}")
    pairs = np.ascontiguousarray(values).view(groups.dtype).reshape(rows, columns // 4, 2)
    np.put_along_axis(groups, places, pairs, axis=2)
    return groups.reshape(rows, columns).view(values.dtype)


def _places(nibbles: np.ndarray) -> np.ndarray:
    """[R, G] nibbles → [R, G, 2] places."""
    return np.stack([nibbles & 3, nibbles >> 2], axis=-1).astype(np.intp)
