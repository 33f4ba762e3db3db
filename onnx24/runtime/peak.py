"""Whether a model can be run in the memory that its size promises, before ONNX Runtime is asked.

A session computes what follows from constants when it is made, and a run holds every value that
somebody still reads. Both are added up here from the shapes that ONNX infers, at the least: an open
dimension counts as one, a value of unknown shape as nothing.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto

from onnx24.ir.bounds import BYTES_PER_BYTE, beyond, brought, within
from onnx24.ir.calls import inlined
from onnx24.ir.model import Model
from onnx24.ir.repair import reads
from onnx24.ir.scopes import ScopeNames, bodies, node_label
from onnx24.ir.shapes import ShapeTable, infer
from onnx24.ir.weights import numpy_dtype

FOLDED_BYTES_PER_BYTE = 8
"""What ONNX Runtime may make of constants, and hold of them while it prepares a session."""
_STACK_BYTES = 8 << 20


def require_room(model: Model) -> None:
    """Raises: InputError O24-017. A model and its variants are looked at once."""
    if "room" in model.proved:
        return
    proto = inlined(model.proto)
    least = brought(proto)
    bounds = model.bounds
    sizes = _Sizes(infer(model.variant(proto)))
    folded = sizes.folded(proto.graph)
    _refuse(model, folded, max(bounds.nbytes, FOLDED_BYTES_PER_BYTE * least), "computes at once")
    peak = sizes.peak(proto.graph, "", ScopeNames())
    _refuse(model, peak, max(bounds.nbytes, BYTES_PER_BYTE * least), "holds at a time")
    model.proved.add("room")


def preparing(model: Model, threads: int) -> contextlib.AbstractContextManager[None]:
    """Within the block a session of so many threads is made, in the memory that this may take."""
    fixed = model.bounds.nbytes + threads * _stack_bytes()
    return within(fixed + FOLDED_BYTES_PER_BYTE * brought(model.proto))


def _stack_bytes() -> int:
    """Of one thread, which counts in full from its start: 128 of 8 MiB are a GiB."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    except ImportError:
        return 0
    return _STACK_BYTES if soft == resource.RLIM_INFINITY else max(soft, _STACK_BYTES)


@dataclass
class _Held:
    nbytes: int = 0
    node: NodeProto | None = None

    def raise_to(self, nbytes: int, node: NodeProto) -> None:
        if nbytes > self.nbytes:
            self.nbytes, self.node = nbytes, node


def _refuse(model: Model, held: _Held, allowed: int, what: str) -> None:
    if held.nbytes <= allowed:
        return
    raise beyond(
        f"what it {what} is {held.nbytes / 2**30:,.1f} GiB or more; up to {allowed / 2**30:,.1f} "
        "GiB are expected of a model of its size",
        "mib",
        file=str(model.path or "-"),
        node=node_label(held.node) if held.node is not None else "",
    )


class _Sizes:
    def __init__(self, table: ShapeTable) -> None:
        self._table = table

    def nbytes(self, name: str, scope: str) -> int:
        known = self._table.get(name, scope) if name else None
        if known is None or known.shape is None or not known.dtype:
            return 0
        if known.dtype == TensorProto.STRING:
            return 0
        sizes = (size if isinstance(size, int) else 1 for size in known.shape)
        return math.prod(sizes) * numpy_dtype(known.dtype).itemsize

    def folded(self, graph: GraphProto) -> _Held:
        """Of all results that follow from constants."""
        fixed = {t.name for t in graph.initializer} - {value.name for value in graph.input}
        held, total = _Held(), 0
        for node in graph.node:
            is_fixed = all(name in fixed for name in node.input if name)
            if not is_fixed or next(bodies(node), None) is not None:
                continue
            fixed.update(node.output)
            total += sum(self.nbytes(name, "") for name in node.output)
            held.raise_to(total, node)
        return held

    def peak(self, graph: GraphProto, path: str, names: ScopeNames) -> _Held:
        """The most at a time, node by node, with that of a node's bodies."""
        last = {name: i for i, node in enumerate(graph.node) for name in reads(node)}
        kept = {value.name for value in graph.output}
        alive: dict[str, int] = {}
        held, total = _Held(), 0
        for i, node in enumerate(graph.node):
            inner = max(
                (
                    self.peak(body, names.body(path, node, attribute), names).nbytes
                    for attribute, body in bodies(node)
                ),
                default=0,
            )
            for name in node.output:
                alive[name] = self.nbytes(name, path)
                total += alive[name]
            held.raise_to(total + inner, node)
            for name in {*reads(node), *node.output}:
                if name not in kept and last.get(name, i) <= i:
                    total -= alive.pop(name, 0)
        return held
