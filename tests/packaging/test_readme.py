"""The commands of the README are run: every fenced block that opens with ```sh test.

The blocks run in order, in one scratch folder that holds a link to fixtures/, as a reader would
type them at the checkout's root; `onnx24` is this checkout. Each must end with exit code 0.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```sh test\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """(line of the opening fence, commands) of every block to run."""
    return [(text.count("\n", 0, m.start()) + 1, m.group(1)) for m in BLOCK.finditer(text)]


def test_blocks_are_found_by_their_tag() -> None:
    text = "# T\n```sh\nskip me\n```\n\n```sh test\na\nb\n```\n"
    assert blocks(text) == [(6, "a\nb\n")]


def test_the_readme_has_commands_to_run() -> None:
    commands = "".join(body for _, body in blocks(README.read_text(encoding="utf-8")))
    assert "onnx24 compile" in commands


@pytest.mark.skipif(os.name == "nt", reason="the README's commands are for a POSIX shell")
def test_the_readme_commands_work(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    folder = tmp_path / "checkout"
    binaries.mkdir()
    folder.mkdir()
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    for name, script in (("python", ""), ("onnx24", f'"{ROOT}/cli.py"')):
        # Scripts, as a link to a virtual environment's python would lose the environment.
        launcher = binaries / name
        launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" {script} "$@"\n')
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for line, body in blocks(README.read_text(encoding="utf-8")):
        done = subprocess.run(
            ["sh", "-e", "-u", "-c", body],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (
            f"README.md:{line}: exit code {done.returncode}\n{body}\n{done.stdout}\n{done.stderr}"
        )
