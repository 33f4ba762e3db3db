"""Convolutions, pooling, normalization and fake quantization in torch.

*Source:* the ONNX operator specification (onnx/docs/Operators.md and Changelog.md); the gradient of
the fake quantizer is 1 inside the range and 0 outside (clipped straight-through estimation).
"""

from __future__ import annotations

import math

from onnx24.recovery._torch import functional, torch
from onnx24.recovery.fake import along, round_in_range, slowed, step_factor
from onnx24.recovery.node import Node, Tensor, Unsupported, check, integers, operator

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_T = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _spatial(node: Node, x: Tensor) -> int:
    rank = x.dim() - 2
    if rank not in _CONV:
        raise Unsupported(f"works in {rank} dimensions of space, of which 1 to 3 are implemented")
    return rank


def _strides(node: Node, rank: int) -> tuple[list[int], list[int]]:
    return integers(node.get("strides", [1] * rank)), integers(node.get("dilations", [1] * rank))


def _pads(node: Node, sizes: list[int], window: list[int], strides: list[int]) -> list[int]:
    """Begin of each axis, then end of each axis. window: extents with dilation."""
    rank = len(sizes)
    auto = node.get("auto_pad", b"NOTSET").decode()
    if auto == "VALID":
        return [0] * (2 * rank)
    if not auto.startswith("SAME"):
        return integers(node.get("pads", [0] * (2 * rank)))
    begin, end = [], []
    for size, extent, stride in zip(sizes, window, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        begin.append(less if auto == "SAME_UPPER" else more)
        end.append(more if auto == "SAME_UPPER" else less)
    return begin + end


def _padded(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    if not any(pads):
        return x
    rank = len(pads) // 2
    flat = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[axis + rank])]
    return functional.pad(x, flat, value=value)


def _extents(kernel: list[int], dilations: list[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


@operator("Conv")
def _conv(node: Node, x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
    rank = _spatial(node, x)
    strides, dilations = _strides(node, rank)
    window = _extents(list(w.shape[2:]), dilations)
    pads = _pads(node, list(x.shape[2:]), window, strides)
    if pads[:rank] == pads[rank:]:
        inner = pads[:rank]
    else:
        x, inner = _padded(x, pads), [0] * rank
    return _CONV[rank](x, w, b, strides, inner, dilations, node.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
    """Everything that the inputs reach, then cut or extended to the size that is asked for."""
    rank = _spatial(node, x)
    strides, dilations = _strides(node, rank)
    extra = integers(node.get("output_padding", [0] * rank))
    window = _extents(list(w.shape[2:]), dilations)
    group = node.get("group", 1)
    whole = _CONV_T[rank](x, w, None, strides, 0, 0, group, dilations)
    pads = integers(node.get("pads", [0] * (2 * rank)))
    auto = node.get("auto_pad", b"NOTSET").decode()
    wanted = node.get("output_shape")
    if wanted is not None or auto.startswith("SAME"):
        sizes = (
            integers(wanted)[-rank:]
            if wanted is not None
            else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        )
        for i in range(rank):
            total = strides[i] * (x.shape[2 + i] - 1) + extra[i] + window[i] - sizes[i]
            half = total // 2
            first = total - half if auto == "SAME_LOWER" or auto == "NOTSET" else half
            # The standard gives the odd element to the end for SAME_UPPER only.
            pads[i], pads[rank + i] = first, total - first
    cut = [-pads[i] for i in range(rank)] + [extra[i] - pads[rank + i] for i in range(rank)]
    result = _padded(whole, cut)
    return result if b is None else result + b.reshape(-1, *[1] * rank)


# --- pooling ---------------------------------------------------------------------------------
def _pool_pads(
    node: Node, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Pads, and how much more the end needs so that the last window of ceil_mode is whole."""
    rank = len(kernel)
    window = _extents(kernel, dilations)
    pads = _pads(node, list(x.shape[2:]), window, strides)
    more = [0] * rank
    for i in range(rank if node.get("ceil_mode", 0) else 0):
        size = x.shape[2 + i]
        full = size + pads[i] + pads[rank + i]
        count = math.ceil((full - window[i]) / strides[i]) + 1
        if (count - 1) * strides[i] >= size + pads[i]:
            count -= 1  # a window that starts in the padding behind the end is no window
        more[i] = max((count - 1) * strides[i] + window[i] - full, 0)
    return pads, more


@operator("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    rank = _spatial(node, x)
    kernel = integers(node.get("kernel_shape"))
    strides, dilations = _strides(node, rank)
    pads, more = _pool_pads(node, x, kernel, strides, dilations)
    ends = [pads[rank + i] + more[i] for i in range(rank)]
    if not x.is_floating_point():  # torch pools floats; integers up to 2**53 are exact there
        lowest = float(torch.iinfo(x.dtype).min)
        wide = _padded(x.to(torch.float64), pads[:rank] + ends, lowest)
        return _MAX_POOL[rank](wide, kernel, strides, 0, dilations).to(x.dtype)
    x = _padded(x, pads[:rank] + ends, -math.inf)
    return _MAX_POOL[rank](x, kernel, strides, 0, dilations)


@operator("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    """Sums over sums of ones, so that what counts as padding is said once."""
    rank = _spatial(node, x)
    kernel = integers(node.get("kernel_shape"))
    strides, _ = _strides(node, rank)
    pads, more = _pool_pads(node, x, kernel, strides, [1] * rank)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    counted = _padded(ones, pads, 1.0 if node.get("count_include_pad", 0) else 0.0)
    behind = [0] * rank + more
    total = _AVERAGE[rank](_padded(_padded(x, pads), behind), kernel, strides)
    return total / _AVERAGE[rank](_padded(counted, behind), kernel, strides)


@check("AveragePool")
def _no_dilation(node: Node) -> str:
    dilated = any(d != 1 for d in node.get("dilations", []))
    return "averages over a dilated window" if dilated else ""


@check("MaxPool", "BatchNormalization", "LayerNormalization")
def _first_output_only(node: Node) -> str:
    return "gives more outputs than the first" if any(node.wanted[1:]) else ""


@operator("GlobalAveragePool")
def _global_average(node: Node, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), True)


@operator("GlobalMaxPool")
def _global_max(node: Node, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), True)


# --- normalization ---------------------------------------------------------------------------
@operator("BatchNormalization")
def _batch_norm(node: Node, x: Tensor, *given: Tensor) -> Tensor:
    scale, bias, mean, var = given
    shape = [1, -1, *[1] * (x.dim() - 2)]
    factor = scale / torch.sqrt(var + node.get("epsilon", 1e-5))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


@check("BatchNormalization")
def _inference_only(node: Node) -> str:
    if node.get("training_mode", 0):
        return "normalizes in training mode"
    return _first_output_only(node)


@operator("LayerNormalization")
def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor = None) -> Tensor:
    axis = node.get("axis", -1) % x.dim()
    normal = functional.layer_norm(x, x.shape[axis:], None, None, node.get("epsilon", 1e-5))
    normal = normal * scale
    return normal if bias is None else normal + bias


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(node.get("axis", -1) % x.dim(), x.dim()))
    power = x.square().mean(axes, True)
    return x * torch.rsqrt(power + node.get("epsilon", 1e-5)) * scale


@operator("InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = list(range(2, x.dim()))
    shape = [1, -1, *[1] * len(axes)]
    centred = x - x.mean(axes, True)
    factor = torch.rsqrt(centred.square().mean(axes, True) + node.get("epsilon", 1e-5))
    return centred * factor * scale.reshape(shape) + bias.reshape(shape)


@operator("GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    normal = functional.group_norm(x, groups, None, None, node.get("epsilon", 1e-5))
    if node.opset < 21:  # one scale a group then, one a channel since
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    shape = [1, -1, *[1] * (x.dim() - 2)]
    return normal * scale.reshape(shape) + bias.reshape(shape)


@operator("MeanVarianceNormalization")
def _mean_variance_norm(node: Node, x: Tensor) -> Tensor:
    axes = integers(node.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, True)
    return centred / (torch.sqrt(centred.square().mean(axes, True)) + 1e-9)


@operator("LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    axis, p = node.get("axis", -1), node.get("p", 2)
    return x / x.norm(p, axis, True)


@operator("LRN")
def _lrn(node: Node, x: Tensor) -> Tensor:
    size = node.get("size")
    squares = _padded(
        x.square().transpose(1, -1),
        [0] * (x.dim() - 3) + [(size - 1) // 2] + [0] * (x.dim() - 3) + [size // 2],
    )
    total = squares.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    alpha, beta, bias = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    return x / (bias + alpha / size * total) ** beta


# --- quantization ----------------------------------------------------------------------------
def _along(parameter: Tensor, node: Node, x: Tensor) -> Tensor:
    """A scale or zero point, shaped to meet the values: per tensor, axis or block."""
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    if block and parameter.numel() > 1:
        axis %= x.dim()
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return along(parameter, axis, x.dim())


_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}


def _limits(node: Node, zero_point: Tensor) -> tuple[int, int]:
    dtype = torch.uint8 if zero_point is None else zero_point.dtype
    if zero_point is None and node.get("output_dtype", 0) == 3:
        dtype = torch.int8
    if dtype not in _RANGES:
        raise Unsupported(f"quantizes to {str(dtype).removeprefix('torch.')}")
    return _RANGES[dtype]


def _learnt(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The scale, with LSQ's smaller gradient where it wants one."""
    if not scale.requires_grad:
        return scale
    samples = 1 if node.is_weight or not x.dim() else max(x.shape[0], 1)
    _, high = _RANGES.get(getattr(zero_point, "dtype", torch.uint8), (-128, 127))
    return slowed(scale, step_factor(x.numel() // (samples * scale.numel()), high))


@operator("QuantizeLinear")
def _quantize(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor = None) -> Tensor:
    """Quantized values, kept as floats where DequantizeLinear alone reads them: the pair is then
    one fake quantizer, with a gradient."""
    low, high = _limits(node, zero_point)
    offset = 0.0 if zero_point is None else _along(zero_point.to(x.dtype), node, x)
    y = x / _along(_learnt(node, x, scale, zero_point), node, x)
    # Rounded before the zero point is added: ties go to even numbers of the quotient.
    quantized = round_in_range(round_in_range(y) + offset, low, high)
    if not node.integer_output:
        return quantized
    dtype = torch.uint8 if zero_point is None else zero_point.dtype
    return quantized.detach().to(torch.int8 if low == -128 else dtype)


@operator("DequantizeLinear")
def _dequantize(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor = None) -> Tensor:
    values = x.to(scale.dtype)
    if zero_point is not None:
        values = values - _along(zero_point.to(scale.dtype), node, x)
    return values * _along(_learnt(node, x, scale, zero_point), node, x)
