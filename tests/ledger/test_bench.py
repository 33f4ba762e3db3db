"""Estimates by hand-made numbers; order and rendering of measurements on synthetic times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ledger_support import net

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ledger.estimate import VARIANTS, bound, estimate, render_estimates
from onnx24.ledger.measure import Measurement, in_turns, render_measurements
from onnx24.ledger.model_layers import ModelLayer, layers_of
from onnx24.targets.gpus import gpu_of, gpus

SM86 = targets.load("sm86-trt10")
A10 = gpu_of(SM86)


def layer(**changes: object) -> ModelLayer:
    """[M, 4096] x [4096, 4096] with M rows, stored in fp32."""
    m = changes.pop("m", 4096)
    values: dict = {
        "name": "l", "op": "MatMul", "weight": "w", "shape": (4096, 4096), "dtype": "float32",
        "itemsize": 4, "k": 4096, "n": 4096, "flops": 2 * m * 4096 * 4096,
        "activation_bytes": 4 * 2 * m * 4096, "is_24": True, "eligible": True, "code": "O24-101",
        "reason": "",
    }  # fmt: skip
    return ModelLayer(**{**values, **changes})


def test_a_large_product_is_bound_by_arithmetic() -> None:
    found = {v: bound(layer(), SM86, A10, v) for v in VARIANTS}
    assert {b.by for b in found.values()} == {"compute"}
    dense = 2 * 4096**3 / 125e12 * 1e6
    assert found["dense"].us == pytest.approx(dense)
    assert found["sparse"].us == found["int8"].us == pytest.approx(dense / 2)
    assert found["sparse-int8"].us == pytest.approx(dense / 4)


def test_one_row_is_bound_by_the_weight() -> None:
    found = {v: bound(layer(m=1), SM86, A10, v) for v in VARIANTS}
    weight, rows = 4096 * 4096, 2 * 4096
    assert {b.by for b in found.values()} == {"memory"}
    assert found["dense"].us == pytest.approx((2 * weight + 2 * rows) / 600e9 * 1e6)
    assert found["sparse"].us == pytest.approx((2 * weight * 9 / 16 + 2 * rows) / 600e9 * 1e6)
    assert found["sparse-int8"].us == pytest.approx((weight * 10 / 16 + rows) / 600e9 * 1e6)


def test_what_cannot_be_sparse_gains_nothing_from_it() -> None:
    refused = layer(eligible=False, code="O24-113")
    assert bound(refused, SM86, A10, "sparse") == bound(refused, SM86, A10, "dense")
    turing = targets.load("sm75-trt10")
    t4 = gpu_of(turing)
    assert bound(layer(), turing, t4, "sparse") == bound(layer(), turing, t4, "dense")


def test_the_text_says_estimate_and_never_measured() -> None:
    layers, _ = layers_of(net(), SM86, {})
    found = estimate(layers, SM86, A10, "1")
    text = render_estimates("net.onnx", SM86, A10, [found])
    assert text.startswith("ESTIMATE, not a measurement") and A10.source in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert found.total_us("sparse") < found.total_us("dense")
    unknown = estimate([layer(flops=None, activation_bytes=None)], SM86, A10, "1")
    assert unknown.left_out == ("l",)
    assert "left out" in render_estimates("m", SM86, A10, [unknown])


def test_unconfirmed_sparsity_is_said() -> None:
    hopper = targets.load("sm90-trt10")
    text = render_estimates("m", hopper, gpu_of(hopper), [])
    assert "no public log shows TensorRT choosing sparse kernels on sm90-trt10" in text


def test_every_compute_capability_has_a_gpu_with_its_source() -> None:
    for name in targets.names():
        found = gpu_of(targets.load(name))
        assert found.source and found.sm == targets.load(name).sm
    for gpu in gpus():
        assert gpu.int8_tops >= 2 * gpu.fp16_tflops * 0.99 and gpu.bandwidth_gbs > 100


@pytest.mark.parametrize(("name", "says"), [("A11", "did you mean"), ("L40S", "8.9")])
def test_a_gpu_that_does_not_fit(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        gpu_of(SM86, name)
    assert caught.value.code == "O24-025"


# --- measuring -------------------------------------------------------------------------------
def test_turns_alternate_and_the_first_round_warms_up() -> None:
    asked = []

    def run(variant: str, engine: Path) -> list[float]:
        asked.append(variant)
        return [float(len(asked)), float(len(asked)), 100.0]

    found = in_turns(run, {"dense": Path("d"), "sparse": Path("s")}, rounds=3, batch="8")
    assert asked == ["dense", "sparse", "sparse", "dense", "dense", "sparse", "sparse", "dense"]
    assert found.rounds == {"dense": (4.0, 5.0, 8.0), "sparse": (3.0, 6.0, 7.0)}


def measured(sparse: float, noise: float) -> Measurement:
    rng = np.random.default_rng(3)
    times = {
        name: tuple(center * (1 + noise * rng.gamma(2, 0.5, 20)))
        for name, center in (("dense", 1.0), ("sparse", sparse))
    }
    return Measurement(batch="8", rounds=times)


def test_a_gain_is_shown_with_its_interval() -> None:
    text = render_measurements("title", [measured(0.7, 0.03)], {})
    row = next(line for line in text.splitlines() if line.strip().startswith("sparse"))
    assert "1.4" in row and "x (" in row
    document = measured(0.7, 0.03).to_json()
    assert document["gains"]["sparse"]["significant"] is True
    assert len(document["rounds_ms"]["dense"]) == 20


def test_a_gain_inside_the_noise_is_not_printed() -> None:
    text = render_measurements("title", [measured(0.99, 0.2)], {"int8": "it needs --calib"})
    assert "within the noise" in text and "x (" not in text
    assert "int8 was not measured: it needs --calib" in text
    assert measured(0.99, 0.2).to_json()["gains"]["sparse"]["ratio"] is None
