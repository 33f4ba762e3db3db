"""BLAS on one thread, for as long as anybody in this process asks for it.

threadpoolctl's limits are the process's: of two threads that set and restore them in turn, one
would get back all threads while it still computes, and its sums round otherwise. From 3.8 on
threadpoolctl listens to one thread at a time and ignores the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl

__all__ = ["one_thread"]

_lock = threading.Lock()
_users = 0
_limits: Any = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold numpy's and scipy's BLAS to one thread; the last who leaves gives the others back."""
    global _users, _limits
    import scipy.linalg  # noqa: F401  (limited only where it is loaded already)

    with _lock:
        if not _users:
            _take_control()
            _limits = threadpoolctl.threadpool_limits(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _take_control()
                _limits.restore_original_limits()
                _take_control()


def _take_control() -> None:
    """Let threadpoolctl listen to this thread, and behind the limits to any."""
    openblas = threadpoolctl.OpenBLASController
    if hasattr(openblas, "clear_controlling_thread"):
        openblas.clear_controlling_thread(force=True)
