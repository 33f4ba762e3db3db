"""Every rule of analysis.axes on ONNX's own test of the operator: operands permuted along tied axes
must give the expected outputs, permuted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache

import networkx as nx
import numpy as np
import onnx
import pytest

from onnx24.analysis.axes import NodeAxes, Operand, Relations, Slot, relate
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.runtime.session import Session

SEEDS = 2


@cache
def _cases() -> dict[str, list]:
    """By operator, ONNX's tests of a single node with tensors only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found: dict[str, list] = {}
        for case in collect_testcases(None):
            nodes = case.model.graph.node
            if len(nodes) == 1 and case.data_sets and not case.model.functions:
                found.setdefault(nodes[0].op_type, []).append(case)
    return found


def _related(node: onnx.NodeProto, values: dict[str, np.ndarray], opset: int) -> Relations:
    def operand(name: str) -> Operand | None:
        if not name:
            return None
        shape = tuple(values[name].shape) if name in values else None
        return Operand(ValueKey("", name), shape)

    axes = NodeAxes(
        NodeSite("", 0, node),
        [operand(name) for name in node.input],
        [operand(name) for name in node.output],
        lambda i: values.get(node.input[i]) if i < len(node.input) else None,
        opset,
    )
    return relate(axes)


def _components(relations: Relations) -> list[set[Slot]]:
    """Axes that one permutation may go along, by ties alone; those that blocks or pieces divide
    are left to the tests of whole graphs."""
    graph = nx.Graph()
    graph.add_nodes_from(relations.sizes)
    for tie in relations.ties:
        nx.add_path(graph, tie)
    fixed = set(relations.pinned)
    for block in relations.blocks:
        fixed |= {*block.left, *block.right}
    for piece in relations.pieces:
        fixed |= {piece.whole, piece.part}
    return [
        c
        for c in nx.connected_components(graph)
        if not c & fixed and relations.sizes[next(iter(c))] > 1
    ]


def _permuted(
    values: dict[str, np.ndarray], perms: dict[Slot, np.ndarray]
) -> dict[str, np.ndarray]:
    out = dict(values)
    for slot, perm in perms.items():
        if slot.key.name in out:
            out[slot.key.name] = np.take(out[slot.key.name], perm, axis=slot.axis)
    return out


# Outputs that are random, or whose order ONNX leaves open.
_SKIPPED = {"Bernoulli", "RandomNormalLike", "RandomUniformLike", "Multinomial"}


def _operators() -> list[str]:
    from onnx24.analysis import axes

    return sorted({op for domain, op in axes._RULES if not domain})


@pytest.mark.parametrize("op", _operators())
def test_permuted_operands_give_permuted_outputs(op: str) -> None:
    counts: Counter[str] = Counter()
    for case in _cases().get(op, ()):
        (node,) = case.model.graph.node
        for inputs, outputs in case.data_sets[:1]:
            names = [v.name for v in case.model.graph.input]
            results = [v.name for v in case.model.graph.output]
            values = dict(zip(names, inputs, strict=True)) | dict(
                zip(results, outputs, strict=True)
            )
            if not all(
                isinstance(v, np.ndarray) and v.dtype.kind in "fiub" for v in values.values()
            ):
                continue
            opset = next(o.version for o in case.model.opset_import if o.domain == "")
            relations = _related(node, values, opset)
            components = _components(relations)
            if not components:
                counts["nothing to permute"] += 1
                continue
            try:
                session = Session(Model.from_proto(case.model, check=False), optimize=False)
                expected = session.run({n: values[n] for n in names})
            except Exception:  # noqa: BLE001 - ONNX Runtime lacks some types and opsets
                counts["not run"] += 1
                continue
            for seed in range(SEEDS):
                rng = np.random.default_rng(seed)
                perms = {}
                for component in components:
                    perm = rng.permutation(relations.sizes[next(iter(component))])
                    perms.update(dict.fromkeys(component, perm))
                fed = _permuted({n: values[n] for n in names}, perms)
                wanted = _permuted({n: np.asarray(expected[n]) for n in results}, perms)
                found = session.run(fed)
                for name in results:
                    np.testing.assert_allclose(
                        np.asarray(found[name]).astype(np.float64),
                        wanted[name].astype(np.float64),
                        rtol=1e-3,
                        atol=1e-4,
                        err_msg=f"{case.name}: {name}",
                    )
            counts["permuted"] += 1
    if not counts["permuted"]:
        pytest.skip(f"no test of ONNX's is run: {dict(counts)}")


def test_most_operators_are_really_tried() -> None:
    tried = sum(bool(_cases().get(op)) for op in _operators())
    assert tried > 90
