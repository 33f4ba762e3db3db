"""A short sample of benchmarks/kill_commands.py: one fault of each kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_commands.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every case is a fork")
def test_a_command_that_is_killed_leaves_nothing_partial_and_goes_on() -> None:
    command = [sys.executable, str(SCRIPT), "--count", "5", "--commands", "prune24"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "5 faults" in done.stdout, done.stdout + done.stderr
