"""What a small file may become is bounded before native code is asked, in every command."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx24.cli.app import run
from onnx24.errors import InputError
from onnx24.ir import bounds
from onnx24.ir.bounds import Bounds, within
from onnx24.ir.model import Model
from onnx24.runtime.session import Session

ROOT = Path(__file__).resolve().parents[2]
NODE = helper.make_node


def model_of(nodes: Sequence[NodeProto], functions: Sequence = (), **constants) -> onnx.ModelProto:
    """x: float[4, 4] → y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def function(name: str, *nodes: NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["b"], nodes, opsets)


def doubled(levels: int) -> onnx.ModelProto:
    """Functions that call the one below twice, the second time in a body."""
    functions = [function("F0", NODE("Relu", ["a"], ["t"]), NODE("Neg", ["t"], ["b"]))]
    for i in range(1, levels + 1):
        below = f"F{i - 1}"
        result = [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)]
        body = helper.make_graph([NODE(below, ["t"], ["c"], domain="f")], "g", [], result)
        functions.append(
            function(
                f"F{i}",
                NODE(below, ["a"], ["t"], domain="f"),
                NODE("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
                NODE("If", ["yes"], ["b"], then_branch=body, else_branch=body),
            )
        )
    return model_of([NODE(f"F{levels}", ["x"], ["y"], domain="f")], functions)


def refusal(proto: onnx.ModelProto, **bounds_) -> InputError:
    data = proto.SerializeToString()
    Model.from_bytes(data)
    with pytest.raises(InputError) as caught:
        Model.from_bytes(data, bounds=replace(Bounds(), **bounds_))
    assert caught.value.code == "O24-017"
    return caught.value


def test_nodes_are_counted_as_the_inliner_makes_them(monkeypatch):
    proto = doubled(4)
    inlined = Model.from_proto(onnx.inliner.inline_local_functions(proto))
    nodes = sum(len(scope.graph.node) for scope in inlined.scopes())
    monkeypatch.setattr(bounds, "_INLINED_SHARE", 1)
    Model.from_bytes(proto.SerializeToString(), bounds=Bounds(nodes=nodes))
    assert "inlined" in str(refusal(proto, nodes=nodes - 1))


def test_bytes_of_inlined_constants():
    stored = numpy_helper.from_array(np.zeros(1 << 16, np.float32))
    constant = function("F", NODE("Constant", [], ["c"], value=stored), NODE("Neg", ["a"], ["b"]))
    calls = [NODE("F", ["x"], ["y" if i == 9 else f"v{i}"], domain="f") for i in range(10)]
    assert "1 MiB" in str(refusal(model_of(calls, [constant]), mib=1))


def test_functions_that_never_end():
    call = NODE("F", ["a"], ["b"], domain="f")
    proto = model_of([NODE("F", ["x"], ["y"], domain="f")], [function("F", call)])
    with pytest.raises(InputError, match="calls itself"):
        Model.from_proto(proto)
    chain = [function("F0", NODE("Relu", ["a"], ["b"]))]
    chain += [function(f"F{i}", NODE(f"F{i - 1}", ["a"], ["b"], domain="f")) for i in range(1, 300)]
    with pytest.raises(InputError, match="more than 200 levels"):
        Model.from_proto(model_of([NODE("F299", ["x"], ["y"], domain="f")], chain))


ONE = np.ones(1, np.float32)
MAKERS = {
    "ConstantOfShape": (["n"], {"n": [1 << 10, 1 << 9]}),
    "Expand": (["o", "n"], {"o": ONE, "n": [1 << 10, 1 << 9]}),
    "Tile": (["o", "n"], {"o": ONE, "n": [1 << 19]}),
    "Pad": (["o", "n"], {"o": ONE, "n": [0, (1 << 19) - 1]}),
    "Range": (["a", "b", "c"], {"a": np.float32(0), "b": np.float32(1 << 19), "c": np.float32(1)}),
    "OneHot": (["i", "d", "v"], {"i": [0] * 64, "d": 1 << 13, "v": np.zeros(2, np.float32)}),
    "Resize": (
        ["o", "", "", "n"],
        {"o": ONE.reshape(1, 1, 1, 1), "n": [1, 1, 1 << 10, 1 << 9]},
    ),
}


@pytest.mark.parametrize("op", MAKERS)
def test_declared_sizes(op):
    """Two MiB; refused where one is allowed."""
    inputs, constants = MAKERS[op]
    error = refusal(model_of([NODE(op, inputs, ["y"], "big")], **constants), mib=1)
    assert "524,288 elements" in str(error) and "'big'" in str(error)


def test_sizes_that_are_computed():
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Mul", ["s", "k"], ["n"]),
        NODE("ConstantOfShape", ["n"], ["y"]),
    ]
    refusal(model_of(nodes, k=[256]), mib=1)


def test_a_vector_that_is_joined_with_itself(monkeypatch):
    nodes = [NODE("Shape", ["x"], ["v0"])]
    nodes += [NODE("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0) for i in range(10)]
    proto = model_of([*nodes, NODE("Cast", ["v10"], ["y"], to=TensorProto.FLOAT)])
    Model.from_proto(proto)
    monkeypatch.setattr(bounds, "_ITEMS", 500)
    with pytest.raises(InputError, match="'v10'"):
        Model.from_proto(proto)


def test_a_value_that_indexes_itself():
    nodes = [NODE("Gather", [f"v{i}"] * 2, [f"v{i + 1}"]) for i in range(9)]
    with pytest.raises(InputError, match="elements or more"):
        Model.from_proto(model_of([*nodes, NODE("Relu", ["x"], ["y"])], v0=[[0]]))


def test_what_a_run_would_hold():
    """Outer products, whose sizes only shape inference knows: 4 MiB of a model of 80 bytes."""
    nodes = [
        NODE("Reshape", ["x", "column"], ["c"]),
        NODE("Reshape", ["x", "row"], ["r"]),
        NODE("MatMul", ["c", "r"], ["p"]),
        NODE("Reshape", ["p", "column"], ["pc"]),
        NODE("MatMul", ["pc", "r"], ["q"], "outer"),
        NODE("Reshape", ["q", "column"], ["qc"]),
        NODE("MatMul", ["qc", "r"], ["s"]),
        NODE("MatMul", ["s", "c"], ["y"]),
    ]
    data = model_of(nodes, column=[-1, 1], row=[1, -1]).SerializeToString()
    Session(Model.from_bytes(data))
    with pytest.raises(InputError, match="holds at a time") as caught:
        Session(Model.from_bytes(data, bounds=Bounds(mib=0)))
    assert caught.value.code == "O24-017"


def test_what_honest_models_do():
    """A vocabulary's worth of an expanded constant, and a mask."""
    nodes = [
        NODE("Expand", ["o", "vocabulary"], ["e"]),
        NODE("Expand", ["o", "mask"], ["m"]),
        NODE("Relu", ["x"], ["y"]),
    ]
    proto = model_of(nodes, o=ONE, vocabulary=[30522, 768], mask=[1, 12, 512, 512])
    Session(Model.from_proto(proto))


@pytest.mark.parametrize("command", ["inspect", "canonicalize", "lint", "prune24", "compare"])
def test_every_command(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNX24_LIMITS", "nodes=50")
    Path("m.onnx").write_bytes(doubled(4).SerializeToString())
    rest = ["m.onnx", "--data", "random:1"] if command == "compare" else []
    assert run([command, "m.onnx", *rest]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "O24-017" in said and "ONNX24_LIMITS" in said


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux")
def test_native_code_is_held_to_a_budget():
    with pytest.raises(MemoryError), within(64 << 20):
        np.ones(1 << 27)
    assert np.ones(1 << 24).nbytes == 1 << 27, "and nothing else is, afterwards"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux")
def test_budgets_of_several_threads_add_up():
    entered, may_leave = threading.Event(), threading.Event()

    def other():
        with within(16 << 20):
            entered.set()
            may_leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    try:
        with within(512 << 20):
            assert np.empty(256 << 20, np.uint8).size
    finally:
        may_leave.set()
        thread.join()
    assert np.empty(2 << 30, np.uint8).size, "the last one gives the limit back"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_a_forked_process_is_held_to_no_budget():
    with within(16 << 20):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = int(np.empty(256 << 20, np.uint8).size != 256 << 20)
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0


def test_stacks_of_threads_are_no_part_of_a_models_budget():
    proto = model_of([NODE("Relu", ["x"], ["y"])])
    model = Model.from_bytes(proto.SerializeToString(), bounds=Bounds(mib=64))
    assert Session(model, threads=32).outputs == ["y"]


def test_numbers_of_an_attribute_are_less_than_parts():
    """A forest of trees has millions of them, unpacked."""
    proto = model_of([NODE("Relu", ["x"], ["y"], trees=list(range(1000)))])
    Model.from_bytes(proto.SerializeToString(), check=False, bounds=Bounds(messages=500))


def test_pads_that_are_transposed_are_not_read_in_the_old_order():
    pads = np.array([[0, 0], [0, 0], [40_000, 0]])  # of three axes; the last has 40,000
    nodes = [
        NODE("Transpose", ["pads"], ["t"]),
        NODE("Reshape", ["t", "flat"], ["u"]),
        NODE("Pad", ["v", "u"], ["y"]),
    ]
    weight = np.ones((1, 1, 40_000), np.float32)
    proto = model_of(nodes, pads=pads, flat=np.array([-1]), v=weight)
    Model.from_bytes(proto.SerializeToString())


def test_nobody_asks_for_shapes_without_a_budget():
    for path in (ROOT / "onnx24").rglob("*.py"):
        found = re.findall(r"shape_inference\.infer_shapes\(", path.read_text(encoding="utf-8"))
        assert not found or path.name == "shapes.py", path
