"""Engines of models, and the command lines that build them elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.backends.base import (
    DEFAULT_OPTIONS,
    HARDWARE_COMPATIBILITY,
    BuildOptions,
    BuildResult,
    Profile,
    get,
    resolve_profiles,
)
from onnx24.backends.onnx_file import OnnxFile, inputs_of
from onnx24.backends.profiles import completed
from onnx24.backends.trtexec import command
from onnx24.driver.models import ModelLike, load
from onnx24.driver.progress import ProgressLike, reporter
from onnx24.driver.samples import DataLike, ShapesLike, load_samples, profiles_of
from onnx24.driver.usage import usage
from onnx24.errors import BackendError
from onnx24.ir.files import atomic_write
from onnx24.passmgr.options import did_you_mean

if TYPE_CHECKING:
    from onnx24.diagnostics import Diagnostic
    from onnx24.ir.model import Model
    from onnx24.targets import Target

PathLike = str | os.PathLike[str]


def build(
    model: ModelLike,
    *,
    engine: PathLike,
    target: str | Target = targets.DEFAULT,
    backend: str = "auto",
    shapes: ShapesLike = None,
    calib: DataLike = None,
    options: BuildOptions = DEFAULT_OPTIONS,
    timeout: float | None = None,
    log: PathLike | None = None,
    layers: PathLike | None = None,
    progress: ProgressLike = None,
) -> BuildResult:
    """Build an engine with TensorRT, in a process of its own, so that its crash or hang is an
    exception with the last lines of its log.

    engine: the file to write. shapes: sizes of dynamic inputs, `{"x": (1, 64)}` or with a range
    `{"x": ((1, 64), (8, 64), (16, 64))}`; calib: samples that give those which shapes leave out.
    timeout: [seconds]. log, layers: files for the builder's log and for the engine's layers.

    Raises: InputError; BackendError where the backend is missing, or refuses the model.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> onnx24.build(mlp([64, 32]), engine="m.engine", backend="none such")
    Traceback (most recent call last):
    onnx24.errors.InputError: error: there is no backend 'none such' (O24-043)
      choose one of auto, tensorrt, trtexec, tensorrt-rtx
    """
    row = targets.load(target)
    given = profiles_of(shapes)
    _check(options)
    builder = get(backend, row)
    source = load(model)
    loaded = source.load()  # a broken file gets our diagnostics, not a parser's
    profiles, chosen = _profiles(loaded, given, calib)
    with ExitStack() as stack:
        path = source.path
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx24-"))
            path = Path(folder) / "model.onnx"
            loaded.save(path)
        stack.enter_context(reporter(progress).waiting(f"building with {builder.name}"))
        try:
            result = builder.build(
                path,
                row,
                engine=Path(engine),
                shapes=profiles,
                options=options,
                timeout_s=timeout,
                log=None if log is None else Path(log),
            )
        except BackendError as err:
            if err.code == "O24-502" and chosen:  # other sizes may build
                raise BackendError([*err.diagnostics, *chosen]) from err
            raise
    if layers is not None:
        with atomic_write(layers) as file:
            file.write(result.layers_document().encode("utf-8"))
    return replace(result, diagnostics=(*chosen, *result.diagnostics))


def trtexec_command(
    model: PathLike,
    *,
    engine: PathLike,
    target: str | Target = targets.DEFAULT,
    shapes: ShapesLike = None,
    calib: DataLike = None,
    options: BuildOptions = DEFAULT_OPTIONS,
    export: str | None = None,
) -> CommandLine:
    """The command line of trtexec for the target's TensorRT, for a machine that has it; nothing is
    built here.

    export: also run and time the engine, and write `<export>.layers.json`, `<export>.times.json`
    and `<export>.profile.json`.

    Raises: InputError; BackendError where trtexec cannot build for the target.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> path = onnx24.prune24(mlp([64, 32])).save("sparse.onnx")
    >>> onnx24.trtexec_command(path, engine="m.engine", shapes={"x": (8, 64)})[:3]
    ['trtexec', '--onnx=sparse.onnx', '--saveEngine=m.engine']
    """
    row = targets.load(target)
    _check(options)
    loaded = load(model).load()
    file = OnnxFile.read(Path(model))
    profiles, chosen = _profiles(loaded, profiles_of(shapes), calib)
    files = {
        kind: Path(f"{export}.{kind}.json") if export is not None else None
        for kind in ("layers", "times", "profile")
    }
    words = command(
        Path(model),
        row,
        Path(engine),
        resolve_profiles(file.inputs, profiles),
        precisions=file.precisions,
        options=options,
        layer_info=files["layers"],
        times=files["times"],
        profile=files["profile"],
    )
    return CommandLine(words, chosen)


def _check(options: BuildOptions) -> None:
    """Raises: InputError O24-043 for an unknown word."""
    word = options.hardware_compatibility
    if word not in HARDWARE_COMPATIBILITY:
        near = did_you_mean(word, HARDWARE_COMPATIBILITY, begins=True)
        known = ", ".join(HARDWARE_COMPATIBILITY)
        raise usage(f"hardware compatibility {word}: expected one of {known}", f"{near}see --help")


def _profiles(
    model: Model, shapes: Mapping[str, Profile], calib: DataLike
) -> tuple[dict[str, Profile], list[Diagnostic]]:
    """The sizes that are given, what the samples show of the other inputs, else sizes that run; and
    what to say of those."""
    return completed(inputs_of(model.proto), shapes, load_samples(calib, model, shapes, 0), model)


class CommandLine(list[str]):
    """Words of a command line, and what is to be said of how they were chosen."""

    def __init__(self, words: Iterable[str], diagnostics: Iterable[Diagnostic]) -> None:
        super().__init__(words)
        self.diagnostics = tuple(diagnostics)
