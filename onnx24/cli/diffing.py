"""`diff`: how two models differ."""

from __future__ import annotations

from onnx24.cli.console import Console
from onnx24.cli.failure import usage
from onnx24.cli.files import STANDARD_STREAM, Source, check_output
from onnx24.ir.files import atomic_write
from onnx24.report.diff import diff, render_diff


def diff_models(a: str, b: str, *, html: str | None, exit_code: bool, as_json: bool) -> int:
    """Returns: 0, or 1 where the models differ and `exit_code` asks to say so that way.

    Raises: InputError.
    """
    if a == b == STANDARD_STREAM:
        raise usage("both models are standard input", "give one of them a path")
    if html is not None:
        if html == STANDARD_STREAM:
            raise usage("--html -", "name a file")
        for model in (a, b):
            check_output(html, Source(model))
    result = diff(Source(a).load(), Source(b).load())
    if html is not None:
        from onnx24.report.diffhtml import render_diff_html

        with atomic_write(html) as file:
            file.write(render_diff_html(result, a, b).encode("utf-8", "backslashreplace"))
    Console(as_json=as_json).report(render_diff(result), result)
    return 1 if exit_code and not result.is_empty else 0
