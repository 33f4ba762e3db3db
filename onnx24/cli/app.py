"""The commands and their options. What they do is in the other modules of this package, which
are imported when a command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from onnx24.cli import pass_commands
from onnx24.cli.command import command, stub
from onnx24.cli.registering import registry_app

if TYPE_CHECKING:
    from onnx24.cli.signals import Signals

_UsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _UsageError.__base__


COMMANDS = {
    "compile": "onnx24.cli.making:Compile",
    "opt": "onnx24.cli.making:Opt",
    "tune": "onnx24.cli.making:Tune",
    "inspect": "onnx24.cli.views:Inspect",
    "check": "onnx24.cli.policies:Check",
    "verify-provenance": "onnx24.cli.views:VerifyProvenance",
    "sign": "onnx24.cli.making:Sign",
    "compare": "onnx24.cli.views:Compare",
    "diff": "onnx24.cli.views:Diff",
    "build": "onnx24.cli.engines:Build",
    "ledger": "onnx24.cli.engines:Ledger",
    "bench": "onnx24.cli.engines:Bench",
    "gate": "onnx24.cli.engines:Gate",
    "recover": "onnx24.cli.training:Recover",
    "bisect": "onnx24.cli.views:Bisect",
    "passes": "onnx24.cli.listing:Passes",
    "targets": "onnx24.cli.listing:Targets",
    "explain": "onnx24.cli.listing:Explain",
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


def run(argv: Sequence[str], signals: Signals | None = None) -> int:
    """Run one command line. Returns: its exit code."""
    return _run(group(), list(argv), signals)


def group() -> Any:
    """The group of all commands, as typer builds it."""
    return typer.main.get_command(app)


def _run(commands: Any, argv: list[str], signals: Signals | None = None) -> int:
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
        if signals is not None:
            err = signals.error() or err
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


app.add_typer(registry_app, name="registry")
