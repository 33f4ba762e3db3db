import os
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.claims import METADATA_KEY
from onnx24.ir.files import AtomicFiles, atomic_write
from onnx24.ir.model import Model
from onnx24.ir.overlay import Overlay
from onnx24.ir.text import dump
from onnx24.ir.weights import reference_of
from onnx24.testing.generate import external_mlp, mlp

DTYPES = [
    np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4,
    ml_dtypes.uint4,
]  # fmt: skip


def _holding(array: np.ndarray, raw: bool = True) -> Model:
    tensor = numpy_helper.from_array(array, "w")
    if not raw:
        tensor = onnx.helper.make_tensor("w", tensor.data_type, array.shape, array.reshape(-1))
    proto = mlp([16, 16])
    proto.graph.initializer.append(tensor)
    return Model.from_proto(proto, check=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(3,), (65, 33)], ids=["inline", "elided"])
def test_every_dtype_is_read_and_replaced(dtype, shape):
    rng = np.random.default_rng(7)
    array = rng.integers(0, 2 if dtype is np.bool_ else 8, shape).astype(dtype)
    model = _holding(array)
    np.testing.assert_array_equal(model.weights["w"], array)
    assert model.weights["w"].dtype == array.dtype
    assert not model.weights["w"].flags.writeable
    new = np.flip(array, 0).copy()
    new[0] = 1
    model.weights.replace("w", new)
    again = Model.from_bytes(model.to_bytes(), check=False)
    np.testing.assert_array_equal(again.weights["w"], new)
    assert again.weights.digest("w") == model.weights.digest("w")


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.float64])
def test_typed_fields_are_read(dtype):
    array = np.arange(600).reshape(20, 30).astype(dtype)
    np.testing.assert_array_equal(_holding(array, raw=False).weights["w"], array)


def test_replacement_of_another_shape_or_dtype_is_refused():
    model = _holding(np.ones((4, 4), np.float32))
    for wrong in (np.ones((4, 5), np.float32), np.ones((4, 4), np.float16)):
        with pytest.raises(ValueError, match="replacement"):
            model.weights.replace("w", wrong)


def test_large_payloads_are_not_in_the_document():
    data = mlp([512, 512]).SerializeToString()
    model = Model.from_bytes(data)
    assert model.proto.ByteSize() < 4096 < len(data)
    assert model.to_bytes() == data
    model.touch(Effects.STRUCTURE)
    assert model.full_proto() == onnx.load_from_string(data)


def test_snapshot_and_restore():
    model = Model.from_proto(mlp([64, 32]))
    before, key = model.to_bytes(), model.generation_key(Effects.STRUCTURE)
    snapshot = model.snapshot()
    model.weights.replace("fc0.weight", np.zeros((64, 32), np.float32))
    model.metadata["a"] = "b"
    model.restore(snapshot)
    assert model.to_bytes() == before and not model.changed
    assert model.generation_key(Effects.STRUCTURE) != key


def test_claims_live_in_the_metadata():
    model = Model.from_proto(mlp([64, 32]))
    model.claims.add("fc0.weight")
    assert "2:4" in dump(model)
    model.claims.move("fc0.weight", "other")
    assert "other" in model.claims and len(model.claims) == 1
    model.claims.discard("other")
    assert METADATA_KEY not in model.metadata
    model.metadata[METADATA_KEY] = "garbage"
    assert model.claims.keys() == []


@pytest.mark.parametrize("external", ["embed", "external"])
def test_changed_model_with_external_data(tmp_path, external):
    path = external_mlp(tmp_path, 3 << 20, width=512)
    model = Model.load(path)
    name = model.weights.keys()[1]
    model.weights.replace(name, np.zeros((512, 512), np.float32))
    out = tmp_path / "out.onnx"
    model.save(out, external=external)
    assert (tmp_path / "out.onnx.data").exists() == (external == "external")
    again = Model.load(out)
    assert not again.weights[name].any()
    other = model.weights.keys()[2]
    assert again.weights.digest(other) == Model.load(path).weights.digest(other)
    loaded = onnx.load(str(out))
    np.testing.assert_array_equal(
        numpy_helper.to_array(loaded.graph.initializer[2]), again.weights[other]
    )
    if external == "external":
        offsets = [int(reference_of(again.weights.tensor(k)).offset) for k in again.weights]
        assert all(offset % 4096 == 0 for offset in offsets)


def test_external_data_stays_external_when_every_weight_was_replaced(tmp_path):
    path = external_mlp(tmp_path, 2 << 20, width=512)
    model = Model.load(path)
    for key in model.weights.keys():  # noqa: SIM118 - a list, taken before the changes
        model.weights.replace(key, np.ones((512, 512), np.float32))
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 2 << 20


def test_overlay_spills_to_disk(monkeypatch):
    monkeypatch.setattr(Overlay, "MEMORY_BYTES", 20_000)
    model = Model.from_proto(mlp([64, 64, 64, 64]))
    expected = {}
    for seed, name in enumerate(["fc0.weight", "fc1.weight", "fc2.weight", "fc0.weight"]):
        expected[name] = np.random.default_rng(seed).standard_normal((64, 64), np.float32)
        model.weights.replace(name, expected[name])
    again = Model.from_bytes(model.to_bytes())
    for name, array in expected.items():
        np.testing.assert_array_equal(model.weights[name], array)
        np.testing.assert_array_equal(again.weights[name], array)


def test_the_input_is_never_overwritten(tmp_path):
    path = external_mlp(tmp_path, 2 << 20, width=512)
    (tmp_path / "link.onnx").symlink_to(path)
    for out in (path, tmp_path / "link.onnx", tmp_path / "weights.bin"):
        with pytest.raises(InputError) as caught:
            Model.load(path).save(out)
        assert caught.value.code == "O24-041"
    # A changed model writes OUT.data, which must not be the input's data file either.
    (tmp_path / "weights.bin").rename(tmp_path / "b.onnx.data")
    text = path.read_bytes().replace(b"weights.bin", b"b.onnx.data")
    path.write_bytes(text)
    for replaced in (False, True):
        model = Model.load(path)
        model.metadata["changed"] = "yes"
        for key in model.weights.keys() if replaced else ():
            model.weights.replace(key, np.zeros((512, 512), np.float32))
        with pytest.raises(InputError) as caught:
            model.save(tmp_path / "b.onnx")
        assert caught.value.code == "O24-041"


def test_atomic_files_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), AtomicFiles() as files:
        files.create(tmp_path / "a").write(b"1")
        files.create(tmp_path / "b").write(b"2")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_write(tmp_path / "a") as file:
        file.write(b"1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"1"


def test_full_disk_leaves_nothing():
    full = "/dev/full"
    if not os.path.exists(full):
        pytest.skip("no /dev/full here")
    with pytest.raises(InputError) as caught, AtomicFiles() as files:
        files.create(__import__("pathlib").Path(os.devnull).with_name("shm") / "onnx24-test")
        with open(full, "wb", buffering=0) as file:
            file.write(b"x")
    assert caught.value.code == "O24-040"
    assert not [n for n in os.listdir("/dev/shm") if "onnx24-test" in n]


def test_unwritable_folder(tmp_path):
    model = Model.from_proto(mlp([16, 16]))
    with pytest.raises(InputError) as caught:
        model.save(tmp_path / "missing" / "out.onnx")
    assert caught.value.code == "O24-040"


def test_ctrl_c_while_writing_leaves_nothing(tmp_path):
    path = external_mlp(tmp_path, 256 << 20, width=2048)
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import sys; from onnx24.ir.model import Model\n"
        "m = Model.load(sys.argv[1]); m.metadata['a'] = 'b'\n"
        "import onnx24.ir.model as mod\n"
        "copy = mod.copy_range\n"
        "def slow(*a):\n"
        "    copy(*a); print('writing', flush=True); __import__('time').sleep(0.2)\n"
        "mod.copy_range = slow\n"
        "m.save(sys.argv[2])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(out / "o.onnx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None and child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) != 0
    assert list(out.iterdir()) == []


def test_string_tensors_survive():
    proto = mlp([16, 16])
    proto.graph.initializer.append(
        onnx.helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"])
    )
    model = Model.from_proto(proto)
    assert list(model.weights["s"]) in (["a", "b"], [b"a", b"b"])
