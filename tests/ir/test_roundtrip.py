"""A no-op leaves every model byte-identical; cleanup().toposort() leaves every valid one valid."""

import warnings
from pathlib import Path

import onnx.backend.test
import pytest

from onnx24.errors import InputError
from onnx24.ir.check import run_checker
from onnx24.ir.model import Model
from onnx24.ir.repair import find_defects
from onnx24.ir.verify import Interface, verify
from onnx24.testing.generate import external_mlp

STORED = Path(onnx.backend.test.__file__).parent / "data"


def _open(data: bytes) -> Model:
    model = Model.from_bytes(data, check=False)
    model.defects = find_defects(model.proto)
    return model


def _round_trip(data: bytes, name: str) -> bool:
    """True where the model was checker-valid and so was put through cleanup and toposort."""
    model = _open(data)
    with model.surgeon():
        pass
    assert not model.changed, name
    assert model.to_bytes() == data, name
    if run_checker(model) is not None or verify(model):
        return False
    interface = Interface.of(model)
    with model.surgeon() as graph:
        graph.cleanup().toposort()
    problems = verify(model, interface)
    assert not problems, (name, problems[0].render())
    return True


def test_every_backend_node_model():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    assert len(cases) > 1500
    for case in cases:
        assert _round_trip(case.model.SerializeToString(deterministic=True), case.name), case.name


def test_every_stored_backend_model():
    paths = sorted(STORED.rglob("*.onnx"))
    assert len(paths) > 100
    for path in paths:
        assert _round_trip(path.read_bytes(), path.parent.name), path


def test_every_shared_model(shared_models, tmp_path):
    paths = sorted(shared_models.rglob("*.onnx"))
    assert paths
    cleaned = 0
    for path in paths:
        if Model.load(path, check=False).external_locations():
            continue  # their data files are the next test's subject
        cleaned += _round_trip(path.read_bytes(), str(path))
        out = tmp_path / "out.onnx"
        Model.load(path, check=False).save(out)
        assert out.read_bytes() == path.read_bytes()
    assert cleaned > 150


def test_external_data_is_copied_with_the_model(shared_models, tmp_path):
    path = shared_models / "polygraphy_tests" / "ext_weights_same_dir" / "ext_weights.onnx"
    model = Model.load(path)
    with model.surgeon():
        pass
    model.save(tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == path.read_bytes()
    for location in model.external_locations():
        assert (tmp_path / location).read_bytes() == (path.parent / location).read_bytes()


def test_data_file_of_another_model_is_not_overwritten(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    path = external_mlp(source, 1 << 18, width=128)
    (target / "weights.bin").write_bytes(b"of another model")
    with pytest.raises(InputError) as caught:
        Model.load(path).save(target / "model.onnx")
    assert caught.value.code == "O24-040" and "weights.bin" in str(caught.value)
    assert [p.name for p in target.iterdir()] == ["weights.bin"]
    assert (target / "weights.bin").read_bytes() == b"of another model"


def test_missing_external_data_is_refused(shared_models):
    with pytest.raises(InputError) as caught:
        Model.load(shared_models / "polygraphy_tests" / "ext_weights.onnx")
    assert caught.value.code == "O24-005"
