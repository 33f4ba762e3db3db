"""`inspect`: what a model is."""

from __future__ import annotations

from onnx24 import targets
from onnx24.cli.console import Console
from onnx24.cli.files import Source
from onnx24.report.inspection import inspect, render_inspection


def inspect_model(model: str, target: str, *, show_all: bool, as_json: bool) -> int:
    """Returns: 0. Raises: InputError."""
    row = targets.load(target)
    found = inspect(Source(model).load(), row, model)
    Console(as_json=as_json).report(render_inspection(found, show_all=show_all), found)
    return 0
