from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from passmgr_support import (
    BreakGraph,
    Fail,
    Log,
    Plain,
    Rename,
    Scale,
    chain,
)

from onnx24 import targets
from onnx24.errors import InputError, InternalError
from onnx24.ir.model import Model
from onnx24.ir.text import dump
from onnx24.passmgr.instrument import (
    Dump,
    PrintAfter,
    Timing,
)
from onnx24.passmgr.manager import run

TARGET = targets.load(targets.DEFAULT)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- dump ----------------------------------------------------------------------------------
def test_dump_after_change(tmp_path: Path):
    model = chain()
    hook = Dump(tmp_path / "new" / "dump")
    run(model, [Log(), Scale(), Rename()], target=TARGET, instruments=[hook])
    assert names(hook.folder) == [
        "000-input.txt", "002-scale.after.txt", "003-rename.after.txt",
    ]  # fmt: skip
    assert (hook.folder / "000-input.txt").read_text() == dump(chain())
    assert "r_layer0" in (hook.folder / "003-rename.after.txt").read_text()


def test_dump_everything(tmp_path: Path):
    hook = Dump(tmp_path, before=True, after="always", onnx=True)
    run(chain(), [Log(), Scale()], target=TARGET, instruments=[hook])
    stems = ["000-input", "001-log.after", "001-log.before", "002-scale.after", "002-scale.before"]
    assert names(tmp_path) == sorted(f"{s}{e}" for s in stems for e in (".txt", ".onnx"))
    before = Model.load(tmp_path / "002-scale.before.onnx")
    after = Model.load(tmp_path / "002-scale.after.onnx")
    np.testing.assert_array_equal(after.weights["w0"], before.weights["w0"] * np.float32(1.5))


@pytest.mark.parametrize(
    ("instance", "file", "expected"),
    [
        (Fail(), "001-fail.failed.txt", "half done"),
        (BreakGraph(), "001-break-graph.after.txt", "nowhere"),
    ],
)
def test_dump_shows_the_model_as_the_failure_left_it(instance, file, expected, tmp_path: Path):
    with pytest.raises(InternalError):
        run(
            chain(),
            [instance],
            target=TARGET,
            instruments=[Dump(tmp_path)],
            reproducer_dir=None,
        )
    assert names(tmp_path) == ["000-input.txt", file]
    assert expected in (tmp_path / file).read_text()


def test_dump_into_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        run(chain(), [Log()], target=TARGET, instruments=[Dump(tmp_path / "file" / "x")])
    assert caught.value.code == "O24-040"


def test_print_after():
    said: list[str] = []
    model = chain()
    run(model, [Log(), Scale(), Rename()], target=TARGET, instruments=[PrintAfter(said.append)])
    assert [text.split("\n")[0] for text in said] == ["// after 2: scale", "// after 3: rename"]
    said.clear()
    run(chain(), [Log(), Scale()], target=TARGET, instruments=[PrintAfter(said.append, ["log"])])
    assert said == [f"// after 1: log\n{dump(chain())}"]


# --- time and memory -----------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Hungry(Plain):
    name: ClassVar = "hungry"

    def run(self, model, ctx) -> None:
        np.ones(64 << 20, np.uint8).sum()


def test_timing():
    hook = Timing()
    result = run(chain(), [Log(), Hungry(), Log()], target=TARGET, instruments=[hook])
    assert [row.text for row in hook.rows] == ["log", "hungry", "log"]
    assert all(row.seconds > 0 for row in hook.rows)
    table = hook.render().splitlines()
    assert len(table) == 5
    assert table[-1].endswith("in all")
    peaks = [p.peak_bytes for p in result.passes]
    if peaks[0] is None:
        assert not sys.platform.startswith("linux") or "-" in table[1]
        pytest.skip("the system does not reset the peak resident size")
    assert peaks[1] is not None and peaks[2] is not None
    # The memory of the second pass is given back before the third, whose peak is its own.
    assert peaks[1] > peaks[0] + (60 << 20)
    assert peaks[2] < peaks[1] - (50 << 20)
