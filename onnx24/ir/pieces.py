"""A tensor cut into pieces of whole groups of four, for work on weights that are larger than the
memory that may be used.

A group is four elements that lie `stride` apart in the flat tensor. Blocks of `4 * stride` elements
are taken whole where several fit a piece; where not even one does, a piece is a range of columns of
a block, which is four runs of memory. In either case its elements, laid one run after another, are
a flat array whose groups lie `Piece.stride` apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

PIECE_ELEMENTS = 1 << 18
"""Values, result and scratch of a piece stay in a core's second-level cache."""


@dataclass(frozen=True)
class Piece:
    """`runs` runs of `width` elements, the first at `start`, each `apart` behind the one before
    [elements of the flat tensor]. stride: of the groups, when the runs are put together."""

    start: int
    runs: int
    width: int
    apart: int
    stride: int

    @property
    def size(self) -> int:
        return self.runs * self.width

    def position(self, index: int) -> int:
        """Where the element `index` of the piece lies in the flat tensor."""
        run, column = divmod(index, self.width)
        return self.start + run * self.apart + column


def pieces(size: int, stride: int, limit: int = PIECE_ELEMENTS, align: int = 1) -> Iterator[Piece]:
    """The pieces of a tensor of `size` elements, in ascending order of their first elements.

    limit: elements of a piece. align: pieces of whole blocks begin at multiples of so many
    elements, where that leaves room in a piece. Raises: ValueError where the blocks do not fill
    the tensor.
    """
    block = 4 * stride
    if stride < 1 or size % block:
        raise ValueError(f"{size} values are no blocks of 4 · {stride}")
    if block <= limit:
        unit = math.lcm(block, align)
        unit = block if unit > limit else unit
        step = limit // unit * unit
        for start in range(0, size, step):
            yield Piece(start, 1, min(step, size - start), 0, stride)
        return
    width = max(1, limit // 4)
    for start in range(0, size, block):
        for column in range(0, stride, width):
            columns = min(width, stride - column)
            yield Piece(start + column, 4, columns, stride, columns)
