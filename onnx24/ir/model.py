"""The document: an ONNX model without its weights in memory.

`Model` owns a lean ModelProto (see ir/weights.py), the folder of its external data, and two
generation counters. A model that no pass changed is written back byte for byte.
"""

from __future__ import annotations

import copy
import filecmp
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir import ops, wire
from onnx24.ir.bounds import Bounds, Count
from onnx24.ir.claims import Claims24
from onnx24.ir.files import AtomicFiles, copy_range
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.opset import leave_ir_version_3
from onnx24.ir.overlay import DataLayout
from onnx24.ir.scopes import Scope, scopes, tensors
from onnx24.ir.weights import (
    EMBEDDED,
    INLINE_BYTES,
    OVERLAY,
    Reference,
    Weights,
    data_folders,
    map_file,
    payload_bytes,
    reference_of,
    set_reference,
)

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

MAX_EMBEDDED_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message cannot exceed 2 GiB; a MiB is left for the graph."""

External = Literal["auto", "embed", "external"]


@dataclass(frozen=True)
class Snapshot:
    """A state to go back to; cheap, since weights are only referred to."""

    proto: bytes
    changed: bool


class Generations(NamedTuple):
    """How often each part of a model was touched. `graph`: the structure but for `metadata`, which
    no fact of the graph rests on."""

    graph: int
    metadata: int
    weights: int


class Metadata(MutableMapping[str, str]):
    """metadata_props as a mapping; writing marks the model's structure as changed."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def _entry(self, key: str):
        for entry in self._model.proto.metadata_props:
            if entry.key == key:
                return entry
        raise KeyError(key)

    def __getitem__(self, key: str) -> str:
        return self._entry(key).value

    def __setitem__(self, key: str, value: str) -> None:
        try:
            entry = self._entry(key)
        except KeyError:
            self._model.proto.metadata_props.add(key=key, value=value)
        else:
            if entry.value == value:
                return
            entry.value = value
        self._model.touch_metadata()

    def __delitem__(self, key: str) -> None:
        entry = self._entry(key)
        self._model.proto.metadata_props.remove(entry)
        self._model.touch_metadata()

    def __iter__(self) -> Iterator[str]:
        return iter([entry.key for entry in self._model.proto.metadata_props])

    def __len__(self) -> int:
        return len(self._model.proto.metadata_props)


class Model:
    """An ONNX model. Construct with `load`, `from_bytes`, `from_proto` or `from_text`."""

    def __init__(
        self,
        source: memoryview,
        path: Path | None,
        file: IO[bytes] | None = None,
        base_dir: Path | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self.path = path
        self.bounds = bounds or Bounds.default()
        """What the file was held to, and what native code is held to later."""
        self.base_dir = path.parent if path else base_dir
        self._source = source
        self.proved: set[str] = set()
        """What was found out about the file and need not be again; variants share it."""
        self.changed = False
        """Whether anything was touched since loading."""
        self._structure = 0
        self._metadata = 0
        self._weights_generation = 0
        self._replaced: dict[ValueKey | None, int] = {}
        """The generation of each initializer's last values; under None that of values of which
        nobody said whose they are"""
        self._tensors: tuple[int, dict[ValueKey, TensorProto]] | None = None
        self._indexed: tuple[int, Index] | None = None
        self.defects: frozenset[str] = frozenset()
        """Harmless defects of the input that `ir.repair` knows, found by `ir.check`."""
        self.proto = _parse(source, str(path or "standard input"), self.bounds)
        self.file_ir_version = self.proto.ir_version
        """What the file says. The document is of version 4 at least, so that nobody has to know of
        initializers that are listed as inputs and are none."""
        leave_ir_version_3(self.proto)
        self.weights = Weights(
            source,
            data_folders(path, self.base_dir),
            self._initializers,
            lambda key: self.touch(Effects.WEIGHTS, values_of=key),
            file,
        )
        self._input_locations = tuple(self.external_locations())
        """The input's data files, also when nothing refers to them any more."""
        self.metadata = Metadata(self)
        self.claims = Claims24(self.metadata)

    # --- construction ----------------------------------------------------------------------
    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, check: bool = True, bounds: Bounds | None = None
    ) -> Model:
        """Open a model; "-" reads standard input. Weights stay in the file, which must not
        change meanwhile.

        check: refuse what is not a valid model (ir.check), not only what does not parse.
        bounds: the most that is read, those of ir.bounds where None.
        Raises: InputError O24-001 to O24-017.
        """
        if str(path) == "-":
            model = cls(memoryview(sys.stdin.buffer.read()), None, bounds=bounds)
        else:
            file_path = Path(path)
            if "\0" in str(path):
                raise InputError.of("O24-001", f"{str(path)!r} is no file name")
            try:
                if file_path.exists() and not (file_path.is_file() or file_path.is_dir()):
                    message = "it is no regular file; '-' reads standard input"
                    raise InputError.of("O24-001", message, file=str(path))
                file = open(file_path, "rb")  # noqa: SIM115 - open as long as the model lives
                source = map_file(file)
            except OSError as err:
                reason = os.strerror(err.errno) if err.errno else str(err)
                raise InputError.of("O24-001", reason, file=str(path)) from err
            try:
                model = cls(source, file_path, file, bounds=bounds)
            except BaseException:
                file.close()
                raise
        return model._checked() if check else model

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        check: bool = True,
        base_dir: Path | None = None,
        bounds: Bounds | None = None,
    ) -> Model:
        """base_dir: the folder of the external data; without one, a model that has some is
        refused. bounds: as in `load`."""
        model = cls(memoryview(data), None, base_dir=base_dir, bounds=bounds)
        return model._checked() if check else model

    @classmethod
    def from_proto(cls, proto: ModelProto, *, check: bool = True) -> Model:
        return cls.from_bytes(proto.SerializeToString(deterministic=True), check=check)

    @classmethod
    def from_text(cls, text: str) -> Model:
        """ONNX's textual syntax (onnx.parser). Raises: InputError O24-002."""
        try:
            proto = onnx.parser.parse_model(text)
        except onnx.parser.ParseError as err:
            raise InputError.of("O24-002", f"the ONNX text does not parse: {err}") from err
        return cls.from_proto(proto)

    def _checked(self) -> Model:
        from onnx24.ir.check import check_input

        check_input(self)
        return self

    # --- state -----------------------------------------------------------------------------
    def touch(self, effects: Effects, *, values_of: ValueKey | None = None) -> None:
        """Say that the document was edited directly; caches and `save` go by it.

        values_of: the initializer whose values alone are new; facts that do not rest on them stay.
        """
        self.changed = self.changed or bool(effects)
        if Effects.STRUCTURE in effects:
            self._structure += 1
        if Effects.WEIGHTS in effects:
            self._weights_generation += 1
            self._replaced[values_of] = self._weights_generation

    def touch_metadata(self) -> None:
        self.changed = True
        self._metadata += 1

    @property
    def generations(self) -> Generations:
        return Generations(self._structure, self._metadata, self._weights_generation)

    def replaced_since(self, weights: int) -> set[ValueKey] | None:
        """The initializers with other values than in that generation of the weights; None where
        they are not known."""
        late = {key for key, generation in self._replaced.items() if generation > weights}
        return None if None in late else late  # type: ignore[return-value]

    def generation_key(self, depends: Effects) -> tuple[int, ...]:
        """What an analysis goes by. Metadata count for none."""
        return (
            self._structure if Effects.STRUCTURE in depends else -1,
            self._weights_generation if Effects.WEIGHTS in depends else -1,
        )

    def snapshot(self) -> Snapshot:
        return Snapshot(self.proto.SerializeToString(deterministic=True), self.changed)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back. Generations only grow: an analysis of the abandoned state that is still
        cached must not be taken for one of the restored state."""
        self.proto = ModelProto.FromString(snapshot.proto)
        self.touch(Effects.STRUCTURE | Effects.WEIGHTS)
        self.touch_metadata()
        self.changed = snapshot.changed

    # --- reading ---------------------------------------------------------------------------
    @property
    def opsets(self) -> dict[str, int]:
        """Domain → version; ai.onnx is ""."""
        return ops.opsets(self.proto)

    @property
    def opset(self) -> int:
        """Version of ai.onnx; 1 where a model does not import it."""
        return ops.opset(self.proto)

    def scopes(self) -> Iterator[Scope]:
        return scopes(self.proto)

    def index(self) -> Index:
        """Producers and consumers, as of the last `touch`: not to be asked for in the middle of an
        edit."""
        if self._indexed is None or self._indexed[0] != self._structure:
            self._indexed = (self._structure, Index.of(self.proto))
        return self._indexed[1]

    def _initializers(self) -> dict[ValueKey, TensorProto]:
        if self._tensors is None or self._tensors[0] != self._structure:
            found = {
                ValueKey(scope.path, tensor.name): tensor
                for scope in self.scopes()
                for tensor in scope.initializers
            }
            self._tensors = (self._structure, found)
        return self._tensors[1]

    def surgeon(self) -> AbstractContextManager[gs.Graph]:
        """A weightless onnx-graphsurgeon view whose difference is committed on exit; see
        ir/surgeon.py."""
        from onnx24.ir.surgeon import surgeon

        return surgeon(self)

    def skeleton(self) -> ModelProto:
        """A weightless copy that onnx's C++ tools take: shape inference, the version converter
        and the inliner look at no payload. For the checker use ir.check.run_checker."""
        skeleton = ModelProto()
        skeleton.CopyFrom(self.proto)
        return skeleton

    def variant(self, proto: ModelProto) -> Model:
        """A throw-away model of another document over the same weights, to be run or saved: this
        model's nodes with other outputs, for instance. Its metadata and claims are this one's."""
        clone = copy.copy(self)
        clone.proto = proto
        clone._indexed = None
        clone._replaced = dict(self._replaced)
        clone.changed = True
        return clone

    def reading_copy(self) -> Model:
        """A copy with a document, metadata and claims of its own over the same payloads.
        Tensors may enter it (`weights.set_values`); the values under an existing name are not to be
        replaced, since both models read them."""
        clone = copy.copy(self)
        clone.proto = ModelProto()
        clone.proto.CopyFrom(self.proto)
        clone._tensors = clone._indexed = None
        clone._replaced = dict(self._replaced)
        clone.metadata = Metadata(clone)
        clone.claims = Claims24(clone.metadata)
        clone.weights = self.weights.named_by(clone._initializers)
        return clone

    # --- writing ---------------------------------------------------------------------------
    def full_proto(self) -> ModelProto:
        """The whole model in memory. Raises: InputError O24-042 above 2 GiB."""
        return ModelProto.FromString(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The whole model, weights embedded. Raises: InputError O24-042 above 2 GiB."""
        if not self.changed and not self.external_locations():
            return bytes(self._source)
        rope = self._embedded_rope()
        self._check_embeddable(rope)
        return b"".join(
            bytes(self.weights.resolve(Reference(*piece.reference, piece.length)))
            if isinstance(piece, wire.Payload)
            else bytes(piece)
            for piece in rope
        )

    def save(self, path: str | os.PathLike[str], *, external: External = "auto") -> None:
        """Write the model, whole or not at all; "-" is standard output.

        external: "auto" keeps large weights in a data file `<name>.data` next to the model where
        the input had external data or the whole would exceed 2 GiB, "embed" and "external" say
        so. A model that nothing changed is copied byte for byte, its data files too.
        Raises: InputError O24-040 to O24-042.
        """
        if str(path) == "-":
            if self.external_locations():
                raise InputError.of("O24-042", "the model has external data", file="-")
            sys.stdout.buffer.write(self.to_bytes())
            sys.stdout.buffer.flush()
            return
        target = Path(path)
        self._refuse_overwriting(target)
        if not self.changed and external == "auto" and self._data_fits_beside(target):
            self._copy_verbatim(target)
            return
        if self._is_external(external):
            self._save_external(target)
        else:
            rope = self._embedded_rope()
            self._check_embeddable(rope)
            with AtomicFiles() as files:
                out = files.create(target)
                for piece in rope:
                    if isinstance(piece, wire.Payload):
                        self._copy_payload(Reference(*piece.reference, piece.length), out)
                    else:
                        out.write(piece)

    def stage(self, path: str | os.PathLike[str], *, external: External = "auto") -> None:
        """Say where the model will be saved, before weights are replaced: those of a large model
        are then written to their place in its data file at once. That file has no name until
        `save`, and is gone if that is never called."""
        if str(path) != "-" and self._is_external(external):
            self.weights.overlay.stage(_beside(Path(path)), DataLayout.of(self._references()))

    def _is_external(self, external: External) -> bool:
        if external != "auto":
            return external == "external"
        if self._input_locations:
            return True
        return sum(payload_bytes(t) for t in self._large_tensors()) > MAX_EMBEDDED_BYTES

    def _references(self) -> Iterator[Reference]:
        refs = (reference_of(tensor) for tensor in tensors(self.proto))
        return (ref for ref in refs if ref is not None)

    def external_locations(self) -> list[str]:
        return sorted({r.location for r in self._references()} - {EMBEDDED, OVERLAY})

    def _large_tensors(self) -> Iterator[TensorProto]:
        return (tensor for tensor in tensors(self.proto) if reference_of(tensor) is not None)

    def _refuse_overwriting(self, target: Path) -> None:
        if not target.exists() or self.base_dir is None:
            return
        inputs = [self.path] if self.path else []
        folders = data_folders(self.path, self.base_dir)
        inputs += [folder / name for folder in folders for name in self._input_locations]
        for source in inputs:
            if source.exists() and target.samefile(source):
                raise InputError.of("O24-041", "the output is the input", file=str(target))

    def _data_fits_beside(self, target: Path) -> bool:
        """Whether each data file, under the name that the model has for it, would lie in the folder
        of `target`: `../here/x` leads back into the input's folder and out of every other."""
        folder = target.parent.resolve()
        places = [(folder / location).resolve() for location in self.external_locations()]
        inside = all(place.is_relative_to(folder) for place in places)
        return inside and folder / target.name not in places

    def _copy_verbatim(self, target: Path) -> None:
        with AtomicFiles() as files:
            for location in self.external_locations():
                source = self.weights.external_path(location, "")
                beside = target.parent / location
                if beside.exists():
                    if filecmp.cmp(beside, source, shallow=False):
                        continue
                    raise InputError.of(
                        "O24-040",
                        "an unchanged model keeps the name of its data file, and another file of "
                        "that name is there",
                        file=str(beside),
                    )
                files.make_folder(beside.parent)
                with open(source, "rb") as file:
                    copy_range(file, files.create(beside), 0, os.fstat(file.fileno()).st_size)
            whole = Reference(EMBEDDED, 0, len(self._source))
            self._copy_payload(whole, files.create(target))

    def _embedded_rope(self) -> wire.Rope:
        lean = memoryview(self.proto.SerializeToString(deterministic=True))
        return wire.rewrite(lean, _embed) or [lean]

    def _check_embeddable(self, rope: wire.Rope) -> None:
        size = wire.rope_length(rope)
        if size > MAX_EMBEDDED_BYTES + (1 << 20):
            raise InputError.of(
                "O24-042",
                f"the model is {size / 2**30:.2f} GiB; a file without external data ends at 2 GiB",
                file=str(self.path or "-"),
            )

    def _copy_payload(self, ref: Reference, out: IO[bytes], at: int | None = None) -> None:
        source = self.weights.open(ref)
        if source is None:
            if at is not None:
                out.seek(at)
            out.write(self.weights.resolve(ref))
            return
        file, offset = source
        with file:
            copy_range(file, out, offset, ref.length, at)

    def _save_external(self, target: Path) -> None:
        beside = _beside(target)
        self._refuse_overwriting(beside)
        layout = DataLayout.of(self._references())
        document = self.skeleton()
        for tensor in tensors(document):
            if (ref := reference_of(tensor)) is not None:
                place = Reference(beside.name, layout.positions[ref], ref.length)
                set_reference(tensor, place)
        with AtomicFiles() as files:
            data, missing = self._data_file(files, beside, layout)
            for ref in missing:
                self._copy_payload(ref, data, layout.positions[ref])
            data.flush()
            os.truncate(data.fileno(), layout.nbytes)
            files.create(target).write(document.SerializeToString(deterministic=True))

    def _data_file(
        self, files: AtomicFiles, path: Path, layout: DataLayout
    ) -> tuple[IO[bytes], list[Reference]]:
        """The file to be written, and the payloads that are not yet in it."""
        overlay = self.weights.overlay
        staged = overlay.staged_for(path, layout)
        if staged is not None and (data := files.adopt(staged, path)) is not None:
            missing = [r for r, p in layout.positions.items() if not overlay.is_in_place(r, p)]
            overlay.seal()
            return data, missing
        return files.create(path), list(layout.positions)


def _beside(path: Path) -> Path:
    """The data file of a model that is saved at `path`."""
    return path.with_name(f"{path.name}.data")


def _parse(source: memoryview, name: str, bounds: Bounds) -> ModelProto:
    """The lean ModelProto of a serialized model."""
    if not len(source):
        raise InputError.of("O24-002", "the file is empty", file=name)
    try:
        elided: set[int] = set()
        rope = wire.rewrite(
            source,
            lambda *span: _elide(elided, *span),
            children=wire.DENSE,
            on_field=Count(bounds, name).message,
        )
        lean = bytes(source) if rope is None else b"".join(bytes(p) for p in rope)  # type: ignore[arg-type]
        proto = ModelProto.FromString(lean)
    except (wire.WireError, DecodeError) as err:
        raise _not_a_model(source, name, err) from err
    if not proto.HasField("graph") and not proto.ir_version:
        raise _not_a_model(source, name, None)
    for tensor in tensors(proto):
        ref = reference_of(tensor)
        if ref is None or ref.location not in (EMBEDDED, OVERLAY):
            continue
        if ref.location == OVERLAY or ref.offset not in elided:
            raise InputError.of(
                "O24-006", f"external data at {ref.location!r}", file=name, tensor=tensor.name
            )
    return proto


_FORMATS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80", "a pickle"),
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself"),
    (b"<", "an HTML or XML page"),
    (b"{", "JSON text"),
)


def _not_a_model(source: memoryview, name: str, err: Exception | None) -> InputError:
    head = bytes(source[:32])
    if isinstance(err, wire.WireError) and err.too_deep:
        return InputError.of("O24-017", str(err), file=name)
    for magic, what in _FORMATS:
        if head.startswith(magic):
            return InputError.of("O24-002", f"expected an ONNX model, found {what}", file=name)
    # Every exporter writes ir_version (field 1, a small number) first.
    looks_right = len(head) > 2 and head[0] == 0x08 and head[1] < 0x40
    if isinstance(err, wire.WireError) and err.truncated and looks_right:
        return InputError.of(
            "O24-003", f"the model ends in the middle of a field, at byte {len(source)}", file=name
        )
    return InputError.of(
        "O24-002", "expected a serialized ONNX ModelProto, found other bytes", file=name
    )


def _elide(elided: set[int], buf: memoryview, start: int, end: int) -> wire.Rope | None:
    """Replace a tensor's large raw_data by a reference to where it lies in the file, and note
    the offset: a file that brings such a reference itself is lying."""
    if end - start <= INLINE_BYTES:
        return None
    found = wire.find_raw_data(buf, start, end)
    if found is None or found[2] - found[1] <= INLINE_BYTES:
        return None
    field_start, payload, stop = found
    elided.add(payload)
    stub = TensorProto()
    set_reference(stub, Reference(EMBEDDED, payload, stop - payload))
    return [buf[start:field_start], buf[stop:end], stub.SerializeToString()]


def _embed(buf: memoryview, start: int, end: int) -> wire.Rope | None:
    """The inverse: a tensor whose reference becomes raw_data, to be filled while writing."""
    tensor = TensorProto.FromString(bytes(buf[start:end]))
    ref = reference_of(tensor)
    if ref is None:
        return None
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    return [
        tensor.SerializeToString(deterministic=True),
        wire.RAW_DATA_TAG + wire.varint(ref.length),
        wire.Payload((ref.location, ref.offset), ref.length),
    ]
