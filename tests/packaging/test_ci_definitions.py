"""The pre-commit hook and the GitHub action run what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import onnx
import pytest

from onnx24.testing.generate import mlp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with models/a.onnx (dense), and `onnx24` on its path: this checkout."""
    (tmp_path / "models").mkdir()
    onnx.save(mlp([64, 64, 32]), tmp_path / "models" / "a.onnx")
    tool = tmp_path / "bin" / "onnx24"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "cli.py"}" "$@"\n')
    tool.chmod(0o755)
    return tmp_path


def bash(script: str, work: Path, **env: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    path = f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=work,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def action_script() -> str:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    return textwrap.dedent(text[text.rindex("run: |\n") + len("run: |\n") :])


EMPTY = {"POLICY": "", "TARGET": "", "BASELINE": "", "SARIF": ""}


def test_the_action_annotates_and_fails(work: Path) -> None:
    done = bash(action_script(), work, **{**EMPTY, "MODELS": "models/**/*.onnx"})
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("::error file=models/a.onnx,title=O24-611")


def test_the_action_takes_options_and_writes_sarif(work: Path) -> None:
    (work / "a policy.toml").write_text("[model]\nmax_opset = 17\n")
    given = {"MODELS": "models models/a.onnx", "POLICY": "a policy.toml", "TARGET": "sm89"}
    done = bash(action_script(), work, **{**EMPTY, **given, "SARIF": "r.sarif"})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert json.loads((work / "r.sarif").read_text())["version"] == "2.1.0"


def test_an_input_of_the_action_is_no_script(work: Path) -> None:
    """Inputs come by the environment: a pull request's branch name must not run anything."""
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for script in re.findall(r"run: (?:\|\n)?(.*(?:\n {8}.*)*)", text):
        assert "${{" not in script
    done = bash(action_script(), work, **{**EMPTY, "MODELS": "$(touch hacked) ;touch hacked"})
    assert done.returncode == 2 and not (work / "hacked").exists()


def test_the_hook_checks_the_files_that_it_is_given(work: Path) -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    entry = re.search(r"entry: (.*)", text)
    pattern = re.search(r"files: (.*)", text)
    assert entry and pattern
    assert re.search(pattern[1], "models/a.onnx") and not re.search(pattern[1], "a.onnx.data")
    done = bash(f'{entry[1]} "$@"'.replace('"$@"', "models/a.onnx"), work)
    assert done.returncode == 1 and "O24-611" in done.stdout
