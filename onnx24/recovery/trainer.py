"""Training a compressed model to give the dense model's outputs again.

The graph stays as it is: only values of initializers change, and weights that are 2:4 stay so. On
the CPU the result is a function of the models, the samples and the recipe, to the bit, also where a
run was killed and went on from a checkpoint (on the same machine, with as many threads and
processes).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.invariants import broken_claims
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import InputError, InternalError
from onnx24.ir import ops
from onnx24.ir.archives import UNREADABLE
from onnx24.ir.files import atomic_write
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.recovery._torch import torch
from onnx24.recovery.fake import LEAST_RATIO, straight
from onnx24.recovery.interpreter import GraphModule
from onnx24.recovery.losses import Objective, cross_entropy, objective
from onnx24.recovery.masks import Site, mask_of, sites
from onnx24.recovery.node import Tensor
from onnx24.recovery.processes import Processes, joined
from onnx24.recovery.recipes import Recipe
from onnx24.recovery.samples import Samples
from onnx24.runtime.data import Calibration, Feeds
from onnx24.runtime.inputs import input_specs
from onnx24.runtime.session import Session
from onnx24.sparsity.masks import is_24_by_stride
from onnx24.targets import Target

__all__ = ["Recovered", "is_quantized", "recover", "require_trainable"]

REFRESH_STEPS = 10
"""How often recomputed masks are."""
MAX_FORWARD_ERROR = 1e-2
"""Relative error of the torch module's outputs from which on it is another model."""
MOST_STEPS = 2000
"""However much time there is."""
MARGIN = 0.85
"""Of the time that is left, for steps: what one takes is measured on two of them."""
FIRST = 1 / 3
"""Of the steps, for the layers that get time first."""

Progress = Callable[..., Iterable[Any]]
"""`progress(items, label, total)` gives the items, as `Console.progress` does."""


@dataclass(kw_only=True)
class Recovered:
    """What became of it. before, after: divergence from the dense model on the held-out samples
    (`objective`'s value) with the final form's masks; losses: (step, training loss); held_out:
    (step, divergence). learning_rate: the first step's. steps: taken, best_step: whose weights were
    kept. is_out_of_time: whether a time budget ended before the steps that were planned for it.
    first: weights that were trained alone at first. forward_error: of the torch module from ONNX
    Runtime, ‖a − b‖ / ‖b‖ on the first samples."""

    recipe: Recipe
    before: float
    after: float
    learning_rate: float
    steps: int
    best_step: int
    samples: int
    held_out_samples: int
    is_divided: bool
    forward_error: float
    outputs: dict[str, str]
    weights: list[str]
    changed: int
    seconds: float
    resumed_at: int
    is_out_of_time: bool = False
    first: list[str] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        out = {name: value for name, value in vars(self).items() if name != "diagnostics"}
        out["recipe"] = self.recipe.to_json()
        out["diagnostics"] = [item.to_json() for item in self.diagnostics]
        return out


def recover(
    model: Model,
    teacher: Model,
    data: Calibration,
    recipe: Recipe,
    *,
    target: Target,
    labels: np.ndarray | None = None,
    work_dir: Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    judge: Calibration | None = None,
    first: Sequence[ValueKey] = (),
    seconds: float = 0.0,
) -> Recovered:
    """Train the model's float initializers, in place.

    teacher: the dense model; it runs in ONNX Runtime. labels: one integer a sample, for a cross
    entropy with the first output. work_dir: where checkpoints go; a run with the same models, data
    and recipe goes on from the last one there. target: decides what may be pruned, where the recipe
    prunes, and what is quantized, where it inserts quantizers. device: where the student is
    trained, as torch names it. judge: samples to hold out, instead of a part of `data`. first:
    weights that are trained alone for a third of the steps.

    seconds: a time budget, 0 for none: as many steps as are expected to fit, MOST_STEPS at most,
    replace the recipe's. How many those are depends on the machine; the same number of steps
    without a budget gives the same bits, unless the time was up before them (`is_out_of_time`).

    Where torchrun started several processes, or torch.distributed has a process group, all of them
    train together, and each must call this with the same arguments: `batch` samples a step are
    divided among them, and the result is that of one process but for the order of sums. Each gets
    the whole result; only rank 0 writes checkpoints and shows progress.
    Raises: InputError O24-150 to O24-152, O24-156, O24-157, O24-159, and as the pass `qdq`;
    BackendError O24-155 without torch, O24-159 where another process ended.
    """
    with joined() as processes, processes.guarded():
        return _recover(
            model, teacher, data, recipe, target, labels, work_dir, progress, device, judge, first,
            seconds, processes,
        )  # fmt: skip


def _recover(
    model: Model,
    teacher: Model,
    data: Calibration,
    recipe: Recipe,
    target: Target,
    labels: np.ndarray | None,
    work_dir: Path | None,
    progress: Progress | None,
    device: str,
    judge: Calibration | None,
    first: Sequence[ValueKey],
    seconds: float,
    processes: Processes,
) -> Recovered:
    begin = time.monotonic()
    identity = _identity(model, teacher, data, recipe, labels, judge, first)
    processes.agree(identity)
    if recipe.name == "sparse-qat" and not is_quantized(model):
        manager.run(model, pipeline.parse("qdq"), target=target, calibration=data)
    found = sites(model, target, prune=recipe.name != "basic")
    if not found and not is_quantized(model):
        raise InputError.of(
            "O24-151", "no weight of floats or INT8 in the model is 2:4", file=str(model.path or "")
        )
    samples = Samples(data, model, labels, judge)
    with _deterministic(recipe.seed):
        run = _Run(model, teacher, samples, recipe, found, device, processes, first)
        if seconds:
            run.plan_until(begin + seconds)
        elif work_dir is not None:
            run.resume(work_dir / f"recover-{identity[:16]}.pt")
        resumed_at = run.step
        shown = progress if progress is not None and processes.is_first else None
        run.train(shown or (lambda items, *_: items))
        changed = run.write_back(model)
    _hold_to_claims(model, found)
    result = run.result(changed, resumed_at, time.monotonic() - begin)
    if recipe.name == "sparse-qat" and not is_quantized(model):
        result.diagnostics.append(diagnostic("O24-158", "qdq quantized no layer"))
    return result


def is_quantized(model: Model) -> bool:
    """Whether the main graph has quantizers."""
    quantizers = ("QuantizeLinear", "DequantizeLinear")
    return any(ops.op(node) in quantizers for node in model.proto.graph.node)


def require_trainable(model: Model, feeds: Feeds) -> None:
    """Look whether a model can be trained through, before hours of work. feeds: one run.

    Raises: InputError O24-150 to O24-152, O24-156, O24-157; BackendError O24-155 without torch.
    """
    names = [out.student for out in objective(model, model, "auto", 0.0).outputs]
    _forward_error(GraphModule(model), model, names, feeds)


def _forward_error(module: GraphModule, model: Model, names: list[str], feeds: Feeds) -> float:
    """Raises: InputError O24-157 where torch and ONNX Runtime disagree."""
    expected = Session(model, names, optimize=False).run(feeds)
    with torch.no_grad():
        given = module(feeds, names)
    worst = 0.0
    for name in names:
        a = given[name].double().cpu().numpy()
        b = np.asarray(expected[name]).astype(np.float64)
        error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))
        worst = max(worst, error if math.isfinite(error) else math.inf)
    if worst > MAX_FORWARD_ERROR:
        raise InputError.of("O24-157", f"relative error {worst:.2g}", file=str(model.path or ""))
    return worst


def _identity(
    model: Model,
    teacher: Model,
    data: Calibration,
    recipe: Recipe,
    labels: np.ndarray | None,
    judge: Calibration | None,
    first: Sequence[ValueKey],
) -> str:
    """What a checkpoint belongs to, in hex."""
    digest = hashlib.sha256()
    for document in (model, teacher):
        digest.update(document.skeleton().SerializeToString(deterministic=True))
        for key in document.weights:
            digest.update(f"{key} {document.weights.digest(key)}".encode())
    digest.update(data.digest().encode())
    digest.update(json.dumps(recipe.to_json(), sort_keys=True).encode())
    digest.update(b"" if labels is None else np.ascontiguousarray(labels).tobytes())
    digest.update(b"" if judge is None else judge.digest().encode())
    digest.update(" ".join(map(str, first)).encode())
    return digest.hexdigest()


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seeded, with deterministic algorithms, and the caller's random numbers untouched."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _hold_to_claims(model: Model, found: list[Site]) -> None:
    """Record what is 2:4 now, and look. Raises: InternalError O24-807."""
    model.claims.update([site.key for site in found])
    problems = broken_claims(model, AnalysisCache())
    if problems:
        raise InternalError(problems)


def _trainable(found: list[Site], module: GraphModule) -> list[Site]:
    """The sites whose values the module trains. Integers that something else than
    DequantizeLinear reads stay as they are, and so stay 2:4.

    Raises: InputError O24-151 for a site of floats that it can't train, or where none is left.
    """
    kept, keys = [], set(module.keys)
    for site in found:
        if site.key in keys:
            kept.append(site)
        elif not module.is_integer(site.key):
            raise InputError.of(
                "O24-151", "a weight that is 2:4 is no trainable initializer", tensor=str(site.key)
            )
    if found and not kept:
        raise InputError.of(
            "O24-151",
            "something else than DequantizeLinear reads the integers of the weights that are 2:4",
            tensor=str(found[0].key),
        )
    return kept


def _learned_scales(module: GraphModule, recipe: Recipe) -> list[ValueKey]:
    """The scales that are trained from now on. `sparse-qat` says by itself (O24-158) that nothing
    was quantized.

    Raises: InputError O24-043 where scales are to be learned and there are none.
    """
    if recipe.scales != "learned":
        return []
    keys = module.learn_scales()
    if not keys and recipe.name != "sparse-qat":
        raise InputError.of(
            "O24-043",
            "scales=learned: the model has no quantizers",
            hint="run qdq first, or use the recipe sparse-qat",
        )
    return keys


def _place(module: GraphModule, device: str) -> None:
    """Raises: InputError O24-043 for a device that torch does not have here."""
    try:
        module.place(device)
    except (RuntimeError, AssertionError) as err:
        reason = str(err).splitlines()[0][:200]
        raise InputError.of("O24-043", f"device {device!r}: {reason}") from err


def _optimizer(recipe: Recipe, parameters: list[Any]) -> Any:
    """Its rate is set at each step."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters)


def _autocast(recipe: Recipe, kind: str) -> Any:
    """The type of the student's forward pass, None for float32. kind: cpu, cuda, …"""
    if recipe.precision == "auto" and kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)


_GROWING = ("optimizer", "scaler", "losses", "held_out")
"""Parts of a checkpoint whose form changes with the steps."""


def _form(value: Any) -> Any:
    """What two checkpoints of one training have in common: names, types, and shapes."""
    if isinstance(value, Mapping):
        return {name: _form(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_form(part) for part in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    return type(value)


class _Run:
    """The state of one training: what a checkpoint holds, and what is made anew."""

    def __init__(
        self,
        model: Model,
        teacher: Model,
        samples: Samples,
        recipe: Recipe,
        found: list[Site],
        device: str,
        processes: Processes,
        first: Sequence[ValueKey] = (),
    ) -> None:
        self.recipe, self.samples, self.processes = recipe, samples, processes
        self.module = GraphModule(model)
        _place(self.module, device)
        self.sites = _trainable(found, self.module)
        self.objective: Objective = objective(model, teacher, recipe.loss, recipe.relations)
        self._teacher = Session(teacher, self.objective.teacher_names)
        self._teacher_dtypes = {spec.name: spec.dtype for spec in input_specs(teacher)}
        feeds, _ = next(samples.held_out_feeds())
        names = [out.student for out in self.objective.outputs]
        self.forward_error = _forward_error(self.module, model, names, feeds)
        self.scales = _learned_scales(self.module, recipe)
        self.keys: list[ValueKey] = self.module.keys
        if not self.keys:
            raise InputError.of("O24-151", "no initializer can be trained")
        alone = set(first) & set(self.keys)
        self.first = [key for key in self.keys if key in alone] if alone < set(self.keys) else []
        self.ends = math.inf
        self.is_out_of_time = False
        if recipe.name == "progressive":
            self._start_from_dense(teacher)
        self.progressive = [
            s for s in self.sites if recipe.name == "progressive" or not s.is_sparse
        ]
        self.masks: dict[ValueKey, Tensor] = {}
        self._mask_all(0.5)
        self._install_masks()
        self.parameters = [self.module.parameter(key) for key in self.keys]
        self.optimizer = _optimizer(recipe, self.parameters)
        self.autocast = _autocast(recipe, self.module.device.type)
        is_half = self.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(self.module.device.type, enabled=is_half)
        self.replica = self.module
        if processes.count > 1:
            self.replica = processes.wrapped(self.module, skips=self._skips_parameters())
        self.step = 0
        self.part = -1
        self.losses: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, float]] = []
        self.is_finite = True
        self.checkpoint: Path | None = None
        self.before = self.evaluate()
        self.learning_rate = recipe.rate_for(self.before)
        self.best, self.best_step = self.before, 0
        self.best_state = self._state()
        self.mean: list[Tensor] | None = None
        if recipe.ema:
            self.mean = [p.detach().clone() for p in self.parameters]

    def _skips_parameters(self) -> bool:
        """Whether a call may leave parameters unused: a body that is not taken, or an output that
        is not compared."""
        if self.module.has_bodies:
            return True
        feeds, which = next(self.samples.held_out_feeds())
        loss = self._loss(self._student(feeds), self._wanted(feeds), which, 1.0, None)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return any(gradient is None for gradient in gradients)

    # --- masks -----------------------------------------------------------------------------
    def _start_from_dense(self, teacher: Model) -> None:
        """Progressive pruning needs what was pruned away: the teacher's values, where the model is
        sparse already. All of them, biases too: the model's channels may stand in another order."""
        if any(site.is_sparse for site in self.sites):
            for key in self.module.keys:
                self._copy_from(teacher, key)
        for site in self.sites:
            if not site.is_sparse:
                continue
            parameter = self.module.parameter(site.key)
            named = site.key in teacher.weights
            if not named or teacher.weights[site.key].shape != tuple(parameter.shape):
                raise InputError.of(
                    "O24-156",
                    "progressive starts from dense weights, and the teacher has none of this name "
                    "and shape",
                    tensor=site.key.name,
                    scope=site.key.scope,
                )

    def _copy_from(self, teacher: Model, key: ValueKey) -> None:
        """Take a parameter that the teacher has in the same shape."""
        parameter = self.module.parameter(key)
        if key in teacher.weights and teacher.weights[key].shape == tuple(parameter.shape):
            with torch.no_grad():
                dense = np.array(teacher.weights[key], dtype=np.float32)
                parameter.copy_(torch.from_numpy(dense))  # on the device that it is on

    def _mask_all(self, sparsity: float) -> None:
        for site in self.sites:
            self._mask(site, sparsity)

    def _mask(self, site: Site, sparsity: float) -> None:
        weight = self.module.parameter(site.key).detach().cpu().numpy()
        mask = torch.from_numpy(mask_of(weight, site.stride, sparsity))
        self.masks[site.key] = mask.to(self.module.device)

    def _install_masks(self) -> None:
        for site in self.sites:
            self.module.transforms[site.key] = self._masked(site.key)

    def _masked(self, key: ValueKey) -> Callable[[Tensor], Tensor]:
        def apply(weight: Tensor) -> Tensor:
            if self.recipe.masks == "recomputed":
                return straight(weight, self.masks[key], self.recipe.decay)
            return torch.where(self.masks[key], weight, torch.zeros_like(weight))

        return apply

    def _update_masks(self) -> None:
        """As the recipe has it at this step. Parameters are pruned for good by fixed masks only."""
        part = self.recipe.part_of(self.step)
        if self.progressive and part != self.part:
            for site in self.progressive:
                self._mask(site, self.recipe.sparsity(part))
            self.part = part
            if self.recipe.masks == "fixed":
                self._prune()
            if self.mean is not None:  # a mean of weights under several masks is none of them
                self.mean = [p.detach().clone() for p in self.parameters]
        if self.recipe.masks == "recomputed" and self.step % REFRESH_STEPS == 0:
            self._recompute()

    def _recompute(self) -> None:
        moving = {site.key for site in self.progressive}
        for site in self.sites:
            is_moving = site.key in moving
            self._mask(site, self.recipe.sparsity(max(self.part, 0)) if is_moving else 0.5)

    def _prune(self) -> None:
        with torch.no_grad():
            for site in self.sites:
                self.module.parameter(site.key).mul_(self.masks[site.key])

    @property
    def is_final_form(self) -> bool:
        """Whether the masks are 2:4 now."""
        return not self.progressive or self.part == self.recipe.parts - 1

    # --- steps -----------------------------------------------------------------------------
    def train(self, progress: Progress) -> None:
        recipe = self.recipe
        remaining = range(self.step, recipe.steps)
        for _ in progress(remaining, "recovering", len(remaining)):
            self._update_masks()
            self._give_gradients(alone=self.step < self._first_steps())
            self._one_step()
            if not self.is_finite:
                break
            self.step += 1
            is_last = self.step == recipe.steps
            self.is_out_of_time = not is_last and time.monotonic() > self.ends
            if self.step % recipe.eval_every == 0 or is_last or self.is_out_of_time:
                self._evaluate_and_keep()
                self.save()
                if self._is_stuck() or self.is_out_of_time:
                    break
        self._give_gradients(alone=False)

    def plan_until(self, ends: float) -> None:
        """Plan the steps that are expected to fit before `ends` [of time.monotonic]."""
        chosen = self.samples.batch(0, self.recipe.batch, self.recipe.seed)
        begin = time.monotonic()
        self._gradients(chosen)  # the first one also loads and allocates
        middle = time.monotonic()
        self._gradients(chosen)
        after = time.monotonic()
        self.evaluate()
        each = min(middle - begin, after - middle)
        each += (time.monotonic() - after) / self.recipe.eval_every
        self.optimizer.zero_grad(set_to_none=True)
        steps = int(MARGIN * (ends - time.monotonic()) / each)
        self.recipe = replace(self.recipe, steps=min(max(steps, 1), MOST_STEPS))
        self.ends = ends

    def _first_steps(self) -> int:
        return round(FIRST * self.recipe.steps) if self.first else 0

    def _give_gradients(self, *, alone: bool) -> None:
        """To the weights that are trained first alone, or to all that are trained."""
        if not self.first:
            return
        for key, parameter in zip(self.keys, self.parameters, strict=True):
            parameter.requires_grad_(not alone or key in self.first)

    def _one_step(self) -> None:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step, self.learning_rate)
        self.optimizer.zero_grad(set_to_none=False)
        total = self._gradients(self.samples.batch(self.step, recipe.batch, recipe.seed))
        self.losses.append((self.step, total))
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip))
        # The scaler skips a step whose gradients overflow in half precision, and then halves.
        is_skipped = self.scaler.is_enabled() and not math.isfinite(norm)
        self.is_finite = math.isfinite(total) and (is_skipped or math.isfinite(norm))
        if not self.is_finite:
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._keep_scales_positive()
        if self.mean is not None:
            with torch.no_grad():
                for mean, parameter in zip(self.mean, self.parameters, strict=True):
                    mean.lerp_(parameter, 1 - recipe.ema)

    def _gradients(self, chosen: np.ndarray) -> float:
        """Of the batch's loss, in portions and shared among the processes. Returns: the loss."""
        mine = self.processes.share(chosen)
        weight = 1.0
        if not len(mine):  # each process has to take part in the average
            mine, weight = chosen[:1], 0.0
        pieces = [
            (feeds, which, self._wanted(feeds))
            for feeds, which in self.samples.feeds(mine, self.recipe.micro_batch)
        ]
        every = [self.objective.powers(wanted) for _, _, wanted in pieces]
        powers = self.processes.sums([sum(each) * weight for each in zip(*every, strict=True)])
        total = 0.0
        for place, (feeds, which, wanted) in enumerate(pieces):
            with self._averaged(place == len(pieces) - 1):
                student = self._student(feeds)
                share = weight * len(which) / len(chosen)
                loss = weight * self._loss(student, wanted, which, share, powers)
                # DistributedDataParallel takes the mean, and the loss is a sum.
                self.scaler.scale(loss * self.processes.count).backward()
            total += float(loss.detach())
        return self.processes.sums([total])[0]

    def _averaged(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged behind the last portion."""
        if is_last or self.processes.count == 1:
            return nullcontext()
        wrapped: Any = self.replica
        return wrapped.no_sync()  # type: ignore[no-any-return]

    def _loss(
        self,
        student: dict[str, Tensor],
        wanted: dict[str, Tensor],
        which: np.ndarray,
        share: float,
        powers: list[float] | None,
    ) -> Tensor:
        """This portion's part of the divergence, mixed with the labels' cross entropy where there
        are labels."""
        divergence = self.objective.value(student, wanted, share, powers)
        mixed = self.recipe.label_weight
        if self.samples.labels is None or not mixed:
            return divergence
        logits = student[self.objective.outputs[0].student]
        labels = torch.from_numpy(self.samples.labels[which]).to(logits.device)
        return (1 - mixed) * divergence + mixed * share * cross_entropy(logits, labels)

    def _student(self, feeds: Feeds) -> dict[str, Tensor]:
        """In the recipe's precision, through DistributedDataParallel where gradients are wanted."""
        module = self.replica if torch.is_grad_enabled() else self.module
        kind = self.module.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            return module(feeds, self.objective.student_names)  # type: ignore[no-any-return]

    def _wanted(self, feeds: Feeds) -> dict[str, Tensor]:
        """What the dense model gives."""
        cast = {name: value.astype(self._teacher_dtypes[name]) for name, value in feeds.items()}
        return {
            name: torch.from_numpy(np.array(value, dtype=np.float32)).to(self.module.device)
            for name, value in self._teacher.run(cast).items()
        }

    def _keep_scales_positive(self) -> None:
        with torch.no_grad():
            for key in self.scales:
                self.module.parameter(key).clamp_(min=LEAST_RATIO)

    def evaluate(self) -> float:
        """The divergence on the held-out samples with the parameters as they are."""
        total = 0.0
        with torch.no_grad():
            for place, (feeds, which) in enumerate(self.samples.held_out_feeds()):
                if place % self.processes.count != self.processes.rank:
                    continue
                value = self.objective.value(self._student(feeds), self._wanted(feeds))
                total += float(value) * len(which)
        return self.processes.sums([total])[0] / len(self.samples.held_out)

    def _evaluate_and_keep(self) -> None:
        """Evaluate what would be written now, and remember it where it is the best so far."""
        current = [p.detach().clone() for p in self.parameters]
        masks = dict(self.masks)
        if self.mean is not None:
            self._put(self.mean)
        if self.recipe.masks == "recomputed":
            self._recompute()
        value = self.evaluate()
        self.held_out.append((self.step, value))
        if self.is_final_form and value < self.best:
            self.best, self.best_step, self.best_state = value, self.step, self._state()
        self._put(current)
        self.masks = masks

    def _is_stuck(self) -> bool:
        since = max(self.best_step, self._first_final_step(), self._first_steps())
        waited = self.step - since
        return 0 < self.recipe.patience <= waited // self.recipe.eval_every

    def _first_final_step(self) -> int:
        parts = self.recipe.parts if self.progressive else 1
        return math.ceil(self.recipe.steps * (parts - 1) / parts)

    # --- state -----------------------------------------------------------------------------
    def _state(self) -> dict[str, list[Tensor]]:
        return {
            "parameters": [p.detach().clone() for p in self.parameters],
            "masks": [self.masks[site.key] for site in self.sites],
        }

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def _put_state(self, state: dict[str, list[Tensor]]) -> None:
        self._put(state["parameters"])
        self.masks = {s.key: mask for s, mask in zip(self.sites, state["masks"], strict=True)}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.checkpoint is None or not self.processes.is_first:
            return
        buffer = io.BytesIO()
        torch.save(self._held(), buffer)
        with atomic_write(self.checkpoint) as file:
            file.write(self._digest(buffer.getvalue()) + buffer.getvalue())

    def _digest(self, payload: bytes) -> bytes:
        """Of a checkpoint of this run: one that was cut, edited or renamed does not have it."""
        assert self.checkpoint is not None
        return hashlib.sha256(self.checkpoint.name.encode() + b"\0" + payload).digest()

    def _held(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "part": self.part,
            "now": self._state(),
            "best": (self.best, self.best_step, self.best_state),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.losses,
            "held_out": self.held_out,
        }

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint where rank 0 has one, and write them there from now on. One that
        is damaged or of something else is none."""
        self.checkpoint = checkpoint
        stored = None
        if self.processes.is_first:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                stored = checkpoint.read_bytes() if checkpoint.is_file() else None
        stored = self.processes.from_first(stored)
        size = hashlib.sha256().digest_size
        if stored is None or stored[:size] != self._digest(stored[size:]):
            return
        fresh = copy.deepcopy(self._held())
        try:
            payload = io.BytesIO(stored[size:])
            held = torch.load(payload, map_location=self.module.device, weights_only=True)
            if _form(held) != _form(fresh | {key: held[key] for key in _GROWING}):
                raise ValueError("it is of another training")
            self._adopt(held)
        except (*UNREADABLE, pickle.UnpicklingError):
            self._adopt(fresh)

    def _adopt(self, held: Mapping[str, Any]) -> None:
        self._put_state(held["now"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.scaler.load_state_dict(held["scaler"])
        self.step, self.part = held["step"], held["part"]
        self.best, self.best_step, self.best_state = held["best"]
        self._check_adopted()
        self.mean = held["mean"]
        self.losses = [(int(step), float(loss)) for step, loss in held["losses"]]
        self.held_out = [(int(step), float(loss)) for step, loss in held["held_out"]]

    def _check_adopted(self) -> None:
        """Raises: ValueError for what would fail later."""
        masks = zip(self.sites, self.best_state["masks"], strict=True)
        if self.best_step and not all(
            is_24_by_stride(mask.cpu().numpy(), site.stride) for site, mask in masks
        ):
            raise ValueError("its masks are not 2:4")
        for parameter, state in self.optimizer.state.items():
            for value in state.values():
                is_moment = isinstance(value, torch.Tensor) and value.dim()
                if is_moment and value.shape != parameter.shape:
                    raise ValueError("its optimizer is another one's")

    # --- ends ------------------------------------------------------------------------------
    def write_back(self, model: Model) -> int:
        """The best weights into the model. Returns: initializers that changed."""
        self._put_state(self.best_state)
        return len(self.module.write_back(model))

    def result(self, changed: int, resumed_at: int, seconds: float) -> Recovered:
        samples = self.samples
        out = Recovered(
            recipe=self.recipe,
            before=self.before,
            after=self.best,
            learning_rate=self.learning_rate,
            steps=self.step,
            best_step=self.best_step,
            samples=len(samples.train),
            held_out_samples=len(samples.held_out),
            is_divided=samples.is_divided,
            forward_error=self.forward_error,
            outputs={o.name: o.kind for o in self.objective.outputs},
            weights=[str(site.key) for site in self.sites],
            changed=changed,
            seconds=seconds,
            resumed_at=resumed_at,
            is_out_of_time=self.is_out_of_time,
            first=[str(key) for key in self.first],
            losses=self.losses,
            held_out=self.held_out,
        )
        if self.best_step == 0:
            why = "the loss became NaN or infinite" if not self.is_finite else "it never fell"
            text = f"held-out divergence {self.before:.4g}: {why} below that in {self.step} steps"
            out.diagnostics.append(diagnostic("O24-153", text))
        else:
            out.diagnostics.append(
                diagnostic(
                    "O24-154",
                    f"held-out divergence {self.before:.4g} → {self.best:.4g} in {self.best_step} "
                    f"steps, {len(self.sites)} weights stay 2:4",
                    facts={"before": self.before, "after": self.best, "step": self.best_step},
                )
            )
        return out
