"""Samples from folders of images, as the model wants them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx24
from onnx24.cli.app import run
from onnx24.driver.samples import load_samples
from onnx24.ir.model import Model

image = pytest.importorskip("PIL.Image")

RGB = (255, 51, 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 images of 6 x 4, of one colour each: one in a folder, one grey, one with a palette."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(17):
        image.new("RGB", (6, 4), (i, 51, 0)).save(folder / f"p{i}.png")
    image.new("RGB", (6, 4), RGB).save(folder / "more" / "red.PNG")
    image.new("L", (6, 4), 51).save(folder / "q.png")
    image.new("RGB", (6, 4), RGB).convert("P").save(folder / "r.bmp")
    (folder / "notes.txt").write_text("no image")
    return folder


def model(dims: str, dtype: str = "float", more: str = "") -> Model:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({dtype}[{dims}] x{more}) => ({dtype}[{dims}] y) {{ y = Identity(x) }}"""
    return Model.from_proto(onnx.parser.parse_model(text))


def rows(data: Any, of: Model, **shapes: Any) -> np.ndarray:
    from onnx24.driver.samples import profiles_of

    found = load_samples(data, of, profiles_of(shapes), 0)
    assert found is not None
    return np.concatenate([run["x"] for run in found.batches(of)])


def test_layout_and_size_come_from_the_model(photos: Path) -> None:
    first = rows(str(photos), model("N, 3, 2, 5"))
    last = rows(str(photos), model("N, 2, 5, 3"))
    assert first.shape == (20, 3, 2, 5) and first.dtype == np.float32
    assert np.array_equal(first.transpose(0, 2, 3, 1), last)
    assert np.allclose(first[1, :, 0, 0], [1 / 255, 0.2, 0])  # p1, in order of the numbers
    assert np.allclose(first[16, :, 1, 4], [16 / 255, 0.2, 0])
    assert np.allclose(first[17, :, 0, 0], 0.2)  # grey
    assert np.allclose(first[18:, :, 0, 0], [1, 0.2, 0])  # a palette, and the folder in it
    grey = rows(str(photos), model("N, 1, 4, 6"))
    assert grey.shape == (20, 1, 4, 6) and np.allclose(grey[17], 0.2)
    whole = rows(str(photos), model("2, 5, 3"))  # no batch: an image a run
    assert whole.shape == (40, 5, 3)


def test_what_the_model_leaves_open_is_said(photos: Path) -> None:
    asked = onnx24.Images(photos, mean=(0.5, 0.2, 0), std=0.5, layout="nchw", size=(4, 2))
    found = rows(asked, model("N, C, H, W"))
    assert found.shape == (20, 3, 4, 2) and np.allclose(found[19, :, 0, 0], [1, 0, 0])
    sized = rows(str(photos), model("N, 3, H, W"), x=(1, 3, 7, 7))
    assert sized.shape == (20, 3, 7, 7)
    raw = rows(str(photos), model("N, 3, 2, 2", "uint8"))
    assert raw.dtype == np.uint8 and tuple(raw[19, :, 0, 0]) == RGB


@pytest.mark.parametrize(
    ("options", "dims", "code"),
    [
        ({}, "N, 3, H, W", "O24-068"),
        ({}, "N, 8, 8, 8", "O24-068"),
        ({}, "N, 3, 8, 3", "O24-068"),
        ({}, "N, 3", "O24-068"),
        ({"layout": "nhwc"}, "N, 3, 8, 8", "O24-068"),
        ({"size": 9}, "N, 3, 8, 8", "O24-068"),
        ({"std": 0}, "N, 3, 8, 8", "O24-043"),
        ({"mean": (1, 2)}, "N, 3, 8, 8", "O24-043"),
        ({"mean": (0, 0, 0)}, "N, 1, 8, 8", "O24-043"),
        ({"size": 0}, "N, 3, H, W", "O24-043"),
        ({"size": "224"}, "N, 3, H, W", "O24-043"),
        ({"mean": "imagenet"}, "N, 3, 8, 8", "O24-043"),
        ({"layout": "hwc"}, "N, 3, 8, 8", "O24-043"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    photos: Path, options: dict[str, Any], dims: str, code: str
) -> None:
    with pytest.raises(onnx24.InputError) as caught:
        rows(onnx24.Images(photos, **options), model(dims))
    assert caught.value.code == code


def test_other_inputs_and_bad_files_are_refused(photos: Path) -> None:
    cases = (("float", ", float[N] z", "O24-031"), ("int32", "", "O24-033"))
    for dtype, more, code in cases:
        with pytest.raises(onnx24.InputError) as caught:
            rows(str(photos), model("N, 3, 2, 2", dtype, more))
        assert caught.value.code == code
    (photos / "p3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(onnx24.InputError, match=r"p3\.png.*expected an image") as caught:
        rows(str(photos), model("N, 3, 2, 2"))
    assert caught.value.code == "O24-030"


def test_compile_and_compare_take_them_and_warn_of_what_was_assumed(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(photos.parent)
    net = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 4, 6] image) => (float[N, 4] y)
        { f = Flatten(image)  y = MatMul(f, w) }"""
    )
    w = np.random.default_rng(0).standard_normal((72, 4)).astype(np.float32)
    net.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    onnx.save(net, "m.onnx")
    common = ["--preset", "sparse", "--calib", "photos", "-o", "out.onnx", "--guard", "off"]
    assert run(["compile", "m.onnx", *common]) == 0
    said = capsys.readouterr().err
    assert "O24-070" in said and "4x6 RGB, 0 to 1, mean 0, std 1" in said
    assert run(["compile", "m.onnx", *common, "--image-mean", "0.5", "--image-std", "0.2"]) == 0
    said = capsys.readouterr().err
    assert "O24-070" not in said and "mean 0.5, std 0.2" in said
    assert run(["compare", "m.onnx", "out.onnx", "--data", "photos", "--image-size", "4x6"]) == 0
    assert "O24-070" in capsys.readouterr().err
    assert run(["compare", "m.onnx", "out.onnx", "--data", "photos", "--image-size", "4y"]) == 2
    result = onnx24.compile(
        "m.onnx", calib=onnx24.Images("photos", mean=0.4), preset="sparse", guard="off"
    )
    assert "O24-070" not in [item.code for item in result.diagnostics]
    assert "of its 20 images" in result.report.data[0].description


def test_without_pillow_one_sentence_says_what_to_install(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(onnx24.BackendError, match=r"pip install 'onnx24\[images\]'"):
        rows(str(photos), model("N, 3, 2, 2"))


def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.full((4, 6), 0x8000, np.uint16)
    image.fromarray(values).save(tmp_path / "a.png")
    assert np.allclose(rows(str(tmp_path), model("N, 3, 4, 6")), 128 / 255)
    image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(onnx24.InputError, match="8 or 16 bits") as caught:
        rows(str(tmp_path), model("N, 1, 4, 6"))
    assert caught.value.code == "O24-030"


def test_a_photo_is_read_as_it_was_held(tmp_path: Path) -> None:
    lying = image.new("RGB", (6, 4), (0, 0, 0))
    lying.putpixel((0, 0), RGB)
    exif = lying.getexif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees to the right
    lying.save(tmp_path / "a.png", exif=exif)
    (found,) = rows(str(tmp_path), model("N, 3, 6, 4"))
    assert np.allclose(found[:, 0, 3], [1, 0.2, 0]) and found.sum() == pytest.approx(1.2)
