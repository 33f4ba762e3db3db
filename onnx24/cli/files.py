"""Paths of the command line: where models come from and go to, checked before the work begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24.cli.failure import usage
from onnx24.errors import InputError
from onnx24.ir.files import atomic_write, refuse_special

if TYPE_CHECKING:
    from onnx24.ir.model import Model
    from onnx24.report.model import Report

STANDARD_STREAM = "-"
EXTERNAL = ("auto", "embed", "external")


class Source:
    """A model argument that can be opened more than once; "-" is read once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._data: bytes | None = None

    @property
    def stem(self) -> str:
        return "stdin" if self.path == STANDARD_STREAM else Path(self.path).stem

    def load(self) -> Model:
        """A model of its own. Raises: InputError O24-001 to O24-017, O24-042, O24-043."""
        from onnx24.ir.model import Model

        if self.path != STANDARD_STREAM:
            return Model.load(self.path)
        if self._data is None:
            if sys.stdin.isatty():
                raise usage("standard input is a terminal", "pipe a model in, or give a path")
            self._data = sys.stdin.buffer.read()
        return Model.from_bytes(self._data)


def output_path(given: str | None, source: Source) -> str:
    """OUT, or its default: `<stem>.onnx24.onnx` in the current folder, "-" for "-"."""
    if given is not None:
        return given
    if source.path == STANDARD_STREAM:
        return STANDARD_STREAM
    return f"{source.stem}.onnx24.onnx"


def check_model_output(out: str, source: Source, *, as_json: bool) -> None:
    """Raises: InputError O24-040, O24-041, O24-043, before anything was computed."""
    if out != STANDARD_STREAM:
        check_output(out, source)
        return
    if as_json:
        raise usage("-o - and --json both want standard output", "write the model to a file")
    if sys.stdout.isatty():
        raise usage("standard output is a terminal", "redirect it, or give a path with -o")


def check_output(out: str, source: Source) -> None:
    """That a file can be made there, and that it is not the input.

    Raises: InputError O24-040, O24-041.
    """
    if "\0" in out:
        raise InputError.of("O24-040", f"{out!r} is no file name")
    try:
        _check_output(Path(out), out, source)
    except OSError as err:  # a name that is too long, a loop of links
        raise InputError.of("O24-040", f"cannot write: {err.strerror}", file=out) from err


def _check_output(path: Path, out: str, source: Source) -> None:
    folder = path.parent
    if path.is_dir():
        raise InputError.of("O24-040", "the output is a folder", file=out)
    refuse_special(path)
    if not folder.is_dir():
        raise InputError.of("O24-040", f"the folder {str(folder)!r} does not exist", file=out)
    if not os.access(folder, os.W_OK):
        raise InputError.of("O24-040", f"the folder {str(folder)!r} is not writable", file=out)
    same = source.path != STANDARD_STREAM and path.exists() and Path(source.path).exists()
    if same and path.samefile(source.path):
        raise InputError.of("O24-041", "the output is the input", file=out)


def check_distinct(named: Iterable[tuple[str, str | None]]) -> None:
    """Raises: InputError O24-043 where two outputs are the same file. named: (option, path)."""
    taken: dict[str, str] = {}
    for option, path in named:
        if path is None or path == STANDARD_STREAM:
            continue
        absolute = os.path.abspath(path)
        if absolute in taken:
            raise usage(f"{taken[absolute]} and {option} both write {path}", "name two files")
        taken[absolute] = option


def check_reports(paths: Iterable[str], source: Source) -> None:
    """Raises: InputError O24-040, O24-041, O24-043."""
    for path in paths:
        if Path(path).suffix.lower() not in _RENDERERS:
            raise usage(
                f"--report {path}: expected a name that ends in {', '.join(_RENDERERS)}",
                "the ending chooses the form",
            )
        check_output(path, source)


def check_provenance(value: str) -> None:
    """Raises: InputError O24-043."""
    from onnx24.passmgr.provenance import STRENGTHS

    if value not in STRENGTHS:
        raise usage(f"--provenance {value}: expected one of {', '.join(STRENGTHS)}", "see --help")


def check_external(value: str, out: str) -> None:
    """Raises: InputError O24-042, O24-043."""
    if value not in EXTERNAL:
        raise usage(f"--external {value}: expected one of {', '.join(EXTERNAL)}", "see --help")
    if value == "external" and out == STANDARD_STREAM:
        raise InputError.of("O24-042", "--external external needs a file for OUT")


def write_reports(report: Report, paths: Iterable[str]) -> None:
    """Each whole or not at all. Raises: InputError O24-040."""
    for path in paths:
        text = _RENDERERS[Path(path).suffix.lower()](report)
        with atomic_write(path) as file:
            file.write(text.encode("utf-8"))


def _as_json(report: Report) -> str:
    from onnx24.report.jsontext import json_text

    return json_text(report)


def _as_html(report: Report) -> str:
    from onnx24.report.html import render_html

    return render_html(report)


def _as_text(report: Report) -> str:
    from onnx24.report.text import render_text

    return render_text(report)


_RENDERERS = {".json": _as_json, ".html": _as_html, ".txt": _as_text}
