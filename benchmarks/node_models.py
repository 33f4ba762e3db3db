"""Every operator of ONNX, between matrix products, through every pass of the manifest.

onnx.backend.test brings some 1,400 models of one node each. Here each stands between products: a
MatMul makes each of its float inputs, and one reads each of its float outputs, so that passes find
weights, pairs and casts to place around the operator. After each pass the model must be valid by
onnx.checker's full check, run in ONNX Runtime wherever it did before, and give the same within the
pass's word.

    python benchmarks/node_models.py                 all, about an hour of one core
    python benchmarks/node_models.py --stride 40     a sample
    python benchmarks/node_models.py --only bitcast --passes cast16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

from onnx24 import targets
from onnx24.errors import InputError, InternalError
from onnx24.ir.model import Model
from onnx24.passmgr import manager
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session

BOUNDS = {"exact": 0.0, "rounding": 1e-4}
"""A pass's word → the largest difference, relative to the largest value. "close" is no bound."""
PASSES = (
    "canonicalize",
    "upgrade-opset{to=26}",
    "equalize",
    "smooth-quant",
    "prune24",
    "permute24",
    "matmul-to-conv1x1{when=always}",
    "conv1x1-to-matmul",
    "qdq",
    "qdq,fold-qdq",
    "lint{fix=true}",
    "cast16",
    "cast16{dtype=bf16}",
    "check24",
)


@dataclass(frozen=True)
class Case:
    name: str
    proto: ModelProto
    feeds: dict[str, np.ndarray]


def cases(only: str = "", stride: int = 1) -> Iterator[Case]:
    """Those whose inputs are tensors of known shapes, and that load."""
    tests = sorted(load_model_tests(kind="node"), key=lambda test: test.name)
    for test in [t for t in tests if only in t.name][::stride]:
        if test.model is None or test.data_sets is None:
            continue
        values, feeds = test.data_sets[0][0], {}
        for value, array in zip(test.model.graph.input, values, strict=False):
            if not value.type.HasField("tensor_type"):
                break
            is_proto = isinstance(array, TensorProto)
            feeds[value.name] = numpy_helper.to_array(array) if is_proto else np.asarray(array)
        else:
            yield Case(test.name, *wrapped(test.model, feeds))


def wrapped(
    proto: ModelProto, feeds: dict[str, np.ndarray]
) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """The model with products around it. Each input's MatMul multiplies by 1: the node sees the
    values of its test."""
    out = ModelProto()
    out.CopyFrom(proto)
    graph = out.graph
    before: list[NodeProto] = []
    for value in graph.input:
        array = feeds[value.name]
        if (
            value.type.tensor_type.elem_type != TensorProto.FLOAT
            or not array.ndim
            or not array.size
        ):
            continue
        inner = f"{value.name}.product"
        for node in graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
        identity = np.eye(array.shape[-1], dtype=np.float32)
        graph.initializer.append(numpy_helper.from_array(identity, f"{value.name}.w"))
        pair = [value.name, f"{value.name}.w"]
        before.append(helper.make_node("MatMul", pair, [inner], name=f"{value.name}.before"))
    after = []
    for value in list(graph.output):
        kind = value.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type != TensorProto.FLOAT or not sizes or not sizes[-1]:
            continue
        w = np.random.default_rng(sizes[-1]).standard_normal((sizes[-1], 8)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(w, f"{value.name}.w"))
        pair, result = [value.name, f"{value.name}.w"], f"{value.name}.out"
        after.append(helper.make_node("MatMul", pair, [result], name=f"{value.name}.after"))
        shape = [dim.dim_value or dim.dim_param for dim in kind.shape.dim[:-1]]
        graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, [*shape, 8]))
    nodes = [*before, *graph.node, *after]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return out, feeds


def problem(case: Case, text: str, before: dict[str, np.ndarray] | None, folder: str) -> str:
    """What is wrong after a pass; "" where nothing is."""
    model = Model.from_proto(case.proto)
    calibration = None
    if case.feeds and before is not None and all(a.dtype != object for a in case.feeds.values()):
        np.savez(f"{folder}/feeds.npz", **case.feeds)
        try:
            calibration = load_data(folder, model)
        except InputError:
            calibration = None
    pipeline = parse(text)
    try:
        manager.run(
            model,
            pipeline,
            target=targets.load(targets.DEFAULT),
            calibration=calibration,
            reproducer_dir=None,
        )
    except InternalError as err:
        return f"our own fault: {err}"
    except InputError:
        return ""  # a refusal has a code and a next step
    data = model.to_bytes()
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as err:
        return f"invalid: {' '.join(str(err).split())[:200]}"
    if before is None or "bf16" in text:
        return ""  # ONNX Runtime has few kernels of it
    try:
        after = Session(Model.from_bytes(data), optimize=False, threads=1).run(case.feeds)
    except InputError as err:
        return f"does not run: {err}"
    bounds = [BOUNDS.get(step.numeric) for step in pipeline]
    if None in bounds:
        return ""
    moved = max((difference(before[name], after[name]) for name in before), default=0.0)
    return f"moved by {moved:.3g}" if moved > max(b for b in bounds if b is not None) else ""


def difference(a: object, b: object) -> float:
    """Relative to the largest value. A mask's lowest float and an infinity count as one."""
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.dtype != y.dtype:
        return float("inf")
    if x.dtype.kind not in "fiub":
        return float(
            x.tolist() != y.tolist() if x.dtype.kind in "OSU" else x.tobytes() != y.tobytes()
        )
    x, y = (np.clip(v.astype(np.float64), -1e30, 1e30) for v in (x, y))
    moved = np.abs(np.where(np.isnan(x) & np.isnan(y), 0, x - y)).max(initial=0.0)
    return float(moved / np.nanmax(np.abs(x), initial=1e-30)) if moved else 0.0


def check(case: Case, texts: tuple[str, ...], folder: str) -> list[str]:
    """One line for each pass that does not keep its word."""
    try:
        Model.from_proto(case.proto)
        onnx.checker.check_model(case.proto, full_check=True)
    except (InputError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return []  # MeanVarianceNormalization-13: onnx's own inference fails
    try:
        before = Session(Model.from_proto(case.proto), optimize=False, threads=1).run(case.feeds)
    except (InputError, ValueError):
        before = None
    found = [(text, problem(case, text, before, folder)) for text in texts]
    return [f"{case.name}: {text}: {what}" for text, what in found if what]


def main() -> int:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--stride", type=int, default=1, help="every n-th model")
    parser.add_argument("--passes", nargs="*", default=PASSES)
    options = parser.parse_args()
    count = failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.only, options.stride):
            count += 1
            for line in check(case, tuple(options.passes), folder):
                failures += 1
                print(line, flush=True)
    print(f"{count} models, {len(options.passes)} pipelines, {failures} problems")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
