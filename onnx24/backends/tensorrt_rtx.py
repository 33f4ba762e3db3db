"""TensorRT-RTX: builds for a named compute capability, with no GPU in the machine.

Its plans are compiled to kernels on the user's machine, so its log names no sparse tactics, and
2:4 is not advertised there (docs/targets.md).
Source: experiment with tensorrt-rtx 1.7.1.
"""

from __future__ import annotations

from typing import ClassVar

from onnx24.backends.base import BuildOptions
from onnx24.backends.python_api import PythonBackend
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import BackendError
from onnx24.targets import Target


class TensorRTRTX(PythonBackend):
    """The package `tensorrt_rtx`."""

    name: ClassVar[str] = "tensorrt-rtx"
    module: ClassVar[str] = "tensorrt_rtx"
    distributions: ClassVar[tuple[str, ...]] = ("tensorrt_rtx", "tensorrt-rtx")
    install: ClassVar[str] = "install TensorRT-RTX with: pip install 'onnx24[rtx]'"

    def compute_capability(self, target: Target) -> str:
        return f"SM{target.sm}"

    def check_options(self, options: BuildOptions) -> None:
        asked = [name.lower().replace("_", " ") for name in options.flags()]
        if options.hardware_compatibility != "none":
            asked.append("hardware compatibility")
        if asked:
            raise BackendError.of(
                "O24-509",
                f"tensorrt-rtx does not offer {', '.join(asked)}: its engines are made for named "
                "compute capabilities, and their kernels on the user's machine",
                hint="leave the option out",
            )

    def check_target(self, target: Target) -> list[Diagnostic]:
        if target.trt_major is None:
            return []
        return [
            diagnostic(
                "O24-508",
                f"the target {target.name} is TensorRT {target.trt}; this engine is for "
                f"TensorRT-RTX on compute capability {target.compute_capability}, and says nothing "
                "about sparse kernels",
                facts={"target": target.name, "backend": self.name},
            )
        ]
