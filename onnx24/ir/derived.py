"""Constants for the surgeon view whose values are computed when they are committed, one at a
time, so that replacing every weight of a large model takes the memory of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues


class _Promise(LazyValues):
    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[], np.ndarray]):
        self.shape, self.dtype, self.compute = shape, dtype, compute
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def load(self) -> np.ndarray:
        values = self.compute()
        if (values.shape, values.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"promised {self.dtype}{list(self.shape)}, "
                f"computed {values.dtype}{list(values.shape)}"
            )
        return values


class Derived(gs.Constant):
    """A new constant; `compute` gives its values from those of the model as it was before the
    edit (`model.weights`), and is called once per commit. Nothing is kept."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        compute: Callable[[], np.ndarray],
    ) -> None:
        super().__init__(name, _Promise(shape, np.dtype(dtype), compute))

    @property
    def values(self) -> np.ndarray:
        return self._values.load()
