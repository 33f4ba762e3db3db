"""No output of any command takes the place of any input."""

import inspect
import os

import pytest

from onnx24.cli.app import COMMANDS, run
from onnx24.cli.command import parameters, spelled
from onnx24.cli.making import Making
from onnx24.cli.options import WRITES
from onnx24.testing.generate import mlp

IN_FILES = ("MODEL", "MODEL...", "A", "B", "ORIGINAL", "DENSE", "FILE", "FILE.npy", "FILE.json")
READS = (*IN_FILES, "DATA", "DIR")


def _class(target):
    module, _, name = target.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


def _flags(name):
    return parameters(_class(COMMANDS[name])) if name in COMMANDS else parameters(Making)


def _option(parameter):
    return parameter.annotation.__metadata__[0]


def _marks(parameter):
    return parameter.annotation.__metadata__[1:]


def _spelled(parameter, value):
    name = spelled(parameter)
    return [name, value] if name.startswith("-") else [value]


CASES = [
    (name, output.name, read.name)
    for name in [*COMMANDS, "prune24"]
    for output in _flags(name)
    if WRITES in _marks(output)
    for read in _flags(name)
    if not _marks(read) and _option(read).metavar in READS
]


def test_every_flag_that_names_a_file_says_whether_it_is_written():
    known = {*READS, "OUT", "PREFIX"}
    for name in COMMANDS:
        for flag in parameters(_class(COMMANDS[name])):
            text = (_option(flag).help or "").lower()
            writes = text.startswith(("write", "keep", "also write", "accept", "build an engine"))
            if _option(flag).metavar in known and writes:
                assert _marks(flag), f"{name} {flag.name}: {text}"
    assert len(CASES) > 40


@pytest.mark.parametrize(("name", "output", "read"), CASES)
@pytest.mark.parametrize("how", ["itself", "link"])
def test_an_output_that_is_an_input_is_refused_and_nothing_changes(
    tmp_path, monkeypatch, capsys, name, output, read, how
):
    monkeypatch.chdir(tmp_path)
    flags = {flag.name: flag for flag in _flags(name)}
    # The ending fits the output, which is looked at first.
    taken = "taken.json"
    (tmp_path / taken).write_bytes(mlp([8, 8]).SerializeToString())
    before = (tmp_path / taken).read_bytes()
    given = taken
    if _option(flags[read]).metavar == "DIR" or read == "calib":
        (tmp_path / "folder").mkdir()
        os.rename(taken, "folder/taken.npz")
        taken, given = "folder/taken.npz", "folder"
    written = taken if how == "itself" else "link.json"
    if how == "link":
        os.symlink(os.path.abspath(taken), written)
    argv = [name]
    for flag in flags.values():
        if flag.name == read:
            argv += _spelled(flag, given)
        elif flag.default is inspect.Parameter.empty:
            argv += _spelled(flag, "other.onnx")
    argv += _spelled(flags[output], written)
    assert run(argv) == 2
    assert "O24-041" in capsys.readouterr().err, argv
    assert (tmp_path / taken).read_bytes() == before
    assert os.path.islink(written) == (how == "link")


def _external(folder):
    from onnx24.ir.model import Model

    Model.from_bytes(mlp([64, 64]).SerializeToString()).save(folder / "m.onnx", external="external")


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "m.onnx", "-o", "m.onnx.data"],
        ["check", ".", "--write-baseline", "m.onnx.data"],
        ["check", "*.onnx", "-o", "hard"],
        ["diff", "m.onnx", "m.onnx", "--html", "m.onnx.data"],
        ["prune24", "m.onnx", "-o", "hard"],
        ["compile", "m.onnx", "-o", "o.onnx", "--report", "m.json"],
        ["compile", "m.onnx", "-o", "m.onnx.data", "--pipeline", "prune24"],
        ["build", "m.onnx", "--log", "m.onnx.data"],
        ["qdq", "m.onnx", "--cache", "ranges.json", "-o", "ranges.json"],
    ],
    ids=" ".join,
)
def test_data_files_hard_links_and_caches_are_inputs_too(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    _external(tmp_path)
    os.link("m.onnx.data", "hard")
    os.symlink("m.onnx.data", "m.json")
    (tmp_path / "ranges.json").write_text(
        '{"format": "onnx24 activation ranges", "version": 1, "ranges": {}}'
    )
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(argv) == 2
    assert "O24-041" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_what_a_pipeline_names_is_an_input_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _external(tmp_path)
    argv = ["opt", "m.onnx", "--calib", "random:4", "--pipeline", "qdq{cache=ranges.json}"]
    assert run([*argv, "-o", "q.onnx"]) == 0
    kept = (tmp_path / "ranges.json").read_bytes()
    assert run([*argv, "-o", "ranges.json"]) == 2
    assert "O24-041" in capsys.readouterr().err
    assert (tmp_path / "ranges.json").read_bytes() == kept


def test_a_result_of_an_earlier_run_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _external(tmp_path)
    for _ in range(2):
        assert run(["prune24", "m.onnx", "-o", "p.onnx", "--report", "r.json"]) == 0
        assert run(["check", ".", "-o", "verdicts.json", "--json"]) in (0, 1)
