"""ONNX Runtime on the CPU: the reference execution that results are judged by.

All of the product's sessions are made here, with options that are chosen (`_options`), of a model
whose 16-bit results are really rounded (`rounding`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.repair import runnable
from onnx24.ir.scopes import tensors
from onnx24.ir.weights import payload_bytes, reference_of
from onnx24.runtime.inputs import element_name
from onnx24.runtime.peak import preparing, require_room
from onnx24.runtime.rounding import rounded

if TYPE_CHECKING:  # it is imported where a session is made: most commands make none
    import onnxruntime as ort

__all__ = ["Session", "activations", "require_qdq"]

MAX_IN_MEMORY_BYTES = 64 << 20
"""Models with more weights go through a temporary file with external data, which ONNX Runtime
maps, instead of a second and third copy in memory."""

_MESSAGE_CHARACTERS = 300

_NO_NUMPY = frozenset(
    f"tensor({name})"
    for name in (
        *("bfloat16", "int4", "uint4", "int2", "uint2", "float4e2m1", "float8e4m3fn"),
        *("float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0"),
    )
)
"""Types that ONNX Runtime's Python binding cannot turn into numpy arrays by itself."""


class Session:
    """A model ready to run.

    outputs: names of values of the main graph; the model's outputs where None.
    optimize: apply ONNX Runtime's basic graph optimizations. False runs every node as written.
    fast: all of its optimizations but those of Q/DQ; what they round differently depends on the
    CPU. 16-bit results are rounded whatever is asked for. threads: all that this process may use,
    where None.
    Raises: InputError O24-016 where ONNX Runtime refuses the model, O24-017 where it would take
    more memory than a model of its size may.
    """

    def __init__(
        self,
        model: Model,
        outputs: Sequence[str] | None = None,
        *,
        optimize: bool = True,
        fast: bool = False,
        threads: int | None = None,
    ) -> None:
        self._file = str(model.path or "")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._elements = {
            value.name: value.type.tensor_type.elem_type for value in model.proto.graph.input
        }
        require_room(model)
        if outputs is not None:
            model = _with_outputs(model, outputs)
        model = rounded(runnable(model))
        import onnxruntime as ort

        source = self._source(model)
        try:
            options = _options(optimize, fast, threads)
            with preparing(model, options.intra_op_num_threads):
                self._session = ort.InferenceSession(
                    source, options, providers=["CPUExecutionProvider"]
                )
        except _errors() as err:
            raise self._refused(err) from err
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]
        self._raw = any(value.type in _NO_NUMPY for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Output name → array, for feeds by input name; sequences and maps come as lists and
        dicts.

        Raises: InputError O24-016 where a node fails on these values.
        """
        try:
            if self._raw:
                values = {name: self._ort_value(name, array) for name, array in feeds.items()}
                results = self._session.run_with_ort_values(None, values)
                return {
                    name: _to_array(value)
                    for name, value in zip(self.outputs, results, strict=True)
                }
            plain = {
                name: array if array.dtype.isbuiltin == 1 else self._ort_value(name, array)
                for name, array in feeds.items()
            }
            return dict(zip(self.outputs, self._session.run(None, plain), strict=True))
        except _errors() as err:
            raise self._refused(err, hint=_OTHER_VALUES) from err

    def _ort_value(self, name: str, array: np.ndarray) -> ort.OrtValue:
        import onnxruntime as ort

        if array.dtype.isbuiltin == 1:
            return ort.OrtValue.ortvalue_from_numpy(array)
        element = self._elements[name]
        if array.dtype.name in ("int4", "uint4", "int2", "uint2"):
            raise ValueError(f"input {name!r}: ONNX Runtime takes no {element_name(element)} feeds")
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element)

    def _source(self, model: Model) -> bytes | str:
        """What InferenceSession takes: the bytes, or a path."""
        large = sum(payload_bytes(t) for t in tensors(model.proto) if reference_of(t) is not None)
        if large <= MAX_IN_MEMORY_BYTES:
            return model.to_bytes()
        if model.path is not None and not model.changed:
            return str(model.path)
        self._folder = tempfile.TemporaryDirectory(prefix="onnx24-session-")
        path = Path(self._folder.name, "model.onnx")
        model.save(path, external="external")
        return str(path)

    def _refused(self, err: Exception, hint: str | None = None) -> InputError:
        message = f"ONNX Runtime: {_shortened(str(err))}"
        return InputError.of("O24-016", message, file=self._file, hint=hint)


_OTHER_VALUES = (
    "ONNX Runtime loads the model, and fails on these values: pass samples that it was made for, "
    "or other sizes by --shapes"
)


def require_qdq(opset: int) -> None:
    """That ONNX Runtime has the quantizers of an opset, which it lacks for those it is too old for:
    to be asked before calibration, not after.

    Raises: InputError O24-055.
    """
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[4] x, float s) => (float[4] y) '
        "<int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    try:
        Session(Model.from_proto(proto))
    except InputError as err:
        raise InputError.of(
            "O24-055",
            f"ONNX Runtime does not run QuantizeLinear of opset {opset}, so that a quantized model "
            f"could not be compared: {err.diagnostics[0].message}",
        ) from err


def activations(
    model: Model,
    names: Sequence[str],
    data: Iterable[Mapping[str, np.ndarray]],
    *,
    optimize: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """The values of the main graph's `names`, run by run, over `data` (`Calibration.batches`).

    One run's arrays are held at a time. Names of graph inputs give what is fed.
    Raises: InputError O24-016.
    """
    fed = {value.name for value in model.proto.graph.input}
    computed = [name for name in names if name not in fed]
    session = Session(model, computed, optimize=optimize) if computed else None
    for feeds in data:
        found = session.run(feeds) if session else {}
        yield {name: found[name] if name in found else feeds[name] for name in names}


def _with_outputs(model: Model, names: Sequence[str]) -> Model:
    """A copy of the lean document whose outputs are `names`; it shares the weights."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    declared = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output)}
    chosen = []
    for name in dict.fromkeys(names):
        value = ValueInfoProto()
        value.CopyFrom(declared.get(name, ValueInfoProto(name=name)))
        chosen.append(value)
    del proto.graph.output[:]
    proto.graph.output.extend(chosen)
    return model.variant(proto)


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    return (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
        errors.EPFail,
        RuntimeError,
        ValueError,
        MemoryError,
    )


def _options(optimize: bool, fast: bool, threads: int | None) -> ort.SessionOptions:
    """How the reference computes.

    Basic optimizations fold constants and drop what does nothing: they compute the model, and the
    same everywhere. From "extended" on kernels are fused that round by what the CPU has, so that
    is for measuring ranges only. `disable_quant_qdq` at every level: without it DequantizeLinear
    and MatMul become MatMulNBits, which quantizes activations of a weight-only model to 8 bit (0.5
    to 0.7 % of the norm), and Q/DQ around an operator an integer kernel, which rounds otherwise.
    One order of nodes and sums, no threads that spin: the same bytes for the same input.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_BASIC if optimize else level.ORT_DISABLE_ALL
    if fast:
        options.graph_optimization_level = level.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or _cpus()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what it logs as an error, it also raises
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _to_array(value: Any) -> Any:
    """A numpy array of any dtype, from an OrtValue; lists and dicts pass."""
    if not value.is_tensor():
        return value.numpy()
    element = value.element_type()
    if value.data_type() not in _NO_NUMPY:
        return value.numpy()
    shape = tuple(value.shape())
    tensor = TensorProto(data_type=element, dims=shape)
    size = payload_bytes(tensor)
    tensor.raw_data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return numpy_helper.to_array(tensor)


def _shortened(message: str) -> str:
    """ONNX Runtime's message without its own file names, line numbers and symbols."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    text = re.sub(r"\S*onnxruntime\S*/\S+:\d+ .*?\) ?(?=[A-Z])", "", text, flags=re.DOTALL)
    text = " ".join(text.split()).removeprefix("Fatal error: ")
    if len(text) > _MESSAGE_CHARACTERS:
        text = text[:_MESSAGE_CHARACTERS].rsplit(" ", 1)[0] + " …"
    return text
