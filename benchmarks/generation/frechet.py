"""How far two sets of pictures are apart, by the features of a net."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet(a: NDArray, b: NDArray) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2(Σa·Σb)^½) of features `[N, D]`. *Source:* arXiv 1706.08500."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr((Σa·Σb)^½) is the sum of the roots of the eigenvalues of the symmetric Σa^½·Σb·Σa^½.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * mixed)
