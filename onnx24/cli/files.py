"""Paths of the command line: where models come from and go to, checked before the work begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24.driver.usage import usage
from onnx24.errors import InputError

if TYPE_CHECKING:
    from onnx24.driver.models import Source
    from onnx24.ir.model import Model
    from onnx24.report.model import Report

STANDARD_STREAM = "-"


def source_of(path: str) -> Source:
    """A model argument; "-" is standard input, which is read once, when it is first wanted."""
    from onnx24.driver.models import Source
    from onnx24.driver.models import load as load_file

    if path != STANDARD_STREAM:
        return load_file(path)
    kept: list[bytes] = []

    def load() -> Model:
        from onnx24.ir.model import Model

        if not kept:
            kept.append(standard_input())
        return Model.from_bytes(kept[0])

    return Source(load, STANDARD_STREAM)


def standard_input() -> bytes:
    """All of it. Raises: InputError O24-043 where it is a terminal."""
    if sys.stdin.isatty():
        raise usage("standard input is a terminal", "pipe a model in, or give a path")
    return sys.stdin.buffer.read()


def stem(path: str) -> str:
    """What files that are made of a model are called."""
    return "stdin" if path == STANDARD_STREAM else Path(path).stem


def output_path(given: str | None, model: str) -> str:
    """OUT, or its default: `<stem>.onnx24.onnx` in the current folder, "-" for "-"."""
    if given is not None:
        return given
    return STANDARD_STREAM if model == STANDARD_STREAM else f"{stem(model)}.onnx24.onnx"


def check_model_output(out: str, *, as_json: bool, external: str = "auto") -> None:
    """Raises: InputError O24-040 to O24-043, before anything was computed."""
    if out != STANDARD_STREAM:
        check_output(out)
        return
    if external == "external":
        raise InputError.of("O24-042", "--external external needs a file for OUT")
    if as_json:
        raise usage("-o - and --json both want standard output", "write the model to a file")
    if sys.stdout.isatty():
        raise usage("standard output is a terminal", "redirect it, or give a path with -o")


def check_output(out: str) -> None:
    """That a file can be made there, and that it takes no input's place. "-" always can.

    Raises: InputError O24-040, O24-041.
    """
    if out == STANDARD_STREAM:
        return
    if "\0" in out:
        raise InputError.of("O24-040", f"{out!r} is no file name")
    try:
        _check_output(Path(out), out)
    except OSError as err:  # a name that is too long, a loop of links
        raise InputError.of("O24-040", f"cannot write: {err.strerror}", file=out) from err


def _check_output(path: Path, out: str) -> None:
    from onnx24.ir.files import refuse_special
    from onnx24.ir.inputs import refuse_input

    folder = path.parent
    refuse_special(path)
    if not folder.is_dir():
        raise InputError.of("O24-040", f"the folder {str(folder)!r} does not exist", file=out)
    if not os.access(folder, os.W_OK):
        raise InputError.of("O24-040", f"the folder {str(folder)!r} is not writable", file=out)
    refuse_input(out)


def check_distinct(named: Iterable[tuple[str, str | None]]) -> None:
    """Raises: InputError O24-043 where two outputs are the same file. named: (option, path)."""
    taken: dict[str, str] = {}
    for option, path in named:
        if path is None or path == STANDARD_STREAM:
            continue
        absolute = os.path.realpath(path)
        if absolute in taken:
            raise usage(f"{taken[absolute]} and {option} both write {path}", "name two files")
        taken[absolute] = option


def check_ending(option: str, path: str, endings: Iterable[str]) -> None:
    """Raises: InputError O24-043 unless the path names a file of one of the endings."""
    if path == STANDARD_STREAM or Path(path).suffix.lower() not in endings:
        raise usage(
            f"{option} {path}: expected a name that ends in {', '.join(endings)}",
            "the ending chooses the form",
        )


def check_reports(paths: Iterable[str]) -> None:
    """Raises: InputError O24-040, O24-041, O24-043."""
    for path in paths:
        check_ending("--report", path, RENDERED)
        check_output(path)


RENDERED = (".json", ".html", ".txt")


def write_reports(report: Report, paths: Iterable[str]) -> None:
    """Each whole or not at all. Raises: InputError O24-040."""
    for path in paths:
        write_text(path, _rendered(report, Path(path).suffix.lower()))


def write_text(path: str, text: str) -> None:
    """Whole or not at all. Raises: InputError O24-040."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str, data: bytes) -> None:
    """As `write_text`."""
    from onnx24.ir.files import atomic_write

    with atomic_write(path) as file:
        file.write(data)


def _rendered(report: Report, ending: str) -> str:
    if ending == ".json":
        from onnx24.report.jsontext import json_text

        return json_text(report)
    if ending == ".html":
        from onnx24.report.html import render_html

        return render_html(report)
    from onnx24.report.text import render_text

    return render_text(report) + "\n"
