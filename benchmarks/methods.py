"""The ways to a smaller model that the vision and the generation study compare.

All start from one model, read the same unlabelled samples, and what trains takes as many steps.

benchmarks/search_relevance/relevance_methods.py has methods of the same names that differ: they
begin with `canonicalize` alone, without upgrade-opset and smooth-quant; magnitude is spelled
`quality=magnitude` there, `method=magnitude refit=false` here (the same weights but for the last
bit); for sparse-qat `qdq` inserts the quantizers before training there, `recover` here; learning
rates are chosen for each variant there, the recipe's own here unless others are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from onnx24.backends.base import Profile
from onnx24.diagnostics import Diagnostic
from onnx24.ir.model import Model
from onnx24.ledger.estimate import bound
from onnx24.ledger.model_layers import layers_of
from onnx24.passmgr import manager, pipeline
from onnx24.recovery.recipes import recipe
from onnx24.runtime.data import Calibration
from onnx24.targets import DEFAULT, load
from onnx24.targets.gpus import gpu_of

if TYPE_CHECKING:
    from onnx24.recovery.trainer import Recovered

BASE = "canonicalize,upgrade-opset{to=13},smooth-quant"
MAGNITUDE = "prune24{method=magnitude refit=false permute=off}"
ONE_SHOT = "prune24"
ENDS = {"fp32": "", "fp16": "cast16", "int8": "qdq,fold-qdq"}


@dataclass(frozen=True)
class Method:
    """prune: a pipeline, or "" for dense weights. recipe: of `recover`, or "" for no training.
    ends: the precisions that it is taken to."""

    name: str
    prune: str = ""
    recipe: str = ""
    ends: tuple[str, ...] = ("fp16", "int8")


METHODS = {
    method.name: method
    for method in (
        Method("dense", ends=("fp32", "fp16", "int8")),
        Method("magnitude", MAGNITUDE),
        Method("basic", MAGNITUDE, "basic"),
        Method("progressive", "", "progressive"),
        Method("sparse-qat", "", "sparse-qat", ("int8",)),
        Method("one-shot", ONE_SHOT),
        Method("one-shot + recover", ONE_SHOT, "basic"),
        Method("one-shot + sparse-qat", ONE_SHOT, "sparse-qat", ("int8",)),
    )
}


class Trained(NamedTuple):
    """A model before its end, and what training said; None where there was none."""

    model: Model
    recovered: Recovered | None


@dataclass
class Workshop:
    """One dense model, its samples, and what is made of them.

    steps, batch, seed, loss: of every recipe.
    """

    dense: Model
    data: Calibration
    steps: int
    seed: int = 0
    batch: int = 32
    loss: str = "auto"
    _starts: dict[str, bytes] = field(default_factory=dict)

    def start(self, method: Method) -> Model:
        """The model before training, made once for all methods that prune alike."""
        if method.prune not in self._starts:
            text = ",".join(filter(None, (BASE, method.prune)))
            model = Model.from_bytes(self.dense.to_bytes())
            _run(model, text, self.data)
            self._starts[method.prune] = model.to_bytes()
        return Model.from_bytes(self._starts[method.prune])

    def trained(self, method: Method, learning_rate: float | None = None) -> Trained:
        """The method's model in floats, or with unfolded quantizers after sparse-qat.

        learning_rate: the recipe's own where None.
        """
        model = self.start(method)
        if not method.recipe:
            return Trained(model, None)
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        plan = recipe(
            method.recipe,
            {
                "steps": self.steps,
                "batch": self.batch,
                "seed": self.seed,
                "loss": self.loss,
                **rate,
            },
        )
        from onnx24.recovery.trainer import recover  # torch, which the tables don't need

        teacher = self.start(METHODS["dense"])
        return Trained(model, recover(model, teacher, self.data, plan, target=load(DEFAULT)))

    def finished(self, model: Model, method: Method, end: str) -> Model:
        """A copy in that precision."""
        text = ENDS[end]
        if method.recipe == "sparse-qat":
            text = "fold-qdq"
        made = Model.from_bytes(model.to_bytes())
        if text:
            _run(made, text, self.data)
        return made


def _run(model: Model, text: str, data: Calibration) -> list[Diagnostic]:
    result = manager.run(
        model, pipeline.parse(text), target=load(DEFAULT), calibration=data, reproducer_dir=None
    )
    return list(result.diagnostics)


def estimated_us(model: Model, shapes: Mapping[str, Sequence[int]]) -> tuple[float, int, int]:
    """(the roofline bound of all products with a weight on the default target's GPU [µs], how many
    of them are INT8, how many 2:4). A bound from data-sheet peaks and no measurement. Floats count
    as fp16.
    """
    target = load(DEFAULT)
    gpu = gpu_of(target)
    profiles = {name: Profile.static(shape) for name, shape in shapes.items()}
    layers = [layer for layer in layers_of(model, target, profiles)[0] if layer.flops is not None]
    total, int8, sparse = 0.0, 0, 0
    for layer in layers:
        parts = ["sparse"] * bool(layer.is_24) + ["int8"] * (layer.dtype == "int8")
        variant = "-".join(parts) or "dense"
        total += bound(replace(layer, eligible=True), target, gpu, variant).us
        int8 += "int8" in parts
        sparse += "sparse" in parts
    return total, int8, sparse
