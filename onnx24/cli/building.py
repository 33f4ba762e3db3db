"""`onnx24 build`: an engine from a model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx24 import targets
from onnx24.backends.base import BuildResult, get, parse_shapes, resolve_profiles
from onnx24.backends.onnx_file import OnnxFile
from onnx24.backends.trtexec import command, shell_line
from onnx24.cli.console import Console
from onnx24.cli.failure import usage
from onnx24.cli.files import STANDARD_STREAM, Source, check_distinct, check_output
from onnx24.report.table import bytes_text, table
from onnx24.report.text import sparse_layers

_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """`build`, as the user wrote it."""

    model: str
    target: str
    backend: str
    engine: str | None
    shapes: tuple[str, ...]
    timeout_s: float | None
    sparsity: bool
    workspace_mib: int | None
    optimization_level: int | None
    timing_cache: str | None
    log: str | None
    print_command: bool
    as_json: bool


def build_engine(request: BuildRequest) -> int:
    """Returns: 0. Raises: InputError, BackendError."""
    if request.model == STANDARD_STREAM:
        raise usage("build reads no standard input", "TensorRT's parser needs a path")
    if request.print_command:
        return _print_command(request)
    source = Source(request.model)
    target = targets.load(request.target)
    shapes = parse_shapes(request.shapes)
    engine = request.engine or f"{source.stem}.engine"
    for path in (engine, request.log):
        if path is not None:
            check_output(path, source)
    check_distinct([("--engine", engine), ("--log", request.log)])
    backend = get(request.backend, target)
    source.load()  # a broken file gets our diagnostics, not a parser's
    console = Console(as_json=request.as_json)
    with console.waiting(f"building with {backend.name}"):
        result = backend.build(
            Path(request.model),
            target,
            engine=Path(engine),
            shapes=shapes,
            timeout_s=request.timeout_s,
            sparsity=request.sparsity,
            workspace_mib=request.workspace_mib,
            optimization_level=request.optimization_level,
            timing_cache=Path(request.timing_cache) if request.timing_cache else None,
            log=Path(request.log) if request.log else None,
        )
    console.report(_text(result), result)
    console.diagnostics(result.diagnostics)
    return 0


def _print_command(request: BuildRequest) -> int:
    """trtexec's command line for a machine that has it; nothing is built here."""
    if request.backend not in ("auto", "trtexec"):
        raise usage(
            f"--print-command with --backend {request.backend}",
            "only trtexec has a command line; leave --backend out",
        )
    source = Source(request.model)
    source.load()
    path = Path(request.model)
    model = OnnxFile.read(path)
    argv = command(
        path,
        targets.load(request.target),
        Path(request.engine or f"{source.stem}.engine"),
        resolve_profiles(model.inputs, parse_shapes(request.shapes)),
        precisions=model.precisions,
        sparsity=request.sparsity,
        workspace_mib=request.workspace_mib,
        optimization_level=request.optimization_level,
        timing_cache=Path(request.timing_cache) if request.timing_cache else None,
    )
    Console(as_json=request.as_json).report(shell_line(argv), {"command": argv})
    return 0


def _text(result: BuildResult) -> str:
    document = result.to_json()
    lines = [
        f"{result.engine_path}  {bytes_text(result.engine_bytes)}",
        f"  {result.backend} {result.version} for {result.target}, {result.seconds:.1f} s, "
        f"{len(result.layers)} layers; {sparse_layers(document['sparsity'])}",
    ]
    lines += [f"  profile {name}: {profile}" for name, profile in result.profiles.items()]
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
