"""`make test` on a bare machine installs no torch, pillow, mlflow, ray or dask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
for name in ("torch", "PIL", "mlflow", "ray", "dask", "distributed"):
    sys.modules[name] = None  # importing it fails as where it is not installed
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-n", "0", *sys.argv[1:]]))
"""


def test_what_needs_more_is_skipped_without_it() -> None:
    """CI has all extras, so it would not notice: the tests that use some are run without."""
    folders = ["tests/benchmarks", "tests/recovery", "tests/torch_room"]
    command = [sys.executable, "-c", SCRIPT, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout and "skipped" in done.stdout
