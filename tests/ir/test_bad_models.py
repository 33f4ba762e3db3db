"""Every kind of broken model file ends in one clear error with its code."""

import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx24.errors import InputError
from onnx24.ir.claims import METADATA_KEY
from onnx24.ir.model import Model
from onnx24.ir.verify import CONSTANT_INPUTS, constant_inputs
from onnx24.ir.wire import varint
from onnx24.testing.generate import external_mlp, mlp


def _code(data_or_path) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        if isinstance(data_or_path, bytes):
            Model.from_bytes(data_or_path)
        elif isinstance(data_or_path, onnx.ModelProto):
            Model.from_proto(data_or_path)
        else:
            Model.load(data_or_path)
    assert caught.value.exit_code == 2
    assert len(caught.value.diagnostics) == 1 and caught.value.diagnostics[0].hint
    return caught.value.code, str(caught.value)


def test_missing_file_and_directory(tmp_path):
    assert _code(tmp_path / "nothing.onnx")[0] == "O24-001"
    assert _code(tmp_path)[0] == "O24-001"


def test_empty_file(tmp_path):
    (tmp_path / "m.onnx").touch()
    assert _code(tmp_path / "m.onnx")[0] == "O24-002"


def test_truncated_at_any_point():
    data = mlp([32, 16]).SerializeToString()
    codes = {_code(data[:end])[0] for end in range(3, len(data) - 1, 37)}
    assert codes <= {"O24-002", "O24-003", "O24-004", "O24-014", "O24-015"}
    assert _code(data[: len(data) // 2])[0] == "O24-003"


@pytest.mark.parametrize(
    "head, what",
    [(b"PK\x03\x04rest", "zip"), (b"\x89HDF\r\n", "HDF5"), (b"<html>", "HTML"), (b"{}", "JSON"),
     (b"version https://git-lfs.github.com/spec/v1\noid x", "git-lfs")],
)  # fmt: skip
def test_other_formats_are_named(head, what):
    code, text = _code(head + bytes(100))
    assert code == "O24-002" and what in text


def test_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.onnx", "w") as archive:
        archive.writestr("model.onnx", mlp([8, 8]).SerializeToString())
    assert "zip" in _code(tmp_path / "m.onnx")[1]


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed):
    data = np.random.default_rng(seed).bytes(4096)
    assert _code(data)[0] in ("O24-002", "O24-003", "O24-004")


def test_nesting_bomb():
    body = b""
    for _ in range(2000):
        attr = b"\x32" + varint(len(body)) + body  # AttributeProto.g
        node = b"\x2a" + varint(len(attr)) + attr  # NodeProto.attribute
        body = b"\x0a" + varint(len(node)) + node  # GraphProto.node
    data = b"\x08\x08" + b"\x3a" + varint(len(body)) + body
    assert _code(data)[0] == "O24-017"


def test_no_graph_and_empty_graph():
    assert _code(onnx.ModelProto(ir_version=8))[0] == "O24-004"
    empty = helper.make_model(helper.make_graph([], "g", [], []))
    assert _code(empty)[0] == "O24-004"


def test_opset_too_old_and_too_new():
    code, text = _code(mlp([8, 8], opset=6))
    assert code == "O24-009" and "7" in text
    assert _code(mlp([8, 8], opset=onnx.defs.onnx_opset_version() + 1))[0] == "O24-010"


def test_operator_that_does_not_exist():
    proto = mlp([8, 8])
    proto.graph.node[0].op_type = "MatMull"
    code, text = _code(proto)
    assert code == "O24-011" and "MatMull" in text and "fc0" in text


def test_cycle_names_the_nodes():
    proto = mlp([8, 8])
    proto.graph.node[0].input[0] = "y"
    code, text = _code(proto)
    assert code == "O24-012" and "fc0 → fc0.add → fc0" in text


def test_duplicated_names():
    twice = mlp([8, 8])
    twice.graph.initializer.append(twice.graph.initializer[0])
    assert _code(twice)[0] == "O24-013"
    produced = mlp([8, 8, 8])
    produced.graph.node[2].output[0] = "m0"
    assert _code(produced)[0] == "O24-013"


@pytest.mark.parametrize("size", [8, 64], ids=["inline", "elided"])
def test_initializer_of_the_wrong_size(size):
    proto = mlp([size, size])
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    code, text = _code(proto)
    assert code == "O24-014" and "fc0.weight" in text and str(size * size * 4) in text


def test_negative_dimension():
    proto = mlp([8, 8])
    proto.graph.initializer[0].dims[0] = -8
    assert _code(proto)[0] == "O24-014"


def test_more_dimensions_than_arrays_have():
    proto = mlp([8, 8])
    proto.graph.initializer[0].dims[:] = [1] * 70
    proto.graph.initializer[0].raw_data = b"\0\0\0\0"
    assert _code(proto)[0] == "O24-014"


@pytest.mark.parametrize(
    "node",
    [
        "Conv<group=0>(x, w)",
        "Conv<group=-1>(x, w)",
        "ConvTranspose<group=0>(x, w)",
        "DepthToSpace<blocksize=0>(x)",
        "Cast<to=99>(x)",
        "Cast<to=0>(x)",
        "Transpose<perm=[0, 0, 1, 2]>(x)",
        "Transpose<perm=[0, 1, 2, 4]>(x)",
    ],
)
def test_attributes_that_everybody_would_trip_over(node):
    """onnx.checker takes them; the passes divided by zero."""
    text = '<ir_version: 8, opset_import: ["" : 17]> '
    text += f"g (float[1, 8, 5, 5] x, float[4, 8, 3, 3] w) => (float y) {{ [bad] y = {node} }}"
    code, message = _code(onnx.parser.parse_model(text))
    assert code == "O24-015" and "'bad'" in message


def test_unsorted_is_no_error_and_is_repaired_on_request():
    from onnx24.ir.repair import repair

    proto = mlp([8, 8])
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    model = Model.from_proto(proto)
    assert model.defects == {"unsorted"} and not model.changed
    assert repair(model) == ["unsorted"]
    assert [n.op_type for n in model.proto.graph.node] == ["MatMul", "Add"]
    assert not model.defects


def test_output_without_shape_is_filled_in_by_repair():
    from onnx24.ir.repair import repair

    proto = mlp([8, 4])
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = Model.from_proto(proto)
    assert model.defects == {"no-output-shape"}
    repair(model)
    dims = model.proto.graph.output[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("N", 4)


# --- external data -------------------------------------------------------------------------
@pytest.fixture
def external(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return external_mlp(folder, 1 << 20, width=256)


def _relocate(path, old: bytes, new: bytes) -> None:
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.value.encode() == old:
                entry.value = new.decode()
    path.write_bytes(proto.SerializeToString())


def test_external_file_missing(external):
    (external.parent / "weights.bin").unlink()
    code, text = _code(external)
    assert code == "O24-005" and "weights.bin" in text and "fc0.weight" in text


@pytest.mark.parametrize("where", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", ""])
def test_external_path_that_leaves_the_folder(external, where):
    (external.parent.parent / "weights.bin").write_bytes(
        (external.parent / "weights.bin").read_bytes()
    )
    _relocate(external, b"weights.bin", where.encode())
    assert _code(external)[0] == "O24-006"


def test_references_of_our_own_cannot_be_forged(external):
    for location in (b"/onnx24/embedded", b"/onnx24/overlay"):
        _relocate(external, b"weights.bin", location)
        assert _code(external)[0] == "O24-006"
        _relocate(external, location, b"weights.bin")


def test_external_symlink_out_of_the_folder(external):
    data = external.parent / "weights.bin"
    outside = external.parent.parent / "elsewhere.bin"
    data.rename(outside)
    data.symlink_to(outside)
    assert _code(external)[0] == "O24-006"


@pytest.mark.parametrize(
    "key, value", [("offset", "1048576"), ("offset", "-4"), ("length", "9" * 12)]
)
def test_external_bounds(external, key, value):
    proto = onnx.load(str(external), load_external_data=False)
    for entry in proto.graph.initializer[-1].external_data:
        if entry.key == key:
            entry.value = value
    external.write_bytes(proto.SerializeToString())
    assert _code(external)[0] in ("O24-007", "O24-014")


def test_external_entry_that_is_no_number(external):
    _relocate(external, b"0", b"zero")
    assert _code(external)[0] == "O24-007"


def test_external_data_from_bytes_has_no_folder(external):
    assert _code(external.read_bytes())[0] == "O24-042"


def test_undefined_dtype():
    proto = mlp([8, 8])
    proto.graph.initializer[0].data_type = TensorProto.UNDEFINED
    assert _code(proto)[0] in ("O24-014", "O24-015")


def test_unread_extra_tensor_is_still_checked():
    proto = mlp([8, 8])
    extra = numpy_helper.from_array(np.ones(300, np.float32), "extra")
    extra.dims[0] = 301
    proto.graph.initializer.append(extra)
    assert _code(proto)[0] == "O24-014"


@pytest.mark.parametrize("text", ["[" * 9000, "{}", "[[1]]", "null", "[null, 3, {}]", '"x"', "]"])
def test_records_in_metadata_that_anybody_may_have_written(text):
    model = Model.from_proto(mlp([8, 8]))
    for key in (METADATA_KEY, CONSTANT_INPUTS):
        model.metadata[key] = text
    assert constant_inputs(model) == frozenset() and list(model.claims) == []
