"""onnx24: compile ONNX models to NVIDIA's 2:4 sparsity and INT8, and hand them to TensorRT.

Data flows one way: ir → analysis → pass → report. The functions below do whole jobs (docs/api.md);
they are imported when they are first used. Every pass is a function too: `onnx24.prune24(model)`.
"""

import importlib as _importlib
from pathlib import Path as _Path
from typing import Any as _Any

__version__ = "0.1.0"

# In a bare checkout the passes live at the top level, next to this package; an installed
# wheel maps them to onnx24/passes itself.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "passes" / "__init__.py").is_file():
    __path__.append(str(_checkout))

PUBLIC = {
    "compile": "driver.compiling",
    "optimize": "driver.compiling",
    "tune": "driver.tuning",
    "apply": "driver.passes",
    "load": "driver.models",
    "inspect": "driver.looking",
    "check": "driver.checking",
    "check_files": "driver.checking",
    "compare": "driver.comparing",
    "diff": "driver.looking",
    "recover": "driver.recovering",
    "build": "driver.building",
    "trtexec_command": "driver.building",
    "layer_ledger": "driver.ledgers",
    "bench": "driver.bench",
    "give_back": "driver.gating",
    "bisect": "driver.bisecting",
    "verify_provenance": "driver.proving",
    "sign": "driver.proving",
    "Result": "driver.result",
    "TuneResult": "driver.tuning",
    "Progress": "driver.progress",
    "Calibration": "runtime.data",
    "Images": "runtime.images",
    "BuildOptions": "backends.base",
    "Onnx24Error": "errors",
    "NotMetError": "errors",
    "InputError": "errors",
    "BackendError": "errors",
    "InternalError": "errors",
}
"""Name → the module that has it."""

__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> _Any:
    if name in PUBLIC:
        found = getattr(_importlib.import_module(f"onnx24.{PUBLIC[name]}"), name)
        globals()[name] = found
        return found
    if name.startswith("_") or _is_module(name):
        raise AttributeError(f"module 'onnx24' has no attribute {name!r}")
    return _importlib.import_module("onnx24.driver.passes").function(name)


def _is_module(name: str) -> bool:
    """Whether `from onnx24 import name` means a module, which is imported without asking here."""
    folders = map(_Path, __path__)
    return any((at / name).is_dir() or (at / f"{name}.py").is_file() for at in folders)


def __dir__() -> list[str]:
    passes = _importlib.import_module("onnx24.driver.passes").function_names()
    return sorted({*globals(), *PUBLIC, *passes})
