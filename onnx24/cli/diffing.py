"""`diff`: how two models differ."""

from __future__ import annotations

from onnx24.cli.console import Console
from onnx24.cli.files import STANDARD_STREAM, check_output, source_of
from onnx24.driver.usage import usage
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
            check_output(html, model)
    result = diff(source_of(a).load(), source_of(b).load())
    if html is not None:
        from onnx24.report.diffhtml import render_diff_html

        with atomic_write(html) as file:
            file.write(render_diff_html(result, a, b).encode("utf-8", "backslashreplace"))
    Console(as_json=as_json).report(render_diff(result), result)
    return 1 if exit_code and not result.is_empty else 0
