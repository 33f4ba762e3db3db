"""2:4 masks on the weights of a torch module, and an optimizer that keeps them.

A group is four input channels of one output channel, and of one tap of a convolution's kernel: the
axis that TensorRT reads 2:4 along. *Source:* see onnx24.analysis.eligibility.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from onnx24.analysis.selection import Selection
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import InputError
from onnx24.recovery._torch import torch
from onnx24.recovery.masks import mask_of
from onnx24.recovery.node import Tensor
from onnx24.recovery.recipes import Schedule, grown_sparsity, hold_to, one_of, part_at
from onnx24.sparsity.masks import is_24_by_stride
from onnx24.targets import DEFAULT, load

__all__ = ["Progressive", "Sparsity", "keep_masks", "sparsify"]

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, kw_only=True)
class Progressive:
    """Masks that grow while training: the optimizer's `steps` in `parts` parts, one of four zero
    in the first and two of four in the last, chosen by magnitude anew at the start of each.

    Raises: InputError O24-043 for numbers below 1 and another schedule.
    """

    steps: int
    parts: int = 2
    schedule: Schedule = "linear"

    def __post_init__(self) -> None:
        limits = {
            "steps": (self.steps >= 1, "1 or more"),
            "parts": (self.parts >= 1, "1 or more"),
            "schedule": one_of(self.schedule, get_args(Schedule)),
        }
        hold_to(limits, self)

    def sparsity(self, step: int) -> float:
        return grown_sparsity(part_at(step, self.steps, self.parts), self.parts, self.schedule)


@dataclass(frozen=True)
class _Weight:
    """names: all that the parameter has, the first is its key. stride: distance [elements] of a
    group's values."""

    names: tuple[str, ...]
    stride: int


class Sparsity:
    """The masks of one model. `masks`: name → bool tensor of the parameter's shape, True for what
    stays. `left_out`: a diagnostic for each weight that is none of them. `str()` tells both.

    `step` counts the optimizer's steps. `state_dict()` belongs into a checkpoint.
    """

    def __init__(
        self,
        model: Any,
        weights: Sequence[_Weight],
        left_out: Sequence[Diagnostic],
        schedule: Progressive | None,
    ) -> None:
        self.model = model
        self.left_out = list(left_out)
        self.schedule = schedule
        self.step = 0
        self._is_counted = False
        """Whether an optimizer counts its steps here: the first that `keep_masks` was given."""
        self.masks: dict[str, Tensor] = {}
        self._placed: dict[str, Tensor] = {}
        """The masks where the weights are: on their device, of this process's rows."""
        self.sparsity = 0.5 if schedule is None else schedule.sparsity(0)
        self._weights = {weight.names[0]: weight for weight in weights}

    def __str__(self) -> str:
        lines = [f"{len(self.masks)} weights under masks, {100 * self.sparsity:.4g} % of each zero"]
        lines += [f"  {name} {list(mask.shape)}" for name, mask in self.masks.items()]
        lines.append(f"{len(self.left_out)} left dense")
        lines += [f"  {d.where.tensor}: {d.code} {d.message}" for d in self.left_out]
        return "\n".join(lines)

    @property
    def is_final(self) -> bool:
        """Whether the masks are 2:4 now."""
        return self.sparsity == 0.5

    def parameters(self) -> Iterator[tuple[Any, Tensor, str]]:
        """(parameter, mask, name). Looked up anew: `fully_shard` puts others in their place."""
        for name in self._weights:
            parameter = self.model.get_parameter(name)
            local = _local(parameter.detach())
            mask = self._placed.get(name)
            if mask is None or mask.shape != local.shape or mask.device != local.device:
                mask = self._placed[name] = _mask_like(self.masks[name], parameter, name)
            yield parameter, mask, name

    def choose(self, sparsity: float = 0.5) -> None:
        """Masks by magnitude, and the rest becomes zero. Of a sharded weight each process chooses
        in its own rows."""
        self.sparsity = sparsity
        self._placed.clear()
        for name, weight in self._weights.items():
            local = _local(self.model.get_parameter(name).detach())
            mask = mask_of(local.float().cpu().numpy(), weight.stride, sparsity)
            self.masks[name] = torch.from_numpy(mask).to(local.device)
        self.apply()

    def apply(self) -> None:
        """Zero what the masks prune."""
        for parameter, mask, _ in self.parameters():
            _local(parameter.detach()).masked_fill_(~mask, 0)

    def advance(self) -> None:
        """After a step of the optimizer: the masks of the schedule's next part, where it begins."""
        self.step += 1
        if self.schedule is None:
            return
        wanted = self.schedule.sparsity(self.step)
        if wanted != self.sparsity:
            self.choose(wanted)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "sparsity": self.sparsity, "masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: InputError O24-156 where the masks are another model's."""
        theirs = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        ours = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        if theirs != ours:
            raise InputError.of("O24-156", f"masks of {sorted(theirs)}, expected {sorted(ours)}")
        self.step, self.sparsity = int(state["step"]), float(state["sparsity"])
        self.masks = {n: m.to(self.masks[n].device).clone() for n, m in state["masks"].items()}
        self._placed.clear()
        self.apply()


def sparsify(
    model: Any,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    masks: Mapping[str, Tensor] | None = None,
    schedule: Progressive | None = None,
    target: str = DEFAULT,
) -> Sparsity:
    """Zero two of each four input channels in the weights of Linear, Conv1d to Conv3d and
    MultiheadAttention, in place.

    include, exclude: shell patterns of parameter names (`encoder.*`). masks: those to take, by
    parameter name, instead of magnitude's (those of `onnx24.sparsity.solve`, say); weights that
    they leave out stay dense. schedule: begin with one of four. A model that comes from a
    checkpoint and is 2:4 already keeps its zeros. Tied weights share one mask, and stay dense
    where something else reads them (an embedding).
    Returns: the masks, and why what is left out is left out.
    Raises: InputError O24-023 for a pattern without match, O24-151 where nothing is eligible,
    O24-610 for a mask that is not 2:4.
    """
    selection = Selection(tuple(include), tuple(exclude))
    multiple = load(target).sparse_k_multiple
    weights, left_out = [], []
    every = list(_named_weights(model))
    selection.check("sparsify", [name for names, *_ in every for name in names], "weight")
    for names, parameter, stride, refusal in every:
        found = refusal or _refused(names, parameter, selection, multiple, masks)
        if found is not None:
            left_out.append(diagnostic(found[0], found[1], tensor=names[0]))
        else:
            weights.append(_Weight(names, stride))
    if not weights:
        raise InputError(
            [diagnostic("O24-151", "no weight of the module is eligible for 2:4"), *left_out]
        )
    out = Sparsity(model, weights, left_out, schedule)
    if masks is None:
        out.choose(out.sparsity)
        return out
    for weight in weights:
        name = next(name for name in weight.names if name in masks)
        out.masks[weight.names[0]] = _checked(masks[name], model.get_parameter(name), name, weight)
    unknown = sorted(set(masks) - {name for weight in weights for name in weight.names})
    if unknown:
        raise InputError.of("O24-156", f"masks for {', '.join(unknown)}: no eligible weight")
    out.apply()
    return out


def keep_masks(optimizer: Any, sparsity: Sparsity) -> Any:
    """The optimizer, whose every step leaves masked weights and their state exactly zero.

    It stays what it was, with two hooks: gradients of masked weights are zeroed before a step, and
    weights and state (momenta, second moments) after it. So param groups, `state_dict`, learning
    rate schedulers and GradScaler, whose skipped steps are none, work as before; a `schedule` of
    `sparsify` counts the steps of the optimizer that was given first.
    Raises: InputError O24-043 where the optimizer has none of the masked weights.
    """
    counts = not sparsity._is_counted
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(parameter) in owned for parameter, _, _ in sparsity.parameters()):
        raise InputError.of(
            "O24-043",
            "the optimizer holds none of the masked weights",
            hint="make it after the model is wrapped, moved or sharded",
        )

    def before(*_: Any) -> None:
        with torch.no_grad():
            for parameter, mask, _name in sparsity.parameters():
                if parameter.grad is not None:
                    _local(parameter.grad).masked_fill_(~mask, 0)

    def after(stepped: Any, *_: Any) -> None:
        with torch.no_grad():
            if counts:
                sparsity.advance()
            for parameter, mask, _name in sparsity.parameters():
                _local(parameter.detach()).masked_fill_(~mask, 0)
                _clear_state(stepped.state.get(parameter, {}), parameter, mask)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    sparsity._is_counted = True
    return optimizer


def _clear_state(state: Mapping[str, Any], parameter: Any, mask: Tensor) -> None:
    for value in state.values():
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            _local(value).masked_fill_(~mask, 0)


# --- which weights -----------------------------------------------------------------------------
_Refusal = tuple[str, str]
"""(code, reason)"""


def _named_weights(model: Any) -> Iterator[tuple[tuple[str, ...], Any, int, _Refusal | None]]:
    """(names, parameter, stride, refusal by form) of each matrix and kernel, tied ones once."""
    readers: dict[int, list[tuple[str, Any, int, _Refusal | None]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2:
                continue
            stride, refusal = _form(module, name)
            full = f"{path}.{name}" if path else name
            readers.setdefault(id(parameter), []).append((full, parameter, stride, refusal))
    for every in readers.values():
        names = tuple(full for full, *_ in every)
        refusals = [refusal for *_, refusal in every if refusal is not None]
        refusal = refusals[0] if refusals else None
        if refusals and len(refusals) < len(every):
            others = [full for full, _, _, why in every if why is not None]
            refusal = ("O24-116", f"also read as {', '.join(others)}")
        elif len({stride for _, _, stride, _ in every}) > 1:
            refusal = ("O24-115", f"{', '.join(names)} reduce along different axes")
        yield names, every[0][1], every[0][2], refusal


def _form(module: Any, name: str) -> tuple[int, _Refusal | None]:
    """(stride, refusal) of one parameter by the module that holds it."""
    kind = type(module).__name__
    if isinstance(module, torch.nn.MultiheadAttention) and name in _ATTENTION:
        return 1, None
    if isinstance(module, torch.nn.Linear) and name == "weight":
        return 1, None
    if isinstance(module, _CONVOLUTIONS) and name == "weight":
        if module.groups > 1:
            depthwise = module.groups == module.in_channels
            form = ("O24-112", "depthwise") if depthwise else ("O24-111", f"{module.groups} groups")
            return 1, form
        return int(np.prod(module.kernel_size)), None
    if isinstance(module, _TRANSPOSED):
        return 1, ("O24-122", kind)
    if isinstance(module, torch.nn.RNNBase):
        return 1, ("O24-119", kind)
    return 1, ("O24-110", f"a parameter of {kind}")


def _refused(
    names: tuple[str, ...],
    parameter: Any,
    selection: Selection,
    multiple: int,
    masks: Mapping[str, Tensor] | None,
) -> _Refusal | None:
    reason = selection.objection(names)
    if reason is not None:
        return "O24-120", reason
    if masks is not None and not any(name in masks for name in names):
        return "O24-120", "no mask is given for it"
    channels = parameter.shape[1]
    if channels % multiple:
        return "O24-113", f"{channels} input channels are no multiple of {multiple}"
    return None


def _checked(mask: Tensor, parameter: Any, name: str, weight: _Weight) -> Tensor:
    if mask.shape != parameter.shape:
        raise InputError.of(
            "O24-156", f"a mask of {list(mask.shape)} for {list(parameter.shape)}", tensor=name
        )
    found = mask.detach().to(device=parameter.device, dtype=torch.bool)
    if not is_24_by_stride(found.cpu().numpy().astype(np.float32), weight.stride):
        raise InputError.of("O24-610", "the mask keeps more than two of four", tensor=name)
    return found


# --- shards ------------------------------------------------------------------------------------
def _local(value: Any) -> Tensor:
    """This process's rows of a sharded tensor (DTensor); else the tensor."""
    return value.to_local() if hasattr(value, "to_local") else value


def _mask_like(mask: Tensor, parameter: Any, name: str) -> Tensor:
    """The mask of this process's rows, where `fully_shard` divided the weight after `sparsify`."""
    local = _local(parameter.detach())
    if mask.shape == local.shape:
        return mask.to(local.device)
    from torch.distributed.tensor import distribute_tensor

    if any(place.is_shard() and place.dim != 0 for place in parameter.placements):
        raise InputError.of("O24-156", "sharded along another axis than the first", tensor=name)
    placed = distribute_tensor(mask.to(local.device), parameter.device_mesh, parameter.placements)
    return placed.to_local()
