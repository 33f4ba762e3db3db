"""Passes on random graphs of many kinds, all dimensions equal: no mistaken axis breaks anything
there, only the numbers show it. benchmarks/random_graphs.py runs thousands."""

from __future__ import annotations

import pytest

from onnx24.testing import promises
from onnx24.testing.random_graphs import random_graph

*ALONE, WHOLE = promises.SAME


@pytest.mark.parametrize("seed", range(24))
def test_the_function_is_kept(seed: int) -> None:
    """The presets' structure part; every pass by itself in turns."""
    graph = random_graph(seed, equal=seed % 4 != 3)
    for text in (WHOLE, ALONE[seed % len(ALONE)]):
        outcome = promises.keeps_function(graph.proto, graph.feeds, text)
        assert not outcome.complaint, f"{text}: {outcome.complaint}"


@pytest.mark.parametrize("seed", [3, 4, 5, 7])  # with layers that are large enough for both
def test_pruned_and_quantized_along_what_is_summed(seed: int) -> None:
    graph = random_graph(seed, equal=True)
    for outcome in (
        promises.prunes_what_is_summed(graph.proto, graph.feeds, calibrated=seed % 2 == 0),
        promises.quantizes_near(graph.proto, graph.feeds),
    ):
        assert not outcome.complaint and outcome.sites


def test_both_kinds_of_graph_are_what_they_say() -> None:
    """Equal ones have one size but for what merges or reduces; the same seed gives the same."""
    graph = random_graph(3, equal=True)
    assert len({n for array in graph.feeds.values() for n in array.shape}) == 1
    again = random_graph(3, equal=True)
    assert again.proto.SerializeToString() == graph.proto.SerializeToString()
    sizes = {
        n for s in range(9) for a in random_graph(s, equal=False).feeds.values() for n in a.shape
    }
    assert len(sizes) > 3
