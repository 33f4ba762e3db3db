"""The commands that make a model: `compile`, `opt`, and each pass by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from onnx24.cli import options as o
from onnx24.cli.command import Command
from onnx24.cli.console import Console
from onnx24.cli.files import (
    STANDARD_STREAM,
    check_distinct,
    check_model_output,
    check_output,
    check_reports,
    output_path,
    source_of,
    stem,
    write_bytes,
    write_reports,
    write_text,
)
from onnx24.cli.options import flag
from onnx24.driver.usage import usage
from onnx24.lines import Block, block

if TYPE_CHECKING:
    from onnx24.driver.result import Result
    from onnx24.passmgr.base import Pass
    from onnx24.passmgr.instrument import Instrument
    from onnx24.passmgr.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What the run may use."""

    memory: o.Memory = o.DEFAULT_MEMORY
    workers: o.Workers = None
    executor: o.Executor = "local"
    work_dir: o.WorkDir = None

    def effort(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(Effort)}


@dataclass(frozen=True, kw_only=True)
class _Common:
    """See `Making`; here so that these stand first in a command's help."""

    model: o.ModelPath
    output: o.Output = None
    target: o.TargetName = o.DEFAULT_TARGET
    calib: o.Calib = None
    seed: o.Seed = 0
    shapes: o.Shapes = None
    report: o.ReportFile = None
    external: o.External = "auto"
    provenance: o.Provenance = "auto"
    guard: o.GuardMode = "off"
    json: o.Json = False


@dataclass(frozen=True, kw_only=True)
class Making(o.ImageFlags, _Common):
    """What every command that makes a model takes."""

    def making(self) -> dict[str, Any]:
        """Those that the driver takes under the same name."""
        names = ("target", "calib", "seed", "shapes", "external", "provenance", "guard")
        given = {name: getattr(self, name) for name in names}
        return {**given, "calib": self.samples(self.calib)}

    def checked_output(self, *, writes: bool = True, engine: str | None = None) -> str:
        """OUT, with everything refused that can be before the model is read."""
        out = output_path(self.output, self.model)
        if writes:
            check_model_output(out, as_json=self.json, external=self.external)
        reports = self.report or []
        check_reports(reports)
        if engine is not None:
            check_output(engine)
        named = [("-o", out if writes else None), ("--engine", engine)]
        check_distinct([*named, *(("--report", path) for path in reports)])
        return out

    def finish(
        self,
        result: Result,
        console: Console,
        out: str | None,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Write what goes to stdout and into reports, and say what happened. out: None where the
        model was not to be written. more: sections that --json adds to the report."""
        report = replace(
            result.report,
            written=out is not None,
            run={**result.report.run, "arguments": sys.argv[1:]},
        )
        write_reports(report, self.report or [])
        if self.json:
            from onnx24.diagnostics import Severity

            console.document({**report.to_json(), **more} if more else report)
            console.diagnostics(report.at_least(Severity.WARNING))
        else:
            from onnx24.report.text import render_text

            console.note(render_text(report))


def _file(out: str | None) -> str | None:
    """OUT where it is a file."""
    return None if out == STANDARD_STREAM else out


# --- compile --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Compile(Effort, Making, Command):
    """Compile a model, compare it with the original, and build an engine on request.

    The original must run in ONNX Runtime. The result is compared with it on --data, or on the
    eighth of the calibration samples that calibration then does not use (all of them below 16
    samples). OUT is written only when every limit of --max-drop is met.
    """

    preset: Annotated[
        str | None,
        flag(
            "--preset",
            "P",
            "A pipeline by name (`onnx24 passes` lists them). Default: where --calib is given, "
            "sparse-int8-fp16 for targets that take the file's types as they are, else "
            "sparse-int8; without it sparse-fp16.",
        ),
    ] = None
    pipeline: Annotated[
        str | None, flag("--pipeline", "TEXT", "The passes to run, instead of a preset.")
    ] = None
    data: o.Data = None
    limit: Annotated[
        list[str] | None,
        flag(
            "--limit",
            "METRIC=NUMBER[@OUTPUT]|none",
            "Leave layers dense, or in float, that would take the model beyond this, half of the "
            "error each for pruning and quantizing, by calibration samples: sqnr=20, top1=0.01, "
            "rel-l2, cosine. Default where a preset is calibrated on real samples: 1 % of the "
            "labels for classifiers, 20 dB for other models. none: compress every layer that can "
            "be. It is not a promise: --max-drop is.",
        ),
    ] = None
    max_drop: o.MaxDrop = None
    labels: o.Labels = None
    recover: o.Recover = None
    backend: o.Backend = None
    engine: Annotated[
        str | None,
        flag(
            "--engine",
            "FILE",
            "Build an engine into FILE. Default with --backend: OUT's stem + .engine.",
        ),
        o.WRITES,
    ] = None
    timeout: o.Timeout = None
    verify: o.Verify = True
    guard: o.GuardMode = "on"

    def run(self) -> int:
        from onnx24.driver.compiling import compile
        from onnx24.errors import BackendError, NotMetError

        engine = self._engine()
        out = self.checked_output(engine=engine)
        console = Console(as_json=self.json, stdout_is_taken=True)
        failure: NotMetError | BackendError | None = None
        try:
            result = compile(
                source_of(self.model),
                output=_file(out),
                preset=self.preset,
                pipeline=self.pipeline,
                data=self.samples(self.data),
                limit=self.limit,
                max_drop=self.max_drop,
                labels=self.labels,
                recover=self.recover,
                backend=self.backend,
                engine=engine,
                timeout=self.timeout,
                verify=self.verify,
                reproducer_dir=Path(),
                progress=console,
                **self.making(),
                **self.effort(),
            )
        except (NotMetError, BackendError) as err:
            if err.result is None:
                raise
            failure, result = err, err.result
        unmet = isinstance(failure, NotMetError)
        if out == STANDARD_STREAM and not unmet:
            result.save(out)
        self.finish(result, console, out)
        if unmet:
            console.note("nothing was written but the reports asked for")
        return failure.exit_code if failure else 0

    def _engine(self) -> str | None:
        if self.engine is not None or self.backend in (None, "none"):
            return self.engine
        out = output_path(self.output, self.model)
        if out == STANDARD_STREAM:
            return f"{stem(self.model)}.engine"
        return f"{Path(out).with_suffix('')}.engine"


# --- tune ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tune(Effort, Making, Command):
    """Find the cheapest model within a limit: for each layer dense or 2:4, 16-bit floats or INT8.

    Every layer is measured by itself on real samples, the best choice is searched, and the model is
    verified on samples that nothing was fitted to or chosen by. Costs are estimates from data-sheet
    rates, and are called so. Exit code 1 where even the strictest choice misses the limit.
    """

    limit: Annotated[
        list[str] | None,
        flag(
            "--limit",
            "METRIC=NUMBER[@OUTPUT]",
            "What the model must keep, as for --max-drop of compile: top1=0.01, sqnr=20. Default: "
            "with --labels accuracy=0.01, else 1 % of the labels for classifiers, 20 dB for other "
            "models.",
        ),
    ] = None
    labels: o.Labels = None
    recover: o.Recover = None
    objective: Annotated[
        Literal["latency", "size", "energy-proxy"],
        flag("--objective", "", "What is to be small, by estimate or --profile."),
    ] = "latency"
    formats: Annotated[
        str,
        flag(
            "--formats",
            "int8[,int4]",
            "What may be chosen besides 16-bit floats; int4: weights of MatMul and Gemm alone.",
        ),
    ] = "int8"
    profile: Annotated[
        list[str] | None,
        flag(
            "--profile",
            "LEDGER.json",
            "What layers took on the GPU, as `onnx24 ledger` wrote it, instead of estimates. May "
            "be repeated, for instance with a ledger of 16-bit and one of INT8 engines.",
        ),
    ] = None
    time: Annotated[str, flag("--time", "T", "What it may take: seconds, or 90s, 30min, 2h.")] = (
        "30min"
    )
    gpu: Annotated[
        str | None,
        flag("--gpu", "NAME", "Whose rates are taken. Default: the first of the target's kind."),
    ] = None
    preset: Annotated[
        str | None, flag("--preset", "P", "Whose passes are used. Default: the target's.")
    ] = None
    front: Annotated[
        str | None,
        flag(
            "--front",
            "FILE",
            "Draw the front of cost against loss: .html, with all layers, or .png (by matplotlib).",
        ),
        o.WRITES,
    ] = None

    def run(self) -> int:
        from onnx24.driver.tuning import TuneResult, require_drawable, tune
        from onnx24.errors import NotMetError

        out = self.checked_output()
        if self.front is not None:
            require_drawable(self.front)
        console = Console(as_json=self.json, stdout_is_taken=True)
        failure: NotMetError | None = None
        given = self.making()
        del given["guard"], given["provenance"]
        try:
            result = tune(
                source_of(self.model),
                output=_file(out),
                limit=self.limit,
                labels=self.labels,
                recover=self.recover,
                objective=self.objective,
                formats=self.formats,
                profile=self.profile,
                time=self.time,
                gpu=self.gpu,
                preset=self.preset,
                progress=console,
                **given,
                **self.effort(),
            )
        except NotMetError as err:
            if not isinstance(err.result, TuneResult):
                raise
            failure, result = err, err.result
        if out == STANDARD_STREAM and failure is None:
            result.save(out)
        if self.front is not None and self.front.lower().endswith(".png"):
            write_bytes(self.front, result.tuning.picture(self.model))
        elif self.front is not None:
            write_text(self.front, result.tuning.page(self.model))
        self.finish(result, console, out, more={"tuning": result.tuning.to_json()})
        if not self.json:
            console.note(result.tuning.render())
        if failure is not None:
            console.note("nothing was written but the reports asked for")
        return failure.exit_code if failure else 0


# --- opt and the passes ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Opt(Effort, Making, Command):
    """Run a pipeline of passes, and look at what each of them does."""

    pipeline: Annotated[
        str,
        flag(
            "--pipeline",
            "TEXT",
            "For instance 'canonicalize,prune24{include=encoder.*},check24', or '@sparse'.",
        ),
    ]
    print_after: Annotated[
        list[str] | None,
        flag(
            "--print-after",
            "P",
            "Print the model as text on stderr after this pass; 'all': after every pass that "
            "changed something. May be repeated.",
        ),
    ] = None
    dump: Annotated[
        str | None,
        flag("--dump", "DIR", "Write the model after every pass that changed it."),
        o.KEEPS,
    ] = None
    dump_onnx: Annotated[bool, flag("--dump-onnx", "", "With --dump, as .onnx too.")] = False
    time: Annotated[bool, flag("--time", "", "Time and peak memory of each pass.")] = False
    verify: o.Verify = True
    stop_after: Annotated[
        int | None, flag("--stop-after", "N", "Transform no more than N sites.", min=0)
    ] = None

    def run(self) -> int:
        from onnx24.passmgr.instrument import Timing
        from onnx24.passmgr.pipeline import parse

        pipeline = parse(self.pipeline)
        timing = Timing()
        hooks: list[Instrument] = [timing] if self.time else []
        console = Console(as_json=self.json, stdout_is_taken=True)

        def say() -> None:
            if self.time:
                console.note(block(timing.render().splitlines()))

        return run_passes(
            self,
            pipeline,
            console,
            command="opt",
            say=say,
            instruments=[*_looking(self, pipeline, console), *hooks],
            verify=self.verify,
            stop_after=self.stop_after,
            **self.effort(),
        )


def _looking(self: Opt, pipeline: Pipeline, console: Console) -> list[Instrument]:
    """What --dump and --print-after ask for."""
    from onnx24.passmgr.instrument import Dump, PrintAfter
    from onnx24.passmgr.options import did_you_mean

    hooks: list[Instrument] = []
    if self.dump_onnx and self.dump is None:
        raise usage("--dump-onnx without --dump", "say where: --dump DIR")
    if self.dump is not None:
        hooks.append(Dump(Path(self.dump), onnx=self.dump_onnx))
    if self.print_after:
        names = {instance.name for instance in pipeline}
        for name in self.print_after:
            if name != "all" and name not in names:
                near = did_you_mean(name, names, begins=True)
                raise usage(
                    f"--print-after {name}: the pipeline has no such pass",
                    f"{near}it has {', '.join(sorted(names)) or 'none'}",
                )
        wanted = () if "all" in self.print_after else self.print_after
        hooks.append(PrintAfter(lambda text: console.note(Block(text)), wanted))
    return hooks


def run_pass(instance: Pass, given: dict[str, Any]) -> int:
    """One pass by itself. given: the fields of `Making`, for a heavy pass of `Effort` too."""
    from onnx24.passmgr.pipeline import Pipeline

    making = Making(**{field.name: given[field.name] for field in fields(Making)})
    effort = {field.name: given[field.name] for field in fields(Effort) if field.name in given}
    console = Console(as_json=making.json, stdout_is_taken=True)
    return run_passes(making, Pipeline((instance,)), console, command=instance.name, **effort)


def run_passes(
    making: Making,
    pipeline: Pipeline,
    console: Console,
    *,
    command: str,
    say: Callable[[], None] = lambda: None,
    **options: Any,
) -> int:
    """Run the passes, write the model, say what happened. Passes that change nothing write nothing
    unless -o says where. Returns: 0."""
    from onnx24.driver.compiling import optimize

    writes = making.output is not None or any(step.touches() for step in pipeline)
    out = making.checked_output(writes=writes)
    result = optimize(
        source_of(making.model),
        pipeline,
        output=_file(out) if writes else None,
        reproducer_dir=Path(),
        progress=console,
        command=command,
        **making.making(),
        **options,
    )
    if writes and out == STANDARD_STREAM:
        result.save(out)
    say()
    making.finish(result, console, out if writes else None)
    return 0


@dataclass(frozen=True, kw_only=True)
class Sign(Command):
    """Sign a model, so that a policy (`signed_by`) or verify-provenance can require it.

    The signature lies in the model's metadata and holds for these nodes, values and entries, in a
    data file or not; any change ends it. Needs cryptography (onnx24[sign]). A key:
    openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub
    """

    model: o.ModelPath
    key: Annotated[str, flag("--key", "KEY", "The private key, Ed25519 in PEM, no password.")]
    output: o.Output = None
    external: o.External = "auto"
    json: o.Json = False

    def run(self) -> int:
        from onnx24.driver.proving import sign

        out = output_path(self.output, self.model)
        check_model_output(out, as_json=self.json, external=self.external)
        console = Console(as_json=self.json, stdout_is_taken=True)
        signed = sign(source_of(self.model), self.key, output=_file(out), external=self.external)
        console.made(signed, out)
        return 0
