"""Weights in pieces, and replaced values that are written where they will lie."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir import overlay
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.model import Model
from onnx24.ir.overlay import OVERLAY, Overlay
from onnx24.ir.pieces import pieces
from onnx24.ir.weights import Draft, payload_bytes, reference_of
from onnx24.sparsity.masks import prune_24_by_stride, violations_by_stride
from onnx24.sparsity.metrics import count_violating
from onnx24.testing.generate import external_mlp, mlp

CUTS = [(64, 1, 16), (64, 1, 7), (4 * 9 * 5, 9, 80), (4 * 9 * 5, 9, 36), (4 * 50 * 3, 50, 64)]


@pytest.mark.parametrize(("size", "stride", "limit"), CUTS)
def test_pieces_hold_every_element_once_and_whole_groups(size: int, stride: int, limit: int):
    flat = np.arange(size)
    seen = []
    for piece in pieces(size, stride, limit):
        assert piece.size <= max(limit, 4)
        index = np.array([piece.position(i) for i in range(piece.size)])
        seen.append(index)
        groups = index.reshape(-1, 4, piece.stride).swapaxes(1, 2).reshape(-1, 4)
        assert (np.diff(groups, axis=1) == stride).all()
        assert (groups[:, 0] // stride % 4 == 0).all()
    assert (np.sort(np.concatenate(seen)) == flat).all()


def test_pieces_begin_where_they_are_asked_to():
    starts = [piece.start for piece in pieces(36 * 5000, 9, 40_000, align=1024)]
    assert len(starts) > 3 and all(start % 1024 == 0 for start in starts)
    cramped = [piece.size for piece in pieces(36 * 500, 9, 1000, align=1024)]
    assert max(cramped) <= 1000


def test_pieces_refuse_what_is_no_blocks():
    with pytest.raises(ValueError, match="no blocks"):
        list(pieces(10, 1))


def _two_threads(monkeypatch) -> None:
    monkeypatch.setattr("onnx24.ir.weights._threads", lambda: 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize(("stride", "limit"), [(1, 64), (24, 960), (24, 40)])
def test_a_draft_is_what_the_whole_array_gives(monkeypatch, dtype, stride: int, limit: int):
    _two_threads(monkeypatch)
    model = Model.from_proto(mlp([96, 24]))
    tensor = model.weights.tensor("fc0.weight")
    values = (model.weights["fc0.weight"] * 50).astype(dtype)
    model.weights.set_values(tensor, values)
    parts = list(pieces(values.size, stride, limit))

    def change(piece, values):
        prune_24_by_stride(values, piece.stride, values)
        return count_violating(values, piece.stride)

    draft = model.weights.draft(tensor, parts, change)
    np.testing.assert_array_equal(model.weights.read(tensor), values)  # not yet
    model.weights.commit(draft)
    assert draft.said == [0] * len(parts)
    expected = prune_24_by_stride(values, stride)
    np.testing.assert_array_equal(model.weights.read(tensor), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("stride", "summed"), [(1, 2), (9, 2), (600, 0)])
def test_checksums_of_a_draft_are_those_of_its_values(monkeypatch, dtype, stride, summed):
    """Taken on the way where the pieces are whole blocks, else when they are asked for."""
    _two_threads(monkeypatch)
    model = Model.from_proto(mlp([1200, 60]))
    tensor = model.weights.tensor("fc0.weight")
    model.weights.set_values(tensor, model.weights["fc0.weight"].astype(dtype))
    model.weights.sums_drafts = True
    align = 4096 // np.dtype(dtype).itemsize
    parts = list(pieces(1200 * 60, stride, 20_000 if summed else 500, align=align))
    assert len(parts) > 2
    before = reference_of(tensor)

    def change(piece, values):
        prune_24_by_stride(values, piece.stride, values)

    draft = model.weights.draft(tensor, parts, change)
    found = [model.weights._checksums.get(ref) for ref in (before, draft.reference)]
    assert len([f for f in found if f]) == summed
    model.weights.commit(draft)
    model.weights._checksums.clear()
    read = [model.weights.checksum_at(ref) for ref in (before, draft.reference)]
    assert read[0] != read[1] and found in (read, [None, None])


def test_an_error_in_a_thread_leaves_the_values(monkeypatch):
    _two_threads(monkeypatch)
    model = Model.from_proto(mlp([96, 24]))
    tensor, before = model.weights.tensor("fc0.weight"), model.to_bytes()

    def change(piece, values):
        raise RuntimeError(f"at {piece.start}")

    with pytest.raises(RuntimeError, match="at 0"):
        model.weights.draft(tensor, list(pieces(96 * 24, 1, 64)), change)
    assert model.to_bytes() == before


@pytest.mark.parametrize("stride", [1, 24, 24 * 24])
def test_violations_of_a_stored_tensor(stride: int):
    model = Model.from_proto(mlp([96, 24]))
    array = np.array(model.weights["fc0.weight"])
    prune_24_by_stride(array, stride, array)
    array.reshape(-1)[4 * stride :] = 1
    model.weights.replace("fc0.weight", array)
    found = model.weights.violations(model.weights.tensor("fc0.weight"), stride)
    assert found == violations_by_stride(array, stride)
    assert count_violating(array, stride) == found.violating


def test_scanning_stops_when_enough_is_seen():
    model = Model.from_proto(mlp([96, 24]))
    looked = []
    parts = list(pieces(96 * 24, 1, 64))
    scan = model.weights.scan(
        model.weights.tensor("fc0.weight"), parts, lambda piece, _: looked.append(piece.start)
    )
    next(scan)
    scan.close()
    assert looked == [0]


# --- staged ------------------------------------------------------------------------------------


def _external(folder: Path) -> Model:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    return Model.load(path if path.exists() else external_mlp(folder, 4 << 20, width=512))


def _negate(model: Model, names: list[str]) -> None:
    for name in names:
        tensor = model.weights.tensor(name)
        parts = list(pieces(512 * 512, 1, 1 << 14))
        draft: Draft = model.weights.draft(
            tensor, parts, lambda _, values: np.negative(values, out=values)
        )
        model.weights.commit(draft)
        model.touch(Effects.WEIGHTS)


def _bytes(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_name(f"{path.name}.data").read_bytes()


def _saved(model: Model, folder: Path) -> tuple[bytes, bytes]:
    folder.mkdir(exist_ok=True)
    model.save(folder / "out.onnx")
    return _bytes(folder / "out.onnx")


needs_unnamed = pytest.mark.skipif(
    overlay._unnamed(Path("/tmp")) is None, reason="no O_TMPFILE on this system"
)


@needs_unnamed
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1), ()])
def test_the_staged_file_becomes_the_output(monkeypatch, tmp_path, order):
    names = [f"fc{i}.weight" for i in order]
    plain = _external(tmp_path / "in")
    _negate(plain, names)
    plain.metadata["changed"] = "yes"
    expected = _saved(plain, tmp_path / "plain")

    monkeypatch.setattr(Overlay, "MEMORY_BYTES", 0)
    out = tmp_path / "out"
    out.mkdir()
    model = _external(tmp_path / "in")
    model.stage(out / "out.onnx")
    _negate(model, names)
    model.metadata["changed"] = "yes"
    assert list(out.iterdir()) == []
    before = {key: model.weights.digest(key) for key in model.weights}
    assert _saved(model, out) == expected
    written = os.stat(out / "out.onnx.data").st_ino
    held = [os.fstat(s.file.fileno()).st_ino for s in model.weights.overlay._files.values()]
    assert held == ([written] if names else [])
    # The model can still be read, changed and written; the first output stays as it is.
    assert {key: model.weights.digest(key) for key in model.weights} == before
    _negate(model, names)
    assert _saved(model, tmp_path / "again") == _saved(_unchanged(tmp_path), tmp_path / "u")
    assert _bytes(out / "out.onnx") == expected


def _unchanged(tmp_path: Path) -> Model:
    model = _external(tmp_path / "in")
    model.metadata["changed"] = "yes"
    return model


@needs_unnamed
@pytest.mark.parametrize("trouble", ["twice", "rolled back", "removed", "no names", "new name"])
def test_where_it_can_not_the_bytes_are_the_same(monkeypatch, tmp_path, trouble: str):
    def work(model: Model) -> Model:
        _negate(model, ["fc1.weight"])
        if trouble == "twice":
            _negate(model, ["fc1.weight", "fc2.weight"])
        if trouble == "rolled back":
            snapshot = model.snapshot()
            _negate(model, ["fc0.weight", "fc1.weight"])
            model.restore(snapshot)
        if trouble == "removed":
            nodes, initializers = model.proto.graph.node, model.proto.graph.initializer
            nodes[1].input[0] = "x"
            del nodes[0], initializers[0]
            model.touch(Effects.STRUCTURE)
        return model

    expected = _saved(work(_external(tmp_path / "in")), tmp_path / "plain")
    monkeypatch.setattr(Overlay, "MEMORY_BYTES", 0)
    out = tmp_path / "out"
    out.mkdir()
    if trouble == "no names":
        monkeypatch.setattr(overlay, "_unnamed", lambda folder: None)
    model = _external(tmp_path / "in")
    model.stage(tmp_path / "elsewhere.onnx" if trouble == "new name" else out / "out.onnx")
    assert _saved(work(model), out) == expected


@needs_unnamed
def test_a_save_that_fails_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(Overlay, "MEMORY_BYTES", 0)
    model = _external(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    model.stage(out / "out.onnx")
    _negate(model, ["fc1.weight"])
    (tmp_path / "in" / "weights.bin").unlink()
    with pytest.raises(InputError):
        model.save(out / "out.onnx")
    assert list(out.iterdir()) == []


def test_small_models_are_not_staged(tmp_path):
    model = _external(tmp_path)
    model.stage(tmp_path / "out.onnx")
    _negate(model, ["fc1.weight"])
    assert not model.weights.overlay._files


# --- what changed ------------------------------------------------------------------------------


def test_equal_bytes_elsewhere_are_no_change(tmp_path):
    model = _external(tmp_path)
    before = Fingerprint.of(model)
    _negate(model, ["fc0.weight"])
    after = Fingerprint.of(model)
    assert before.changed(after) == Effects.WEIGHTS
    _negate(model, ["fc0.weight"])
    ref = reference_of(model.weights.tensor("fc0.weight"))
    assert ref is not None and ref.location == OVERLAY
    assert before.changed(Fingerprint.of(model)) == Effects.NONE
    assert after.changed(Fingerprint.of(model)) == Effects.WEIGHTS


def test_a_reference_to_nothing_is_a_change(tmp_path):
    model = _external(tmp_path)
    before = Fingerprint.of(model)
    tensor = model.weights.tensor("fc0.weight")
    for entry in tensor.external_data:
        if entry.key == "offset":
            entry.value = str(1 << 40)
    assert payload_bytes(tensor) == 1 << 20
    assert before.changed(Fingerprint.of(model)) == Effects.WEIGHTS


def test_the_digest_of_a_fingerprint_is_of_the_content(tmp_path):
    model = _external(tmp_path)
    first = Fingerprint.of(model).digest()
    _negate(model, ["fc0.weight"])
    second = Fingerprint.of(model).digest()
    assert repr(Fingerprint.of(model)) == f"Fingerprint({second})" != f"Fingerprint({first})"
    _negate(model, ["fc0.weight"])
    assert Fingerprint.of(model).digest() == first
    embedded = Model.from_bytes(model.to_bytes())
    assert Fingerprint.of(embedded).digest() == first
