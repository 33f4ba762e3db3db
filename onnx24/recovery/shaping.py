"""Operators that move, select and make values, in torch.

Indices and shapes are tensors like any other, read as integers where an operator needs them.
*Source:* the ONNX operator specification (onnx/docs/Operators.md and Changelog.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnx24.recovery._torch import functional, torch
from onnx24.recovery.node import (
    Node,
    Tensor,
    Unsupported,
    check,
    input_or_attribute,
    integers,
    operator,
)


@operator("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor = None) -> Tensor:
    sizes = input_or_attribute(node, shape, "shape") or []
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze")
def _squeeze(node: Node, x: Tensor, axes: Tensor = None) -> Tensor:
    given = input_or_attribute(node, axes, "axes")
    if given is None:
        return x.squeeze()
    gone = {axis % x.dim() for axis in given}
    return x.reshape([size for i, size in enumerate(x.shape) if i not in gone])


@operator("Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, axes: Tensor = None) -> Tensor:
    given = input_or_attribute(node, axes, "axes") or []
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(integers(node.get("perm", range(x.dim())[::-1])))


@operator("Concat")
def _concat(node: Node, *values: Tensor) -> Tensor:
    return torch.cat(values, node.get("axis", 1))


@operator("Split")
def _split(node: Node, x: Tensor, split: Tensor = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    sizes = input_or_attribute(node, split, "split")
    if sizes is None:
        parts = node.get("num_outputs", len(node.outputs))
        each = math.ceil(x.shape[axis] / parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return torch.split(x, sizes, axis)


@operator("Slice")
def _slice(node: Node, x: Tensor, *given: Tensor) -> Tensor:
    padded: list[Tensor] = [*given, None, None, None, None]
    starts, ends, axes, steps = padded[:4]
    first = input_or_attribute(node, starts, "starts") or []
    last = input_or_attribute(node, ends, "ends") or []
    along = input_or_attribute(node, axes, "axes") or list(range(len(first)))
    by = integers(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        chosen = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, chosen.start if len(chosen) else 0, len(chosen))
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


def _from_zero(indices: Tensor, size: int) -> Tensor:
    """Indices of int64, negative ones counted from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    chosen = _from_zero(indices, x.shape[axis])
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, chosen.reshape(-1)).reshape(shape)


@operator("GatherElements")
def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _from_zero(indices, x.shape[axis]))


@operator("GatherND")
def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    depth = indices.shape[-1]
    rows = math.prod(x.shape[:batch])
    flat = x.reshape(rows, *x.shape[batch:])
    where = indices.reshape(rows, -1, depth)
    at = [torch.arange(rows)[:, None]]
    at += [_from_zero(where[..., i], flat.shape[i + 1]) for i in range(depth)]
    found = flat[tuple(at)]
    return found.reshape(*indices.shape[:-1], *x.shape[batch + depth :])


@operator("ScatterND")
def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth = indices.shape[-1]
    at = tuple(_from_zero(indices[..., i], x.shape[i]) for i in range(depth))
    return x.index_put(at, updates, accumulate=node.get("reduction", b"none") == b"add")


@operator("ScatterElements")
def _scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    at = _from_zero(indices, x.shape[axis])
    if node.get("reduction", b"none") == b"add":
        return x.scatter_add(axis, at, updates)
    return x.scatter(axis, at, updates)


@check("ScatterND", "ScatterElements")
def _known_reduction(node: Node) -> str:
    reduction = node.get("reduction", b"none").decode()
    return "" if reduction in ("none", "add") else f"scatters with reduction {reduction}"


@operator("Expand")
def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@operator("Tile")
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


@operator("Pad")
def _pad(
    node: Node, x: Tensor, pads: Tensor = None, value: Tensor = None, axes: Tensor = None
) -> Tensor:
    widths = input_or_attribute(node, pads, "pads") or []
    along = [a % x.dim() for a in integers(axes)] if axes is not None else list(range(x.dim()))
    before, after = widths[: len(along)], widths[len(along) :]
    mode = node.get("mode", b"constant").decode()
    fill: Any = node.get("value", 0.0) if value is None else value.item()
    if mode == "constant":
        by_axis = dict(zip(along, zip(before, after, strict=True), strict=True))
        flat = [n for axis in reversed(range(x.dim())) for n in by_axis.get(axis, (0, 0))]
        return functional.pad(x, flat, value=fill)
    for axis, first, last in zip(along, before, after, strict=True):
        if first or last:
            places = np.pad(np.arange(x.shape[axis]), (first, last), mode=mode)  # type: ignore[call-overload]
            x = x.index_select(axis, torch.as_tensor(places, device=x.device))
    return x


@check("Pad")
def _known_padding(node: Node) -> str:
    mode = node.get("mode", b"constant").decode()
    return "" if mode in ("constant", "reflect", "edge", "wrap") else f"pads by mode {mode}"


# --- shapes as values ------------------------------------------------------------------------
@operator("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value")
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(integers(shape)).clone()


@operator("Range")
def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("OneHot")
def _one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size = integers(depth)[0]
    rank = indices.dim() + 1
    axis = node.get("axis", -1) % rank
    places = _from_zero(indices, size).unsqueeze(axis)
    count = torch.arange(size).reshape([size if i == axis else 1 for i in range(rank)])
    return torch.where(places == count, values[1], values[0])


@operator("NonZero")
def _nonzero(node: Node, x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@operator("Trilu")
def _trilu(node: Node, x: Tensor, k: Tensor = None) -> Tensor:
    diagonal = 0 if k is None else integers(k)[0]
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


# --- between channels and space --------------------------------------------------------------
@operator("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", b"DCR") == b"DCR":
        parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b**2, h // b, w // b)


# --- resizing --------------------------------------------------------------------------------
@operator("Resize", "Upsample")
def _resize(node: Node, x: Tensor, *given: Tensor) -> Tensor:
    """Axis by axis: nearest and linear are separable."""
    axes = integers(node.get("axes", range(x.dim())))
    scales, sizes = _wanted_size(node, x, axes, given)
    mode = node.get("mode", b"nearest").decode()
    for axis, scale, size in zip(axes, scales, sizes, strict=True):
        length = x.shape[axis]
        if size == length and scale == 1:
            continue
        at = _source_places(node, length, size, scale)
        if mode == "nearest":
            places = np.clip(_nearest(node, at), 0, length - 1).astype(np.int64)
            x = x.index_select(axis, torch.as_tensor(places, device=x.device))
        else:
            x = _linear(x, axis, np.clip(at, 0, length - 1))
    return x


def _wanted_size(
    node: Node, x: Tensor, axes: list[int], given: tuple[Tensor, ...]
) -> tuple[list[float], list[int]]:
    if node.op == "Upsample" or node.opset < 11:
        scales, sizes = (given[0] if given else node.get("scales")), None
    else:
        _, scales, sizes = [*given, *[None] * (3 - len(given))][:3]
    if sizes is not None and len(sizes):
        lengths = integers(sizes)
        return [n / x.shape[a] for a, n in zip(axes, lengths, strict=True)], lengths
    factors = [float(s) for s in scales]
    return factors, [math.floor(x.shape[a] * f) for a, f in zip(axes, factors, strict=True)]


def _source_places(node: Node, length: int, size: int, scale: float) -> np.ndarray:
    """Where the `size` values lie among `length`, as fractions; in float32, as ONNX Runtime has
    it: at a scale of 0.6, the third value lies at 5 then and not below."""
    out, scale = np.arange(size, dtype=np.float32), np.float32(scale)  # type: ignore[assignment]
    default = b"half_pixel" if node.op == "Resize" and node.opset >= 11 else b"asymmetric"
    how = node.get("coordinate_transformation_mode", default).decode()
    if how == "asymmetric":
        return out / scale
    if how == "align_corners":
        return out * (length - 1) / (size - 1) if size > 1 else out * 0
    if how == "pytorch_half_pixel" and size == 1:
        return out * 0
    if how == "half_pixel_symmetric":
        centre = (length / 2) * (1 - size / (scale * length))
        return centre + (out + 0.5) / scale - 0.5
    return (out + 0.5) / scale - 0.5


def _nearest(node: Node, at: np.ndarray) -> np.ndarray:
    old = node.op == "Upsample" or node.opset < 11
    how = node.get("nearest_mode", b"floor" if old else b"round_prefer_floor").decode()
    if how == "floor":
        return np.floor(at)
    if how == "ceil":
        return np.ceil(at)
    return np.floor(at + 0.5) if how == "round_prefer_ceil" else np.ceil(at - 0.5)


def _linear(x: Tensor, axis: int, at: np.ndarray) -> Tensor:
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [len(at) if i == axis else 1 for i in range(x.dim())]
    share = torch.as_tensor(at - low, device=x.device).to(x.dtype).reshape(shape)
    first = x.index_select(axis, torch.as_tensor(low, device=x.device))
    second = x.index_select(axis, torch.as_tensor(high, device=x.device))
    return first * (1 - share) + second * share


_TRANSFORMS = (
    "asymmetric",
    "align_corners",
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
)


@check("Resize", "Upsample")
def _known_resize(node: Node) -> str:
    mode = node.get("mode", b"nearest").decode()
    how = node.get("coordinate_transformation_mode", b"half_pixel").decode()
    if mode not in ("nearest", "linear", "bilinear"):
        return f"resizes by mode {mode}"
    if how not in _TRANSFORMS:
        return f"resizes by coordinate transformation {how}"
    if node.get("antialias", 0):
        return "resizes with antialiasing"
    if node.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return "resizes keeping the aspect ratio"
    return ""


@operator("Constant")
def _constant(node: Node) -> Tensor:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        value = node.get(name)
        if value is None:
            continue
        if isinstance(value, torch.Tensor):
            return value
        dtype = torch.float32 if "float" in name else torch.int64
        return torch.tensor(value, dtype=dtype)
    raise Unsupported("holds a constant that is no dense tensor of numbers")


@check("Constant")
def _known_constant(node: Node) -> str:
    odd = {"sparse_value", "value_string", "value_strings"} & set(node.attributes)
    return "holds a constant that is no dense tensor of numbers" if odd else ""
