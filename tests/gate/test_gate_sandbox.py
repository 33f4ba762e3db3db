"""Files that want to do harm cost a refusal, and nothing else."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import onnx
import pytest
from gate_support import codes, dense_mlp, sparse_mlp

from onnx24.errors import InputError
from onnx24.gate.sandbox import Sandbox
from onnx24.ir.bounds import Bounds
from onnx24.ir.model import Model
from onnx24.ir.wire import varint
from onnx24.report.policy import BUILT_IN, parse_policy

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits need fork")


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def model_of(graph: bytes) -> bytes:
    return b"\x08\x08" + field(7, graph) + field(8, field(1, b"") + b"\x10\x11")


def many_nodes(mib: int) -> bytes:
    node = field(1, field(1, b"a") + field(2, b"b") + field(4, b"Relu"))
    return model_of(node * ((mib << 20) // len(node)) + field(12, field(1, b"b")))


def many_numbers(mib: int) -> bytes:
    """int64_data with one byte for each of its numbers: eight times as large when parsed."""
    tensor = b"\x10\x07" + field(8, b"w") + field(7, bytes(mib << 20))
    return model_of(field(5, tensor) + field(12, field(1, b"b")))


def unpacked_numbers(mib: int) -> bytes:
    tensor = b"\x10\x07" + field(8, b"w") + b"\x38\x01" * ((mib << 20) // 2)
    return model_of(field(5, tensor) + field(12, field(1, b"b")))


def deep(levels: int) -> bytes:
    graph = field(12, field(1, b"b"))
    for _ in range(levels):
        graph = field(
            1, field(2, b"b") + field(4, b"If") + field(5, field(1, b"g") + field(6, graph))
        )
    return model_of(graph)


def many_dims(mib: int) -> bytes:
    """An input type with millions of dimensions, which only protobuf looks at."""
    shape = field(1, b"") * ((mib << 20) // 2)
    value = field(1, b"x") + field(2, field(1, b"\x08\x01" + field(2, shape)))
    return model_of(field(11, value) + field(12, field(1, b"x")))


@pytest.mark.parametrize(
    ("make", "codes_"),
    [
        (many_nodes, {"O24-017"}),
        (many_numbers, {"O24-019", "O24-002", "O24-014"}),
        (unpacked_numbers, {"O24-017"}),
        (many_dims, {"O24-019", "O24-002", "O24-015"}),
    ],
)
def test_a_hundred_hostile_megabytes(tmp_path: Path, make, codes_: set[str]) -> None:
    path = tmp_path / "evil.onnx"
    path.write_bytes(make(100))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with Sandbox(parse_policy("[limits]\nseconds = 20\n", "p"), "sm86-trt10") as sandbox:
        result = sandbox.judge(str(path))
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    assert result.exit_code == 2 and set(codes(result)) <= codes_, codes(result)
    # The mapped file counts as resident too, besides the limit on private memory.
    assert before / 1024 > peak_mib - 1 or peak_mib < 1024 + 100 + 100


def test_deep_nesting_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "deep.onnx"
    path.write_bytes(deep(5000))
    with Sandbox(BUILT_IN, "sm86-trt10") as sandbox:
        result = sandbox.judge(str(path))
    assert (result.exit_code, codes(result)) == (2, ["O24-017"])


def test_the_clock_and_the_memory_are_watched(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(dense_mlp(), path)
    with Sandbox(parse_policy("[limits]\nmemory_mib = 1\n", "p"), "sm86-trt10") as sandbox:
        result = sandbox.judge(str(path))
        assert (result.exit_code, codes(result)) == (2, ["O24-019"])
    long = tmp_path / "long.onnx"
    long.write_bytes(many_nodes(20))
    policy = parse_policy("[limits]\nseconds = 1\nnodes = 99999999\nmessages = 999999999\n", "p")
    with Sandbox(policy, "sm86-trt10") as sandbox:
        result = sandbox.judge(str(long))
        assert (result.exit_code, codes(result)) == (2, ["O24-019"])
        assert sandbox.judge(str(path)).exit_code == 0, "the nursery goes on"


def test_many_files_keep_their_order(tmp_path: Path) -> None:
    files = []
    for i in range(9):
        path = tmp_path / f"{i}.onnx"
        if i % 3 == 2:
            path.write_bytes(b"garbage")
        else:
            onnx.save(sparse_mlp() if i % 3 else dense_mlp(), path)
        files.append((str(path), f"model {i}"))
    with Sandbox(BUILT_IN, "sm86-trt10", jobs=2) as sandbox:
        results = list(sandbox.judge_all(files))
    assert [r.file for r in results] == [name for _, name in files]
    assert [r.exit_code for r in results] == [1, 0, 2] * 3


def test_a_nursery_that_died_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(sparse_mlp(), path)
    with Sandbox(BUILT_IN, "sm86-trt10") as sandbox:
        assert sandbox.judge(str(path)).exit_code == 0
        process = sandbox._nurseries[0]._process
        assert process is not None
        process.kill()
        process.wait()
        assert sandbox.judge(str(path)).exit_code == 0


def test_a_file_is_counted_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(dense_mlp(), path)
    nodes = len(dense_mlp().graph.node)
    Model.load(path, bounds=Bounds(nodes=nodes))
    with pytest.raises(InputError, match=f"more than {nodes - 1} nodes"):
        Model.load(path, bounds=Bounds(nodes=nodes - 1))
    with pytest.raises(InputError, match="more than 5 parts"):
        Model.load(path, bounds=Bounds(messages=5))
    monkeypatch.setenv("ONNX24_LIMITS", "messages=5")
    with pytest.raises(InputError, match="more than 5 parts"):
        Model.load(path)
    monkeypatch.setenv("ONNX24_LIMITS", "parts=5")
    with pytest.raises(InputError, match="expected NAME=NUMBER"):
        Model.load(path)


def test_the_current_folder_is_nothing_to_import_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever checks an unpacked archive stands in it."""
    for name in ("json", "numpy", "onnx", "onnx24", "typing", "select"):
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w').close()")
    onnx.save(sparse_mlp(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    with Sandbox(BUILT_IN, "sm86-trt10") as sandbox:
        assert sandbox.judge("m.onnx").exit_code == 0
    assert list(tmp_path.glob("ran-*")) == []


def test_data_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64 * 64 * 4))
    folder = tmp_path / "models"
    folder.mkdir()
    for location in ("../secret", str(secret), "link"):
        proto = dense_mlp()
        tensor = next(t for t in proto.graph.initializer if t.name == "fc0.weight")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        if location == "link":
            (folder / "link").symlink_to(secret)
        with Sandbox(BUILT_IN, "sm86-trt10") as sandbox:
            result = sandbox.judge(str(folder / "m.onnx"))
        assert (result.exit_code, codes(result)) == (2, ["O24-006"]), location
