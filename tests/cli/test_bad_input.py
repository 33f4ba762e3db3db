"""Whatever is wrong with the input: one clear error, exit code 2, no output, the input untouched.

Each case goes through `onnx24 compile`, as a user would meet it.
"""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx24.cli.app import run
from onnx24.errors import InputError
from onnx24.ir.files import atomic_write
from onnx24.ir.model import Model
from onnx24.testing.generate import external_mlp, mlp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(
        tmp_path / "calib.npz", x=np.random.default_rng(0).standard_normal((32, 64), np.float32)
    )
    return tmp_path


def _state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _refused(work: Path, capsys, code: str, *words: str, args: tuple[str, ...] = ()) -> None:
    """Compile m.onnx in `work`; expect the code, the words, and nothing else changed."""
    before = _state(work)
    argv = ["compile", "m.onnx", "-o", "out.onnx", *(args or ("--calib", "calib.npz"))]
    exit_code = run(argv)
    out, err = capsys.readouterr()
    assert exit_code == 2, err
    assert code in err, err
    for word in words:
        assert word in err, (word, err)
    assert err.count("error:") == 1, err
    assert out == ""
    assert _state(work) == before


def _save(proto: onnx.ModelProto) -> None:
    Path("m.onnx").write_bytes(proto.SerializeToString())


def test_truncated_file(work, capsys):
    data = mlp([64, 32]).SerializeToString()
    Path("m.onnx").write_bytes(data[: len(data) // 2])
    _refused(work, capsys, "O24-003")


def test_not_a_protobuf(work, capsys):
    Path("m.onnx").write_bytes(np.random.default_rng(0).bytes(1000))
    _refused(work, capsys, "O24-002")


def test_zip(work, capsys):
    with zipfile.ZipFile("m.onnx", "w") as archive:
        archive.writestr("model.onnx", b"x")
    _refused(work, capsys, "O24-002", "zip")


def test_missing_file(work, capsys):
    _refused(work, capsys, "O24-001", "m.onnx")


def test_empty_graph(work, capsys):
    _save(helper.make_model(helper.make_graph([], "g", [], [])))
    _refused(work, capsys, "O24-004")


def _external(work: Path) -> onnx.ModelProto:
    external_mlp(work, 1 << 18, width=64).rename("m.onnx")
    np.savez(work / "calib.npz", x=np.ones((16, 64), np.float32))
    return onnx.load("m.onnx", load_external_data=False)


def test_missing_external_data(work, capsys):
    _external(work)
    Path("weights.bin").unlink()
    _refused(work, capsys, "O24-005", "weights.bin")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname"])
def test_external_path_that_leaves_the_folder(work, capsys, location):
    proto = _external(work)
    proto.graph.initializer[0].external_data[0].value = location
    _save(proto)
    _refused(work, capsys, "O24-006")


def test_external_symlink_out_of_the_folder(work, capsys, tmp_path_factory):
    _external(work)
    outside = tmp_path_factory.mktemp("outside") / "weights.bin"
    shutil.move("weights.bin", outside)
    Path("weights.bin").symlink_to(outside)
    _refused(work, capsys, "O24-006")


@pytest.mark.parametrize("entry, value", [(1, str(1 << 40)), (2, str(1 << 40))])
def test_external_offset_or_length_beyond_the_file(work, capsys, entry, value):
    proto = _external(work)
    proto.graph.initializer[0].external_data[entry].value = value
    _save(proto)
    _refused(work, capsys, "O24-007")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(work, capsys, bad):
    proto = mlp([64, 32])
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[3, 5] = bad
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "fc0.weight"))
    _save(proto)
    _refused(work, capsys, "O24-008", "fc0.weight")


def test_opset_too_old_or_too_new(work, capsys):
    _save(mlp([64, 32], opset=5))
    _refused(work, capsys, "O24-009", "5")
    _save(mlp([64, 32], opset=onnx.defs.onnx_opset_version() + 1))
    _refused(work, capsys, "O24-010")


def test_the_newest_opset(work, capsys):
    """ONNX Runtime may lack what Q/DQ is there: that is no fault of ours."""
    _save(mlp([64, 32], opset=onnx.defs.onnx_opset_version()))
    code = run(["compile", "m.onnx", "-o", "out.onnx", "--calib", "calib.npz"])
    _, err = capsys.readouterr()
    assert code == 0 or (code == 2 and ("O24-016" in err or "O24-055" in err)), err
    assert Path("out.onnx").exists() == (code == 0)


def test_custom_domain(work, capsys):
    proto = mlp([64, 32])
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    _save(proto)
    _refused(work, capsys, "O24-016", "com.example")


def test_cycle(work, capsys):
    proto = mlp([64, 32])
    proto.graph.node[0].input[0] = "y"
    _save(proto)
    _refused(work, capsys, "O24-012", "fc0")


def test_duplicated_names(work, capsys):
    proto = mlp([64, 32, 32])
    proto.graph.node[3].output[0] = "m0"
    _save(proto)
    _refused(work, capsys, "O24-013", "m0")


def test_initializer_of_the_wrong_size(work, capsys):
    proto = mlp([64, 32])
    proto.graph.initializer[0].dims[0] = 65
    _save(proto)
    _refused(work, capsys, "O24-014", "fc0.weight")


def test_invalid_node(work, capsys):
    proto = mlp([64, 32])
    proto.graph.node[0].attribute.append(helper.make_attribute("nonsense", 1))
    _save(proto)
    _refused(work, capsys, "O24-015", "nonsense")


def test_undefined_dtype(work, capsys):
    proto = mlp([64, 32])
    proto.graph.initializer[0].data_type = TensorProto.UNDEFINED
    _save(proto)
    _refused(work, capsys, "O24-014")


# --- the rest of the command line ----------------------------------------------------------
@pytest.mark.parametrize(
    "pipeline, code, nearest",
    [
        ("prune42", "O24-021", "prune24"),
        ("prune24{methd=magnitude}", "O24-022", "method"),
        ("prune24{method=magnitud}", "O24-023", "magnitude"),
        ("prune24{method=magnitude", "O24-020", "}"),
        ("@sparse-int9", "O24-024", "sparse-int8"),
    ],
)
def test_pipeline_typo(work, capsys, pipeline, code, nearest):
    _save(mlp([64, 32]))
    _refused(work, capsys, code, nearest, args=("--pipeline", pipeline))


def test_target_and_preset_typos(work, capsys):
    _save(mlp([64, 32]))
    _refused(work, capsys, "O24-025", "did you mean 'sm8", args=("--target", "sm68"))
    _refused(work, capsys, "O24-024", "sparse-int8", args=("--preset", "sparse-int9"))


def _calib(work: Path, **arrays: np.ndarray) -> None:
    np.savez(work / "calib.npz", **arrays)


def test_calibration_data_with_the_wrong_name(work, capsys):
    _save(mlp([64, 32]))
    _calib(work, z=np.ones((8, 64), np.float32))
    _refused(work, capsys, "O24-031", "z", "x")


def test_calibration_data_of_the_wrong_shape(work, capsys):
    _save(mlp([64, 32]))
    _calib(work, x=np.ones((8, 63), np.float32))
    _refused(work, capsys, "O24-032", "63", "64")


def test_calibration_data_of_the_wrong_dtype(work, capsys):
    _save(mlp([64, 32]))
    _calib(work, x=np.ones((8, 64), np.int64))
    _refused(work, capsys, "O24-033", "int64", "float32")


def test_calibration_data_that_is_no_npz(work, capsys):
    _save(mlp([64, 32]))
    Path("calib.npz").write_bytes(b"not an npz")
    _refused(work, capsys, "O24-030", "calib.npz")
    Path("calib.npz").unlink()
    _refused(work, capsys, "O24-030", "calib.npz")


def test_calibration_data_is_needed(work, capsys):
    _save(mlp([64, 32]))
    _refused(work, capsys, "O24-035", args=("--preset", "sparse-int8"))


# --- the output ----------------------------------------------------------------------------
def test_output_is_the_input(work, capsys):
    _save(mlp([64, 32]))
    before = _state(work)
    assert run(["compile", "m.onnx", "-o", "m.onnx", "--preset", "sparse"]) == 2
    assert "O24-041" in capsys.readouterr().err
    assert _state(work) == before


def test_output_folder_is_missing_or_read_only(work, capsys):
    _save(mlp([64, 32]))
    before = _state(work)
    assert run(["compile", "m.onnx", "-o", "nowhere/out.onnx", "--preset", "sparse"]) == 2
    assert "O24-040" in capsys.readouterr().err
    if Path("/proc/self").is_dir():  # nobody may create files there, root included
        assert run(["compile", "m.onnx", "-o", "/proc/self/out.onnx", "--preset", "sparse"]) == 2
        assert "O24-040" in capsys.readouterr().err
    assert _state(work) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_output_takes_the_place_of_files_only(work, capsys, flag):
    """A rename onto /dev/null, as root, would leave a file there."""
    _save(mlp([64, 32]))
    os.mkfifo("pipe.txt")
    argv = ["compile", "m.onnx", "--preset", "sparse", flag, "pipe.txt"]
    assert run(argv) == 2
    assert "O24-040" in capsys.readouterr().err
    assert stat.S_ISFIFO(os.stat("pipe.txt").st_mode)
    with pytest.raises(InputError, match="no regular file"), atomic_write("pipe.txt"):
        pass
    assert stat.S_ISFIFO(os.stat("pipe.txt").st_mode) and not list(Path().glob("*.onnx24.onnx"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("flag", ["--engine", "--timing-cache", "--log", "--layers"])
def test_what_a_build_writes_takes_the_place_of_files_only(work, capsys, flag):
    _save(mlp([64, 32]))
    os.mkfifo("pipe")
    assert run(["build", "m.onnx", "--backend", "tensorrt-rtx", flag, "pipe"]) == 2
    assert "O24-040" in capsys.readouterr().err
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="no /dev/stdout")
def test_output_is_a_link_to_a_stream(work):
    """`-o /dev/stdout > file`: the link itself would be replaced."""
    _save(mlp([64, 32]))
    Path("stream.onnx").symlink_to("/proc/self/fd/1")
    with open("log", "wb") as log:
        child = subprocess.run(
            [sys.executable, ROOT / "cli.py", "prune24", "m.onnx", "-o", "stream.onnx"],
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert child.returncode == 2 and "O24-040" in child.stderr
    assert Path("stream.onnx").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_input_is_a_pipe(work, capsys):
    """Opening it would wait for somebody who writes."""
    os.mkfifo("m.onnx")
    assert run(["inspect", "m.onnx"]) == 2
    assert "O24-001" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "argv",
    [
        ["check", "m.onnx", "--policy", "pipe"],
        ["check", "m.onnx", "--baseline", "pipe"],
        ["check", "pipe"],
        ["prune24", "m.onnx", "--calib", "pipe"],
        ["diff", "m.onnx", "pipe"],
        ["ledger", "--log", "pipe"],
        ["verify-provenance", "m.onnx", "--report", "pipe"],
        ["check", "m.onnx", "--policy", "/dev/zero"],
        ["check", "m.onnx", "--policy", "extends.toml"],
        ["compare", "m.onnx", "m.onnx", "--data", "folder"],
    ],
    ids=" ".join,
)
def test_no_command_waits_for_a_pipe(work, capsys, argv):
    _save(mlp([64, 32]))
    os.mkfifo("pipe")
    Path("extends.toml").write_text('extends = "pipe"')
    Path("folder").mkdir()
    os.mkfifo("folder/a.npz")
    assert run(argv) == 2
    assert "O24-001" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", '"5"'])
def test_a_policy_whose_time_is_none(work, capsys, seconds):
    _save(mlp([64, 32]))
    Path("p.toml").write_text(f"[limits]\nseconds = {seconds}\n")
    assert run(["check", "m.onnx", "--policy", "p.toml"]) == 2
    assert "a number above 0" in capsys.readouterr().err


def test_names_that_are_no_utf8(work, capsys):
    """They come as lone surrogates, which no UTF-8 file takes."""
    _save(mlp([64, 32]))
    name = os.fsdecode(b"n\xff.onnx")
    os.rename("m.onnx", name)
    reports = [each for end in ("json", "html", "txt") for each in ("--report", f"r.{end}")]
    assert run(["prune24", name, "-o", os.fsdecode(b"o\xff.onnx"), *reports]) == 0
    assert run(["inspect", name, "--json"]) == 0
    assert all(Path(f"r.{end}").stat().st_size for end in ("json", "html", "txt"))


def test_links_that_lead_to_each_other(work, capsys):
    _save(mlp([64, 32]))
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    for argv in (["inspect", "a"], ["check", "m.onnx", "--policy", "a"], ["check", "a"]):
        assert run(argv) == 2, argv


@pytest.mark.parametrize("external", ["embed", "external"])
def test_a_model_that_is_cut_while_it_is_read(work, external):
    """A page of a mapped file that is gone would end the process by SIGBUS."""
    model = Model.from_bytes(mlp([256, 256]).SerializeToString())
    model.save("m.onnx", external=external)
    opened = Model.load("m.onnx")
    cut = "m.onnx.data" if external == "external" else "m.onnx"
    assert opened.weights["fc0.weight"][0, 0] is not None
    os.truncate(cut, 4096)
    for read in (lambda: opened.weights["fc0.weight"], lambda: opened.weights.digest("fc0.weight")):
        with pytest.raises(InputError, match="O24-073"):
            read()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_file_has(work, capsys, name):
    _save(mlp([64, 32]))
    before = _state(work)
    assert run(["prune24", "m.onnx", "-o", name]) == 2
    assert "O24-040" in capsys.readouterr().err
    assert run(["prune24", name, "-o", "out.onnx"]) == 2
    assert "O24-001" in capsys.readouterr().err
    assert _state(work) == before


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127])
def test_the_longest_name(work, capsys, name):
    _save(mlp([64, 32]))
    assert run(["prune24", "m.onnx", "-o", name]) == 0
    capsys.readouterr()
    assert sorted(os.listdir()) == sorted(["calib.npz", "m.onnx", name])


def test_a_check_writes_no_model(work, capsys):
    """`compile m.onnx; check24 m.onnx` would put the uncompressed model over the result."""
    _save(mlp([64, 32]))
    before = _state(work)
    assert run(["check24", "m.onnx"]) == 0
    assert "output    none" in capsys.readouterr().err
    assert _state(work) == before
    assert run(["check24", "m.onnx", "-o", "out.onnx"]) == 0
    assert Path("out.onnx").exists()


def _cli(*argv: str, **extra) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **extra,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs resource limits")
def test_full_disk(work):
    """A file-size limit stands in for the full disk: the write fails half-way either way."""
    import resource

    _save(mlp([512, 512]))
    before = _state(work)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    child = _cli("compile", "m.onnx", "-o", "out.onnx", "--preset", "sparse", preexec_fn=limit)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 2, err
    assert "O24-040" in err and "Traceback" not in err
    assert _state(work) == before


def test_ctrl_c_in_the_middle(work):
    _save(mlp([1024] * 9))
    np.savez("calib.npz", x=np.ones((20000, 1024), np.float32))
    before = _state(work)
    child = _cli("compile", "m.onnx", "-o", "out.onnx", "--calib", "calib.npz")
    time.sleep(4.0)
    assert child.poll() is None, child.communicate()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert _state(work) == before
