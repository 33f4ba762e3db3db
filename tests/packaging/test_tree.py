"""Properties of the tracked files themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Absolute paths that exist on somebody's machine only. Written in parts: this file is read too.
MACHINE_PATH = re.compile(
    r"(?<![\w./}:$-])/(?:" + "|".join(["wo" + "rk", "tm" + "p", "ro" + "ot"]) + r")/\w"
)
MAX_BYTES = 1_500_000


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"git ls-files failed: {done.stderr.strip()}")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def test_the_pattern_of_machine_paths() -> None:
    assert MACHINE_PATH.search("open('/" + "tmp/x')")
    assert MACHINE_PATH.search("see /" + "root/model.onnx")
    assert not MACHINE_PATH.search("https://example.org/" + "work/x")
    assert not MACHINE_PATH.search("$HOME/tmp/x")
    assert not MACHINE_PATH.search("../tmp/x")


def test_no_paths_of_a_machine(tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_large_file(tracked: list[Path]) -> None:
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked}
    assert {name: size for name, size in large.items() if size > MAX_BYTES} == {}


def test_no_output_is_tracked(tracked: list[Path]) -> None:
    suffixes = {".engine", ".plan", ".pyc", ".npz", ".pt", ".whl"}
    outputs = [p for p in tracked if p.suffix in suffixes or p.relative_to(ROOT).parts[0] == "out"]
    assert outputs == []


def test_every_stored_model_has_its_origin(tracked: list[Path]) -> None:
    readme = (ROOT / "fixtures" / "README.md").read_text(encoding="utf-8")
    for path in tracked:
        if path.suffix == ".onnx":
            parts = path.relative_to(ROOT).parts
            assert parts[0] == "fixtures", f"{path} lies outside of fixtures/"
            assert f"`{parts[1]}/" in readme, f"fixtures/README.md says nothing about {parts[1]}/"
