"""Files that a command reads, which nothing that it writes may replace.

Files are the same where device and inode are: links are followed, and two names of one file (hard
links) are one file, although a new file under one name would leave the other as it was.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnx24.errors import InputError
from onnx24.ir import wire
from onnx24.ir.overlay import map_file

_READ_IN_FOLDERS = (".npz", ".npy", ".onnx", ".pb")
_SCRIPT = re.compile(r"(.+\.py):\w+", re.DOTALL)
_LARGEST_STUB_BYTES = 1 << 14

_Identity = tuple[int, int]


class Inputs:
    """What is read under these names: files, what patterns match, samples and models in folders,
    and the data files of each model. Names that stand for no file count for nothing."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if name != "-"]
        self._known: dict[_Identity, str] | None = None

    def add(self, name: str) -> None:
        self._names.append(name)
        self._known = None

    def name_of(self, path: str) -> str | None:
        """The input that is this file; None where there is none, or no such file. The inputs are
        looked at only then."""
        identity = _identity(path)
        if identity is None:
            return None
        if self._known is None:
            self._known = {}
            for name in self._names:
                for each in _files(name):
                    if (known := _identity(each)) is not None:
                        self._known.setdefault(known, each)
        return self._known.get(identity)


_INPUTS: ContextVar[Inputs | None] = ContextVar("onnx24_inputs", default=None)


@contextmanager
def protecting(names: Iterable[str]) -> Iterator[None]:
    """Within the block no new file takes the place of an input (ir/files.py asks)."""
    token = _INPUTS.set(Inputs(names))
    try:
        yield
    finally:
        _INPUTS.reset(token)


def protect(name: str | os.PathLike[str]) -> None:
    """One more input, which a file or a pipeline names."""
    if (inputs := _INPUTS.get()) is not None:
        inputs.add(os.fspath(name))


def refuse_irregular(names: Iterable[str]) -> None:
    """Pipes and devices: reading them may never end. Raises: InputError O24-001."""
    for name in names:
        try:
            mode = os.stat(name).st_mode
        except (OSError, ValueError):
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and name != os.devnull:
            message = "it is no regular file; '-' reads standard input"
            raise InputError.of("O24-001", message, file=name)


def regular(path: str | os.PathLike[str]) -> Path:
    """A file that is about to be read, whoever names it. Raises: as refuse_irregular."""
    refuse_irregular([os.fspath(path)])
    return Path(path)


def refuse_input(path: str | os.PathLike[str]) -> None:
    """Raises: InputError O24-041 where a new file at `path` would replace an input."""
    inputs = _INPUTS.get()
    found = None if inputs is None else inputs.name_of(os.fspath(path))
    if found is not None:
        message = "the output is the input" + ("" if found == os.fspath(path) else f" {found}")
        raise InputError.of("O24-041", message, file=os.fspath(path))


def _identity(path: str) -> _Identity | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # no such file; a name with a zero byte
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _files(name: str) -> Iterator[str]:
    if "\0" in name:
        return
    if os.path.isdir(name):
        is_layout = os.path.isfile(os.path.join(name, "oci-layout"))
        for root, _, files in os.walk(name):
            for file in files:
                if is_layout or file.lower().endswith(_READ_IN_FOLDERS):
                    yield from _file(os.path.join(root, file))
    elif os.path.exists(name):
        yield from _file(name)
    elif script := _SCRIPT.fullmatch(name):
        yield script[1]
    elif glob.has_magic(name):
        for path in glob.glob(name, recursive=True):
            yield from _file(path)


def _file(path: str) -> Iterator[str]:
    yield path
    folders = {os.path.dirname(path), os.path.dirname(os.path.realpath(path))}
    for location in _locations(path):
        yield from (os.path.join(folder, location) for folder in folders)


def _locations(path: str) -> set[str]:
    """The data files that a model names; none for what is no model."""
    found: set[str] = set()

    def look(buf: memoryview, start: int, end: int) -> None:
        if end - start <= _LARGEST_STUB_BYTES:
            tensor = TensorProto.FromString(bytes(buf[start:end]))
            found.update(e.value for e in tensor.external_data if e.key == "location")

    if _identity(path) is None:
        return found
    try:
        with open(path, "rb") as file:
            wire.rewrite(map_file(file), look)
    except (OSError, ValueError, DecodeError):  # a WireError is a ValueError
        pass
    return {location for location in found if isinstance(location, str) and "\0" not in location}
