"""Files of a work dir that were cut, edited or made by somebody else are solved again."""

import io
import json
import zipfile

import numpy as np
import pytest

import onnx24
from onnx24.ir.archives import UNREADABLE, headers
from onnx24.ir.keys import ValueKey
from onnx24.layerwise.progress import Saved
from onnx24.layerwise.results import LayerResult
from onnx24.testing.generate import mlp


def _run(work):
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    result = onnx24.prune24(mlp([16, 32, 8]), calib={"x": x}, method="obs", work_dir=work)
    resumed = result.report.run["passes"][0].get("resumed", 0)
    return result.source().load().to_bytes(), resumed


def _header(shape):
    """An array of this shape, by its header, and of eight bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + b"\0" * 8


def _with(path, member, content):
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    kept[member] = content
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)


def _edited(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "stored": arrays["stored"] * 3})


def _nested(path):
    head = io.BytesIO()
    np.save(head, np.array("[" * 100_000))
    _with(path, "head.npy", head.getvalue())


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "another archive": lambda path: np.savez(path, a=np.zeros(3)),
    "an array": lambda path: path.write_bytes(_header((2,))),
    "edited": _edited,
    "huge": lambda path: _with(path, "stored.npy", _header((1 << 40, 16))),
    "negative": lambda path: _with(path, "stored.npy", _header((-2, 16))),
    "head": lambda path: _with(path, "head.npy", _header((2,))),
    "nested": _nested,
}


def test_a_resumed_run_gives_the_same_bytes_record_included(tmp_path):
    wanted, resumed = _run(None)
    assert resumed == 0
    assert _run(tmp_path) == (wanted, 0)
    assert _run(tmp_path) == (wanted, 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_layer_is_solved_again(tmp_path, damage):
    wanted, _ = _run(tmp_path)
    path = sorted(tmp_path.glob("layers-*/*.npz"))[0]
    DAMAGES[damage](path)
    assert _run(tmp_path) == (wanted, 1)


def test_a_layer_of_another_shape_is_not_taken(tmp_path):
    """Its digest is right: somebody else wrote it under this name."""
    saved, key = Saved(tmp_path, "x"), ValueKey("", "w")
    saved.store(key, LayerResult(stored=np.zeros((4, 4), np.float32), bias=None))
    assert saved.load([key], {"w": np.zeros((4, 4), np.float32)}) is not None
    assert saved.load([key], {"w": np.zeros((4, 8), np.float32)}) is None
    assert saved.load([key], {"w": np.zeros((4, 4), np.float16)}) is None


@pytest.mark.parametrize("shape", [(1 << 40, 16), (-2, 16), (1 << 62, 1 << 62)])
def test_headers_that_lie_are_refused_before_room_is_made(tmp_path, shape):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _header(shape))
    with pytest.raises(UNREADABLE, match="by its header"):
        headers(path)
    with pytest.raises(onnx24.InputError, match="O24-030"):
        onnx24.prune24(mlp([16, 8]), calib=str(path), method="obs")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", "{}", '{"format": "onnx24 activation ranges", "version": 1}']
    + [
        json.dumps(
            {
                "format": "onnx24 activation ranges",
                "version": 1,
                "model": "",
                "data": "",
                "options": options,
                "ranges": {"x": {"amax": 1.0, "values": values}},
            }
        )
        for options, values in (([1], 1), ({}, float("inf")), ({}, "a"))
    ],
    ids=["nested", "list", "empty", "short", "options", "infinite", "text"],
)
def test_a_foreign_range_cache_is_refused(tmp_path, text):
    from onnx24.runtime.range_cache import RangeCache

    path = tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(onnx24.InputError, match="O24-223"):
        RangeCache.load(path)
