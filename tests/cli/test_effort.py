"""--memory, --workers, --executor and --work-dir: one clear error for each that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx24.cli.app import run
from onnx24.driver.effort import Effort, size_bytes
from onnx24.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("512 mib", 512 << 20), ("1000", 1000), ("1.5KB", 1500)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "4XB", "GiB", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="O24-043"):
        size_bytes(text)


def test_activations_go_to_the_work_dir(tmp_path: Path) -> None:
    resources = Effort(work_dir=str(tmp_path / "a" / "b")).resources()
    assert resources.folder == tmp_path / "a" / "b" and resources.folder.is_dir()
    assert Effort().resources().folder is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--work-dir", "file"], "is a file"),
        (["--work-dir", "file/below"], "can't be written to"),
        (["--work-dir", "/proc/onnx24"], "can't be written to"),
        (["--work-dir", "a\0b"], "can't be written to"),
        (["--executor", "spark"], "local, ray, dask"),
        (["--memory", "4XB"], "such as 4GiB"),
        (["--workers", "0"], "greater than or equal to 1"),
    ],
)
def test_one_clear_error(tmp_path, monkeypatch, capsys, options: list[str], words: str) -> None:
    from onnx24.testing.generate import mlp

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "m.onnx").write_bytes(mlp([16, 16]).SerializeToString())
    code = run(["prune24", "m.onnx", "-o", "out.onnx", "--calib", "random:4", *options])
    error = " ".join(capsys.readouterr().err.split())
    assert code == 2 and words in error and error.count("O24-043") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.onnx"]
