"""INT8 fake quantizers in the layers of a torch module.

A layer of a subclass computes on round(x / s)·s for its input (one scale, of rank 0) and its weight
(one scale an output channel), and keeps its names and parameters. In a file each is a pair of
QuantizeLinear and DequantizeLinear with zero points of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx24.analysis.selection import Selection
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import InputError
from onnx24.quant.calibrators import Percentile
from onnx24.quant.scales import INT8_MAX
from onnx24.recovery._torch import functional, torch
from onnx24.recovery.fake import (
    INT8,
    LEAST_RATIO,
    along,
    fake_quantize,
    least_scale,
    slowed,
    step_factor,
)
from onnx24.recovery.node import Tensor
from onnx24.torch.eval_mode import evaluating

__all__ = ["FakeQuantizer", "Quantized", "quantize"]


class _Pair(torch.autograd.Function):
    """QuantizeLinear and DequantizeLinear, in a graph that is exported."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, axis: Any) -> Tensor:  # type: ignore[override]
        return fake_quantize(x, along(scale, axis or 0, x.dim()), *INT8)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any, axis: Any) -> Any:
        more = {} if axis is None else {"axis_i": axis}
        quantized = g.op("QuantizeLinear", x, scale, zero_point, **more)
        return g.op("DequantizeLinear", quantized, scale, zero_point, **more).setType(x.type())


def _symbols(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """The same for torch's newer exporter, which traces by fake tensors."""
    node = torch.onnx.ops.symbolic
    more: dict[str, Any] = {} if axis is None else {"axis": axis}
    given = (x, scale, zero_point)
    q = node("QuantizeLinear", given, more, dtype=torch.int8, shape=x.shape, version=17)
    given = (q, scale, zero_point)
    return node("DequantizeLinear", given, more, dtype=x.dtype, shape=x.shape, version=17)


class FakeQuantizer(torch.nn.Module):  # type: ignore[misc,name-defined]
    """axis: None for one scale of rank 0 (activations), 0 for one an output channel (weights).

    `scale` follows the weight's largest magnitudes where `follows`, so that no weight is clipped.
    Where it is learned, it is multiplied by the parameter `ratio`, which starts at 1 and stays
    positive: optimizers that take steps of the learning rate's size, as Adam, then move a scale in
    proportion to itself, however small it is."""

    scale: Tensor
    ratio: Tensor
    exporter: str = ""
    """Which of torch's exporters is tracing, "" for none."""

    def __init__(self, scale: Tensor, axis: int | None, *, learned: bool, follows: bool) -> None:
        super().__init__()
        self.axis, self.follows, self.learned = axis, follows and not learned, learned
        self.register_buffer("scale", scale)
        zero_point = torch.zeros(scale.shape, dtype=torch.int8, device=scale.device)
        self.register_buffer("zero_point", zero_point)
        if learned:
            self.ratio = torch.nn.Parameter(torch.ones_like(scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.exporter == "dynamo":
            return _symbols(x, self.scale, self.zero_point, self.axis)
        if self.exporter == "torchscript":
            return _Pair.apply(x, self.scale, self.zero_point, self.axis)
        if self.follows:
            with torch.no_grad():
                self.scale.copy_(weight_scale(x))
        scale = self._learned_scale(x) if self.learned else self.scale
        return fake_quantize(x, along(scale, self.axis or 0, x.dim()).to(x.dtype), *INT8)

    def _learned_scale(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.ratio.clamp_(min=LEAST_RATIO)
        elements = x.numel() // max(x.shape[0], 1)  # of one sample, or of one output channel
        return slowed(self.scale * self.ratio, step_factor(elements, INT8_MAX))

    def settle(self, x: Tensor | None) -> None:
        """`scale` as the next call would have it, for an export. x: the weight, of a weight's."""
        with torch.no_grad():
            if self.follows and x is not None:
                self.scale.copy_(weight_scale(x))
            if self.learned:
                self.scale.mul_(self.ratio.clamp_(min=LEAST_RATIO))
                self.ratio.fill_(1.0)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, learned={self.learned}"


def weight_scale(weight: Tensor) -> Tensor:
    """[out], float32: of each output channel, its largest magnitude / 127; 1 where all is 0."""
    amax = weight.detach().float().abs().flatten(1).amax(1)
    scale = (amax / INT8_MAX).clamp_min(least_scale(torch.float32))
    return torch.where(amax == 0, torch.ones_like(scale), scale)


class _Quantized:
    """What a quantized layer has in addition to its class."""

    input_quantizer: FakeQuantizer
    weight_quantizer: FakeQuantizer

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.input_quantizer(x), self.weight_quantizer(self.weight)  # type: ignore[attr-defined]


class QuantizedLinear(_Quantized, torch.nn.Linear):  # type: ignore[misc,name-defined]
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(*self.operands(x), self.bias)


class QuantizedConv1d(_Quantized, torch.nn.Conv1d):  # type: ignore[misc,name-defined]
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*self.operands(x), self.bias)


class QuantizedConv2d(_Quantized, torch.nn.Conv2d):  # type: ignore[misc,name-defined]
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*self.operands(x), self.bias)


class QuantizedConv3d(_Quantized, torch.nn.Conv3d):  # type: ignore[misc,name-defined]
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*self.operands(x), self.bias)


_CLASSES: dict[type, type] = {
    torch.nn.Linear: QuantizedLinear,
    torch.nn.Conv1d: QuantizedConv1d,
    torch.nn.Conv2d: QuantizedConv2d,
    torch.nn.Conv3d: QuantizedConv3d,
}


@dataclass
class Quantized:
    """`layers`: module name → layer. `left_out`: why others stay in float. `ranges`: module name
    → the magnitude of its input that becomes 127. `scales()`: the learned ones, for an optimizer
    that exists already: `optimizer.add_param_group({"params": quantized.scales()})`."""

    layers: dict[str, Any]
    ranges: dict[str, float]
    left_out: list[Diagnostic] = field(default_factory=list)

    def scales(self) -> list[Any]:
        found = [
            q.ratio
            for layer in self.layers.values()
            for q in (layer.input_quantizer, layer.weight_quantizer)
            if q.learned
        ]
        return list({id(ratio): ratio for ratio in found}.values())

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers in INT8"]
        lines += [f"  {name}: input ±{self.ranges[name]:.4g}" for name in self.layers]
        lines.append(f"{len(self.left_out)} left in float")
        lines += [f"  {d.where.node}: {d.code} {d.message}" for d in self.left_out]
        return "\n".join(lines)


def quantize(
    model: Any,
    calibration: Iterable[Any] | Callable[[Any], Any],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    percentile: float = 99.99,
    learned: bool = False,
) -> Quantized:
    """Put fake quantizers before the inputs and weights of Linear and Conv1d to Conv3d, in place.

    calibration: batches, each what the model is called with (a tensor, a tuple of arguments, or a
    dict of them by name), or a function that runs the model itself. An input's range is the
    magnitude that `percentile` % of its non-zero values do not exceed; gradients of what lies
    outside are 0. learned: scales are parameters and get LSQ's gradient; call `quantize` before
    the optimizer is made, or give it `scales()`. include, exclude: shell patterns of module names.
    Layers that the calibration never runs, or runs in another way than by calling them (the output
    projection of MultiheadAttention), stay in float, as do all other modules.
    Raises: InputError O24-023 for a pattern without match, O24-222 where nothing was quantized.
    """
    selection = Selection(tuple(include), tuple(exclude))
    layers, left_out = {}, []
    every = {n: m for n, m in model.named_modules() if isinstance(m, tuple(_CLASSES))}
    selection.check("quantize", list(every), "layer")
    for name, module in every.items():
        refusal = _refused(name, module, selection)
        if refusal is None:
            layers[name] = module
        else:
            left_out.append(diagnostic(*refusal, node=name, op=type(module).__name__))
    ranges = _calibrated(model, layers, calibration, percentile)
    done: dict[str, Any] = {}
    for name, module in layers.items():
        amax = ranges.get(name)
        if not amax:
            code, why = (
                ("O24-219", "the calibration never calls it")
                if amax is None
                else ("O24-215", "its input is always 0")
            )
            left_out.append(diagnostic(code, why, node=name, op=type(module).__name__))
            continue
        _insert(module, amax, learned)
        done[name] = module
    if not done:
        raise InputError([diagnostic("O24-222", "no layer of the module"), *left_out])
    return Quantized(done, {name: ranges[name] for name in done}, left_out)


def _refused(name: str, module: Any, selection: Selection) -> tuple[str, str] | None:
    reason = selection.objection([name])
    if reason is not None:
        return "O24-218", reason
    if isinstance(module, _Quantized):
        return "O24-214", "it has fake quantizers"
    if type(module) not in _CLASSES:
        return "O24-213", f"{type(module).__name__} may compute something else than its base class"
    if not isinstance(module._parameters.get("weight"), torch.nn.Parameter):
        return "O24-213", "its weight is computed (a parametrization)"
    return None


def _insert(module: Any, amax: float, learned: bool) -> None:
    device = module.weight.device
    step = max(amax / INT8_MAX, least_scale(torch.float32))
    scale = torch.tensor(step, dtype=torch.float32, device=device)
    module.input_quantizer = FakeQuantizer(scale, None, learned=learned, follows=False)
    module.weight_quantizer = FakeQuantizer(
        weight_scale(module.weight), 0, learned=learned, follows=True
    )
    module.__class__ = _CLASSES[type(module)]


def _calibrated(
    model: Any,
    layers: Mapping[str, Any],
    calibration: Iterable[Any] | Callable[[Any], Any],
    percentile: float,
) -> dict[str, float]:
    """Module name → range of its input, of those that were called."""
    observers = {name: Percentile(percentile) for name in layers}

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def observe(_module: Any, given: tuple[Any, ...]) -> None:
            observers[name].observe(np.asarray(given[0].detach().float().cpu().numpy()))

        return observe

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        with evaluating(model):
            if callable(calibration):
                calibration(model)
            else:
                for batch in calibration:
                    call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen.amax for name, seen in observers.items() if seen.values}


def call(model: Any, batch: Any) -> Any:
    """model(batch), whatever form the arguments have."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)
