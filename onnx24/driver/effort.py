"""What a run may use: memory, threads, an executor, a folder. Nothing here changes its result."""

from __future__ import annotations

import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onnx24.driver.usage import usage
from onnx24.layerwise.resources import Resources

DEFAULT_MEMORY = "4GiB"
EXECUTORS = ("local", "ray", "dask")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What the run may use. memory: bytes, or text such as "512MiB"."""

    memory: str | int = DEFAULT_MEMORY
    workers: int | None = None
    executor: str = "local"
    work_dir: str | os.PathLike[str] | None = None

    def resources(self) -> Resources:
        """Activations beyond `memory` go to `work_dir`, to the system's temporary folder without.

        Raises: InputError O24-043 for a size or an executor that is none.
        """
        if self.executor not in EXECUTORS:
            raise usage(f"--executor {self.executor}", "it is one of local, ray and dask")
        return Resources(
            memory_bytes=size_bytes(self.memory),
            workers=self.workers,
            executor=self.executor,
            folder=self.folder(),
        )

    def folder(self) -> Path | None:
        """It is made. Raises: InputError O24-043 where it is a file or can't be written to."""
        if self.work_dir is None:
            return None
        folder = Path(self.work_dir)
        if folder.exists() and not folder.is_dir():
            raise usage(f"--work-dir {self.work_dir} is a file", "name a folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except (OSError, ValueError) as err:  # ValueError: a NUL in the name
            reason = getattr(err, "strerror", None) or err
            raise usage(
                f"--work-dir {self.work_dir} can't be written to: {reason}",
                "name a folder in which files can be made",
            ) from err
        return folder


_SIZES = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3}
_SIZES |= {"MB": 10**6, "GB": 10**9}


def size_bytes(text: str | int) -> int:
    """`4GiB`, `512MiB`, `1000000`. Raises: InputError O24-043 for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = _SIZES.get(match[2].upper()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise usage(f"--memory {text}", "give a size such as 4GiB or 512MiB")
    return int(float(match[1]) * unit)


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "": 1.0}


def seconds_of(text: float | str, what: str) -> float:
    """`90`, `90s`, `5min`, `2h` [seconds]. Raises: InputError O24-043 for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|)\s*", str(text))
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise usage(f"{what} {text!r}", "seconds, or a number with s, min or h, such as 30min")
    return seconds
