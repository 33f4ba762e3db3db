"""Tests of passes as text: a model in ONNX's textual syntax, a pipeline, and lines that the
result's dump must contain.

    // RUN: canonicalize,prune24
    // CHECK: init w: f32[16,8]
    // CHECK-SAME: 2:4
    // CHECK-NEXT: MatMul(x, w)
    // CHECK: note O24-100 prune24: w
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 16] x) => (float[N, 8] y) {
      y = MatMul(x, w)
    }
    // INIT: float[16, 8] w

Header lines may stand anywhere, each on a line of its own:

- `RUN: pipeline` runs a pipeline and matches the CHECK lines; `RUN(FOO): pipeline` is a run of
  its own for the FOO, FOO-NEXT, … lines. Each run starts from the input.
- `TARGET: name` (the default target otherwise), `CALIB: random:N` (none otherwise).
- `INIT: type[dims] name` adds an initializer of seeded values in [-1, 1), integers in [0, 100),
  the same on every machine; `INIT: type[dims] name = zeros` or `= ones` of equal ones.
- `FAILS: O24-110`: the run ends in this error; the text matched is then the error's.
- `NUMERIC: off` leaves out the guard, which otherwise runs the model before and after each pass in
  ONNX Runtime (passmgr/guard.py); say why in a comment.

What is matched is `ir.text.dump` of the result followed by one line for each diagnostic:
severity, code, pass, place. The CHECK syntax is LLVM's FileCheck.
Source: https://llvm.org/docs/CommandGuide/FileCheck.html, by the package `filecheck`.
"""

from __future__ import annotations

import contextlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnx24 import targets
from onnx24.diagnostics import Diagnostic
from onnx24.errors import Onnx24Error
from onnx24.ir.model import Model
from onnx24.ir.text import dump
from onnx24.passmgr.guard import Guard
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.passmgr.registry import Registry

if TYPE_CHECKING:
    from onnx24.runtime.data import Calibration

SUFFIX = ".onnxtxt"

_HEADER = re.compile(r"^\s*//\s*(RUN|TARGET|CALIB|INIT|FAILS|NUMERIC)(?:\((\w+)\))?:(.*)$")
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)
_INIT = re.compile(r"(\w+)\s*\[([\d\s,]*)\]\s*([^\s=]+)\s*(?:=\s*(zeros|ones))?")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Run:
    """One RUN line. `prefix`: of the lines that check it."""

    pipeline: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class Fixture:
    """A fixture file, read."""

    path: Path
    runs: tuple[Run, ...]
    target: str
    calib: str
    fails: str
    guarded: bool
    text: str
    inits: tuple[str, ...]

    def model(self) -> Model:
        """The input. Raises: InputError where it is no valid model."""
        proto = onnx.parser.parse_model(self.text)
        for line in self.inits:
            proto.graph.initializer.append(_initializer(line))
        return Model.from_proto(proto)


def read(path: Path) -> Fixture:
    """Raises: ValueError where the file has no RUN line or gives a header twice."""
    lines = path.read_text(encoding="utf-8").splitlines()
    runs, inits, single = [], [], {}
    for line in lines:
        match = _HEADER.match(line)
        if match is None:
            continue
        key, prefix, value = match[1], match[2], match[3].strip()
        if key == "RUN":
            runs.append(Run(value, prefix or "CHECK"))
        elif key == "INIT":
            inits.append(value)
        elif key in single:
            raise ValueError(f"{path.name}: {key} is given twice")
        else:
            single[key] = value
    if not runs:
        raise ValueError(f"{path.name} has no line `// RUN: pipeline`")
    if single.get("NUMERIC", "off") != "off":
        raise ValueError(f"{path.name}: NUMERIC takes the value off, got {single['NUMERIC']!r}")
    return Fixture(
        path=path,
        runs=tuple(runs),
        target=single.get("TARGET", targets.DEFAULT),
        calib=single.get("CALIB", ""),
        fails=single.get("FAILS", ""),
        guarded="NUMERIC" not in single,
        text=_COMMENT.sub("", "\n".join(lines)),
        inits=tuple(inits),
    )


def _initializer(line: str) -> onnx.TensorProto:
    match = _INIT.fullmatch(line)
    if match is None:
        raise ValueError(f"INIT: expected `type[dims] name`, got {line!r}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(
        onnx.TensorProto.DataType.Value(match[1].upper())  # type: ignore[arg-type]
    )
    shape = [int(dim) for dim in match[2].split(",") if dim.strip()]
    # Integers of a RandomState over a power of two: the digests stand in fixtures, and neither
    # its streams nor exact fractions differ between versions and machines.
    rng = np.random.RandomState(zlib.crc32(match[3].encode()))
    if match[4]:
        values = np.full(shape, 1 if match[4] == "ones" else 0)
    elif np.dtype(dtype).kind in "iu":
        values = rng.randint(0, 100, shape, np.int32)
    else:
        values = rng.randint(-(1 << 23), 1 << 23, shape, np.int32) / (1 << 23)
    return onnx.numpy_helper.from_array(values.astype(dtype), match[3])


def output(fixture: Fixture, item: Run, registry: Registry | None = None) -> str:
    """The text that a run is checked against.

    Raises: what the run raises, unless the fixture expects it.
    """
    model = fixture.model()
    target = targets.load(fixture.target)
    data = _calibration(fixture.calib, model)
    try:
        pipeline = parse(item.pipeline, registry=registry)
        result = run(
            model,
            pipeline,
            target=target,
            calibration=data,
            guard=Guard(strict=True, each=True) if fixture.guarded else None,
            reproducer_dir=None,
        )
    except Onnx24Error as err:
        if err.code != fixture.fails:
            raise
        return f"{err}\n"
    if fixture.fails:
        raise AssertionError(f"{fixture.path.name}: expected {fixture.fails}, the run succeeded")
    return dump(model) + "".join(f"{_line(d)}\n" for d in result.diagnostics)


def _calibration(spec: str, model: Model) -> Calibration | None:
    if not spec:
        return None
    from onnx24.runtime.data import load_data

    return load_data(spec, model)


def _line(found: Diagnostic) -> str:
    where = found.where
    place = where.tensor or where.node
    if where.scope:
        place = f"{where.scope}::{place}"
    return f"{found.severity} {found.code} {found.pass_name}: {place}"


def check(fixture: Fixture, item: Run, text: str) -> str:
    """Match the fixture's lines against `text`. Returns: the complaint, empty if all match."""
    from filecheck.finput import FInput
    from filecheck.matcher import Matcher
    from filecheck.options import Options
    from filecheck.parser import Parser

    options = Options(
        match_filename=str(fixture.path),
        check_prefixes=[item.prefix],
        comment_prefixes=["COM", "RUN"],
    )
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
        code = Matcher(options, FInput("dump", text), Parser.from_opts(options)).run()
    return "" if code == 0 else _ANSI.sub("", complaint.getvalue()) or f"exit code {code}"


def fixtures(folder: Path) -> Iterator[Path]:
    """Every fixture file below a folder, sorted."""
    return iter(sorted(folder.rglob(f"*{SUFFIX}")))
