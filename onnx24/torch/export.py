"""A torch module with masks and fake quantizers as an ONNX file."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import judge
from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.recovery._torch import torch
from onnx24.runtime.session import Session
from onnx24.sparsity.masks import is_24_by_stride
from onnx24.targets import DEFAULT, load
from onnx24.torch.eval_mode import evaluating
from onnx24.torch.quantizers import FakeQuantizer
from onnx24.torch.results import float_results, insert_result_pairs, ranges
from onnx24.torch.sparse import Sparsity

__all__ = ["export"]

Exporter = Literal["torchscript", "dynamo"]
OPSETS: dict[str, int] = {"torchscript": 17, "dynamo": 18}
MAX_ERROR = 1e-2
"""Relative error of ONNX Runtime's outputs from torch's from which on the file is another model. A
value that lies between two steps of a quantizer may fall either way."""


def export(
    model: Any,
    example: Any,
    path: str | os.PathLike[str],
    sparsity: Sparsity | None = None,
    calibration: Iterable[Any] = (),
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    exporter: Exporter = "torchscript",
    target: str = DEFAULT,
) -> Model:
    """Write the module to `path`, with exact zeros and each fake quantizer as a pair of
    QuantizeLinear and DequantizeLinear, and record what is 2:4.

    example: what the module is called with (a tensor, a tuple, or a dict by name). sparsity: where
    given, every weight of it has to be 2:4 in the file. calibration: batches as for `quantize`;
    with them the results of quantized 2:4 layers get a pair as well where they would stay in float,
    since TensorRT takes a sparse INT8 kernel only INT8-in and INT8-out (O24-639). input_names:
    those of `forward`'s arguments where None. dynamic_batch: the first axis of every input and
    output may have any size.
    The module is put into eval mode meanwhile. exporter: `torchscript` needs no further package
    (opset 17 where None); `dynamo` is torch's newer one, needs onnxscript (18), and takes an
    example of two rows or more. Weights keep the names of `model.state_dict()`.
    Returns: the model in the file.
    Raises: InputError O24-043 while progressive masks are not 2:4 yet; O24-610 for a weight that is
    not 2:4 in the file; O24-157 where ONNX Runtime gives other outputs than torch, before results
    get pairs.
    """
    if sparsity is not None and not sparsity.is_final:
        raise InputError.of(
            "O24-043",
            f"the masks are at {100 * sparsity.sparsity:.4g} % after {sparsity.step} steps",
            hint="train to the schedule's last part, or call sparsity.choose(0.5)",
        )
    bare = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    arguments = _arguments(bare, example)
    names = list(input_names or _argument_names(bare, len(arguments)))
    with _as_exported(bare) as quantizers, tempfile.TemporaryDirectory() as folder:
        wanted = _outputs(bare(*arguments))
        outputs = list(output_names or _output_names(len(wanted)))
        raw = Path(folder) / "traced.onnx"
        more = _options(exporter, names, outputs, dynamic_batch)
        for quantizer in quantizers:
            quantizer.exporter = exporter
        torch.onnx.export(
            bare,
            arguments,
            str(raw),
            input_names=names,
            output_names=outputs,
            opset_version=opset or OPSETS[exporter],
            **more,
        )
        _undo_sharing(raw, bare)
        traced = Model.load(raw)
        _record(traced, sparsity, target)
        _compare(traced, _feeds(names, arguments), outputs, wanted)
        feeds = (_feeds(names, _arguments(bare, batch)) for batch in calibration)
        if load(target).output_qdq_for_sparse and _quantize_results(raw, traced, feeds):
            traced = Model.load(raw)
            _record(traced, sparsity, target)
        traced.save(path)
    return Model.load(path)


# --- what the exporter is given --------------------------------------------------------------
def _arguments(model: Any, example: Any) -> tuple[Any, ...]:
    if isinstance(example, Mapping):
        bound = inspect.signature(model.forward).bind(**example)
        return bound.args
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def _argument_names(model: Any, count: int) -> list[str]:
    names = list(inspect.signature(model.forward).parameters)[:count]
    return names if len(names) == count else [f"input{i}" for i in range(count)]


def _output_names(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output{i}" for i in range(count)]


def _options(
    exporter: Exporter, names: Sequence[str], outputs: Sequence[str], is_dynamic: bool
) -> dict[str, Any]:
    """Neither may fold constants: it would rename the weights that it transposes."""
    if exporter == "dynamo":
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in names) if is_dynamic else None
        return {"dynamo": True, "optimize": False, "dynamic_shapes": shapes, "verbose": False}
    axes = {name: {0: "N"} for name in (*names, *outputs)} if is_dynamic else None
    return {"dynamo": False, "do_constant_folding": False, "dynamic_axes": axes}


def _outputs(given: Any) -> list[Any]:
    if isinstance(given, torch.Tensor):
        return [given]
    values = given.values() if isinstance(given, Mapping) else given
    return [value for value in values if isinstance(value, torch.Tensor)]


@contextmanager
def _as_exported(model: Any) -> Iterator[list[FakeQuantizer]]:
    """`evaluating`, every scale up to date. Gives the fake quantizers."""
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantizer)]
    try:
        with evaluating(model):
            for module in list(model.modules()):
                for name in ("input_quantizer", "weight_quantizer"):
                    quantizer = getattr(module, name, None)
                    if isinstance(quantizer, FakeQuantizer):
                        quantizer.settle(module.weight)
            yield quantizers
    finally:
        for quantizer in quantizers:
            quantizer.exporter = ""


def _undo_sharing(path: Path, model: Any) -> None:
    """The exporter stores equal tensors once, with an Identity for each other name. Tied weights
    become one initializer, others get their own again, as they are only equal by chance."""
    document = onnx.load(path)
    state = model.state_dict(keep_vars=True)
    graph = document.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        if (
            not ops.is_onnx(node, "Identity")
            or node.input[0] not in held
            or node.output[0] not in state
        ):
            continue
        source, name = node.input[0], node.output[0]
        if source in state and state[source] is state[name]:
            renamed[name] = source
        else:
            copied = graph.initializer.add()
            copied.CopyFrom(held[source])
            copied.name = name
        graph.node.remove(node)
    if not renamed and len(held) == len(graph.initializer):
        return
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    _save(document, path)


def _save(document: onnx.ModelProto, path: Path) -> None:
    big = document.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF
    onnx.save(document, path, save_as_external_data=big, location="traced.data")


# --- what came out ---------------------------------------------------------------------------
def _record(model: Model, sparsity: Sparsity | None, target: str) -> None:
    """Record as 2:4 what is, and look that every masked weight is among it."""
    verdicts = judge(model, AnalysisCache(), load(target))
    found: list[ValueKey] = []
    for key, verdict in verdicts.items():
        stride = verdict.k_stride if verdict.eligible else None
        if stride is not None and is_24_by_stride(model.weights[key], stride):
            found.append(key)
    names = {key.name for key in found}
    masked = [] if sparsity is None else list(sparsity.masks)
    there = {key.name for key in model.weights}
    lost = [name for name in masked if name in there and name not in names]
    if lost or len(found) < len(masked):
        missing = lost or [name for name in masked if name not in names]
        raise InputError.of(
            "O24-610",
            f"{len(found)} weights of the file are 2:4, {len(masked)} have masks; not "
            f"{', '.join(missing[:5])}",
            hint="was the optimizer given to keep_masks, and are all layers used?",
        )
    model.claims.update(found)


def _quantize_results(path: Path, model: Model, batches: Iterator[Mapping[str, np.ndarray]]) -> int:
    """In the traced file. Returns: pairs, 0 without batches."""
    first = next(batches, None)
    if first is None:
        return 0
    scales = float_results(model)
    unknown = [value for value, scale in scales.items() if not scale]
    amax = ranges(model, unknown, chain([first], batches))
    document = onnx.load(path)
    count = insert_result_pairs(document.graph, scales, amax)
    if count:
        _save(document, path)
    return count


def _feeds(names: Sequence[str], arguments: Sequence[Any]) -> dict[str, np.ndarray]:
    values = zip(names, arguments, strict=True)
    return {name: value.detach().cpu().numpy() for name, value in values}


def _compare(
    model: Model, feeds: Mapping[str, np.ndarray], names: Sequence[str], wanted: Sequence[Any]
) -> None:
    given = Session(model, list(names), optimize=False).run(feeds)
    for name, expected in zip(names, wanted, strict=True):
        a = np.asarray(given[name], np.float64)
        b = expected.detach().cpu().double().numpy()
        error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))
        if not error <= MAX_ERROR:
            raise InputError.of("O24-157", f"{name}: relative error {error:.2g}")
