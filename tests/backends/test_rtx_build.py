"""Real builds with TensorRT-RTX; no GPU is needed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, load_model, numpy_helper, parser, save_model

from onnx24 import targets
from onnx24.backends import BuildOptions, Profile, get
from onnx24.backends.base import BuildResult, sha256_of
from onnx24.backends.python_api import child_environment
from onnx24.backends.tensorrt_rtx import TensorRTRTX
from onnx24.errors import BackendError, InputError

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install 'onnx24[rtx]')"
)

SM86 = targets.load("sm86")


def build(model: Path, engine: Path, **options) -> BuildResult:
    options.setdefault("timeout_s", 120)
    return get("tensorrt-rtx").build(model, options.pop("target", SM86), engine=engine, **options)


def write(path, text):
    save_model(parser.parse_model(text), path)
    return path


def matmul(path, k=64, n=64, seed=0, batch="N"):
    """[batch, K] @ [K, N] + Relu; the second node has no name."""
    w = np.random.default_rng(seed).standard_normal((k, n)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, n])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save_model(model, path)
    return path


@pytest.fixture
def model(tmp_path):
    return matmul(tmp_path / "model.onnx")


SHAPES = {"x": Profile((1, 64), (8, 64), (16, 64))}


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "model.onnx")


def test_engine_layers_and_profile(model, tmp_path):
    engine, log = tmp_path / "out.engine", tmp_path / "log.txt"
    result = build(model, engine, shapes=SHAPES, log=log)
    assert engine.stat().st_size == result.engine_bytes > 64 * 64 * 4
    assert result.version.startswith("1.")
    assert result.profiles == SHAPES
    text = log.read_text("utf-8")
    assert "MinShape: [1,64], OptShape: [8,64], MaxShape: [16,64]" in text
    # The unnamed Relu is called by its output, as everywhere in onnx24.
    assert {n for layer in result.layers for n in layer.onnx_nodes} == {"fc", "y"}
    assert all(layer.sparse is None for layer in result.layers)
    assert result.sparsity_eligible is None and result.sparsity_chosen is None
    assert [d.code for d in result.diagnostics] == ["O24-508"]
    assert leftovers(tmp_path) == ["log.txt", "out.engine"]


def test_a_static_model_needs_no_shapes(tmp_path):
    model = matmul(tmp_path / "model.onnx", batch=4)
    result = build(model, tmp_path / "out.engine", target=targets.load("sm86-rtx1"))
    assert result.profiles == {} and result.layers
    assert result.diagnostics == (), "the target is TensorRT-RTX itself"


@pytest.mark.parametrize("name", ["sm80-rtx1", "sm89-rtx1", "sm120-rtx1", "sm80-trt8"])
def test_other_architectures(model, tmp_path, name):
    result = build(model, tmp_path / "out.engine", shapes=SHAPES, target=targets.load(name))
    assert result.engine_bytes > 0 and result.layers


def test_a_build_failure_gives_the_builders_reason(model, tmp_path):
    """Turing has no FP32 GEMM in TensorRT-RTX 1.7.1."""
    with pytest.raises(BackendError, match="FP32 GEMM is not supported") as caught:
        build(model, tmp_path / "out.engine", shapes=SHAPES, target=targets.load("sm75-rtx1"))
    assert caught.value.code == "O24-502" and caught.value.exit_code == 3
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["sm90-trt10", "sm87-trt10", "sm100-trt11"])
def test_an_architecture_that_rtx_does_not_know(model, tmp_path, name):
    with pytest.raises(BackendError, match="it builds for SM75") as caught:
        build(model, tmp_path / "out.engine", shapes=SHAPES, target=targets.load(name))
    assert caught.value.code == "O24-507" and caught.value.exit_code == 3
    assert leftovers(tmp_path) == []


def test_int8_layers_are_seen_as_such(tmp_path):
    w = np.random.default_rng(1).integers(-127, 127, (64, 64)).astype(np.int8)
    scale = numpy_helper.from_array(np.full(64, 0.01, np.float32), "ws")
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[8, 64] x) => (float[8, 64] y)
    <float xs = {0.1}, int8 z = {0}, int8[64] wz = {""" + ",".join(["0"] * 64) + """}> {
      xq = QuantizeLinear(x, xs, z)
      xd = DequantizeLinear(xq, xs, z)
      wd = DequantizeLinear <axis = 1> (w, ws, wz)
      y = MatMul(xd, wd)
    }"""  # fmt: skip
    proto = parser.parse_model(text)
    proto.graph.initializer.extend([numpy_helper.from_array(w, "w"), scale])
    save_model(proto, tmp_path / "model.onnx")
    result = build(tmp_path / "model.onnx", tmp_path / "out.engine")
    assert "int8" in {d for layer in result.layers for d in (*layer.dtypes_in, *layer.dtypes_out)}


def test_external_data_is_found_beside_the_model(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    inside = matmul(tmp_path / "model.onnx", batch=4)
    model = load_model(inside)
    save_model(model, folder / "m.onnx", save_as_external_data=True, location="w.bin",
               size_threshold=0)  # fmt: skip
    assert (folder / "w.bin").stat().st_size >= 64 * 64 * 4
    embedded = build(inside, tmp_path / "a.engine")
    external = build(folder / "m.onnx", tmp_path / "b.engine")
    assert external.engine_bytes == embedded.engine_bytes
    (folder / "w.bin").unlink()
    with pytest.raises(BackendError) as caught:
        build(folder / "m.onnx", tmp_path / "c.engine")
    assert caught.value.code == "O24-501"
    assert leftovers(tmp_path) == ["a.engine", "b.engine", "in"]


def test_the_builders_options_are_taken(model, tmp_path):
    result = build(
        model, tmp_path / "out.engine", shapes=SHAPES,
        options=BuildOptions(workspace_mib=64, optimization_level=1, sparsity=False,
                             timing_cache=tmp_path / "t.cache"),
    )  # fmt: skip
    assert result.engine_bytes > 0
    if result.timing_cache is not None:  # deprecated in TensorRT-RTX
        assert result.timing_cache.sha256 == sha256_of(tmp_path / "t.cache")


@pytest.mark.parametrize(
    "options",
    [BuildOptions(refit=True), BuildOptions(strip=True), BuildOptions(version_compatible=True),
     BuildOptions(hardware_compatibility="ampere+")],
)  # fmt: skip
def test_options_that_rtx_lacks(model, tmp_path, options):
    with pytest.raises(BackendError, match="does not offer") as caught:
        build(model, tmp_path / "out.engine", shapes=SHAPES, options=options)
    assert caught.value.code == "O24-509" and leftovers(tmp_path) == []


def test_the_sparsity_flag_changes_nothing_in_rtx(model, tmp_path):
    """Why 2:4 is not advertised there: the flag leaves the plan as it is."""
    with_flag = build(model, tmp_path / "a.engine", shapes=SHAPES)
    without = build(
        model, tmp_path / "b.engine", shapes=SHAPES, options=BuildOptions(sparsity=False)
    )
    assert with_flag.layers == without.layers
    assert with_flag.engine_bytes == without.engine_bytes


# --- refusals -------------------------------------------------------------------------------------


def test_a_dynamic_dimension_without_a_size(model, tmp_path):
    with pytest.raises(InputError, match=r"'x' has the dynamic dimension 0 \('N'\)") as caught:
        build(model, tmp_path / "out.engine")
    assert caught.value.code == "O24-036" and caught.value.exit_code == 2
    assert leftovers(tmp_path) == []


def test_parser_errors_name_every_node(tmp_path):
    model = write(
        tmp_path / "model.onnx",
        """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
        g (float[2, 2] x) => (float[2, 2] y) {
          [named] a = custom.Twist(x)
          b = Relu(a)
          y = custom.Turn(b)
        }""",
    )
    with pytest.raises(BackendError) as caught:
        build(model, tmp_path / "out.engine")
    found = caught.value.diagnostics
    assert [(d.code, d.where.node, d.where.op) for d in found] == [
        ("O24-501", "named", "Twist"),
        ("O24-501", "y", "Turn"),
    ]
    assert all("Plugin not found" in d.message for d in found)
    assert caught.value.exit_code == 3
    assert leftovers(tmp_path) == []


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"PK\x03\x04 certainly a zip")
    with pytest.raises(InputError) as caught:
        build(path, tmp_path / "out.engine")
    assert caught.value.code == "O24-002"
    with pytest.raises(InputError) as caught:
        build(tmp_path / "absent.onnx", tmp_path / "out.engine")
    assert caught.value.code == "O24-001"


def test_engine_paths_that_cannot_be(model, tmp_path):
    before = model.read_bytes()
    for path, code in [
        (model, "O24-041"),
        (tmp_path / "nowhere" / "out.engine", "O24-040"),
        (tmp_path, "O24-040"),
    ]:
        with pytest.raises(InputError) as caught:
            build(model, path, shapes=SHAPES)
        assert caught.value.code == code
    assert model.read_bytes() == before
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to stand for a full disk")
def test_a_full_disk(model, tmp_path, monkeypatch):
    class Full(TensorRTRTX):
        def _run(self, request, scratch, timeout_s):
            object.__setattr__(request, "engine", "/dev/full")
            return super()._run(request, scratch, timeout_s)

    with pytest.raises(InputError, match="No space left") as caught:
        Full().build(model, SM86, engine=tmp_path / "out.engine", shapes=SHAPES)
    assert caught.value.code == "O24-040"
    assert leftovers(tmp_path) == []


def test_an_engine_of_before_survives_a_failed_build(model, tmp_path):
    engine = tmp_path / "out.engine"
    engine.write_bytes(b"old")
    with pytest.raises(BackendError):
        build(model, engine, shapes=SHAPES, timeout_s=0.01)
    assert engine.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["out.engine"]


# --- crash, hang, kill ----------------------------------------------------------------------------


def test_timeout(model, tmp_path):
    with pytest.raises(BackendError, match="stopped after") as caught:
        build(model, tmp_path / "out.engine", shapes=SHAPES, timeout_s=0.01)
    assert caught.value.code == "O24-504" and caught.value.exit_code == 3
    assert leftovers(tmp_path) == []


@pytest.fixture
def fake(tmp_path_factory, monkeypatch):
    """A TensorRT package whose import does `body`: `fake(body)` gives a backend that uses it."""

    def make(body):
        folder = tmp_path_factory.mktemp("fake")
        (folder / "fake_trt.py").write_text(f"import os, sys, time\n{body}\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder))

        class Fake(TensorRTRTX):
            module = "fake_trt"

        return Fake()

    return make


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("os.write(2, b'[E] [TRT] last words\\n'); os.kill(os.getpid(), 9)", "O24-503", "SIGKILL"),
        ("os.write(2, b'[E] [TRT] last words\\n'); os.abort()", "O24-503", "SIGABRT"),
        ("os.write(2, b'[E] [TRT] last words\\n'); os._exit(5)", "O24-503", "status 5"),
        ("os.write(2, b'[E] [TRT] last words\\n'); time.sleep(60)", "O24-504", "stopped"),
        ("raise ImportError('libnvinfer.so.10 is missing')", "O24-500", "libnvinfer.so.10"),
        ("raise RuntimeError('last words')", "O24-503", "status 1"),
    ],
)
def test_a_worker_that_ends_badly(fake, model, tmp_path, body, code, says):
    # Time enough to start Python on a busy machine; only the worker that sleeps is to reach it.
    patience = 30 if "sleep" in body else 300
    with pytest.raises(BackendError, match=says) as caught:
        fake(body).build(
            model, SM86, engine=tmp_path / "out.engine", shapes=SHAPES, timeout_s=patience
        )
    assert caught.value.code == code and caught.value.exit_code == 3
    if code != "O24-500":
        assert "last words" in caught.value.diagnostics[0].facts["log_tail"]
        assert "last words" in str(caught.value)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to find the worker")
def test_a_real_build_that_is_killed(tmp_path):
    """SIGKILL from outside, while the real package is in the worker."""
    model = matmul(tmp_path / "model.onnx", k=1024, n=1024)
    shapes = {"x": Profile.static((8, 1024))}
    caught = []

    def run():
        try:
            build(model, tmp_path / "out.engine", shapes=shapes)
        except BackendError as err:
            caught.append(err)

    for _ in range(10):  # on a busy machine the build may be over before the worker is found
        thread = threading.Thread(target=run)
        thread.start()
        killed = None
        while thread.is_alive() and killed is None:
            killed = _kill_worker()
            time.sleep(0.001)
        thread.join()
        if killed is not None:
            break
        (tmp_path / "out.engine").unlink()
    assert caught and caught[0].code == "O24-503" and "SIGKILL" in str(caught[0])
    assert leftovers(tmp_path) == []


def _kill_worker() -> int | None:
    """Kill our own child that runs the worker, once it has loaded the package."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{os.getpid()}\n" not in status.read_text():
                continue
            pid = int(status.parent.name)
            if b"onnx24.backends._worker" not in (status.parent / "cmdline").read_bytes():
                continue
            if "libtensorrt_rtx" in (status.parent / "maps").read_text():
                os.kill(pid, signal.SIGKILL)
                return pid
    return None


def test_an_orphaned_worker_ends(tmp_path):
    """The worker goes when its standard input closes, so a killed parent leaves no build behind."""
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "request.json").write_text('{"module": "hang", "model": "m", "engine": "e"}')
    child = subprocess.Popen(
        [sys.executable, "-m", "onnx24.backends._worker", "request.json", "response.json"],
        stdin=subprocess.PIPE,
        cwd=tmp_path,
        env=child_environment(),
    )
    time.sleep(0.5)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(10) == 1


def test_ctrl_c_leaves_nothing(model, tmp_path):
    """SIGINT to the parent alone: the worker and the half-made engine go with it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hang_trt.py").write_text(
        "import os, time\nopen(os.environ['SEEN'], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    seen = elsewhere / "pid"
    program = (
        "import sys, pathlib\n"
        "from onnx24 import targets\n"
        "from onnx24.backends import Profile\n"
        "from onnx24.backends.tensorrt_rtx import TensorRTRTX\n"
        "TensorRTRTX.module = 'hang_trt'\n"
        "TensorRTRTX().build(pathlib.Path(sys.argv[1]), targets.load('sm86'),\n"
        "    engine=pathlib.Path(sys.argv[2]), shapes={'x': Profile.static((1, 64))})\n"
    )
    root = child_environment()["PYTHONPATH"].split(os.pathsep)[0]
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(model), str(tmp_path / "out.engine")],
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, str(elsewhere)]),
            "SEEN": str(seen),
            "TMPDIR": str(elsewhere),
        },
    )
    while not (seen.exists() and seen.read_text()):
        assert parent.poll() is None, parent.stderr.read().decode()
        time.sleep(0.01)
    assert len(leftovers(tmp_path)) == 2, "the engine's temporary file and `elsewhere`"
    parent.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in parent.communicate(timeout=10)[1]
    assert leftovers(tmp_path) == ["elsewhere"]
    assert not list(elsewhere.glob("onnx24-build-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen.read_text()), 0)


# --- real models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shapes", "layers"),
    [
        ("zoo/mnistfc_256x2.onnx", {}, 3),
        ("zoo/ultraface_rfb320.onnx", {}, 40),
        ("zoo/magika_std_v3_3.onnx", {"bytes": Profile((1, 2048), (4, 2048), (8, 2048))}, 5),
        ("zoo/mjp_go2_apg_policy.onnx", None, 2),
        ("structural/deeploy_cct_1_16_16_128.onnx", {}, 10),
    ],
)
def test_real_models_build(shared_models, tmp_path, name, shapes, layers):
    path = shared_models / name
    before = path.read_bytes()
    if shapes is None:
        with pytest.raises(InputError, match="batch_size"):
            build(path, tmp_path / "out.engine")
        shapes = {"obs": Profile.static((2, 40))}
    result = build(path, tmp_path / "out.engine", shapes=shapes)
    assert len(result.layers) >= layers
    assert any(layer.onnx_nodes for layer in result.layers)
    assert path.read_bytes() == before


def test_real_models_that_do_not_build(shared_models, tmp_path):
    with pytest.raises(BackendError) as caught:
        build(shared_models / "zoo/dtln_model_1.onnx", tmp_path / "out.engine")
    assert caught.value.code == "O24-502" and "Myelin" in str(caught.value)
    assert "build the uncompiled model as well" in str(caught.value)
    with pytest.raises(BackendError) as caught:
        build(shared_models / "negative/supres_ortextensions.onnx", tmp_path / "out.engine")
    assert [d.where.node for d in caught.value.diagnostics] == ["Preprocess", "Postprocess"]
    assert leftovers(tmp_path) == []
