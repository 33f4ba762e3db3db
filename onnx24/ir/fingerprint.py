"""What changed between two states of a model, by content and not by anyone's word."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.scopes import scopes
from onnx24.ir.weights import OVERLAY, reference_of

if TYPE_CHECKING:
    from onnx24.ir.model import Model


@dataclass(frozen=True)
class Fingerprint:
    """`structure`: a digest of everything but initializers' values; `values`: for each
    initializer, its place in an input file or a digest of its replaced values."""

    structure: str
    values: dict[ValueKey, str]

    @classmethod
    def of(cls, model: Model) -> Fingerprint:
        bare = ModelProto()
        bare.CopyFrom(model.proto)
        values: dict[ValueKey, str] = {}
        for lean, copy in zip(scopes(model.proto), scopes(bare), strict=True):
            for tensor, stub in zip(lean.initializers, copy.initializers, strict=True):
                ref = reference_of(tensor)
                if ref is None or ref.location == OVERLAY:
                    value = model.weights.digest_of(tensor)
                else:
                    value = f"{ref.location}:{ref.offset}:{ref.length}"
                values[ValueKey(lean.path, tensor.name)] = value
                dims, data_type, name = list(stub.dims), stub.data_type, stub.name
                stub.Clear()
                stub.dims.extend(dims)
                stub.data_type, stub.name = data_type, name
        digest = hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
        return cls(digest, values)

    def changed(self, later: Fingerprint) -> Effects:
        """What differs. Initializers that came or went are structure; values count where the
        name is in both."""
        effects = Effects.NONE
        if self.structure != later.structure:
            effects |= Effects.STRUCTURE
        if any(self.values[key] != later.values[key] for key in self.values.keys() & later.values):
            effects |= Effects.WEIGHTS
        return effects
