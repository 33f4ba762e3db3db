"""Enterprise TensorRT through its Python package, on the GPU that is here."""

from __future__ import annotations

from typing import ClassVar

from onnx24.backends.base import Availability, cuda_devices
from onnx24.backends.python_api import PythonBackend
from onnx24.diagnostics import Diagnostic
from onnx24.errors import BackendError
from onnx24.targets import Target


class TensorRT(PythonBackend):
    """The package `tensorrt` 8.6 to 11. Layers come from the engine inspector."""

    name: ClassVar[str] = "tensorrt"
    module: ClassVar[str] = "tensorrt"
    distributions: ClassVar[tuple[str, ...]] = (
        "tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt-cu11",
    )
    install: ClassVar[str] = (
        "install TensorRT's Python package, of the target's major, from NVIDIA: "
        "pip install 'onnx24[tensorrt]'"
    )
    inspect: ClassVar[bool] = True

    def available(self) -> Availability:
        found = super().available()
        if found.ok and cuda_devices() == 0:
            return Availability(
                False,
                found.version,
                "TensorRT is installed and needs an NVIDIA GPU with its driver to build; use "
                "the backend tensorrt-rtx on a machine without one",
            )
        return found

    def check_target(self, target: Target) -> list[Diagnostic]:
        version = self.version()
        major = version.split(".")[0]
        if target.trt_major is None or (major and int(major) != target.trt_major):
            raise BackendError.of(
                "O24-507",
                f"TensorRT {version or 'of unknown version'} is installed; the target "
                f"{target.name} wants {_release(target)}",
                hint="choose a target of the installed major, or install the other one",
            )
        return []


def _release(target: Target) -> str:
    return "TensorRT-RTX" if target.trt_major is None else f"TensorRT {target.trt}"
