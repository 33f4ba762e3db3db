"""The parts of benchmarks/accuracy that every number of the study goes through."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDERS = ("accuracy",)


def found(boxes: ModuleType, *rows: tuple[float, float, float, float, int]):
    array = np.array(rows, np.float32).reshape(-1, 5)
    return boxes.Found(array[:, :4], np.ones(len(array)), array[:, 4].astype(np.int64))


def test_box_agreement(module) -> None:
    boxes = module("boxes")
    one = found(boxes, (0, 0, 10, 10, 1), (20, 20, 30, 30, 1))
    assert boxes.agreement([one], [one]) == 1
    assert boxes.agreement([one], [found(boxes)]) == 0
    assert boxes.agreement([found(boxes)], [found(boxes)]) == 1
    other_class = found(boxes, (0, 0, 10, 10, 2), (20, 20, 30, 30, 1))
    assert boxes.agreement([one], [other_class]) == 0.5
    apart = found(boxes, (0, 0, 10, 4, 1))  # IoU 0.4
    assert boxes.agreement([one], [apart]) == 0
    twice = found(boxes, (0, 0, 10, 10, 1), (0, 0, 10, 9, 1))
    assert boxes.agreement([one], [twice]) == 0.5, "each box may be found once only"


def test_suppression_keeps_the_best_of_each_class(module) -> None:
    boxes = module("boxes")
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 60, 60]], np.float32)
    scores, classes = np.array([0.8, 0.9, 0.7, 0.2]), np.array([0, 0, 1, 0])
    kept = boxes.suppressed(corners, scores, classes, threshold=0.3, overlap=0.5)
    assert kept.scores.tolist() == [0.9, 0.7]
    assert kept.classes.tolist() == [0, 1]


def test_yolox_boxes_lie_where_their_cells_are(module) -> None:
    boxes = module("boxes")
    output = np.zeros((1, 3549, 85), np.float32)
    cell = 52 * 52 + 26 * 3 + 5  # stride 16, row 3, column 5
    output[0, cell, :6] = (0.5, 0.5, np.log(2), np.log(4), 0.9, 0.9)
    kept = boxes.yolox([output])
    assert kept.boxes.round(3).tolist() == [[5.5 * 16 - 16, 3.5 * 16 - 32, 88 + 16, 56 + 32]]
    assert kept.scores == pytest.approx([0.81])
    assert kept.classes.tolist() == [0]


def test_features_of_magika(module) -> None:
    features = module("file_types").features
    assert features(b"1234567") is None
    assert features(b" " * 100) is None
    row = features(b"\n\n0123456789\n")
    assert row.shape == (2048,)
    assert bytes(row[:11].astype(np.uint8)) == b"0123456789\n"
    assert set(row[11:1024]) == {256} == set(row[1024:2036])
    assert bytes(row[2036:].astype(np.uint8)) == b"\n\n0123456789"


def row(model: str, method: str, samples: int, loss: float, seed: int = 0) -> dict:
    return {
        "model": model, "method": method, "pipeline": method, "samples": samples, "seed": seed,
        "loss": loss, "score": 100 - loss, "dense": 100.0, "unit": "%", "agreement": 100 - loss,
        "output_error": 0.1, "seconds": 1.0,
    }  # fmt: skip


def test_shares_and_bars(module, tmp_path: Path) -> None:
    tables = module("tables")
    path = tmp_path / "out" / "rows.jsonl"
    measured = [
        row("a", "magnitude", 0, 10), row("b", "magnitude", 0, 90),
        row("a", "admm", 512, 9), row("a", "admm", 512, 5), row("b", "admm", 512, 9, seed=1),
        row("b", "admm", 512, 11), row("a", "obs", 512, 20), row("b", "obs", 512, 40),
        row("c", "admm", 512, 50),
    ]  # fmt: skip
    for line in measured:
        module("json_lines").append(path, line)
    study = tables.Study(tables.read(path))
    column = ("admm", 512)
    assert study.get("a", column, "loss") == 5, "the later of two equal measurements counts"
    assert study.get("b", column, "loss") == 10, "seeds are averaged"
    assert study.common(column) == ["a", "b"], "c has no baseline"
    assert study.share_of_means(column) == pytest.approx(15 / 100)
    text = tables.bars(study)
    assert "15.0% of magnitude's (met, 20%)" in text
    assert "above a third of magnitude's: a (**missed**)" in text
    assert "0.25 of obs's loss (met, 0.5)" in text


def test_a_line_that_a_kill_cut_is_nothing(module, tmp_path: Path) -> None:
    json_lines = module("json_lines")
    path = tmp_path / "rows.jsonl"
    json_lines.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')
    assert json_lines.read(path) == [{"a": 1}]
    json_lines.append(path, {"c": 3})
    assert json_lines.read(path) == [{"a": 1}, {"c": 3}]
