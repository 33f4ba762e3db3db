"""matmul-to-conv1x1 and its inverse on random chains of products and elementwise nodes.

The outputs stay, whatever goes along in the convolution's form and whatever stays outside. The seed
is the test's id."""

from __future__ import annotations

import random

import numpy as np
import pytest
from onnx24.passes.conv1x1_to_matmul import Conv1x1ToMatmul
from onnx24.passes.matmul_to_conv1x1 import MatmulToConv1x1, When

from onnx24.ir.model import Model
from onnx24.rewrite.conv1x1 import Layout
from onnx24.testing.passes import apply, assert_same, outputs, text_model

K = 8
LEADS = ("4", "3,5", "M,5", "M,L", "M,2,L")
SCALARS = "<float two = {1.5}, float[1] half = {0.5}>"


def random_model(seed: int) -> Model:
    """A chain with branches; every value is [..., 8]."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    lead = rng.choice(LEADS)
    weights: dict[str, np.ndarray] = {}
    lines: list[str] = []
    values = ["x"]

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = (numbers.standard_normal(shape) / 3).astype(np.float32)
        return name

    def product(a: str, out: str) -> str:
        kind = rng.random()
        if kind < 0.2:
            lines.append(f"t{out} = Transpose<perm=[1,0]>({weight(K, K)})")
            return f"MatMul({a}, t{out})"
        if kind < 0.35 and "," not in lead:
            bias = weight(*rng.choice([(K,), (1, K), (1,)]))
            flags = f"alpha=0.5, beta={rng.choice([1.0, 0.5])}, transB={rng.randint(0, 1)}"
            return f"Gemm<{flags}>({a}, {weight(K, K)}, {bias})"
        return f"MatMul({a}, {weight(K, K)})"

    def reduced(a: str, out: str) -> str:
        lines.append(f"m{out} = ReduceMean<axes=[-1]>({a})")
        return f"Sub({a}, m{out})"

    makers = (
        (0.36, product),
        (0.48, lambda a, out: f"Add({a}, {weight(*rng.choice([(K,), (1, K), (1,)]))})"),
        (0.64, lambda a, out: f"{rng.choice(['Relu', 'Sigmoid', 'Tanh', 'Neg'])}({a})"),
        (0.78, lambda a, out: f"{rng.choice(['Add', 'Mul', 'Max'])}({a}, {rng.choice(values)})"),
        (0.86, lambda a, out: f"Mul({a}, {rng.choice(['two', 'half'])})"),
        (0.91, lambda a, out: f"Softmax({a})"),
        (0.96, reduced),
        (1.01, lambda a, out: f"PRelu({a}, {weight(K)})"),
    )
    for i in range(rng.randint(3, 14)):
        drawn, out = rng.random(), f"v{i}"
        maker = next(make for limit, make in makers if drawn < limit)
        lines.append(f"{out} = {maker(rng.choice(values[-4:]), out)}")
        values.append(out)
    results = dict.fromkeys([values[-1], rng.choice(values[1:])])
    dims = [",".join(f"{o}d{i}" for i in range(lead.count(",") + 2)) for o in results]
    declared = ", ".join(f"float[{d}] {o}" for d, o in zip(dims, results, strict=True))
    text = f"g (float[{lead},{K}] x) => ({declared}) {SCALARS} {{ {' '.join(lines)} }}"
    return text_model(text, weights=weights)


@pytest.mark.parametrize("form", list(Layout))
@pytest.mark.parametrize("seed", range(40))
def test_there_and_back(seed: int, form: Layout) -> None:
    """1e-5 of the largest value: other orders of summation, amplified by a chain."""
    model = random_model(seed)
    before = outputs(model, dynamic=3)
    apply(model, MatmulToConv1x1(when=When.ALWAYS, form=form))
    assert_same(before, outputs(model, dynamic=3), rtol=1e-5)
    apply(model, Conv1x1ToMatmul(all=bool(seed % 2)))
    assert_same(before, outputs(model, dynamic=3), rtol=1e-5)
