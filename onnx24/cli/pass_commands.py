"""One command a pass, made from the pass's fields.

The overview needs only names and first sentences, which are read without importing a pass:
passes import onnx, and `onnx24 --help` should not.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from onnx24.cli import command
from onnx24.cli.making import Effort, Making

if TYPE_CHECKING:
    from onnx24.passmgr.options import Option

_GROUP = "onnx24.passes"

COMMON = tuple(field.name for field in fields(Making))
"""What every pass's command takes."""
RESERVED = (*COMMON, *(field.name for field in fields(Effort)))


def own_names() -> list[str]:
    """The project's own passes, in the order of the manifest."""
    return list(importlib.import_module("onnx24.passes").MANIFEST)


@cache
def _manifest() -> dict[str, str]:
    """Every pass that is announced: name → "module:Class"."""
    found: dict[str, str] = dict(importlib.import_module("onnx24.passes").MANIFEST)
    for point in sorted(metadata.entry_points(group=_GROUP), key=lambda point: point.name):
        found.setdefault(point.name, point.value)
    return found


def names() -> list[str]:
    """Own passes in the order of the manifest, then the plug-ins' by name."""
    return list(_manifest())


def stub(name: str) -> Any:
    """A command with nothing but its name and first sentence; None where there is no pass."""
    return command.stub(name, _manifest()[name]) if name in _manifest() else None


def made(name: str) -> Any:
    """The command of a pass. Raises: InputError O24-028; InternalError."""
    from onnx24.passmgr import registry
    from onnx24.passmgr.options import field_options, from_flags

    cls = registry.get(name)
    flags = {option.name: _parameter(name, option) for option in field_options(cls)}

    def run(given: dict[str, Any]) -> int:
        from onnx24.cli.making import run_pass

        instance = from_flags(cls, {name: given[p.name] for name, p in flags.items()})
        return run_pass(instance, given)

    common = command.parameters(Making) + (command.parameters(Effort) if cls.heavy else [])
    return command.build(name, command.manual(cls), [*flags.values(), *common], run)


def _parameter(pass_name: str, option: Option) -> inspect.Parameter:
    """An option as a typer parameter. Values stay text: the pass's own rules read them, and
    their errors are the same as in a pipeline."""
    parameter = option.field
    flag = option.flag
    if parameter in RESERVED:
        flag = f"--{pass_name}-{option.name}"
        parameter = f"pass_{parameter}"
    default = "" if option.required else option.write(option.default)
    text = option.help if option.required else f"{option.help} [default: {default}]"
    if option.type is bool and not option.many and not option.optional:
        annotation: Any = Annotated[
            Optional[bool],  # noqa: UP045
            typer.Option(f"{flag}/--no-{flag.removeprefix('--')}", help=text, show_default=False),
        ]
    else:
        kind = Optional[list[str]] if option.many else Optional[str]  # noqa: UP045
        annotation = Annotated[
            kind,
            typer.Option(flag, metavar=_metavar(option), help=text, show_default=False),
        ]
    return inspect.Parameter(
        parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join([*option.choices, *(["none"] if option.optional else [])])
    kind = {int: "N", float: "X", str: "TEXT"}[option.type]
    return f"{kind}|…" if option.many else kind


def summary(name: str) -> str:
    """The first sentence of a pass's manual, in one line."""
    text = " ".join(command.summary(_manifest()[name]).split())
    return text.split(". ", 1)[0].rstrip(".")
