"""One-shot 2:4 with calibration data, from the weights that are chosen to weights that are judged.

Samples are split in two: nine of ten to solve on, the rest to judge by. Values are never judged on
the samples that they were solved on; the held-back ones only set the damping and one widening
factor for each output. A result that errs more than magnitude pruning does (relative L2 error of
the outputs) goes back to magnitude, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.judge import Agreement, Budget, Judge, fewest
from onnx24.layerwise.progress import Saved
from onnx24.layerwise.resources import Resources
from onnx24.layerwise.results import LayerResult
from onnx24.layerwise.segments import Piece, Unsupported, whole
from onnx24.layerwise.solver import Settings, solve_layers
from onnx24.layerwise.stages import Layer, Plan, draws, make_plan
from onnx24.layerwise.store import Store
from onnx24.runtime.augment import Augmentation, Augmented
from onnx24.runtime.blas import one_thread
from onnx24.runtime.data import Calibration
from onnx24.runtime.difference import NAME_OUTPUTS
from onnx24.sparsity.masks import prune_24_by_stride

__all__ = ["Solved", "can_be_judged", "solve_model"]

HELD_BACK = 0.1
MAX_HELD_RUNS = 256
TRIES, TIGHTER = 4, 0.9
"""How often layers are solved anew for a budget, and how much less error is asked for each time."""
Results = dict[ValueKey, LayerResult]


@dataclass(kw_only=True)
class Solved:
    """What became of each weight. `dense_again`: weights that the budget leaves dense, with what
    the model gains by each (relative error of the outputs). agreement: with the dense model on
    held-back samples, by magnitude and as solved; None where no sample could be held back.
    impossible: why nothing was solved, to be said before anything else."""

    results: dict[ValueKey, LayerResult]
    layers: dict[ValueKey, Layer]
    unsolved: dict[ValueKey, str]
    fitted: int = 0
    held: int = 0
    agreement: Agreement | None = None
    gap: Diagnostic | None = None
    """O24-037, where the outputs that judge as solved are not comparable in full."""
    agreement_before: Agreement | None = None
    """With all layers pruned, where the budget made some of them dense."""
    agreement_magnitude: Agreement | None = None
    fallen_back: list[ValueKey] = field(default_factory=list)
    dense_again: dict[ValueKey, float] = field(default_factory=dict)
    predicted: float | None = None
    resumed: int = 0
    impossible: list[Diagnostic] = field(default_factory=list)

    @classmethod
    def nothing(cls) -> Solved:
        return cls(results={}, layers={}, unsolved={})

    def leave_dense(self, keys: Iterable[ValueKey]) -> None:
        """What can't be measured can't be promised to keep a budget."""
        self.dense_again.update((key, 0.0) for key in keys)

    def statistics(self) -> dict[str, Any]:
        """For the report; nothing where no layer was solved."""
        if not self.layers:
            return {}
        found: dict[str, Any] = {
            "solved": len(self.results),
            "samples": self.fitted,
            "held": self.held,
        }
        ours, other = self.agreement, self.agreement_magnitude
        if ours is None or other is None:
            return found
        found |= {"output_error": ours.rel_l2, "output_error_magnitude": other.rel_l2}
        if ours.top1 is not None and other.top1 is not None:
            found |= {"agreement": ours.top1, "agreement_magnitude": other.top1}
        if (full := self.agreement_before) is not None:
            found |= {"output_error_before": full.rel_l2}
            found |= {} if full.top1 is None else {"agreement_before": full.top1}
        if self.predicted is not None:
            found["predicted_output_error"] = self.predicted
        return found

    def doubts(self) -> list[Diagnostic]:
        """O24-132 and O24-135: what the judgement found, or that there was none."""
        if self.layers and (self.agreement is None or self.agreement_magnitude is None):
            message = "there are too few samples to hold any back: nothing was judged"
            return [diagnostic("O24-135", message)]
        gap = [replace(self.gap, hint=NAME_OUTPUTS)] if self.gap else []
        if not self.fallen_back:
            return gap
        message = f"{len(self.fallen_back)} layers went back to magnitude: as solved, the model "
        message += "erred more than by magnitude on held-back samples"
        return [*gap, diagnostic("O24-132", message)]

    def moved_bias(self, key: ValueKey) -> tuple[np.ndarray, np.ndarray] | None:
        """The bias of a layer as it was and as solved, both as stored; None where it stays."""
        result = self.results.get(key)
        if result is None or result.bias is None or key in self.dense_again:
            return None
        bias = self.layers[key].bias
        assert bias is not None
        return bias.values, result.bias


def can_be_judged(data: Calibration) -> bool:
    """Whether a part of the samples can be held back."""
    fit, held = data.split(1 - HELD_BACK)
    return fit is not held and fit.runs + held.runs >= 2


def solve_model(
    model: Model,
    found: WeightUses,
    strides: Mapping[ValueKey, int],
    data: Calibration,
    *,
    settings: Settings,
    resources: Resources,
    augmentation: Augmentation | None,
    budget: Budget,
    progress: Callable[..., Iterator[Any]],
    saved: Saved,
    outputs: Sequence[str] = (),
) -> Solved:
    """Solve the weights that `strides` names; the model itself stays as it is.

    budget: what the outputs must keep; layers go back to dense until they do. outputs: values to
    judge by; the model's outputs where empty.
    Raises: InputError O24-016, O24-030 to O24-033, O24-035 for a budget that no sample is left to
    judge; segments.Unsupported; BackendError O24-500.
    """
    if random := draws(model):
        raise Unsupported(f"{random} draws other numbers each time: two runs can't be compared")
    plan = make_plan(model, found, strides)
    fit, held = data.split(1 - HELD_BACK)
    alone = not can_be_judged(data)
    if alone and budget.any:
        message = "prune24: budget needs at least two runs of samples, one of them to judge by"
        raise InputError.of("O24-035", message)
    fitting: Any = Augmented(fit, augmentation, model) if augmentation else fit
    dense = {layer.key.name: found.read(model, layer.key) for layer in plan.layers}
    dense.update({layer.bias.name: layer.bias.values for layer in plan.layers if layer.bias})
    # Whoever reads a weight that stands in no body sees it pruned, solved or not.
    dense.update({k.name: found.read(model, k) for k in plan.unsolved if not k.scope})

    def unsolved() -> dict[str, np.ndarray]:
        keys = [] if budget.any else [key for key in plan.unsolved if not key.scope]
        return {k.name: prune_24_by_stride(dense[k.name], strides[k]) for k in keys}

    def solving(plan: Plan, saved: Saved) -> Results:
        return solve_layers(
            model,
            plan,
            dense,
            unsolved(),
            strides,
            fitting,
            None if alone else held,
            settings,
            resources,
            progress,
            saved,
        )

    def without(keys: Collection[ValueKey]) -> Results:
        """The layers solved anew, where those of `keys` stay dense."""
        rest = {key: stride for key, stride in strides.items() if key not in keys}
        chosen = ",".join(sorted(map(str, rest)))
        return solving(make_plan(model, found, rest), saved.within(chosen))

    results = solving(plan, saved)
    solved = Solved(
        results=results,
        layers={layer.key: layer for layer in plan.layers if layer.key in results},
        unsolved=dict(plan.unsolved),
        fitted=len(fitting),
        held=0 if alone else len(held),
        resumed=saved.found,
    )
    if budget.any:
        solved.leave_dense(plan.unsolved)
    if not alone and solved.layers:
        with one_thread():
            shown = whole(model, list(solved.layers.values()), dense, held.names, outputs)
            _judge(
                model,
                shown,
                solved,
                dense,
                unsolved(),
                strides,
                held,
                resources,
                budget,
                without,
                progress,
            )
    return solved


def _judge(
    model: Model,
    piece: Piece,
    solved: Solved,
    dense: dict[str, np.ndarray],
    unsolved: dict[str, np.ndarray],
    strides: Mapping[ValueKey, int],
    held: Calibration,
    resources: Resources,
    budget: Budget,
    without: Callable[[Collection[ValueKey]], Results],
    progress: Callable[..., Iterator[Any]],
) -> None:
    def samples() -> Iterator[Mapping[str, np.ndarray]]:
        return islice(held.batches(model), MAX_HELD_RUNS)

    with Store(resources.memory_bytes // 2, resources.folder) as store:
        judge = Judge(piece, samples, dense, store, resources.threads)
        _choose(judge, solved, {**dense, **unsolved}, strides, budget, without, progress)


def _choose(
    judge: Judge,
    solved: Solved,
    dense: dict[str, np.ndarray],
    strides: Mapping[ValueKey, int],
    budget: Budget,
    without: Callable[[Collection[ValueKey]], Results],
    progress: Callable[..., Iterator[Any]],
) -> None:
    """Which layers go back to magnitude, and which to dense. dense: but for the unsolved."""
    layers = list(solved.layers.values())
    by_magnitude = {
        layer.key.name: prune_24_by_stride(dense[layer.key.name], strides[layer.key])
        for layer in layers
    }
    ours = _weights(dense, layers, solved.results)
    solved.agreement_magnitude = judge({**dense, **by_magnitude})
    solved.agreement = judge(ours)
    solved.gap = solved.agreement.gap
    limit = solved.agreement_magnitude.rel_l2
    if not solved.agreement.rel_l2 <= limit:
        others = [layer for layer in layers if not solved.results[layer.key].magnitude]
        order = sorted(others, key=lambda layer: _advantage(solved.results[layer.key]))

        def fallen(n: int) -> dict[str, np.ndarray]:
            back = {layer.key: layer for layer in order[:n]}
            kept = {k: r for k, r in solved.results.items() if k not in back}
            weights = _weights(dense, layers, kept)
            weights.update(
                {layer.key.name: by_magnitude[layer.key.name] for layer in back.values()}
            )
            return weights

        n = fewest(len(order), lambda n: judge(fallen(n)).rel_l2 <= limit)
        for layer in order[:n]:
            result = solved.results[layer.key]
            result.stored, result.bias = by_magnitude[layer.key.name], None
            result.magnitude = True
            solved.fallen_back.append(layer.key)
        solved.agreement = judge(_weights(dense, layers, solved.results))
    if budget.any:
        _keep_budget(judge, solved, dense, layers, budget, without, progress)


def _keep_budget(
    judge: Judge,
    solved: Solved,
    dense: dict[str, np.ndarray],
    layers: Sequence[Layer],
    budget: Budget,
    without: Callable[[Collection[ValueKey]], Results],
    progress: Callable[..., Iterator[Any]],
) -> None:
    """Leave layers dense, those first that by themselves do most for each weight, until the
    measured error is within the budget.

    A layer is fitted to those before it, and errs more where they change: so the others are solved
    anew. How many stay dense is what the layers' own errors, added as squares, say; where that was
    not enough, more is asked of them, and nothing is pruned after TRIES.
    """
    assert solved.agreement is not None
    if budget.met_by(solved.agreement):
        return
    solved.agreement_before = solved.agreement
    own = {
        layer.key: judge(_weights(dense, [layer], solved.results)).rel_l2 ** 2
        for layer in progress(layers, "sensitivity", total=len(layers))
    }
    order = sorted(layers, key=lambda layer: -own[layer.key] / dense[layer.key.name].size)
    left = [sum(own[layer.key] for layer in order[n:]) for n in range(len(order))]
    share = budget.share_left(solved.agreement) ** 2
    count, results, found = 0, solved.results, solved.agreement
    for _ in range(TRIES):
        enough = (n for n, error in enumerate(left) if error <= share * left[0])
        count = max(count + 1, next(enough, len(order)))
        if count >= len(order):
            break
        results = without([layer.key for layer in order[:count]])
        found = judge(_weights(dense, layers, results))
        if budget.met_by(found):
            break
        share *= min(budget.share_left(found), TIGHTER) ** 2
    else:
        count = len(order)
    if count >= len(order):
        count, results, found = len(order), {}, judge(dense)
    if 0 < left[0] < math.inf:
        rest = sum(left[count : count + 1]) / left[0]
        solved.predicted = solved.agreement.rel_l2 * math.sqrt(rest)
    solved.results, solved.agreement = results, found
    solved.fallen_back = []  # what is left was solved anew
    dense_now = [layer.key for layer in order if layer.key not in results]
    solved.dense_again.update((key, own[key]) for key in dense_now)


def _weights(
    dense: dict[str, np.ndarray], layers: Sequence[Layer], results: Mapping[ValueKey, LayerResult]
) -> dict[str, np.ndarray]:
    weights = dict(dense)
    for layer in layers:
        result = results.get(layer.key)
        if result is None:
            continue
        weights[layer.key.name] = result.stored
        if layer.bias is not None and result.bias is not None:
            weights[layer.bias.name] = result.bias
    return weights


def _advantage(result: LayerResult) -> float:
    """How much less a layer errs than by magnitude, as a share."""
    magnitude = result.facts.get("output_error_magnitude")
    if not magnitude:
        return 0.0
    return 1 - result.facts["output_error"] / magnitude
