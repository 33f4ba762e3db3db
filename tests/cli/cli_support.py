"""Ways to run the command line in tests: in this process, and as a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from onnx24.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = [sys.executable, str(ROOT / "cli.py")]


def invoke(*arguments: str | Path, input: bytes | None = None) -> Result:
    """Run in this process; faster, and exit codes are the same."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    return json.loads(result.stdout)


def onnx24(
    *arguments: str | Path, cwd: Path, input: bytes | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[bytes]:
    """Run as a real process, as a script would."""
    return subprocess.run(
        [*LAUNCHER, *map(str, arguments)],
        cwd=cwd,
        input=input,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
