"""Samples that a command line names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, overload

from onnx24.cli.failure import usage
from onnx24.cli.files import STANDARD_STREAM

if TYPE_CHECKING:
    from onnx24.backends.base import Profile
    from onnx24.ir.model import Model
    from onnx24.runtime.data import Calibration


@overload
def load_samples(
    spec: str, model: Model, profiles: Mapping[str, Profile], seed: int
) -> Calibration: ...
@overload
def load_samples(spec: None, model: Model, profiles: Mapping[str, Profile], seed: int) -> None: ...
@overload
def load_samples(
    spec: str | None, model: Model, profiles: Mapping[str, Profile], seed: int
) -> Calibration | None: ...
def load_samples(
    spec: str | None, model: Model, profiles: Mapping[str, Profile], seed: int
) -> Calibration | None:
    """The samples that DATA names, None for none; dynamic dimensions take --shapes' OPT.

    Raises: InputError O24-030 to O24-036.
    """
    if spec is None:
        return None
    from onnx24.runtime.data import load_data

    shapes = {name: profile.opt for name, profile in profiles.items()}
    return load_data(spec, model, shapes=shapes, seed=seed)


def data_beside(model_path: str) -> str:
    """The folder of a model that ONNX test data lies beside.

    Source: onnx/backend/test: a model's `test_data_set_*` folders are next to model.onnx.
    Raises: InputError O24-043 where there is none.
    """
    if model_path != STANDARD_STREAM:
        folder = Path(model_path).resolve().parent
        if any(path.is_dir() for path in folder.glob("test_data_set_*")):
            return str(folder)
    raise usage(
        "there is nothing to run the models on",
        "pass --data DATA; --data random:4 for random numbers, which say little",
    )
