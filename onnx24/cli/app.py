"""The commands and their options. What they do is in the other modules of this package, which
are imported when a command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from onnx24.cli import options as o
from onnx24.cli import pass_commands
from onnx24.cli.command import command, stub
from onnx24.cli.options import DEFAULT_TARGET
from onnx24.cli.registering import registry_app

_UsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _UsageError.__base__


COMMANDS = {
    "compile": "onnx24.cli.making:Compile",
    "opt": "onnx24.cli.making:Opt",
}
"""Name → "module:Class" of a `Command`; a module is imported when its command is called."""


class Commands(TyperGroup):
    """The commands of the table above, and one for each pass, made when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.own(), *pass_commands.names()]

    def own(self) -> list[str]:
        """Those that are no pass."""
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Only what an overview shows; `resolve_command` makes the real one."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name in COMMANDS:
            return stub(cmd_name, COMMANDS[cmd_name])
        return pass_commands.stub(cmd_name)

    def made(self, name: str) -> Any:
        """The real command."""
        if name in self.commands:
            return self.commands[name]
        if name in COMMANDS:
            return command(name, COMMANDS[name])
        return pass_commands.made(name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            from onnx24.driver.usage import usage
            from onnx24.passmgr.options import did_you_mean

            near = did_you_mean(name, self.list_commands(ctx), begins=True)
            raise usage(f"there is no command or pass {name!r}", f"{near}see `onnx24 --help`")
        found, shown, rest = super().resolve_command(ctx, args)
        return found, shown if found is None else self.made(found), rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        own = [(name, self.get_command(ctx, name)) for name in self.own()]
        passes = [(name, pass_commands.stub(name)) for name in pass_commands.names()]
        for title, group in (("Commands", own), ("Passes, each by itself", passes)):
            width = formatter.width - 6 - max(len(name) for name, _ in group)
            with formatter.section(title):
                formatter.write_dl(
                    [(name, command.get_short_help_str(width)) for name, command in group]
                )

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> Any:
        """Also how typer's test runner gets in, so that exit codes are the same there."""
        sys.exit(_run(self, list(sys.argv[1:] if args is None else args)))


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    help="Compile ONNX models to NVIDIA's 2:4 sparsity and INT8, and hand them to TensorRT.",
    epilog="Exit codes: 0 done; 1 a policy, tolerance or comparison was not met; 2 wrong usage or "
    "bad input; 3 the backend is missing or failed; 70 a fault of onnx24.",
)


def run(argv: Sequence[str]) -> int:
    """Run one command line. Returns: its exit code."""
    return _run(group(), list(argv))


def group() -> Any:
    """The group of all commands, as typer builds it."""
    return typer.main.get_command(app)


def _run(commands: Any, argv: list[str]) -> int:
    stdout_is_closed = sys.stdout is None
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if stdout_is_closed:
            from onnx24.driver.usage import usage

            raise usage("standard output is closed", "redirect it, if only to /dev/null")
        with commands.make_context("onnx24", list(argv)) as context:
            code = int(commands.invoke(context) or 0)
        sys.stdout.flush()
        return code
    except typer.Exit as done:
        return done.exit_code
    except BaseException as err:  # noqa: BLE001 - the outermost frame: everything ends here
        from onnx24.cli import failure

        if isinstance(err, _ClickException):
            err = _usage_error(err)
        return failure.exit_code_of(err, argv)


def _open_closed_streams() -> None:
    """Python's streams are None where the caller closed them (`>&-`). A file that is opened then
    would get their number, and what a library prints would land in it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _usage_error(err: Any) -> Exception:
    from onnx24.driver.usage import usage

    context = getattr(err, "ctx", None)
    command = context.command_path if context is not None else "onnx24"
    return usage(err.format_message().strip(), f"see `{command} --help`")


def _version(wanted: bool) -> None:
    if wanted:
        from onnx24 import __version__

        sys.stdout.write(f"onnx24 {__version__}\n")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def inspect(
    model: o.ModelPath,
    target: o.TargetName = DEFAULT_TARGET,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Also initializers that are no matrix product's weight."),
    ] = False,
    json: o.Json = False,
) -> int:
    """List every weight: shape, reduction axis, 2:4 or not, eligible or why not."""
    from onnx24.cli.looking import inspect_model

    return inspect_model(model, target, show_all=all_, as_json=json)


@app.command()
def check(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models: paths, patterns ('models/**/*.onnx'), folders, an OCI image layout; '-' "
            "reads standard input.",
        ),
    ],
    policy: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--policy",
            metavar="FILE",
            help="A TOML policy (docs/policy.md), or a preset: tensorrt-importable, sparse-int8, "
            "registry-strict. Default: a valid model whose recorded and eligible weights are all "
            "2:4.",
            show_default=False,
        ),
    ] = None,
    target: o.TargetName = DEFAULT_TARGET,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="text|json|sarif|junit|github", help="The form of the result."
        ),
    ] = "text",
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FILE", help="Write the result there."),
    ] = None,
    baseline: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--baseline", metavar="FILE", help="Findings that are known and accepted."),
    ] = None,
    write_baseline: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--write-baseline", metavar="FILE", help="Accept what is found, in FILE."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain every code that occurs.")
    ] = False,
    jobs: Annotated[
        int,
        typer.Option("--jobs", metavar="N", help="Models checked at a time; 0: one a core.", min=0),
    ] = 0,
    json: o.Json = False,
) -> int:
    """Hold models to a policy; exit code 1 where one is not met, 2 where a file is refused.

    Each file is read in a process of its own with limits of memory and time, so that hostile ones
    do no harm. A policy is a TOML file, docs/policy.md is its manual: what is not written is not
    checked, and unknown keys are refused.
    """
    from onnx24.cli.checking import CheckRequest, check_models

    return check_models(
        CheckRequest(
            models=tuple(models),
            policy=policy,
            target=target,
            form="json" if json else format,
            output=output,
            baseline=baseline,
            write_baseline=write_baseline,
            explain=explain,
            jobs=jobs,
        )
    )


@app.command("verify-provenance")
def verify_provenance(
    model: o.ModelPath,
    input: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--input",
            metavar="ORIGINAL",
            help="The model that it should have been made of.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--report",
            metavar="FILE.json",
            help="The report that the run should have written.",
            show_default=False,
        ),
    ] = None,
    json: o.Json = False,
) -> int:
    """Say what made a model and of what; exit code 1 where the record does not hold.

    The record lies in the model's metadata. It shows that nobody changed the model by accident;
    whoever changes it on purpose can change the record too: sign the file for that.
    """
    from onnx24.cli.proving import verify_model_provenance

    return verify_model_provenance(model, input, report, as_json=json)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The original model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to compare with it.")],
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--data",
            metavar="DATA",
            help=f"{o.DATA_FORMS} Default: the test_data_set_* folders beside A.",
            show_default=False,
        ),
    ] = None,
    seed: o.Seed = 0,
    shapes: o.Shapes = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Also every inner value that both models compute under the same name."
        ),
    ] = False,
    max_drop: o.MaxDrop = None,
    json: o.Json = False,
) -> int:
    """Run two models on the same data and compare their outputs."""
    from onnx24.cli.comparing import CompareRequest, compare_models

    return compare_models(
        CompareRequest(
            a=a,
            b=b,
            data=data,
            seed=seed,
            shapes=tuple(shapes or ()),
            layers=layers,
            max_drop=tuple(max_drop or ()),
            as_json=json,
        )
    )


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The one model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other model.")],
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit code 1 where the models differ."),
    ] = False,
    html: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--html", metavar="FILE", help="Write the difference as a page, too."),
    ] = None,
    json: o.Json = False,
) -> int:
    """Say how two models differ: nodes, initializers and their values, interface, metadata."""
    from onnx24.cli.diffing import diff_models

    return diff_models(a, b, html=html, exit_code=exit_code, as_json=json)


@app.command()
def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX model's path.")],
    target: o.TargetName = DEFAULT_TARGET,
    backend: Annotated[
        str,
        typer.Option("--backend", metavar="B", help="auto, tensorrt, trtexec or tensorrt-rtx."),
    ] = "auto",
    engine: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--engine",
            metavar="FILE",
            help="The engine. Default: MODEL's stem + .engine in the current folder.",
            show_default=False,
        ),
    ] = None,
    shapes: o.Shapes = None,
    calib: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--calib",
            metavar="DATA",
            help="Samples that give the sizes of dynamic inputs which --shapes leaves out. An .npz "
            "of a dynamic batch counts as batches of 1 to 16.",
        ),
    ] = None,
    timeout: o.Timeout = None,
    sparsity: Annotated[
        bool, typer.Option("--sparsity/--no-sparsity", help="Let the builder use 2:4 kernels.")
    ] = True,
    workspace: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workspace", metavar="MIB", help="Memory that kernels may use.", min=1),
    ] = None,
    optimization_level: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--optimization-level", metavar="0..5", help="How hard the builder tries.", min=0, max=5
        ),
    ] = None,
    timing_cache: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--timing-cache",
            metavar="FILE",
            help="Read kernel timings from there and keep them; the report gives their hash.",
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            metavar="none|ampere+|same",
            help="Which other GPUs the engine may run on: none, all from Ampere on, or those of "
            "the same compute capability.",
        ),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Let later TensorRT releases run the engine."),
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Let the engine's weights be replaced later.")
    ] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave weights out that a refit can restore.")
    ] = False,
    log: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--log", metavar="FILE", help="Keep the builder's whole log (for `onnx24 ledger`)."
        ),
    ] = None,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--layers",
            metavar="FILE",
            help="Keep the engine's layers as JSON (for `onnx24 ledger`).",
        ),
    ] = None,
    print_command: Annotated[
        bool,
        typer.Option(
            "--print-command",
            help="Build nothing; print the command line of trtexec for the target's TensorRT, to "
            "be run where that is installed.",
        ),
    ] = False,
    export: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--export",
            metavar="PREFIX",
            help="With --print-command: also run and time the engine, and write "
            "PREFIX.layers.json, PREFIX.times.json and PREFIX.profile.json (for `onnx24 ledger`).",
        ),
    ] = None,
    json: o.Json = False,
) -> int:
    """Build an engine with TensorRT.

    The builder runs in a process of its own, so that its crash or hang ends in exit code 3 with the
    last lines of its log. Dynamic inputs need a size: --shapes, or --calib, whose samples give the
    smallest, the most frequent and the largest size of each dimension.
    """
    from onnx24.cli.building import BuildRequest, build_engine

    return build_engine(
        BuildRequest(
            model=model,
            target=target,
            backend=backend,
            engine=engine,
            shapes=tuple(shapes or ()),
            calib=calib,
            timeout_s=timeout,
            sparsity=sparsity,
            workspace_mib=workspace,
            optimization_level=optimization_level,
            timing_cache=timing_cache,
            hardware_compatibility=hardware_compatibility,
            version_compatible=version_compatible,
            refit=refit,
            strip=strip,
            log=log,
            layers=layers,
            print_command=print_command,
            export=export,
            as_json=json,
        )
    )


@app.command()
def ledger(
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="MODEL",
            help="The model, original or compiled: one row for each of its layers. Without it one "
            "for each layer of the engine.",
        ),
    ] = None,
    log: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--log", metavar="FILE", help="The builder's verbose log.", show_default=False
        ),
    ] = None,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--layers",
            metavar="FILE",
            help="The engine's layers: `onnx24 build --layers`, trtexec's --exportLayerInfo or the "
            "engine inspector's JSON.",
        ),
    ] = None,
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--profile", metavar="FILE", help="Layer times: trtexec's --exportProfile."),
    ] = None,
    times: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--times", metavar="FILE", help="Run times: trtexec's --exportTimes."),
    ] = None,
    dense_log: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--dense-log", metavar="FILE", help="The same of an engine built without sparsity."
        ),
    ] = None,
    dense_layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--dense-layers", metavar="FILE", help="Its layers."),
    ] = None,
    dense_profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--dense-profile", metavar="FILE", help="Its layer times."),
    ] = None,
    dense_times: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--dense-times", metavar="FILE", help="Its run times."),
    ] = None,
    target: o.TargetName = DEFAULT_TARGET,
    shapes: o.Shapes = None,
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--output", "-o", metavar="FILE", help="Also write it there, as .html, .json or .txt."
        ),
    ] = None,
    json: o.Json = False,
) -> int:
    """Say of every layer whether it was eligible for 2:4, chosen, and faster.

    Works from the files of a build and a measurement alone, which may have run elsewhere:
    `onnx24 build MODEL --print-command --export run` prints the trtexec command that writes them.
    What no file says is shown as "–". A layer counts as faster where its median time is more than
    3 % below that in the dense engine.
    """
    from onnx24.cli.ledger import LedgerRequest, keep_ledger

    return keep_ledger(
        LedgerRequest(
            model=model,
            target=target,
            shapes=tuple(shapes or ()),
            log=log,
            layers=layers,
            profile=profile,
            times=times,
            dense_log=dense_log,
            dense_layers=dense_layers,
            dense_profile=dense_profile,
            dense_times=dense_times,
            output=output,
            as_json=json,
        )
    )


@app.command()
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The dense ONNX model's path.")],
    target: o.TargetName = DEFAULT_TARGET,
    backend: Annotated[
        str,
        typer.Option("--backend", metavar="B", help="auto, tensorrt, trtexec or tensorrt-rtx."),
    ] = "auto",
    variants: Annotated[
        str,
        typer.Option(
            "--variants",
            metavar="LIST",
            help="Some of dense, sparse, int8 and sparse-int8; dense is always among them.",
        ),
    ] = "dense,sparse,int8,sparse-int8",
    batch: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            "--batch",
            metavar="N",
            help="A size of the dynamic first dimension. Repeat it for further sizes.",
            min=1,
            show_default=False,
        ),
    ] = None,
    shapes: o.Shapes = None,
    calib: o.Calib = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Measure nothing: give roofline bounds per layer from data-sheet peaks. Needs no "
            "GPU.",
        ),
    ] = False,
    gpu: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="With --estimate: the GPU, for instance 'L40S'. Default: the first known of the "
            "target's compute capability.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option("--rounds", metavar="N", help="How often each engine has its turn.", min=8),
    ] = 20,
    timeout: o.Timeout = None,
    json: o.Json = False,
) -> int:
    """Measure what 2:4 and INT8 gain, or estimate it.

    Builds an engine for each variant and batch size and runs them in turns on the GPU that is here;
    a gain that the noise could have made is shown as none. Without a GPU it ends in exit code 3;
    --estimate then gives bounds that no kernel reaches, and says so.
    """
    from onnx24.cli.bench import BenchRequest, bench_model

    return bench_model(
        BenchRequest(
            model=model,
            target=target,
            backend=backend,
            variants=variants,
            batches=tuple(batch or ()),
            shapes=tuple(shapes or ()),
            calib=calib,
            estimate=estimate,
            gpu=gpu,
            rounds=rounds,
            timeout_s=timeout,
            as_json=json,
        )
    )


@app.command()
def gate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The 2:4 model.")],
    ledger: Annotated[
        str,
        typer.Option(
            "--ledger",
            metavar="FILE",
            help="A ledger as JSON, with the times of a sparse and a dense engine.",
        ),
    ],
    work_dir: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--work-dir",
            metavar="DIR",
            help="The --work-dir that MODEL was pruned with: it holds the dense weights.",
            show_default=False,
        ),
    ] = None,
    dense: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--dense",
            metavar="DENSE",
            help="The model before it was pruned, for weights that the work dir does not have.",
            show_default=False,
        ),
    ] = None,
    output: o.Output = None,
    noise: Annotated[
        float,
        typer.Option(
            "--noise",
            metavar="SHARE",
            help="A layer is faster where its time falls by more than this share.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.03,
    data: o.Data = None,
    seed: o.Seed = 0,
    shapes: o.Shapes = None,
    json: o.Json = False,
) -> int:
    """Give layers that 2:4 did not make faster their dense weights back.

    A weight stays 2:4 where one of its layers is faster, and where one was not measured. The dense
    values come from --work-dir, where they lie as they were right before pruning, or from --dense,
    which is refused for weights whose channels were scaled or permuted since. With --data the
    sparse and the gated model are both compared with the dense one, or with MODEL as it is with
    all its dense weights.
    """
    from onnx24.cli.gating import GateRequest, gate_model

    return gate_model(
        GateRequest(
            model=model,
            dense=dense,
            work_dir=work_dir,
            ledger=ledger,
            output=output,
            noise=noise,
            data=data,
            seed=seed,
            shapes=tuple(shapes or ()),
            as_json=json,
        )
    )


@app.command()
def recover(
    model: o.ModelPath,
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher", metavar="DENSE", help="The dense model, whose outputs are learnt."
        ),
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="DATA", help=f"Samples to train on. {o.DATA_FORMS}"),
    ],
    output: o.Output = None,
    labels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--labels",
            metavar="FILE.npy",
            help="The right class of each sample, as integers.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="basic|progressive|sparse-qat",
            help="Train under the masks that are there; prune in parts while training; or train "
            "through fake quantizers.",
        ),
    ] = "basic",
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Steps.", min=1)] = 200,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Samples a step.", min=1)] = 32,
    micro_batch: Annotated[
        int,
        typer.Option(
            "--micro-batch",
            metavar="N",
            help="Samples that are run at once, their gradients summed; 0: the whole batch.",
            min=0,
        ),
    ] = 0,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate",
            metavar="X",
            help="At the first step; 0: 0.001, or less for a start that is close.",
        ),
    ] = 0.0,
    rate: Annotated[
        str,
        typer.Option(
            "--rate", metavar="linear|cosine|constant", help="How the learning rate falls to 0."
        ),
    ] = "linear",
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="adam|adamw|sgd", help="What takes the steps.")
    ] = "adam",
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="auto|kl|mse",
            help="How outputs are compared: by the divergence of their softmaxes, or by squares.",
        ),
    ] = "auto",
    relations: Annotated[
        float,
        typer.Option(
            "--relations",
            metavar="X",
            help="Weight of the last attention's query, key and value relations.",
        ),
    ] = 0.0,
    masks: Annotated[
        str,
        typer.Option(
            "--masks", metavar="fixed|recomputed", help="Keep the masks, or choose them as it goes."
        ),
    ] = "fixed",
    parts: Annotated[
        int, typer.Option("--parts", metavar="N", help="Parts of progressive pruning.", min=1)
    ] = 2,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", metavar="linear|cubic", help="How sparsity grows over the parts."
        ),
    ] = "linear",
    scales: Annotated[
        str,
        typer.Option(
            "--scales",
            metavar="calibrated|learned",
            help="Keep the quantizers' scales, or train them too.",
        ),
    ] = "calibrated",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="fp32|bf16|fp16|auto",
            help="What the model is computed in while it is trained; weights stay in FP32.",
        ),
    ] = "fp32",
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Where the model is trained.")
    ] = "cpu",
    ema: Annotated[
        float,
        typer.Option("--ema", metavar="X", help="Keep the weights' running mean of this decay."),
    ] = 0.0,
    patience: Annotated[
        int,
        typer.Option(
            "--patience",
            metavar="N",
            help="Stop after N evaluations (each 25 steps) that are no better; 0: never.",
            min=0,
        ),
    ] = 0,
    target: o.TargetName = DEFAULT_TARGET,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Decides the order of samples.", min=0)
    ] = 0,
    shapes: o.Shapes = None,
    work_dir: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--work-dir",
            metavar="DIR",
            help="Keep checkpoints here, so that a run that was stopped goes on with them.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write the result with its loss curve as .json, .txt or .html. May be repeated.",
            show_default=False,
        ),
    ] = None,
    external: o.External = "auto",
    json: o.Json = False,
) -> int:
    """Train a compressed model to give the dense model's outputs again, without labels.

    Only values of initializers change; weights that are 2:4 stay so. A tenth of the samples is
    held out, and the weights of the least divergence on it are kept. Needs torch (onnx24[train]).
    Several processes train together: torchrun --nproc-per-node 2 --no-python onnx24 recover …
    """
    from onnx24.cli.recovering import RecoverRequest, recover_model

    return recover_model(
        RecoverRequest(
            model=model,
            teacher=teacher,
            data=data,
            output=output,
            labels=labels,
            recipe=recipe,
            options={
                "steps": steps,
                "batch": batch,
                "micro_batch": micro_batch,
                "learning_rate": learning_rate,
                "rate": rate,
                "optimizer": optimizer,
                "loss": loss,
                "relations": relations,
                "masks": masks,
                "parts": parts,
                "schedule": schedule,
                "scales": scales,
                "precision": precision,
                "ema": ema,
                "patience": patience,
            },
            target=target,
            seed=seed,
            shapes=tuple(shapes or ()),
            work_dir=work_dir,
            reports=tuple(report or ()),
            external=external,
            as_json=json,
            device=device,
        )
    )


@app.command()
def bisect(
    model: o.ModelPath,
    pipeline: Annotated[
        str, typer.Option("--pipeline", metavar="TEXT", help="The passes to search.")
    ],
    target: o.TargetName = DEFAULT_TARGET,
    calib: o.Calib = None,
    data: o.Data = None,
    seed: o.Seed = 0,
    shapes: o.Shapes = None,
    max_drop: o.MaxDrop = None,
    command: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--command",
            metavar="CMD",
            help="A shell command that judges instead: good is exit code 0. {model} in it stands "
            "for the model's path.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--timeout", metavar="SECONDS", help="A --command that runs longer is bad.", min=0.001
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the invariants after every pass.")
    ] = True,
    json: o.Json = False,
) -> int:
    """Find the layer or weight whose transformation breaks a model.

    The judge is --command, or --max-drop on --data (rel-l2=0.1 unless given); without either, a
    model is bad where a pass fails or ONNX Runtime refuses the result. Exit code 1 where the
    model is bad before anything is transformed.
    """
    from onnx24.cli.bisecting import BisectRequest, bisect_model

    return bisect_model(
        BisectRequest(
            model=model,
            pipeline=pipeline,
            target=target,
            calib=calib,
            data=data,
            seed=seed,
            shapes=tuple(shapes or ()),
            max_drop=tuple(max_drop or ()),
            command=command,
            timeout_s=timeout,
            verify=verify,
            as_json=json,
        )
    )


@app.command()
def passes(json: o.Json = False) -> int:
    """List the passes and the presets."""
    from onnx24.cli.listing import list_passes

    return list_passes(as_json=json)


@app.command()
def targets(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[T]", help="One target, with the sources of its facts."),
    ] = None,
    json: o.Json = False,
) -> int:
    """List the targets: what a GPU architecture can do under a TensorRT release."""
    from onnx24.cli.listing import list_targets

    return list_targets(name, as_json=json)


@app.command()
def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="For instance O24-113, or 113.")],
    json: o.Json = False,
) -> int:
    """Explain a diagnostic's code."""
    from onnx24.cli.listing import explain_code

    return explain_code(code, as_json=json)


app.add_typer(registry_app, name="registry")
