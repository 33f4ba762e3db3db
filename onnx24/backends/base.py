"""What a backend is, what it is given and what it answers."""

from __future__ import annotations

import abc
import ctypes
import difflib
import hashlib
import importlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from onnx24.backends.logs import Layer, LogFacts, ParserError
from onnx24.backends.onnx_file import Input, OnnxFile
from onnx24.backends.process import Finished
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import BackendError, InputError
from onnx24.ir.files import atomic_write
from onnx24.ir.inputs import refuse_input
from onnx24.targets import Target

__all__ = [
    "Availability",
    "Backend",
    "BuildOptions",
    "BuildResult",
    "Layer",
    "Profile",
    "get",
    "names",
    "parse_shapes",
    "resolve_profiles",
]

_BACKENDS = {
    "tensorrt": "onnx24.backends.tensorrt:TensorRT",
    "trtexec": "onnx24.backends.trtexec:Trtexec",
    "tensorrt-rtx": "onnx24.backends.tensorrt_rtx:TensorRTRTX",
}
"""In the order in which "auto" tries them: those that can report sparse tactics first."""

TAIL_LINES = 20


@dataclass(frozen=True)
class Availability:
    """Whether a backend can build here. `hint`: one sentence that says what to install."""

    ok: bool
    version: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Profile:
    """The shapes one engine accepts at one input; kernels are timed at `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @classmethod
    def static(cls, dims: Iterable[int]) -> Profile:
        shape = tuple(dims)
        return cls(shape, shape, shape)

    def __str__(self) -> str:
        parts = [self.opt] if self.min == self.max else [self.min, self.opt, self.max]
        return ":".join("x".join(map(str, p)) for p in parts)


HARDWARE_COMPATIBILITY = {
    "none": ("", ""),
    "ampere+": ("AMPERE_PLUS", "ampere+"),
    "same": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
"""Our word → the enum member's name, trtexec's word. *Source:* HardwareCompatibilityLevel of
NvInfer.h (8.6; the third from 10.9 on), trtexec's sampleOptions.cpp."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a builder may do. hardware_compatibility: a key of HARDWARE_COMPATIBILITY; `refit`: the
    weights can be replaced later; `strip`: the engine holds no weights that a refit can restore.
    """

    sparsity: bool = True
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    refit: bool = False
    strip: bool = False

    def flags(self) -> list[str]:
        """Members of BuilderFlag that the caller asks for by name."""
        asked = {
            "VERSION_COMPATIBLE": self.version_compatible,
            "REFIT": self.refit,
            "STRIP_PLAN": self.strip,
        }
        return [name for name, wanted in asked.items() if wanted]


DEFAULT_OPTIONS = BuildOptions()


@dataclass(frozen=True, kw_only=True)
class TimingCache:
    """The kernel timings that a build read and wrote. sha256: of the file after the build and
    before it ("" where it was not there yet): two builds of the same hash before, model and
    versions choose the same kernels."""

    path: Path
    nbytes: int
    sha256: str
    sha256_before: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "bytes": self.nbytes,
            "sha256": self.sha256,
            "sha256_before": self.sha256_before or None,
        }


def sha256_of(path: Path | None) -> str:
    """In hex; "" where there is no such file."""
    if path is None or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def timing_cache_facts(path: Path | None, before: str) -> TimingCache | None:
    """After a build; None where no file was kept."""
    if path is None or not path.is_file():
        return None
    return TimingCache(
        path=path, nbytes=path.stat().st_size, sha256=sha256_of(path), sha256_before=before
    )


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """An engine, and what its builder said about it.

    `sparsity_eligible` and `sparsity_chosen` hold layer names; None where the builder's log says
    nothing (TensorRT-RTX never does). `sparse_counts` are the numbers of the last such pair of
    lines, which TensorRT 10 prints without names at times. `seconds` covers the child process.
    """

    backend: str
    version: str
    target: str
    engine_path: Path
    engine_bytes: int
    seconds: float
    layers: tuple[Layer, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    sparsity_eligible: tuple[str, ...] | None = None
    sparsity_chosen: tuple[str, ...] | None = None
    sparse_counts: tuple[int, int] | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    log_tail: str = ""
    command: tuple[str, ...] = ()
    timing_cache: TimingCache | None = None
    layer_information: str = field(default="", repr=False)
    """The engine inspector's JSON, where there is one."""

    def layers_document(self) -> str:
        """The inspector's JSON; a document of its form, from the log, where it gave none."""
        if self.layer_information:
            return self.layer_information
        layers = [layer.to_inspector() for layer in self.layers]
        return json.dumps({"Layers": layers}, indent=1) + "\n"

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "version": self.version,
            "target": self.target,
            "engine": str(self.engine_path),
            "engine_bytes": self.engine_bytes,
            "seconds": round(self.seconds, 3),
            "profiles": {k: str(v) for k, v in self.profiles.items()},
            "layers": [layer.to_json() for layer in self.layers],
            "sparsity": {
                "eligible": _listed(self.sparsity_eligible),
                "chosen": _listed(self.sparsity_chosen),
                "counts": list(self.sparse_counts) if self.sparse_counts else None,
            },
            "diagnostics": [d.to_json() for d in self.diagnostics],
            "command": list(self.command),
            "timing_cache": self.timing_cache.to_json() if self.timing_cache else None,
        }


def _listed(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


class Backend(abc.ABC):
    """Builds an engine from an ONNX file. Use `get()` for an instance."""

    name: ClassVar[str]

    @abc.abstractmethod
    def available(self) -> Availability: ...

    def require(self) -> None:
        """Raises: BackendError O24-500, with what to install, where the backend is missing."""
        found = self.available()
        if not found.ok:
            raise BackendError.of(
                "O24-500", f"the backend {self.name} is not available", hint=found.hint
            )

    @abc.abstractmethod
    def build(
        self,
        model_path: Path,
        target: Target,
        *,
        engine: Path,
        shapes: Mapping[str, Profile] | None = None,
        options: BuildOptions = DEFAULT_OPTIONS,
        timeout_s: float | None = None,
        log: Path | None = None,
    ) -> BuildResult:
        """Build `engine` for `target`; the file appears whole or not at all.

        `log` receives the builder's whole VERBOSE log, also when the build fails.
        Raises: InputError O24-036 or O24-505 for shapes that are missing or do not fit, O24-040
        and O24-041 for the output path; BackendError O24-500 to O24-509 for everything else.
        """


def names() -> list[str]:
    return list(_BACKENDS)


def get(name: str, target: Target | None = None) -> Backend:
    """The backend of that name; "auto" is the first that is available, of the target's kind first.

    Raises: InputError O24-043 for an unknown name; BackendError O24-500 when a backend, or for
    "auto" every backend, is missing.
    """
    if name == "auto":
        return _auto(target)
    if name not in _BACKENDS:
        near = difflib.get_close_matches(name, [*_BACKENDS, "auto"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError.of(
            "O24-043",
            f"there is no backend {name!r}",
            hint=f"{hint}choose one of auto, {', '.join(_BACKENDS)}",
        )
    backend = _load(name)
    backend.require()
    return backend


def _auto(target: Target | None) -> Backend:
    order = list(_BACKENDS)
    if target is not None and target.trt_major is None:
        order = ["tensorrt-rtx"]
    hints = []
    for name in order:
        backend = _load(name)
        found = backend.available()
        if found.ok:
            return backend
        hints.append(f"{name}: {found.hint}")
    raise BackendError.of("O24-500", "no TensorRT is available here", hint="\n  ".join(hints))


def _load(name: str) -> Backend:
    module, _, cls = _BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), cls)()


def cuda_devices() -> int:
    """How many CUDA devices the driver shows; 0 where there is no driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


# --- shapes ---------------------------------------------------------------------------------------

_DIMS = re.compile(r"\d+(?:[x,]\d+)*\Z")


def parse_shapes(texts: Iterable[str]) -> dict[str, Profile]:
    """`NAME:DIMS` (static) or `NAME:MIN:OPT:MAX`, dims joined by "x" or ",".

    A name that itself ends in numbers between colons can stand in single quotes:
    `'input:0':1x8`. Raises: InputError O24-505.
    """
    profiles: dict[str, Profile] = {}
    for text in texts:
        name, shapes = _split_shape(text)
        if not name or len(shapes) not in (1, 3):
            raise _bad_shape(
                f"--shapes {text!r} is not NAME:DIMS or NAME:MIN:OPT:MAX",
                hint="write for instance --shapes input:1x3x224x224:8x3x224x224:16x3x224x224",
            )
        if name in profiles:
            raise _bad_shape(f"--shapes names the input {name!r} twice", hint="keep one of them")
        profiles[name] = _profile(name, shapes)
    return profiles


def _split_shape(text: str) -> tuple[str, list[str]]:
    quoted = re.match(r"'([^']+)':(.*)\Z", text, re.DOTALL)
    if quoted:
        shapes = quoted[2].split(":")
        return quoted[1], shapes if all(map(_DIMS.match, shapes)) else []
    parts = text.split(":")
    count = 0
    while count < min(3, len(parts) - 1) and _DIMS.match(parts[-1 - count]):
        count += 1
    if count == 2:  # `input:0:1x8`: the first of the two belongs to the name
        count = 1
    cut = len(parts) - count
    return ":".join(parts[:cut]), parts[cut:]


def _profile(name: str, shapes: list[str]) -> Profile:
    dims = [tuple(int(d) for d in re.split("[x,]", s)) for s in shapes]
    if len(dims) == 1:
        return Profile.static(dims[0])
    low, opt, high = dims
    ordered = len(low) == len(opt) == len(high) and all(
        a <= b <= c for a, b, c in zip(low, opt, high, strict=True)
    )
    if not ordered:
        raise _bad_shape(
            f"--shapes for {name!r} is {':'.join(shapes)}; expected min <= opt <= max in every "
            "dimension and the same rank",
            hint="reorder or complete the three shapes",
        )
    return Profile(low, opt, high)


def _bad_shape(message: str, *, hint: str) -> InputError:
    return InputError.of("O24-505", message, hint=hint)


def resolve_profiles(
    inputs: Iterable[Input], shapes: Mapping[str, Profile] | None
) -> dict[str, Profile]:
    """One profile for each input with a dynamic dimension; static inputs need none.

    Raises: InputError O24-505 for a shape that fits no input, O24-036 naming each input and
    dimension whose size is not given.
    """
    known = {i.name: i for i in inputs}
    given = dict(shapes or {})
    for name, profile in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise _bad_shape(
                f"--shapes names {name!r}, which is no input of the model",
                hint=f"{hint}the inputs are {', '.join(known) or 'none'}",
            )
        _check_fits(known[name], profile)
    missing = [_missing(i) for i in known.values() if i.dynamic and i.name not in given]
    if missing:
        raise InputError(missing)
    found = {i.name: given[i.name] for i in known.values() if i.dynamic}
    check_names(known.values(), found)
    return found


def check_names(inputs: Iterable[Input], profiles: Mapping[str, Profile]) -> None:
    """That dimensions of one name are of one size. Raises: InputError O24-505.

    *Source:* TensorRT documentation, "Named dimensions"; experiment with tensorrt-rtx 1.7.1, which
    refuses the profile, and names neither the input nor the dimension.
    """
    seen: dict[str, tuple[str, int, tuple[int, int, int]]] = {}
    for given in inputs:
        if given.name not in profiles:
            continue
        profile = profiles[given.name]
        sizes = zip(profile.min, profile.opt, profile.max, strict=True)
        for axis, (dim, size) in enumerate(zip(given.shape or (), sizes, strict=False)):
            if not isinstance(dim, str):
                continue
            name, other, expected = seen.setdefault(dim, (given.name, axis, size))
            if size != expected:
                raise _bad_shape(
                    f"input {given}: dimension {axis} of {given.name!r} and dimension {other} of "
                    f"{name!r} are both named {dim!r}, which is one size, found {_range(size)} "
                    f"and {_range(expected)}",
                    hint="give them one size, or export the model with names of their own",
                )


def _range(sizes: tuple[int, int, int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else ":".join(map(str, sizes))


def _check_fits(given: Input, profile: Profile) -> None:
    if given.shape is None:
        return
    if len(profile.opt) != len(given.shape):
        raise _bad_shape(
            f"--shapes gives {given.name!r} rank {len(profile.opt)}, the model's input is {given}",
            hint=f"give {len(given.shape)} dimensions",
        )
    for axis, size in enumerate(given.shape):
        wanted = {profile.min[axis], profile.opt[axis], profile.max[axis]}
        if isinstance(size, int) and wanted != {size}:
            raise _bad_shape(
                f"--shapes gives dimension {axis} of {given.name!r} the size "
                f"{', '.join(map(str, sorted(wanted)))}; in the model it is fixed: {given}",
                hint=f"write {size} there",
            )


def _missing(given: Input) -> Diagnostic:
    if given.shape is None:
        what = f"input {given.name!r} has no shape in the model"
        example = f"{given.name}:1x8"
    else:
        free = [
            f"{axis}" + (f" ({size!r})" if isinstance(size, str) and size else "")
            for axis, size in enumerate(given.shape)
            if not isinstance(size, int)
        ]
        what = f"input {given.name!r} has the dynamic dimension {', '.join(free)}"
        example = f"{given.name}:" + "x".join(
            str(s) if isinstance(s, int) else "1" for s in given.shape
        )
    return diagnostic(
        "O24-036",
        f"{what}, and nothing says its size",
        tensor=given.name,
        hint=f"pass --shapes {example} (or NAME:MIN:OPT:MAX)",
    )


# --- shared by the backends ---------------------------------------------------------------------


@contextmanager
def staged_engine(engine: Path, model_path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (path to build into, scratch folder). On a clean exit the built file is renamed to
    `engine`; otherwise it is removed. The scratch folder always is.

    Raises: InputError O24-040 or O24-041.
    """
    engine = engine.absolute()
    if engine.exists() and model_path.exists() and os.path.samefile(engine, model_path):
        raise InputError.of("O24-041", f"--engine {engine} is the model itself")
    refuse_input(engine)
    part = engine.with_name(f".{engine.name}.{secrets.token_hex(4)}.part")
    try:
        if engine.is_dir():
            raise IsADirectoryError(f"{engine} is a folder")
        part.touch(exist_ok=False)
    except OSError as err:
        raise cannot_write(engine, err) from err
    scratch = Path(tempfile.mkdtemp(prefix="onnx24-build-"))
    try:
        yield part, scratch
        try:
            os.replace(part, engine)
        except OSError as err:
            raise cannot_write(engine, err) from err
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def cannot_write(path: Path, err: OSError | str) -> InputError:
    reason = err.strerror or str(err) if isinstance(err, OSError) else err
    return InputError.of("O24-040", f"{path} cannot be written: {reason}", file=str(path))


def keep_log(source: Path, log: Path | None) -> None:
    """Copy the builder's log to where the caller wants it. Raises: InputError O24-040."""
    if log is None or not source.exists():
        return
    with open(source, "rb") as file, atomic_write(log) as copy:
        shutil.copyfileobj(file, copy)


TRY_THE_ORIGINAL = (
    "build the uncompiled model as well: where that fails too, it is TensorRT's fault"
)
"""The next step after a build that failed with nothing in the model to point at."""


def failed(
    code: str, message: str, facts: LogFacts, *, hint: str | None = None, **more: Any
) -> BackendError:
    """A BackendError that ends with the last lines of the backend's log."""
    last = list(facts.tail)[-TAIL_LINES:]
    shown = "\n    ".join(last[-5:])
    text = hint or ""
    if shown:
        text += f"{chr(10) + '  ' if text else ''}the backend's last lines:\n    {shown}"
    return BackendError.of(
        code, message, hint=text or None, facts={"log_tail": "\n".join(last), **more}
    )


def check_finished(name: str, done: Finished, facts: LogFacts) -> None:
    """Raises: BackendError O24-504 when it was stopped for time, O24-503 when a signal ended it."""
    if done.timed_out:
        raise failed(
            "O24-504",
            f"{name} was stopped after {done.seconds:.1f} s",
            facts,
            hint="raise --timeout, or lower the builder's optimization level",
            seconds=done.seconds,
        )
    if done.signal:
        memory = "; often the machine ran out of memory" if done.signal == "SIGKILL" else ""
        raise failed(
            "O24-503", f"{name} was ended by {done.signal}{memory}", facts, signal=done.signal
        )


def parser_diagnostic(error: ParserError, model: OnnxFile, model_path: Path) -> Diagnostic:
    """A parser's complaint as O24-501, with the node's name as the model knows it. Where the parser
    names none, the function that complains tells the operator."""
    op, node = error.op, error.node or model.node_name(error.index, error.op, error.output)
    reason, alike = error.description, []
    if not op and not node:
        op = re.sub("^(import|check)", "", error.function)
        alike = model.nodes_of(op)
        op, node = (op, alike[0]) if alike else ("", "")
    if reason in ("", "false"):  # the parser's assertion, not its words
        reason = f"the parser does not take {op}" if op else "the parser gives no reason"
    if len(alike) > 1:
        reason += f", in one of {len(alike):,} {op}: {', '.join(map(repr, alike[:5]))}"
        reason += ", …" if len(alike) > 5 else ""
    return diagnostic(
        "O24-501",
        reason,
        file=str(model_path),
        node=node if len(alike) < 2 else "",
        op=op,
        facts={k: v for k, v in vars(error).items() if v not in ("", None)},
        hint=f"remove or replace the operator {op}; `onnx24 check --policy tensorrt-importable` "
        "names what TensorRT takes no form of"
        if op
        else "",
    )


def log_warnings(facts: LogFacts, limit: int = 20) -> list[Diagnostic]:
    """The backend's distinct warnings as O24-506, at most `limit`."""
    return [diagnostic("O24-506", w) for w in list(dict.fromkeys(facts.warnings))[:limit]]
