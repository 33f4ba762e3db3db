"""Calibration data: its four forms, what is refused, and that nothing is held."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import load_data


def model_of(*inputs: tuple[str, int, list | None], initializers=()) -> Model:
    """Identity on each input; dims None leaves the rank open."""
    names = [name for name, _, _ in inputs]
    graph = helper.make_graph(
        [helper.make_node("Identity", [n], [f"{n}_out"]) for n in names],
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(f"{n}_out", e, d) for n, e, d in inputs],
        list(initializers),
    )
    opset = [helper.make_opsetid("", 21)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))


BATCHED = ("x", TensorProto.FLOAT, ["batch", 3])


def refused(code: str, spec, model: Model, *words: str, **kwargs) -> InputError:
    with pytest.raises(InputError) as caught:
        found = load_data(str(spec), model, **kwargs)
        list(found.batches(model))
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))
    return caught.value


@pytest.fixture
def x37() -> np.ndarray:
    return np.arange(37 * 3, dtype=np.float32).reshape(37, 3)


# --- one .npz ------------------------------------------------------------------------------
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_a_dynamic_batch(tmp_path, x37, save):
    save(tmp_path / "d.npz", x=x37)
    model = model_of(BATCHED)
    found = load_data(str(tmp_path / "d.npz"), model)
    assert len(found) == 37 and found.names == ("x",) and not found.is_random
    runs = list(found.batches(model))
    assert len(runs) == found.runs == 3  # 16 + 16 + 5
    np.testing.assert_array_equal(np.concatenate([r["x"] for r in runs]), x37)
    assert "37 samples" in found.describe()


def test_rows_of_a_fixed_batch_leave_out_what_fills_no_run(tmp_path, x37):
    np.savez(tmp_path / "d.npz", x=x37)
    model = model_of(("x", TensorProto.FLOAT, [10, 3]))
    found = load_data(str(tmp_path / "d.npz"), model)
    assert len(found) == 30
    runs = list(found.batches(model))
    assert [r["x"].shape for r in runs] == [(10, 3)] * 3
    np.testing.assert_array_equal(np.concatenate([r["x"] for r in runs]), x37[:30])


def test_whole_inputs_one_a_run(tmp_path):
    x = np.arange(4 * 6, dtype=np.float32).reshape(4, 6, 1)
    np.savez(tmp_path / "d.npz", x=x)
    model = model_of(("x", TensorProto.FLOAT, [6, 1]))
    found = load_data(str(tmp_path / "d.npz"), model)
    assert len(found) == 4
    for run, want in zip(found.batches(model), x, strict=True):
        np.testing.assert_array_equal(run["x"], want)


def test_one_array_of_exactly_the_inputs_shape_is_one_run(tmp_path):
    x = np.ones((6, 1), np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    model = model_of(("x", TensorProto.FLOAT, [6, 1]))
    runs = list(load_data(str(tmp_path / "d.npz"), model).batches(model))
    assert len(runs) == 1 and runs[0]["x"].shape == (6, 1)


def test_scalars_are_whole_inputs(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([1, 2], np.int64))
    model = model_of(("x", TensorProto.INT64, []))
    runs = list(load_data(str(tmp_path / "d.npz"), model).batches(model))
    assert [r["x"].shape for r in runs] == [(), ()] and runs[1]["x"] == 2


def test_fixed_and_dynamic_inputs_share_their_runs(tmp_path):
    a, b = np.arange(10, dtype=np.float32)[:, None], np.arange(10, dtype=np.int64)
    np.savez(tmp_path / "d.npz", a=a, b=b, c=np.arange(20, dtype=np.float32).reshape(2, 10))
    model = model_of(
        ("a", TensorProto.FLOAT, [4, 1]),
        ("b", TensorProto.INT64, ["n"]),
        ("c", TensorProto.FLOAT, [10]),
    )
    runs = list(load_data(str(tmp_path / "d.npz"), model).batches(model))
    assert len(runs) == 2
    assert runs[1]["a"][:, 0].tolist() == runs[1]["b"].tolist() == [4, 5, 6, 7]
    assert runs[1]["c"].tolist() == list(range(10, 20))


def test_fortran_order_big_endian_and_bytes_per_run(tmp_path, x37):
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(x37).astype(">f4", order="F"))
    model = model_of(BATCHED)
    runs = list(load_data(str(tmp_path / "d.npz"), model).batches(model))
    got = np.concatenate([r["x"] for r in runs])
    assert got.dtype == np.dtype("<f4").newbyteorder("=")
    np.testing.assert_array_equal(got, x37)
    wide = np.zeros((3, 300_000), np.float32)  # over 1 MiB a row
    np.savez(tmp_path / "w.npz", x=wide)
    model = model_of(("x", TensorProto.FLOAT, ["b", "n"]))
    assert load_data(str(tmp_path / "w.npz"), model).runs == 3


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_types_that_numpy_writes_as_raw_bytes(tmp_path, dtype):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    np.savez(tmp_path / "d.npz", x=x)
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = model_of(("x", element, ["batch", 3]))
    (run,) = load_data(str(tmp_path / "d.npz"), model).batches(model)
    assert run["x"].dtype == x.dtype
    np.testing.assert_array_equal(run["x"].astype(np.float32), x.astype(np.float32))


def test_strings_and_optional_inputs(tmp_path):
    w = numpy_helper.from_array(np.ones(3, np.float32), "w")
    model = model_of(
        ("s", TensorProto.STRING, ["n"]), ("w", TensorProto.FLOAT, [3]), initializers=[w]
    )
    np.savez(tmp_path / "d.npz", s=np.array(["a", "bc"]))
    (run,) = load_data(str(tmp_path / "d.npz"), model).batches(model)
    assert run["s"].dtype == object and run["s"].tolist() == ["a", "bc"] and "w" not in run
    np.savez(tmp_path / "e.npz", s=np.array(["a", "bc"]), w=np.ones((1, 3), np.float32))
    assert "w" in next(load_data(str(tmp_path / "e.npz"), model).batches(model))


# --- what is refused -----------------------------------------------------------------------
def test_names(tmp_path, x37):
    np.savez(tmp_path / "d.npz", y=x37)
    err = refused("O24-031", tmp_path / "d.npz", model_of(BATCHED), "['x']", "['y']")
    assert err.diagnostics[0].facts == {"missing": ["x"], "unknown": ["y"]}
    np.savez(tmp_path / "e.npz", x=x37, labels=np.zeros(37))
    refused("O24-031", tmp_path / "e.npz", model_of(BATCHED), "labels")


@pytest.mark.parametrize("shape", [(8, 4), (8,), (8, 2, 2, 3), ()])
def test_shapes(tmp_path, shape):
    np.savez(tmp_path / "d.npz", x=np.zeros(shape, np.float32))
    refused("O24-032", tmp_path / "d.npz", model_of(BATCHED), "[N, 3]", str(list(shape)))


def test_counts(tmp_path):
    two = model_of(BATCHED, ("y", TensorProto.FLOAT, ["batch", 1]))
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32), y=np.zeros((5, 1), np.float32))
    refused("O24-032", tmp_path / "d.npz", two, "'x': 4", "'y': 5")
    np.savez(tmp_path / "e.npz", x=np.zeros((4, 3), np.float32))
    refused("O24-032", tmp_path / "e.npz", model_of(("x", TensorProto.FLOAT, [8, 3])), "8", "4")
    np.savez(tmp_path / "f.npz", x=np.zeros((0, 3), np.float32))
    refused("O24-030", tmp_path / "f.npz", model_of(BATCHED), "no samples")


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float16, np.bool_])
def test_dtypes(tmp_path, dtype):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), dtype))
    refused("O24-033", tmp_path / "d.npz", model_of(BATCHED), "float32", np.dtype(dtype).name)


def test_files_that_are_no_data(tmp_path, x37):
    model = model_of(BATCHED)
    refused("O24-030", tmp_path / "absent.npz", model, "absent.npz", "no such file")
    (tmp_path / "text.npz").write_bytes(b"not an npz")
    refused("O24-030", tmp_path / "text.npz", model, "text.npz")
    np.savez(tmp_path / "good.npz", x=x37)
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused("O24-030", tmp_path / "cut.npz", model)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}, None], object))
    refused("O24-030", tmp_path / "pickled.npz", model, "pickle")
    (tmp_path / "empty").mkdir()
    refused("O24-030", tmp_path / "empty", model, "no .npz")


def test_damage_inside_an_archive(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((1000, 3), np.float32))
    raw = bytearray((tmp_path / "d.npz").read_bytes())
    raw[6000] ^= 0xFF  # a bit of the values, so that the CRC fails
    (tmp_path / "d.npz").write_bytes(raw)
    refused("O24-030", tmp_path / "d.npz", model_of(BATCHED), "CRC")


def test_inputs_that_are_no_tensors(tmp_path):
    model = Model.from_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (seq(float[N]) s) => (int64 n) { n = SequenceLength(s) }"
    )
    refused("O24-030", "random:1", model, "sequence")


# --- folders -------------------------------------------------------------------------------
def test_a_folder_of_archives_one_run_each_in_natural_order(tmp_path):
    model = model_of(BATCHED)
    for i in (10, 2, 1):
        np.savez(tmp_path / f"s{i}.npz", x=np.full((i, 3), i, np.float32))
    found = load_data(str(tmp_path), model)
    assert [r["x"].shape[0] for r in found.batches(model)] == [1, 2, 10]
    assert len(found) == 3 and "3 runs" in found.describe()
    np.savez(tmp_path / "s3.npz", x=np.zeros((2, 4), np.float32))
    refused("O24-032", tmp_path, model, "s3.npz")


def write_set(folder: Path, **arrays: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i, (name, array) in enumerate(arrays.items()):
        tensor = numpy_helper.from_array(array, "" if name.startswith("_") else name)
        (folder / f"input_{i}.pb").write_bytes(tensor.SerializeToString())


def test_onnx_test_data_by_name_and_by_position(tmp_path):
    model = model_of(("a", TensorProto.FLOAT, [2]), ("b", TensorProto.INT64, []))
    one = np.array([1, 2], np.float32)
    write_set(tmp_path / "test_data_set_0", b=np.array(5), a=one)
    write_set(tmp_path / "test_data_set_1", _0=one + 1, _1=np.array(6))
    found = load_data(str(tmp_path), model)
    runs = list(found.batches(model))
    assert [int(r["b"]) for r in runs] == [5, 6] and runs[1]["a"].tolist() == [2, 3]
    single = load_data(str(tmp_path / "test_data_set_1"), model)
    assert len(single) == 1 and int(next(single.batches(model))["b"]) == 6


def test_test_data_that_does_not_fit(tmp_path):
    model = model_of(("a", TensorProto.FLOAT, [2]))
    write_set(tmp_path / "s" / "test_data_set_0", a=np.zeros(3, np.float32))
    refused("O24-032", tmp_path / "s", model, "[2]", "[3]")
    (tmp_path / "s" / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff\xff garbage")
    refused("O24-030", tmp_path / "s", model, "input_0.pb")
    np.savez(tmp_path / "s" / "x.npz", a=np.zeros((1, 2), np.float32))
    refused("O24-030", tmp_path / "s", model, "both")


def test_onnx_backend_data_is_read(tmp_path):
    """The layout as onnx itself ships it."""
    from onnx.backend.test.loader import load_model_tests

    cases = load_model_tests(kind="pytorch-converted")
    folder = next(Path(str(c.model_dir)) for c in cases if c.name == "test_Conv2d")
    shutil.copytree(folder / "test_data_set_0", tmp_path / "test_data_set_0")
    model = Model.load(folder / "model.onnx", check=False)  # opset 6
    (run,) = load_data(str(tmp_path), model).batches(model)
    assert [a.shape for a in run.values()] == [(2, 3, 7, 5)]


# --- random --------------------------------------------------------------------------------
def test_random_is_seeded_and_says_so():
    model = model_of(BATCHED, ("m", TensorProto.BOOL, ["batch"]))
    one, two = load_data("random:3", model), load_data("random:3", model)
    other = load_data("random:3", model, seed=1)
    assert one.is_random and len(one) == 3 and "random:3" in one.describe()
    assert one.digest() == two.digest() != other.digest()
    runs = list(one.batches(model))
    assert runs[0]["x"].shape == (1, 3) and runs[0]["m"].dtype == bool
    assert not np.array_equal(runs[0]["x"], runs[1]["x"])


@pytest.mark.parametrize(
    "element",
    [
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.UINT64,
        TensorProto.COMPLEX64,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.INT4,
    ],
)
def test_random_values_of_every_dtype(element):
    model = model_of(("x", element, [64]))
    (run,) = load_data("random:1", model).batches(model)
    assert run["x"].dtype == helper.tensor_dtype_to_np_dtype(element)
    assert len(np.unique(run["x"].astype(np.complex128))) > 1


def test_random_indices_stay_inside_their_table():
    model = Model.from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N, 50] ids, int64[N, 50] kinds, int32[N, 7] deep)
          => (float[N, 50, 4] y, float[N, 50, 2] z, float[N, 7, 9] o)
        <float[3, 2] small = {1, 2, 3, 4, 5, 6}, float[7, 4] table = {
          0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0},
         int64[1] depth = {9}, float[2] onoff = {0, 1}>
        {
          y = Gather(table, ids)
          flat = Cast<to = 6>(kinds)
          z = Gather(small, flat)
          o = OneHot(deep, depth, onoff)
        }"""
    )
    (run,) = load_data("random:1", model, shapes={"ids": (40, 50)}).batches(model)
    assert set(np.unique(run["ids"])) == set(range(7))
    assert set(np.unique(run["kinds"])) == set(range(3)) and run["kinds"].shape == (40, 50)
    assert run["deep"].max() <= 8 and run["deep"].shape == (40, 7)


def test_sizes_are_searched_that_take_every_random_index():
    """A graph's edges name nodes, of which there must be two for 0 and 1 to be names."""
    model = Model.from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, nodes] x, int64[1, edges] i) => (float[1, edges] y)
        { y = GatherElements<axis = 1>(x, i) }"""
    )
    for run in load_data("random:8", model).batches(model):
        assert run["x"].shape == (1, 2)
    nodes_first = Model.from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[nodes, 3] x, int64[edges] i, int64[1, edges] j) => (float[edges, 3] y)
        { y = Gather(x, i) }"""
    )
    for run in load_data("random:8", nodes_first).batches(nodes_first):
        assert run["x"].shape == (2, 3) and run["i"].shape == (2,)


def test_random_shapes():
    model = model_of(("x", TensorProto.FLOAT, ["b", "s"]), ("y", TensorProto.FLOAT, [4, "s"]))
    (run,) = load_data("random:1", model).batches(model)
    assert run["x"].shape == (1, 1) and run["y"].shape == (4, 1)
    (run,) = load_data("random:1", model, shapes={"x": [2, 5]}).batches(model)
    assert run["x"].shape == (2, 5) and run["y"].shape == (4, 5)
    refused("O24-505", "random:1", model, "[4, s]", shapes={"y": [3, 5]})
    refused("O24-505", "random:1", model, "z", shapes={"z": [3]})
    refused("O24-505", "random:1", model, "'s'", "5 and 6", shapes={"x": [2, 5], "y": [4, 6]})
    minus = model_of(("x", TensorProto.FLOAT, [-1, 3]))
    for shapes in (None, {"x": [-1, 3]}):
        (run,) = load_data("random:1", minus, shapes=shapes).batches(minus)
        assert run["x"].shape == (1, 3)
    unknown = model_of(("x", TensorProto.FLOAT, None))
    refused("O24-036", "random:1", unknown, "rank")


@pytest.mark.parametrize("spec", ["random:0", "random:", "random:-1", "random:x", "random:1.5"])
def test_random_counts_that_are_none(spec):
    refused("O24-030", spec, model_of(BATCHED), "random:N")


def test_random_strings_are_refused():
    refused("O24-030", "random:1", model_of(("s", TensorProto.STRING, [1])), "strings")


# --- split, digest, memory -----------------------------------------------------------------
def test_split_is_disjoint_complete_and_spread(tmp_path, x37):
    np.savez(tmp_path / "d.npz", x=x37)
    model = model_of(BATCHED)
    whole = load_data(str(tmp_path / "d.npz"), model)
    parts = whole.split(7 / 8)
    assert [len(p) for p in parts] == [32, 5]
    rows = [np.concatenate([r["x"] for r in p.batches(model)])[:, 0] / 3 for p in parts]
    assert sorted([*rows[0], *rows[1]]) == list(range(37))
    assert np.diff(rows[1]).max() <= 9 and np.diff(rows[1]).min() >= 7
    assert "32 of its 37" in parts[0].describe()
    assert len({whole.digest(), parts[0].digest(), parts[1].digest()}) == 3
    again = parts[0].split(0.5)
    assert [len(p) for p in again] == [16, 16]


def test_split_keeps_both_parts_and_never_divides_a_run(tmp_path, x37):
    np.savez(tmp_path / "d.npz", x=x37)
    model = model_of(("x", TensorProto.FLOAT, [10, 3]))
    parts = load_data(str(tmp_path / "d.npz"), model).split(0.99)
    assert [len(p) for p in parts] == [20, 10]
    single = load_data("random:1", model)
    assert single.split(0.5) == (single, single)
    for fraction in (0, 1, -0.1):
        with pytest.raises(ValueError, match="fraction"):
            single.split(fraction)


def test_the_digest_goes_by_values(tmp_path, x37):
    model = model_of(BATCHED)
    np.savez(tmp_path / "a.npz", x=x37)
    np.savez_compressed(tmp_path / "b.npz", x=x37)
    np.savez(tmp_path / "c.npz", x=x37 + 1)
    a, b, c = (load_data(str(tmp_path / f"{n}.npz"), model).digest() for n in "abc")
    assert a == b != c


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_streamed(tmp_path, save):
    rows = 4000
    save(tmp_path / "d.npz", x=np.zeros((rows, 3 * 32 * 32), np.float32))  # 47 MiB
    model = model_of(("x", TensorProto.FLOAT, ["b", 3072]))
    found = load_data(str(tmp_path / "d.npz"), model)
    tracemalloc.start()
    seen = sum(len(r["x"]) for r in found.batches(model))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == rows and peak < 4 << 20


def test_another_model_of_the_same_inputs_may_be_fed(tmp_path, x37):
    np.savez(tmp_path / "d.npz", x=x37)
    found = load_data(str(tmp_path / "d.npz"), model_of(BATCHED))
    assert len(list(found.batches(model_of(("x", TensorProto.FLOAT, [None, 3]))))) == 3
    with pytest.raises(InputError, match="O24-032"):
        found.batches(model_of(("x", TensorProto.FLOAT, [None, 4])))
    with pytest.raises(InputError, match="O24-031"):
        found.batches(model_of(("y", TensorProto.FLOAT, [None, 3])))
