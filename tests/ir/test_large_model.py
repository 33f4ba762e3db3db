"""Models larger than the memory that may be used are edited, pruned and written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnx24.ir.model import Model
from onnx24.testing.generate import external_mlp

EDIT = r"""
import json, re, sys
from onnx24.ir.model import Model
import onnx24.ir.surgeon

def status(key):
    # ru_maxrss survives exec, so the parent's size would hide ours; VmHWM does not.
    return int(re.search(key + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024

before = status("VmRSS")
model = Model.load(sys.argv[1])
with model.surgeon() as graph:
    graph.nodes[0].name = "renamed"
model.save(sys.argv[2])
print(json.dumps({"extra_bytes": status("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_editing_one_node_of_2_25_gib_stays_below_300_mib(tmp_path):
    if shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.skip("needs 8 GiB of free disk")
    path = external_mlp(tmp_path, 9 << 28)
    assert (tmp_path / "weights.bin").stat().st_size >= 9 << 28
    out = tmp_path / "out" / "edited.onnx"
    out.parent.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", EDIT, str(path), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    extra = json.loads(result.stdout)["extra_bytes"]
    print(f"peak extra memory: {extra / 2**20:.1f} MiB")
    assert extra < 300 << 20

    edited = Model.load(out)
    assert edited.proto.graph.node[0].name == "renamed"
    original = Model.load(path)
    last = original.weights.keys()[-1]
    assert edited.weights.digest(last) == original.weights.digest(last)


def _peak_bytes(arguments: list[str]) -> int:
    """VmHWM of a run of the command line; it begins anew with the process's program."""
    code = (
        "import sys; from onnx24.cli import main\n"
        "try: main()\n"
        "finally: print(open('/proc/self/status').read(), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    found = re.search(r"VmHWM:\s+(\d+) kB", process.stderr)
    assert found is not None, process.stderr
    return int(found[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("layout", ["external", "embedded"])
def test_pruning_500_mib_stays_below_256_mib(tmp_path: Path, layout: str):
    if shutil.disk_usage(tmp_path).free < 3 << 30:
        pytest.skip("needs 3 GiB of free disk")
    path = external_mlp(tmp_path, 500 << 20)
    if layout == "embedded":
        Model.load(path).save(tmp_path / "whole.onnx", external="embed")
        path = tmp_path / "whole.onnx"
    out = tmp_path / "out"
    out.mkdir()
    pruned = str(out / "pruned.onnx")
    commands = {
        "prune24": ["prune24", str(path), "-o", pruned],
        "again": ["prune24", pruned, "-o", str(out / "again.onnx")],
        "inspect": ["inspect", pruned],
        "canonicalize": ["canonicalize", str(path), "-o", str(out / "canonical.onnx")],
    }
    peaks = {name: _peak_bytes(arguments) >> 20 for name, arguments in commands.items()}
    print(f"peak memory, {layout} [MiB]: {peaks}")
    assert max(peaks.values()) < 256

    model = Model.load(pruned)
    assert len(model.claims) == len(model.weights.keys())
    for key in model.weights:
        assert not model.weights.violations(model.weights.tensor(key), 4096).violating
