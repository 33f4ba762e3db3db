"""Samples that a caller holds in memory, or makes: arrays, batches, loaders, tables.

What is taken, and how it is read:

- a dict of arrays: as an `.npz`, one array for each input, samples stacked along the first axis;
- one array, for a model of one input: the same;
- a list of batches, or an iterator that gives them: a batch is a dict by input name, a tuple or a
  list by the inputs' order, or one array. It is one run where its arrays are what the model takes;
  else its rows are divided into runs as those of an `.npz` are, and an array that lacks only the
  first axis is one sample. Names that the model does not know, and what stands behind the last
  input in a tuple, are labels: they are left out, and `describe` names them;
- a torch `DataLoader`, or any other object that is iterated: its batches;
- a function without arguments: called for each pass over the data, it gives a fresh iterator.
  Nothing is held; what it gives must be the same each time, and that is checked;
- a table of Hugging Face `datasets`, or an object with its `column_names`, `len` and slices:
  columns are inputs, rows samples, read slice by slice.

What can be read only once is kept in memory, up to MAX_HELD_BYTES. Tensors of torch and whatever
numpy can read count as arrays; Python numbers take the dtype of the input, arrays must have it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import (
    Calibration,
    Feeds,
    Header,
    RowReader,
    SampleSource,
    Stacked,
    check_names,
    fits,
)
from onnx24.runtime.inputs import InputSpec, input_specs

__all__ = ["MAX_HELD_BYTES", "calibration_of"]

MAX_HELD_BYTES = 4 << 30
"""Of samples that can be read only once."""


def calibration_of(data: Any, model: Model) -> Calibration:
    """The samples that an object of the caller's (see the module) holds, checked against the
    model's inputs.

    Raises: InputError O24-030 to O24-033; O24-065 for an object of another kind, O24-066 for
    samples that do not fit into memory, O24-067 for a function that gives other samples each time.
    """
    specs = input_specs(model)
    if _is_array(data):
        return Calibration(_Arrays(_by_position([data], specs), "an array", specs))
    if isinstance(data, Mapping):
        arrays = {str(name): _array(value, specs, str(name)) for name, value in data.items()}
        return Calibration(_Arrays(arrays, "arrays", specs))
    if hasattr(data, "column_names") and hasattr(data, "__getitem__"):
        return Calibration(_table(data, specs))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return Calibration(_Batches(list(data), "a list of batches", specs))
    if callable(data) and not hasattr(data, "__iter__"):
        return Calibration(_Stream(data, specs))
    if not isinstance(data, Iterable) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        data = (data[i] for i in range(len(data)))  # a torch Dataset
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        kind = type(data).__name__
        return Calibration(_Batches(_held(data, specs), f"batches of a {kind}", specs))
    raise InputError.of(
        "O24-065",
        f"expected samples, found {type(data).__module__}.{type(data).__qualname__}",
    )


# --- arrays of any maker ------------------------------------------------------------------------


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        hasattr(value, "dtype") and hasattr(value, "shape") and not hasattr(value, "column_names")
    )


def _array(value: Any, specs: Sequence[InputSpec], name: str) -> np.ndarray:
    """As numpy has it. Python numbers and lists of them take the input's dtype; arrays keep
    theirs, which is checked later."""
    if hasattr(value, "detach"):  # a torch tensor, wherever it lies
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    if _is_array(value):
        return np.asarray(value)
    spec = next((s for s in specs if s.name == name), None)
    try:
        array = np.asarray(value)
    except ValueError as err:  # lists of different lengths
        raise InputError.of(
            "O24-032", f"expected samples of one shape: {err}", tensor=name
        ) from err
    if spec is None or spec.element == TensorProto.STRING or array.dtype.kind not in "biuf":
        return array
    cast = array.astype(spec.dtype)
    if array.dtype.kind in "biu" and not np.array_equal(cast.astype(array.dtype), array):
        raise InputError.of(
            "O24-033", f"expected {spec.dtype_text}, found numbers that it has not", tensor=name
        )
    if array.dtype.kind == "f" and spec.dtype.kind in "biu":
        raise InputError.of("O24-033", f"expected {spec.dtype_text}, found float64", tensor=name)
    return cast


def _by_position(values: Sequence[Any], specs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """Arrays in the order of the inputs that must be fed; what is left over are labels."""
    wanted = [s.name for s in specs if s.required]
    return {n: _array(v, specs, n) for n, v in zip(wanted, values, strict=False)}


def _batch(item: Any, specs: Sequence[InputSpec]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of one batch, and the names of what was left out."""
    if isinstance(item, tuple | list) and item and isinstance(item[0], Mapping):
        item = item[0]  # (inputs, labels)
    if isinstance(item, Mapping) or hasattr(item, "keys"):
        known = {s.name for s in specs}
        names = [str(name) for name in item.keys()]  # noqa: SIM118 - transformers' BatchEncoding
        arrays = {n: _array(item[n], specs, n) for n in names if n in known}
        return arrays, [n for n in names if n not in known]
    if _is_array(item):
        return _by_position([item], specs), []
    if isinstance(item, tuple | list):
        arrays = _by_position(item, specs)
        return arrays, [f"position {i}" for i in range(len(arrays), len(item))]
    raise InputError.of("O24-065", f"expected a batch of arrays, found {type(item).__qualname__}")


def _held(data: Iterable[Any], specs: Sequence[InputSpec]) -> list[Any]:
    """The batches of something that can be read only once. Raises: InputError O24-066."""
    kept: list[Any] = []
    nbytes = 0
    for item in data:
        arrays, left = _batch(item, specs)
        nbytes += sum(array.nbytes for array in arrays.values())
        if nbytes > MAX_HELD_BYTES:
            raise InputError.of(
                "O24-066",
                f"expected at most {MAX_HELD_BYTES >> 30} GiB of samples that can be read only "
                f"once, found more after {len(kept)} batches",
            )
        kept.append(_Read({n: _own(a) for n, a in arrays.items()}, left))
    return kept


def _own(array: np.ndarray) -> np.ndarray:
    """A copy: a loader may give the same buffer each time."""
    return np.array(array, order="C")


class _Read(dict[str, np.ndarray]):
    """A batch that was read already."""

    def __init__(self, arrays: Mapping[str, np.ndarray], left: list[str]) -> None:
        super().__init__(arrays)
        self.left = left


# --- sources ------------------------------------------------------------------------------------


class _Slice:
    """Rows of an array in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def read(self, start: int, count: int) -> np.ndarray:
        return self._array[start : start + count]


class _Arrays(Stacked):
    """As an `.npz`, in memory."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], description: str, specs: list[InputSpec]
    ) -> None:
        self._arrays = dict(arrays)
        headers = {name: Header(a.shape, a.dtype) for name, a in self._arrays.items()}
        super().__init__(headers, description, specs)

    def of(self, specs: list[InputSpec]) -> Stacked:
        return _Arrays(self._arrays, self.description, specs)

    def readers(self, stack: ExitStack) -> Mapping[str, RowReader]:
        return {name: _Slice(array) for name, array in self._arrays.items()}

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        return self._arrays

    def unit_samples(self) -> int:
        """Samples in one unit. A whole run holds as many as its arrays have rows, where the first
        dimension of each input is dynamic and all agree."""
        sizes = {
            self._arrays[s.name].shape[1] if s.dims and not isinstance(s.dims[0], int) else 0
            for s in self.specs
            if s.name in self._arrays and self._arrays[s.name].ndim > len(s.dims or ())
        }
        found = sizes.pop() if len(sizes) == 1 else 0
        return found or self.samples_per_unit


class _Batches(SampleSource):
    """Batches that are held. Each is divided by itself: rows of two batches never meet in a run."""

    def __init__(self, items: Sequence[Any], description: str, specs: list[InputSpec]) -> None:
        self._items, self._named = items, description
        self._parts: list[_Arrays] = []
        left: dict[str, None] = {}
        for i, item in enumerate(items):
            part, labels = _part(item, specs, f"batch {i}")
            self._parts += [part] if part else []
            left.update(dict.fromkeys(labels))
        if not self._parts:
            raise InputError.of("O24-030", f"{description}: there are no samples")
        if left:
            description = f"{description} (left out: {', '.join(left)})"
        super().__init__(description, specs)
        self._ends = np.cumsum([part.units for part in self._parts])
        self.units = int(self._ends[-1])
        self.units_per_run = max(part.units_per_run for part in self._parts)
        self._sizes = np.repeat(
            [part.unit_samples() for part in self._parts], [part.units for part in self._parts]
        )

    def count(self, units: np.ndarray) -> int:
        return int(self._sizes[units].sum())

    @property
    def names(self) -> tuple[str, ...]:
        return self._parts[0].names

    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        return self if specs == self.specs else _Batches(self._items, self._named, specs)

    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        owner = np.searchsorted(self._ends, units, side="right")
        for chosen in np.split(units, np.flatnonzero(np.diff(owner)) + 1):
            if len(chosen):
                i = int(np.searchsorted(self._ends, chosen[0], side="right"))
                part = self._parts[i]
                own = chosen - (self._ends[i] - part.units)
                yield from part.feeds(own, min(per_run, part.units_per_run))


def _part(item: Any, specs: list[InputSpec], where: str) -> tuple[_Arrays | None, list[str]]:
    """One batch as a source of its own, None where it fills no run; and the names of what was left
    out."""
    arrays, left = (item, item.left) if isinstance(item, _Read) else _batch(item, specs)
    check_names(where, list(arrays), specs)
    if _is_too_small(arrays, specs):
        return None, [_TOO_SMALL]
    if _is_one_run(arrays, specs) or _is_one_sample(arrays, specs):
        arrays = {n: a[None] for n, a in arrays.items()}
    return _Arrays(arrays, where, specs), left


_TOO_SMALL = "batches that fill no run"


def _is_too_small(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec]) -> bool:
    """Whether an input of a fixed batch is given fewer rows than one run takes, as the last batch
    of a loader may be, or all are given none."""
    if arrays and not any(array.shape[:1] != (0,) for array in arrays.values()):
        return True
    return any(
        spec.dims
        and isinstance(spec.dims[0], int)
        and arrays[spec.name].ndim == len(spec.dims)
        and arrays[spec.name].shape[0] < spec.dims[0]
        for spec in specs
        if spec.name in arrays
    )


def _is_one_run(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec]) -> bool:
    return all(
        spec.name not in arrays or spec.dims is None or fits(spec.dims, arrays[spec.name].shape)
        for spec in specs
    )


def _is_one_sample(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec]) -> bool:
    """Whether every array lacks the first axis, of size 1 or dynamic, and nothing else."""
    fed = [spec for spec in specs if spec.name in arrays]
    return all(
        spec.dims
        and (spec.dims[0] == 1 or not isinstance(spec.dims[0], int))
        and fits(spec.dims[1:], arrays[spec.name].shape)
        for spec in fed
    )


class _Stream(SampleSource):
    """What a function gives, read anew for each pass over the data."""

    def __init__(self, function: Callable[[], Any], specs: list[InputSpec]) -> None:
        self._function = function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        left: dict[str, None] = {}
        self._counts: list[int] = []
        self._sums: list[int] = []
        sizes: list[int] = []
        per_run = 1
        for part, labels in self._parts(specs):
            left.update(dict.fromkeys(labels))
            if part is None:
                continue
            self._counts.append(part.units)
            self._sums.append(_checksum(part))
            self._names = part.names
            sizes += [part.unit_samples()] * part.units
            per_run = max(per_run, part.units_per_run)
        if not self._counts:
            raise InputError.of("O24-030", f"the function {name} gives no samples")
        text = f" (left out: {', '.join(left)})" if left else ""
        super().__init__(f"the function {name}{text}", specs)
        self.units, self.units_per_run = sum(self._counts), per_run
        self._sizes = np.array(sizes)

    def count(self, units: np.ndarray) -> int:
        return int(self._sizes[units].sum())

    def _parts(self, specs: list[InputSpec]) -> Iterator[tuple[_Arrays | None, list[str]]]:
        for i, item in enumerate(_iterated(self._function())):
            yield _part(item, specs, f"batch {i}")

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def fitted(self, specs: list[InputSpec]) -> SampleSource:
        return self if specs == self.specs else _Stream(self._function, specs)

    def feeds(self, units: np.ndarray, per_run: int) -> Iterator[Feeds]:
        start = index = 0
        last = int(units[-1]) if len(units) else -1
        parts = (part for part, _ in self._parts(self.specs) if part is not None)
        for index, part in enumerate(parts):
            if index >= len(self._counts) or _checksum(part) != self._sums[index]:
                raise self._changed(index)
            own = units[(units >= start) & (units < start + part.units)] - start
            start += part.units
            if len(own):
                yield from part.feeds(own, min(per_run, part.units_per_run))
            if start > last:
                return
        raise self._changed(index + 1)

    def _changed(self, index: int) -> InputError:
        return InputError.of(
            "O24-067", f"{self.description}: batch {index} is not what it was in the first pass"
        )


def _iterated(given: Any) -> Iterable[Any]:
    """What a function gave: an iterator or a list of batches, or all samples at once."""
    if isinstance(given, Mapping) or _is_array(given):
        return [given]
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return given
    raise InputError.of(
        "O24-065", f"expected batches of the function, found {type(given).__qualname__}"
    )


def _checksum(part: _Arrays) -> int:
    found = 0
    for name, array in part.arrays.items():
        found = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), found)
        if array.dtype != object:
            found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return found


# --- tables -------------------------------------------------------------------------------------


class _Column:
    """Rows of a column, slice by slice."""

    def __init__(self, table: Any, name: str, specs: Sequence[InputSpec]) -> None:
        self._table, self._name, self._specs = table, name, specs

    def read(self, start: int, count: int) -> np.ndarray:
        return _column(self._table, self._name, start, start + count, self._specs)


def _column(table: Any, name: str, start: int, stop: int, specs: Sequence[InputSpec]) -> np.ndarray:
    values = table[start:stop][name]
    if isinstance(values, list) and values and hasattr(values[0], "shape"):
        values = np.stack([_array(value, specs, name) for value in values])
    return _array(values, specs, name)


class _Table(Stacked):
    """A table of Hugging Face `datasets`."""

    def __init__(self, table: Any, description: str, specs: list[InputSpec]) -> None:
        self._table = table
        count = len(table)
        headers = {}
        for spec in specs:
            if spec.name in table.column_names and count:
                first = _column(table, spec.name, 0, 1, specs)
                headers[spec.name] = Header((count, *first.shape[1:]), first.dtype)
        super().__init__(headers, description, specs)

    def of(self, specs: list[InputSpec]) -> Stacked:
        return _Table(self._table, self.description, specs)

    def readers(self, stack: ExitStack) -> Mapping[str, RowReader]:
        return {name: _Column(self._table, name, self.specs) for name in self.names}


def _table(table: Any, specs: list[InputSpec]) -> _Table:
    if isinstance(table.column_names, Mapping):  # a DatasetDict: its parts are tables
        parts = ", ".join(map(str, table))
        raise InputError.of(
            "O24-065", f"expected one table, found several: {parts}", hint="pass one of them"
        )
    known = {s.name for s in specs}
    left = [name for name in table.column_names if name not in known]
    text = f"a table (left out: {', '.join(left)})" if left else "a table"
    return _Table(table, text, specs)
