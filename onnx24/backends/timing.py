"""Running engines on the GPU and taking their times. Runs in a child process only.

`time_engines` uses TensorRT's Python API by names that 8.6 to 11 and TensorRT-RTX share; `Cuda` is
the little of CUDA's driver API that it needs, so that no further package is required. Neither has
run on a GPU yet; the tests use recorded API surfaces and a stand-in for the driver.

As a program: `python -m onnx24.backends.timing REQUEST.json RESPONSE.json`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ITEM_BYTES = {"FLOAT": 4, "INT32": 4, "INT64": 8, "HALF": 2, "BF16": 2, "INT8": 1, "UINT8": 1,
               "BOOL": 1, "FP8": 1, "INT4": 0.5, "FP4": 0.5}  # fmt: skip


class CudaError(Exception):
    """A call of the driver failed. The message names it."""


class Cuda:
    """Memory, one stream and two events of the first device.

    *Source:* CUDA driver API reference: cuCtxCreate, cuMemAlloc, cuEventElapsedTime [ms].
    """

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        self._lib = ctypes.CDLL(name)
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        context = ctypes.c_void_p()
        # The primary context is the one that TensorRT, which uses the runtime API, works in.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self.stream = self._made("cuStreamCreate", 0)
        self._start = self._made("cuEventCreate", 0)
        self._stop = self._made("cuEventCreate", 0)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            raise CudaError(f"{name} failed with code {code}")

    def _made(self, name: str, *arguments: Any) -> int:
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def allocate(self, nbytes: int) -> int:
        """A device address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, nbytes)))
        return address.value

    def upload(self, address: int, data: bytes) -> None:
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)))

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def start(self) -> None:
        self._call("cuEventRecord", ctypes.c_void_p(self._start), ctypes.c_void_p(self.stream))

    def stop(self) -> float:
        """Milliseconds on the device since `start`."""
        elapsed = ctypes.c_float()
        start, stop = ctypes.c_void_p(self._start), ctypes.c_void_p(self._stop)
        self._call("cuEventRecord", stop, ctypes.c_void_p(self.stream))
        self._call("cuEventSynchronize", stop)
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), start, stop)
        return float(elapsed.value)


def time_engines(
    trt: Any,
    cuda: Any,
    logger: Any,
    engines: Mapping[str, bytes],
    shapes: Mapping[str, Sequence[int]],
    *,
    rounds: int,
    runs: int,
) -> dict[str, list[list[float]]]:
    """All engines in memory at once, in turns: variant → rounds → times of `runs` runs [ms].

    Rounds go forward and backward through the engines in turn; one round before them warms up.
    shapes: of dynamic inputs. Raises: CudaError; RuntimeError for an engine that does not load.
    """
    runtime = trt.Runtime(logger)
    loaded = {name: _Loaded(cuda, runtime, name, plan, shapes) for name, plan in engines.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in loaded}
    order = list(loaded)
    for number in range(rounds + 1):
        for name in order if number % 2 == 0 else reversed(order):
            times = [loaded[name].run() for _ in range(runs)]
            if number:
                taken[name].append(times)
    return taken


class _Loaded:
    """An engine with its memory."""

    def __init__(
        self,
        cuda: Any,
        runtime: Any,
        name: str,
        plan: bytes,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._cuda = cuda
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RuntimeError(f"the engine {name} does not load on this machine")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n).name == "INPUT"]
        for tensor in inputs:
            if any(size < 0 for size in self._engine.get_tensor_shape(tensor)):
                self._context.set_input_shape(tensor, tuple(shapes[tensor]))
        rng = np.random.default_rng(0)
        for tensor in names:
            kind = self._engine.get_tensor_dtype(tensor).name
            count = math.prod(self._context.get_tensor_shape(tensor))
            address = cuda.allocate(math.ceil(count * _ITEM_BYTES[kind]))
            if tensor in inputs:
                cuda.upload(address, _values(rng, kind, count))
            self._context.set_tensor_address(tensor, address)

    def run(self) -> float:
        self._cuda.start()
        self._context.execute_async_v3(self._cuda.stream)
        return self._cuda.stop()


def _values(rng: np.random.Generator, kind: str, count: int) -> bytes:
    """Normal numbers for floating-point inputs; zeros, which are valid indices, for the others."""
    if kind in ("FLOAT", "HALF"):
        dtype = np.float32 if kind == "FLOAT" else np.float16
        return rng.standard_normal(count).astype(dtype).tobytes()
    return bytes(math.ceil(count * _ITEM_BYTES[kind]))


def main(argv: list[str]) -> int:
    request = json.loads(Path(argv[0]).read_text("utf-8"))
    trt = importlib.import_module(request["module"])
    try:
        taken = time_engines(
            trt,
            Cuda(),
            trt.Logger(trt.Logger.WARNING),
            {name: Path(path).read_bytes() for name, path in request["engines"].items()},
            request["shapes"],
            rounds=request["rounds"],
            runs=request["runs"],
        )
    except (CudaError, RuntimeError, OSError) as err:
        sys.stderr.write(f"[E] [TRT] {err}\n")  # where the parent looks for a reason
        return 1
    Path(argv[1]).write_text(json.dumps(taken), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
