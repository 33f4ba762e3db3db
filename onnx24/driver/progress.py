"""How far a job is, for whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """One step forward. label: what goes on. done: how much of it. total: None where the work
    cannot be counted; then `done` is 0 at its begin and 1 at its end."""

    label: str
    done: int
    total: int | None


@runtime_checkable
class Reporter(Protocol):
    """What shows progress itself, as the command line's console does."""

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]: ...

    def waiting(self, label: str) -> AbstractContextManager[None]: ...


ProgressLike = Callable[[Progress], Any] | Reporter | None
"""A function that is called with each step, in the thread that does the work; what it raises ends
the job."""


class Calls:
    """A reporter that calls a function, or nobody."""

    def __init__(self, callback: Callable[[Progress], Any] | None) -> None:
        self._tell = callback or (lambda step: None)

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        if total is None and isinstance(items, Sized):
            total = len(items)
        done = 0
        for done, item in enumerate(items):
            self._tell(Progress(label, done, total))
            yield item
            done += 1
        self._tell(Progress(label, done, done if total is None else total))

    @contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        self._tell(Progress(label, 0, None))
        yield
        self._tell(Progress(label, 1, None))


def reporter(progress: ProgressLike) -> Reporter:
    """The reporter that a job uses for what it was given."""
    if isinstance(progress, Reporter):
        return progress
    return Calls(progress)
