"""One command a pass, made from the pass's fields.

The overview needs only names and first sentences, which are read without importing a pass:
passes import onnx, and `onnx24 --help` should not.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from onnx24.cli import options as o

if TYPE_CHECKING:
    from onnx24.passmgr.base import Pass
    from onnx24.passmgr.options import Option

_GROUP = "onnx24.passes"

COMMON: dict[str, tuple[Any, Any]] = {
    "output": (o.Output, None),
    "target": (o.TargetName, o.DEFAULT_TARGET),
    "calib": (o.Calib, None),
    "seed": (o.Seed, 0),
    "shapes": (o.Shapes, None),
    "report": (o.ReportFile, None),
    "external": (o.External, "auto"),
    "provenance": (o.Provenance, "auto"),
    "guard": (o.GuardMode, "off"),
    "json": (o.Json, False),
}
"""Options that every pass's command has: parameter → (annotation, default)."""
EFFORT: dict[str, tuple[Any, Any]] = {
    "memory": (o.Memory, o.DEFAULT_MEMORY),
    "workers": (o.Workers, None),
    "executor": (o.Executor, "local"),
    "work_dir": (o.WorkDir, None),
}
"""Those of passes that work for long."""


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
    if name not in _manifest():
        return None
    return TyperCommand(name=name, help=_summary(_manifest()[name]))


def _summary(target: str) -> str:
    """The first paragraph of the class's docstring, read from its source."""
    module, _, attribute = target.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        tree = ast.parse(source)
    except (ImportError, OSError, SyntaxError, ValueError):
        return ""  # the command itself says what is wrong with the pass
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").split("\n\n", 1)[0]
    return ""


def command(name: str) -> Any:
    """The command of a pass. Raises: InputError O24-028; InternalError."""
    from onnx24.passmgr import registry
    from onnx24.passmgr.options import field_options

    cls = registry.get(name)
    flags = {option.name: _parameter(name, option) for option in field_options(cls)}
    single = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    single.command(name, help=_help(cls), context_settings={"help_option_names": ["--help", "-h"]})(
        _callback(cls, flags)
    )
    return typer.main.get_command(single)


def _parameter(pass_name: str, option: Option) -> inspect.Parameter:
    """An option as a typer parameter. Values stay text: the pass's own rules read them, and
    their errors are the same as in a pipeline."""
    parameter = option.field
    flag = option.flag
    if parameter in COMMON | EFFORT or parameter == "model":
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


def _callback(cls: type[Pass], flags: dict[str, inspect.Parameter]) -> Callable[..., int]:
    def run(**given: Any) -> int:
        from onnx24.cli.compiling import OptRequest, run_pipeline
        from onnx24.cli.effort import EffortFlags
        from onnx24.passmgr.options import from_flags

        instance = from_flags(cls, {name: given[p.name] for name, p in flags.items()})
        return run_pipeline(
            OptRequest(
                command=cls.name,
                model=given["model"],
                output=given["output"],
                target=given["target"],
                passes=(instance,),
                calib=given["calib"],
                seed=given["seed"],
                shapes=tuple(given["shapes"] or ()),
                reports=tuple(given["report"] or ()),
                external=given["external"],
                provenance=given["provenance"],
                guard=given["guard"],
                effort=EffortFlags(**{name: given[name] for name in EFFORT if name in given}),
                as_json=given["json"],
            )
        )

    model = inspect.Parameter(
        "model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=o.ModelPath
    )
    common = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in (COMMON | (EFFORT if cls.heavy else {})).items()
    ]
    parameters = [model, *flags.values(), *common]
    run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__ = cls.name.replace("-", "_")
    return run


def _help(cls: type[Pass]) -> str:
    """The pass's manual. \\b keeps the lines of an indented paragraph or a list as they are."""
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    kept = [
        f"\b\n{text}" if text.startswith((" ", "-", "*")) or "\n    " in text else text
        for text in paragraphs
    ]
    return "\n\n".join(kept)


def summary(name: str) -> str:
    """The first sentence of a pass's manual, in one line."""
    text = " ".join(_summary(_manifest()[name]).split())
    return text.split(". ", 1)[0].rstrip(".")
