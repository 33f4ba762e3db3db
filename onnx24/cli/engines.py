"""The commands about engines: `build`, `ledger`, `bench`, `gate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from onnx24.cli import options as o
from onnx24.cli.command import Command
from onnx24.cli.console import Console
from onnx24.cli.files import (
    RENDERED,
    STANDARD_STREAM,
    check_distinct,
    check_ending,
    check_model_output,
    check_output,
    output_path,
    source_of,
    stem,
    write_text,
)
from onnx24.cli.options import flag
from onnx24.driver.usage import usage
from onnx24.lines import Block, block, shown

if TYPE_CHECKING:
    from onnx24.backends.base import BuildResult
    from onnx24.ledger.ledger import Ledger as LayerLedger

_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class Build(Command):
    """Build an engine with TensorRT.

    The builder runs in a process of its own, so that its crash or hang ends in exit code 3 with the
    last lines of its log. Dynamic inputs need a size: --shapes, or --calib, whose samples give the
    smallest, the most frequent and the largest size of each dimension.
    """

    model: Annotated[str, o.argument("MODEL", "The ONNX model's path.")]
    target: o.TargetName = o.DEFAULT_TARGET
    backend: o.Builder = "auto"
    engine: Annotated[
        str | None,
        flag(
            "--engine",
            "FILE",
            "The engine. Default: MODEL's stem + .engine in the current folder.",
        ),
        o.WRITES,
    ] = None
    shapes: o.Shapes = None
    calib: Annotated[
        str | None,
        flag(
            "--calib",
            "DATA",
            "Samples that give the sizes of dynamic inputs which --shapes leaves out. An .npz of a "
            "dynamic batch counts as batches of 1 to 16.",
        ),
    ] = None
    timeout: o.Timeout = None
    sparsity: Annotated[
        bool, flag("--sparsity/--no-sparsity", "", "Let the builder use 2:4 kernels.")
    ] = True
    workspace: Annotated[
        int | None, flag("--workspace", "MIB", "Memory that kernels may use.", min=1)
    ] = None
    optimization_level: Annotated[
        int | None,
        flag("--optimization-level", "0..5", "How hard the builder tries.", min=0, max=5),
    ] = None
    timing_cache: Annotated[
        str | None,
        flag(
            "--timing-cache",
            "FILE",
            "Read kernel timings from there and keep them; the report gives their hash.",
        ),
        o.WRITES,
    ] = None
    hardware_compatibility: Annotated[
        Literal["none", "ampere+", "same"],
        flag(
            "--hardware-compatibility",
            "",
            "Which other GPUs the engine may run on: none, all from Ampere on, or those of the "
            "same compute capability.",
        ),
    ] = "none"
    version_compatible: Annotated[
        bool, flag("--version-compatible", "", "Let later TensorRT releases run the engine.")
    ] = False
    refit: Annotated[bool, flag("--refit", "", "Let the engine's weights be replaced later.")] = (
        False
    )
    strip: Annotated[bool, flag("--strip", "", "Leave weights out that a refit can restore.")] = (
        False
    )
    log: Annotated[
        str | None,
        flag("--log", "FILE", "Keep the builder's whole log (for `onnx24 ledger`)."),
        o.WRITES,
    ] = None
    layers: Annotated[
        str | None,
        flag("--layers", "FILE", "Keep the engine's layers as JSON (for `onnx24 ledger`)."),
        o.WRITES,
    ] = None
    print_command: Annotated[
        bool,
        flag(
            "--print-command",
            "",
            "Build nothing; print the command line of trtexec for the target's TensorRT, to be run "
            "where that is installed.",
        ),
    ] = False
    export: Annotated[
        str | None,
        flag(
            "--export",
            "PREFIX",
            "With --print-command: also run and time the engine, and write PREFIX.layers.json, "
            "PREFIX.times.json and PREFIX.profile.json (for `onnx24 ledger`).",
        ),
    ] = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.backends.base import BuildOptions
        from onnx24.driver.building import build, trtexec_command

        if self.model == STANDARD_STREAM:
            raise usage("build reads no standard input", "TensorRT's parser needs a path")
        console = Console(as_json=self.json)
        engine = self.engine or f"{stem(self.model)}.engine"
        common: dict[str, Any] = {
            "engine": engine,
            "target": self.target,
            "shapes": self.shapes,
            "calib": self.calib,
            "options": BuildOptions(
                sparsity=self.sparsity,
                workspace_mib=self.workspace,
                optimization_level=self.optimization_level,
                timing_cache=Path(self.timing_cache) if self.timing_cache else None,
                hardware_compatibility=self.hardware_compatibility,
                version_compatible=self.version_compatible,
                refit=self.refit,
                strip=self.strip,
            ),
        }
        if self.print_command:
            from onnx24.backends.trtexec import shell_line

            if self.backend not in ("auto", "trtexec"):
                raise usage(
                    f"--print-command with --backend {self.backend}",
                    "only trtexec has a command line; leave --backend out",
                )
            argv = trtexec_command(self.model, export=self.export, **common)
            console.report(shown(shell_line(argv), sys.maxsize), {"command": list(argv)})
            console.diagnostics(argv.diagnostics)
            return 0
        if self.export is not None:
            raise usage("--export without --print-command", "a build here takes --log and --layers")
        files = [
            ("--engine", engine),
            ("--log", self.log),
            ("--layers", self.layers),
            ("--timing-cache", self.timing_cache),
        ]
        check_output(engine)
        check_distinct(files)
        result = build(
            source_of(self.model),
            backend=self.backend,
            timeout=self.timeout,
            log=self.log,
            layers=self.layers,
            progress=console,
            **common,
        )
        console.report(_built(result, from_data=self.calib is not None, shapes=self.shapes), result)
        console.diagnostics(result.diagnostics)
        return 0


def _built(result: BuildResult, *, from_data: bool, shapes: list[str] | None) -> Block:
    from onnx24.backends.base import parse_shapes
    from onnx24.report.table import bytes_text, table
    from onnx24.report.text import sparse_layers

    given = parse_shapes(shapes or [])
    document = result.to_json()
    lines = [
        f"{result.engine_path}  {bytes_text(result.engine_bytes)}",
        f"  {result.backend} {result.version} for {result.target}, {result.seconds:.1f} s, "
        f"{len(result.layers)} layers; {sparse_layers(document['sparsity'])}",
    ]
    for name, profile in result.profiles.items():
        origin = " (from the samples)" if from_data and name not in given else ""
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
    return block(lines)


# --- ledger ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ledger(Command):
    """Say of every layer whether it was eligible for 2:4, chosen, and faster.

    Works from the files of a build and a measurement alone, which may have run elsewhere:
    `onnx24 build MODEL --print-command --export run` prints the trtexec command that writes them.
    What no file says is shown as "–". A layer counts as faster where its median time is more than
    3 % below that in the dense engine.
    """

    model: Annotated[
        str | None,
        o.argument(
            "MODEL",
            "The model, original or compiled: one row for each of its layers. Without it one for "
            "each layer of the engine.",
        ),
    ] = None
    log: Annotated[str | None, flag("--log", "FILE", "The builder's verbose log.")] = None
    layers: Annotated[
        str | None,
        flag(
            "--layers",
            "FILE",
            "The engine's layers: `onnx24 build --layers`, trtexec's --exportLayerInfo or the "
            "engine inspector's JSON.",
        ),
    ] = None
    profile: Annotated[
        str | None, flag("--profile", "FILE", "Layer times: trtexec's --exportProfile.")
    ] = None
    times: Annotated[str | None, flag("--times", "FILE", "Run times: trtexec's --exportTimes.")] = (
        None
    )
    dense_log: Annotated[
        str | None, flag("--dense-log", "FILE", "The same of an engine built without sparsity.")
    ] = None
    dense_layers: Annotated[str | None, flag("--dense-layers", "FILE", "Its layers.")] = None
    dense_profile: Annotated[str | None, flag("--dense-profile", "FILE", "Its layer times.")] = None
    dense_times: Annotated[str | None, flag("--dense-times", "FILE", "Its run times.")] = None
    target: o.TargetName = o.DEFAULT_TARGET
    shapes: o.Shapes = None
    output: Annotated[
        str | None,
        flag("--output,-o", "FILE", "Also write it there, as .html, .json or .txt."),
        o.WRITES,
    ] = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.ledgers import layer_ledger
        from onnx24.ledger.text import render_text

        names = ("log", "layers", "profile", "times")
        files = {name: getattr(self, name) for name in (*names, *(f"dense_{n}" for n in names))}
        if self.output is not None:
            check_ending("-o", self.output, RENDERED)
        model = None if self.model is None else source_of(self.model)
        ledger = layer_ledger(model, target=self.target, shapes=self.shapes, **files)
        if self.output is not None:
            write_text(self.output, _rendered(ledger, Path(self.output).suffix.lower()))
        Console(as_json=self.json).report(render_text(ledger), ledger)
        return 0


def _rendered(ledger: LayerLedger, suffix: str) -> str:
    from onnx24.ledger.html import render_html
    from onnx24.ledger.text import render_text
    from onnx24.report.jsontext import json_text

    if suffix == ".json":
        return json_text(ledger)
    return render_html(ledger) if suffix == ".html" else render_text(ledger) + "\n"


# --- bench and gate -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure what 2:4 and INT8 gain, or estimate it.

    Builds an engine for each variant and batch size and runs them in turns on the GPU that is here;
    a gain that the noise could have made is shown as none. Without a GPU it ends in exit code 3;
    --estimate then gives bounds that no kernel reaches, and says so.
    """

    model: Annotated[str, o.argument("MODEL", "The dense ONNX model's path.")]
    target: o.TargetName = o.DEFAULT_TARGET
    backend: o.Builder = "auto"
    variants: Annotated[
        str,
        flag(
            "--variants",
            "LIST",
            "Some of dense, sparse, int8 and sparse-int8; dense is always among them.",
        ),
    ] = "dense,sparse,int8,sparse-int8"
    batch: Annotated[
        list[int] | None,
        flag(
            "--batch",
            "N",
            "A size of the dynamic first dimension. Repeat it for further sizes.",
            min=1,
        ),
    ] = None
    shapes: o.Shapes = None
    calib: o.Calib = None
    estimate: Annotated[
        bool,
        flag(
            "--estimate",
            "",
            "Measure nothing: give roofline bounds per layer from data-sheet peaks. Needs no GPU.",
        ),
    ] = False
    gpu: Annotated[
        str | None,
        flag(
            "--gpu",
            "NAME",
            "With --estimate: the GPU, for instance 'L40S'. Default: the first known of the "
            "target's compute capability.",
        ),
    ] = None
    rounds: Annotated[int, flag("--rounds", "N", "How often each engine has its turn.", min=8)] = 20
    timeout: o.Timeout = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.bench import bench

        if self.model == STANDARD_STREAM:
            raise usage("bench reads no standard input", "it builds several engines from the file")
        console = Console(as_json=self.json)
        found = bench(
            source_of(self.model),
            target=self.target,
            backend=self.backend,
            variants=[part.strip() for part in self.variants.split(",") if part.strip()],
            batches=self.batch or (),
            shapes=self.shapes,
            calib=self.calib,
            estimated=self.estimate,
            gpu=self.gpu,
            rounds=self.rounds,
            timeout=self.timeout,
            progress=console,
        )
        console.found(found)
        return 0


@dataclass(frozen=True, kw_only=True)
class Gate(Command):
    """Give layers that 2:4 did not make faster their dense weights back.

    A weight stays 2:4 where one of its layers is faster, and where one was not measured. The dense
    values come from --work-dir, where they lie as they were right before pruning, or from --dense,
    which is refused for weights whose channels were scaled or permuted since. With --data the
    sparse and the gated model are both compared with the dense one, or with MODEL as it is with
    all its dense weights.
    """

    model: Annotated[str, o.argument("MODEL", "The 2:4 model.")]
    ledger: Annotated[
        str,
        flag(
            "--ledger",
            "FILE",
            "A ledger as JSON, with the times of a sparse and a dense engine.",
        ),
    ]
    work_dir: Annotated[
        str | None,
        flag(
            "--work-dir",
            "DIR",
            "The --work-dir that MODEL was pruned with: it holds the dense weights.",
        ),
    ] = None
    dense: Annotated[
        str | None,
        flag(
            "--dense",
            "DENSE",
            "The model before it was pruned, for weights that the work dir does not have.",
        ),
    ] = None
    output: o.Output = None
    noise: Annotated[
        float,
        flag(
            "--noise",
            "SHARE",
            "A layer is faster where its time falls by more than this share.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.03
    data: o.Data = None
    seed: o.Seed = 0
    shapes: o.Shapes = None
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.gating import give_back

        if STANDARD_STREAM in (self.dense, self.ledger):
            raise usage("--dense and --ledger read no standard input", "give paths")
        out = output_path(self.output, self.model)
        check_model_output(out, as_json=self.json)
        console = Console(as_json=self.json, stdout_is_taken=True)
        found = give_back(
            source_of(self.model),
            ledger=self.ledger,
            work_dir=self.work_dir,
            dense=None if self.dense is None else source_of(self.dense),
            output=None if out == STANDARD_STREAM else out,
            noise=self.noise,
            data=self.data,
            seed=self.seed,
            shapes=self.shapes,
            progress=console,
        )
        console.made(found, out)
        return 0
