"""SIGINT and SIGTERM end a command, whatever a library makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnx24.ir.wire import varint
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


def _children(process: int) -> list[int]:
    """Of all its threads."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:  # it ended meanwhile
        return []
    return [int(child) for text in lists for child in text.split()]


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_check_ends_with_the_processes_that_read(tmp_path, number):
    """While a file of three million nodes is read, for which a policy gives ten minutes."""
    nodes = b"\x0a\x0b\x0a\x01a\x12\x01b\x22\x03Neg" * 3_000_000
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x3a" + varint(len(nodes)) + nodes)
    limits = "nodes = 9999999\nmessages = 99999999\nseconds = 600\n"
    (tmp_path / "p.toml").write_text(f"[limits]\n{limits}")
    child = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", "check", "m.onnx", "--policy", "p.toml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    readers: list[int] = []
    while child.poll() is None and not readers:
        readers = [reader for nursery in _children(child.pid) for reader in _children(nursery)]
    child.send_signal(number)
    said = child.communicate(timeout=50)[1].decode()
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said
    deadline = time.monotonic() + 50
    while readers and any(map(_is_running, readers)):
        assert time.monotonic() < deadline, "the process that reads the file goes on"


@pytest.mark.skipif(sys.platform != "linux", reason="where a page that is gone is a SIGBUS")
@pytest.mark.parametrize("reader", ["bytes(view)", "np.frombuffer(view, np.uint8).sum()"])
def test_a_mapped_file_is_cut_between_the_check_and_the_read(tmp_path, reader):
    text = (
        "import os, pathlib, numpy as np\n"
        "from onnx24.cli.signals import catch_cut_files\n"
        "from onnx24.ir.files import AtomicFiles\n"
        "from onnx24.ir.overlay import map_file\n"
        "catch_cut_files()\n"
        "view = map_file(open('m', 'rb'))\n"
        "with AtomicFiles() as files:\n"
        "    files.create(pathlib.Path('out'))\n"
        "    os.truncate('m', 0)\n"
        f"    {reader}\n"
    )
    (tmp_path / "m").write_bytes(bytes(1 << 20))
    child = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True)
    assert child.returncode == 2, child
    assert child.stderr.decode().count("error:") == 1 and b"O24-073" in child.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
