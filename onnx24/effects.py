"""What a change touches; declared by passes, checked by the manager, keyed on by caches."""

from __future__ import annotations

import enum


class Effects(enum.Flag):
    """STRUCTURE: nodes, names, shapes, dtypes, metadata, initializers that come or go.
    WEIGHTS: the values of initializers that exist before and after."""

    NONE = 0
    WEIGHTS = enum.auto()
    STRUCTURE = enum.auto()
