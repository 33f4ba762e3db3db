"""Which of a run's processes this is, by what torchrun says; without torch."""

from __future__ import annotations

import os

__all__ = ["is_first", "launched"]

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """(rank, count) of the processes that a launcher started; (0, 1) unless all of its variables
    are there, as others set some of them too."""
    if not all(name in os.environ for name in _VARIABLES):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return launched()[0] == 0
