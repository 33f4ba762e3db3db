"""The child process: `python -m onnx24.backends._worker REQUEST.json RESPONSE.json`.

It imports the TensorRT package, builds, and writes what happened as JSON; its log goes to
standard error, one write per message, so that a crash loses nothing. Exit status 0 whenever the
response was written.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from onnx24.backends.builder import Refused, Request, build

_LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}


def main(argv: list[str]) -> int:
    request_path, response_path = map(Path, argv)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    request = Request(**json.loads(request_path.read_text("utf-8")))
    response = _answer(request)
    response_path.write_text(json.dumps(response), encoding="utf-8")
    return 0


def _answer(request: Request) -> dict[str, Any]:
    try:
        trt = importlib.import_module(request.module)
    except (ImportError, OSError) as err:
        return {"status": "missing", "message": f"{type(err).__name__}: {err}"}
    version = str(trt.__version__)
    try:
        facts = build(trt, request, _logger(trt))
    except Refused as refused:
        return {
            "status": refused.status,
            "message": str(refused),
            "errors": refused.errors,
            "version": version,
        }
    return {"status": "ok", "version": version, **facts}


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            letter = _LETTERS.get(severity.name, "I")
            os.write(2, f"[{letter}] [TRT] {message}\n".encode(errors="replace"))

    return Log()


def _die_with_parent() -> None:
    """The parent keeps our standard input open while it lives and never writes to it."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
