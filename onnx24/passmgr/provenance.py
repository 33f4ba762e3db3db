"""What a compiled model says of its own making, in metadata_props.

| entry | holds |
|---|---|
| `onnx24.version` | the version that wrote it |
| `onnx24.pipeline` | the pipelines that made it, expanded; `gate` and `recover{…}` |
| `onnx24.target` | the target's name |
| `onnx24.source.sha256` | of the input file |
| `onnx24.source.data.sha256` | of its data files, where it has any |
| `onnx24.origin.sha256` | of the first input, where the input was itself made by onnx24 |
| `onnx24.origin.data.sha256` or `….checksum` | of its data files, where it had any |
| `onnx24.calibration.sha256` | of the calibration samples, where some were used |
| `onnx24.held-out.sha256` | of the samples held out of them, of every step that held some out |
| `onnx24.report.sha256` | of what the report says of passes and weights (docs/report.md) |
| `onnx24.content.sha256` | of the model as it was written: graph, weights, all other entries |
| `onnx24.signature` | who vouches for that (signing.py): no part of the record |
| `onnx24.source.data.checksum`, `onnx24.content.checksum` | instead of the two, in a fast record |

A `full` record takes sha256 of every byte that was read and written, which for gigabytes takes
longer than pruning them. A `fast` one takes the checksum of ir/checksum.py of all values above
1 KiB, on the way: it shows accidents, and says nothing against who constructs other values. The
graph, smaller values and the model's file are under sha256 in either. `auto` is fast where the
values outside of the document fill FAST_FROM_BYTES.

The content's digest is that of the values, wherever they lie, so that moving weights into or out
of a data file keeps it; it says that nobody edited the model since, and not who wrote it: whoever
edits it can write a new digest. No entry depends on time or place, so that the same input, options
and versions still give the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from onnx import ModelProto, TensorProto

from onnx24 import __version__
from onnx24.ir.model import Model
from onnx24.ir.scopes import tensors
from onnx24.ir.weights import (
    EMBEDDED,
    INLINE_BYTES,
    OVERLAY,
    Reference,
    Weights,
    payload_bytes,
    reference_of,
)
from onnx24.passmgr.manager import PIPELINE_KEY
from onnx24.runtime.split import FITTED_KEY, HELD_OUT_KEY
from onnx24.sparsity.masks import engine_for

VERSION_KEY = "onnx24.version"
TARGET_KEY = "onnx24.target"
SOURCE_KEY = "onnx24.source.sha256"
SOURCE_DATA_KEY = "onnx24.source.data.sha256"
ORIGIN_KEY = "onnx24.origin.sha256"
ORIGIN_DATA_KEY = "onnx24.origin.data.sha256"
ORIGIN_DATA_SUM_KEY = "onnx24.origin.data.checksum"
REPORT_KEY = "onnx24.report.sha256"
CONTENT_KEY = "onnx24.content.sha256"
SOURCE_DATA_SUM_KEY = "onnx24.source.data.checksum"
CONTENT_SUM_KEY = "onnx24.content.checksum"
SIGNATURE_KEY = "onnx24.signature"

FAST_FROM_BYTES = 1 << 30
"""Values from which a record is fast by default: sha256 of what is read and written takes 1.3 s of
CPU a GiB (decision D41)."""

_OF_AN_INPUT = ("sha256", "data.sha256", "data.checksum")
"""What is recorded of an input, after `onnx24.source.` and `onnx24.origin.`."""

Strength = Literal["full", "fast", "off"]
STRENGTHS = ("auto", "full", "fast", "off")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The entries of one model; "" for those that are not there."""

    version: str = ""
    pipeline: str = ""
    target: str = ""
    source_sha256: str = ""
    source_data_sha256: str = ""
    origin_sha256: str = ""
    origin_data_sha256: str = ""
    origin_data_checksum: str = ""
    calibration_sha256: str = ""
    held_out: str = ""
    report_sha256: str = ""
    content_sha256: str = ""
    source_data_checksum: str = ""
    content_checksum: str = ""

    @property
    def is_fast(self) -> bool:
        return bool(self.content_checksum) and not self.content_sha256

    @classmethod
    def of(cls, model: Model) -> Provenance:
        return cls(**{name: model.metadata.get(key, "") for name, key in _KEYS.items()})

    def problems(self, model: Model) -> list[str]:
        """What is missing, malformed, or contradicted by the model itself."""
        found = [
            f"no entry {_KEYS[name]!r}"
            for name in ("version", "pipeline", "target", "source_sha256", "content_sha256")
            if not getattr(self, name) and not (name == "content_sha256" and self.is_fast)
        ]
        found += [
            f"{key!r} is no sha256: {getattr(self, name)!r}"
            for name, key in _KEYS.items()
            if name.endswith(("sha256", "checksum"))
            and getattr(self, name)
            and not _SHA256.fullmatch(getattr(self, name))
        ]
        recorded = self.content_checksum if self.is_fast else self.content_sha256
        if not found and content_digest(model, fast=self.is_fast) != recorded:
            found.append("the model was changed after onnx24 wrote it")
        return found

    def to_json(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value}


_KEYS = {
    "version": VERSION_KEY,
    "pipeline": PIPELINE_KEY,
    "target": TARGET_KEY,
    "source_sha256": SOURCE_KEY,
    "source_data_sha256": SOURCE_DATA_KEY,
    "origin_sha256": ORIGIN_KEY,
    "origin_data_sha256": ORIGIN_DATA_KEY,
    "origin_data_checksum": ORIGIN_DATA_SUM_KEY,
    "calibration_sha256": FITTED_KEY,
    "held_out": HELD_OUT_KEY,
    "report_sha256": REPORT_KEY,
    "content_sha256": CONTENT_KEY,
    "source_data_checksum": SOURCE_DATA_SUM_KEY,
    "content_checksum": CONTENT_SUM_KEY,
}


def strength(mode: str, model: Model) -> Strength:
    """What `mode` means for a model that was just loaded. `mode`: one of STRENGTHS."""
    if mode != "auto":
        return cast(Strength, mode)
    return "fast" if _referred_bytes(model) >= FAST_FROM_BYTES else "full"


def _referred_bytes(model: Model) -> int:
    references = {reference_of(tensor) for tensor in tensors(model.proto)}
    return sum(ref.length for ref in references if ref is not None)


@dataclass(frozen=True)
class DataRanges:
    """What a model's tensors refer to in its data files."""

    references: tuple[Reference, ...]

    @classmethod
    def of(cls, model: Model) -> DataRanges:
        found = {reference_of(tensor) for tensor in tensors(model.proto)} - {None}
        return cls(
            tuple(
                sorted(
                    (ref for ref in found if ref and ref.location not in (EMBEDDED, OVERLAY)),
                    key=lambda ref: (ref.location, ref.offset, ref.length),
                )
            )
        )

    def checksum(self, weights: Weights) -> str:
        """One digest of the ranges and their checksums; "" where there are none."""
        if not self.references:
            return ""
        compiled = _compiled(sum(ref.length for ref in self.references))
        lines = "".join(
            f"{weights.checksum_at(ref, compiled=compiled)}  {ref.offset} {ref.length} "
            f"{ref.location}\n"
            for ref in self.references
        )
        return hashlib.sha256(lines.encode()).hexdigest()


def _compiled(nbytes: int) -> bool:
    return engine_for(nbytes // 4) == "numba"


def record(
    model: Model,
    *,
    target: str,
    source_sha256: str,
    source_data: str,
    fast: bool = False,
    calibration_sha256: str = "",
    held_out_sha256: str = "",
    report_sha256: str = "",
) -> None:
    """Write the entries into a model that a pipeline changed. source_data: `data_digest`, or for a
    fast record `DataRanges.checksum`, of the input."""
    metadata = model.metadata
    held_out = [*metadata.get(HELD_OUT_KEY, "").split(), held_out_sha256]
    first = "origin" if metadata.get(ORIGIN_KEY) else "source"
    origin = {part: metadata.get(f"onnx24.{first}.{part}", "") for part in _OF_AN_INPUT}
    entries = {
        VERSION_KEY: __version__,
        TARGET_KEY: target,
        SOURCE_KEY: source_sha256,
        SOURCE_DATA_KEY: "" if fast else source_data,
        SOURCE_DATA_SUM_KEY: source_data if fast else "",
        **{f"onnx24.origin.{part}": value for part, value in origin.items()},
        FITTED_KEY: calibration_sha256,
        HELD_OUT_KEY: " ".join(dict.fromkeys(filter(None, held_out))),
        REPORT_KEY: report_sha256,
        CONTENT_KEY: "",
        CONTENT_SUM_KEY: "",
        SIGNATURE_KEY: "",
    }
    for key, value in entries.items():
        if value:
            metadata[key] = value
        else:
            metadata.pop(key, None)
    digest = content_digest(model, fast=fast)
    metadata[CONTENT_SUM_KEY if fast else CONTENT_KEY] = digest


def record_step(
    model: Model,
    step: str,
    *,
    source_sha256: str,
    source_data_sha256: str,
    samples_sha256: str = "",
    held_out_sha256: str = "",
) -> None:
    """Carry the record of a model over a command that is no pipeline and changed it: `step` joins
    what made it. A model without a record stays without one. samples_sha256: of what the command
    was given, "" for none. held_out_sha256: of those that it fitted nothing to."""
    earlier = Provenance.of(model)
    if not (earlier.content_sha256 or earlier.content_checksum):
        return
    model.metadata[PIPELINE_KEY] = ",".join(text for text in (earlier.pipeline, step) if text)
    record(
        model,
        target=earlier.target,
        source_sha256=source_sha256,
        source_data=source_data_sha256,
        calibration_sha256=samples_sha256 or earlier.calibration_sha256,
        held_out_sha256=held_out_sha256,
    )


def forget(model: Model) -> None:
    """Drop an earlier record, which speaks of another model than this one is now."""
    for name, key in _KEYS.items():
        if name != "pipeline":
            model.metadata.pop(key, None)
    model.metadata.pop(SIGNATURE_KEY, None)


def digest_values(model: Model) -> None:
    """Digest all values that are not in the document, so that `record` finds them digested. They
    change no more; nothing else need be ready."""
    for tensor in tensors(model.proto):
        if reference_of(tensor) is not None:
            model.weights.digest_of(tensor)


def data_digest(files: Mapping[str, str]) -> str:
    """One digest for a model's data files, given each one's; "" for none."""
    if not files:
        return ""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def content_digest(model: Model, *, fast: bool = False) -> str:
    """sha256 of the document with each tensor's values replaced by their digest, or by their
    checksum, without the entry that holds this digest and the signature."""
    compiled = fast and _compiled(_referred_bytes(model))
    bare = ModelProto()
    bare.CopyFrom(model.proto)
    for lean, stub in zip(tensors(model.proto), tensors(bare), strict=True):
        if fast and lean.data_type != TensorProto.STRING and payload_bytes(lean) > INLINE_BYTES:
            digest = model.weights.checksum_of(lean, compiled=compiled)
        else:
            digest = model.weights.digest_of(lean)
        name, dims, data_type = lean.name, list(lean.dims), lean.data_type
        stub.Clear()
        stub.name, stub.data_type, stub.raw_data = name, data_type, bytes.fromhex(digest)
        stub.dims.extend(dims)
    own = CONTENT_SUM_KEY if fast else CONTENT_KEY
    kept = [e for e in model.proto.metadata_props if e.key not in (own, SIGNATURE_KEY)]
    del bare.metadata_props[:]
    bare.metadata_props.extend(sorted(kept, key=lambda entry: entry.key))
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def version_at_least(version: str, least: str) -> bool:
    """Whether one dotted version is the other or a later one; False where it is none."""
    parts = [re.findall(r"\d+", text.split("+")[0]) for text in (version, least)]
    return bool(parts[0]) and list(map(int, parts[0])) >= list(map(int, parts[1]))
