"""What scripts rely on: exit codes, streams, JSON, and that nothing is left half done."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import LAUNCHER, ROOT, document, invoke, onnx24

from onnx24 import __version__, targets
from onnx24.cli import app, options, pass_commands
from onnx24.cli.failure import INTERRUPTED, PIPE_CLOSED, TERMINATED


def test_the_program_imports_nothing_heavy_for_help_and_usage_errors() -> None:
    script = (
        "import sys\nfrom onnx24.cli.app import run\n"
        "code = run(sys.argv[1:])\n"
        "heavy = {'onnx', 'numpy', 'onnxruntime', 'networkx', 'rich'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)\n"
    )
    for arguments, code in ((["--help"], 0), (["compile", "--help"], 0), (["compile"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stderr.splitlines()[-1] == f"{code} []", arguments


def test_pruning_by_magnitude_imports_no_solver_and_no_runtime(
    work: Path, model_path: Path
) -> None:
    script = (
        "import sys\nfrom onnx24.cli.app import run\n"
        "code = run(sys.argv[1:])\n"
        "heavy = {'onnxruntime', 'scipy', 'joblib', 'torch', 'numba'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)\n"
    )
    arguments = ["prune24", str(model_path), "-o", str(work / "out.onnx"), "--permute", "off"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def test_help_lists_every_command_and_every_pass() -> None:
    result = invoke("--help")
    assert result.exit_code == 0 and not result.stderr
    contract = "compile opt inspect check compare diff build ledger bench gate bisect passes"
    contract += " targets explain"
    for name in [*contract.split(), *pass_commands.names()]:
        assert f"\n  {name} " in result.stdout or f"\n  {name}\n" in result.stdout, name


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"onnx24 {__version__}\n")


def test_the_default_target_is_said_once() -> None:
    assert options.DEFAULT_TARGET == targets.DEFAULT
    made = {p.name: p.default for name in app.COMMANDS for p in app.group().made(name).params}
    assert made["target"] == targets.DEFAULT


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing command"),
        (["explian", "113"], "did you mean 'explain'?"),
        (["prune42", "m.onnx"], "did you mean 'prune24'?"),
        (["--no-such-option"], "--no-such-option"),
        (["inspect"], "MODEL"),
        (["inspect", "m.onnx", "--colour"], "--colour"),
        (["compile", "m.onnx", "--timeout", "soon"], "--timeout"),
        (["opt", "m.onnx"], "--pipeline"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_a_next_step(arguments: list[str], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert says in result.stderr and "(O24-043)" in result.stderr
    assert "--help`" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "O24-999"],
        ["inspect", "missing.onnx"],
        ["targets", "sm85"],
        ["compile", "missing.onnx"],
        ["no-such-command"],
        ["diff", "-", "-"],
    ],
)
def test_an_error_is_one_json_document_on_request(work: Path, arguments: list[str]) -> None:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 2
    error = document(result)["error"]
    assert error["exit_code"] == 2
    assert error["diagnostics"][0]["code"].startswith("O24-")
    assert error["diagnostics"][0]["message"] in result.stderr
    assert list(work.iterdir()) == []


def test_check_says_errors_in_the_form_that_was_asked_for(work: Path) -> None:
    for flags in (["--format", "json"], ["--format=json"]):
        assert document(invoke("check", "missing.onnx", *flags))["error"]["exit_code"] == 2
    assert invoke("check", "missing.onnx").stdout == ""


def test_a_bare_double_dash_ends_the_options(work: Path) -> None:
    result = invoke("explain", "--", "--json")
    assert result.exit_code == 2 and result.stdout == ""


@pytest.mark.parametrize("code", ["O24-113", "o24-113", "113", "O24113"])
def test_explain_takes_every_spelling_of_a_code(code: str) -> None:
    result = invoke("explain", code)
    assert result.exit_code == 0 and result.stdout.startswith("O24-113 (note): ")


def test_explain_names_the_nearest_code() -> None:
    result = invoke("explain", "O24-199")
    assert result.exit_code == 2 and "did you mean 'O24-" in result.stderr


def test_targets_as_table_and_json() -> None:
    text = invoke("targets")
    assert "sm86-trt10 (default)" in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 100
    listed = document(invoke("targets", "--json"))
    assert [t["name"] for t in listed["targets"]] == targets.names()
    one = document(invoke("targets", "sm90", "--json"))
    assert one["name"] == "sm90-trt10" and one["source"]


def test_an_unexpected_exception_is_70_with_its_traceback_in_a_file(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("onnx24.cli.listing.explain_code", broken)
    result = invoke("explain", "113", "--json")
    assert result.exit_code == 70
    error = document(result)["error"]
    assert error["diagnostics"][0]["code"] == "O24-900"
    assert "ZeroDivisionError: a bug" in result.stderr and "Traceback" not in result.stderr
    crash = Path(error["reproducer"]).read_text(encoding="utf-8")
    assert "$ onnx24 explain 113 --json" in crash and "raise ZeroDivisionError" in crash


def test_a_crash_in_a_folder_that_cannot_be_written_leaves_its_file_elsewhere(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    real = Path.write_text

    def write_text(self: Path, *arguments: object, **named: object) -> int:
        if self.parent == work:
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("onnx24.cli.listing.explain_code", broken)
    monkeypatch.setattr(Path, "write_text", write_text)
    result = invoke("explain", "113", "--json")
    assert result.exit_code == 70
    path = Path(document(result)["error"]["reproducer"])
    assert path.is_file() and path.parent != work
    path.unlink()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, INTERRUPTED, b"interrupted; nothing was written\n"),
        (signal.SIGTERM, TERMINATED, b"terminated; nothing was written\n"),
    ],
)
def test_signals_end_with_one_line(work: Path, number: int, code: int, says: bytes) -> None:
    with subprocess.Popen(
        [*LAUNCHER, "inspect", "-"],
        cwd=work,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        time.sleep(2)  # until it waits for standard input; only the very start is not ours
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, b"", says)
    assert list(work.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("explain 113 >&-", 2, "standard output is closed (O24-043)"),
        ("prune24 m.onnx -o - >&-", 2, "standard output is closed (O24-043)"),
        ("inspect - <&-", 2, "standard input: the file is empty (O24-002)"),
        ("explain 113 2>&-", 0, ""),
        ("inspect m.onnx >/dev/full", 2, "cannot write: No space left on device (O24-040)"),
        ("inspect m.onnx --json >/dev/full", 2, "cannot write: No space left on device (O24-040)"),
        ("prune24 m.onnx -o - >/dev/full", 2, "cannot write: No space left on device (O24-040)"),
    ],
)
def test_closed_and_full_streams(
    work: Path, model_path: Path, command: str, code: int, said: str
) -> None:
    if "/dev/full" in command and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    done = subprocess.run(
        f"{shlex.join(LAUNCHER)} {command}", shell=True, cwd=work, capture_output=True, text=True
    )
    assert done.returncode == code and said in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert [path.name for path in work.iterdir()] == ["m.onnx"], "no crash file"


def test_a_closed_pipe_is_quiet(work: Path) -> None:
    with subprocess.Popen(
        [*LAUNCHER, "targets", "--json"],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        code = process.wait(timeout=60)
    assert (code, err) == (PIPE_CLOSED, b"")


def test_a_terminal_that_cannot_show_a_character_is_no_crash(work: Path) -> None:
    done = subprocess.run(
        [*LAUNCHER, "targets"],
        cwd=work,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0 and done.stdout.isascii()


def test_diff_says_what_changed_and_exits_as_asked(work: Path, model_path: Path) -> None:
    other = work / "other.onnx"
    other.write_bytes(model_path.read_bytes().replace(b"fc1.bias", b"fc1.bIas"))
    same = invoke("diff", model_path, model_path, "--exit-code")
    assert (same.exit_code, same.stdout) == (0, "the models are equal\n")
    assert invoke("diff", model_path, other).exit_code == 0
    result = invoke("diff", model_path, other, "--exit-code", "--json")
    assert result.exit_code == 1
    names = [change["name"] for change in document(result)["initializers"]]
    assert names == ["fc1.bias", "fc1.bIas"]


def test_a_model_may_come_from_standard_input(work: Path, model_path: Path) -> None:
    done = onnx24("diff", "-", "m.onnx", cwd=work, input=model_path.read_bytes())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"the models are equal\n", b"")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "O24-002"), (b"PK\x03\x04 a zip", "O24-002"), (b"\x08\x08\x3a\xff\x01ab", "O24-003")],
)
def test_bad_models_are_exit_code_2(work: Path, content: bytes, code: str) -> None:
    (work / "bad.onnx").write_bytes(content)
    result = invoke("diff", "bad.onnx", "bad.onnx", "--json")
    assert result.exit_code == 2
    assert document(result)["error"]["diagnostics"][0]["code"] == code


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["opt", "m.onnx", "-o", "m.onnx", "--pipeline", ""], "O24-041"),
        (["opt", "m.onnx", "-o", "none/out.onnx", "--pipeline", ""], "O24-040"),
        (["opt", "m.onnx", "-o", ".", "--pipeline", ""], "O24-040"),
        (["opt", "m.onnx", "--pipeline", "", "--report", "r.pdf"], "O24-043"),
        (["opt", "m.onnx", "-o", "a.json", "--pipeline", "", "--report", "a.json"], "O24-043"),
        (["opt", "m.onnx", "-o", "-", "--pipeline", "", "--json"], "O24-043"),
        (["opt", "m.onnx", "--pipeline", "", "--external", "maybe"], "O24-043"),
        (["opt", "m.onnx", "-o", "-", "--pipeline", "", "--external", "external"], "O24-042"),
        (["opt", "m.onnx", "--pipeline", "prune42"], "O24-021"),
        (["opt", "m.onnx", "--pipeline", "@sparce"], "O24-024"),
        (["opt", "m.onnx", "--pipeline", "", "--target", "sm1"], "O24-025"),
        (["opt", "m.onnx", "--pipeline", "", "--shapes", "x"], "O24-505"),
        (["compile", "m.onnx", "--preset", "sparse-int9"], "O24-024"),
        (["compile", "m.onnx", "--preset", "fp16", "--pipeline", "cast16"], "O24-043"),
        (["compile", "m.onnx", "--max-drop", "sqnr=20"], "O24-043"),
        (["compile", "m.onnx", "--engine", "e", "--backend", "none"], "O24-043"),
        (["compile", "m.onnx", "--engine", "e", "--backend", "tensorflow"], "O24-043"),
        (["compile", "m.onnx", "--engine", "m.onnx"], "O24-041"),
        (["build", "-"], "O24-043"),
        (["build", "m.onnx", "--engine", "m.onnx"], "O24-041"),
        (["bisect", "m.onnx", "--pipeline", "", "--max-drop", "sqnr=1"], "O24-043"),
        (["compare", "m.onnx", "m.onnx"], "O24-043"),
    ],
)
def test_contradictions_are_found_before_the_work(
    work: Path, model_path: Path, arguments: list[str], code: str
) -> None:
    before = model_path.read_bytes()
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert f"({code})" in result.stderr
    assert [path.name for path in work.iterdir()] == ["m.onnx"]
    assert model_path.read_bytes() == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(work: Path, model_path: Path) -> None:
    (work / "closed").mkdir(mode=0o500)
    result = invoke("opt", model_path, "-o", "closed/out.onnx", "--pipeline", "", "--json")
    assert result.exit_code == 2
    assert document(result)["error"]["diagnostics"][0]["code"] == "O24-040"


def test_stdout_carries_json_and_nothing_else(work: Path, model_path: Path) -> None:
    for arguments in (["targets"], ["explain", "113"], ["diff", "m.onnx", "m.onnx"]):
        done = onnx24(*arguments, "--json", cwd=work)
        assert done.returncode == 0 and done.stderr == b""
        json.loads(done.stdout)
