"""`onnx24 ledger`: what became of each layer, from the files of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.backends.base import Profile, parse_shapes, resolve_profiles
from onnx24.backends.onnx_file import inputs_of
from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, check_output, source_of
from onnx24.driver.usage import usage
from onnx24.ir.files import atomic_write
from onnx24.ledger.engine import Engine
from onnx24.ledger.html import render_html
from onnx24.ledger.ledger import Ledger, make_ledger
from onnx24.ledger.text import render_text
from onnx24.report.jsontext import json_text

if TYPE_CHECKING:
    from onnx24.ir.model import Model

FORMATS = (".json", ".html", ".txt")


@dataclass(frozen=True, kw_only=True)
class LedgerRequest:
    """`ledger`, as the user wrote it."""

    model: str | None
    target: str
    shapes: tuple[str, ...]
    log: str | None
    layers: str | None
    profile: str | None
    times: str | None
    dense_log: str | None
    dense_layers: str | None
    dense_profile: str | None
    dense_times: str | None
    output: str | None
    as_json: bool

    def inputs(self) -> list[str]:
        """Every file that is read."""
        files = (
            self.model, self.log, self.layers, self.profile, self.times,
            self.dense_log, self.dense_layers, self.dense_profile, self.dense_times,
        )  # fmt: skip
        return [path for path in files if path is not None]


def keep_ledger(request: LedgerRequest) -> int:
    """Returns: 0. Raises: InputError."""
    if not any((request.log, request.layers, request.profile)):
        raise usage(
            "a ledger needs at least one of --log, --layers and --profile",
            "`onnx24 build --log F --layers F` writes the first two; trtexec's --exportProfile the "
            "third",
        )
    if request.shapes and request.model is None:
        raise usage("--shapes without MODEL", "sizes are of a model's inputs; name the model")
    source = source_of(request.model) if request.model is not None else None
    _check_output(request)
    target = targets.load(request.target)
    shapes = parse_shapes(request.shapes)
    engine = Engine.read(
        log=request.log, layers=request.layers, profile=request.profile, times=request.times
    )
    dense = Engine.read(
        log=request.dense_log,
        layers=request.dense_layers,
        profile=request.dense_profile,
        times=request.dense_times,
    )
    model: Model | None = source.load() if source else None
    if model is not None:
        _check_shapes(shapes, model)
    ledger = make_ledger(
        engine,
        target,
        model=model,
        model_name=request.model or "",
        dense=dense,
        shapes=shapes,
    )
    if request.output is not None:
        with atomic_write(request.output) as file:
            file.write(_rendered(ledger, Path(request.output).suffix.lower()).encode("utf-8"))
    Console(as_json=request.as_json).report(render_text(ledger), ledger)
    return 0


def _check_shapes(shapes: Mapping[str, Profile], model: Model) -> None:
    """Raises: InputError O24-505. Inputs without a shape count as 1 where they are dynamic."""
    inputs = inputs_of(model.proto)
    named = [i for i in inputs if i.name in shapes]
    resolve_profiles(named if len(named) == len(shapes) else inputs, shapes)


def _check_output(request: LedgerRequest) -> None:
    if request.output is None:
        return
    if request.output == STANDARD_STREAM or Path(request.output).suffix.lower() not in FORMATS:
        raise usage(
            f"-o {request.output}: expected a file that ends in {', '.join(FORMATS)}",
            "the table is on standard output anyway; --json prints JSON there",
        )
    for path in request.inputs():
        check_output(request.output, path)


def _rendered(ledger: Ledger, suffix: str) -> str:
    if suffix == ".json":
        return json_text(ledger)
    return render_html(ledger) if suffix == ".html" else render_text(ledger) + "\n"
