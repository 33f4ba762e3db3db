"""One process, or several that train one model together (torchrun).

Each takes its share of every batch, gradients are averaged by DistributedDataParallel, and all
hold the same weights bit for bit. Only the first, rank 0, writes files and says anything.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from onnx24.errors import BackendError, InputError
from onnx24.recovery._torch import torch
from onnx24.recovery.ranks import launched

__all__ = ["Processes", "joined"]

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""
_LOST = ("connection", "peer", "gloo", "nccl", "timed out", "timeout", "socket", "broken pipe")
"""Words of the errors that torch raises where another process is gone."""


class Processes:
    """rank: of this process, from 0; count: of all."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """This process's part of a batch, in order; sizes differ by one at most."""
        return np.array_split(indices, self.count)[self.rank]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64."""
        if self.count == 1 or not values:
            return list(values)
        held = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(held)
        return [float(value) for value in held]

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, identity: str) -> None:
        """Raises: InputError O24-159 where the processes were given different things."""
        if self.count == 1:
            return
        every: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(every, identity)
        odd = [rank for rank, theirs in enumerate(every) if theirs != every[0]]
        if odd:
            raise InputError.of(
                "O24-159",
                f"rank {odd[0]} was given other models, samples or options than rank 0",
                hint="give all processes the same command line and files",
            )

    def wrapped(self, module: Any, *, skips: bool) -> Any:
        """The module, or DistributedDataParallel around it. skips: whether there are parameters
        that a call may leave unused."""
        if self.count == 1:
            return module
        return torch.nn.parallel.DistributedDataParallel(module, find_unused_parameters=skips)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Raises: BackendError O24-159 where another process ended."""
        try:
            yield
        except RuntimeError as err:
            text = " ".join(str(err).split())
            if self.count == 1 or not any(word in text.lower() for word in _LOST):
                raise
            raise BackendError.of(
                "O24-159",
                f"rank {self.rank} of {self.count} stopped, since another process of the run ended "
                f"or did not answer for {TIMEOUT.seconds // 60} minutes ({text[:160]})",
            ) from err


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run: those of the process group that is there, those that torchrun
    started, or this one alone. A group that is made here (gloo) ends here."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
        return
    rank, count = launched()
    if count == 1:
        yield Processes()
        return
    several = Processes(rank, count)
    with several.guarded():
        distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield several
    finally:
        distributed.destroy_process_group()
