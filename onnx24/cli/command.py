"""Commands as passes are: a frozen dataclass whose fields are its arguments and flags, and whose
docstring is its manual. What is declared here once, typer parses and docs/cli.md shows.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import importlib
import importlib.util
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from onnx24.cli.files import check_distinct, check_output
from onnx24.cli.options import KEEPS, WRITES
from onnx24.driver.usage import usage


@dataclass(frozen=True, kw_only=True)
class Command(abc.ABC):
    """Base of all commands. A field is `Annotated[type, typer.Option(…)]`, or an alias of it from
    `options`; a `Literal` of words is held to them."""

    @abc.abstractmethod
    def run(self) -> int:
        """Do the job and say what happened. Returns: the exit code."""


def stub(name: str, target: str) -> Any:
    """A command with nothing but its name and first paragraph. target: "module:Class"."""
    return TyperCommand(name=name, help=summary(target))


def summary(target: str) -> str:
    """The first paragraph of a class's docstring, read from its source: the overview of commands
    imports none of them."""
    module, _, attribute = target.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        tree = ast.parse(source)
    except (ImportError, OSError, SyntaxError, ValueError):
        return ""  # the command itself says what is wrong
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").split("\n\n", 1)[0]
    return ""


def command(name: str, target: str) -> Any:
    """The command of a class, as typer builds it."""
    module, _, attribute = target.partition(":")
    cls: type[Command] = getattr(importlib.import_module(module), attribute)
    return build(name, manual(cls), parameters(cls), lambda given: cls(**given).run())


def build(
    name: str, text: str, flags: list[inspect.Parameter], run: Callable[[dict[str, Any]], int]
) -> Any:
    """A command of these parameters that hands what was given to `run`."""
    words = {p.name: choices for p in flags if (choices := _words(p.annotation))}

    def callback(**given: Any) -> int:
        for field, allowed in words.items():
            _check_word(field, given[field], allowed)
        from onnx24.cli.signals import catch_cut_files
        from onnx24.ir.inputs import protecting, refuse_irregular

        catch_cut_files()
        inputs = _texts(given, [p.name for p in flags if not _marked(p, WRITES, KEEPS)])
        refuse_irregular(inputs)
        with protecting(inputs):
            written = [p for p in flags if _marked(p, WRITES)]
            named = [(spelled(p), path) for p in written for path in _texts(given, [p.name])]
            for _, path in named:
                check_output(path)
            check_distinct(named)
            return run(given)

    shown = [p.replace(annotation=_plain(p.annotation)) for p in flags]
    callback.__signature__ = inspect.Signature(shown, return_annotation=int)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in shown}
    callback.__name__ = name.replace("-", "_")
    single = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    single.command(name, help=text, context_settings={"help_option_names": ["--help", "-h"]})(
        callback
    )
    return typer.main.get_command(single)


def _marked(parameter: inspect.Parameter, *marks: str) -> bool:
    return any(mark in marks for mark in getattr(parameter.annotation, "__metadata__", ()))


def spelled(parameter: inspect.Parameter) -> str:
    """How an option is written, in its shortest form."""
    option = parameter.annotation.__metadata__[0]
    return str([option.default, *(option.param_decls or ())][-1])  # the first is where typer put it


def _texts(given: dict[str, Any], names: list[str]) -> list[str]:
    """The texts that were given for these parameters."""
    found = [given[name] for name in names]
    values = [v for value in found for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, str)]


def parameters(cls: type[Any]) -> list[inspect.Parameter]:
    """The fields of a command."""
    found = []
    for field in dataclasses.fields(cls):
        hint = _hint(cls, field.name)
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        found.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
            )
        )
    return found


def _hint(cls: type[Any], name: str) -> Any:
    """The annotation of one field, evaluated where it was written."""
    for owner in cls.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            holder = type("Holder", (), {"__annotations__": {name: owner.__annotations__[name]}})
            module = importlib.import_module(owner.__module__)
            return typing.get_type_hints(holder, vars(module), include_extras=True)[name]
    raise KeyError(name)


def manual(cls: type[Any]) -> str:
    """The docstring. \\b keeps the lines of an indented paragraph or a list as they are."""
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    kept = [
        f"\b\n{text}" if text.startswith((" ", "-", "*")) or "\n    " in text else text
        for text in paragraphs
    ]
    return "\n\n".join(kept)


def _words(annotation: Any) -> tuple[str, ...]:
    """The words of a Literal, also of one that may be left out; nothing for other types."""
    kind = annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation
    members = (
        typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else ()
    )
    for member in members or (kind,):
        if typing.get_origin(member) is Literal:
            return typing.get_args(member)
    return ()


def _plain(annotation: Any) -> Any:
    """With str in place of a Literal, whose words make the option's metavar."""
    words = _words(annotation)
    if not words:
        return annotation
    kind, option = annotation.__origin__, annotation.__metadata__[0]
    option.metavar = "|".join(words)
    optional = type(None) in typing.get_args(kind)
    return Annotated[typing.Optional[str] if optional else str, option]  # noqa: UP045


def _check_word(field: str, value: str | None, allowed: tuple[str, ...]) -> None:
    """Raises: InputError O24-043, with the nearest word."""
    if value is None or value in allowed:
        return
    from onnx24.passmgr.options import did_you_mean

    near = did_you_mean(value, allowed, begins=True)
    flag = f"--{field.replace('_', '-')}"
    raise usage(f"{flag} {value}: expected one of {', '.join(allowed)}", f"{near}see --help")
