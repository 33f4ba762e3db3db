"""Which operator a node is, what its attributes say, and which constant stands behind a value.

The only room that compares an operator's name or domain. A node may be given as the document has it
(NodeProto), as the index has it (NodeSite) or as a view has it (gs.Node).

A node of ONNX's own domain, which has the two names "" and "ai.onnx", is ONNX's operator, whatever
local functions the model has; a node of any other domain is not, whatever its name is. So a local
function is never taken for an operator: only a function of a domain that no runtime has operators
of is ever called.
*Source:* IR.md leaves it to the runtime what a node means where the model has a function of its
name and domain. ONNX Runtime 1.32 takes its own operator, in com.microsoft and ai.onnx.ml too, at
every optimization level, with an `overload` as well; onnx 1.23's reference evaluator does so
in ONNX's own domain, and onnx.inliner takes the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto

from onnx24.ir.index import Index, NodeSite
from onnx24.ir.keys import ValueKey

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx24.ir.model import Model

ONNX = "ai.onnx"
"""The name of ONNX's own domain that people write; in files it is \"\"."""

AnyNode: TypeAlias = "NodeProto | NodeSite | gs.Node"


def domain(node: AnyNode) -> str:
    """A node's domain; "" where it is ONNX's own."""
    return own_domain((node.proto if isinstance(node, NodeSite) else node).domain or "")


def own_domain(name: str) -> str:
    """A domain by the one name that is used here: "" for both of ONNX's own."""
    return "" if name == ONNX else name


def opsets(proto: ModelProto | FunctionProto) -> dict[str, int]:
    """Domain → version; ai.onnx is "". Of two imports of one domain the last one counts: so
    ONNX Runtime and onnx.checker read it (the reference evaluator takes the highest)."""
    return {own_domain(entry.domain): entry.version for entry in proto.opset_import}


def opset(proto: ModelProto | FunctionProto) -> int:
    """Version of ai.onnx; 1 where it is not imported."""
    return opsets(proto).get("", 1)


def one_import_each(proto: ModelProto) -> bool:
    """Leave one import of each domain, the one that counts. Returns: whether there were more."""
    versions = opsets(proto)
    if len(versions) == len(proto.opset_import):
        return False
    del proto.opset_import[:]
    for name, version in versions.items():
        proto.opset_import.add(domain=name, version=version)
    return True


def type_of(node: AnyNode) -> tuple[str, str]:
    """(domain, name) of what a node computes, for tables that know other domains as well; the
    domain as in `domain`."""
    return domain(node), _name(node)


def op(node: AnyNode) -> str:
    """The ONNX operator that a node is; "" where it is of another domain."""
    node = node.proto if isinstance(node, NodeSite) else node  # asked of every node, often
    if node.domain and node.domain != ONNX:
        return ""
    return node.op_type if isinstance(node, NodeProto) else node.op


def is_onnx(node: AnyNode, *names: str) -> bool:
    """Whether a node is an ONNX operator, one of `names` where any are given."""
    found = op(node)
    return found in names if names else bool(found)


def full_name(node: AnyNode) -> str:
    """What a node computes, as messages and records say it: "Relu", "com.example.Relu". Equal to an
    ONNX operator's name only where the node is that operator."""
    return ".".join(filter(None, type_of(node)))


class FunctionId(NamedTuple):
    """What a call and the function it calls have in common."""

    domain: str
    name: str
    overload: str


def function_id(function: FunctionProto) -> FunctionId:
    return FunctionId(own_domain(function.domain), function.name, function.overload)


def called(node: NodeProto | NodeSite) -> FunctionId:
    """The function that a node calls, if the model has it: see functions."""
    return FunctionId(*type_of(node), _plain(node).overload)


_RUNTIMES_OWN = frozenset({"", "ai.onnx.ml", "com.microsoft"})
"""Domains that runtimes have operators of"""


def can_be_called(function: FunctionProto) -> bool:
    """Whether a node of the function's name and domain means the function."""
    return own_domain(function.domain) not in _RUNTIMES_OWN


def functions(model: ModelProto) -> dict[FunctionId, FunctionProto]:
    """The local functions that can be called."""
    return {function_id(f): f for f in model.functions if can_be_called(f)}


def attribute(node: AnyNode, name: str, default: Any = None) -> Any:
    """What an attribute says: int, float, str, a list of those, or what onnx (a view: surgeon)
    makes of other kinds. `default` where it is missing, and where the caller of a function decides
    it (see open_attribute)."""
    if not isinstance(node, NodeProto | NodeSite):
        value = node.attrs.get(name, default)
        return _said(value, default) if isinstance(value, AttributeProto) else value
    for attr in _plain(node).attribute:
        if attr.name == name:
            return _said(attr, default)
    return default


def open_attribute(node: AnyNode) -> str:
    """The name of an attribute that the caller of a function decides; "" where none is."""
    if not isinstance(node, NodeProto | NodeSite):
        given = [value for value in node.attrs.values() if isinstance(value, AttributeProto)]
    else:
        given = _plain(node).attribute
    return next((attr.name for attr in given if attr.ref_attr_name), "")


def constant_behind(
    model: Model, index: Index, value: str, scope: str = "", looked_at: set[ValueKey] | None = None
) -> np.ndarray | None:
    """The values of the initializer or Constant node that `value` means in `scope`, perhaps behind
    Identity nodes; None where it is computed, where a caller can override it, and where it is a
    string or sparse. looked_at: takes up the initializer that was read. Raises: InputError where
    the values can't be read."""
    seen: set[ValueKey] = set()
    while (key := index.resolve(value, scope)) is not None and key not in seen:
        seen.add(key)
        if key in index.graph_inputs:
            return None
        if key in index.initializers:
            if looked_at is not None:
                looked_at.add(key)
            return _read(model, index.initializers[key])
        site = index.producer(value, scope)
        if site is None or not is_onnx(site, "Identity") or not site.proto.input:
            return None if site is None else constant_of(model, site)
        value, scope = site.proto.input[0], site.scope
    return None


def constant_of(model: Model, node: NodeProto | NodeSite) -> np.ndarray | None:
    """The values of a Constant node; None for another node, and as in constant_behind."""
    if not is_onnx(node, "Constant") or open_attribute(node):
        return None
    for attr in _plain(node).attribute:
        if attr.name == "value" and attr.HasField("t"):
            return _read(model, attr.t)
        if attr.name in ("value_int", "value_ints"):
            return np.asarray(onnx.helper.get_attribute_value(attr), np.int64)
        if attr.name in ("value_float", "value_floats"):
            return np.asarray(onnx.helper.get_attribute_value(attr), np.float32)
    return None


def _read(model: Model, tensor: TensorProto) -> np.ndarray | None:
    return None if tensor.data_type == TensorProto.STRING else model.weights.read(tensor)


def _plain(node: AnyNode) -> Any:
    return node.proto if isinstance(node, NodeSite) else node


def _name(node: AnyNode) -> str:
    plain = _plain(node)
    return plain.op_type if isinstance(plain, NodeProto) else plain.op


def _said(attr: AttributeProto, default: Any) -> Any:
    if attr.ref_attr_name:
        return default
    value = onnx.helper.get_attribute_value(attr)
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if attr.type == AttributeProto.STRINGS:
        return [text.decode(errors="surrogateescape") for text in value]
    return value
