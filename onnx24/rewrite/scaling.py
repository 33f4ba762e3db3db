"""Channels of an activation made smaller, and the weights behind it larger."""

from __future__ import annotations

import numpy as np

from onnx24.analysis.scaling import Link
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.model import Model

__all__ = ["apply_scales"]


def apply_scales(model: Model, found: WeightUses, link: Link, scales: np.ndarray) -> None:
    """Divide channel j of the activation by scales[j] where it is made, and multiply input channel
    j of every reader's weight by it.

    scales: [channels], powers of two, which change no bit of what the model computes as long as
    activations stay in the range of normal numbers. Raises: ValueError, before anything changed,
    where a weight would not.
    """
    above = [(part, part.scaled(found, model, 1.0 / scales)) for part in link.above]
    below = [(part, part.scaled(found, model, scales)) for part in link.below]
    for part, values in (*above, *below):
        found.replace(model, part.key, values)
