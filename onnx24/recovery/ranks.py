"""Which of a run's processes this is, without torch."""

from __future__ import annotations

import os

__all__ = ["is_first"]


def is_first() -> bool:
    """Whether this process writes files and speaks: rank 0 of those that torchrun started, or the
    only one."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
