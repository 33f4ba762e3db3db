"""trtexec: golden command lines per major, and its output read back.

No trtexec is at hand: a small program on PATH stands in for it at the process boundary and
prints recorded lines. That tests our side only.
"""

import json
import stat
import sys
import textwrap
from pathlib import Path

import pytest
from onnx import parser, save_model

from onnx24 import targets
from onnx24.backends import BuildOptions, Profile, get, trtexec
from onnx24.backends.running import run_command
from onnx24.backends.trtexec import Trtexec, command, shell_line
from onnx24.errors import BackendError, InputError

FLAGS = Path(__file__).resolve().parents[2] / "fixtures" / "tensorrt" / "trtexec-flags.json"
MODEL, ENGINE = Path("m.onnx"), Path("m.engine")
PROFILES = {
    "tokens": Profile((1, 8), (4, 64), (16, 128)),
    "image": Profile.static((1, 3, 224, 224)),
}


GOLDEN = {
    "sm86-trt8": "trtexec --onnx=m.onnx --saveEngine=m.engine"
    " --minShapes=tokens:1x8,image:1x3x224x224 --optShapes=tokens:4x64,image:1x3x224x224"
    " --maxShapes=tokens:16x128,image:1x3x224x224 --fp16 --int8 --sparsity=enable"
    " --memPoolSize=workspace:4096 --builderOptimizationLevel=4 --timingCacheFile=t.cache"
    " --profilingVerbosity=detailed --verbose --exportLayerInfo=l.json --buildOnly",
    "sm86-trt9": "trtexec --onnx=m.onnx --saveEngine=m.engine"
    " --minShapes=tokens:1x8,image:1x3x224x224 --optShapes=tokens:4x64,image:1x3x224x224"
    " --maxShapes=tokens:16x128,image:1x3x224x224 --stronglyTyped --sparsity=enable"
    " --memPoolSize=workspace:4096 --builderOptimizationLevel=4 --timingCacheFile=t.cache"
    " --profilingVerbosity=detailed --verbose --exportLayerInfo=l.json --skipInference",
    "sm86-trt10": "trtexec --onnx=m.onnx --saveEngine=m.engine"
    " --minShapes=tokens:1x8,image:1x3x224x224 --optShapes=tokens:4x64,image:1x3x224x224"
    " --maxShapes=tokens:16x128,image:1x3x224x224 --stronglyTyped --sparsity=enable"
    " --memPoolSize=workspace:4096 --builderOptimizationLevel=4 --timingCacheFile=t.cache"
    " --profilingVerbosity=detailed --verbose --exportLayerInfo=l.json --skipInference",
    "sm86-trt11": "trtexec --onnx=m.onnx --saveEngine=m.engine"
    " --minShapes=tokens:1x8,image:1x3x224x224 --optShapes=tokens:4x64,image:1x3x224x224"
    " --maxShapes=tokens:16x128,image:1x3x224x224 --sparsity=enable"
    " --memPoolSize=workspace:4096 --builderOptimizationLevel=4 --timingCacheFile=t.cache"
    " --profilingVerbosity=detailed --verbose --exportLayerInfo=l.json --skipInference",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_command_line(name):
    argv = command(
        MODEL,
        targets.load(name),
        ENGINE,
        PROFILES,
        precisions={"int8", "fp16"},
        options=BuildOptions(
            workspace_mib=4096, optimization_level=4, timing_cache=Path("t.cache")
        ),
        layer_info=Path("l.json"),
    )
    assert shell_line(argv) == GOLDEN[name]


def test_shortest_command_line():
    argv = command(MODEL, targets.load("sm90-trt11"), ENGINE, options=BuildOptions(sparsity=False))
    assert shell_line(argv) == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --profilingVerbosity=detailed --verbose"
        " --skipInference"
    )


def test_measuring_runs_the_engine():
    argv = command(
        MODEL,
        targets.load("sm86-trt8"),
        ENGINE,
        times=Path("t.json"),
        profile=Path("p.json"),
        options=BuildOptions(hardware_compatibility="ampere+", version_compatible=True),
    )
    assert "--exportTimes=t.json" in argv and "--exportProfile=p.json" in argv
    assert "--hardwareCompatibilityLevel=ampere+" in argv and "--versionCompatible" in argv
    assert "--buildOnly" not in argv and "--skipInference" not in argv


COMPATIBLE = BuildOptions(
    sparsity=False, hardware_compatibility="same", version_compatible=True, refit=True, strip=True
)
REFIT = BuildOptions(sparsity=False, hardware_compatibility="ampere+", refit=True)


@pytest.mark.parametrize(
    ("name", "options", "tail"),
    [
        ("sm86-trt8", REFIT, "--hardwareCompatibilityLevel=ampere+ --refit"
         " --profilingVerbosity=detailed --verbose --buildOnly"),
        ("sm86-trt9", REFIT, "--stronglyTyped --hardwareCompatibilityLevel=ampere+ --refit"
         " --profilingVerbosity=detailed --verbose --skipInference"),
        ("sm86-trt10", COMPATIBLE, "--stronglyTyped"
         " --hardwareCompatibilityLevel=sameComputeCapability --versionCompatible --refit"
         " --stripWeights --profilingVerbosity=detailed --verbose --skipInference"),
        ("sm86-trt11", COMPATIBLE, "--hardwareCompatibilityLevel=sameComputeCapability"
         " --versionCompatible --refit --stripWeights --profilingVerbosity=detailed --verbose"
         " --skipInference"),
    ],
)  # fmt: skip
def test_compatibility_and_refit(name, options, tail):
    line = shell_line(command(MODEL, targets.load(name), ENGINE, options=options))
    assert line == f"trtexec --onnx=m.onnx --saveEngine=m.engine {tail}"


@pytest.mark.parametrize(
    "options", [BuildOptions(strip=True), BuildOptions(hardware_compatibility="same")]
)
def test_options_that_came_with_10(options):
    with pytest.raises(BackendError, match="came with TensorRT 10") as caught:
        command(MODEL, targets.load("sm86-trt8"), ENGINE, options=options)
    assert caught.value.code == "O24-509"


@pytest.mark.parametrize("major", [8, 9, 10, 11])
def test_every_flag_is_one_that_the_release_parses(major):
    recorded = json.loads((FLAGS).read_text(encoding="utf-8"))["flags"][str(major)]
    options = BuildOptions(
        workspace_mib=64, optimization_level=3, timing_cache=Path("t"), version_compatible=True,
        hardware_compatibility="ampere+", refit=True, strip=major >= 10,
    )  # fmt: skip
    files = {kind: Path(kind) for kind in ("layer_info", "times", "profile")}
    target = targets.load(f"sm86-trt{major}")
    lines = [
        command(MODEL, target, ENGINE, PROFILES, precisions={"int8", "fp16"}, options=options),
        command(MODEL, target, ENGINE, PROFILES, options=options, **files),
        run_command(ENGINE, Path("t.json"), PROFILES, seconds=1),
    ]
    used = {argument.split("=")[0] for line in lines for argument in line[1:]}
    assert len(used) > 15 and not used - set(recorded)


def test_weakly_typed_builds_get_only_what_the_model_is_written_in():
    target = targets.load("sm86-trt8")
    assert not {"--fp16", "--int8"} & set(command(MODEL, target, ENGINE))
    assert "--int8" in command(MODEL, target, ENGINE, precisions={"int8"})
    assert "--fp16" not in command(MODEL, target, ENGINE, precisions={"int8"})
    typed = command(MODEL, targets.load("sm86"), ENGINE, precisions={"int8", "fp16"})
    assert not {"--fp16", "--int8"} & set(typed), "not allowed with --stronglyTyped"


def test_names_with_separators_are_quoted():
    target = targets.load("sm86")
    argv = command(MODEL, target, ENGINE, {"input:0": Profile.static((1, 8))})
    assert "--optShapes='input:0':1x8" in argv
    with pytest.raises(InputError, match="single quote"):
        command(MODEL, target, ENGINE, {"it's": Profile.static((1,))})


def test_rtx_targets_are_refused():
    with pytest.raises(BackendError, match="tensorrt-rtx") as caught:
        command(MODEL, targets.load("sm86-rtx1"), ENGINE)
    assert caught.value.code == "O24-507"


# --- running the program --------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"""
    save_model(parser.parse_model(text), path)
    return path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a stand-in for trtexec on PATH: `program(body)`; `argv` and `engine` are defined."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(trtexec, "cuda_devices", lambda: 1)

    def write(body):
        path = folder / "trtexec"
        path.write_text(
            f"#!{sys.executable}\nimport sys, time\n"
            "flags = dict(a.split('=', 1) for a in sys.argv[1:] if '=' in a)\n"
            "engine = flags['--saveEngine']\n" + textwrap.dedent(body)
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


SHAPES = {"x": Profile((1, 4), (2, 4), (8, 4))}
TALK = """
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec")
print("[01/01/2026-00:00:00] [I] Compute Capability: 8.6")
print("[01/01/2026-00:00:00] [V] [TRT] (Sparsity) Found 1 layer(s) eligible to use sparse tactics:"
      " y")
print("[01/01/2026-00:00:00] [V] [TRT] (Sparsity) Chose 0 layer(s) using sparse tactics")
print("[01/01/2026-00:00:00] [W] [TRT] slow reformat")
print("[01/01/2026-00:00:00] [W] [TRT] slow reformat")
open(engine, "wb").write(b"plan")
layers = '{"Layers": [{"Name": "y", "TacticName": "sm80_xmma"}]}'
open(flags["--exportLayerInfo"], "w").write(layers)
"""


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name not in ("bin", "model.onnx"))


def test_build(program, model, tmp_path):
    program(TALK)
    engine = tmp_path / "out.engine"
    result = get("trtexec").build(
        model, targets.load("sm86"), engine=engine, shapes=SHAPES, log=tmp_path / "log.txt"
    )
    assert engine.read_bytes() == b"plan" and result.engine_bytes == 4
    assert result.version == "10.3.0"
    assert result.sparsity_eligible == ("y",) and result.sparsity_chosen == ()
    assert result.sparse_counts == (1, 0)
    assert result.layers[0].sparse is False
    assert [d.code for d in result.diagnostics] == ["O24-506"], "the same warning once"
    assert "--minShapes=x:1x4" in result.command
    assert "(Sparsity)" in (tmp_path / "log.txt").read_text()
    assert leftovers(tmp_path) == ["log.txt", "out.engine"]


@pytest.mark.parametrize("name", ["sm86-trt11", "sm89-trt10"])
def test_an_engine_for_another_machine_is_not_kept(program, model, tmp_path, name):
    program(TALK)
    with pytest.raises(BackendError) as caught:
        Trtexec().build(model, targets.load(name), engine=tmp_path / "out.engine", shapes=SHAPES)
    assert caught.value.code == "O24-507"
    assert leftovers(tmp_path) == []


def test_parser_error_names_the_node(program, model, tmp_path):
    program("""
    print('[E] [TRT] ModelImporter.cpp:1: While parsing node number 0 [Relu -> "y"]:')
    print('[E] [TRT] ModelImporter.cpp:2: --- Begin node ---')
    print('[E] [TRT] ModelImporter.cpp:3: --- End node ---')
    print('[E] [TRT] ModelImporter.cpp:4: ERROR: a.cpp:9 In function importRelu:')
    print('[8] no')
    sys.exit(1)
    """)
    with pytest.raises(BackendError) as caught:
        Trtexec().build(model, targets.load("sm86"), engine=tmp_path / "out.engine", shapes=SHAPES)
    (found,) = caught.value.diagnostics
    assert found.code == "O24-501" and found.message == "no"
    assert found.where.node == "y" and found.where.op == "Relu"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("print('[E] [TRT] no memory'); sys.exit(1)", "O24-502", "no memory"),
        ("sys.exit(0)", "O24-502", "status 0"),
        ("import os; os.kill(os.getpid(), 11)", "O24-503", "SIGSEGV"),
        ("open(engine, 'wb').write(b'half'); time.sleep(60)", "O24-504", "stopped after"),
    ],
)
def test_failures_leave_nothing(program, model, tmp_path, body, code, says):
    program(body)
    with pytest.raises(BackendError, match=says) as caught:
        Trtexec().build(
            model,
            targets.load("sm86"),
            engine=tmp_path / "out.engine",
            shapes=SHAPES,
            timeout_s=1 if code == "O24-504" else 30,
        )
    assert caught.value.code == code and caught.value.exit_code == 3
    assert leftovers(tmp_path) == []


def test_missing_program_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="install TensorRT") as caught:
        get("trtexec")
    assert caught.value.code == "O24-500" and caught.value.exit_code == 3
