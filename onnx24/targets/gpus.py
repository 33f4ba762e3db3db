"""Peak rates of single GPUs, as data with their sources; for estimates only."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

from onnx24.errors import InputError
from onnx24.targets import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """fp16_tflops, int8_tops: dense tensor-core peaks; bandwidth_gbs: of the memory.
    *Source:* `source`, looked at on `checked`."""

    name: str
    sm: int
    fp16_tflops: float
    int8_tops: float
    bandwidth_gbs: float
    source: str
    checked: date

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "checked": self.checked.isoformat()}


@cache
def _rows() -> tuple[Gpu, ...]:
    text = files(__package__).joinpath("gpus.toml").read_text("utf-8")
    return tuple(Gpu(name=name, **row) for name, row in tomllib.loads(text).items())


def gpus() -> list[Gpu]:
    """Every GPU with known rates, by compute capability."""
    return list(_rows())


def gpu_of(target: Target, name: str | None = None) -> Gpu:
    """The GPU of that name, or the first of the target's compute capability.

    Raises: InputError O24-025 for an unknown name, or one of another compute capability.
    """
    fitting = [gpu for gpu in _rows() if gpu.sm == target.sm]
    if name is None:
        return fitting[0]
    found = next((gpu for gpu in _rows() if gpu.name.lower() == name.lower()), None)
    if found is None:
        near = difflib.get_close_matches(name, [gpu.name for gpu in _rows()], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(gpu.name for gpu in _rows())
        raise InputError.of(
            "O24-025", f"there is no GPU {name!r}", hint=f"{hint}known rates: {known}"
        )
    if found.sm != target.sm:
        raise InputError.of(
            "O24-025",
            f"{found.name} has compute capability {found.sm // 10}.{found.sm % 10}, the target "
            f"{target.name} {target.compute_capability}",
            hint=f"with this target: {', '.join(gpu.name for gpu in fitting)}",
        )
    return found
