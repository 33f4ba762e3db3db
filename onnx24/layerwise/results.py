"""What solving one layer gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["LayerResult"]


@dataclass(kw_only=True)
class LayerResult:
    """stored: the solved weight as it is stored. bias: the moved bias as it is stored, None where
    it stays. seconds: spent on the layer, 0 where it was read back. magnitude:
    whether the layer fell back to it. facts: for the report; errors are
    ‖Y − Ŷ‖ / ‖Y‖ on held-back rows, the dense layer's outputs against the compressed layer's."""

    stored: np.ndarray
    bias: np.ndarray | None
    magnitude: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
