"""Samples and sizes as callers hold them."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from onnx24.backends.base import Profile, parse_shapes
from onnx24.driver.usage import usage
from onnx24.errors import InputError
from onnx24.runtime.data import Calibration, load_data
from onnx24.runtime.images import Images
from onnx24.runtime.inputs import input_specs
from onnx24.runtime.sources import calibration_of
from onnx24.runtime.split import Split

if TYPE_CHECKING:
    from onnx24.ir.model import Model
    from onnx24.report.limits import Limit

Sizes = Sequence[int] | tuple[Sequence[int], Sequence[int], Sequence[int]]
Samples = (
    Calibration
    | Images
    | str
    | os.PathLike[str]
    | Mapping[str, Any]
    | Iterable[Any]
    | Callable[[], Any]
)
"""What stands for samples: a path, `random:N`, `Images`, `script.py:function`, or an object that
`onnx24.runtime.sources` describes."""
DataLike = Samples | None
ShapesLike = Mapping[str, Sizes] | Iterable[str] | None
"""Sizes of dynamic inputs: name → sizes, or → (smallest, tuned for, largest); or the command line's
`NAME:SHAPE`."""
LimitsLike = Mapping[str, float] | Iterable[str] | str | None
"""Limits of the comparison: metric or metric@output → bound, or `METRIC=NUMBER@OUTPUT` texts."""


def profiles_of(shapes: ShapesLike) -> dict[str, Profile]:
    """Raises: InputError O24-505."""
    if shapes is None:
        return {}
    if isinstance(shapes, str):
        return parse_shapes([shapes])
    if isinstance(shapes, Mapping):
        return parse_shapes(f"'{name}':{_sizes_text(sizes)}" for name, sizes in shapes.items())
    return parse_shapes(shapes)


def _sizes_text(sizes: Any) -> str:
    """In the command line's words, so that both are read, and refused, by one reader."""
    parts = [sizes] if all(isinstance(size, int) for size in sizes) else sizes
    return ":".join("x".join(map(str, part)) for part in parts)


def limits_of(limits: LimitsLike, *, scored: bool = False) -> list[Limit]:
    """scored: those that need labels or a metric function, too. Raises: InputError O24-043."""
    from onnx24.report.limits import parse_limits

    if isinstance(limits, Mapping):
        limits = [_limit_text(name, bound) for name, bound in limits.items()]
    texts = [limits] if isinstance(limits, str) else limits or ()
    return parse_limits(texts, scored=scored)


def _limit_text(name: str, bound: float) -> str:
    metric, at, output = name.partition("@")
    return f"{metric}={bound}{at}{output}"


@overload
def load_samples(
    data: Samples, model: Model, profiles: Mapping[str, Profile], seed: int
) -> Calibration: ...
@overload
def load_samples(
    data: DataLike, model: Model, profiles: Mapping[str, Profile], seed: int
) -> Calibration | None: ...
def load_samples(
    data: DataLike, model: Model, profiles: Mapping[str, Profile], seed: int
) -> Calibration | None:
    """The samples that `data` stands for, None for none; dynamic dimensions take the profile's OPT.

    Raises: InputError O24-030 to O24-036.
    """
    if data is None or isinstance(data, Calibration):
        return data
    shapes = {name: profile.opt for name, profile in profiles.items()}
    if isinstance(data, Images):
        return Calibration(data.source(input_specs(model), shapes))
    if not isinstance(data, str | os.PathLike):
        return calibration_of(data, model)
    spec = os.fspath(data)
    if script := _SCRIPT.fullmatch(spec):
        return calibration_of(_function(script[1], script[2]), model)
    return load_data(spec, model, shapes=shapes, seed=seed)


_SCRIPT = re.compile(r"(.+\.py):([^\W\d]\w*)", re.DOTALL)


def _function(path: str, name: str) -> Callable[[], Any]:
    """A function of a Python file, which is run. Raises: InputError O24-030 where the file cannot
    be run or has no such function; what the code itself raises ends in it too."""
    spec = importlib.util.spec_from_file_location(f"onnx24_samples_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise InputError.of("O24-030", "there is no such Python file", file=path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as err:  # somebody else's code
        why = f"the script fails: {type(err).__name__}: {err}"
        raise InputError.of("O24-030", why, file=path) from err
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError.of("O24-030", f"the script has no function {name!r}", file=path)

    def samples() -> Any:
        try:
            given = found()
            yield from [given] if isinstance(given, Mapping) or hasattr(given, "dtype") else given
        except InputError:
            raise
        except (Exception, SystemExit) as err:
            why = f"{name} fails: {type(err).__name__}: {err}"
            raise InputError.of("O24-030", why, file=path) from err

    samples.__qualname__ = f"{Path(path).name}:{name}"
    return samples


@overload
def split_of(data: Calibration) -> Split: ...
@overload
def split_of(data: Calibration | None) -> Split | None: ...
def split_of(data: Calibration | None) -> Split | None:
    """What to fit to and what is held out; None for no samples."""
    return None if data is None else Split.of(data)


def data_beside(model: Path | None) -> str:
    """The folder of a model that ONNX test data lies beside.

    Source: onnx/backend/test: a model's `test_data_set_*` folders are next to model.onnx.
    Raises: InputError O24-043 where there is none.
    """
    if model is not None:
        folder = model.resolve().parent
        if any(path.is_dir() for path in folder.glob("test_data_set_*")):
            return str(folder)
    raise usage(
        "there is nothing to run the models on",
        "pass --data DATA; --data random:4 for random numbers, which say little",
    )
