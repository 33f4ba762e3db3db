"""The parts of benchmarks/vision and benchmarks/generation that every number goes through."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from onnx24.ir.model import Model
from onnx24.runtime.data import load_data

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("", "accuracy", "vision", "generation")
FIXTURES = ROOT / "fixtures" / "models"


def test_what_is_right_is_packed_and_unpacked(module) -> None:
    report = module("vision_report")
    right = np.random.default_rng(24).random(361) < 0.9
    assert report.unpacked(report.packed(right), 361).tolist() == right.tolist()


def test_bootstrap_interval(module) -> None:
    report = module("vision_report")
    right = np.repeat([100.0, 0.0], [900, 100])
    found = report.bootstrap(right)
    assert found.mean == 90
    half = 1.96 * (90 * 10 / 1000) ** 0.5  # of a binomial
    assert found.low == pytest.approx(90 - half, abs=0.15)
    assert found.high == pytest.approx(90 + half, abs=0.15)
    same = report.bootstrap(np.zeros(10))
    assert (same.low, same.high) == (0, 0)


def line(report: ModuleType, method: str, end: str, right: list[bool], seed: int = 0) -> dict:
    return {
        "kind": "result", "model": "net", "method": method, "end": end, "seed": seed, "steps": 9,
        "right": report.packed(np.array(right)), "images": len(right), "bytes": 2048, "us": 2.0,
        "int8": 1, "sparse": 2, "seconds": 1.0,
    }  # fmt: skip


def test_tables_of_the_vision_study(module) -> None:
    report = module("vision_report")
    good, bad = [True] * 100, [True] * 90 + [False] * 10
    rows = [line(report, method, end, good) for method, end in report.ORDER]
    rows = [row for row in rows if row["method"] not in ("basic", "one-shot + sparse-qat")]
    for end in ("fp16", "int8"):
        rows += [line(report, "basic", end, bad), line(report, "basic", end, good, seed=1)]
    rows.append(line(report, "one-shot + sparse-qat", "int8", bad))
    trial = {"kind": "trial", "model": "net", "method": "basic", "steps": 9, "before": 0.2}
    rows += [{**trial, "rate": 0.0, "used": 2e-4, "after": 0.2}]
    rows += [{**trial, "rate": 1e-3, "used": 1e-3, "after": 0.1}]
    text = report.render(rows)
    assert "| basic | int8 | 95.00 [" in text, "seeds are averaged"
    assert "| 90.00 100.00 | 2 | 1.00 | 2 / 1 |" in text
    assert "*one-shot + recover*, int8, within 0.3 points of dense fp32: met on all" in text
    assert "*one-shot + sparse-qat*, int8, within 0.3 points of dense fp32: **missed** on" in text
    assert "*one-shot + recover* against *basic*, int8: better on 1, worse on 0" in text
    assert "| net | basic | 0.20000 | 0.20000 (0.0002) | **0.10000** |" in text


def test_frechet_distance(module) -> None:
    frechet = module("frechet").frechet
    rng = np.random.default_rng(24)
    x = rng.standard_normal((5000, 3)) * [1, 2, 3]
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x, x + np.array([3, 0, 4])) == pytest.approx(25)
    centred = x - x.mean(0)
    wanted = np.square(np.sqrt(np.diag(np.cov(centred.T)))).sum()  # Σ doubled: Σ(2σ − σ)²
    assert frechet(centred, 2 * centred) == pytest.approx(wanted)


def test_every_method_makes_a_model(module, tmp_path: Path) -> None:
    """Two steps on the CNN of the fixtures: 2:4 and INT8 where the method says so."""
    pytest.importorskip("torch")
    methods = module("methods")
    data = module("tasks").task("cnn", module("tasks").Places.default(tmp_path)).data
    np.savez(tmp_path / "digits.npz", image=data.inputs[:64])
    dense = Model.load(FIXTURES / "cnn.onnx")
    shop = methods.Workshop(dense, load_data(str(tmp_path / "digits.npz"), dense), steps=2)
    bounds = {}
    for method in methods.METHODS.values():
        made = shop.trained(method, 1e-4).model
        end = method.ends[-1]
        model = shop.finished(made, method, end)
        shapes = {"image": (64, 1, 8, 8)}
        bounds[method.name], int8, sparse = methods.estimated_us(model, shapes)
        assert int8 > 0
        assert (sparse > 0) == (method.name != "dense")
    assert bounds["one-shot"] < bounds["dense"]


def test_a_generator_is_what_its_onnx_file_computes(module) -> None:
    """Shapes and values of an untrained denoiser, and one picture of its sampler."""
    torch = pytest.importorskip("torch")
    train, study = module("train_generator"), module("generation_study")
    torch.manual_seed(24)
    net = train.Denoiser(width=32, heads=2, hidden=64, depth=1).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = Model.from_proto(net.to_onnx())
    start = study.Start.drawn(3, 24)
    pictures, fed = study.generate(model, start)
    assert pictures.shape == (3, 1, 16, 16) and np.abs(pictures).max() <= 1
    assert len(fed) == study.STEPS
    with torch.no_grad():
        expected = net(*map(torch.from_numpy, fed[7].values())).numpy()
    found = study.velocity(study.Session(model), fed[7])
    np.testing.assert_allclose(found, expected, atol=1e-4)
