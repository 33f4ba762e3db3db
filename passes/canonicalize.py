"""canonicalize: the same function in the fewest and plainest nodes, so that later passes see
weights as initializers that reach their consumers directly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.opset import leave_ir_version_3
from onnx24.ir.packed import unpack
from onnx24.ir.repair import repair
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.rewrite import dead_code
from onnx24.rewrite.constants import constant_nodes, make_initializers
from onnx24.rewrite.edits import remove_nodes
from onnx24.rewrite.folds import Folds, is_weight, result_of
from onnx24.rewrite.functions import inline_functions
from onnx24.rewrite.identities import Identities
from onnx24.rewrite.qdq_repairs import Repairs, may_be_recognised


@dataclass(frozen=True, kw_only=True)
class Canonicalize(Pass):
    """Bring a model into the form that the other passes expect. The outputs stay the same, bit
    for bit.

    - Constant nodes become initializers of their scope (strings stay nodes).
    - Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Cast and Identity of an initializer are
      computed once. The result keeps the weight's name where nothing else reads the original. A
      weight that several consumers share is folded only if all of them want the same, since each
      form would be one more copy. Quantize- and DequantizeLinear of a weight stay.
    - int8 or uint8 behind Cast and a Mul by a constant scale is a quantized weight, and stands
      behind DequantizeLinear then (O24-257); Quantize- and DequantizeLinear of com.microsoft become
      ONNX's where the opset has their types (O24-258).
    - Identity goes, unless it gives an input or an initializer the name of an output.
    - Nodes, initializers and value infos that nothing needs go; operators of unknown domains,
      graph inputs and outputs stay.
    - Weights that pack24 stored without their zeros are made whole again.
    - `inline-functions` replaces calls of local functions by their bodies, but of SpMM24, which
      spmm-plugin writes. upgrade-opset,
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
    codes: ClassVar[tuple[str, ...]] = (
        "O24-018",
        "O24-257",
        "O24-258",
        "O24-320",
        "O24-321",
        "O24-322",
        "O24-331",
        "O24-355",
        "O24-357",
    )

    inline_functions: Annotated[bool, "replace calls of local functions by their bodies"] = False

    def run(self, model: Model, ctx: Context) -> None:
        repair(model)
        for _, weight in unpack(model):
            ctx.record("unpacked", "O24-355", weight=weight.name, scope=weight.scope)
        if self.inline_functions and model.proto.functions:
            _inline(model, ctx)
        if leave_ir_version_3(model.proto):
            model.touch(Effects.STRUCTURE)
        counts = ctx.statistics
        state = _State(model, ctx)
        while True:
            before = sum(counts.values())
            for step in (_constants, _identities, _recognised, _folds):
                counts[step.__name__[1:]] = counts.get(step.__name__[1:], 0) + step(state)
            if sum(counts.values()) == before:
                break
        _remove_dead(model, ctx)
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
    if not ctx.admit("functions"):
        return
    for name in inline_functions(model):
        ctx.record("inlined", "O24-322", scope=name)


def _constants(state: _State) -> int:
    """Constant nodes → initializers. Returns: how many."""
    found = [c for c in constant_nodes(state.model) if state.admit(c.key, "constant")]
    make_initializers(state.model, found)
    return len(found)


def _identities(state: _State) -> int:
    """Remove Identity nodes. Returns: how many."""
    identities = Identities(state.model)
    for removal in identities.find():
        if state.admit(removal.result, "identity"):
            identities.remove(removal)
    identities.commit()
    return len(identities.removals)


def _recognised(state: _State) -> int:
    """Weights and values that are quantized in other words, in ONNX's. Returns: how many nodes."""
    if not may_be_recognised(state.model):
        return 0
    uses = state.ctx.analysis(state.model, WeightUses)
    count = 0
    with state.model.surgeon() as root:
        for repair in Repairs(state.model, uses, root, state.ctx.admit).recognise():
            state.ctx.record(
                "recognised",
                repair.code,
                node=repair.node,
                op=repair.op,
                scope=repair.scope,
                reason=repair.reason,
            )
            count += 1
    return count


def _folds(state: _State) -> int:
    """Compute what only rearranges or converts initializers. Returns: how many nodes went."""
    folds = Folds(state.model)
    for group in folds.groups(leave=state.refused):
        if not all(state.admit(result_of(site), "fold") for site in group.sites):
            continue
        folded = folds.fold(group)
        state.refused |= {result_of(site) for site in group.sites if site not in folded}
        for site in folded:
            state.ctx.record(
                "folded",
                "O24-320",
                weight=group.source.name,
                node=(group.sites[0] if group.alike else site).name,
                op=site.proto.op_type,
                scope=group.source.scope,
            )
    folds.commit()
    return len(folds.folded)


def _remove_dead(model: Model, ctx: Context) -> None:
    """Remove nodes, initializers and value infos that no output needs."""
    removed, why = 0, "nothing reads its results"
    while dead := dead_code.dead_nodes(model):
        for site in dead:
            op = site.proto.op_type
            ctx.record("removed", "O24-321", node=site.name, op=op, scope=site.scope, reason=why)
        removed += len(dead)
        remove_nodes(model, dead)
        model.touch(Effects.STRUCTURE)
    if removed:
        ctx.statistics["dead_nodes"] = removed
    unused = dead_code.unused_initializers(model)
    for key in unused:
        if is_weight(model.weights.tensor(key)):
            why = "nothing reads it"
            ctx.record("removed", "O24-321", weight=key.name, scope=key.scope, reason=why)
    if unused:
        ctx.statistics["unused_initializers"] = len(unused)
        dead_code.remove_initializers(model, set(unused))
    if model.changed and ctx.statistics:
        dead_code.remove_stale_notes(model)


def _warn_of_shadowed_inputs(model: Model, ctx: Context) -> None:
    graph = model.proto.graph
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name in inputs and len(tensor.dims) > 1:
            why = "a caller may override the initializer, so it is left alone"
            ctx.diagnostics.add(diagnostic("O24-018", why, tensor=tensor.name))
