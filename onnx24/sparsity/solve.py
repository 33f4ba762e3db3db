"""One layer's 2:4 problem: which two of each four stay, and with which values.

Everything is stated for a matrix of weights `W [R, K]` (rows are outputs) and the second moments
of the inputs. Columns lie so that each four consecutive ones are one group. A problem is a target
`T [R, K]` and a metric `A [K, K]`, symmetric and positive definite; sought is the 2:4 matrix Q
that minimises tr((Q − T) A (Q − T)ᵀ), the error of the layer's outputs. Rows do not depend on each
other.

All products are cut into fixed blocks of rows, so that the number of threads changes no bit.
*Source:* the formulas are those of SparseGPT (2301.00774), Wanda (2306.11695), RIA (2402.14810)
and ALPS (2406.07831); each function names its own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx24.sparsity.masks import mask_24

__all__ = [
    "Map",
    "Method",
    "Moments",
    "Problem",
    "admm",
    "make_problem",
    "obs",
    "refit",
    "ria_scores",
    "solve",
    "sweep",
    "wanda_scores",
]

DAMPING = 0.01
"""Added to the diagonal of the normalised metric; see `make_problem`."""
DAMPING_FEW_ROWS = 0.1
"""The same where there are fewer rows than columns."""
PRIOR_ROWS = 16.0
"""So many rows of the median input's size are taken to have been seen of every input, as the dense
model has them: a pixel that is lit in one sample of 500 says little about the others."""
TOWARDS_DENSE = 0.03
"""λ: how strongly the asymmetric target is drawn to the dense weights."""
STEPS, STEPS_PER_RHO = 20, 10
RHOS = {1: (0.3, 0.3), 2: (0.2, 0.5)}
"""Number of penalties → the first and the last of them; RHO_RANGE with more. An inverse costs K³
whatever R is, a step 2RK²: few penalties and more steps at each get as far in a third of the time
that thirty steps at ten penalties take (benchmarks/schedules.py)."""
RHO_RANGE = (0.1, 2.0)
REFIT_STEPS = 10
OBS_BLOCK = 128
ROWS = 256
"""Rows of a product that are computed at a time."""

Map = Callable[[Callable[[slice], None], list[slice]], None]
"""Runs a function on every slice, in any order or at once."""


class Method(str, enum.Enum):
    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    RIA = "ria"
    OBS = "obs"
    ADMM = "admm"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is known about the inputs of a layer.

    H: [K, K], second moments of the inputs that the layer sees in the compressed model, U;
    C: [K, K], of the dense model's inputs V with U, E[V Uᵀ]. Both are about the means where
    `centred`, else about zero. mean_u, mean_v: [K]. rows: how many inputs were seen.
    """

    rows: int
    H: np.ndarray
    C: np.ndarray
    mean_u: np.ndarray
    mean_v: np.ndarray
    centred: bool


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`T [R, K]` and `A [K, K]` in normalised columns: a column k of them stands for
    `scale[k]` times the weight's, up to a common factor. `dead [K]`: inputs that never vary, whose
    weights say nothing; they are not changed, and weighed as if of the prior's size."""

    T: np.ndarray
    A: np.ndarray
    scale: np.ndarray
    dead: np.ndarray
    W: np.ndarray

    def damped(self, damping: float) -> Problem:
        """The same with another damping."""
        A = self.A.copy()
        np.fill_diagonal(A, np.float32(1 + damping))
        return replace(self, A=A)

    def of_rows(self, rows: slice | np.ndarray) -> Problem:
        """The problem of some of the outputs."""
        return replace(self, T=self.T[rows], W=self.W[rows])

    def denormalised(self, Q: np.ndarray) -> np.ndarray:
        """The weights of a normalised solution, float32 [R, K]; exact zeros stay zeros."""
        out = np.asarray(Q / self.scale, np.float32)
        if self.dead.any():
            out[:, self.dead] = np.where(Q[:, self.dead] != 0, self.W[:, self.dead], 0)
        return out


def make_problem(
    W: np.ndarray,
    moments: Moments,
    *,
    asymmetric: bool,
    extra: np.ndarray | None = None,
    damping: float | None = None,
    towards_dense: float = TOWARDS_DENSE,
) -> Problem:
    """The target and the metric of one layer, in columns normalised to unit second moment.

    asymmetric: the target reproduces the dense layer's outputs for the dense inputs from the
    compressed inputs, T = (W·C + extra + λW)(H + λI)⁻¹; otherwise T = W. Damping comes after the
    normalisation, because a share of the mean diagonal is set by outlier channels alone.
    extra: [R, K], second moments with the inputs of what else the output should make up for.
    """
    W = np.asarray(W, np.float32)
    diagonal = np.diagonal(moments.H).astype(np.float64)
    floor = max(float(diagonal.max(initial=0.0)) * 1e-12, np.finfo(np.float64).tiny)
    dead = diagonal <= floor
    prior = PRIOR_ROWS / moments.rows * float(np.median(diagonal[~dead])) if not dead.all() else 0.0
    # What was never seen counts as if it had the prior's size only: a dead input is kept beside a
    # live one where its weight is so much larger.
    seconds = np.where(dead, prior, diagonal + prior) if prior else np.ones_like(diagonal)
    scale = np.sqrt(seconds)
    H = (moments.H / np.outer(scale, scale)).astype(np.float32)
    H[dead, :] = 0
    H[:, dead] = 0
    np.fill_diagonal(H, 1.0)
    # The problem is homogeneous: a common power of two changes no bit but where float32 ends.
    unit = np.exp2(np.round(np.log2(scale.max(initial=1e-300))))
    Wn = (W * (scale / unit)).astype(np.float32)
    if damping is None:
        damping = DAMPING if moments.rows >= len(scale) else DAMPING_FEW_ROWS
    T = Wn
    if asymmetric:
        B = Wn @ (moments.C / np.outer(scale, scale)).astype(np.float32)
        B += Wn * (prior / seconds).astype(np.float32)
        if extra is not None:
            B += (extra / (scale * unit)).astype(np.float32)
        B[:, dead] = 0
        T = (B + np.float32(towards_dense) * Wn) @ _inverse(H, towards_dense)
        T[:, dead] = Wn[:, dead]
    A = H
    A[np.diag_indices_from(A)] += np.float32(damping)
    return Problem(T=np.ascontiguousarray(T, np.float32), A=A, scale=scale / unit, dead=dead, W=W)


def solve(
    problem: Problem,
    method: Method,
    *,
    steps: int = STEPS,
    sweeps: int = 0,
    refit_steps: int = REFIT_STEPS,
    each: Map | None = None,
) -> np.ndarray:
    """The 2:4 weights, float32 [R, K].

    steps: of ADMM. sweeps: of exact choices among the six pairs of each four. refit_steps:
    conjugate gradients on the support; 0 leaves the method's own values. each: how blocks of rows
    are run; one after the other where None.
    """
    if problem.dead.all():
        return np.asarray(problem.W * mask_24(problem.W, axis=1), np.float32)
    product = _Product(each)
    Wn = (problem.W * problem.scale).astype(np.float32)
    if method is Method.ADMM:
        values = admm(problem.T, problem.A, steps, product)
    elif method is Method.OBS:
        values = obs(problem.T, problem.A)
    else:
        scores = {
            Method.MAGNITUDE: lambda: np.abs(problem.W),
            Method.WANDA: lambda: np.abs(Wn),
            Method.RIA: lambda: ria_scores(problem.W, problem.scale),
        }[method]()
        values = problem.T * mask_24(scores, axis=1)
    for _ in range(sweeps):
        values = sweep(problem.T, problem.A, values, product)
    if refit_steps:
        mask = (values != 0) & mask_24(values, axis=1)
        values = refit(problem.T, problem.A, mask, refit_steps, product, start=values)
    return problem.denormalised(values)


def wanda_scores(W: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """|w| times the norm of its input, [R, K]. *Source:* 2306.11695, equation 1."""
    return np.abs(W) * norms


def ria_scores(W: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """The relative importance of a weight among those of its row and of its column, times the
    square root of its input's norm, [R, K]. *Source:* 2402.14810, equation 4."""
    size = np.abs(W)
    rows = np.maximum(size.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    columns = np.maximum(size.sum(0, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray((size / columns + size / rows) * np.sqrt(norms), np.float32)


def obs(T: np.ndarray, A: np.ndarray, block: int = OBS_BLOCK) -> np.ndarray:
    """SparseGPT: columns from left to right; in each four the two with the least w²/U_jj² go, and
    what they contributed is spread over the columns to the right, U the upper Cholesky factor of
    A⁻¹. The updates are kept.

    *Source:* 2301.00774, algorithm 1.
    """
    W = np.array(T, np.float32)
    U = _upper_factor(_inverse(A, 0.0))
    K = W.shape[1]
    for first in range(0, K, block):
        last = min(first + block, K)
        errors = np.zeros((W.shape[0], last - first), np.float32)
        keep = np.zeros((0, 0))
        for j in range(first, last):
            if j % 4 == 0:
                pivots = np.diagonal(U)[j : j + 4]
                keep = mask_24(np.ascontiguousarray(W[:, j : j + 4] / pivots), axis=1)
            column = W[:, j]
            kept = np.where(keep[:, j % 4], column, 0)
            error = (column - kept) / U[j, j]
            W[:, j] = kept
            W[:, j + 1 : last] -= np.outer(error, U[j, j + 1 : last])
            errors[:, j - first] = error
        W[:, last:] -= errors @ U[first:last, last:]
    return W


def admm(T: np.ndarray, A: np.ndarray, steps: int, product: _Product) -> np.ndarray:
    """The 2:4 matrix that the alternating direction method of multipliers settles on, [R, K].

    The penalty ρ grows geometrically, with ten steps at each value. *Source:* 2406.07831,
    section 3, with this schedule.
    """
    stages = max(1, round(steps / STEPS_PER_RHO))
    damping = np.diagonal(A).mean() - 1  # a stiffer metric wants a stiffer coupling
    rhos = np.geomspace(*RHOS.get(stages, RHO_RANGE), stages, dtype=np.float32) + damping
    TA = product(T, A)
    D = T * mask_24(T, axis=1)
    E = np.zeros_like(T)
    for i, rho in enumerate(rhos):
        if i % 2 == 0:
            pair = product.each(lambda at: _inverse(A, float(rhos[at])), range(i, stages)[:2])
        if i:
            E *= rhos[i - 1] / rho
        for _ in range(steps * i // stages, steps * (i + 1) // stages):
            D -= E
            D *= rho
            D += TA
            Z = product(D, pair[i % 2])
            Z += E
            D = Z * mask_24(Z, axis=1)
            E = Z - D
    return D


def sweep(T: np.ndarray, A: np.ndarray, Q: np.ndarray, product: _Product) -> np.ndarray:
    """From left to right, the best pair of each four and its values while all else stays, [R, K].

    With g the gradient that a group sees when it is empty, the pair S gives g_S (A_SS)⁻¹ g_S; the
    largest is taken. Columns outside a block of OBS_BLOCK learn of it at once, as one product.
    """
    R, K = Q.shape
    out = np.empty((K, R), np.float32)
    groups = A.reshape(K // 4, 4, K // 4, 4)[np.arange(K // 4), :, np.arange(K // 4), :]
    first, second = np.triu_indices(4, 1)
    a, b = groups[:, first, first], groups[:, second, second]
    c = groups[:, first, second]
    inverse = np.stack([b, -c, a], 1)[..., None] / (a * b - c * c)[:, None, :, None]

    def some(rows: slice) -> None:
        q = np.ascontiguousarray(Q[rows].T)
        gradient = np.ascontiguousarray(G[rows].T)
        each = np.arange(q.shape[1])
        for start in range(0, K, OBS_BLOCK):
            stop = min(start + OBS_BLOCK, K)
            moved = np.empty((stop - start, len(each)), np.float32)
            for k in range(start, stop, 4):
                empty = groups[k // 4] @ q[k : k + 4] - gradient[k : k + 4]
                u, v = empty[first], empty[second]
                xx, xy, yy = inverse[k // 4]
                x, y = xx * u + xy * v, xy * u + yy * v
                best = np.argmax(x * u + y * v, axis=0)
                new = np.zeros((4, len(each)), np.float32)
                new[first[best], each] = x[best, each]
                new[second[best], each] = y[best, each]
                step = new - q[k : k + 4]
                q[k : k + 4], moved[k - start : k - start + 4] = new, step
                gradient[k + 4 : stop] += A[k + 4 : stop, k : k + 4] @ step
            gradient[stop:] += A[stop:, start:stop] @ moved
        out[:, rows] = q

    G = product(Q - T, A)
    product.each(some, list(_blocks(R)))
    return np.ascontiguousarray(out.T)


def refit(
    T: np.ndarray,
    A: np.ndarray,
    mask: np.ndarray,
    steps: int,
    product: _Product,
    *,
    start: np.ndarray,
) -> np.ndarray:
    """The values on the support that minimise the error, by conjugate gradients with the diagonal
    as preconditioner, all rows at once; zeros stay zeros. float32 [R, K].

    Solved is (Q A)_S = (T A)_S for each row's support S. Steps that would not lower a row's error
    any more are not taken for it.
    """
    support = mask.astype(np.float32)
    inverse_diagonal = (1 / np.diagonal(A)).astype(np.float32)
    Q = np.array(start, np.float32)
    r = product(T - Q, A)
    r *= support
    z = r * inverse_diagonal
    p = z.copy()
    rz = np.einsum("ij,ij->i", r, z, dtype=np.float64)
    first = rz.copy()
    for _ in range(steps):
        Ap = product(p, A)
        Ap *= support
        curvature = np.einsum("ij,ij->i", p, Ap, dtype=np.float64)
        going = (rz > first * 1e-12) & (curvature > 0)
        if not going.any():
            break
        alpha = np.where(going, rz / np.where(going, curvature, 1), 0).astype(np.float32)
        Q += alpha[:, None] * p
        r -= alpha[:, None] * Ap
        z = r * inverse_diagonal
        new = np.einsum("ij,ij->i", r, z, dtype=np.float64)
        beta = np.where(going, new / np.where(rz > 0, rz, 1), 0).astype(np.float32)
        p *= beta[:, None]
        p += z
        rz = new
    return Q * support


def _inverse(A: np.ndarray, shift: float) -> np.ndarray:
    """(A + shift·I)⁻¹, float32 [K, K]; by Cholesky, in float64 where float32 does not suffice."""
    from scipy.linalg import lapack

    for dtype, factor, invert in (
        (np.float32, lapack.spotrf, lapack.spotri),
        (np.float64, lapack.dpotrf, lapack.dpotri),
    ):
        shifted = np.array(A, dtype, order="F")
        shifted[np.diag_indices_from(shifted)] += dtype(shift)
        upper, info = factor(shifted, lower=0, clean=1, overwrite_a=1)
        if not info:
            inverse, info = invert(upper, lower=0, overwrite_c=1)
        if not info:
            full = np.triu(inverse)
            full += np.triu(inverse, 1).T
            return np.ascontiguousarray(full, np.float32)
    raise np.linalg.LinAlgError(f"[{len(A)}, {len(A)}] is not positive definite")


def _upper_factor(A: np.ndarray) -> np.ndarray:
    """U of A = UᵀU, float32 [K, K]; a diagonal that rounding made indefinite is raised a little."""
    from scipy.linalg import lapack

    shift = 0.0
    while shift < 1:
        shifted = np.array(A, np.float64, order="F")
        shifted[np.diag_indices_from(shifted)] *= 1 + shift
        upper, info = lapack.dpotrf(shifted, lower=0, clean=1, overwrite_a=1)
        if not info:
            return np.ascontiguousarray(upper, np.float32)
        shift = max(10 * shift, 1e-7)
    raise np.linalg.LinAlgError(f"[{len(A)}, {len(A)}] is not positive definite")


class _Product:
    """X [R, K] times S [K, K], by fixed blocks of rows."""

    def __init__(self, each: Map | None) -> None:
        self._map = each or _one_by_one

    def each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Its results; in any order or at once."""
        found: list[Any] = [None] * len(items)

        def one(at: slice) -> None:
            found[at.start] = function(items[at.start])

        self._map(one, [slice(i, i + 1) for i in range(len(items))])
        return found

    def __call__(self, X: np.ndarray, S: np.ndarray) -> np.ndarray:
        out = np.empty((X.shape[0], S.shape[1]), np.float32)

        def block(rows: slice) -> None:
            np.matmul(X[rows], S, out=out[rows])

        self._map(block, list(_blocks(len(X))))
        return out


def _blocks(rows: int) -> Iterator[slice]:
    for first in range(0, rows, ROWS):
        yield slice(first, min(first + ROWS, rows))


def _one_by_one(function: Callable[[slice], None], slices: list[slice]) -> None:
    for piece in slices:
        function(piece)
