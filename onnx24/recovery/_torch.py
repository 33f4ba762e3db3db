"""Torch, or one sentence that says how to get it."""

from __future__ import annotations

from onnx24.errors import BackendError

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as err:
    raise BackendError.of(
        "O24-155", "training needs torch, which is not installed: pip install 'onnx24[train]'"
    ) from err

__all__ = ["functional", "torch"]
