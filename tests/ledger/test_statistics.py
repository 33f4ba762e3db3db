"""Medians, spreads, and the rule that a gain inside the noise is none. Times are synthetic."""

from __future__ import annotations

import numpy as np
import pytest

from onnx24.ledger.statistics import MIN_SAMPLES, Summary, gain


def series(seed: int, center: float, spread: float, count: int = 60) -> np.ndarray:
    """Times as GPUs give them: a floor, and a tail to the right."""
    rng = np.random.default_rng(seed)
    return center * (1 + spread * rng.gamma(2.0, 0.5, count))


def test_summary() -> None:
    found = Summary.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.count, found.median) == (5, 3.0) and found.low < 3 < found.high


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.0, -1.0], [float("inf")]])
def test_no_times(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        Summary.of(bad)


@pytest.mark.parametrize("seed", range(20))
def test_a_real_gain_is_found(seed: int) -> None:
    found = gain(series(seed, 1.30, 0.05), series(seed + 100, 1.0, 0.05))
    assert found.significant and found.low < 1.30 < found.high + 0.05
    assert str(found).endswith(")") and found.to_json()["ratio"] == pytest.approx(1.3, rel=0.05)


@pytest.mark.parametrize("count", [8, 20, 60])
@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_noise_is_seldom_a_gain(count: int, memory: float) -> None:
    """Two series of the same thing, also where each time resembles the one before it: of 200 pairs
    no more than 1 in 12 may look different."""

    def remembering(seed: int) -> np.ndarray:
        fresh = np.random.default_rng(seed).gamma(2.0, 0.5, count)
        out = fresh.copy()
        for i in range(1, count):
            out[i] = memory * out[i - 1] + (1 - memory) * fresh[i]
        return 1 + 0.1 * out

    wrong = sum(
        gain(remembering(seed), remembering(seed + 1000)).significant for seed in range(200)
    )
    assert wrong <= 200 / 12


def test_a_tenth_of_a_percent_is_no_gain() -> None:
    steady = np.full(30, 1.0)
    assert not gain(steady * 1.001, steady).significant
    assert gain(steady * 1.02, steady).significant


def test_a_gain_inside_the_noise_has_no_number() -> None:
    found = gain(series(1, 1.0, 0.2), series(2, 1.0, 0.2))
    assert not found.significant and str(found) == "within the noise"
    assert found.to_json()["ratio"] is None


def test_a_loss_is_a_result_too() -> None:
    found = gain(series(3, 1.0, 0.03), series(4, 1.2, 0.03))
    assert found.significant and found.high < 1


def test_a_clock_that_drifts_moves_both() -> None:
    """Taken in turns while the clock falls by half: the ratio stays."""
    drift = np.linspace(1.0, 2.0, 80)
    found = gain(1.2 * drift, 1.0 * drift)
    assert found.significant and found.ratio == pytest.approx(1.2)
    assert found.low == pytest.approx(1.2, rel=0.02) and found.high == pytest.approx(1.2, rel=0.02)


@pytest.mark.parametrize("count", range(1, MIN_SAMPLES))
def test_too_few_samples_show_nothing(count: int) -> None:
    assert not gain([2.0] * count, [1.0] * count).significant


def test_series_that_were_not_taken_in_turns() -> None:
    with pytest.raises(ValueError, match="in turns"):
        gain([1.0] * 6, [1.0] * 7)


def test_the_same_times_give_the_same_interval() -> None:
    a, b = series(1, 1.1, 0.1), series(2, 1.0, 0.1)
    assert gain(a, b) == gain(a, b)
