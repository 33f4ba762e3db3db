"""canonicalize: the same function in the fewest and plainest nodes, so that later passes see
weights as initializers that reach their consumers directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from onnx24.analysis.folding import can_fold, fold
from onnx24.diagnostics import diagnostic
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.opset import leave_ir_version_3
from onnx24.ir.repair import repair
from onnx24.ir.scopes import function_path, node_label, scopes
from onnx24.ir.weights import INLINE_BYTES, numpy_dtype, payload_bytes
from onnx24.passmgr.base import Context, Effects, Pass

_DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, kw_only=True)
class Canonicalize(Pass):
    """Bring a model into the form that the other passes expect. The outputs stay the same, bit
    for bit.

    - Constant nodes become initializers of their scope (strings stay nodes).
    - Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Cast and Identity of an initializer are
      computed once. The result keeps the weight's name where nothing else reads the original. A
      weight that several consumers share is folded only if all of them want the same, since each
      form would be one more copy. Quantize- and DequantizeLinear of a weight stay.
    - Identity goes, unless it gives an input or an initializer the name of an output.
    - Nodes, initializers and value infos that nothing needs go; operators of unknown domains,
      graph inputs and outputs stay.
    - `inline-functions` replaces calls of local functions by their bodies. upgrade-opset,
      matmul-to-conv1x1 and cast16 need that for models that have functions: they do not look
      into them.
    - A model of IR version 3 or older lists its initializers as inputs although they are
      constants there; the IR version becomes 4 and those inputs go. In newer models such an
      input can be overridden by the caller: it is left alone (O24-018).
    - Defects that runtimes overlook (nodes out of order, a graph without a name) are repaired.

    Example: `canonicalize{inline-functions=true}`.
    *Source:* onnx/docs/IR.md (initializers and inputs), onnx/docs/Operators.md.
    """

    name: ClassVar[str] = "canonicalize"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    codes: ClassVar[tuple[str, ...]] = ("O24-018", "O24-320", "O24-321", "O24-322")

    inline_functions: Annotated[bool, "replace calls of local functions by their bodies"] = False

    def run(self, model: Model, ctx: Context) -> None:
        repair(model)
        if self.inline_functions and model.proto.functions:
            _inline(model, ctx)
        if leave_ir_version_3(model.proto):
            model.touch(Effects.STRUCTURE)
        counts = ctx.statistics
        state = _State(model, ctx)
        while True:
            before = sum(counts.values())
            for step in (_constants, _identities, _folds):
                counts[step.__name__[1:]] = counts.get(step.__name__[1:], 0) + step(state)
            if sum(counts.values()) == before:
                break
        _remove_dead(state)
        for name in [name for name, count in counts.items() if not count]:
            del counts[name]
        _warn_of_shadowed_inputs(model, ctx)


@dataclass
class _State:
    """What one run remembers."""

    model: Model
    ctx: Context
    refused: set[ValueKey] = field(default_factory=set)
    """Outputs of sites that were looked at and stay: the site limit, or a fold without a result."""

    def admit(self, key: ValueKey, what: str) -> bool:
        if key in self.refused:
            return False
        if self.ctx.admit(f"{what} {key}"):
            return True
        self.refused.add(key)
        return False


def _inline(model: Model, ctx: Context) -> None:
    names = [function_path(function) for function in model.proto.functions]
    if not ctx.admit("functions"):
        return
    # The C++ inliner never looks at payloads, so the lean document will do.
    inlined = onnx.inliner.inline_local_functions(model.proto)
    left = {function_path(function) for function in inlined.functions}
    model.proto.CopyFrom(inlined)
    _drop_unused_imports(model, {f.domain for f in inlined.functions})
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    for name in names:
        if name not in left:
            ctx.record("inlined", "O24-322", scope=name)


def _drop_unused_imports(model: Model, keep: set[str]) -> None:
    """The domain of an inlined function means nothing any more, and runtimes refuse it."""
    used = {node.domain for scope in model.scopes() for node in scope.graph.node} | keep
    for entry in list(model.proto.opset_import):
        if entry.domain not in (*_DEFAULT_DOMAINS, *used) and not _is_known_domain(entry.domain):
            model.proto.opset_import.remove(entry)


def _is_known_domain(domain: str) -> bool:
    return domain in {schema.domain for schema in onnx.defs.get_all_schemas()}


def _warn_of_shadowed_inputs(model: Model, ctx: Context) -> None:
    graph = model.proto.graph
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name in inputs and len(tensor.dims) > 1:
            ctx.diagnostics.add(
                diagnostic(
                    "O24-018",
                    "a caller may override the initializer, so it is left alone",
                    tensor=tensor.name,
                )
            )


# --- Constant nodes --------------------------------------------------------------------------
def _constants(state: _State) -> int:
    """Constant nodes → initializers. Returns: how many."""
    model = state.model
    outputs = Index.of(model.proto).graph_outputs
    done = 0
    for scope in list(scopes(model.proto)):
        graph = scope.graph
        if not isinstance(graph, GraphProto):
            continue
        positions = set()
        for position, node in enumerate(graph.node):
            if node.op_type != "Constant" or node.domain not in _DEFAULT_DOMAINS:
                continue
            key = ValueKey(scope.path, node.output[0])
            tensor = None if key in outputs else _constant_tensor(model, node)
            if tensor is not None and state.admit(key, "constant"):
                graph.initializer.append(tensor)
                positions.add(position)
        _delete(graph.node, positions)
        done += len(positions)
    if done:
        model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    return done


def _constant_tensor(model: Model, node: NodeProto) -> TensorProto | None:
    """The value of a Constant node as an initializer; None for strings, sparse tensors that are
    large, and what is invalid."""
    name = node.output[0]
    for attr in node.attribute:
        if attr.name == "value" and attr.t.data_type != TensorProto.STRING:
            tensor = TensorProto()
            tensor.CopyFrom(attr.t)
            tensor.name = name
            return tensor
        if attr.name in _PLAIN_VALUES:
            tensor = TensorProto(name=name)
            model.weights.set_values(tensor, _PLAIN_VALUES[attr.name](attr))
            return tensor
        if attr.name == "sparse_value":
            return _densified(model, attr, name)
    return None


_PLAIN_VALUES: dict[str, Callable[[AttributeProto], np.ndarray]] = {
    "value_float": lambda attr: np.array(attr.f, np.float32),
    "value_floats": lambda attr: np.array(list(attr.floats), np.float32),
    "value_int": lambda attr: np.array(attr.i, np.int64),
    "value_ints": lambda attr: np.array(list(attr.ints), np.int64),
}


def _densified(model: Model, attr: AttributeProto, name: str) -> TensorProto | None:
    """A sparse constant written out, where that stays small."""
    sparse = attr.sparse_tensor
    shape = tuple(sparse.dims)
    dtype = numpy_dtype(sparse.values.data_type)
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > INLINE_BYTES:
        return None
    dense = np.zeros(shape, dtype)
    indices = model.weights.read(sparse.indices)
    values = model.weights.read(sparse.values)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    tensor = TensorProto(name=name)
    model.weights.set_values(tensor, dense)
    return tensor


# --- Identity --------------------------------------------------------------------------------
def _identities(state: _State) -> int:
    """Remove Identity nodes. Returns: how many."""
    model = state.model
    index = Index.of(model.proto)
    alias: dict[ValueKey, str] = {}
    gone: dict[str, set[int]] = {}
    for site in index.nodes:
        node = site.proto
        if node.op_type != "Identity" or node.domain not in _DEFAULT_DOMAINS:
            continue
        source = index.resolve(node.input[0], site.scope)
        result = ValueKey(site.scope, node.output[0])
        if source is None or source in alias or site.scope.startswith("function:"):
            continue
        if result not in index.graph_outputs:
            old, new = result, source.name
        elif _may_take_name(index, source, site):
            old, new = source, result.name
        else:
            continue
        if not state.admit(result, "identity"):
            continue
        alias[old] = new
        gone.setdefault(site.scope, set()).add(site.position)
    if not gone:
        return 0
    _rename_values(model, index, alias, gone)
    _remove_nodes(model, gone)
    model.touch(Effects.STRUCTURE)
    return sum(len(positions) for positions in gone.values())


def _may_take_name(index: Index, source: ValueKey, site: NodeSite) -> bool:
    """Whether the value before an Identity can take the output's name from it: a node of the
    same scope computes it, and it is no output itself."""
    return (
        source.scope == site.scope
        and index.producer(source.name, source.scope) is not None
        and source not in index.graph_outputs
    )


def _rename_values(
    model: Model, index: Index, alias: dict[ValueKey, str], gone: dict[str, set[int]]
) -> None:
    """Values take the names in `alias`, which may chain, wherever they are read or produced;
    nodes in `gone` are about to be removed."""

    def final(key: ValueKey | None) -> str | None:
        name = None
        while key is not None and key in alias:
            name = alias[key]
            key = index.resolve(name, key.scope)
        return name

    for site in index.nodes:
        node = site.proto
        for i, value in enumerate(node.input):
            if value and (name := final(index.resolve(value, site.scope))):
                node.input[i] = name
        if site.position in gone.get(site.scope, ()):
            continue
        for i, value in enumerate(node.output):
            if value and (name := final(ValueKey(site.scope, value))):
                node.output[i] = name
    _drop_infos(model, set(alias))


def _drop_infos(model: Model, keys: set[ValueKey]) -> None:
    """Value infos of values that are gone, or have another type now."""
    for scope in scopes(model.proto):
        if isinstance(scope.graph, GraphProto):
            infos = scope.graph.value_info
            _delete(infos, {i for i, v in enumerate(infos) if ValueKey(scope.path, v.name) in keys})


# --- folding ---------------------------------------------------------------------------------
def _folds(state: _State) -> int:
    """Compute what only rearranges or converts initializers. Returns: how many nodes went."""
    model, ctx = state.model, state.ctx
    index = Index.of(model.proto)
    by_source: dict[ValueKey, list[NodeSite]] = {}
    for site in index.nodes:
        source = _foldable_source(state, index, site)
        if source is not None:
            by_source.setdefault(source, []).append(site)

    gone: dict[str, set[int]] = {}
    alias: dict[ValueKey, str] = {}
    replaced: set[ValueKey] = set()
    for source, sites in by_source.items():
        tensor = index.initializers[source]
        readers = index.consumers(source.name, source.scope)
        sole = source not in index.graph_outputs and len(readers) == len(sites)
        same = sole and len({_signature(index, site) for site in sites}) == 1
        if not same and _is_weight(tensor):
            continue
        label = node_label(sites[0].proto)
        if not all(state.admit(_result(site), "fold") for site in sites):
            continue
        values = fold(sites[0].proto, _inputs(model, index, sites[0])) if same else None
        if same and values is not None:
            # One new tensor under the old name; every folded node's result becomes it.
            model.weights.set_values(tensor, values)
            alias.update({_result(site): source.name for site in sites})
            replaced.add(source)
            folded = sites
        else:
            folded = [site for site in sites if _fold_apart(model, index, site)]
        state.refused |= {_result(site) for site in sites if site not in folded}
        for site in folded:
            gone.setdefault(site.scope, set()).add(site.position)
            ctx.record(
                "folded",
                "O24-320",
                weight=source.name,
                node=label if same else node_label(site.proto),
                op=site.proto.op_type,
                scope=source.scope,
            )
    if not gone:
        return 0
    _rename_values(model, index, alias, gone)
    _drop_infos(model, replaced)
    _remove_nodes(model, gone)
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
    return sum(len(positions) for positions in gone.values())


def _foldable_source(state: _State, index: Index, site: NodeSite) -> ValueKey | None:
    """The initializer that a node rearranges; None where the node cannot be folded."""
    node = site.proto
    if not can_fold(node) or site.scope.startswith("function:"):
        return None
    if _result(site) in index.graph_outputs or _result(site) in state.refused:
        return None
    keys = [index.resolve(name, site.scope) for name in node.input if name]
    if not keys or any(key not in index.initializers for key in keys):
        return None
    if any(key in index.graph_inputs for key in keys):
        return None  # a caller may override it
    if index.initializers[keys[0]].data_type == TensorProto.STRING:  # type: ignore[index]
        return None
    return keys[0]


def _result(site: NodeSite) -> ValueKey:
    return ValueKey(site.scope, site.proto.output[0])


def _is_weight(tensor: TensorProto) -> bool:
    """Worth not being stored twice: a matrix, or more than what stays in the document."""
    return len(tensor.dims) > 1 or payload_bytes(tensor) > INLINE_BYTES


def _signature(index: Index, site: NodeSite) -> tuple[str, bytes, tuple[ValueKey | None, ...]]:
    """Equal for nodes that make the same of the same input."""
    bare = NodeProto(attribute=site.proto.attribute)
    others = tuple(index.resolve(name, site.scope) for name in site.proto.input[1:])
    return site.proto.op_type, bare.SerializeToString(deterministic=True), others


def _inputs(model: Model, index: Index, site: NodeSite) -> list[np.ndarray | None]:
    keys = [index.resolve(name, site.scope) if name else None for name in site.proto.input]
    return [None if key is None else model.weights.read(index.initializers[key]) for key in keys]


def _fold_apart(model: Model, index: Index, site: NodeSite) -> bool:
    """Fold one node into an initializer of its own, under the name of the node's output."""
    values = fold(site.proto, _inputs(model, index, site))
    if values is None:
        return False
    graph = next(scope.graph for scope in model.scopes() if scope.path == site.scope)
    tensor = TensorProto()
    model.weights.set_values(tensor, values)
    tensor.name = site.proto.output[0]
    graph.initializer.append(tensor)  # type: ignore[union-attr]
    return True


# --- dead code -------------------------------------------------------------------------------
def _remove_dead(state: _State) -> None:
    """Remove nodes, initializers and value infos that no output needs."""
    model, ctx = state.model, state.ctx
    removed = 0
    while gone := _dead_nodes(model):
        index = Index.of(model.proto)
        for site in index.nodes:
            if site.position in gone.get(site.scope, ()):
                ctx.record(
                    "removed",
                    "O24-321",
                    node=site.name,
                    op=site.proto.op_type,
                    scope=site.scope,
                    reason="nothing reads its results",
                )
                removed += 1
        _remove_nodes(model, gone)
        model.touch(Effects.STRUCTURE)
    if removed:
        ctx.statistics["dead_nodes"] = removed
    unused = _unused_initializers(model)
    for key in unused:
        if _is_weight(model.weights.tensor(key)):
            ctx.record(
                "removed", "O24-321", weight=key.name, scope=key.scope, reason="nothing reads it"
            )
        model.claims.discard(key)
    if unused:
        ctx.statistics["unused_initializers"] = len(unused)
        _remove_initializers(model, set(unused))
    if model.changed and ctx.statistics:
        _remove_stale_notes(model)


def _dead_nodes(model: Model) -> dict[str, set[int]]:
    """Scope → positions. Unknown operators may have effects that no output shows."""
    index = Index.of(model.proto)
    needed = {
        site
        for site in index.nodes
        if site.scope.startswith("function:")
        or not _is_known(site.proto)
        or any(
            ValueKey(site.scope, name) in index.graph_outputs or index.consumers(name, site.scope)
            for name in site.proto.output
            if name
        )
    }
    gone: dict[str, set[int]] = {}
    for site in index.nodes:
        if site not in needed:
            gone.setdefault(site.scope, set()).add(site.position)
    # A body inside a node that goes, goes with it: positions in it mean nothing then.
    return {
        scope: positions
        for scope, positions in gone.items()
        if not any(_lies_in(scope, site) for site in index.nodes if site not in needed)
    }


def _is_known(node: NodeProto) -> bool:
    return onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)


def _lies_in(scope: str, site: NodeSite) -> bool:
    prefix = f"{site.scope}/{site.name}." if site.scope else f"{site.name}."
    return scope.startswith(prefix)


def _unused_initializers(model: Model) -> list[ValueKey]:
    index = Index.of(model.proto)
    return [
        key
        for key in index.initializers
        if key not in index.graph_outputs
        and key not in index.graph_inputs
        and not index.consumers(key.name, key.scope)
    ]


def _remove_initializers(model: Model, keys: set[ValueKey]) -> None:
    for scope in scopes(model.proto):
        if not isinstance(scope.graph, GraphProto):
            continue
        tensors = scope.graph.initializer
        _delete(tensors, {i for i, t in enumerate(tensors) if ValueKey(scope.path, t.name) in keys})
    model.touch(Effects.STRUCTURE)


def _remove_stale_notes(model: Model) -> None:
    """Value infos and quantization annotations of values that are gone."""
    for scope in scopes(model.proto):
        graph = scope.graph
        if not isinstance(graph, GraphProto):
            continue
        names = {name for node in graph.node for name in node.output}
        names |= {v.name for v in (*graph.input, *graph.output)}
        names |= {tensor.name for tensor in graph.initializer}
        names |= {sparse.values.name for sparse in graph.sparse_initializer}
        infos, annotations = graph.value_info, graph.quantization_annotation
        _delete(infos, {i for i, v in enumerate(infos) if v.name not in names})
        _delete(annotations, {i for i, a in enumerate(annotations) if a.tensor_name not in names})


# --- lists -----------------------------------------------------------------------------------
def _remove_nodes(model: Model, gone: dict[str, set[int]]) -> None:
    # The paths of bodies depend on the nodes before them: find every graph first.
    for scope in list(scopes(model.proto)):
        _delete(scope.graph.node, gone.get(scope.path, set()))


def _delete(items: Any, positions: set[int]) -> None:
    """In place, so that what is held of the other items stays theirs."""
    for position in sorted(positions, reverse=True):
        del items[position]
