"""Each pass as a function: its fields are the parameters, its manual is the docstring."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from onnx24.driver.compiling import optimize
from onnx24.driver.models import ModelLike
from onnx24.driver.result import Result
from onnx24.errors import InputError
from onnx24.passmgr import registry
from onnx24.passmgr.base import Pass
from onnx24.passmgr.options import Option, Word, construct, did_you_mean, field_options

COMMON = tuple(
    parameter
    for name, parameter in inspect.signature(optimize).parameters.items()
    if name not in ("model", "pipeline", "command", "stop_after", "instruments")
)
"""What every pass's function takes besides."""


def apply(name: str, model: ModelLike, **options: Any) -> Result:
    """Run one pass by its name in pipeline text, a plug-in's too.

    options: the pass's own (`onnx24 PASS --help` is its manual), and those of `onnx24.optimize`.

    Raises: as `optimize`; InputError O24-021 for a pass that is none, O24-022 and O24-023 for an
    option.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> result = onnx24.apply("matmul-to-conv1x1", mlp([64, 32]))
    >>> result.status
    'done'
    """
    cls = registry.get(name)
    own = {option.field: option for option in field_options(cls)}
    common = {parameter.name for parameter in COMMON} - own.keys()
    given = {}
    for key in list(options):
        if key in common:
            given[key] = options.pop(key)
        elif key not in own:
            near = did_you_mean(key, [*own, *common], begins=True)
            raise InputError.of(
                "O24-022",
                f"pass {name!r} has no option {key!r}",
                hint=f"{near}it has {', '.join(own) or 'none'}",
            )
    return optimize(model, _instance(cls, own, options), command=name, **given)


def _instance(cls: type[Pass], own: dict[str, Option], options: dict[str, Any]) -> Pass:
    """The pass; words may stand for the members of an enumeration, and one for a tuple of one."""
    try:
        values = {key: _value(own[key], value) for key, value in options.items()}
        instance = construct(cls, values)
        for key, value in values.items():
            own[key].write(value)
    except (ValueError, TypeError) as err:
        raise InputError.of("O24-023", f"{cls.name}: {err}") from err
    return instance


def _value(option: Option, value: Any) -> Any:
    if option.many:
        return (value,) if isinstance(value, str) else tuple(value)
    if isinstance(value, str) and not isinstance(value, option.type):
        return option.read([Word(value)])
    return value


def function_names() -> list[str]:
    """What the functions are called: the passes' names in Python's spelling."""
    return [name.replace("-", "_") for name in registry.names()]


@cache
def function(name: str) -> Callable[..., Result]:
    """The function of a pass. Raises: AttributeError where no pass has that name."""
    known = dict(zip(function_names(), registry.names(), strict=True))
    if name not in known:
        near = did_you_mean(name, known)
        raise AttributeError(f"module 'onnx24' has no attribute {name!r}{near}")
    return _function(name, registry.get(known[name]))


def _function(name: str, cls: type[Pass]) -> Callable[..., Result]:
    def run(model: ModelLike, **options: Any) -> Result:
        return apply(cls.name, model, **options)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = inspect.getdoc(cls)
    run.__module__ = "onnx24"
    run.__signature__ = signature(cls)  # type: ignore[attr-defined]
    return run


def signature(cls: type[Pass]) -> inspect.Signature:
    """Of a pass's function: the model, the pass's own options, and those of `optimize`."""
    own = [_parameter(option) for option in field_options(cls)]
    taken = {parameter.name for parameter in own}
    model = inspect.Parameter(
        "model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="ModelLike"
    )
    rest = [parameter for parameter in COMMON if parameter.name not in taken]
    return inspect.Signature([model, *own, *rest], return_annotation="Result")


def _parameter(option: Option) -> inspect.Parameter:
    if option.many:
        kind = "str | Iterable[str]"
    elif option.choices and option.type is not bool:
        kind = f"Literal[{', '.join(map(repr, option.choices))}]"
    else:
        kind = option.type.__name__
    if option.optional:
        kind += " | None"
    default = option.default
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    elif option.choices and option.type is not bool and default is not None:
        default = default.value
    return inspect.Parameter(
        option.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
    )
