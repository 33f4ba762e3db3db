"""Dense values from the work dir: kept right before pruning, found in whatever form the compiled
model has, and nothing else taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx24.passes.prune24 import Prune24
from test_profit_gate import compiled, every

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.layerwise import dense as kept_values
from onnx24.layerwise.dense import DenseLayer, KeptDense
from onnx24.layerwise.effort import Switch
from onnx24.layerwise.resources import Resources
from onnx24.ledger.dense_again import FromModel, FromWorkDir
from onnx24.ledger.profit_gate import all_dense_again, gate
from onnx24.passmgr import manager
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.compare import compare
from onnx24.runtime.data import load_data
from onnx24.testing.generate import mlp

TARGET = targets.load("sm86-trt8")  # matmul-to-conv1x1 is on


def pruned(folder: Path, pipeline: str, samples: int = 64, **options) -> tuple[Model, Model, list]:
    """A compiled MLP whose work dir is `folder`, the dense one, and what was said."""
    dense, model = (Model.from_proto(mlp([64, 64, 32])) for _ in range(2))
    data = load_data(f"random:{samples}", dense)
    result = manager.run(
        model, parse(pipeline), target=TARGET, calibration=data, work_dir=folder, **options
    )
    return model, dense, result.diagnostics


def rel_l2(dense: Model, model: Model) -> float:
    return compare(dense, model, load_data("random:32", dense, seed=7)).worst.rel_l2


@pytest.mark.parametrize(
    ("pipeline", "tolerance"),
    [
        ("canonicalize,prune24{permute=on}", 1e-6),
        ("canonicalize,prune24{method=obs}", 1e-6),
        ("canonicalize,prune24{method=admm permute=on}", 1e-6),
        ("canonicalize,prune24{method=admm permute=on},matmul-to-conv1x1", 1e-6),
        ("canonicalize,prune24{method=admm},matmul-to-conv1x1,cast16", 2e-3),
    ],
)
def test_the_dense_model_comes_back(tmp_path: Path, pipeline: str, tolerance: float) -> None:
    """float32: to rounding; fp16: to its rounding."""
    model, dense, _ = pruned(tmp_path, pipeline)
    sparse = rel_l2(dense, model)
    back, total = all_dense_again(model, [FromWorkDir(KeptDense(tmp_path))])
    assert back == total == 2 and not list(model.claims)
    assert rel_l2(dense, model) < min(tolerance, sparse / 2)


@pytest.mark.parametrize("origin", ["work dir", "model"])
def test_int8_weights_have_another_name(tmp_path: Path, fixture_models, origin: str) -> None:
    """Found with the preset sparse-int8: fold-qdq stores `w` as `w_int8`."""
    path = fixture_models["vit"].path
    dense, model = Model.load(path), Model.load(path)
    data = load_data("random:16", dense)
    pipeline = parse("prune24{permute=off},qdq,fold-qdq")
    target = targets.load("sm86-trt10")
    manager.run(model, pipeline, target=target, calibration=data, work_dir=tmp_path)
    assert sum(key.name.endswith("_int8") for key in model.claims) >= 12
    sparse = compare(dense, model, data).worst.rel_l2
    origins = [FromWorkDir(KeptDense(tmp_path))] if origin == "work dir" else [FromModel(dense)]
    assert all_dense_again(model, origins) == (13, 13)
    assert compare(dense, model, data).worst.rel_l2 < sparse / 3, "what INT8 costs is left"


def test_permuted_channels_are_not_mixed_up_with_the_dense_models(tmp_path: Path) -> None:
    """Found when the values of the original file went, unpermuted, into permuted layers."""
    model, dense = compiled(prune=Prune24(permute=Switch.ON), work_dir=tmp_path)
    found = gate(model, [FromModel(dense)], every(model, 1.0), noise=0.03)
    assert {d.action for d in found} == {"not returned"}
    assert "permuted" in found[0].reason and "--work-dir" in found[0].reason
    origins = [FromWorkDir(KeptDense(tmp_path)), FromModel(dense)]
    found = gate(model, origins, every(model, 1.0), noise=0.03)
    assert {d.action for d in found} == {"dense again"}
    assert rel_l2(dense, model) < 1e-6


@pytest.mark.parametrize("axis", [0, 1])
def test_scaled_channels_are_not_mixed_up_with_the_dense_models(axis: int) -> None:
    model, dense = compiled()
    for key in model.claims:
        w = model.weights[key].copy()
        index = (slice(5, 6), slice(None)) if axis == 0 else (slice(None), slice(5, 6))
        w[index] *= 4
        model.weights.replace(key, w)
    found = gate(model, [FromModel(dense)], every(model, 1.0), noise=0.03)
    assert {d.action for d in found} == {"not returned"} and "scaled" in found[0].reason


def test_a_bias_that_pruning_added_goes_back_to_nothing(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,32] x) => (float[N,16] y) { [fc] y = Gemm(x, w) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 16)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    for origin in ("work dir", "model"):
        dense, model = Model.from_proto(proto), Model.from_proto(proto)
        x = rng.standard_normal((64, 32)).astype(np.float32) + 1  # a mean: the bias makes up for it
        np.savez(tmp_path / "x.npz", x=x)
        data = load_data(str(tmp_path / "x.npz"), dense)
        folder = tmp_path / origin
        pipeline = parse("prune24{method=admm}")
        manager.run(model, pipeline, target=TARGET, calibration=data, work_dir=folder)
        assert model.weights["fc.24.bias"].any()
        origins = [FromWorkDir(KeptDense(folder))] if origin == "work dir" else [FromModel(dense)]
        found = gate(model, origins, every(model, 1.0), noise=0.03)
        assert found[0].biases == ("fc.24.bias",) and not model.weights["fc.24.bias"].any()
        assert rel_l2(dense, model) == 0


def test_weights_in_constant_nodes_go_back(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (float[N,2] y) {
      w = Constant <value = float[4,2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
      y = MatMul(x, w)
    }"""
    dense, model = Model.from_text(text), Model.from_text(text)
    manager.run(model, parse("prune24{permute=off}"), target=TARGET, work_dir=tmp_path)
    assert rel_l2(dense, model) > 0
    found = gate(model, [FromWorkDir(KeptDense(tmp_path))], every(model, 1.0), noise=0.03)
    assert [d.action for d in found] == ["dense again"] and rel_l2(dense, model) == 0


# --- the folder ---------------------------------------------------------------------------------


def layer(rows: np.ndarray) -> tuple[DenseLayer, np.ndarray]:
    sparse = rows.copy()
    sparse.reshape(-1, 4)[:, :2] = 0
    return DenseLayer(rows=rows, op="MatMul"), sparse


def rows(seed: int = 0, k: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, k)).astype(np.float32)


def test_the_same_weight_is_one_file_and_others_are_told_apart(tmp_path: Path) -> None:
    kept = KeptDense(tmp_path)
    for seed in (0, 1, 0):
        assert kept.store("a/b c", *layer(rows(seed))) is not None
    paths = list(kept.folder.iterdir())
    assert len(paths) == 2 and all(path.name.startswith("a_b_c.") for path in paths)
    for seed in (0, 1):
        found = kept.find("a/b c", layer(rows(seed))[1])
        assert len(found) == 1
        np.testing.assert_array_equal(found[0].rows, rows(seed))
    assert kept.find("a_b_c", layer(rows())[1]) == []  # another name, the same file name
    assert len(kept.find("a/b c_int8", layer(rows())[1])) == 1
    assert kept.find("a/b c", layer(rows(k=16))[1]) == []
    assert kept.find("a/b c", np.roll(layer(rows())[1], 1, axis=1)) == []
    assert kept.find("a/b c", 2 * layer(rows())[1]) == []


def test_quantized_values_are_found_and_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    import ml_dtypes

    kept = KeptDense(tmp_path)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values, sparse = layer(rows().astype(dtype))
        name = np.dtype(dtype).name
        kept.store(name, values, sparse)
        scale = np.abs(sparse.astype(np.float32)).max(axis=1, keepdims=True) / 127
        quantized = np.rint(sparse.astype(np.float32) / scale) * scale
        found = kept.find(name, quantized)
        assert len(found) == 1 and found[0].rows.dtype == dtype
        np.testing.assert_array_equal(found[0].rows, values.rows)


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    kept = KeptDense(tmp_path)
    path = kept.store("w", *layer(rows()))
    assert path is not None
    whole = path.read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert kept.find("w", layer(rows())[1]) == []


def test_the_folder_has_a_limit(tmp_path: Path) -> None:
    kept = KeptDense(tmp_path, limit_bytes=3000)
    assert kept.store("a", *layer(rows(0))) is not None
    assert kept.store("b", *layer(rows(1, k=400))) is None
    assert kept.store("a", *layer(rows(0))) is not None  # it is there
    assert [path.name[0] for path in kept.folder.iterdir()] == ["a"]


def test_two_kept_weights_that_both_fit_are_not_guessed_between(tmp_path: Path) -> None:
    model, _, _ = pruned(tmp_path, "canonicalize,prune24{method=magnitude refit=false}")
    kept = KeptDense(tmp_path)
    for path in list(kept.folder.iterdir()):
        with np.load(path) as file:
            arrays = dict(file)
        arrays["rows"] = arrays["rows"] + np.float32(1e-3)
        np.savez(path.with_name(path.name.replace(".npz", "0.npz")), **arrays)
    found = gate(model, [FromWorkDir(kept)], every(model, 1.0), noise=0.03)
    assert {d.action for d in found} == {"not returned"} and "several" in found[0].reason


def test_what_was_not_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, said = pruned(tmp_path, "canonicalize,prune24", resources=Resources(memory_bytes=1000))
    notes = [d for d in said if d.code == "O24-137"]
    assert len(notes) == 1 and len(notes[0].facts["weights"]) == 2
    assert not (tmp_path / "dense").exists()


def test_keeping_changes_no_byte(tmp_path: Path) -> None:
    with_folder, dense, _ = pruned(tmp_path, "canonicalize,prune24{method=obs}")
    data = load_data("random:64", dense)
    without = Model.from_proto(mlp([64, 64, 32]))
    pipeline = parse("canonicalize,prune24{method=obs}")
    manager.run(without, pipeline, target=TARGET, calibration=data)
    assert with_folder.to_bytes() == without.to_bytes()
    assert kept_values.KEPT_BYTES == 4 << 30  # as --work-dir's help says
