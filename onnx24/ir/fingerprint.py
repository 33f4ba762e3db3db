"""What changed between two states of a model, by content and not by anyone's word."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.scopes import scopes
from onnx24.ir.weights import Reference, Weights, reference_of

if TYPE_CHECKING:
    from onnx24.ir.model import Model


@dataclass(frozen=True, repr=False)
class Fingerprint:
    """`structure`: a digest of everything but initializers' values; `values`: for each
    initializer, where its values lie, or a digest of those that the document itself holds. What a
    reference names never changes, so equal references need no look at the values; different ones
    are compared byte by byte, up to the first difference."""

    structure: str
    values: dict[ValueKey, Reference | str]
    weights: Weights = field(compare=False)

    @classmethod
    def of(cls, model: Model) -> Fingerprint:
        bare = ModelProto()
        bare.CopyFrom(model.proto)
        values: dict[ValueKey, Reference | str] = {}
        for lean, copy in zip(scopes(model.proto), scopes(bare), strict=True):
            for tensor, stub in zip(lean.initializers, copy.initializers, strict=True):
                value = reference_of(tensor) or model.weights.digest_of(tensor)
                values[ValueKey(lean.path, tensor.name)] = value
                dims, data_type, name = list(stub.dims), stub.data_type, stub.name
                stub.Clear()
                stub.dims.extend(dims)
                stub.data_type, stub.name = data_type, name
        digest = hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
        return cls(digest, values, model.weights)

    def digest(self) -> str:
        """One sha256 of the structure and of all values, for comparison with other runs. Reads
        every weight once."""
        hasher = hashlib.sha256(self.structure.encode())
        for key, value in sorted(self.values.items()):
            if not isinstance(value, str):
                value = self.weights.digest_at(value)
            hasher.update(f"{key.scope}\0{key.name}\0{value}\0".encode())
        return hasher.hexdigest()

    def __repr__(self) -> str:
        """By content: references mean nothing outside this process."""
        return f"Fingerprint({self.digest()})"

    def changed(self, later: Fingerprint) -> Effects:
        """What differs. Initializers that came or went are structure; values count where the
        name is in both."""
        effects = Effects.NONE
        if self.structure != later.structure:
            effects |= Effects.STRUCTURE
        both = self.values.keys() & later.values
        if any(not self._is_same(self.values[key], later.values[key]) for key in both):
            effects |= Effects.WEIGHTS
        return effects

    def _is_same(self, before: Reference | str, after: Reference | str) -> bool:
        if isinstance(before, str) or isinstance(after, str):
            return before == after
        try:
            return self.weights.is_equal(before, after)
        except InputError:  # a reference to nothing is a change, and for the verifier to name
            return False
