"""The portable builder's choices on the API surfaces of TensorRT 8.6, 10 and 11, and on the
real tensorrt_rtx.

Only the surfaces that decide something are recorded here: enum members from include/NvInfer.h of
TensorRT OSS at v8.6.1, v10.2.0 and v11.1. Nothing here shows that such a TensorRT ran.
"""

import enum
from types import SimpleNamespace

import pytest

from onnx24.backends import builder
from onnx24.backends.builder import Refused, Request


def _enum(name, **members):
    return enum.IntEnum(name, members)


def surface(major):
    """Enums of one major, as its Python module shows them."""
    dtypes = ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"]
    if major == 8:
        flags = {"FP16": 0, "INT8": 1, "REFIT": 5, "TF32": 7, "SPARSE_WEIGHTS": 8, "FP8": 17}
        creation = {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}
        dtypes = dtypes[:7]
    elif major == 10:
        flags = {"FP16": 0, "INT8": 1, "REFIT": 4, "TF32": 6, "SPARSE_WEIGHTS": 7, "BF16": 17}
        creation = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    else:
        flags = {"REFIT": 4, "TF32": 6, "SPARSE_WEIGHTS": 7}
        creation = {"STRONGLY_TYPED": 0}
    return SimpleNamespace(
        __version__=f"{major}.0.0",
        BuilderFlag=_enum("BuilderFlag", **flags),
        NetworkDefinitionCreationFlag=_enum("NetworkDefinitionCreationFlag", **creation),
        ProfilingVerbosity=_enum("ProfilingVerbosity", LAYER_NAMES_ONLY=0, NONE=1, DETAILED=2),
        MemoryPoolType=_enum("MemoryPoolType", WORKSPACE=0),
        LayerType=_enum("LayerType", CONVOLUTION=0, QUANTIZE=40, DEQUANTIZE=41),
        DataType=enum.IntEnum("DataType", dtypes, start=0),
    )


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


class Config:
    def __init__(self):
        self.flags, self.pools = [], {}

    def set_flag(self, value):
        self.flags.append(value)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool.name] = size


def request(**options):
    return Request(module="x", model="m", engine="e", **options)


@pytest.mark.parametrize(
    ("major", "strongly_typed", "bits"),
    [(8, False, 0b1), (10, True, 0b11), (10, False, 0b1), (11, True, 0b1)],
)
def test_network_flags(major, strongly_typed, bits):
    assert builder.network_flags(surface(major), strongly_typed=strongly_typed) == bits


def test_weakly_typed_8_allows_what_the_model_is_written_in():
    trt = surface(8)
    config = Config()
    net = network(trt, ("QUANTIZE", "INT8"), ("DEQUANTIZE", "FLOAT"), ("CONVOLUTION", "HALF"))
    builder.configure(trt, config, net, request(strongly_typed=False, workspace_mib=64))
    assert [f.name for f in config.flags] == ["SPARSE_WEIGHTS", "FP16", "INT8"]
    assert int(config.flags[0]) == 8, "SPARSE_WEIGHTS is 8 before TensorRT 10"
    assert config.pools == {"WORKSPACE": 64 << 20}
    assert config.profiling_verbosity.name == "DETAILED"


def test_weakly_typed_8_allows_no_more_than_that():
    trt = surface(8)
    plain = network(trt, ("CONVOLUTION", "FLOAT"))
    assert builder.builder_flags(trt, plain, request(strongly_typed=False, sparsity=False)) == []


@pytest.mark.parametrize("major", [10, 11])
def test_strongly_typed_sets_no_precision(major):
    trt = surface(major)
    net = network(trt, ("QUANTIZE", "INT8"), ("CONVOLUTION", "HALF"))
    config = Config()
    builder.configure(trt, config, net, request())
    assert [(f.name, int(f)) for f in config.flags] == [("SPARSE_WEIGHTS", 7)]


def test_parser_errors_without_the_newer_accessors():
    """8.6 has no node_name and no node_operator."""
    error = SimpleNamespace(
        desc=lambda: "no", code=lambda: SimpleNamespace(name="UNSUPPORTED_NODE"),
        node=lambda: 3, func=lambda: "importX",
    )  # fmt: skip
    found = builder.parser_errors(SimpleNamespace(num_errors=1, get_error=lambda i: error))
    assert found == [
        {
            "description": "no",
            "code": "UNSUPPORTED_NODE",
            "index": 3,
            "function": "importX",
            "node": "",
            "op": "",
        }
    ]


def test_an_input_whose_values_are_shapes_is_refused():
    tensor = SimpleNamespace(name="n", is_shape_tensor=True, shape=(1,))
    net = SimpleNamespace(num_inputs=1, get_input=lambda i: tensor)
    maker = SimpleNamespace(create_optimization_profile=lambda: None)
    with pytest.raises(Refused, match="'n' decide shapes") as caught:
        builder.add_profile(maker, Config(), net, request())
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
