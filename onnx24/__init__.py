"""onnx24: compile ONNX models to NVIDIA's 2:4 sparsity and INT8, and hand them to TensorRT.

Data flows one way: ir → analysis → pass → report.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a bare checkout the passes live at the top level, next to this package; an installed
# wheel maps them to onnx24/passes itself.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "passes" / "__init__.py").is_file():
    __path__.append(str(_checkout))
