"""How a product reads its activation as rows and its weight as matrices.

Whatever the operator, its rank and the side on which the weight stands: a product is, for each
matrix of a batch, rows `[n, K]` times `W [R, K]` transposed, with K ordered so that each four
consecutive columns are one 2:4 group. For a convolution a row is one output position's patch, K is
ordered (kernel positions, input channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx24.analysis.weight_uses import WeightUse, consumer_view, stored_values
from onnx24.errors import InputError
from onnx24.ir import ops

__all__ = ["Site", "site_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """One product with a constant weight.

    data: the activation's name in the main graph. form: what decides how rows are read, equal for
    sites that can share statistics. batch: matrices of a batched weight.
    """

    use: WeightUse
    data: str
    form: tuple[Any, ...]
    batch: int = 1

    @property
    def name(self) -> str:
        return self.use.node

    @property
    def scale(self) -> float:
        """What the product is multiplied with (Gemm's alpha)."""
        return float(_attribute(self.use, "alpha", 1.0)) if self.use.op == "Gemm" else 1.0

    @property
    def columns(self) -> int:
        """Of the weight's matrices and of the rows."""
        return self.use.K * (self.use.spatial if self.use.op == "Conv" else 1)

    def matrices(self, stored: np.ndarray) -> np.ndarray:
        """[batch, R, K] float32, from the stored tensor."""
        return _to_matrices(self, np.asarray(consumer_view(stored, self.use), np.float32))

    def stored(self, matrices: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """The stored tensor that gives `matrices`, in the dtype and shape of `stored`."""
        shape = consumer_view(stored, self.use).shape
        return stored_values(_from_matrices(self, matrices, shape), self.use, stored)

    def rows(self, x: np.ndarray, limit: int, offset: int = 0) -> np.ndarray:
        """[batch, n, K] float32: at most about `limit` rows, spread evenly over the activation;
        `offset` varies which. The same arguments take the same rows of another activation.

        Raises: InputError O24-016 for an activation that the product can't take.
        """
        try:
            rows = _rows(self, x, limit, offset)
        except (ValueError, IndexError) as err:
            raise self._misfit(x) from err
        if rows.shape[-1] != self.columns:
            raise self._misfit(x)
        return rows

    def _misfit(self, x: np.ndarray) -> InputError:
        """A model that contradicts itself, or samples stacked along another axis than its batch:
        runtimes find out when they run the node, which need not have happened yet."""
        message = (
            f"{self.data!r} of shape {list(x.shape)} does not fit a weight of K = {self.use.K}"
        )
        return InputError.of("O24-016", message, node=self.name, op=self.use.op)

    def output_rows(self, y: np.ndarray, x_shape: tuple[int, ...], limit: int, offset: int = 0):
        """[n, R] float32: the values of an array shaped like the product's output that stand
        where `rows` of an activation of `x_shape` lead to; None where that is not known."""
        return _output_rows(self, y, x_shape, limit, offset)


def site_of(use: WeightUse) -> Site | None:
    """None for a product whose activation can't be read as rows here."""
    if use.kind != "product" or not use.data or use.consumer is None:
        return None
    if use.op == "Conv":
        return Site(use=use, data=use.data, form=_conv_form(use))
    if use.op == "Gemm":
        transposed = bool(_attribute(use, "transA" if use.input else "transB", 0))
        # The activation is [n, K] as operand A and [K, n] as operand B, each before transposing.
        columns_first = transposed if use.input else not transposed
        return Site(use=use, data=use.data, form=("matmul", columns_first, ()))
    if use.op == "MatMul":
        shape = _consumer_shape(use)
        batch = tuple(shape[:-2]) if len(shape) > 2 else ()
        form = ("matmul", use.input == 0, batch if math.prod(batch) > 1 else ())
        return Site(use=use, data=use.data, form=form, batch=math.prod(batch))
    if use.op == "Einsum":
        return _einsum_site(use)
    return None


def _attribute(use: WeightUse, name: str, default: Any) -> Any:
    assert use.consumer is not None
    return ops.attribute(use.consumer, name, default)


def _consumer_shape(use: WeightUse) -> tuple[int, ...]:
    return use.shape


# --- weights -----------------------------------------------------------------------------------
def _to_matrices(site: Site, w: np.ndarray) -> np.ndarray:
    use = site.use
    if use.op == "Conv":
        spatial = range(2, w.ndim)
        return w.transpose((0, *spatial, 1)).reshape(1, w.shape[0], -1)
    if use.op == "Gemm":
        return (w if use.k_axis_consumer == 1 else w.T)[None]
    if use.op == "MatMul":
        if w.ndim == 1:
            return w.reshape(1, 1, -1)
        w = w.swapaxes(-1, -2) if use.input else w
        return w.reshape(-1, *w.shape[-2:])
    mine, _ = site.form[1:3]
    batch, free, k = _roles(site)
    order = [mine.index(c) for c in (*batch, *free, k)]
    return w.transpose(order).reshape(site.batch, -1, w.shape[mine.index(k)])


def _from_matrices(site: Site, m: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    use = site.use
    if use.op == "Conv":
        values = m.reshape(shape[0], *shape[2:], shape[1])
        return np.moveaxis(values, -1, 1)
    if use.op == "Gemm":
        return m[0] if use.k_axis_consumer == 1 else m[0].T
    if use.op == "MatMul":
        if len(shape) == 1:
            return m.reshape(shape)
        if use.input == 0:
            return m.reshape(shape)
        return m.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)
    mine, _ = site.form[1:3]
    batch, free, k = _roles(site)
    order = [mine.index(c) for c in (*batch, *free, k)]
    return m.reshape([shape[i] for i in order]).transpose(np.argsort(order))


# --- activations -------------------------------------------------------------------------------
def _rows(site: Site, x: np.ndarray, limit: int, offset: int) -> np.ndarray:
    kind = site.form[0]
    if kind == "conv":
        return _patches(site.form, x, limit, offset)[None]
    if kind == "einsum":
        rows = _einsum_rows(site, x)
    else:
        _, columns_first, batch = site.form
        if x.ndim == 1:
            x = x[None]
        elif columns_first:
            x = x.swapaxes(-1, -2)
        rows = _by_batch(x, batch)
    return np.asarray(_spread(rows, limit, offset), np.float32)


def _by_batch(x: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """[..., n, K] → [matrices of the weight, n', K]."""
    if not batch:
        return x.reshape(1, -1, x.shape[-1])
    full = np.broadcast_shapes(x.shape[:-2], batch)
    x = np.broadcast_to(x, (*full, *x.shape[-2:]))
    # Axes of the weight's batch come first, all others are rows.
    lead = len(full) - len(batch)
    mine = [lead + i for i, n in enumerate(batch) if n > 1]
    rest = [i for i in range(len(full)) if i not in mine]
    x = x.transpose((*mine, *rest, len(full), len(full) + 1))
    return x.reshape(math.prod(batch), -1, x.shape[-1])


def _picked(count: int, limit: int, offset: int) -> np.ndarray | slice:
    """Indices of about `limit` of `count` places, spread evenly."""
    if count <= limit:
        return slice(None)
    start = (offset * 0x9E3779B1 % count) if offset else 0
    return np.sort((start + np.arange(limit) * count // limit) % count)


def _spread(rows: np.ndarray, limit: int, offset: int) -> np.ndarray:
    return rows[:, _picked(rows.shape[1], limit, offset)]


def _conv_form(use: WeightUse) -> tuple[Any, ...]:
    kernel = tuple(use.shape[2:])
    rank = len(kernel)
    pad = _attribute(use, "auto_pad", b"NOTSET")
    return (
        "conv",
        kernel,
        tuple(_attribute(use, "strides", [1] * rank)),
        tuple(_attribute(use, "dilations", [1] * rank)),
        tuple(_attribute(use, "pads", [0] * 2 * rank)),
        pad.decode() if isinstance(pad, bytes) else str(pad),
    )


def _conv_geometry(
    form: tuple[Any, ...], sizes: tuple[int, ...]
) -> tuple[list[int], list[int], list[int]]:
    """Per spatial axis: padding before, output size, padding after.

    *Source:* onnx/docs/Operators.md, Conv (auto_pad).
    """
    _, kernel, strides, dilations, pads, auto = form
    before, out, after = [], [], []
    for i, size in enumerate(sizes):
        reach = (kernel[i] - 1) * dilations[i] + 1
        low, high = pads[i], pads[len(kernel) + i]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-size // strides[i])
            total = max((count - 1) * strides[i] + reach - size, 0)
            low = total // 2 if auto == "SAME_UPPER" else total - total // 2
            high = total - low
        elif auto == "VALID":
            low = high = 0
        before.append(low)
        after.append(high)
        out.append((size + low + high - reach) // strides[i] + 1)
    return before, out, after


def _positions(
    form: tuple[Any, ...], x_shape: tuple[int, ...], limit: int, offset: int
) -> tuple[np.ndarray, list[int]]:
    """Flat output positions (image-major) whose patches are taken, and the output's sizes."""
    _, out, _ = _conv_geometry(form, x_shape[2:])
    count = x_shape[0] * math.prod(out)
    picked = _picked(count, limit, offset)
    return (np.arange(count) if isinstance(picked, slice) else picked), out


def _patches(form: tuple[Any, ...], x: np.ndarray, limit: int, offset: int) -> np.ndarray:
    """[n, kernel positions · C]: gathered position by position, nothing is unfolded whole."""
    _, kernel, strides, dilations, _, _ = form
    before, out, after = _conv_geometry(form, x.shape[2:])
    if not x.shape[0] * math.prod(max(n, 0) for n in out):
        return np.zeros((0, math.prod(kernel) * x.shape[1]), np.float32)
    flat, _ = _positions(form, x.shape, limit, offset)
    image, *where = np.unravel_index(flat, (x.shape[0], *out))
    padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    rows = np.empty((len(flat), math.prod(kernel), x.shape[1]), np.float32)
    for p, tap in enumerate(np.ndindex(*kernel)):
        at = [where[i] * strides[i] + tap[i] * dilations[i] for i in range(len(kernel))]
        index: Any = (image, slice(None), *at)
        rows[:, p] = padded[index]
    return rows.reshape(len(flat), -1)


def _output_rows(
    site: Site, y: np.ndarray, x_shape: tuple[int, ...], limit: int, offset: int
) -> np.ndarray | None:
    kind = site.form[0]
    if kind == "conv":
        flat, out = _positions(site.form, x_shape, limit, offset)
        if y.shape[0] != x_shape[0] or list(y.shape[2:]) != out or not len(flat):
            return None
        image, *where = np.unravel_index(flat, (x_shape[0], *out))
        index: Any = (image, slice(None), *where)
        return np.asarray(y[index], np.float32)
    if kind != "matmul" or site.form[1] or site.form[2] or len(x_shape) < 2:
        return None
    if y.shape[:-1] != x_shape[:-1]:
        return None
    return np.asarray(_spread(y.reshape(1, -1, y.shape[-1]), limit, offset)[0], np.float32)


# --- Einsum ------------------------------------------------------------------------------------
def _einsum_site(use: WeightUse) -> Site | None:
    equation = _attribute(use, "equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    mine, other = terms[use.input], terms[1 - use.input]
    if not arrow:
        letters = "".join(terms).replace("...", "")
        output = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    sizes = dict(zip(mine, use.shape, strict=True))
    batch = math.prod(sizes[c] for c in mine if c in other and c in output)
    return Site(use=use, data=use.data, form=("einsum", mine, other, output), batch=batch)


def _roles(site: Site) -> tuple[list[str], list[str], str]:
    """The letters of the weight: of a batch, free ones, and the summed one."""
    _, mine, other, output = site.form
    batch = [c for c in mine if c in other and c in output]
    free = [c for c in mine if c not in other]
    (k,) = [c for c in mine if c in other and c not in output]
    return batch, free, k


def _einsum_rows(site: Site, x: np.ndarray) -> np.ndarray:
    other = site.form[2]
    batch, _, k = _roles(site)
    head, dots, tail = other.partition("...")
    loose = x.ndim - len(head) - len(tail)
    axes = [*head, *(range(loose) if dots else ()), *tail]
    lead = [axes.index(c) for c in batch]
    last = axes.index(k)
    rest = [i for i in range(x.ndim) if i not in (*lead, last)]
    return x.transpose((*lead, *rest, last)).reshape(site.batch, -1, x.shape[last])
