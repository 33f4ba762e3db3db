"""A pass's fields as options: in pipeline text, on the command line and in the reference.

One field `min_channels: Annotated[int, "help"] = 16` is `min-channels=8` in a pipeline,
`--min-channels 8` on the command line, and a row of the pass's table of options.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, TypeVar

from onnx24.errors import InputError
from onnx24.passmgr.base import Pass, code_ids

P = TypeVar("P", bound=Pass)

NONE = "none"
SEPARATOR = "|"
"""Between the elements of a tuple: it reads as "or" between patterns, and unlike `;`, `+`, `:`
and `/` it is not used in the node names that exporters make."""

BARE = r"""[^\s,{}|"']+"""
"""A word that needs no quotes in pipeline text (a regular expression)."""

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""The name of a pass, an option or a preset (a regular expression)."""

_BARE = re.compile(BARE)
_INT = re.compile(r"[+-]?\d+")
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Word:
    """One piece of a value in pipeline text; `"none"` in quotes is a string, bare it is None."""

    text: str
    quoted: bool = False

    def __str__(self) -> str:
        return quote(self.text) if self.quoted else self.text


def quote(text: str) -> str:
    """The text in double quotes, with `\\` and `"` escaped."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def did_you_mean(name: str, candidates: Iterable[str], *, begins: bool = False) -> str:
    """`; did you mean 'x'?` for the candidate nearest to `name`, or nothing. begins: what follows
    is more of a hint, and it is `did you mean 'x'? `."""
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    if not near:
        return ""
    return f"did you mean {near[0]!r}? " if begins else f"; did you mean {near[0]!r}?"


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    type: bool, int, float, str or an Enum with string values; the *element's* type where `many`.
    default: dataclasses.MISSING where the option must be given.
    """

    name: str
    field: str
    type: Any
    many: bool
    optional: bool
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def choices(self) -> tuple[str, ...]:
        """What an enumeration allows; empty for other types."""
        if issubclass(self.type, enum.Enum):
            return tuple(str(member.value) for member in self.type)
        return ("true", "false") if self.type is bool else ()

    @property
    def expected(self) -> str:
        """The option's type in words."""
        if issubclass(self.type, enum.Enum):
            text = f"one of {', '.join(self.choices)}"
        else:
            text = {bool: "true or false", int: "an integer", float: "a number", str: "text"}[
                self.type
            ]
        if self.many:
            text = f"words separated by {SEPARATOR}"
        return f"{text}, or {NONE}" if self._has_none else text

    @property
    def _has_none(self) -> bool:
        """Whether a bare `none` stands for no value (no words, for a tuple)."""
        return self.optional or self.many

    def read(self, words: Sequence[Word]) -> Any:
        """The value that the words spell. Raises: ValueError with expected and actual."""
        if self._has_none and list(words) == [Word(NONE)]:
            return () if self.many else None
        if self.many:
            return tuple(word.text for word in words)
        if self.type is str:
            return SEPARATOR.join(word.text for word in words)
        if len(words) != 1:
            actual = SEPARATOR.join(map(str, words))
            raise ValueError(self._mismatch(repr(actual) if words else "nothing"))
        return self._scalar(words[0].text)

    def _scalar(self, text: str) -> Any:
        if issubclass(self.type, enum.Enum):
            for member in self.type:
                if member.value == text:
                    return member
            raise ValueError(self._mismatch(repr(text)) + did_you_mean(text, self.choices))
        if self.type is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if self.type is int and _INT.fullmatch(text):
            return int(text)
        if self.type is float:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if math.isfinite(value):
                return value
        raise ValueError(self._mismatch(repr(text)))

    def _mismatch(self, actual: str) -> str:
        return f"option {self.name!r}: expected {self.expected}, got {actual}"

    def write(self, value: Any) -> str:
        """The value in pipeline text; `read` gives it back. Raises: TypeError."""
        if self._has_none and value == (() if self.many else None):
            return NONE
        if self.many:
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise TypeError(self._mismatch(repr(value)))
            return SEPARATOR.join(self._word(item) for item in value)
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            raise TypeError(self._mismatch(repr(value)))
        if issubclass(self.type, enum.Enum):
            return self._word(value.value)
        if self.type is str:
            return self._word(value)
        if self.type is bool:
            return "true" if value else "false"
        if not math.isfinite(value):
            raise TypeError(self._mismatch(repr(value)))
        return repr(value)

    def _word(self, text: str) -> str:
        is_bare = _BARE.fullmatch(text) and not (self._has_none and text == NONE)
        return text if is_bare else quote(text)


def field_options(cls: type[Pass]) -> list[Option]:
    """The options of a pass, in the order of its fields.

    Raises: TypeError for a field that is not annotated as `passmgr.options` understands it.
    """
    return [_option(cls, field, _hint(cls, field)) for field in dataclasses.fields(cls)]


def _hint(cls: type[Pass], field: dataclasses.Field[Any]) -> Any:
    """The annotation of one field, evaluated where it was written.

    Not `get_type_hints(cls)`: Python 3.10 refuses the bare ClassVar that passes use beside it.
    """
    owner = cls
    for base in cls.__mro__:  # the last that has this very field has declared it
        if getattr(base, "__dataclass_fields__", {}).get(field.name) is field:
            owner = base
    holder = type("Holder", (), {"__annotations__": {field.name: field.type}})
    return typing.get_type_hints(
        holder, vars(sys.modules[owner.__module__]), dict(vars(owner)), include_extras=True
    )[field.name]


def _option(cls: type[Pass], field: dataclasses.Field[Any], hint: Any) -> Option:
    where = f"{cls.__module__}.{cls.__qualname__}.{field.name}"
    help_text = ""
    if typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        help_text = next((extra for extra in extras if isinstance(extra, str)), "")
    if not help_text:
        raise TypeError(f'{where}: expected Annotated[type, "help"], got {hint!r}')
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        members = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
        hint = members[0] if len(members) == 1 else hint
    many = typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...)
    if many and optional:
        raise TypeError(f"{where}: an empty tuple already says that there is no value")
    if many:
        hint = str
    is_enum = isinstance(hint, type) and issubclass(hint, enum.Enum)
    if is_enum and not all(isinstance(member.value, str) for member in hint):
        raise TypeError(f"{where}: an enumeration's values must be strings")
    if is_enum and optional and NONE in [member.value for member in hint]:
        raise TypeError(f"{where}: a member {NONE!r} cannot be told from no value")
    if not is_enum and hint not in _SCALARS:
        raise TypeError(
            f"{where}: options are bool, int, float, str, Enum, tuple[str, ...] or one of them "
            f"or None, not {hint!r}"
        )
    default = field.default
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return Option(
        name=field.name.replace("_", "-"),
        field=field.name,
        type=hint,
        many=many,
        optional=optional,
        default=default,
        help=help_text,
    )


def construct(cls: type[P], values: Mapping[str, Any]) -> P:
    """A pass from values by *field* name. Raises: ValueError for a missing option, and whatever
    the class's own `__post_init__` finds wrong with a value."""
    for option in field_options(cls):
        if option.required and option.field not in values:
            raise ValueError(f"option {option.name!r}: expected {option.expected}, got nothing")
    return cls(**values)


def from_flags(cls: type[P], flags: Mapping[str, bool | str | Sequence[str] | None]) -> P:
    """A pass from command-line flags by option name; None, and for a tuple an empty sequence,
    stand for a flag that is not given.

    A tuple's flag may be repeated, and each of its values may hold several words with `|`.
    Raises: InputError O24-022, O24-023.
    """
    options = {option.name: option for option in field_options(cls)}
    values: dict[str, Any] = {}
    for name, given in flags.items():
        if given is None or given == [] or given == ():
            continue
        if name not in options:
            raise InputError.of("O24-022", unknown_option(cls, name))
        option = options[name]
        if isinstance(given, bool):
            words = [Word("true" if given else "false")]
        elif isinstance(given, str):
            words = _split(given) if option.many else [Word(given)]
        else:
            words = [word for item in given for word in _split(item)]
        try:
            values[option.field] = option.read(words)
        except ValueError as err:
            raise InputError.of("O24-023", f"{cls.name}: {err}") from err
    try:
        return construct(cls, values)
    except ValueError as err:
        raise InputError.of("O24-023", f"{cls.name}: {err}") from err


def _split(text: str) -> list[Word]:
    return [Word(part) for part in text.split(SEPARATOR) if part]


def unknown_option(cls: type[Pass], name: str) -> str:
    """The message for an option that the pass does not have."""
    names = [option.name for option in field_options(cls)]
    have = f"it has {', '.join(names)}" if names else "it has none"
    return f"pass {cls.name!r} has no option {name!r} ({have}){did_you_mean(name, names)}"


def to_text(instance: Pass) -> str:
    """One pass in pipeline text; options at their default are left out.

    Raises: TypeError where a field holds a value of the wrong type.
    """
    parts = []
    for option in field_options(type(instance)):
        value = getattr(instance, option.field)
        if option.required or value != option.default:
            parts.append(f"{option.name}={option.write(value)}")
        else:
            option.write(value)
    return f"{instance.name}{{{' '.join(parts)}}}" if parts else instance.name


def reference(cls: type[Pass]) -> str:
    """The pass's page of the reference in Markdown: manual, table of options, codes."""
    lines = [f"## `{cls.name}`", "", _manual(cls), ""]
    options = field_options(cls)
    if options:
        lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
    for option in options:
        default = "(must be given)" if option.required else f"`{option.write(option.default)}`"
        cells = [f"`{option.name}`", option.expected, default, option.help]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if options:
        lines.append("")
    if codes := code_ids(cls):
        lines += [f"Codes: {', '.join(codes)}.", ""]
    if cls.after:
        lines += [f"Stands after: {', '.join(cls.after)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _manual(cls: type[Pass]) -> str:
    doc = cls.__doc__ or ""
    if doc.startswith(f"{cls.__name__}("):  # what dataclass writes where there is none
        return ""
    first, _, rest = doc.strip().partition("\n")
    return f"{first}\n{_dedent(rest)}".strip()


def _dedent(text: str) -> str:
    lines = text.split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    margin = min(indents, default=0)
    return "\n".join(line[margin:].rstrip() for line in lines)
