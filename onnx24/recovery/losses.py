"""How far a model's outputs are from the dense model's, as what is minimized.

*Source:* Hinton et al., Distilling the knowledge in a neural network (arXiv 1503.02531); MiniLM
(arXiv 2002.10957) and its second version (2012.15828) for the relations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import TensorProto, ValueInfoProto

from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.model import Model
from onnx24.recovery._torch import functional, torch
from onnx24.recovery.node import Tensor
from onnx24.recovery.recipes import Loss

__all__ = ["Objective", "Relation", "cross_entropy", "kl", "mse", "objective"]

_LOGIT_NAMES = ("logit", "prob", "class", "softmax", "score")
_THROUGH = frozenset(
    {"Cast", "Dropout", "Identity", "QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten"}
)
_SCORE_STEPS = _THROUGH | {"Add", "Clip", "Div", "Mul", "Sub", "Where", "Max"}


@dataclass(frozen=True)
class Output:
    """One output and the values that stand for it in the student and the teacher: what its softmax
    is taken of, where it has one."""

    name: str
    student: str
    teacher: str
    kind: Literal["kl", "mse"]


@dataclass(frozen=True)
class Relation:
    """Queries, keys or values of one attention: the names in both models. `transposed`: the last
    two axes are (features, positions)."""

    student: str
    teacher: str
    transposed: bool


@dataclass(frozen=True)
class Objective:
    """What is compared. `value` is the loss; `student_names` and `teacher_names`: what it needs."""

    outputs: tuple[Output, ...]
    relations: tuple[Relation, ...] = ()
    relation_weight: float = 0.0

    @property
    def student_names(self) -> list[str]:
        names = [o.student for o in self.outputs] + [r.student for r in self.relations]
        return list(dict.fromkeys(names))

    @property
    def teacher_names(self) -> list[str]:
        names = [o.teacher for o in self.outputs] + [r.teacher for r in self.relations]
        return list(dict.fromkeys(names))

    def powers(self, teacher: Mapping[str, Tensor]) -> list[float]:
        """Σ teacher² of each output that is compared by squares, in float32's digits."""
        return [power(teacher[out.teacher]) for out in self.outputs if out.kind == "mse"]

    def value(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        share: float = 1.0,
        powers: Sequence[float] | None = None,
    ) -> Tensor:
        """The mean over the outputs, and the weighted mean over the relations.

        share, powers: of a batch that comes in portions, this one's share of the samples and the
        whole batch's `powers`, so that the portions' values add up to the batch's.
        """
        whole = iter(self.powers(teacher) if powers is None else powers)
        parts = []
        for out in self.outputs:
            ours, wanted = student[out.student], teacher[out.teacher]
            if out.kind == "kl":
                parts.append(share * kl(ours, wanted))
            else:
                parts.append((ours.float() - wanted.float()).square().sum() / next(whole))
        total = torch.stack(parts).mean()
        if not self.relations:
            return total
        related = [
            _relation(student[r.student], teacher[r.teacher], r.transposed) for r in self.relations
        ]
        return total + share * self.relation_weight * torch.stack(related).mean()


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) along the last axis, mean over the rest [nats]."""
    wanted = functional.log_softmax(teacher.float(), -1).reshape(-1, teacher.shape[-1])
    given = functional.log_softmax(student.float(), -1).reshape(-1, teacher.shape[-1])
    return functional.kl_div(given, wanted, reduction="batchmean", log_target=True)


def power(teacher: Tensor) -> float:
    """Σ teacher², and 1e-12 at least."""
    return float(teacher.float().square().sum().clamp_min(1e-12))


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ(student − teacher)² / Σ teacher²."""
    return (student.float() - teacher.float()).square().sum() / power(teacher)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """logits: [rows, classes]; labels: [rows] int64."""
    return functional.cross_entropy(logits.float(), labels)


def _relation(student: Tensor, teacher: Tensor, transposed: bool) -> Tensor:
    """KL between softmax(X Xᵀ / √d) of both, X [… positions, features]."""
    scores = []
    for values in (student.float(), teacher.float()):
        x = values.transpose(-1, -2) if transposed else values
        scores.append(x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5)
    return kl(*scores)


# --- what stands for what --------------------------------------------------------------------
def objective(model: Model, teacher: Model, loss: Loss, relations: float) -> Objective:
    """The outputs of floats, each with its loss.

    Raises: InputError O24-156 where the teacher lacks an output, or where no output is of floats or
    no attention is found though relations are asked for.
    """
    index, dense = Index.of(model.proto), Index.of(teacher.proto)
    theirs = {value.name for value in teacher.proto.graph.output}
    outputs = []
    for value in model.proto.graph.output:
        if value.type.tensor_type.elem_type not in (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
            TensorProto.BFLOAT16,
            TensorProto.DOUBLE,
        ):
            continue
        if value.name not in theirs:
            raise InputError.of(
                "O24-156", f"the teacher has no output {value.name!r}", file=str(teacher.path or "")
            )
        outputs.append(_output(value, model, index, teacher, dense, loss))
    if not outputs:
        raise InputError.of("O24-156", "the model has no output of floats to compare")
    if not relations:
        return Objective(tuple(outputs))
    ours, wanted = _last_attention(index), _last_attention(dense)
    if ours is None or wanted is None:
        raise InputError.of(
            "O24-156",
            "relations are asked for, and no attention (MatMul, Softmax, MatMul) was found",
            hint="train with relations = 0",
        )
    pairs = zip(ours, wanted, (False, True, False), strict=True)
    return Objective(tuple(outputs), tuple(Relation(*pair) for pair in pairs), relations)


def _output(
    value: ValueInfoProto, model: Model, index: Index, teacher: Model, dense: Index, loss: Loss
) -> Output:
    name = value.name
    softmaxes = _softmax_input(name, index, model.opset), _softmax_input(name, dense, teacher.opset)
    has_softmax = None not in softmaxes
    named = any(part in name.lower() for part in _LOGIT_NAMES) and not _is_one_score(value)
    chosen: Literal["kl", "mse"] = "mse"
    if loss == "kl" or (loss == "auto" and (has_softmax or (named and softmaxes == (None, None)))):
        chosen = "kl"
    if chosen == "kl" and has_softmax:
        return Output(name, softmaxes[0] or name, softmaxes[1] or name, chosen)
    return Output(name, name, name, chosen)


def _is_one_score(value: ValueInfoProto) -> bool:
    """Whether a row has one number, as a ranking score has: its softmax would be 1, whatever it
    is, and the divergence 0."""
    if not value.type.tensor_type.HasField("shape"):
        return False
    dims = value.type.tensor_type.shape.dim
    return len(dims) < 2 or dims[-1].dim_value == 1


def _softmax_input(name: str, index: Index, opset: int) -> str | None:
    """What the output is the softmax of, along its last axis; None where it is none."""
    site = _producer_through(name, index, _THROUGH - {"Reshape", "Flatten"})
    if site is None or not ops.is_onnx(site, "Softmax", "LogSoftmax"):
        return None
    axis = next((a.i for a in site.proto.attribute if a.name == "axis"), -1 if opset >= 13 else 1)
    return site.proto.input[0] if axis in (-1, 1) else None


def _producer_through(name: str, index: Index, through: frozenset[str]) -> NodeSite | None:
    site = index.producer(name)
    while site is not None and ops.op(site) in through:
        site = index.producer(site.proto.input[0])
    return site


def _last_attention(index: Index) -> tuple[str, str, str] | None:
    """(queries, transposed keys, values) of the last MatMul(Softmax(… MatMul(Q, Kᵀ)), V)."""
    found = None
    for site in index.nodes:
        if site.scope or not ops.is_onnx(site, "MatMul"):
            continue
        weights = _producer_through(site.proto.input[0], index, _THROUGH)
        if weights is None or not ops.is_onnx(weights, "Softmax"):
            continue
        scores = _scores(weights.proto.input[0], index)
        if scores is not None:
            found = (scores.proto.input[0], scores.proto.input[1], site.proto.input[1])
    return found


def _scores(name: str, index: Index) -> NodeSite | None:
    """The product of queries and keys behind what a softmax is taken of."""
    names: Sequence[str] = (name,)
    for _ in range(8):
        made = [site for site in map(index.producer, names) if site is not None]
        for site in made:
            if ops.is_onnx(site, "MatMul"):
                return site
        steps = [site for site in made if ops.op(site) in _SCORE_STEPS]
        names = [value for site in steps for value in site.proto.input if value]
    return None
