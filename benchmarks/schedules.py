"""ADMM's schedules on the layers of a model: error on held-back rows and processor time.

    python benchmarks/schedules.py MODEL DATA [--outputs 192] [--markdown FILE]

The layers are those that `prune24` meets with these calibration data, each with at most --outputs
of its rows. A line: penalties × steps, sweeps, conjugate gradients; the objective, the error
on held-back rows (mean and worst layer) and the processor time, each as a share of the first
line's. *T*: conjugate gradients start at the target on the support; else where ADMM ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx24.ir.model import Model  # noqa: E402
from onnx24.layerwise import solver  # noqa: E402
from onnx24.passmgr import manager, pipeline  # noqa: E402
from onnx24.runtime.data import load_data  # noqa: E402
from onnx24.sparsity import solve  # noqa: E402
from onnx24.sparsity.masks import mask_24  # noqa: E402
from onnx24.targets import DEFAULT, load  # noqa: E402


@dataclass(frozen=True)
class Variant:
    penalties: tuple[float, float, int]
    steps: int
    sweeps: int = 0
    refit: int = 4
    from_target: bool = False

    def __str__(self) -> str:
        first, last, stages = self.penalties
        rho = f"{first}–{last}" if stages > 1 else f"{first}"
        start = "T" if self.from_target else "D"
        return f"{stages} × {self.steps // stages}, ρ {rho}, {self.sweeps}, {self.refit} ({start})"


VARIANTS = (
    Variant((0.05, 5, 10), 30, refit=10, from_target=True),
    Variant((0.05, 5, 10), 30),
    Variant((0.1, 2, 6), 60, refit=10),
    Variant((0.1, 2, 6), 18),
    Variant((0.1, 2, 4), 20),
    Variant((0.2, 0.5, 2), 20),
    Variant((0.2, 0.5, 2), 20, sweeps=1),
    Variant((0.3, 0.3, 1), 20),
    Variant((0.3, 0.3, 1), 8),
    Variant((0.3, 0.3, 1), 8, sweeps=1, refit=3),
    Variant((0.3, 0.3, 1), 8, sweeps=2, refit=3),
    Variant((0.5, 0.5, 1), 8, sweeps=1, refit=3),
)
"""The first is what prune24 did before; quality=max, default and fast are the third, the sixth and
the tenth."""


@dataclass
class Layer:
    problem: solve.Problem
    moments: solve.Moments
    U: np.ndarray
    V: np.ndarray

    def error(self, q: np.ndarray) -> float:
        W = self.problem.W
        Y = self.V @ W.T
        wrong = Y - self.U @ q.T
        if self.moments.centred:
            wrong -= (W @ self.moments.mean_v - q @ self.moments.mean_u).astype(np.float32)
        return float(np.linalg.norm(wrong) / np.linalg.norm(Y))


def layers_of(path: Path, data: Path, outputs: int) -> list[Layer]:
    found: list[Layer] = []
    original = solver._Walk._run_tasks
    moments: list[Any] = []
    rows: list[Any] = []

    def keep(function: Any, into: list[Any]) -> Any:
        def kept(*args: Any, **options: Any) -> Any:
            into.append(function(*args, **options))
            return into[-1]

        return kept

    def tasks(walk: Any, problems: list[solve.Problem]) -> Any:
        held = rows[-1][1]
        if held.U and not held.S:
            problem = problems[0]
            some = np.unique(np.linspace(0, len(problem.W) - 1, outputs).astype(int))
            U, V = (np.concatenate([r[0] for r in side]) for side in (held.U, held.V))
            found.append(Layer(problem.of_rows(some), moments[-len(problems)], U, V))
        return original(walk, problems)

    solver._Walk._run_tasks = tasks
    solver._Walk._gather = keep(solver._Walk._gather, rows)
    solver.MomentSums.moments = keep(solver.MomentSums.moments, moments)
    model = Model.load(path)
    manager.run(
        model,
        pipeline.parse("canonicalize,prune24{quality=fast}"),
        target=load(DEFAULT),
        calibration=load_data(str(data), model),
    )
    return found


def measured(layer: Layer, variant: Variant) -> tuple[float, float, float]:
    """(objective, error, processor time [s])"""
    problem = layer.problem
    first, last, stages = variant.penalties
    product = solve._Product(None)
    start = time.process_time()
    solve.RHOS, solve.RHO_RANGE, solve.STEPS_PER_RHO = {}, (first, last), variant.steps // stages
    Q = solve.admm(problem.T, problem.A, variant.steps, product)
    if variant.from_target:
        Q = problem.T * (Q != 0)
    for _ in range(variant.sweeps):
        Q = solve.sweep(problem.T, problem.A, Q, product)
    mask = (Q != 0) & mask_24(Q, axis=1)
    Q = solve.refit(problem.T, problem.A, mask, variant.refit, product, start=Q)
    took = time.process_time() - start
    off = (Q - problem.T).astype(np.float64)
    return float(np.sum((off @ problem.A) * off)), layer.error(problem.denormalised(Q)), took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--outputs", type=int, default=192)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    layers = layers_of(args.model, args.data, args.outputs)
    lines = [f"{args.model.stem}, {len(layers)} layers", ""]
    lines += ["| penalties × steps, ρ, sweeps, refit | objective | error | worst | time |"]
    lines += ["|---|---:|---:|---:|---:|"]
    with threadpool_limits(1):
        table = {v: np.array([measured(layer, v) for layer in layers]) for v in VARIANTS}
    before = table[VARIANTS[0]]
    for variant, cells in table.items():
        share = cells / before
        time_share = cells[:, 2].sum() / before[:, 2].sum()
        lines.append(
            f"| {variant} | {share[:, 0].mean():.3f} | {share[:, 1].mean():.3f} "
            f"| {share[:, 1].max():.3f} | {time_share:.2f} |"
        )
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
