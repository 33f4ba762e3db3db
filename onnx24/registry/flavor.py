"""Which file of a version MLflow loads: the one that is to be judged, and no other.

*Source:* MLflow documentation, "MLflow Models", and mlflow/onnx/__init__.py of 3.17:
`mlflow.onnx.load_model` opens `flavors.onnx.data` of the folder's MLmodel, `mlflow.pyfunc` gives
`flavors.python_function.data` to `loader_module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from onnx24.errors import InputError

MLMODEL = "MLmodel"
_LOADER = "mlflow.onnx"
_MAX_BYTES = 4 << 20


def loaded_file(folder: Path) -> Path | None:
    """The ONNX file that MLflow loads from a version's folder; None where the folder has no
    MLmodel, so that MLflow loads nothing and every model in it is somebody's own business.

    Raises: InputError O24-641 where the two flavors do not load the same ONNX file of the folder.
    """
    path = folder / MLMODEL
    if not path.is_symlink() and not path.exists():
        return None
    flavors = _flavors(path)
    onnx = flavors.get("onnx")
    if not isinstance(onnx, dict):
        raise _mismatch(f"its flavors are {', '.join(map(str, flavors)) or 'none'}, none is onnx")
    name = onnx.get("data")
    python = flavors.get("python_function")
    if isinstance(python, dict):
        loader, data = python.get("loader_module"), python.get("data", name)
        if loader != _LOADER:
            raise _mismatch(f"python_function is loaded by {loader!r}, not by {_LOADER}")
        if data != name:
            raise _mismatch(f"the flavor onnx loads {name!r}, python_function loads {data!r}")
    return _inside(folder, name)


def _flavors(path: Path) -> Mapping[str, Any]:
    import yaml  # one of mlflow's own requirements

    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise _mismatch(f"it is no file of at most {_MAX_BYTES >> 20} MiB")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        raise _mismatch(" ".join(str(err).split())[:200]) from err
    found = document.get("flavors") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _inside(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise _mismatch(f"flavors.onnx.data is {name!r}, expected a file's name")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise _mismatch(f"flavors.onnx.data {name!r} leads out of the folder")
    path = folder.joinpath(*parts.parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _mismatch(f"flavors.onnx.data {name!r} is a link out of the folder")
    if path.is_dir():  # MLflow hands the name to ONNX Runtime, which takes no folder
        raise _mismatch(f"flavors.onnx.data {name!r} is a folder")
    if not path.exists():
        raise _mismatch(f"flavors.onnx.data {name!r} is not among the version's files")
    return path


def _mismatch(why: str) -> InputError:
    return InputError.of("O24-641", f"{MLMODEL}: {why}")
