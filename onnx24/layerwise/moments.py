"""Second moments of the rows that reach a layer, in the dense and in the compressed model.

Products are computed in float32 on chunks of rows (in float64 where the values are so large or so
small that float32 could not hold them) and summed in float64, about the mean of the first chunk, so
that neither many rows nor a large mean costs accuracy. Work is cut by columns into fixed blocks:
the number of threads changes no bit.
"""

from __future__ import annotations

import numpy as np

from onnx24.sparsity.solve import Map, Moments

__all__ = ["MomentSums"]

CHUNK_ROWS = 4096
COLUMNS = 512
FLOAT32_SAFE = (1e-12, 1e15)
"""Largest entries whose products float32 holds."""


class MomentSums:
    """Sums over rows U of the compressed and V of the dense model, each [n, K], and, where the
    layer has a second branch, S [n, R].

    each: runs a function on every block of columns, in any order or at once.
    """

    def __init__(self, K: int, each: Map, R: int = 0) -> None:
        self.rows = 0
        self._each = each
        self._H = np.zeros((K, K))
        self._C: np.ndarray | None = None
        self._G = np.zeros((R, K)) if R else None
        self._sum_u, self._sum_v, self._sum_s = np.zeros(K), np.zeros(K), np.zeros(R)
        self._shift_u = self._shift_v = np.zeros(0, np.float32)
        self._chunk: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        self._waiting = 0
        self._blocks = [slice(i, min(i + COLUMNS, K)) for i in range(0, K, COLUMNS)]

    def add(self, U: np.ndarray, V: np.ndarray, S: np.ndarray | None = None) -> None:
        """`V is U` where the two models agree."""
        if not len(U):
            return
        self._chunk.append((U, V, S))
        self._waiting += len(U)
        if self._waiting >= CHUNK_ROWS:
            self.flush()

    @property
    def seen(self) -> int:
        """Rows so far, those that wait included."""
        return self.rows + self._waiting

    def flush(self) -> None:
        """Add what waits to the sums."""
        if not self._chunk:
            return
        same = all(v is u for u, v, _ in self._chunk)
        U = np.concatenate([u for u, _, _ in self._chunk])
        V = U if same else np.concatenate([v for _, v, _ in self._chunk])
        S = None
        if self._G is not None:
            S = np.concatenate([s for _, _, s in self._chunk if s is not None])
        self._chunk, self._waiting = [], 0
        if not self.rows:
            self._shift_u = U.mean(0, dtype=np.float64).astype(np.float32)
            self._shift_v = V.mean(0, dtype=np.float64).astype(np.float32)
        self.rows += len(U)
        same = same and self._C is None and np.array_equal(self._shift_u, self._shift_v)
        U = U - self._shift_u
        V = U if same else V - self._shift_v
        self._sum_u += U.sum(0, dtype=np.float64)
        self._sum_v += V.sum(0, dtype=np.float64)
        if _wide(U) or _wide(V) or (S is not None and _wide(S)):
            V = U.astype(np.float64) if V is U else V.astype(np.float64)
            U = V if same else U.astype(np.float64)
        if not same and self._C is None:
            # Until now the two sides agreed, so their moments did.
            self._each(self._mirror, self._blocks)
            self._C = self._H.copy()

        def block(columns: slice) -> None:
            part = U[:, columns]
            # The lower triangle suffices: H is symmetric.
            self._H[columns.start :, columns] += U[:, columns.start :].T @ part
            if self._C is not None:
                self._C[:, columns] += V.T @ part
            if self._G is not None and S is not None:
                self._G[:, columns] += S.T @ part

        self._each(block, self._blocks)
        if S is not None:
            self._sum_s += S.sum(0, dtype=np.float64)

    def moments(self, *, centred: bool) -> Moments:
        """centred: about the means, otherwise about zero. Raises: ValueError without rows."""
        self.flush()
        if not self.rows:
            raise ValueError("no rows were seen")
        n = self.rows
        self._each(self._mirror, self._blocks)
        mean_u, mean_v = self._sum_u / n, self._sum_v / n
        H = self._H / n
        C = H.copy() if self._C is None else self._C / n
        H -= np.outer(mean_u, mean_u)
        C -= np.outer(mean_v, mean_u)
        mean_u, mean_v = mean_u + self._shift_u, mean_v + self._shift_v
        if not centred:
            H += np.outer(mean_u, mean_u)
            C += np.outer(mean_v, mean_u)
        return Moments(rows=n, H=H, C=C, mean_u=mean_u, mean_v=mean_v, centred=centred)

    def extra(self, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
        """Of S with U: [R, K] about the same point as `moments`, and the mean of S [R]."""
        assert self._G is not None
        self.flush()
        n = self.rows
        mean_s, mean_u = self._sum_s / n, self._sum_u / n
        G = self._G / n - np.outer(mean_s, mean_u)
        if not centred:
            G += np.outer(mean_s, mean_u + self._shift_u)
        return G, mean_s

    def _mirror(self, columns: slice) -> None:
        stop = columns.stop
        self._H[columns, stop:] = self._H[stop:, columns].T


def _wide(rows: np.ndarray) -> bool:
    """Whether products of these values leave float32's range."""
    peak = float(np.abs(rows).max(initial=0.0))
    return peak > 0 and not FLOAT32_SAFE[0] <= peak <= FLOAT32_SAFE[1]
