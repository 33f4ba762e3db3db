"""`onnx24 build`: an engine from a model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.backends.base import (
    HARDWARE_COMPATIBILITY,
    BuildOptions,
    BuildResult,
    Profile,
    get,
    parse_shapes,
    resolve_profiles,
)
from onnx24.backends.onnx_file import OnnxFile, inputs_of
from onnx24.backends.profiles import completed
from onnx24.backends.trtexec import command, shell_line
from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, check_distinct, check_output, source_of, stem
from onnx24.driver.samples import load_samples
from onnx24.driver.usage import usage
from onnx24.ir.files import atomic_write
from onnx24.report.table import bytes_text, table
from onnx24.report.text import sparse_layers

if TYPE_CHECKING:
    from onnx24.diagnostics import Diagnostic
from onnx24.ir.model import Model

_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """`build`, as the user wrote it."""

    model: str
    target: str
    backend: str
    engine: str | None
    shapes: tuple[str, ...]
    calib: str | None
    timeout_s: float | None
    sparsity: bool
    workspace_mib: int | None
    optimization_level: int | None
    timing_cache: str | None
    hardware_compatibility: str
    version_compatible: bool
    refit: bool
    strip: bool
    log: str | None
    layers: str | None
    print_command: bool
    export: str | None
    as_json: bool

    def options(self) -> BuildOptions:
        """Raises: InputError O24-020 for an unknown word."""
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            from onnx24.passmgr.options import did_you_mean

            words = ", ".join(HARDWARE_COMPATIBILITY)
            near = did_you_mean(self.hardware_compatibility, HARDWARE_COMPATIBILITY, begins=True)
            raise usage(
                f"--hardware-compatibility {self.hardware_compatibility}: expected one of {words}",
                f"{near}see `onnx24 build --help`",
            )
        return BuildOptions(
            sparsity=self.sparsity,
            workspace_mib=self.workspace_mib,
            optimization_level=self.optimization_level,
            timing_cache=Path(self.timing_cache) if self.timing_cache else None,
            hardware_compatibility=self.hardware_compatibility,
            version_compatible=self.version_compatible,
            refit=self.refit,
            strip=self.strip,
        )


def build_engine(request: BuildRequest) -> int:
    """Returns: 0. Raises: InputError, BackendError."""
    if request.model == STANDARD_STREAM:
        raise usage("build reads no standard input", "TensorRT's parser needs a path")
    if request.print_command:
        return _print_command(request)
    if request.export is not None:
        raise usage("--export without --print-command", "a build here takes --log and --layers")
    source = source_of(request.model)
    target = targets.load(request.target)
    shapes = parse_shapes(request.shapes)
    options = request.options()
    engine = request.engine or f"{stem(request.model)}.engine"
    files = [
        ("--engine", engine),
        ("--log", request.log),
        ("--layers", request.layers),
        ("--timing-cache", request.timing_cache),
    ]
    for _, path in files:
        if path is not None:
            check_output(path, request.model)
    check_distinct(files)
    backend = get(request.backend, target)
    model = source.load()  # a broken file gets our diagnostics, not a parser's
    profiles, chosen = _profiles(request, model, shapes)
    console = Console(as_json=request.as_json)
    with console.waiting(f"building with {backend.name}"):
        result = backend.build(
            Path(request.model),
            target,
            engine=Path(engine),
            shapes=profiles,
            options=options,
            timeout_s=request.timeout_s,
            log=Path(request.log) if request.log else None,
        )
    if request.layers is not None:
        with atomic_write(request.layers) as file:
            file.write(result.layers_document().encode("utf-8"))
    console.report(
        _text(result, from_data=set(profiles) - set(shapes) if request.calib else set()), result
    )
    console.diagnostics([*chosen, *result.diagnostics])
    return 0


def _profiles(
    request: BuildRequest, model: Model, shapes: Mapping[str, Profile]
) -> tuple[dict[str, Profile], list[Diagnostic]]:
    """--shapes, what the samples of --calib show of the other inputs, else sizes that run."""
    data = load_samples(request.calib, model, shapes, 0)
    return completed(inputs_of(model.proto), shapes, data, model)


def _print_command(request: BuildRequest) -> int:
    """trtexec's command line for a machine that has it; nothing is built here."""
    if request.backend not in ("auto", "trtexec"):
        raise usage(
            f"--print-command with --backend {request.backend}",
            "only trtexec has a command line; leave --backend out",
        )
    source = source_of(request.model)
    loaded = source.load()
    path = Path(request.model)
    model = OnnxFile.read(path)
    if model.packed:
        raise usage(
            f"{request.model} holds packed weights, which trtexec does not read",
            "run `onnx24 unpack24` and print the command for its result",
        )
    profiles, chosen = _profiles(request, loaded, parse_shapes(request.shapes))
    files = {
        kind: Path(f"{request.export}.{kind}.json") if request.export is not None else None
        for kind in ("layers", "times", "profile")
    }
    argv = command(
        path,
        targets.load(request.target),
        Path(request.engine or f"{stem(request.model)}.engine"),
        resolve_profiles(model.inputs, profiles),
        precisions=model.precisions,
        options=request.options(),
        layer_info=files["layers"],
        times=files["times"],
        profile=files["profile"],
    )
    console = Console(as_json=request.as_json)
    console.report(shell_line(argv), {"command": argv})
    console.diagnostics(chosen)
    return 0


def _text(result: BuildResult, from_data: set[str]) -> str:
    document = result.to_json()
    lines = [
        f"{result.engine_path}  {bytes_text(result.engine_bytes)}",
        f"  {result.backend} {result.version} for {result.target}, {result.seconds:.1f} s, "
        f"{len(result.layers)} layers; {sparse_layers(document['sparsity'])}",
    ]
    for name, profile in result.profiles.items():
        origin = " (from the samples)" if name in from_data else ""
        lines.append(f"  profile {name}: {profile}{origin}")
    if result.timing_cache is not None:
        cache = result.timing_cache
        lines.append(
            f"  timing cache {cache.path}: {bytes_text(cache.nbytes)}, "
            f"sha256 {cache.sha256[:12]}, before {cache.sha256_before[:12] or 'none'}"
        )
    sparse = {None: "not said", True: "yes", False: "no"}
    rows = [
        (layer.name, layer.kind, layer.tactic, sparse[layer.sparse])
        for layer in result.layers[:_SHOWN]
    ]
    if rows:
        lines.append(table(("layer", "kind", "tactic", "sparse kernel"), rows))
    if len(result.layers) > _SHOWN:
        lines.append(f"  … and {len(result.layers) - _SHOWN} more (--json lists all)")
    return "\n".join(lines)
