"""Calibration and test data: samples from files or from a seeded generator, streamed.

Five forms of DATA:

- one `.npz`: one array for each input, samples stacked along the first axis. An array of the
  input's rank feeds *rows*: a dynamic first dimension takes any number of them at once, a fixed
  one takes exactly that many a run (a rest that fills no run is left out). An array of one more
  rank holds *whole inputs*, one a run: `[N, 784, 1]` for an input `[784, 1]`.
- a folder of `.npz`: each file is one run, its arrays are exactly what the model takes.
- a folder of ONNX `test_data_set_*` (or one such set, with its `input_*.pb`): each is one run.
- a folder of images: see runtime.images.
- `random:N`: N runs of seeded random numbers, for tests of structure only.

Nothing is held but the run that is being fed.
*Source of the test data's layout:* onnx/docs/OnnxBackendTest.md.
"""

from __future__ import annotations

import abc
import hashlib
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from onnx24.diagnostics import Diagnostic
from onnx24.errors import InputError
from onnx24.ir.archives import UNREADABLE, Header, headers, reading
from onnx24.ir.inputs import regular
from onnx24.ir.model import Model
from onnx24.runtime.inputs import InputSpec, index_bound, input_specs, shape_text
from onnx24.runtime.sizes import concrete_shapes

__all__ = ["Calibration", "SampleSource", "Stacked", "load_data"]

Feeds = dict[str, np.ndarray]

ROWS_PER_RUN = 16
BYTES_PER_RUN = 1 << 20
"""Rows of a dynamic batch are grouped into runs until one of the two is reached."""


class Calibration:
    """Samples for one model. Made by `load_data`.

    `names`: the inputs that are fed. `len()`: samples. `runs`: how often the model is run over all
    of them. `is_random`: they say nothing about accuracy.
    """

    def __init__(
        self,
        source: SampleSource,
        units: np.ndarray | None = None,
        units_per_run: int | None = None,
    ) -> None:
        self._source = source
        self._units = np.arange(source.units) if units is None else units
        self._units_per_run = min(units_per_run or source.units_per_run, source.units_per_run)

    @property
    def names(self) -> tuple[str, ...]:
        return self._source.names

    @property
    def is_random(self) -> bool:
        return isinstance(self._source, _Random)

    @property
    def doubts(self) -> list[Diagnostic]:
        """What was assumed of them, to be said where they are used."""
        return self._source.doubts

    @property
    def runs(self) -> int:
        return math.ceil(len(self._units) / self._units_per_run)

    @property
    def units(self) -> int:
        """How many there are of the least that can be fed."""
        return len(self._units)

    @property
    def units_per_run(self) -> int:
        """Rows of a dynamic batch that are fed at once; 1 where a run is not divisible."""
        return self._units_per_run

    def with_units_per_run(self, count: int) -> Calibration:
        """The same samples in runs of at most `count` units."""
        return Calibration(self._source, self._units, max(1, count))

    def __len__(self) -> int:
        return self._source.count(self._units)

    def batches(self, model: Model) -> Iterator[Feeds]:
        """What to feed, run by run: one array for each input.

        model: the one the data were loaded for, or one of the same inputs.
        Raises: InputError O24-030 to O24-033.
        """
        source = self._source.fitted(input_specs(model))
        return source.feeds(self._units, self._units_per_run)

    def describe(self) -> str:
        """In words, for reports."""
        total = self._source.count(np.arange(self._source.units))
        count = f"{len(self)} of its {total}" if len(self) < total else str(total)
        return f"{self._source.description}: {count} {self._source.noun}{'s' * (total != 1)}"

    def digest(self) -> str:
        """sha256 of the values that `batches` gives, in hex."""
        digest = hashlib.sha256()
        self._source.hash(digest, self._units)
        return digest.hexdigest()

    def picked(self, values: np.ndarray) -> np.ndarray:
        """Of `values`, one a sample of the whole source, those of these samples, in order.

        Raises: InputError O24-032 for another number of them.
        """
        every = range(self._source.units)
        sizes = [self._source.count(np.array([unit])) for unit in every]
        ends = np.cumsum(sizes)
        if len(values) != ends[-1]:
            message = f"expected {ends[-1]} labels, one a sample, found {len(values)}"
            raise InputError.of("O24-032", message)
        parts = [np.arange(ends[unit] - sizes[unit], ends[unit]) for unit in self._units]
        return values[np.concatenate(parts)]

    def split(self, fraction: float) -> tuple[Calibration, Calibration]:
        """A first part of about `fraction` of the samples and the rest, spread evenly over the
        whole so that sorted data stay balanced. What the model takes in one run is not divided;
        with a single run, both parts are all of it.

        Raises: ValueError unless 0 < fraction < 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"a fraction lies between 0 and 1, not at {fraction}")
        count = len(self._units)
        if count < 2:
            return self, self
        chosen = spread(count, fraction)
        return self.part(chosen), self.part(~chosen)

    def part(self, chosen: np.ndarray) -> Calibration:
        """The units for which `chosen` [units] is true."""
        return Calibration(self._source, self._units[chosen], self._units_per_run)


def spread(count: int, fraction: float) -> np.ndarray:
    """True for about `fraction` of `count` samples, at least 2, evenly over the whole; neither all
    nor none."""
    first = min(max(round(count * fraction), 1), count - 1)
    marks = np.arange(count + 1) * first // count
    return np.diff(marks) > 0


def load_data(
    spec: str,
    model: Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Calibration:
    """The samples that `spec` (see the module) names, checked against the model's inputs.

    shapes: for `random:N`, sizes by input name; without, they are chosen (runtime.sizes).
    Raises: InputError O24-030 to O24-033; O24-036 for a dynamic dimension that no size was found
    for, O24-505 for shapes that contradict the model.
    """
    specs = input_specs(model)
    if spec.startswith("random:"):
        return Calibration(_Random(spec, model, specs, shapes or {}, seed))
    path = Path(spec)
    source: SampleSource
    if path.is_dir():
        source = _folder(path, spec, specs, shapes or {})
    elif path.is_file():
        source = _Archive(path, spec, specs)
    else:
        raise unreadable(spec, "there is no such file or folder")
    if not source.units:
        raise unreadable(spec, "it holds no samples")
    return Calibration(source)


def _folder(
    path: Path, spec: str, specs: list[InputSpec], shapes: Mapping[str, Sequence[int]]
) -> SampleSource:
    from onnx24.runtime.images import Images, image_files

    sets = [path] if _input_files(path) else []
    sets = sets or [p for p in sorted_paths(path.glob("test_data_set_*")) if p.is_dir()]
    archives = sorted_paths(path.glob("*.npz"))
    if sets and archives:
        raise unreadable(spec, "expected .npz files or ONNX test data, the folder holds both")
    if sets:
        return _TestData(sets, spec, specs)
    if archives:
        return _Archives(archives, spec, specs)
    if image_files(path):
        return Images(spec).source(specs, shapes)
    raise unreadable(spec, "the folder holds no .npz, no test_data_set_* and no images")


def unreadable(spec: str, why: str) -> InputError:
    return InputError.of("O24-030", why, file=spec)


def sorted_paths(paths: Iterable[Path]) -> list[Path]:
    """By folder and name, numbers in the name by value."""
    return sorted(
        paths, key=lambda p: (p.parent, [(len(s), s) for s in re.findall(r"\d+|\D+", p.name)])
    )


# --- what every source checks --------------------------------------------------------------
def check_names(where: str, given: Sequence[str], specs: list[InputSpec]) -> None:
    required = [s.name for s in specs if s.required]
    unknown = sorted(set(given) - {s.name for s in specs})
    missing = [name for name in required if name not in given]
    if not unknown and not missing:
        return
    optional = [s.name for s in specs if not s.required]
    expected = f"arrays named {required}" + (f" and perhaps {optional}" if optional else "")
    raise InputError.of(
        "O24-031",
        f"expected {expected}, found {sorted(given)}",
        file=where,
        facts={"missing": missing, "unknown": unknown},
    )


def _check_dtype(where: str, spec: InputSpec, found: np.dtype) -> None:
    if spec.element == TensorProto.STRING:
        fits = found.kind in "USO"
    elif found.kind == "V" and found.names is None:
        # numpy writes bfloat16, float8 and int4 as raw bytes of their size.
        fits = spec.dtype.kind == "V" and found.itemsize == spec.dtype.itemsize
        fits = fits or found == spec.dtype
    else:
        fits = found.newbyteorder("=") == spec.dtype
    if not fits:
        raise InputError.of(
            "O24-033",
            f"expected {spec.dtype_text}, found {found}",
            file=where,
            tensor=spec.name,
        )


def _bad_shape(where: str, name: str, expected: str, found: tuple[int, ...]) -> InputError:
    return InputError.of(
        "O24-032",
        f"expected {expected}, found {list(found)}",
        file=where,
        tensor=name,
    )


def fits(dims: Sequence[Any], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(
        not isinstance(d, int) or d == n for d, n in zip(dims, shape, strict=True)
    )


def check_run(where: str, given: Mapping[str, tuple[np.dtype, tuple[int, ...]]], specs) -> None:
    """That arrays are exactly what one run takes."""
    check_names(where, list(given), specs)
    for spec in specs:
        if spec.name not in given:
            continue
        dtype, shape = given[spec.name]
        _check_dtype(where, spec, dtype)
        if spec.dims is not None and not fits(spec.dims, shape):
            raise _bad_shape(where, spec.name, spec.dims_text, shape)


def native(array: np.ndarray, spec: InputSpec) -> np.ndarray:
    """In the dtype and layout that the model takes."""
    if spec.element == TensorProto.STRING:
        return array.astype(object)
    if array.dtype.kind == "V":
        return np.ascontiguousarray(array).view(spec.dtype)
    return np.require(array.astype(spec.dtype, copy=False), requirements="C")


def _hash_array(digest: Any, name: str, array: np.ndarray) -> None:
    digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
    if array.dtype == object:
        for text in array.reshape(-1):
            digest.update(str(text).encode() + b"\0")
    else:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class SampleSource(abc.ABC):
    """Where samples come from. A unit is the least that can be fed; `units` counts them."""

    units: int
    units_per_run: int = 1
    samples_per_unit: int = 1
    noun = "sample"

    @property
    def doubts(self) -> list[Diagnostic]:
        return []

    def __init__(self, description: str, specs: list[InputSpec]) -> None:
        self.description = description
        self.specs = specs

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]: ...

    def count(self, units: np.ndarray) -> int:
        """Samples in these units."""
        return len(units) * self.samples_per_unit

    @abc.abstractmethod
    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        """This source for a model of these inputs. Raises: InputError O24-031 to O24-033."""

    @abc.abstractmethod
    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        """What to feed, at most `per_run` units at once."""

    def hash(self, digest: Any, units: np.ndarray) -> None:
        for feeds in self.feeds(units, self.units_per_run):
            for name in sorted(feeds):
                _hash_array(digest, name, feeds[name])


# --- one .npz ------------------------------------------------------------------------------
def _headers(path: Path) -> dict[str, Header]:
    """Name → header of every array of an `.npz`; no values are read.

    Raises: InputError O24-030.
    """
    try:
        return headers(path)
    except UNREADABLE as err:
        raise unreadable(str(path), f"expected a numpy .npz archive: {err}") from err


@dataclass(frozen=True)
class Plan:
    """How an archive's rows become runs. `rows`: of each array in one unit; `whole`: arrays whose
    first axis counts runs."""

    units: int
    units_per_run: int
    rows: dict[str, int]
    whole: frozenset[str]


class RowReader(Protocol):
    """Rows of one array."""

    def read(self, start: int, count: int) -> np.ndarray: ...


class Stacked(SampleSource):
    """One array for each input, samples stacked along the first axis, wherever they lie."""

    def __init__(
        self, headers: Mapping[str, Header], description: str, specs: list[InputSpec]
    ) -> None:
        super().__init__(description, specs)
        self._headers = dict(headers)
        self._plan = self._make_plan()
        self.units = self._plan.units
        self.units_per_run = self._plan.units_per_run
        self.samples_per_unit = next(iter(self._plan.rows.values()), 1)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.specs if s.name in self._headers)

    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        if specs == self.specs:
            return self
        source = self.of(specs)
        if (source.units, source._plan.rows) != (self.units, self._plan.rows):
            expected, found = self._plan.rows, source._plan.rows
            raise InputError.of(
                "O24-032",
                f"{self.description}: expected a model that takes {expected} rows of each array, "
                f"this one takes {found}",
            )
        return source

    @abc.abstractmethod
    def of(self, specs: list[InputSpec]) -> Stacked:
        """The same arrays for a model of these inputs. Raises: InputError."""

    @abc.abstractmethod
    def readers(self, stack: ExitStack) -> Mapping[str, RowReader]:
        """What gives the rows of each array until `stack` is closed."""

    def _make_plan(self) -> Plan:
        check_names(self.description, list(self._headers), self.specs)
        fixed: dict[str, int] = {}
        free: list[str] = []
        whole: set[str] = set()
        counts: dict[str, int] = {}
        for spec in self.specs:
            header = self._headers.get(spec.name)
            if header is None:
                continue
            _check_dtype(self.description, spec, header.dtype)
            if not header.shape:
                raise _bad_shape(self.description, spec.name, _stacked_text(spec), header.shape)
            counts[spec.name] = header.shape[0]
            if spec.dims is not None and fits(spec.dims, header.shape[1:]):
                whole.add(spec.name)
                fixed[spec.name] = 1
            elif spec.dims is None or (spec.dims and fits(spec.dims[1:], header.shape[1:])):
                first = spec.dims[0] if spec.dims else None
                if isinstance(first, int):
                    fixed[spec.name] = first
                else:
                    free.append(spec.name)
            else:
                raise _bad_shape(self.description, spec.name, _stacked_text(spec), header.shape)
        if min(counts.values(), default=0) == 0:
            raise unreadable(self.description, "it holds no samples")
        if fixed:
            return self._fixed_plan(fixed, free, frozenset(whole), counts)
        if len(set(counts.values())) > 1:
            raise self._uneven(f"as many rows of each array, found {counts}")
        return Plan(
            units=next(iter(counts.values())),
            units_per_run=self._group(),
            rows=dict.fromkeys(counts, 1),
            whole=frozenset(),
        )

    def _fixed_plan(
        self,
        fixed: dict[str, int],
        free: list[str],
        whole: frozenset[str],
        counts: dict[str, int],
    ) -> Plan:
        runs = {name: counts[name] // rows if rows else 0 for name, rows in fixed.items()}
        if len(set(runs.values())) > 1:
            raise self._uneven(f"every array to fill as many runs, found {runs}")
        total = next(iter(runs.values()))
        if not total:
            raise self._uneven(f"at least {fixed} rows for one run, found {counts}")
        rows = dict(fixed)
        for name in free:
            sizes = sorted((r for r in fixed.values() if counts[name] // r == total), reverse=True)
            if not sizes and counts[name] % total:
                raise self._uneven(f"{name!r} to fill {total} runs, found {counts[name]} rows")
            rows[name] = sizes[0] if sizes else counts[name] // total
        in_order = {s.name: rows[s.name] for s in self.specs if s.name in rows}
        return Plan(total, 1, in_order, whole)

    def _uneven(self, what: str) -> InputError:
        return InputError.of(
            "O24-032", f"{self.description}: expected {what}", file=self.description
        )

    def _group(self) -> int:
        """Rows of a dynamic batch that are fed at once."""
        row_bytes = sum(h.dtype.itemsize * math.prod(h.shape[1:]) for h in self._headers.values())
        return min(ROWS_PER_RUN, max(1, BYTES_PER_RUN // max(1, row_bytes)))

    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        with ExitStack() as stack:
            readers = self.readers(stack)
            for start in range(0, len(units), per_run):
                yield self._run(readers, units[start : start + per_run])

    def _run(self, readers: Mapping[str, RowReader], units: np.ndarray) -> Feeds:
        feeds = {}
        stretches = np.split(units, np.flatnonzero(np.diff(units) != 1) + 1)
        for spec in self.specs:
            if spec.name not in readers:
                continue
            rows = self._plan.rows[spec.name]
            try:
                parts = [
                    readers[spec.name].read(int(s[0]) * rows, len(s) * rows) for s in stretches
                ]
            except UNREADABLE as err:
                raise unreadable(self.description, f"{spec.name!r}: {err}") from err
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if spec.name in self._plan.whole:
                array = array[0]
            feeds[spec.name] = native(array, spec)
        return feeds


def _stacked_text(spec: InputSpec) -> str:
    """The shapes of stacked arrays that an input takes."""
    dims = spec.dims or ()
    inputs = shape_text(("N", *dims))
    rows = shape_text(("N", *dims[1:])) if dims else inputs
    return rows if rows == inputs else f"{rows} (rows) or {inputs} (whole inputs)"


class _Archive(Stacked):
    """One `.npz`."""

    def __init__(self, path: Path, description: str, specs: list[InputSpec]) -> None:
        self._path = path
        super().__init__(_headers(path), description, specs)

    def of(self, specs: list[InputSpec]) -> Stacked:
        return _Archive(self._path, self.description, specs)

    def readers(self, stack: ExitStack) -> Mapping[str, RowReader]:
        try:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            return {
                s.name: _Rows(stack, archive, self._path, self._headers[s.name])
                for s in self.specs
                if s.name in self._headers
            }
        except UNREADABLE as err:
            raise unreadable(self.description, str(err)) from err


class _Rows:
    """Rows of one array of an archive, compressed or not, without reading the others."""

    def __init__(
        self, stack: ExitStack, archive: zipfile.ZipFile, path: Path, header: Header
    ) -> None:
        self._header = header
        self._whole: np.ndarray | None = None
        self._file: IO[bytes] | None = None
        if header.fortran and len(header.shape) > 1:
            # Its rows are not contiguous in the file.
            with reading(path) as arrays:
                self._whole = arrays[header.member.removesuffix(".npy")]
        else:
            self._file = stack.enter_context(archive.open(header.member))

    def read(self, start: int, count: int) -> np.ndarray:
        """Raises: ValueError where the file ends before."""
        header = self._header
        if self._whole is not None:
            return self._whole[start : start + count]
        assert self._file is not None
        row_bytes = header.dtype.itemsize * math.prod(header.shape[1:])
        self._file.seek(header.start + start * row_bytes)
        data = self._file.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise ValueError(f"the archive ends within row {start + len(data) // row_bytes}")
        return np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])


# --- folders -------------------------------------------------------------------------------
class _Archives(SampleSource):
    """Each `.npz` of a folder is one run."""

    noun = "run"

    def __init__(self, paths: list[Path], description: str, specs: list[InputSpec]) -> None:
        super().__init__(description, specs)
        self._paths = paths
        self.units = len(paths)
        given: set[str] = set()
        for path in paths:
            found = _headers(path)
            given |= found.keys()
            check_run(str(path), {n: (h.dtype, h.shape) for n, h in found.items()}, specs)
        self._names = tuple(s.name for s in specs if s.name in given)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        return self if specs == self.specs else _Archives(self._paths, self.description, specs)

    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        by_name = {s.name: s for s in self.specs}
        for unit in units:
            path = self._paths[unit]
            try:
                with reading(path) as arrays:
                    yield {name: native(arrays[name], by_name[name]) for name in arrays.files}
            except UNREADABLE as err:
                raise unreadable(str(path), str(err)) from err


def _input_files(folder: Path) -> list[Path]:
    return sorted_paths(folder.glob("input_*.pb"))


class _TestData(SampleSource):
    """ONNX test data: `input_0.pb`, `input_1.pb`, … hold a TensorProto for each input, by name or,
    where they have none of the model's, by position."""

    noun = "run"

    def __init__(self, sets: list[Path], description: str, specs: list[InputSpec]) -> None:
        super().__init__(description, specs)
        self._sets = sets
        self.units = len(sets)
        given: set[str] = set()
        for folder in sets:
            arrays = self._read(folder)
            given |= arrays.keys()
            found = {name: (a.dtype, a.shape) for name, a in arrays.items()}
            check_run(str(folder), found, specs)
        self._names = tuple(s.name for s in specs if s.name in given)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        return self if specs == self.specs else _TestData(self._sets, self.description, specs)

    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        by_name = {s.name: s for s in self.specs}
        for unit in units:
            arrays = self._read(self._sets[unit])
            yield {name: native(array, by_name[name]) for name, array in arrays.items()}

    def _read(self, folder: Path) -> dict[str, np.ndarray]:
        names = {s.name for s in self.specs}
        in_order = [s.name for s in self.specs if s.required]
        arrays: dict[str, np.ndarray] = {}
        for position, path in enumerate(_input_files(folder)):
            tensor = TensorProto()
            try:
                tensor.ParseFromString(regular(path).read_bytes())
                if tensor.data_location == TensorProto.EXTERNAL or not tensor.data_type:
                    raise ValueError("it holds no tensor with values")
                array = numpy_helper.to_array(tensor)
            except (OSError, DecodeError, ValueError, TypeError, KeyError) as err:
                raise unreadable(str(path), f"expected a TensorProto: {err}") from err
            name = tensor.name
            if name not in names and position < len(in_order):
                name = in_order[position]
            arrays[name] = array
        return arrays


def chosen_shapes(model: Model, given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """A size for every dimension of every input: what `random:N` takes (see runtime.sizes).

    Raises: InputError O24-030, O24-036, O24-505.
    """
    return _Random("random:1", model, input_specs(model), given, 0).shapes


class _Trial:
    """How ONNX Runtime runs a model at some sizes (see runtime.sizes); the session is made when
    first asked."""

    def __init__(self, model: Model, feeds: Callable[[Mapping[str, tuple[int, ...]]], Feeds]):
        self._model, self._feeds = model, feeds
        self._session: Any = None

    def __call__(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        from onnx24.runtime.session import Session

        self._session = self._session or Session(self._model)
        try:
            found = self._session.run(self._feeds(shapes))
        except InputError:
            return 0
        return 2 if all(np.asarray(y).size for y in found.values()) else 1


# --- random numbers ------------------------------------------------------------------------
class _Random(SampleSource):
    """Seeded values that fit each dtype: normal floats; integers below the size of the table they
    select from, else 0 or 1 (a mask, a token type; in range for every table of two rows);
    8-bit integers over their whole range."""

    noun = "random sample"

    def __init__(
        self,
        text: str,
        model: Model,
        specs: list[InputSpec],
        shapes: Mapping[str, Sequence[int]],
        seed: int,
    ) -> None:
        super().__init__(f"{text} (seed {seed})", specs)
        count = text.removeprefix("random:")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", count):
            raise InputError.of(
                "O24-030", f"{text}: expected random:N with N from 1 up, found {count!r}"
            )
        self.units = int(count)
        self._seed = seed
        self._specs = [s for s in specs if s.required]
        for spec in self._specs:
            if spec.element == TensorProto.STRING:
                raise unreadable(text, f"input {spec.name!r} takes strings; pass real samples")
        index = model.index()
        self._bounds = {
            s.name: index_bound(model, index, s.name) or 2
            for s in self._specs
            if s.dtype.kind in "iu" and s.dtype.itemsize > 1
        }
        self._shapes, self.searched = concrete_shapes(specs, shapes, _Trial(model, self._once))
        self.description += "".join(
            f", {name} {'x'.join(map(str, self._shapes[name]))}" for name in self.searched
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self._specs)

    def _once(self, shapes: Mapping[str, tuple[int, ...]]) -> Feeds:
        """What to feed in one run of these sizes: of integers the largest that samples may hold,
        since they may select from what a dimension is large."""
        self._shapes = dict(shapes)
        feeds = next(self.feeds(np.arange(1), 1))
        for name, bound in self._bounds.items():
            feeds[name] = np.full_like(feeds[name], max(1, bound) - 1)
        return feeds

    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        given = {s.name: (s.dtype, self._shapes[s.name]) for s in self._specs}
        check_run(self.description, given, specs)
        return self

    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        for unit in units:
            yield {
                spec.name: self._values(spec, np.random.default_rng([self._seed, int(unit), i]))
                for i, spec in enumerate(self._specs)
            }

    def _values(self, spec: InputSpec, rng: np.random.Generator) -> np.ndarray:
        shape, dtype = self._shapes[spec.name], spec.dtype
        if dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        if spec.name in self._bounds:
            return rng.integers(0, max(1, self._bounds[spec.name]), shape).astype(dtype)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
        if dtype.name in ("int4", "uint4", "int2", "uint2"):
            return rng.integers(0, 2, shape).astype(dtype)
        if dtype.kind == "c":
            return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)
