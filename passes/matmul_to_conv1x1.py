"""matmul-to-conv1x1: write matrix products with a constant operand as 1x1 convolutions."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx24.analysis.dataflow import Shapes
from onnx24.ir.derived import Derived
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import fresh, insert_before, walk
from onnx24.passmgr.base import Context, Effects, Pass

_DEFAULT_DOMAINS = ("", "ai.onnx", None)


class When(str, enum.Enum):
    TARGET = "target"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, kw_only=True)
class MatmulToConv1x1(Pass):
    """Rewrite MatMul and Gemm with a constant weight into
    `Reshape[-1,K,1,1] → Conv(W[N,K,1,1], bias) → Reshape` back: all tokens become the batch.

    TensorRT 8 considers sparse kernels for convolutions and hardly for matrix products. From
    TensorRT 10 on MatMul itself is eligible and the convolution costs reformats, so by default
    (`when=target`) the target's row decides.

    Covered: MatMul with a constant right operand [K, N] and an activation of rank 2 or more, with
    any dynamic dimensions; Gemm with transA = 0, its alpha, beta and transB go into the weights; a
    bias [N] that is added behind a MatMul goes into the convolution. Q/DQ of the weight stays,
    its axis moves from N's old to its new place; a per-tensor Q/DQ of the activation stays right
    before the convolution. Neighbours that read the same activation share its Reshape. The weight
    keeps its name, the Conv the layer's; a weight recorded as 2:4 stays so.

    Refused, with a record each: O24-310 where the target prefers the MatMul, O24-312 where both
    operands are computed, O24-311 for other forms (a batched or left weight, transA, a bias that
    is no [N], blocked scales, a dtype that Conv lacks in this opset, a weight that something else
    reads too: it would have to be stored twice). Local functions are not entered (canonicalize
    inlines them). The outputs are equal to rounding.

    Example: `matmul-to-conv1x1{when=always}`.
    *Source:* NVIDIA/TensorRT issues 2271, 4054, 3849; onnxsim pull request 1764; onnx Conv.
    """

    name: ClassVar[str] = "matmul-to-conv1x1"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    requires: ClassVar[tuple[type, ...]] = (Shapes,)
    codes: ClassVar[tuple[str, ...]] = ("O24-300", "O24-310", "O24-311", "O24-312")
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    when: Annotated[When, "target: as the target's row says; always; never"] = When.TARGET

    def run(self, model: Model, ctx: Context) -> None:
        if self.when is When.NEVER or not _has_products(model):
            return
        shapes = ctx.analysis(model, Shapes)
        with model.surgeon() as root:
            finder = _Finder(model, shapes, root)
            found = list(finder.products())
            sites = _without_shared_weights([p for p in found if isinstance(p, _Site)])
            for product in found:
                if isinstance(product, _Refusal):
                    _refuse(ctx, product)
            for product in sites:
                if isinstance(product, _Refusal):
                    _refuse(ctx, product)
            plans = [p for p in sites if isinstance(p, _Site)]
            if self.when is When.TARGET and not ctx.target.conv1x1:
                for plan in plans:
                    reason = f"{ctx.target.name} takes the MatMul as it is"
                    _refuse(ctx, _Refusal(plan.graph, plan.node, "O24-310", reason, plan.name))
                return
            admitted = _admit(ctx, plans)
            _Rewriter(finder, admitted).run()
        _move_claims(model, admitted)
        for plan in admitted:
            ctx.record(
                "rewritten",
                "O24-300",
                weight=plan.name,
                node=plan.label,
                op=plan.node.op,
                scope=plan.graph.scope,
                k=plan.k,
                n=plan.n,
                bias=plan.bias is not None,
            )
        if admitted:
            ctx.statistics["rewritten"] = len(admitted)


def _has_products(model: Model) -> bool:
    return any(
        node.op_type in ("MatMul", "Gemm")
        for scope in model.scopes()
        if not scope.path.startswith("function:")
        for node in scope.graph.node
    )


# --- what is found ---------------------------------------------------------------------------
@dataclass(eq=False)
class _Refusal:
    graph: Any
    node: gs.Node
    code: str
    reason: str
    weight: str = ""


@dataclass(eq=False)
class _Site:
    """A product that can be rewritten. k, n: sizes [elements]; `weight`: the constant behind any
    `chain` of QuantizeLinear and DequantizeLinear, outermost reader last."""

    graph: Any
    node: gs.Node
    x_shape: tuple[int | str | None, ...]
    weight: gs.Constant
    chain: tuple[gs.Node, ...]
    k: int
    n: int
    transposed: bool
    """The weight is stored [N, K]."""
    scale: float = 1.0
    bias: gs.Constant | None = None
    bias_scale: float = 1.0
    add: gs.Node | None = None
    """The node that adds the bias."""
    name: str = field(init=False)
    label: str = field(init=False)
    scope: str = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.label, self.scope = self.weight.name, _label(self.node), self.graph.scope

    @property
    def result(self) -> gs.Tensor:
        return (self.add or self.node).outputs[0]

    @property
    def form(self) -> tuple[bool, float]:
        return self.transposed, self.scale


def _label(node: gs.Node) -> str:
    return node.name or node.outputs[0].name


def _refuse(ctx: Context, refusal: _Refusal) -> None:
    ctx.record(
        "refused",
        refusal.code,
        weight=refusal.weight,
        node=_label(refusal.node),
        op=refusal.node.op,
        scope=refusal.graph.scope,
        reason=refusal.reason,
    )


class _No(Exception):
    """Why a product is not rewritten."""

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class _Finder:
    """Looks at every product of the view."""

    def __init__(self, model: Model, shapes: Shapes, root: Any) -> None:
        self.model = model
        self.shapes = shapes
        self.root = root
        graphs = list(walk(root))
        self.outputs = {id(tensor) for graph in graphs for tensor in graph.outputs}
        self.keys = {
            id(tensor): ValueKey(graph.scope, name)
            for graph in graphs
            for name, tensor in graph.initializers.items()
        }
        self.dtypes = _conv_dtypes(model.opset)

    def products(self) -> Iterator[_Site | _Refusal]:
        for graph in walk(self.root):
            for node in graph.nodes:
                if node.op not in ("MatMul", "Gemm") or node.domain not in _DEFAULT_DOMAINS:
                    continue
                weight = ""
                try:
                    constant, _ = self._weight(node)
                    weight = constant.name
                    yield (
                        self._gemm(graph, node) if node.op == "Gemm" else self._matmul(graph, node)
                    )
                except _No as no:
                    yield _Refusal(graph, node, no.code, no.reason, weight)

    def _has_values(self, constant: gs.Constant) -> bool:
        """Not so for sparse initializers, which Weights does not hold."""
        key = self.keys.get(id(constant))
        return key is not None and key in self.model.weights

    def _weight(self, node: gs.Node) -> tuple[gs.Constant, tuple[gs.Node, ...]]:
        """The constant behind the right operand, and the Q/DQ nodes on the way to it."""
        tensor, chain = node.inputs[1], []
        for op in ("DequantizeLinear", "QuantizeLinear"):
            producer = _producer(tensor)
            if producer is not None and producer.op == op:
                chain.append(producer)
                tensor = producer.inputs[0]
        if isinstance(tensor, gs.Constant):
            if not self._has_values(tensor):
                raise _No("O24-311", "the weight is a sparse initializer")
            return tensor, tuple(reversed(chain))
        if isinstance(node.inputs[0], gs.Constant):
            raise _No("O24-311", "the constant is the left operand")
        source = _constant_source(tensor)
        if source is not None:
            raise _No("O24-311", f"a {source.op} stands before the weight; canonicalize folds it")
        raise _No("O24-312", "both operands are computed at run time")

    def _matmul(self, graph: Any, node: gs.Node) -> _Site:
        site = self._site(graph, node, transposed=False)
        add = self._bias_add(site)
        if add is not None:
            site.add = add
            site.bias = next(t for t in add.inputs if isinstance(t, gs.Constant))
        return site

    def _gemm(self, graph: Any, node: gs.Node) -> _Site:
        if node.attrs.get("transA", 0):
            raise _No("O24-311", "the activation is transposed (transA)")
        site = self._site(graph, node, transposed=bool(node.attrs.get("transB", 0)))
        site.scale = float(node.attrs.get("alpha", 1.0))
        site.bias_scale = float(node.attrs.get("beta", 1.0))
        if site.chain and site.scale != 1.0:
            raise _No("O24-311", f"alpha is {site.scale} and the weight is quantized")
        if len(node.inputs) > 2 and not node.inputs[2].is_empty():
            bias = node.inputs[2]
            if not isinstance(bias, gs.Constant):
                raise _No("O24-311", "the bias is computed at run time")
            if not self._has_values(bias):
                raise _No("O24-311", "the bias is a sparse initializer")
            if not _is_per_channel(bias.shape, site.n, 2):
                raise _No("O24-311", f"the bias is {list(bias.shape)}, not [{site.n}]")
            site.bias = bias
        return site

    def _site(self, graph: Any, node: gs.Node, *, transposed: bool) -> _Site:
        weight, chain = self._weight(node)
        shape = tuple(weight.shape)
        if len(shape) != 2:
            raise _No("O24-311", f"the weight is {list(shape)}, not a matrix")
        if 0 in shape:
            raise _No("O24-311", f"the weight is {list(shape)}: it has no elements")
        for step in chain:
            if step.attrs.get("block_size", 0) or len(_rank_of(step.inputs[1])) > 1:
                raise _No("O24-311", "the weight has one scale a block")
            if not all(isinstance(t, gs.Constant) for t in step.inputs[1:]):
                raise _No("O24-311", "the scales of the weight are computed at run time")
        x = self.shapes.shape(node.inputs[0].name, graph.scope)
        if x is None:
            raise _No("O24-311", "the rank of the activation is unknown")
        if len(x) < 2:
            raise _No("O24-311", f"the activation has rank {len(x)}")
        if 0 in x:
            raise _No("O24-311", f"the activation is {list(x)}: it has no elements")
        dtype = self.shapes.dtype(node.inputs[0].name, graph.scope)
        if dtype not in self.dtypes:
            named = TensorProto.DataType.Name(dtype) if dtype else "unknown"  # type: ignore[arg-type]
            raise _No("O24-311", f"dtype {named} has no Conv in opset {self.model.opset}")
        n, k = shape if transposed else shape[::-1]
        return _Site(graph, node, x, weight, chain, k, n, transposed)

    def _bias_add(self, site: _Site) -> gs.Node | None:
        """The Add of a constant [N] that alone reads the product."""
        product = site.node.outputs[0]
        if id(product) in self.outputs or len(product.outputs) != 1:
            return None
        add = product.outputs[0]
        if add.op != "Add" or add.domain not in _DEFAULT_DOMAINS:
            return None
        if not any(add is other for other in site.graph.nodes):
            return None  # in a body of another node
        constants = [t for t in add.inputs if isinstance(t, gs.Constant)]
        if len(constants) != 1 or site.n not in constants[0].shape[-1:]:
            return None
        if not self._has_values(constants[0]):
            return None
        fits = _is_per_channel(constants[0].shape, site.n, len(site.x_shape))
        return add if fits else None


def _conv_dtypes(opset: int) -> set[int]:
    """What Conv takes in this opset and TensorRT computes in."""
    schema = onnx.defs.get_schema("Conv", opset, "")
    allowed = set(schema.type_constraints[0].allowed_type_strs)
    names = {"FLOAT": "float", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
    return {getattr(TensorProto, k) for k, v in names.items() if f"tensor({v})" in allowed}


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    if isinstance(tensor, gs.Constant) or not tensor.inputs:
        return None
    return tensor.inputs[0]


def _constant_source(tensor: gs.Tensor) -> gs.Node | None:
    """The node next to the consumer, where nothing but constants is behind it."""
    first = node = _producer(tensor)
    while node is not None and node.inputs:
        if all(isinstance(t, gs.Constant) for t in node.inputs):
            return first
        if any(not isinstance(t, gs.Constant) for t in node.inputs[1:]):
            return None
        node = _producer(node.inputs[0])
    return first if node is not None and node.op == "Constant" else None


def _rank_of(tensor: gs.Tensor) -> tuple:
    return tuple(tensor.shape) if tensor.shape is not None else ()


def _is_per_channel(shape: Iterable[int], n: int, rank: int) -> bool:
    """Whether a constant of that shape gives one value for each of `n` columns (or one for all),
    whatever the rows, without adding dimensions to a product of `rank` dimensions."""
    sizes = tuple(shape)
    if len(sizes) > rank:
        return False
    return all(size == 1 for size in sizes[:-1]) and (not sizes or sizes[-1] in (1, n))


def _without_shared_weights(sites: list[_Site]) -> list[_Site | _Refusal]:
    """A weight is rewritten for all of its readers or for none: two forms would be two copies."""
    accepted = list(sites)
    refused: dict[int, _Refusal] = {}
    while True:
        by_weight: dict[int, list[_Site]] = {}
        for site in accepted:
            by_weight.setdefault(id(site.weight), []).append(site)
        drop: dict[int, str] = {}
        for group in by_weight.values():
            reason = _conflict(group)
            if reason:
                drop.update({id(site): reason for site in group})
        if not drop:
            break
        for site in accepted:
            if id(site) in drop:
                refused[id(site)] = _Refusal(
                    site.graph, site.node, "O24-311", drop[id(site)], site.name
                )
        accepted = [site for site in accepted if id(site) not in drop]
    return [refused.get(id(site), site) for site in sites]


def _conflict(group: list[_Site]) -> str:
    nodes = {id(site.node) for site in group}
    weight, chain = group[0].weight, group[0].chain
    if any(site.form != group[0].form for site in group):
        return "its readers want the weight in different forms"
    if any([*map(id, site.chain)] != [*map(id, chain)] for site in group):
        return "its readers reach the weight through different Q/DQ nodes"
    for tensor, reader in zip(
        [weight, *(step.outputs[0] for step in chain)], [*chain, None], strict=True
    ):
        allowed = nodes if reader is None else {id(reader)}
        other = next((node for node in tensor.outputs if id(node) not in allowed), None)
        if other is not None:
            return f"{_label(other)} ({other.op}) reads the weight too"
    return ""


def _admit(ctx: Context, plans: list[_Site]) -> list[_Site]:
    """A weight is one site: its readers are rewritten together."""
    asked: dict[int, bool] = {}
    for plan in plans:
        if id(plan.weight) not in asked:
            asked[id(plan.weight)] = ctx.admit(f"{plan.scope}::{plan.name}".lstrip(":"))
    return [plan for plan in plans if asked[id(plan.weight)]]


# --- rewriting -------------------------------------------------------------------------------
class _Rewriter:
    """Writes the convolutions into the view."""

    def __init__(self, finder: _Finder, plans: list[_Site]) -> None:
        self.finder = finder
        self.plans = plans
        self.weights: dict[int, Derived] = {}
        self.tokens: dict[tuple[int, int, int], gs.Tensor] = {}
        self.shapes: dict[tuple[int, ...], gs.Constant] = {}

    def run(self) -> None:
        hoisted = self._hoistable()
        for plan in self.plans:
            self._rewrite(plan, hoisted.get((id(plan.graph), id(plan.node.inputs[0]), plan.k)))

    def _hoistable(self) -> dict[tuple[int, int, int], gs.Node]:
        """(graph, activation, K) → the QuantizeLinear before which its Reshape can stand: that of a
        per-tensor Q/DQ pair which nothing but products to be rewritten reads."""
        readers: dict[tuple[int, int, int], set[int]] = {}
        tensors: dict[int, gs.Tensor] = {}
        for plan in self.plans:
            x = plan.node.inputs[0]
            tensors[id(x)] = x
            readers.setdefault((id(plan.graph), id(x), plan.k), set()).add(id(plan.node))
        found = {}
        for key, nodes in readers.items():
            graph_id, x_id, _ = key
            dq = _producer(tensors[x_id])
            q = _producer(dq.inputs[0]) if dq is not None and dq.op == "DequantizeLinear" else None
            if dq is None or q is None or q.op != "QuantizeLinear":
                continue
            pair = (q, dq)
            alone = {id(node) for node in tensors[x_id].outputs} == nodes
            alone = alone and [id(node) for node in q.outputs[0].outputs] == [id(dq)]
            outputs = any(id(node.outputs[0]) in self.finder.outputs for node in pair)
            per_tensor = all(_size(node.inputs[1]) == 1 for node in pair)
            graph = next(p.graph for p in self.plans if id(p.graph) == graph_id)
            local = all(any(node is other for other in graph.nodes) for node in pair)
            if alone and per_tensor and local and not outputs:
                found[key] = q
        return found

    def _rewrite(self, plan: _Site, quantize: gs.Node | None) -> None:
        graph, node = plan.graph, plan.node
        result = plan.result
        x = node.inputs[0]
        key = (id(graph), id(x), plan.k)
        if key not in self.tokens:
            self.tokens[key] = self._to_tokens(plan, quantize)
        inputs = [self.tokens[key], self._weight(plan)]
        if plan.bias is not None:
            inputs.append(self._bias(plan))
        new: list[gs.Node] = []
        back = self._back_shape(plan, new)

        rows = gs.Variable(fresh(graph, f"{plan.label}.rows"), result.dtype)
        conv = gs.Node("Conv", node.name, {"kernel_shape": [1, 1]}, inputs, [rows])
        position = next(i for i, other in enumerate(graph.nodes) if other is (plan.add or node))
        for old in (node, plan.add):
            if old is not None:
                old.inputs.clear()
                old.outputs.clear()
        reshape = gs.Node(
            "Reshape", fresh(graph, f"{plan.label}.from_tokens"), {}, [rows, back], [result]
        )
        graph.nodes[position : position + 1] = [*new, conv, reshape]
        if plan.add is not None:
            graph.nodes.pop(next(i for i, other in enumerate(graph.nodes) if other is node))

    def _to_tokens(self, plan: _Site, quantize: gs.Node | None) -> gs.Tensor:
        """The activation as [tokens, K, 1, 1]."""
        graph, node = plan.graph, plan.node
        shape = self._shape((-1, plan.k, 1, 1), f"{plan.label}.tokens_shape")
        name = fresh(graph, f"{plan.label}.to_tokens")
        before = node if quantize is None else quantize
        source = before.inputs[0]
        tokens = gs.Variable(fresh(graph, f"{plan.label}.tokens"), source.dtype)
        insert_before(graph, before, [gs.Node("Reshape", name, {}, [source, shape], [tokens])])
        if quantize is None:
            return tokens
        quantize.inputs[0] = tokens
        x = node.inputs[0]
        for tensor in (quantize.outputs[0], x):
            tensor.shape = None  # was that of the activation
        return x

    def _shape(self, sizes: tuple[int, ...], base: str) -> gs.Constant:
        """A shape constant; equal ones are one."""
        if sizes not in self.shapes:
            name = fresh(self.finder.root, base)
            self.shapes[sizes] = gs.Constant(name, np.array(sizes, np.int64))
        return self.shapes[sizes]

    def _back_shape(self, plan: _Site, new: list[gs.Node]) -> gs.Tensor:
        """The shape of the product: a constant where at most one leading size is unknown."""
        leading = plan.x_shape[:-1]
        unknown = [i for i, size in enumerate(leading) if not isinstance(size, int)]
        if len(unknown) <= 1:
            sizes = tuple(size if isinstance(size, int) else -1 for size in leading)
            return self._shape((*sizes, plan.n), f"{plan.label}.shape")
        graph, x = plan.graph, self._original_activation(plan)
        label = plan.label
        axes = self._shape(tuple(range(len(leading))), f"{label}.leading_axes")
        columns = self._shape((plan.n,), f"{label}.columns")
        target: gs.Tensor = x
        for step, op, attrs, others in (
            ("whole_shape", "Shape", {}, []),
            ("leading_shape", "Gather", {"axis": 0}, [axes]),
            ("shape", "Concat", {"axis": 0}, [columns]),
        ):
            out = gs.Variable(fresh(graph, f"{label}.{step}"), np.int64)
            name = fresh(graph, f"{label}.{step}.{op.lower()}")
            new.append(gs.Node(op, name, attrs, [target, *others], [out]))
            target = out
        return target

    def _original_activation(self, plan: _Site) -> gs.Tensor:
        """The activation before it became tokens."""
        tokens = self.tokens[(id(plan.graph), id(plan.node.inputs[0]), plan.k)]
        x = plan.node.inputs[0]
        if tokens is not x:
            return x
        quantize = x.inputs[0].inputs[0].inputs[0]
        return quantize.inputs[0].inputs[0].inputs[0]

    def _weight(self, plan: _Site) -> gs.Tensor:
        """The weight as [N, K, 1, 1] under its old name, behind its Q/DQ."""
        old = plan.weight
        if id(old) not in self.weights:
            key = self.finder.keys[id(old)]
            shape = (plan.n, plan.k, 1, 1)
            compute = _Kernel(self.finder.model, key, shape, plan.transposed, plan.scale)
            new = Derived(old.name, shape, old.dtype, compute)
            self.weights[id(old)] = new
            first = plan.chain[0] if plan.chain else None
            if first is not None:
                first.inputs[0] = new
            for step in plan.chain:
                step.outputs[0].shape = list(shape)
                if _size(step.inputs[1]) > 1:
                    of_columns = step.attrs.get("axis", 1) % 2 == (0 if plan.transposed else 1)
                    step.attrs["axis"] = 0 if of_columns else 1
        return plan.chain[-1].outputs[0] if plan.chain else self.weights[id(old)]

    def _bias(self, plan: _Site) -> gs.Tensor:
        """The bias as [N]: itself where it is that already."""
        old = plan.bias
        assert old is not None
        if tuple(old.shape) == (plan.n,) and plan.bias_scale == 1.0:
            return old
        alone = len(old.outputs) == 1 and id(old) not in self.finder.outputs
        name = old.name if alone else fresh(plan.graph, f"{plan.label}.bias")
        key = self.finder.keys[id(old)]
        compute = _Bias(self.finder.model, key, plan.n, plan.bias_scale)
        return Derived(name, (plan.n,), old.dtype, compute)


def _size(tensor: gs.Tensor) -> int:
    return int(np.prod(_rank_of(tensor), dtype=np.int64))


@dataclass(frozen=True)
class _Kernel:
    """A matrix as the kernel of a 1x1 convolution."""

    model: Model
    key: ValueKey
    shape: tuple[int, ...]
    transposed: bool
    scale: float

    def __call__(self) -> np.ndarray:
        w = self.model.weights[self.key]
        w = w if self.transposed else w.T
        return np.ascontiguousarray(_scaled(w, self.scale)).reshape(self.shape)


@dataclass(frozen=True)
class _Bias:
    """A per-channel constant of any rank as [N]."""

    model: Model
    key: ValueKey
    n: int
    scale: float

    def __call__(self) -> np.ndarray:
        values = self.model.weights[self.key].reshape(-1)
        return np.ascontiguousarray(np.broadcast_to(_scaled(values, self.scale), (self.n,)))


def _scaled(values: np.ndarray, factor: float) -> np.ndarray:
    """Rounded once, also for 16-bit types."""
    if factor == 1.0:
        return values
    return (values.astype(np.float32) * np.float32(factor)).astype(values.dtype)


def _move_claims(model: Model, plans: list[_Site]) -> None:
    """A constant that only a body reads is defined there now."""
    if not model.claims.keys():
        return
    index = Index.of(model.proto)
    claimed = set(model.claims.keys())
    for plan in plans:
        new = index.resolve(plan.name, plan.scope)
        old = [key for key in claimed if key.name == plan.name and key not in index.initializers]
        for key in old if new is not None else []:
            model.claims.move(key, new)  # type: ignore[arg-type]
