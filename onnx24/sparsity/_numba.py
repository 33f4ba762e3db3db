"""The compiled engine of `masks`: the same bits as numpy's, faster. Needs numba, which is the
extra `fast`; it is imported and compiled on first use.

All kernels copy the values they work on into scratch first, so that writing in place is no
different from writing elsewhere (LLVM vectorizes only where input and output can't overlap).
Indices are those of slices that start at 0, for the same reason.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np

_BLOCK = 8192
"""Elements worked on at a time; they fit the first-level cache twice."""


@functools.cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def prune(values: np.ndarray, out: np.ndarray, stride: int, magnitude: int) -> None:
    """Write the flat `values` with two of four zeroed into `out`; see masks.prune_24_by_stride.

    values, out: unsigned bits, [blocks * 4 * stride]; they may be the same array.
    magnitude: the bits that are compared.
    """
    kernels = _kernels()
    signed = values.view(f"i{values.itemsize}")
    target = out.view(signed.dtype)
    scalar = signed.dtype.type
    bits, zero = scalar(magnitude), scalar(0)
    if stride == 1:
        kernels["quads"](signed, target, bits, zero, np.empty(_BLOCK, signed.dtype))
    elif 4 * stride <= _BLOCK:
        size = _BLOCK // (4 * stride) * 4 * stride
        position = (np.arange(size) // stride % 4).astype(signed.dtype)
        t = np.zeros(size + 6 * stride, signed.dtype)
        kernels["shifted"](
            signed, target, stride, bits, zero, position, t, np.empty(size, signed.dtype)
        )
    else:
        rows = [np.empty(_BLOCK // 4, signed.dtype) for _ in range(8)]
        kernels["planes"](signed, target, stride, bits, zero, _BLOCK // 4, *rows)


@functools.cache
def _kernels() -> dict[str, Any]:
    import numba

    # No `fastmath`, no `parallel`: integers only, and callers bring their own threads.
    jit = numba.njit(nogil=True, error_model="numpy")

    @jit
    def quads(x, out, bits, zero, scratch):
        block = scratch.size
        for start in range(0, x.size, block):
            n = min(block, x.size - start)
            target = out[start : start + n]
            scratch[:n] = x[start : start + n]
            for g in range(n // 4):
                i = 4 * g
                xa, xb, xc, xd = scratch[i], scratch[i + 1], scratch[i + 2], scratch[i + 3]
                a, b, c, d = xa & bits, xb & bits, xc & bits, xd & bits
                ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
                ba, ca, da, cb, db, dc = a < b, a < c, a < d, b < c, b < d, c < d
                target[i] = xa if (ab & (ac | ad)) | (ac & ad) else zero
                target[i + 1] = xb if (ba & (bc | bd)) | (bc & bd) else zero
                target[i + 2] = xc if (ca & (cb | cd)) | (cb & cd) else zero
                target[i + 3] = xd if (da & (db | dc)) | (db & dc) else zero

    @jit
    def shifted(x, out, stride, bits, zero, position, t, scratch):
        # Every value meets three opponents of its group: later ones, which it beats on a tie, and
        # earlier ones, which it does not.
        block, pad = position.size, 3 * stride
        for start in range(0, x.size, block):
            n = min(block, x.size - start)
            target = out[start : start + n]
            scratch[:n] = x[start : start + n]
            here = t[pad : pad + n]
            next1 = t[pad + stride : pad + stride + n]
            next2 = t[pad + 2 * stride : pad + 2 * stride + n]
            next3 = t[pad + 3 * stride : pad + 3 * stride + n]
            last1 = t[pad - stride : pad - stride + n]
            last2 = t[pad - 2 * stride : pad - 2 * stride + n]
            last3 = t[0:n]
            for i in range(n):
                here[i] = scratch[i] & bits
            for i in range(n):
                v, p = here[i], position[i]
                r1 = (v >= next1[i]) if p < 3 else (v > last3[i])
                r2 = (v >= next2[i]) if p < 2 else (v > last2[i])
                r3 = (v >= next3[i]) if p < 1 else (v > last1[i])
                target[i] = scratch[i] if (r1 & (r2 | r3)) | (r2 & r3) else zero

    @jit
    def row(x, out, t, u1, u2, u3, zero, ties):
        # ties: how many of the three opponents stand later, and so lose a tie.
        n = x.size
        for i in range(n):
            v = t[i]
            r1 = (v >= u1[i]) if ties > 0 else (v > u1[i])
            r2 = (v >= u2[i]) if ties > 1 else (v > u2[i])
            r3 = (v >= u3[i]) if ties > 2 else (v > u3[i])
            out[i] = x[i] if (r1 & (r2 | r3)) | (r2 & r3) else zero

    @jit
    def planes(x, out, stride, bits, zero, width, xa, xb, xc, xd, ta, tb, tc, td):
        for g in range(x.size // (4 * stride)):
            for column in range(0, stride, width):
                n = min(width, stride - column)
                i = g * 4 * stride + column
                xa[:n] = x[i : i + n]
                xb[:n] = x[i + stride : i + stride + n]
                xc[:n] = x[i + 2 * stride : i + 2 * stride + n]
                xd[:n] = x[i + 3 * stride : i + 3 * stride + n]
                for j in range(n):
                    ta[j] = xa[j] & bits
                    tb[j] = xb[j] & bits
                    tc[j] = xc[j] & bits
                    td[j] = xd[j] & bits
                row(xa[:n], out[i : i + n], ta, tb, tc, td, zero, 3)
                i += stride
                row(xb[:n], out[i : i + n], tb, tc, td, ta, zero, 2)
                i += stride
                row(xc[:n], out[i : i + n], tc, td, ta, tb, zero, 1)
                i += stride
                row(xd[:n], out[i : i + n], td, ta, tb, tc, zero, 0)

    return {"quads": quads, "shifted": shifted, "planes": planes}
