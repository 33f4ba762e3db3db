"""canonicalize: the same function in the fewest and plainest nodes, so that later passes see
weights as initializers that reach their consumers directly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.packed import unpack
from onnx24.ir.repair import repair
from onnx24.ir.verify import make_constant
from onnx24.ir.weights import element_count
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.rewrite import dead_code
from onnx24.rewrite.constants import constant_nodes, make_initializers
from onnx24.rewrite.edits import remove_nodes
from onnx24.rewrite.expressions import Expressions
from onnx24.rewrite.folds import Folds, is_weight, result_of
from onnx24.rewrite.functions import inline_functions
from onnx24.rewrite.identities import Identities
from onnx24.rewrite.loop_states import read_unchanged_states_outside
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
      behind DequantizeLinear then (O24-257); Quantize- and DequantizeLinear of com.microsoft, and
      TensorRT's FP8 ones, become ONNX's where the opset has their types (O24-258).
    - What other nodes compute from constants alone (weight_norm, unmerged LoRA, `w * gain`, a scale
      that is the weight's largest magnitude) is computed once, by ONNX Runtime, in bodies too: but
      no random numbers, no Quantize- and DequantizeLinear, nothing that grows the model by more
      than 4 MiB (a weight that is stored in 8 bits or less: at all), and no output.
    - Identity goes, unless it gives an input or an initializer the name of an output.
    - Nodes, initializers and value infos that nothing needs go; operators of unknown domains,
      graph inputs and outputs stay.
    - Calls of local functions are replaced by the functions' bodies, since most passes do not look
      into functions; `inline-functions=false` keeps them. SpMM24, which spmm-plugin writes, stays,
      and so does, with a warning (O24-049), a function whose operators mean something else in the
      model's opset, or that no runtime would call: ONNX's own domain, ai.onnx.ml and com.microsoft
      have operators, whatever functions a model has.
    - What a Loop hands from iteration to iteration as it came is read from outside the body
      (O24-249), so that a weight which travels so is a constant.
    - Weights that pack24 stored without their zeros are made whole again.
    - Weights that are also graph inputs (`keep_initializers_as_inputs`; Brevitas and Keras write
      such files) could be overridden by a caller. TensorRT takes them for constants all the
      same, and so does `constant-inputs`: they leave the interface (O24-347), and the metadata
      entry `onnx24.constant-inputs` names them. What the calibration data feed stays an input,
      and so does a single number in a model whose other initializers are no inputs: somebody
      made it a parameter. What stays is no constant (O24-018).
    - Defects that runtimes overlook (nodes out of order, a graph without a name) are repaired, and
      nodes that share a name, which ONNX Runtime refuses, get names apart (O24-346). Of two imports
      of one domain the last stays (O24-165).

    Example: `canonicalize{inline-functions=false}`.
    *Source:* onnx/docs/IR.md (initializers and inputs), onnx/docs/Operators.md.
    """

    name: ClassVar[str] = "canonicalize"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    codes: ClassVar[tuple[str, ...]] = (
        *("O24-018", "O24-249", "O24-257", "O24-258", "O24-320", "O24-321", "O24-322"),
        *("O24-049", "O24-165"),
        *("O24-346", "O24-347", "O24-355", "O24-357"),
    )

    constant_inputs: Annotated[bool, "make constants of weights that are also inputs"] = True
    inline_functions: Annotated[bool, "replace calls of local functions by their bodies"] = True

    def run(self, model: Model, ctx: Context) -> None:
        repaired = repair(model)
        if "duplicate-opsets" in repaired:
            what = f"a domain was imported twice; the model is read as opset {model.opset}"
            ctx.diagnostics.add(diagnostic("O24-165", what))
        if "duplicate-names" in repaired:
            what = "nodes that shared a name have names apart now"
            ctx.diagnostics.add(diagnostic("O24-346", what))
        for _, weight in unpack(model):
            ctx.record("unpacked", "O24-355", weight=weight.name, scope=weight.scope)
        if self.inline_functions and model.proto.functions:
            _inline(model, ctx)
        if self.constant_inputs:
            _make_inputs_constant(model, ctx)
        for scope, name in read_unchanged_states_outside(model, ctx.admit):
            ctx.record("read outside", "O24-249", scope=scope, weight=name)
        counts = ctx.statistics
        state = _State(model, ctx)
        while True:
            before = sum(counts.values())
            for step in (_constants, _identities, _recognised, _folds):
                counts[step.__name__[1:]] = counts.get(step.__name__[1:], 0) + step(state)
            if sum(counts.values()) == before:
                computed = _expressions(state)
                counts["computed"] = counts.get("computed", 0) + computed
                if not computed:
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


def _make_inputs_constant(model: Model, ctx: Context) -> None:
    inputs = {value.name for value in model.proto.graph.input}
    initializers = model.proto.graph.initializer
    fed = set(ctx.calibration.names) if ctx.calibration is not None else set()
    is_habit = all(tensor.name in inputs for tensor in initializers)
    chosen = [
        tensor.name
        for tensor in initializers
        if tensor.name in inputs - fed and (is_habit or element_count(tensor) > 1)
    ]
    chosen = [name for name in chosen if ctx.admit(f"input {name}")]
    if not chosen:
        return
    make_constant(model, frozenset(chosen))
    for name in chosen:
        ctx.record("made constant", "O24-347", weight=name)


def _inline(model: Model, ctx: Context) -> None:
    if not ctx.admit("functions"):
        return
    done = inline_functions(model)
    for name in done.gone:
        ctx.record("inlined", "O24-322", scope=name)
    for name, why in done.kept.items():
        ctx.diagnostics.add(diagnostic("O24-049", why, scope=name))


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


def _expressions(state: _State) -> int:
    """Compute what depends on constants alone. Returns: how many nodes went."""
    expressions = Expressions(state.model)
    chosen = [
        found
        for found in expressions.find(leave=state.refused)
        if state.admit(result_of(found.site), "fold")
    ]
    computed = expressions.compute(chosen)
    state.refused |= {result_of(found.site) for found in chosen if found not in computed}
    for found in computed:
        source = max(found.sources, key=lambda key: element_count(state.model.weights.tensor(key)))
        state.ctx.record(
            "folded",
            "O24-320",
            weight=source.name,
            node=found.site.name,
            op=found.site.proto.op_type,
            scope=found.site.scope,
            tensor=result_of(found.site).name,
        )
    expressions.commit()
    return len(computed)


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
