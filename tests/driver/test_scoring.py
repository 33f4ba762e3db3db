"""Limits on accuracy, by labels, and on a metric function of the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx24
from onnx24.cli.app import run
from onnx24.driver.scoring import _accuracy, labels_of
from onnx24.report.limits import Limit
from onnx24.testing.generate import mlp

ROWS = np.random.default_rng(4).standard_normal((192, 32)).astype(np.float32)
NET = mlp([32, 64, 8])
MAGNITUDE = "prune24{quality=magnitude},check24"


def _outputs(rows: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(NET.SerializeToString()).run(None, {"x": rows})[0]


def truth() -> np.ndarray:
    """What the model itself says, so that its accuracy is 1."""
    return _outputs(ROWS).argmax(axis=1).astype(np.int64)


def compiled(**more: Any) -> onnx24.Result:
    return onnx24.compile(
        NET, **{"calib": {"x": ROWS}, "pipeline": MAGNITUDE, "guard": "off", **more}
    )


def test_accuracy_is_judged_by_the_labels_of_the_samples_held_out() -> None:
    result = compiled(labels=truth(), max_drop="accuracy=0.9,top1=0.9")
    by = {limit.limit.metric: limit for limit in result.report.limits}
    # The labels are the model's own, so that what falls is the share of other classes.
    assert by["accuracy"].value == pytest.approx(1 - by["top1"].value) and by["accuracy"].value > 0
    with pytest.raises(onnx24.NotMetError, match=r"accuracy_drop is 0\.\d+, expected at most 0"):
        compiled(labels=truth(), max_drop={"accuracy": 0.0})
    reversed_rows = {"x": ROWS[::-1].copy()}  # other samples, whose labels stand in their order
    result = compiled(data=reversed_rows, labels=truth()[::-1].copy(), max_drop="accuracy=0.9")
    assert 0 < (result.report.limits[0].value or 0) < 0.5


def test_labels_in_a_column_and_outputs_that_tell_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    column = compiled(labels=truth()[:, None], max_drop="accuracy=0.9").report.limits[0]
    assert column.value == compiled(labels=truth(), max_drop="accuracy=0.9").report.limits[0].value
    accuracy = Limit("accuracy", 0.01)
    zeros = np.zeros(4, np.int64)
    assert _accuracy(accuracy, np.full((4, 2), np.nan, np.float32), zeros) == 0
    Path("labels.npy").write_bytes(b"PK\x03\x04 cut")  # an archive, numpy thinks
    with pytest.raises(onnx24.InputError, match="O24-030"):
        labels_of("labels.npy")
    with pytest.raises(onnx24.InputError, match="one class"):
        _accuracy(accuracy, np.ones((4, 1), np.float32), zeros)


def test_a_function_gets_all_outputs_and_the_labels() -> None:
    seen: list[tuple[tuple[int, ...], int]] = []

    def margin(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
        (y,) = outputs.values()
        seen.append((y.shape, len(labels)))
        return float(np.mean(y[np.arange(len(y)), labels]))

    result = compiled(labels=truth(), metric=margin, max_drop={"metric": 100})
    assert seen == [((24, 8), 24)] * 2 and result.report.limits[0].met
    assert compiled(metric=lambda outputs, labels: 1.0, max_drop="metric=0").status == "done"
    with pytest.raises(onnx24.NotMetError):
        compiled(metric=lambda outputs, labels: float("nan"), max_drop="metric=5")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"max_drop": "accuracy=0.1"}, "O24-043"),
        ({"max_drop": "metric=0.1"}, "O24-043"),
        ({"max_drop": "metric=0.1", "metric": 3}, "O24-043"),
        ({"max_drop": "metric=0.1", "metric": lambda outputs, labels: 1 / 0}, "O24-043"),
        ({"max_drop": "accuracy=0.1", "labels": truth()[:9]}, "O24-032"),
        ({"max_drop": "accuracy=0.1", "labels": np.ones(192)}, "O24-030"),
        ({"limit": "accuracy=0.1", "labels": truth()}, "O24-043"),
        ({"max_drop": "sqnr=1", "labels": truth()}, "O24-043"),
        ({"max_drop": "sqnr=1", "metric": len}, "O24-043"),
    ],
)
def test_what_cannot_be_judged_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(onnx24.InputError) as caught:
        compiled(**wrong)
    assert caught.value.code == code


def test_tune_chooses_by_labels_and_by_a_function() -> None:
    found = onnx24.tune(NET, calib={"x": ROWS}, labels=truth(), limit={"accuracy": 0.25})
    assert found.tuning.limits == ("accuracy=0.25",) and found.tuning.saving > 0.2

    def nearness(outputs: Mapping[str, np.ndarray], wanted: np.ndarray) -> float:
        (y,) = outputs.values()
        return -float(np.abs(y - wanted).mean())

    values = _outputs(ROWS)  # what is right need be no class
    strict = onnx24.tune(
        NET, calib={"x": ROWS}, labels=values, metric=nearness, limit={"metric": 0.002}
    )
    assert strict.tuning.saving == 0 and strict.tuning.limits == ("metric=0.002",)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(NET, "m.onnx")
    np.savez("calib.npz", x=ROWS)
    np.save("labels.npy", truth())
    common = [
        "compile",
        "m.onnx",
        "-o",
        "out.onnx",
        "--calib",
        "calib.npz",
        "--pipeline",
        MAGNITUDE,
    ]
    assert run([*common, "--labels", "labels.npy", "--max-drop", "accuracy=0.001"]) == 1
    assert "accuracy_drop" in capsys.readouterr().err and not Path("out.onnx").exists()
    assert run([*common, "--labels", "labels.npy", "--max-drop", "accuracy=0.9"]) == 0
