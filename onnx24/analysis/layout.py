"""Where the elements of a reshaped and transposed array lie in the array it was made from.

A dimension is a list of atoms, outermost first; an atom (size, stride) steps `size` times by
`stride` elements of the original flat array. Transposes permute dimensions, reshapes cut and join
atoms. With it the reduction axis of a consumer is followed back to the stored tensor, whatever
stands between, without touching a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Atom(NamedTuple):
    size: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """`dims`: the atoms of each dimension. Atoms of size 1 are left out."""

    dims: tuple[tuple[Atom, ...], ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Layout:
        """A C-contiguous array as it is stored. Raises: ValueError for an empty one."""
        if 0 in shape:
            raise ValueError(f"an array of shape {list(shape)} has no elements to follow")
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return cls(
            tuple((Atom(n, s),) if n > 1 else () for n, s in zip(shape, strides, strict=True))
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(atom.size for atom in dim) for dim in self.dims)

    def transposed(self, perm: tuple[int, ...]) -> Layout:
        return Layout(tuple(self.dims[p] for p in perm))

    def reshaped(self, shape: tuple[int, ...]) -> Layout | None:
        """None where a new dimension would cut across the old ones: its elements have no regular
        distance any more."""
        rest = _merged([atom for dim in self.dims for atom in dim])
        rest.reverse()
        dims = []
        for size in shape:
            dim: list[Atom] = []
            while size > 1:
                if not rest:
                    return None
                atom = rest.pop()
                if size % atom.size == 0:
                    dim.append(atom)
                    size //= atom.size
                elif atom.size % size == 0:
                    inner = atom.size // size
                    dim.append(Atom(size, atom.stride * inner))
                    rest.append(Atom(inner, atom.stride))
                    size = 1
                else:
                    return None
            dims.append(tuple(dim))
        return None if rest else Layout(tuple(dims))

    def step(self, axis: int) -> int | None:
        """The distance, in the original flat array, of neighbours along `axis`; None where it is
        not the same for all, or the axis has but one element."""
        dim = _merged(list(self.dims[axis]))
        return dim[0].stride if len(dim) == 1 else None

    def group_stride(self, axis: int) -> int | None:
        """The distance, in the original flat array, of the members of each four consecutive
        elements along `axis`; None where a group straddles two atoms or the size is no multiple
        of 4."""
        dim = _merged(list(self.dims[axis]))
        return dim[-1].stride if dim and dim[-1].size % 4 == 0 else None

    def varies(self, axis: int, stride: int, block: int = 1) -> bool:
        """Whether the members of a group of four, `stride` apart, differ in their index along
        `axis`, counted in blocks of `block`."""
        dim = _merged(list(self.dims[axis]))
        if not any(a.stride < 4 * stride and a.stride * a.size > stride for a in dim):
            return False
        whole = dim[-1].stride == stride and dim[-1].size % 4 == 0 and block % 4 == 0
        return not whole


def axis_with_stride(shape: tuple[int, ...], stride: int) -> int | None:
    """The axis of a C-contiguous array whose neighbours lie `stride` apart, None if none do."""
    for axis, size in enumerate(shape):
        if size > 1 and math.prod(shape[axis + 1 :]) == stride:
            return axis
    return None


def _merged(atoms: list[Atom]) -> list[Atom]:
    """Neighbouring atoms joined where together they step evenly."""
    out: list[Atom] = []
    for atom in atoms:
        if out and out[-1].stride == atom.size * atom.stride:
            out[-1] = Atom(out[-1].size * atom.size, atom.stride)
        else:
            out.append(atom)
    return out
