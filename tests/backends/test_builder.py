"""The portable builder on the recorded API of TensorRT 8.6, 10 and 11, and on the real
tensorrt_rtx.

The recorded surfaces hold names and numbers and compute nothing (tests/backends/recorded_trt.py):
they show which calls a build makes on each release. Nothing here shows that such a TensorRT ran.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from recorded_trt import RELEASES, record, surface

from onnx24 import targets
from onnx24.backends import BuildOptions, Profile, builder
from onnx24.backends import tensorrt as tensorrt_backend
from onnx24.backends.base import parser_diagnostic
from onnx24.backends.builder import Refused, Request
from onnx24.backends.logs import ParserError
from onnx24.backends.onnx_file import OnnxFile
from onnx24.backends.tensorrt import TensorRT
from onnx24.errors import BackendError


def network(trt, *layers):
    """A network of layers given as (layer type, output dtype)."""
    made = [
        SimpleNamespace(
            type=trt.LayerType[kind],
            num_outputs=1,
            get_output=lambda _, dtype=dtype: SimpleNamespace(dtype=trt.DataType[dtype]),
        )
        for kind, dtype in layers
    ]
    return SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__, num_inputs=0)


def request(**options):
    options = {"module": "x", "model": "m", "engine": "e", **options}
    return Request(**options)


@pytest.mark.parametrize(
    ("release", "strongly_typed", "bits"),
    [("8.6", False, 0b1), ("8.6", True, 0b1), ("10", True, 0b11), ("10", False, 0b1),
     ("11", True, 0b1)],
)  # fmt: skip
def test_network_flags(release, strongly_typed, bits):
    assert builder.network_flags(surface(release), strongly_typed=strongly_typed) == bits


def test_the_numbers_that_moved():
    """Why every value is looked up by name."""
    numbers = {
        name: {r: record(r)["enums"]["BuilderFlag"].get(name) for r in RELEASES}
        for name in ("SPARSE_WEIGHTS", "REFIT", "VERSION_COMPATIBLE", "STRIP_PLAN", "FP16")
    }
    assert numbers == {
        "SPARSE_WEIGHTS": {"8.6": 8, "10": 7, "11": 7},
        "REFIT": {"8.6": 5, "10": 4, "11": 4},
        "VERSION_COMPATIBLE": {"8.6": 15, "10": 13, "11": 12},
        "STRIP_PLAN": {"8.6": None, "10": 19, "11": 18},
        "FP16": {"8.6": 0, "10": 0, "11": None},
    }


def test_weakly_typed_8_allows_no_more_than_the_model_is_written_in():
    trt = surface("8.6")
    plain = network(trt, ("CONVOLUTION", "FLOAT"))
    assert builder.builder_flags(trt, plain, request(strongly_typed=False, sparsity=False)) == []
    half = network(trt, ("CONVOLUTION", "HALF"))
    assert builder.builder_flags(trt, half, request(strongly_typed=False, sparsity=False)) == [
        "FP16"
    ]


# --- whole builds on the recorded surfaces --------------------------------------------------------


def whole(tmp_path, release, **options):
    """Build with everything a release has. Returns: what was asked of it, and the plan's facts."""
    trt = surface(release)
    (tmp_path / "m.onnx").write_bytes(b"")
    asked = request(
        model=str(tmp_path / "m.onnx"),
        engine=str(tmp_path / "e"),
        strongly_typed=release != "8.6",
        profiles={"x": [[1, 4], [8, 4], [16, 4]]},
        inspect=True,
        **options,
    )
    facts = builder.build(trt, asked, trt.ILogger())
    return json.loads((tmp_path / "e").read_text()), facts


@pytest.mark.parametrize("release", RELEASES)
def test_a_build_uses_nothing_that_the_release_lacks(tmp_path, release):
    asked, facts = whole(
        tmp_path,
        release,
        workspace_mib=64,
        optimization_level=3,
        timing_cache=str(tmp_path / "t.cache"),
        hardware_compatibility="AMPERE_PLUS",
        flags=["VERSION_COMPATIBLE", "REFIT"],
    )
    typed = ["FP16", "INT8"] if release == "8.6" else []
    assert asked["flags"] == sorted(["SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "REFIT", *typed])
    assert asked["pools"] == {"WORKSPACE": 64 << 20}
    assert asked["profiles"] == [{"x": [[1, 4], [8, 4], [16, 4]]}]
    assert asked["set"] == {
        "profiling_verbosity": "DETAILED",
        "builder_optimization_level": 3,
        "hardware_compatibility_level": "AMPERE_PLUS",
    }
    assert facts["layer_information"] == '{"Layers": []}' and facts["outputs"] == ["y"]
    assert (tmp_path / "t.cache").read_bytes() == b"timing;"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "m.onnx", "t.cache"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_shortest_build(tmp_path, release):
    asked, _ = whole(tmp_path, release, sparsity=False)
    assert asked["flags"] == (["FP16", "INT8"] if release == "8.6" else [])
    assert asked["set"] == {"profiling_verbosity": "DETAILED"} and asked["pools"] == {}


@pytest.mark.parametrize(
    ("release", "options", "says"),
    [
        ("8.6", {"flags": ["STRIP_PLAN"]}, "8.6.1 has no BuilderFlag.STRIP_PLAN"),
        ("8.6", {"hardware_compatibility": "SAME_COMPUTE_CAPABILITY"}, "8.6.1 has no Hardware"),
        ("10", {"hardware_compatibility": "SAME_COMPUTE_CAPABILITY"}, "10.2.0 has no Hardware"),
    ],
)
def test_options_that_came_later(tmp_path, release, options, says):
    with pytest.raises(Refused, match=says) as caught:
        whole(tmp_path, release, **options)
    assert caught.value.status == "option"


def test_the_timing_cache_is_read_again(tmp_path):
    for _ in range(2):
        whole(tmp_path, "10", timing_cache=str(tmp_path / "t.cache"))
    assert (tmp_path / "t.cache").read_bytes() == b"timing;timing;"


@pytest.mark.parametrize("release", RELEASES)
def test_parser_errors(release):
    """8.6 has no node_name and no node_operator."""
    trt = surface(release, fails="parse")
    found = builder.parser_errors(trt.OnnxParser(None, None))
    named = release != "8.6"
    assert found == [
        {
            "description": "no such operator",
            "code": "UNSUPPORTED_NODE",
            "index": 0,
            "function": "importTwist",
            "node": "twist" if named else "",
            "op": "Twist" if named else "",
        }
    ]


SCATTER = """<ir_version: 8, opset_import: ["" : 18]>
g (float[4, 4] x, int64[2, 4] i, float[2, 4] u) => (float[4, 4] y) {
  a = ScatterElements<reduction = "add">(x, i, u)
  [last] y = %s(a%s)
}"""


@pytest.mark.parametrize(
    ("error", "last", "node", "op", "says"),
    [
        # tensorrt-rtx 1.7.1 names neither node nor operator of an attribute that it does not take
        ({"function": "importScatterElements", "description": "Unsupported reduction type"},
         "Abs", "a", "ScatterElements", "Unsupported reduction type"),
        ({"function": "importScatterElements", "description": "Unsupported reduction type"},
         "ScatterElements", "", "ScatterElements", "in one of 2 ScatterElements: 'a', 'last'"),
        ({"function": "checkScatterElements", "description": "false", "op": "ScatterElements",
          "index": 0}, "Abs", "a", "ScatterElements", "does not take ScatterElements"),
        ({"function": "parseGraph", "description": "false"}, "Abs", "", "", "gives no reason"),
    ],
)  # fmt: skip
def test_a_complaint_names_what_the_function_tells(tmp_path, error, last, node, op, says):
    text = SCATTER % (last, ", i, u" if last == "ScatterElements" else "")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    error = ParserError(**error)
    found = parser_diagnostic(error, OnnxFile.read(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    assert (found.where.node, found.where.op) == (node, op) and says in found.message
    assert ("tensorrt-importable" in found.hint) == bool(op)


# --- the whole backend, its child process included, on the recorded surfaces ----------------------
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) { [twist] y = Relu(x) }"""
LAYERS = """{"Layers": [{"Name": "twist", "TacticName": "sm80_xmma_sparse_gemm"}]}"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A backend whose child imports a recorded release: `installed("8.6", fails="")`."""
    from onnx import parser, save_model

    save_model(parser.parse_model(MODEL), tmp_path / "model.onnx")
    monkeypatch.setattr(tensorrt_backend, "cuda_devices", lambda: 1)

    def make(release, fails=""):
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "recorded_module.py").write_text(
            "from recorded_trt import surface\n"
            f"made = surface({release!r}, fails={fails!r}, layers={LAYERS!r})\n"
            "globals().update({k: v for k, v in vars(made).items() if k != '__name__'})\n"
        )
        here = str(Path(__file__).parent)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{here}")

        class Recorded(TensorRT):
            module = "recorded_module"

            def version(self):
                return record(release)["version"]

        return Recorded()

    return make


SHAPES = {"x": Profile((1, 4), (8, 4), (16, 4))}


@pytest.mark.parametrize(
    ("release", "target"), [("8.6", "sm86-trt8"), ("10", "sm86-trt10"), ("11", "sm86-trt11")]
)
def test_the_backend_on_every_major(installed, tmp_path, release, target):
    cache = tmp_path / "t.cache"
    options = BuildOptions(timing_cache=cache, workspace_mib=32, refit=True)
    backend = installed(release)
    engine = tmp_path / "e.engine"
    first, second = (
        backend.build(
            tmp_path / "model.onnx", targets.load(target), engine=engine, shapes=SHAPES,
            options=options, timeout_s=60,
        )
        for _ in range(2)
    )  # fmt: skip
    asked = json.loads(engine.read_text())
    assert asked["network_flags"] == {"8.6": 0b1, "10": 0b11, "11": 0b1}[release]
    assert {"SPARSE_WEIGHTS", "REFIT"} <= set(asked["flags"])
    assert ("INT8" in asked["flags"]) == (release == "8.6"), "strong typing from 9 on"
    assert first.version == record(release)["version"]
    assert [layer.sparse for layer in first.layers] == [True]
    assert first.layer_information == LAYERS
    assert first.timing_cache.sha256_before == ""
    assert second.timing_cache.sha256_before == first.timing_cache.sha256
    assert second.timing_cache.sha256 != first.timing_cache.sha256
    assert second.to_json()["timing_cache"]["path"] == str(cache)


@pytest.mark.parametrize(
    ("fails", "options", "code", "says"),
    [
        ("parse", BuildOptions(), "O24-501", "no such operator"),
        ("build", BuildOptions(), "O24-502", "returned no engine"),
        ("", BuildOptions(strip=True), "O24-509", "8.6.1 has no BuilderFlag.STRIP_PLAN"),
    ],
)
def test_failures_of_8_6(installed, tmp_path, fails, options, code, says):
    with pytest.raises(BackendError, match=says) as caught:
        installed("8.6", fails).build(
            tmp_path / "model.onnx", targets.load("sm86-trt8"), engine=tmp_path / "e.engine",
            shapes=SHAPES, options=options, timeout_s=60,
        )  # fmt: skip
    assert caught.value.code == code and caught.value.exit_code == 3
    assert not (tmp_path / "e.engine").exists()
    if fails == "parse":  # 8.6 tells the index only
        assert caught.value.diagnostics[0].where.node == "twist"


def test_an_input_whose_values_are_shapes_is_refused():
    tensor = SimpleNamespace(name="n", is_shape_tensor=True, shape=(1,))
    net = SimpleNamespace(num_inputs=1, get_input=lambda i: tensor)
    maker = SimpleNamespace(create_optimization_profile=lambda: None)
    with pytest.raises(Refused, match="'n' decide shapes") as caught:
        builder.add_profile(maker, None, net, request())
    assert caught.value.status == "shapes"


# --- the real module ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install 'onnx24[rtx]')"
    )


def test_lookups_on_tensorrt_rtx(rtx):
    assert builder.network_flags(rtx, strongly_typed=True) == 1 << int(
        rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    )
    assert builder.member(rtx.BuilderFlag, "SPARSE_WEIGHTS") is not None
    assert builder.member(rtx.BuilderFlag, "FP16") is None, "removed with weak typing"
    assert builder.member(rtx.ProfilingVerbosity, "DETAILED") is not None


def test_every_name_that_the_builder_uses_exists_in_tensorrt_rtx(rtx):
    """What a fake cannot show: the methods are there under these names."""
    for cls, names in {
        rtx.Builder: ["create_network", "create_builder_config", "create_optimization_profile",
                      "build_serialized_network"],
        rtx.OnnxParser: ["parse_from_file", "num_errors", "get_error"],
        rtx.ParserError: ["desc", "code", "node", "func", "node_name", "node_operator"],
        rtx.IBuilderConfig: ["set_flag", "profiling_verbosity", "set_memory_pool_limit",
                             "builder_optimization_level", "add_optimization_profile",
                             "num_compute_capabilities", "set_compute_capability",
                             "create_timing_cache", "set_timing_cache", "get_timing_cache"],
        rtx.IOptimizationProfile: ["set_shape"],
        rtx.ITensor: ["name", "shape", "dtype", "is_shape_tensor"],
        rtx.Runtime: ["deserialize_cuda_engine"],
        rtx.ICudaEngine: ["create_engine_inspector"],
        rtx.EngineInspector: ["get_engine_information"],
    }.items():  # fmt: skip
        assert not [n for n in names if not hasattr(cls, n)], cls
