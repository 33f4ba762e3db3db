"""SIGINT and SIGTERM end a command, whatever a library makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnx24.testing.generate import mlp

ROOT = Path(__file__).resolve().parents[2]
READY = "import time, pathlib; pathlib.Path('ready').touch()\n"
IMPORTS = {
    "makes another error of it": "try:\n    time.sleep(60)\n"
    "except BaseException as err:\n    raise ImportError('half imported') from None\n",
    "swallows it": "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)\n",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", IMPORTS)
def test_a_signal_while_a_library_is_imported(tmp_path, number, how):
    """The library is one that hangs while it is imported; nothing else of the run is made up."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "onnxruntime.py").write_text(READY + IMPORTS[how])
    (tmp_path / "m.onnx").write_bytes(mlp([8, 8]).SerializeToString())
    child = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", "compare", "m.onnx", "m.onnx", "--data", "random:1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        stderr=subprocess.PIPE,
    )
    while child.poll() is None and not (tmp_path / "ready").exists():
        pass
    child.send_signal(number)
    said = child.communicate(timeout=50)[1].decode()
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said and not list(tmp_path.glob("onnx24-crash-*"))


def test_what_is_half_written_goes_where_nobody_listens(tmp_path):
    """The thread ends a process whose main thread never comes back to Python."""
    text = (
        "import os, signal, sys, time\n"
        "from onnx24.cli.signals import Signals\n"
        "from onnx24.ir.files import AtomicFiles\n"
        "Signals().install()\n"
        "with AtomicFiles() as files:\n"
        "    files.create(__import__('pathlib').Path('out'))\n"
        "    assert len(os.listdir()) == 1\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "    except BaseException:\n"
        "        time.sleep(60)\n"
    )
    child = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, timeout=50)
    assert child.returncode == 143
    assert not list(tmp_path.iterdir())


def test_a_forked_process_that_is_ended_does_not_end_its_parent(tmp_path):
    text = (
        "import os, signal, time\n"
        "from onnx24.cli.signals import GRACE_S, Signals\n"
        "Signals().install()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    time.sleep(60)\n"
        "time.sleep(1)\n"  # what is raised while the fork returns is swallowed by Python
        "os.kill(child, signal.SIGTERM)\n"
        "os.waitpid(child, 0)\n"
        "time.sleep(GRACE_S + 0.5)\n"
        "print('alive')\n"
    )
    child = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=50)
    assert child.stdout == b"alive\n"
