"""What a run may use. Nothing here changes its result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Executor", "Resources"]

Executor = str
"""Where layers are solved: "local", or a backend that joblib knows: "ray", "dask"."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What decides only the time.

    memory_bytes: half of it for the activations between layers, then for the dense outputs on
    held-back samples; what is more goes to files in `folder`, the system's temporary one where
    None. On top come the solved weights, what the threads' sessions hold, and of the layers that
    are being solved (for K inputs and R outputs) about 16 K² + 24 K R bytes, K² for each matrix of
    a batched weight. workers: threads; all that the process may use where None.
    """

    memory_bytes: int = 4 << 30
    workers: int | None = None
    executor: Executor = "local"
    folder: Path | None = None

    @property
    def threads(self) -> int:
        if self.workers:
            return self.workers
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
