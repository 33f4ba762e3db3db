"""Products as matrices: which rows of numbers a layer multiplies with its weight.

    y = x · wᵀ for every row x: [K] of the activation and the weight w: [R, K]

A convolution's rows are the patches that its kernel sees (K = channels of a group · kernel
positions), a transposed one's its input positions. Rows are `[n, G, K]` and weights `[G, R, K]`,
with G = 1 but for grouped convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MAX_ELEMENTS = 1 << 18
"""Of a sample of rows, unless that would be fewer than MIN_ROWS."""
MIN_ROWS = 64
MAX_ROWS = 1024
PEAK_ROWS = 16
"""Rows around the largest magnitudes that a sample holds besides its even ones."""


@dataclass(frozen=True)
class Form:
    """How a product reads its two operands.

    k_axis: the reduction axis of the activation, from the end (matrix). w_axis: that of the
    weight. K: the length of a row; groups, kernel, strides, dilations, begins (padding before, by
    spatial axis) and ends: of convolutions; same: "" or the auto_pad that replaces the padding.
    """

    kind: Literal["matrix", "conv", "deconv"]
    K: int
    k_axis: int = -1
    w_axis: int = 0
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    same: str = ""

    # --- weights ---------------------------------------------------------------------------
    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight, as the product sees it, as `[G, R, K]`. Raises: ValueError for a matrix that
        is not of rank 2."""
        if self.kind == "matrix":
            if weight.ndim != 2:
                raise ValueError(f"a weight of rank {weight.ndim} is no matrix")
            return np.moveaxis(weight, self.w_axis, 1)[None]
        groups = self.groups
        if self.kind == "conv":
            return weight.reshape(groups, weight.shape[0] // groups, self.K)
        return weight.reshape(groups, self.K, -1).transpose(0, 2, 1)

    def restored(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The inverse of `matrix`, for a weight of that shape."""
        if self.kind == "matrix":
            return np.moveaxis(matrix[0], 1, self.w_axis)
        if self.kind == "conv":
            return matrix.reshape(tuple(shape))
        return matrix.transpose(0, 2, 1).reshape(tuple(shape))

    # --- activations -----------------------------------------------------------------------
    def count(self, shape: Sequence[int]) -> int:
        """How many rows an activation of that shape has."""
        if self.kind == "matrix":
            return math.prod(shape) // max(1, shape[self._reduced(len(shape))])
        if self.kind == "deconv":
            return shape[0] * math.prod(shape[2:])
        return shape[0] * math.prod(self._outputs(shape[2:]))

    def take(self, x: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """The rows of these numbers, as float32 `[len(picks), G, K]`."""
        if self.kind == "matrix":
            moved = np.moveaxis(x, self._reduced(x.ndim), -1)
            rows = moved[np.unravel_index(picks, moved.shape[:-1])] if moved.ndim > 1 else x[None]
            return rows.astype(np.float32)[:, None, :]
        if self.kind == "deconv":
            moved = np.moveaxis(x, 1, -1)
            rows = moved[np.unravel_index(picks, moved.shape[:-1])]
            return rows.astype(np.float32).reshape(len(picks), self.groups, self.K)
        return self._patches(x, picks)

    def _reduced(self, rank: int) -> int:
        """The reduction axis of an activation of that rank; a vector has one only."""
        return self.k_axis if rank > 1 else -1

    def row_at(self, shape: Sequence[int], flat: int) -> int:
        """The number of a row that holds the element at `flat`."""
        where = [int(i) for i in np.unravel_index(flat, tuple(shape))]
        if self.kind == "matrix":
            axis = self._reduced(len(shape)) % len(shape)
            return _ravel([(where[a], n) for a, n in enumerate(shape) if a != axis])
        if self.kind == "deconv":
            return _ravel([(where[0], shape[0]), *zip(where[2:], shape[2:], strict=True)])
        sizes = self._outputs(shape[2:])
        begins = self._begins(shape[2:])
        at = [(where[0], shape[0])]
        for axis, size in enumerate(sizes):
            at.append((self._position(axis, where[2 + axis] + begins[axis], size), size))
        return _ravel(at)

    def _position(self, axis: int, pixel: int, size: int) -> int:
        """Of `size` output positions one whose kernel covers the padded pixel, as near the kernel's
        middle as can be; some other where none does."""
        stride, dilation, kernel = self.strides[axis], self.dilations[axis], self.kernel[axis]
        for k in sorted(range(kernel), key=lambda k: abs(k - kernel // 2)):
            position, left = divmod(pixel - k * dilation, stride)
            if not left and 0 <= position < size:
                return position
        return min(max(pixel // stride, 0), size - 1)

    def _patches(self, x: np.ndarray, picks: np.ndarray) -> np.ndarray:
        sizes, begins = self._outputs(x.shape[2:]), self._begins(x.shape[2:])
        batch, *outs = np.unravel_index(picks, (x.shape[0], *sizes))
        last = np.moveaxis(x, 1, -1)
        channels, taps = x.shape[1], math.prod(self.kernel)
        patches = np.zeros((len(picks), channels, taps), np.float32)
        for tap, offsets in enumerate(np.ndindex(*self.kernel)):
            at = [
                o * s - b + k * d
                for o, s, b, k, d in zip(
                    outs, self.strides, begins, offsets, self.dilations, strict=True
                )
            ]
            inside = np.ones(len(picks), bool)
            for i, size in zip(at, x.shape[2:], strict=True):
                inside &= (i >= 0) & (i < size)
            pixels = (batch[inside], *(i[inside] for i in at))
            patches[inside, :, tap] = last[pixels]
        return patches.reshape(len(picks), self.groups, self.K)

    def _outputs(self, sizes: Sequence[int]) -> list[int]:
        if self.same:
            return [-(-n // s) for n, s in zip(sizes, self.strides, strict=True)]
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        return [
            max(0, (n + b + e - span) // s + 1)
            for n, b, e, span, s in zip(
                sizes, self.begins, self.ends, spans, self.strides, strict=True
            )
        ]

    def _begins(self, sizes: Sequence[int]) -> Sequence[int]:
        if not self.same:
            return self.begins
        begins = []
        for n, s, k, d in zip(sizes, self.strides, self.kernel, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            begins.append(total // 2 if self.same == "SAME_UPPER" else total - total // 2)
        return begins


def _ravel(at: Sequence[tuple[int, int]]) -> int:
    """at: (index, size) by axis."""
    flat = 0
    for index, size in at:
        flat = flat * size + index
    return flat


class RowSample:
    """A bounded sample of the rows that one product reads, for errors of its output.

    Even rows come from all announced runs alike, their places are seeded. Of every run the row
    around the largest magnitude is looked at, too, and the PEAK_ROWS largest of these are kept:
    what a range clips is rare, and an even sample would not hold it. `rows()` gives each a weight,
    so that the weighted sum over the sample estimates the sum over all rows.
    """

    def __init__(self, form: Form, runs: int, seed: int = 0) -> None:
        self._form = form
        self._wanted = min(MAX_ROWS, max(MIN_ROWS, MAX_ELEMENTS // max(1, form.groups * form.K)))
        self._rng = np.random.default_rng(seed)
        self._seen = 0
        self._even: list[np.ndarray] = []
        self._peaks: list[tuple[float, int, np.ndarray]] = []
        self.total = 0
        """Rows seen."""
        self.expect(runs)

    def expect(self, runs: int) -> None:
        """Announce more runs: what is wanting comes evenly from these."""
        self._runs, self._run = max(1, runs), 0
        self._missing = max(0, self._wanted - sum(len(part) for part in self._even))

    def observe(self, x: np.ndarray) -> None:
        start, self._run = self._run, self._run + 1
        self._seen += 1
        count = self._form.count(x.shape) if x.size else 0
        if not count:
            return
        self.total += count
        share = self._missing * self._run // self._runs - self._missing * start // self._runs
        if share > 0:
            picks = self._rng.choice(count, min(share, count), replace=False)
            self._even.append(self._form.take(x, np.sort(picks)))
        flat = x.reshape(-1)
        at = max((int(flat.argmax()), int(flat.argmin())), key=lambda i: abs(float(flat[i])))
        peak = abs(float(flat[at]))
        if len(self._peaks) == PEAK_ROWS and not peak > self._peaks[-1][0]:
            return
        row = self._form.take(x, np.array([self._form.row_at(x.shape, at)]))
        self._peaks.append((peak, self._seen, row))
        self._peaks.sort(key=lambda entry: (-entry[0], entry[1]))
        del self._peaks[PEAK_ROWS:]

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows `[n, G, K]`, the number of rows that each stands for `[n]`)."""
        even = [part for part in self._even if len(part)]
        count = sum(len(part) for part in even)
        peaks = [row for _, _, row in self._peaks]
        if not count + len(peaks):
            return np.zeros((0, self._form.groups, self._form.K), np.float32), np.zeros(0)
        rest = max(self.total - len(peaks), 0) / max(1, count)
        weights = np.concatenate([np.full(count, rest), np.ones(len(peaks))])
        return np.concatenate([*even, *peaks]), weights


class Moments:
    """The second moment of the rows that one product reads, over a seeded part of at most `per_run`
    rows of every run: the whole matrix XᵀX / n `[G, K, K]`, or its diagonal `[G, K]`."""

    def __init__(self, form: Form, *, whole: bool, per_run: int = 256, seed: int = 0) -> None:
        self.form, self._whole, self._per_run = form, whole, per_run
        self._rng = np.random.default_rng(seed)
        shape = (form.groups, form.K)
        self._second = np.zeros((*shape, form.K) if whole else shape, np.float32)
        self.count = 0

    def observe(self, x: np.ndarray) -> None:
        count = self.form.count(x.shape) if x.size else 0
        if not count:
            return
        picks = np.arange(count)
        if count > self._per_run:
            picks = np.sort(self._rng.choice(count, self._per_run, replace=False))
        rows = self.form.take(x, picks).transpose(1, 0, 2)
        self.count += len(picks)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by its range
            if self._whole:
                self._second += rows.transpose(0, 2, 1) @ rows
            else:
                self._second += np.einsum("gnk,gnk->gk", rows, rows)

    @property
    def second(self) -> np.ndarray:
        return self._second / max(1, self.count)
