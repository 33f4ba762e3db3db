"""Ranges as files: ours with digests, and TensorRT's text."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.quant.calibrators import Range
from onnx24.runtime.range_cache import RangeCache, model_digest


def cache() -> RangeCache:
    ranges = {"x": Range(12.7, "mse", 100, 0), "scope/y:0": Range(0.5, "max"), "dead": Range(0.0)}
    return RangeCache(ranges, "m" * 64, "d" * 64, {"calibrator": "auto"})


def test_json_round_trip(tmp_path):
    path = tmp_path / "ranges.json"
    cache().save(path)
    assert RangeCache.load(path) == cache()
    assert [p.name for p in tmp_path.iterdir()] == ["ranges.json"]


def test_tensorrt_text(tmp_path):
    path = tmp_path / "model.cache"
    cache().save(path)
    lines = path.read_text().splitlines()
    # 0.1 is 3dcccccd in IEEE 754; TensorRT stores the scale, range / 127.
    assert lines[0].startswith("TRT-") and lines[1] == "x: 3dcccccd" and len(lines) == 3
    found = RangeCache.load(path)
    assert not found.model and found.ranges["scope/y:0"].amax == pytest.approx(0.5)
    path.write_text("TRT-100300-EntropyCalibration2\ninput: 3c010204\n\n(Unnamed) 1: 3F800000\n")
    assert RangeCache.load(path).ranges["(Unnamed) 1"].amax == 127


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.cache", "nonsense\n", "first line"),
        ("a.cache", "", "first line"),
        ("a.cache", "TRT-8601-MinMaxCalibration\nx = 3\n", "line 2"),
        ("a.cache", "TRT-8601-MinMaxCalibration\nx: 7fc00000\n", "nan"),
        ("a.json", "{}", "expected 'onnx24 activation ranges'"),
        ("a.json", "[", "no cache"),
        ("a.json", "[]", "no cache"),
        ("a.json", '{"format": "onnx24 activation ranges", "version": 2}', "version 2"),
    ],
)
def test_other_files_are_refused(name, text, why, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match="O24-223") as caught:
        RangeCache.load(path)
    assert why in str(caught.value)
    with pytest.raises(InputError, match="O24-223"):
        RangeCache.load(tmp_path / "absent")
    with pytest.raises(InputError, match="O24-040"):
        cache().save(tmp_path / "no" / "folder.json")


def test_what_is_checked():
    mine = cache()
    options = {"calibrator": "auto"}
    mine.check("f", model="m" * 64, data="d" * 64, options=options)
    mine.check("f", model="m" * 64, data=None, options=options)
    for change, word in (
        ({"model": "n" * 64}, "the model"),
        ({"data": "e" * 64}, "the samples"),
        ({"options": {"calibrator": "max"}}, "calibrator"),
    ):
        given = {"model": "m" * 64, "data": "d" * 64, "options": options} | change
        with pytest.raises(InputError, match=word) as caught:
            mine.check("f", **given)
        assert "expected" in str(caught.value) and "made with" in str(caught.value)
    with pytest.raises(InputError, match="'z'"):
        mine.require("f", ["x", "z"])
    RangeCache({}).check("f", model="a", data="b", options={})  # TensorRT's says nothing


def test_the_digest_is_of_content(tmp_path):
    def model(value: float) -> Model:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 40] x) => (float[N, 40] y) '
            "{ y = MatMul(x, w) }"
        )
        weight = np.full((40, 40), value, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        return Model.from_proto(proto)

    one = model(1.0)
    one.save(tmp_path / "a.onnx", external="embed")
    one.touch(Effects.STRUCTURE)
    one.save(tmp_path / "b.onnx", external="external")
    digests = {model_digest(Model.load(tmp_path / f"{n}.onnx")) for n in "ab"}
    assert digests == {model_digest(model(1.0))}
    assert model_digest(model(2.0)) not in digests
