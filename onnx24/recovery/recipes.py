"""How a model is trained: plain data, without torch.

*Source:* progressive masks and Sparse-QAT as in the article that this project implements; SR-STE
(arXiv 2102.04010); relations of queries, keys and values (MiniLM v2, arXiv 2012.15828).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from onnx24.errors import InputError

__all__ = [
    "NAMES",
    "Loss",
    "Masks",
    "Precision",
    "Recipe",
    "Scales",
    "Schedule",
    "grown_sparsity",
    "hold_to",
    "one_of",
    "part_at",
    "recipe",
]

Loss = Literal["auto", "kl", "mse"]
Masks = Literal["fixed", "recomputed"]
Schedule = Literal["linear", "cubic"]
Scales = Literal["calibrated", "learned"]
Optimizer = Literal["adam", "adamw", "sgd"]
Rate = Literal["linear", "cosine", "constant"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]

NAMES = ("basic", "progressive", "sparse-qat")
RATE_PER_DIVERGENCE = 0.3
MIN_RATE, MAX_RATE = 1e-5, 1e-3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train.

    name: `basic` trains under the masks that the model has. `progressive` starts from the dense
    weights and prunes them in `parts` parts, from 25 % (one of four) to 50 % (two of four), with
    the mask recomputed by magnitude at each. `sparse-qat` trains through fake quantizers, the
    model's own or those that `qdq` inserts; weights that are not 2:4 yet are pruned as by
    `progressive`, all at once with distillation.

    micro_batch [samples]: how many of a batch are run at once, 0 for all; gradients are summed, so
    that it changes memory and the last bits. precision: of the student's forward pass; weights,
    gradients and the optimizer stay in fp32. `auto` is bf16 on a GPU that has it, fp16 on others,
    and fp32 on the CPU.

    steps, batch [samples], clip (of the gradient's norm). learning_rate: the first step's; 0: as
    `rate_for`. rate: how it falls to 0 (`linear`, `cosine`), or that it does not (`constant`).
    optimizer: `adam`, `adamw` (decay 0.01) or `sgd` (momentum 0.9, which diverges sooner). loss:
    `kl` between softmaxes, `mse` relative to the dense outputs' power, or `auto`: kl for what a
    softmax gives or what is called logits, mse for the rest and for one score a row. relations:
    weight of the last attention's query, key and value relations, 0 for none.
    label_weight: share of the cross entropy with labels, where there are any.

    masks: `fixed`, or `recomputed` by magnitude every ten steps with the decay `decay` of what is
    pruned (SR-STE). scales: quantizers keep the `calibrated` ones, or train them (`learned`, LSQ)
    in proportion to themselves. schedule: how sparsity grows over the parts. ema: decay of the
    weights' running mean, which is then what is kept; 0 for none. patience: evaluations (each
    `eval_every` steps) without a better held-out divergence after which training stops; 0 for
    never. The best weights that were evaluated are kept.
    """

    name: str = "basic"
    steps: int = 200
    batch: int = 32
    micro_batch: int = 0
    optimizer: Optimizer = "adam"
    learning_rate: float = 0.0
    rate: Rate = "linear"
    clip: float = 1.0
    loss: Loss = "auto"
    relations: float = 0.0
    label_weight: float = 0.5
    masks: Masks = "fixed"
    decay: float = 2e-4
    scales: Scales = "calibrated"
    precision: Precision = "fp32"
    parts: int = 2
    schedule: Schedule = "linear"
    ema: float = 0.0
    eval_every: int = 25
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises: InputError O24-043 for a value that makes no sense."""
        limits = {
            "name": one_of(self.name, NAMES),
            "steps": (self.steps >= 1, "1 or more"),
            "batch": (self.batch >= 1, "1 or more"),
            "micro_batch": (self.micro_batch >= 0, "0 for the whole batch, or more"),
            "scales": one_of(self.scales, get_args(Scales)),
            "precision": one_of(self.precision, get_args(Precision)),
            "learning_rate": (self.learning_rate >= 0, "0 for the recipe's own, or more"),
            "optimizer": one_of(self.optimizer, get_args(Optimizer)),
            "rate": one_of(self.rate, get_args(Rate)),
            "clip": (self.clip > 0, "more than 0"),
            "loss": one_of(self.loss, get_args(Loss)),
            "relations": (self.relations >= 0, "0 for none, or more"),
            "label_weight": (0 <= self.label_weight <= 1, "0 to 1"),
            "masks": one_of(self.masks, get_args(Masks)),
            "parts": (self.parts >= 1, "1 or more"),
            "schedule": one_of(self.schedule, get_args(Schedule)),
            "ema": (0 <= self.ema < 1, "0 for none, or less than 1"),
            "eval_every": (self.eval_every >= 1, "1 or more"),
            "patience": (self.patience >= 0, "0 for no end, or more"),
        }
        hold_to(limits, self)

    def rate_at(self, step: int, first: float) -> float:
        """The learning rate of that step, where it is `first` at step 0."""
        done = step / self.steps
        if self.rate == "cosine":
            return first * (1 + math.cos(math.pi * done)) / 2
        return first * (1 - done if self.rate == "linear" else 1.0)

    def part_of(self, step: int) -> int:
        """Which of the parts step `step` belongs to; all are of the same length."""
        return part_at(step, self.steps, self.parts)

    def sparsity(self, part: int) -> float:
        """The share of weights that is zero in that part: 0.25 in the first, 0.5 in the last."""
        return grown_sparsity(part, self.parts, self.schedule)

    def rate_for(self, divergence: float) -> float:
        """The learning rate from a start of that held-out divergence: 1e-3 far from the dense
        model, and in proportion below where 1e-3 would undo more than it repairs.

        *Source:* measured, docs/decisions.md D37.
        """
        if self.learning_rate:
            return self.learning_rate
        near = RATE_PER_DIVERGENCE * divergence
        return min(MAX_RATE, max(MIN_RATE, near)) if math.isfinite(near) else MAX_RATE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Limit = tuple[bool, str]
"""(whether a value is within it, what is expected)"""


def one_of(value: str, known: Sequence[str]) -> Limit:
    return value in known, f"{', '.join(known[:-1])} or {known[-1]}"


def hold_to(limits: Mapping[str, Limit], options: object) -> None:
    """limits: by the name of an attribute of `options`. Raises: InputError O24-043."""
    for name, (met, expected) in limits.items():
        if not met:
            value = getattr(options, name)
            raise InputError.of("O24-043", f"{name} is {value!r}; expected {expected}")


def part_at(step: int, steps: int, parts: int) -> int:
    """Which of so many parts of the same length step `step` of `steps` belongs to."""
    return min(step * parts // steps, parts - 1)


def grown_sparsity(part: int, parts: int, schedule: Schedule = "linear") -> float:
    """The article's schedule: one of four is zero in the first part, two of four in the last."""
    if parts == 1:
        return 0.5
    share = part / (parts - 1)
    return 0.25 + 0.25 * (share if schedule == "linear" else 1 - (1 - share) ** 3)


def recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name, with other values for some of its fields.

    Raises: InputError O24-043 for a name or a field that is none.
    """
    known = {field.name for field in fields(Recipe)} - {"name"}
    for given in options or {}:
        if given not in known:
            raise InputError.of(
                "O24-043",
                f"a recipe has no field {given!r}",
                hint=f"it has {', '.join(sorted(known))}",
            )
    return Recipe(name=name, **dict(options or {}))
