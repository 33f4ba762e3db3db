"""What became of each layer, from the files of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.backends.base import Profile, resolve_profiles
from onnx24.backends.onnx_file import inputs_of
from onnx24.backends.profiles import completed
from onnx24.driver.models import ModelLike, load
from onnx24.driver.samples import ShapesLike, profiles_of
from onnx24.driver.usage import usage
from onnx24.errors import InputError
from onnx24.ledger.engine import Engine
from onnx24.ledger.ledger import Ledger, make_ledger

if TYPE_CHECKING:
    from onnx24.ir.model import Model
    from onnx24.targets import Target


def layer_ledger(
    model: ModelLike | None = None,
    *,
    log: str | None = None,
    layers: str | None = None,
    profile: str | None = None,
    times: str | None = None,
    dense_log: str | None = None,
    dense_layers: str | None = None,
    dense_profile: str | None = None,
    dense_times: str | None = None,
    target: str | Target = targets.DEFAULT,
    shapes: ShapesLike = None,
) -> Ledger:
    """Say of every layer whether it was eligible for 2:4, chosen, and faster (`onnx24 ledger`).

    Works from the files of a build and a measurement alone, which may have run elsewhere. log: the
    builder's; layers: of the engine inspector; profile, times: trtexec's. dense_…: the same of an
    engine that was built without sparsity. model: one row for each of its layers; without it one
    for each of the engine's.

    Raises: InputError.

    >>> import json, pathlib, onnx24
    >>> times = [{"count": 9}, {"name": "fc0", "timeMs": 9.0, "averageMs": 1.0}]
    >>> _ = pathlib.Path("profile.json").write_text(json.dumps(times))
    >>> [row.name for row in onnx24.layer_ledger(profile="profile.json").rows]
    ['fc0']
    """
    if not any((log, layers, profile)):
        raise usage(
            "a ledger needs at least one of --log, --layers and --profile",
            "`onnx24 build --log F --layers F` writes the first two; trtexec's --exportProfile the "
            "third",
        )
    if shapes and model is None:
        raise usage("--shapes without MODEL", "sizes are of a model's inputs; name the model")
    row = targets.load(target)
    profiles = profiles_of(shapes)
    engine = Engine.read(log=log, layers=layers, profile=profile, times=times)
    dense = Engine.read(
        log=dense_log, layers=dense_layers, profile=dense_profile, times=dense_times
    )
    source = load(model) if model is not None else None
    loaded = source.load() if source else None
    notes: list[str] = []
    if loaded is not None:
        profiles, notes = _sized(loaded, profiles)
    name = source.name if source else ""
    ledger = make_ledger(engine, row, model=loaded, model_name=name, dense=dense, shapes=profiles)
    return replace(ledger, notes=(*notes, *ledger.notes))


def _sized(model: Model, shapes: Mapping[str, Profile]) -> tuple[dict[str, Profile], list[str]]:
    """(a profile for each dynamic input, what to say of those that nobody gave). A model that ONNX
    Runtime does not run keeps what was given: what is open counts as 1.

    Raises: InputError O24-505.
    """
    inputs = inputs_of(model.proto)
    named = [i for i in inputs if i.name in shapes]
    resolve_profiles(named if len(named) == len(shapes) else inputs, shapes)
    try:
        found, said = completed(inputs, shapes, None, model)
    except InputError as err:
        return dict(shapes), [item.message for item in err.diagnostics]
    return found, [item.message for item in said]
