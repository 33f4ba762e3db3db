"""Where the elements of a reshaped and transposed array lie in the array it was made from.

A dimension is a list of atoms, outermost first; an atom (size, stride) steps `size` times by
`stride` elements of the original flat array. Transposes permute dimensions, reshapes cut and join
atoms; where a new dimension cuts across an atom, the stride of that part is 0: irregular. So the
reduction axis of a consumer is followed back to the stored tensor, whatever stands between, without
touching a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class Atom(NamedTuple):
    """stride: 0 where the steps are not all the same."""

    size: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """`dims`: the atoms of each dimension. Atoms of size 1 are left out. `flat`: the atoms in the
    order of the elements, where a reshape made the dimensions: another reshape goes by it."""

    dims: tuple[tuple[Atom, ...], ...]
    flat: tuple[Atom, ...] | None = field(default=None, compare=False)

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
        """None for another number of elements."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        atoms = _merged([a for dim in self.dims for a in dim]) if self.flat is None else self.flat
        old, new = list(atoms), [(axis, size) for axis, size in enumerate(shape) if size > 1]
        dims: list[list[Atom]] = [[] for _ in shape]
        old_size = new_size = 1  # of what lies in the present irregular stretch
        while old or new:  # from the innermost outwards
            if old_size < new_size:
                atom = old.pop()
                part = _closing(atom.size, new_size, old_size)
                old_size *= part
                _push(old, Atom(atom.size // part, atom.stride * part))
                continue
            axis, size = new.pop()
            if old_size > new_size:
                part = _closing(size, old_size, new_size)
                stride = 0
                new_size *= part
            else:
                atom = old.pop()
                part, stride = math.gcd(atom.size, size), atom.stride
                if part == 1:
                    part, stride = size, 0
                    old_size, new_size = old_size * atom.size, new_size * size
                else:
                    _push(old, Atom(atom.size // part, atom.stride * part))
            dims[axis].append(Atom(part, stride))
            if size > part:
                new.append((axis, size // part))
        return Layout(tuple(tuple(reversed(dim)) for dim in dims), tuple(atoms))

    def step(self, axis: int) -> int | None:
        """The distance, in the original flat array, of neighbours along `axis`; None where it is
        not the same for all, or the axis has but one element."""
        dim = _merged(list(self.dims[axis]))
        return dim[0].stride or None if len(dim) == 1 else None

    def group_stride(self, axis: int) -> int | None:
        """The distance, in the original flat array, of the members of each four consecutive
        elements along `axis`; None where a group straddles two atoms or the size is no multiple
        of 4."""
        dim = _merged(list(self.dims[axis]))
        return dim[-1].stride or None if dim and dim[-1].size % 4 == 0 else None

    def varies(self, axis: int, stride: int, block: int = 1) -> bool:
        """Whether the members of a group of four, `stride` apart, differ in their index along
        `axis`, counted in blocks of `block`."""
        dim = _merged(list(self.dims[axis]))
        moved = [atom for atom in dim if not _stays(atom, stride)]
        if not moved:
            return False
        inner = dim[-1]
        whole = inner.stride == stride and inner.size % 4 == 0 and block % 4 == 0
        return not (whole and moved == [inner])


def axis_with_stride(shape: tuple[int, ...], stride: int) -> int | None:
    """The axis of a C-contiguous array whose neighbours lie `stride` apart, None if none do."""
    for axis, size in enumerate(shape):
        if size > 1 and math.prod(shape[axis + 1 :]) == stride:
            return axis
    return None


def _stays(atom: Atom, stride: int) -> bool:
    """Whether the atom's index is the same for the members of a group: they lie whole turns of it
    apart, or all within one of its steps."""
    if not atom.stride:
        return False
    return stride % (atom.stride * atom.size) == 0 or atom.stride % (4 * stride) == 0


def _closing(size: int, longer: int, shorter: int) -> int:
    """How much of a part of `size` an irregular stretch takes on its shorter side: no more than
    brings both sides to the same length, where that can be."""
    missing = math.lcm(longer, shorter) // shorter
    part = math.gcd(size, missing)
    return part if part > 1 else size


def _push(atoms: list[Atom], atom: Atom) -> None:
    if atom.size > 1:
        atoms.append(atom)


def _merged(atoms: list[Atom]) -> list[Atom]:
    """Neighbouring atoms joined where together they step evenly."""
    out: list[Atom] = []
    for atom in atoms:
        if out and out[-1].stride == atom.size * atom.stride:
            out[-1] = Atom(out[-1].size * atom.size, atom.stride)
        else:
            out.append(atom)
    return out
