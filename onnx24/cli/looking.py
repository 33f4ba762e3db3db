"""`inspect`: what a model is."""

from __future__ import annotations

import shutil
import sys

from onnx24 import targets
from onnx24.cli.console import Console
from onnx24.cli.files import source_of
from onnx24.report.inspection import inspect, render_inspection
from onnx24.report.table import WIDTH


def inspect_model(model: str, target: str, *, show_all: bool, as_json: bool) -> int:
    """Returns: 0. Raises: InputError."""
    row = targets.load(target)
    found = inspect(source_of(model).load(), row, model)
    text = render_inspection(found, show_all=show_all, width=_width())
    Console(as_json=as_json).report(text, found)
    return 0


def _width() -> int:
    """Columns of a table: those of the terminal within reason, and always the same in a file."""
    if not sys.stdout.isatty():
        return WIDTH
    return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, 80), 160)
