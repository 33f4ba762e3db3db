"""What passes promise, checked on one model by running it: the same function, 2:4 along what a
product truly sums over, quantized values near the real ones.

Which weights a product sums together is found by running the product alone with one weight set to 1
and all others to 0, so that no rule about axes is shared with what is checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnx24 import targets
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session

__all__ = ["SAME", "Outcome", "keeps_function", "prunes_what_is_summed", "quantizes_near"]

Feeds = Mapping[str, np.ndarray]

ROUNDING = 1e-4
"""Of the largest value: other orders of summation, amplified by some ten nodes."""
SAME = {
    "canonicalize": ROUNDING,
    "upgrade-opset{to=21}": ROUNDING,
    "equalize": 0.0,
    "smooth-quant{outlier=1.2}": 0.0,
    "permute24": ROUNDING,
    "matmul-to-conv1x1{when=always}": ROUNDING,
    "matmul-to-conv1x1{when=always form=nchw},conv1x1-to-matmul{all=true}": ROUNDING,
    "canonicalize,upgrade-opset{to=13},equalize,smooth-quant{outlier=1.2},permute24,"
    "matmul-to-conv1x1": ROUNDING,
}
"""Pipelines that keep the function → by how much of an output's largest value it may differ.
Factors of equalize and smooth-quant are powers of two, and lose no bit."""
PRUNING = "prune24{tied=split conflicting=split}"
QUANTIZING = "canonicalize,upgrade-opset{to=21},qdq{rounding=nearest}"
MAX_ELEMENTS = 1024
"""Of a weight whose elements are tried one by one."""
_CHAIN = ("DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose")
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")


class Outcome(NamedTuple):
    """sites: passes that changed anything, or products that were looked at. worst: of an output's
    largest value. complaint: what was broken, "" where nothing was."""

    sites: int
    worst: float
    complaint: str


def keeps_function(proto: ModelProto, feeds: Feeds, text: str) -> Outcome:
    """Whether a pipeline of `SAME` keeps the interface and what is computed."""
    before = _outputs(Model.from_proto(proto), feeds)
    model, changed = _run(proto, feeds, text)
    if not changed:
        return Outcome(0, 0.0, "")
    after = _outputs(model, feeds)
    worst, name = _distance(before, after)
    complaint = f"{name!r} is off by {worst:.2g}" if not worst <= SAME[text] else ""
    return Outcome(changed, worst, complaint)


def prunes_what_is_summed(proto: ModelProto, feeds: Feeds, *, calibrated: bool) -> Outcome:
    """Whether each weight that prune24 says is 2:4 has two zeros in each four that a product sums
    together, one after the other along its activation's axis."""
    model, _ = _run(proto, feeds, PRUNING, calibrated=calibrated)
    claimed = {key.name for key in model.claims}
    looked = 0
    for node, position, shown in _products(model, feeds, claimed):
        for zeros in _zeros_of_four(node, position, *shown, ops.opset(proto)):
            if zeros < 2:
                return Outcome(looked, 0.0, f"{node.name} ({node.op_type}) sums dense fours")
        looked += 1
    return Outcome(looked, 0.0, "")


def quantizes_near(proto: ModelProto, feeds: Feeds) -> Outcome:
    """Whether each weight that qdq quantizes is within one step of the largest that its output
    channel sums, and fold-qdq keeps what qdq made."""
    model, _ = _run(proto, feeds, QUANTIZING)
    plain, _ = _run(proto, feeds, QUANTIZING.partition(",qdq")[0])
    before = _outputs(model, feeds)
    exact = {node.name: shown for node, _, shown in _products(plain, feeds, None)}
    looked = 0
    for node, position, (x, w) in _products(model, feeds, None):
        _, real = exact.get(node.name, (None, None))
        if real is None or np.array_equal(real, w):
            continue
        looked += 1
        steps = _steps(node, position, x, real, ops.opset(model.proto))
        if steps is not None and not (np.abs(w - real) <= steps).all():
            return Outcome(looked, 0.0, f"{node.name} ({node.op_type}): a weight off by a step")
    folded, _ = _run(ModelProto.FromString(model.to_bytes()), feeds, "fold-qdq")
    worst, name = _distance(before, _outputs(folded, feeds))
    complaint = f"fold-qdq: {name!r} is off by {worst:.2g}" if not worst <= ROUNDING else ""
    return Outcome(looked, worst, complaint)


# --- running -----------------------------------------------------------------------------------
def _run(
    proto: ModelProto, feeds: Feeds, text: str, *, calibrated: bool = True
) -> tuple[Model, int]:
    """The model that a pipeline makes, and how many passes changed it. The samples are what is
    fed, along the first axis of each input."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    model = Model.from_proto(copy)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples.npz")
        np.savez(path, allow_pickle=False, **feeds)
        data = load_data(str(path), model) if calibrated else None
        result = manager.run(
            model,
            pipeline.parse(text),
            target=targets.load(targets.DEFAULT),
            calibration=data,
            reproducer_dir=None,
        )
    return model, sum(bool(each.changed) for each in result.passes)


def _outputs(model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
    return Session(model, optimize=False, threads=1).run(feeds)


def _distance(before: Feeds, after: Feeds) -> tuple[float, str]:
    """The largest difference of an output, over its largest value, and which output it is."""
    found = [(0.0, "")]
    for name, old in before.items():
        new = after[name]
        if new.shape != old.shape or new.dtype != old.dtype:
            return np.inf, name
        largest = float(np.abs(old).max(initial=0)) or 1.0
        found.append((float(np.abs(new - old).max(initial=0)) / largest, name))
    return max(found)


# --- one product alone -------------------------------------------------------------------------
def _products(
    model: Model, feeds: Feeds, claimed: set[str] | None
) -> Iterator[tuple[NodeProto, int, tuple[np.ndarray, np.ndarray]]]:
    """Each product of the main graph with a constant operand, the operand's position, and (the
    activation, the weight) as the product is given them. claimed: of these stored weights only."""
    made = {name: node for node in model.proto.graph.node for name in node.output}
    stored = {tensor.name for tensor in model.proto.graph.initializer}
    sites = []
    for node in model.proto.graph.node:
        if not ops.is_onnx(node, *_PRODUCTS):
            continue
        for position in (1, 0):
            name = node.input[position]
            while name in made and ops.is_onnx(made[name], *_CHAIN):
                name = made[name].input[0]
            constant = name in stored or (name in made and ops.is_onnx(made[name], "Constant"))
            if constant and (claimed is None or name in claimed):
                sites.append((node, position))
                break
    names = list(dict.fromkeys(name for node, _ in sites for name in node.input[:2]))
    if not names:
        return
    asked = [name for name in names if name not in feeds]
    seen = {**feeds, **Session(model, asked, optimize=False, threads=1).run(feeds)}
    for node, position in sites:
        x, w = seen[node.input[1 - position]], seen[node.input[position]]
        if w.size <= MAX_ELEMENTS and x.size:
            yield node, position, (x, w)


def _alone(
    node: NodeProto, position: int, x: np.ndarray, w: np.ndarray, opset: int
) -> Iterator[np.ndarray]:
    """What the product makes of each single weight: x enters with distinct numbers, the weight as 1
    at one element and 0 elsewhere, row-major; a bias is left out."""
    single = helper.make_node(node.op_type, ["x", "w"] if position else ["w", "x"], ["y"])
    kept = [attr for attr in node.attribute if attr.name not in ("alpha", "beta")]
    single.attribute.extend(kept)
    graph = helper.make_graph(
        [single],
        "single",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, w.shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    proto.ir_version = 10
    session = Session(Model.from_proto(proto), optimize=False, threads=1)
    numbers = np.arange(1, x.size + 1, dtype=np.float32).reshape(x.shape)
    one = np.zeros(w.size, np.float32)
    for i in range(w.size):
        one[i] = 1
        yield session.run({"x": numbers, "w": one.reshape(w.shape)})["y"]
        one[i] = 0


def _zeros_of_four(
    node: NodeProto, position: int, x: np.ndarray, w: np.ndarray, opset: int
) -> Iterator[int]:
    """The zeros in each four weights that are summed together at one output position, neighbours
    along the activation's axis that is summed over."""
    values = w.reshape(-1)
    by_position: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for i, y in enumerate(_alone(node, position, x, w, opset)):
        flat = y.reshape(-1)
        at = int(np.flatnonzero(flat)[len(np.flatnonzero(flat)) // 2])
        for place in {at, int(np.flatnonzero(flat)[0])}:
            where = np.unravel_index(round(float(flat[place])) - 1, x.shape)
            by_position.setdefault(place, []).append((tuple(map(int, where)), float(values[i])))
    for found in by_position.values():
        places = np.array([index for index, _ in found])
        moving = [a for a in range(x.ndim) if len(set(places[:, a])) > 1]
        axis = 1 if ops.is_onnx(node, "Conv") else moving[0] if len(moving) == 1 else -1
        rows: dict[tuple[int, ...], dict[int, float]] = {}
        for index, value in found:
            rest = tuple(n for a, n in enumerate(index) if a != axis % x.ndim)
            rows.setdefault(rest, {})[index[axis]] = value
        for row in rows.values():
            for start in range(0, x.shape[axis], 4):
                four = [row[k] for k in range(start, start + 4) if k in row]
                if len(four) == 4:
                    yield sum(value == 0 for value in four)


def _steps(
    node: NodeProto, position: int, x: np.ndarray, w: np.ndarray, opset: int
) -> np.ndarray | None:
    """One step of INT8 for each weight: a 127th of the largest weight of all that reach the same
    output channel; None where channels of several matrices or groups share a scale."""
    groups = ops.attribute(node, "group", 1)
    if (ops.is_onnx(node, "MatMul") and w.ndim > 2) or (
        ops.is_onnx(node, "ConvTranspose") and groups > 1
    ):
        return None
    images = ops.is_onnx(node, "Conv", "ConvTranspose")
    rows: dict[object, list[int]] = {}
    for i, y in enumerate(_alone(node, position, x, w, opset)):
        hit = np.argwhere(y)
        if not len(hit):
            return None  # a tap over nothing but padding: its channel is not seen
        row = int(hit[0][1]) if images else (y != 0).tobytes()
        rows.setdefault(row, []).append(i)
    steps, flat = np.zeros(w.size), np.abs(w.reshape(-1))
    for members in rows.values():
        steps[members] = flat[members].max() / 127 * 1.001
    return steps.reshape(w.shape)
