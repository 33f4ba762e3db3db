"""Masks by magnitude at any sparsity, and what a recipe says."""

from __future__ import annotations

import numpy as np
import pytest
from recovery_support import net, sparse

from onnx24.errors import InputError
from onnx24.recovery.masks import mask_of, sites
from onnx24.recovery.recipes import Recipe, recipe
from onnx24.sparsity.masks import mask_24
from onnx24.targets import DEFAULT, load

W = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)


def test_the_ends_are_one_and_two_of_four() -> None:
    assert np.array_equal(mask_of(W, 24, 0.5), mask_24(W, 0))
    quarter = mask_of(W, 24, 0.25).reshape(4, 4, 24)
    assert (quarter.sum(1) == 3).all()
    smallest = np.abs(W.reshape(4, 4, 24)).argmin(1)
    assert not np.take_along_axis(quarter, smallest[:, None], 1).any()


@pytest.mark.parametrize("sparsity", [0.0, 0.125, 0.25, 0.375, 0.4, 0.5])
def test_every_mask_has_its_sparsity_and_holds_the_next(sparsity: float) -> None:
    mask = mask_of(W, 24, sparsity)
    assert (
        np.count_nonzero(~mask) == round(sparsity * W.size / 4) * 4
        or abs(np.count_nonzero(~mask) - sparsity * W.size) <= 1
    )
    assert not (mask_of(W, 24, 0.5) & ~mask).any()


def test_the_cheapest_groups_lose_two_first() -> None:
    w = np.float32([[1, 2, 9, 9, 3, 4, 9, 9]])
    assert mask_of(w, 1, 0.375).tolist() == [[False, False, True, True, False, True, True, True]]


def test_a_sparsity_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"0\.6"):
        mask_of(W, 24, 0.6)


def test_sites() -> None:
    target = load(DEFAULT)
    assert [(s.key.name, s.stride, s.is_sparse) for s in sites(sparse(), target, prune=False)] == [
        ("w0", 32, True),
        ("w1", 8, True),
    ]
    assert not sites(net(), target, prune=False)
    assert [s.is_sparse for s in sites(net(), target, prune=True)] == [False, False]


def test_pruned_by_others_and_not_recorded() -> None:
    model = sparse()
    for key in list(model.claims):
        model.claims.discard(key)
    assert len(sites(model, load(DEFAULT), prune=False)) == 2


def test_rates() -> None:
    plans = [Recipe(steps=10, rate=r) for r in ("linear", "cosine", "constant")]
    for step, wanted in ((0, [0.4, 0.4, 0.4]), (5, [0.2, 0.2, 0.4]), (10, [0, 0, 0.4])):
        assert [plan.rate_at(step, 0.4) for plan in plans] == pytest.approx(wanted)
    with pytest.raises(InputError, match="rate is 'warm'; expected linear, cosine or constant"):
        Recipe(rate="warm")  # type: ignore[arg-type]


def test_parts() -> None:
    plan = Recipe(name="progressive", steps=100, parts=3)
    assert [plan.part_of(step) for step in (0, 33, 34, 66, 67, 99)] == [0, 0, 1, 1, 2, 2]
    assert [plan.sparsity(part) for part in range(3)] == [0.25, 0.375, 0.5]
    assert Recipe(parts=1).sparsity(0) == 0.5
    cubic = Recipe(parts=3, schedule="cubic")
    assert cubic.sparsity(1) == pytest.approx(0.46875)


def test_the_learning_rate_follows_the_start() -> None:
    plan = Recipe()
    assert [plan.rate_for(value) for value in (0.25, 1e-3, 1e-7)] == [1e-3, 3e-4, 1e-5]
    assert plan.rate_for(float("nan")) == 1e-3
    assert Recipe(learning_rate=0.5).rate_for(1e-7) == 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [("none", {}), ("basic", {"speed": 3}), ("basic", {"steps": 0}), ("basic", {"ema": 1.0})],
)
def test_recipes_that_make_no_sense(name: str, options: dict) -> None:
    with pytest.raises(InputError, match="O24-043"):
        recipe(name, options)
