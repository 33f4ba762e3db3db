"""Reading logs: both wordings of sparsity, layers as text and JSON, parser errors.

The excerpts are shortened from public logs (NVIDIA/TensorRT issues 1403, 1997, 4020, 4056, 4587)
and from builds with tensorrt-rtx 1.7.1.
"""

import json

import pytest

from onnx24.backends.logs import entries, layers_from_json, read_log

OLD = """\
[08/05/2024-12:06:54] [I] [TRT] (Sparsity) Layers eligible for sparse math: MatMul_401, Conv_619 + \
Relu_620, Conv_254 + Add_255 + Relu_256
[08/05/2024-12:06:54] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for \
layers: Conv_619 + Relu_620
"""
OLD_NONE = """\
[09/16/2022-09:55:37] [I] [TRT] (Sparsity) Layers eligible for sparse math:
[09/16/2022-09:55:37] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for \
layers:
"""
NEW = """\
[V] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: a, b, c
[V] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: b
"""
NEW_COUNTS = """\
[I] [TRT] (Sparsity) Found 39 layer(s) eligible to use sparse tactics
[I] [TRT] (Sparsity) Chose 0 layer(s) using sparse tactics
"""


def facts_of(text):
    return read_log(text.splitlines(keepends=True))


def test_older_wording():
    facts = facts_of(OLD)
    assert facts.eligible == ("MatMul_401", "Conv_619 + Relu_620", "Conv_254 + Add_255 + Relu_256")
    assert facts.chosen == ("Conv_619 + Relu_620",)
    assert facts.counts == (3, 1)


def test_older_wording_with_nothing_eligible():
    facts = facts_of(OLD_NONE)
    assert facts.eligible == facts.chosen == ()
    assert facts.counts == (0, 0)


def test_newer_wording():
    facts = facts_of(NEW)
    assert facts.eligible == ("a", "b", "c")
    assert facts.chosen == ("b",)
    assert facts.counts == (3, 1)


def test_newer_wording_without_names_keeps_the_counts():
    facts = facts_of(NEW_COUNTS)
    assert facts.counts == (39, 0)
    assert facts.eligible is None, "39 layers whose names are not told are not zero layers"
    assert facts.chosen == ()


def test_the_last_pair_counts():
    facts = facts_of(OLD + NEW)
    assert facts.eligible == ("a", "b", "c")
    assert facts_of(NEW + OLD).chosen == ("Conv_619 + Relu_620",)
    assert facts_of(NEW_COUNTS + NEW + OLD_NONE).counts == (0, 0)


def test_a_log_without_sparsity_lines_says_nothing():
    facts = facts_of("[I] [TRT] Engine generation completed in 0.02 seconds.\n")
    assert facts.eligible is None and facts.chosen is None and facts.counts is None


LAYERS = (
    "[V] [TRT] Layers:\n"
    "Name: node_of_246_myl0_1, LayerType: correlation, Inputs: [ { Name: 247.1_2_myl0, Dimensions: "
    "[1,3,240,320], Strides: [230400,1,960,3], Datatype: Half, Format: (NHWC) Channel major }, "
    "{ Name: b, Dimensions: [1], Strides: [1], Datatype: Int8, Format: (Linear) Row major }], "
    "Constants: [ { Name: w_constantHalf_myl0, Dimensions: [16,3,3,3], Strides: [27,9,3,1], "
    "Datatype: Half, Format: (Linear) Row major }], Outputs: [ { Name: 250, Dimensions: "
    "[1,16,120,160], Strides: [1,1,1,1], Datatype: Float, Format: (NHWC) Channel major }], "
    "TacticName: sm80_xmma_fprop_sparse_conv_f16_spmma, StreamId: 0, "
    "Metadata: [ONNX Layer: conv, one]\x1f[ONNX Layer: relu]\n"
    "Name: __mye4749_myl0_16, LayerType: signal, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, EventId: 1, Metadata: \n"
    "Reformatting CopyNode for Input Tensor 0\n"
    "\n"
    "I/O Tensors:\n"
    " Name: 0, IOMode: Input, DataType: Float\n"
    "[I] [TRT] done\n"
)


def test_layers_of_the_verbose_log():
    conv, signal, plain = facts_of(LAYERS).layers
    assert conv.name == "node_of_246_myl0_1"
    assert conv.kind == "correlation"
    assert conv.dtypes_in == ("fp16", "int8")
    assert conv.dtypes_out == ("fp32",)
    assert conv.constants == ("w_constantHalf_myl0",)
    assert conv.onnx_nodes == ("conv, one", "relu")
    assert conv.tactic == "sm80_xmma_fprop_sparse_conv_f16_spmma"
    assert conv.sparse is True
    assert signal.kind == "signal" and signal.sparse is None and signal.onnx_nodes == ()
    assert plain.name == "Reformatting CopyNode for Input Tensor 0"


@pytest.mark.parametrize(
    ("tactic", "weights", "sparse"),
    [
        ("sm80_xmma_fprop_sparse_conv_interleaved_i8i8", 1, True),
        ("ampere_sptensor_gemm", None, True),
        ("sm80_xmma_fprop_implicit_gemm_f16f16", 1, False),  # sparse weights, dense kernel
        ("__myelin_CASK_STUB", None, None),
        ("", 0, False),
        ("", None, None),
    ],
)
def test_sparse_is_told_by_the_kernel(tactic, weights, sparse):
    item = {"Name": "a", "TacticName": tactic}
    if weights is not None:
        item["HasSparseWeights"] = weights
    assert layers_from_json(json.dumps({"Layers": [item]}))[0].sparse is sparse


def test_layer_information_as_json():
    layers = layers_from_json(
        """{"Layers": [{
          "Name": "Conv_276 + Add_277 + Relu_278", "LayerType": "CaskConvolution",
          "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [2,160,16,30],
            "Format/Datatype": "Channel major FP16 format where channel % 16 == 0"}],
          "Outputs": [{"Name": "y", "Format/Datatype": "Row major Int8 format"}],
          "ParameterType": "Convolution", "HasSparseWeights": 1, "TacticName": "sm80_xmma_x",
          "StreamId": 0, "Metadata": "[ONNX Layer: Conv_276]\\u001e[ONNX Layer: Add_277]"},
          "plain name"], "Bindings": ["x", "y"]}"""
    )
    assert layers[0].dtypes_in == ("fp16",) and layers[0].dtypes_out == ("int8",)
    assert layers[0].onnx_nodes == ("Conv_276", "Add_277")
    assert layers[0].sparse is False
    assert layers[1].name == "plain name" and layers[1].sparse is None


@pytest.mark.parametrize("text", ["[]", "{}", '{"Layers": 3}', "not json"])
def test_layer_information_of_another_form(text):
    with pytest.raises(ValueError):
        layers_from_json(text)


PARSER = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # ./trtexec --onnx=m.onnx
[06/13/2025-19:41:36] [I] Compute Capability: 8.9
[06/13/2025-19:41:36] [W] [TRT] a warning
[06/13/2025-19:41:36] [E] [TRT] ModelImporter.cpp:961: While parsing node number 267 [Conv -> \
"/model/Conv_output_0"]:
[06/13/2025-19:41:36] [E] [TRT] ModelImporter.cpp:964: --- Begin node ---
input: "/model/Reshape_output_0"
output: "/model/Conv_output_0"
name: "/model/Conv"
op_type: "Conv"
attribute {
  name: "dilations"
  ints: 1
}
[06/13/2025-19:41:36] [E] [TRT] ModelImporter.cpp:965: --- End node ---
[06/13/2025-19:41:36] [E] [TRT] ModelImporter.cpp:967: ERROR: ModelImporter.cpp:162 In function \
parseGraph:
[6] Invalid Node - /model/Conv
two lines of reason
[06/13/2025-19:41:36] [E] Failed to parse onnx file
"""


def test_parser_errors_of_a_log():
    facts = facts_of(PARSER)
    (error,) = facts.parser_errors
    assert (error.index, error.op, error.node) == (267, "Conv", "/model/Conv")
    assert error.output == "/model/Conv_output_0"
    assert error.function == "parseGraph" and error.code == "6"
    assert error.description == "Invalid Node - /model/Conv\ntwo lines of reason"
    assert facts.errors == ["Failed to parse onnx file"]
    assert facts.warnings == ["a warning"]
    assert facts.version == "10.13.3"
    assert facts.compute_capability == "8.9"


@pytest.mark.parametrize(
    ("number", "version"), [("8601", "8.6.1"), ("100200", "10.2.0"), ("110100", "11.1.0")]
)
def test_version_banner(number, version):
    banner = f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --onnx=m.onnx\n"
    assert facts_of(banner).version == version


def test_continuation_lines_belong_to_their_message():
    found = list(entries(["loose", "[E] first", "second", "", "[V] [TRT] third"]))
    assert [(e.severity, e.message) for e in found] == [
        ("", "loose"),
        ("E", "first\nsecond\n"),
        ("V", "third"),
    ]


def test_the_tail_is_short_and_without_layer_lines():
    facts = facts_of("".join(f"[V] [TRT] line {i}\n" for i in range(500)) + LAYERS)
    assert len(facts.tail) == 40
    assert not any(line.startswith("Name: ") for line in facts.tail)
    assert facts.tail[-1] == "[I] [TRT] done"
