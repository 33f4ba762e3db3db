"""Models as callers hold them: a path, a ModelProto, a graphsurgeon graph, bytes, a result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union, runtime_checkable

from onnx import ModelProto

from onnx24.errors import InputError
from onnx24.ir.model import MAX_EMBEDDED_BYTES, Model

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

IN_MEMORY = "<memory>"
"""What a report calls a model that has no file."""


@runtime_checkable
class HasModel(Protocol):
    """A result of an earlier job: its model is meant."""

    def source(self) -> Source: ...


class Source:
    """A model argument that can be opened more than once; each `load` gives a model of its own, so
    that nothing that the caller holds is ever modified.

    name: what reports call it. path: its file, None for one in memory.
    """

    def __init__(self, opener: Callable[[], Model], name: str, path: Path | None = None) -> None:
        self._opener, self.name, self.path = opener, name, path

    def load(self) -> Model:
        """Raises: InputError O24-001 to O24-017."""
        return self._opener()

    def source(self) -> Source:
        return self


ModelLike: TypeAlias = Union[
    str, "os.PathLike[str]", ModelProto, "gs.Graph", bytes, Source, HasModel
]
"""What stands for a model: a path, a `ModelProto`, an onnx-graphsurgeon graph, a serialized model,
what `onnx24.load` gives, or a result."""


def load(model: ModelLike, *, base_dir: str | os.PathLike[str] | None = None) -> Source:
    """A model argument, for callers that have to say more of it than what it is.

    model: a path, a `ModelProto`, an onnx-graphsurgeon graph, serialized bytes, or a result.
    base_dir: the folder of the external data of a model in memory; that of a file lie beside it.
    Returns: what every function of onnx24 takes as a model. The model's own object is copied, and
    never modified.
    Raises: InputError O24-043 for an object that is no model. The model itself is read by the
    function that takes it.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> onnx24.load(mlp([64, 32])).load().opset >= 17
    True
    """
    if isinstance(model, HasModel) and not isinstance(model, type):
        return model.source()
    if isinstance(model, str | os.PathLike):
        return _of_path(os.fspath(model), base_dir)
    if isinstance(model, bytes | bytearray | memoryview):
        data = bytes(model)
    elif isinstance(model, ModelProto):
        data = _serialized(model)
    elif type(model).__module__.partition(".")[0] == "onnx_graphsurgeon":
        data = _of_graph(model)
    else:
        raise InputError.of(
            "O24-043",
            f"expected a model, found {type(model).__module__}.{type(model).__qualname__}",
            hint="pass a path, an onnx.ModelProto, an onnx-graphsurgeon graph or a result",
        )
    folder = None if base_dir is None else Path(base_dir)
    return Source(lambda: Model.from_bytes(data, base_dir=folder), IN_MEMORY)


def _of_path(path: str, base_dir: Any) -> Source:
    if base_dir is not None:
        raise InputError.of(
            "O24-043", f"base_dir for {path!r}", hint="a file's external data lie beside it"
        )
    return Source(lambda: Model.load(path), path, Path(path))


def _serialized(proto: ModelProto) -> bytes:
    if proto.ByteSize() > MAX_EMBEDDED_BYTES:
        raise InputError.of("O24-042", "the model in memory is larger than 2 GiB", hint=_BY_PATH)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


_BY_PATH = "save it with external data and pass its path"


def _of_graph(graph: Any) -> bytes:
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise InputError.of("O24-043", f"expected a model, found {type(graph).__name__}")
    return _serialized(gs.export_onnx(graph, do_type_check=False))
