"""The folder that replays an internal error: the model before the pass that failed, the rest of
the pipeline, versions, the traceback and the command."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import onnx24
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.model import Model
from onnx24.ir.scopes import tensors
from onnx24.passmgr.pipeline import Pipeline

if TYPE_CHECKING:
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

_PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy", "networkx", "ml_dtypes")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a replay needs. `model` is already back in its state before the pass; `site_limit`
    counts from there. `feeds`: the inputs that show it, where it takes some."""

    model: Model
    rest: Pipeline
    target: Target
    calibration: Calibration | None
    site_limit: int | None
    instruments: list[str]
    feeds: Mapping[str, np.ndarray] | None = None


def write_reproducer(failure: Failure, err: BaseException, parent: Path) -> Path:
    """Write `onnx24-reproducer-<digest>` into `parent`; the same failure gives the same name,
    and a folder that is there already is left alone.

    Returns: the folder. Raises: OSError, InputError O24-040 to O24-042.
    """
    info = _info(failure, err)
    structure = Fingerprint.of(failure.model).structure
    values = [failure.model.weights.digest_of(tensor) for tensor in tensors(failure.model.proto)]
    identity = json.dumps([info, structure, values], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = parent.resolve() / f"onnx24-reproducer-{digest}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        failure.model.save(part / "model.onnx")
        (part / "pipeline.txt").write_text(f"{failure.rest}\n", encoding="utf-8")
        (part / "traceback.txt").write_text(
            "".join(traceback.format_exception(err)), encoding="utf-8"
        )
        (part / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        if failure.feeds:
            np.savez(part / "inputs.npz", **dict(failure.feeds))  # type: ignore[arg-type]
        (part / "README.txt").write_text(_readme(failure, info), encoding="utf-8")
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def _info(failure: Failure, err: BaseException) -> dict[str, object]:
    versions = {"onnx24": onnx24.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    data = failure.calibration
    return {
        "error": type(err).__name__,
        "pipeline": str(failure.rest),
        "target": failure.target.name,
        "calibration": None if data is None else data.describe(),
        "site_limit": failure.site_limit,
        "instruments": failure.instruments,
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "command": command(failure),
    }


def command(failure: Failure) -> str:
    """What to type in the folder."""
    parts = [
        "onnx24 opt model.onnx -o replayed.onnx",
        f"--target {failure.target.name}",
        '--pipeline "$(cat pipeline.txt)"',
    ]
    if failure.feeds:
        parts.append("--guard each")
    if failure.calibration is not None:
        parts.append("--calib DATA")
    if failure.site_limit is not None:
        parts.append(f"--stop-after {failure.site_limit}")
    return " ".join(parts)


def _readme(failure: Failure, info: dict[str, object]) -> str:
    data = "" if failure.calibration is None else f"\nDATA was: {info['calibration']}\n"
    if failure.feeds:
        data += "\ninputs.npz holds inputs on which the outputs change.\n"
    return (
        "An internal error of onnx24. model.onnx is the model before the pass that failed, WITH\n"
        "ITS WEIGHTS: look at whom you send it to.\n"
        "pipeline.txt begins with that pass, traceback.txt says where it failed. To replay it:\n\n"
        f"    {info['command']}\n{data}"
    )
