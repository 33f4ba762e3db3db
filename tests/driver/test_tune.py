"""tune: exact choices, forms within the limit on samples that nothing was chosen by."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx24
from onnx24.cli.app import run
from onnx24.testing.generate import mlp
from onnx24.tuning.search import choose, front

RNG = np.random.default_rng(4)
ROWS = RNG.standard_normal((192, 32), dtype=np.float32)


@pytest.fixture(scope="module")
def tuned() -> onnx24.TuneResult:
    return onnx24.tune(mlp([32, 64, 64, 16]), calib={"x": ROWS}, limit={"sqnr": 9.0})


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = [
        {"dense": (1.0, 0.0), **{f: (rng.random(), rng.random() * 0.2) for f in ("a", "b")}}
        for _ in range(5)
    ]
    bound = 0.25
    found = choose(options, bound)
    assert found.loss <= bound
    fitting = [
        sum(cost for cost, _ in way)
        for way in itertools.product(*(each.values() for each in options))
        # Losses are rounded up to a step of the grid each, so no way may sit that near the bound.
        if sum(loss for _, loss in way) <= bound * (1 - 5 / 4096)
    ]
    assert found.cost <= min(fitting) + 1e-12
    assert found.cost == pytest.approx(
        sum(o[f][0] for o, f in zip(options, found.forms, strict=True))
    )


def test_a_bound_of_nothing_leaves_all_dense_and_losses_of_nothing_are_free() -> None:
    options = [
        {"dense": (2.0, 0.0), "int8": (1.0, 0.1)},
        {"dense": (2.0, 0.0), "sparse": (1.0, 0.0)},
    ]
    assert choose(options, 0.0).forms == ("dense", "sparse")
    points = front(options, [0.0, 0.05, 0.1, 1.0])
    assert [point.cost for point in points] == [3.0, 2.0]
    assert math.isinf(points[0].sqnr_db) and points[1].sqnr_db == pytest.approx(10.0)


def test_the_model_is_cheaper_and_within_the_limit(tuned: onnx24.TuneResult) -> None:
    assert tuned.tuning.saving > 0.3
    assert tuned.tuning.cost == pytest.approx(sum(row["cost"] for row in tuned.tuning.layers))
    (output,) = tuned.comparison
    assert output["sqnr_db"] >= 9.0
    # Fresh rows of the same kind, which tune has not seen.
    fresh = {"x": np.random.default_rng(99).standard_normal((128, 32), dtype=np.float32)}
    seen = onnx24.compare(mlp([32, 64, 64, 16]), tuned, fresh)
    assert seen.comparison.outputs[0].sqnr_db >= 8.0
    forms = {row["weight"]: row["form"] for row in tuned.tuning.layers}
    sparse = {row["name"] for row in tuned.weights if row["sparse"]}
    assert {name for name, form in forms.items() if "sparse" in form} == sparse
    assert all(row["why"] for row in tuned.tuning.layers if row["form"] == "dense")
    assert [row["chosen"] for row in tuned.tuning.front].count(True) == 1
    assert "<svg" in tuned.tuning.page("m.onnx") and "ESTIMATED" in tuned.tuning.render()


def test_a_second_run_gives_the_same_bytes_from_what_the_first_has_measured(
    tuned: onnx24.TuneResult, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"calib": {"x": ROWS}, "limit": {"sqnr": 9.0}, "work_dir": tmp_path}
    labels: list[str] = []
    first = onnx24.tune(mlp([32, 64, 64, 16]), **given)
    assert first.model == tuned.model
    saved = (tmp_path / "tune.json").read_bytes()
    edited = json.loads(saved)
    edited["units"][next(iter(edited["units"]))][0]["sparse"] = 0.0
    (tmp_path / "tune.json").write_text(json.dumps(edited))  # measured again, as a cut one is
    onnx24.tune(mlp([32, 64, 64, 16]), **given, progress=lambda step: labels.append(step.label))
    assert (tmp_path / "tune.json").read_bytes() == saved
    assert "measuring layers" in labels


def test_a_strict_limit_leaves_the_model_dense() -> None:
    """In 16-bit floats: about 67 dB."""
    result = onnx24.tune(mlp([32, 16]), calib={"x": ROWS}, limit={"sqnr": 55})
    assert {row["form"] for row in result.tuning.layers} == {"dense"}
    assert result.tuning.saving == 0.0


def test_size_and_energy_are_objectives() -> None:
    for objective in ("size", "energy-proxy"):
        result = onnx24.tune(
            mlp([32, 64, 16]), calib={"x": ROWS}, limit={"sqnr": 20}, objective=objective
        )
        assert result.tuning.objective == objective and result.tuning.saving > 0.2


@pytest.mark.parametrize(
    "wrong",
    [{"calib": "random:32"}, {"calib": {"x": ROWS[:8]}}, {"objective": "speed"}, {"time": "soon"}],
    ids=["random", "few", "objective", "time"],
)
def test_what_cannot_be_tuned_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(onnx24.InputError) as caught:
        onnx24.tune(mlp([32, 16]), **{"calib": {"x": ROWS}, **wrong})
    assert caught.value.code == "O24-043"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp([32, 64, 16]), "m.onnx")
    np.savez("calib.npz", x=ROWS)
    code = run(
        ["tune", "m.onnx", "-o", "out.onnx", "--calib", "calib.npz", "--limit", "sqnr=15",
         "--front", "front.html", "--json"]
    )  # fmt: skip

    document = json.loads(capsys.readouterr().out)
    assert code == 0 and document["tuning"]["estimate"] is True
    assert (tmp_path / "out.onnx").exists() and "<svg" in (tmp_path / "front.html").read_text()


def ledger(path: Path, model: Any, ms: dict[str, float], dense_ms: dict[str, float]) -> str:
    """As `onnx24 ledger` writes it, of layers that took so long."""
    files = {}
    for name, times in (("profile", ms), ("dense_profile", dense_ms)):
        rows = [{"name": layer, "timeMs": 9 * t, "averageMs": t} for layer, t in times.items()]
        files[name] = str(path.with_suffix(f".{name}.json"))
        Path(files[name]).write_text(json.dumps([{"count": 9}, *rows]))
    found = onnx24.layer_ledger(model, **files)
    path.write_text(json.dumps(found.to_json()))
    return str(path)


def test_what_layers_took_takes_the_place_of_estimates(tmp_path: Path) -> None:
    net, given = mlp([32, 64, 64]), {"calib": {"x": ROWS}, "limit": {"sqnr": 3}}
    sparse = onnx24.prune24(net, quality="magnitude")
    # 2:4 made fc0 slower and fc1 four times as fast; nothing is known of INT8.
    path = ledger(tmp_path / "l.json", sparse, {"fc0": 0.3, "fc1": 0.1}, {"fc0": 0.2, "fc1": 0.4})
    result = onnx24.tune(net, **given, profile=path, target="sm86-trt10")
    assert result.tuning.measured == 4 and "4 of 8 costs MEASURED" in result.tuning.render()
    costs = {row["weight"]: row["costs"] for row in result.tuning.layers}
    assert costs["fc0.weight"]["sparse"] == pytest.approx(300)
    assert costs["fc1.weight"]["dense"] == result.tuning.layers[1]["dense_cost"] == 400
    estimated = onnx24.tune(net, **given).tuning.layers[0]["costs"]
    factor = 500 / (estimated["dense"] + estimated["sparse"])
    assert costs["fc0.weight"]["int8"] == pytest.approx(factor * estimated["int8"])
    # With the times of an INT8 engine, in which nothing is faster, both layers stay in floats.
    int8 = onnx24.optimize(
        net, "upgrade-opset{to=19},prune24{quality=magnitude},qdq,fold-qdq", calib={"x": ROWS}
    )
    slow = {"fc0": 9.0, "fc1": 9.0}
    second = ledger(tmp_path / "i.json", int8, slow, slow)
    result = onnx24.tune(net, **given, profile=[path, second])
    assert [row["form"] for row in result.tuning.layers] == ["dense", "sparse"]
    assert result.tuning.measured == 8 and result.tuning.to_json()["estimate"] is False


def test_a_profile_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"rows": []}')
    cases = [("a.json", "latency", "O24-048"), ("b.json", "latency", "O24-048")]
    for name, objective, code in [*cases, ("a.json", "size", "O24-043")]:
        with pytest.raises(onnx24.InputError) as caught:
            onnx24.tune(
                mlp([32, 16]), calib={"x": ROWS}, profile=tmp_path / name, objective=objective
            )
        assert caught.value.code == code


@pytest.mark.slow
def test_layers_are_measured_on_a_cluster_with_the_same_losses(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    found = []
    for executor in ("local", "dask"):
        result = onnx24.tune(
            mlp([32, 32, 16]), calib={"x": ROWS}, limit={"sqnr": 9}, executor=executor, workers=2
        )
        found.append(result.tuning.layers)
    assert found[0] == found[1]


def test_a_front_is_drawn_as_a_picture_where_matplotlib_is(
    tuned: onnx24.TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["tune", "none.onnx", "--calib", "c.npz", "--front", "f.pdf"]) == 2
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        assert run(["tune", "none.onnx", "--calib", "c.npz", "--front", "f.png"]) == 3
    assert "O24-071" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    picture = tuned.tuning.picture("a $model$")
    assert picture.startswith(b"\x89PNG") and picture == tuned.tuning.picture("a $model$")


def test_what_few_labels_are_held_to_is_said() -> None:
    result = onnx24.tune(mlp([32, 16]), calib={"x": ROWS}, limit={"top1": 0.02})
    assert result.tuning.limits == ("top1=0.02",) and result.tuning.held_to == ("top1=0.0833333",)
    assert "held to top1=0.0833333" in result.tuning.summary()
    assert [str(limit.limit) for limit in result.report.limits] == ["top1=0.0833333"]


def test_weights_in_int4_are_a_form_where_they_are_asked_for() -> None:
    rows = {"x": np.random.default_rng(1).standard_normal((64, 128), dtype=np.float32)}
    net = mlp([128, 128, 32])
    given = {"calib": rows, "limit": {"sqnr": 14}, "objective": "size", "target": "sm90-trt11"}
    result = onnx24.tune(net, **given, formats="int8,int4")
    assert "int4" in [row["form"] for row in result.tuning.layers]
    types = {tensor.data_type for tensor in result.model.graph.initializer}
    assert onnx.TensorProto.INT4 in types and result.model.opset_import[0].version == 21
    row = result.tuning.layers[0]
    assert row["costs"]["int4"] == 128 * 128 * (0.5 + 2 / 128) and row["losses"]["int4"] > 0
    assert result.comparison[0]["sqnr_db"] >= 14
    plain = onnx24.tune(net, **given)
    assert all("int4" not in row["costs"] for row in plain.tuning.layers)
    assert result.tuning.cost < plain.tuning.cost
    for wrong in ({"formats": "fp8"}, {"formats": "int4", "target": "sm86-trt10"}):
        with pytest.raises(onnx24.InputError) as caught:
            onnx24.tune(net, **{**given, **wrong})
        assert caught.value.code == "O24-043"
