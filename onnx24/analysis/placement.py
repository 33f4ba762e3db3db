"""Where Q/DQ pairs go, so that TensorRT fuses them.

The rules are data: `REFUSALS` says which layers stay in float, `PLACEMENT` where the pairs of the
others go, each rule with its code, its text and what it rests on. A rule decides; it edits nothing
(rewrite/qdq.py does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from onnx24.analysis.crossing import (
    ACTIVATIONS,
    FP8_COPIES,
    REARRANGING,
    SELECTING,
    crosses,
    dq_behind,
    reaches_float_attention,
    swish,
)
from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.forms import channel_axis
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite, Use
from onnx24.ir.keys import ValueKey
from onnx24.ir.weights import numpy_dtype
from onnx24.quant.calibrators import Range

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MIN_SIZE = 16
"""Channels, or K and N, from which INT8 can gain. Source: NVIDIA Model-Optimizer."""

MIN_OPSET_16 = 19
"""From which Q and DQ know 16-bit floats. Source: onnx/docs/Changelog.md."""
MAX_RANGE_RATIO = 1.5
"""How much wider a range may be above a selecting operator for the pair to move there: the whole
may span far more than the part that is read, and the part would lose the bits."""

Edge = tuple[int, int]
"""A read in the main graph: (position of the node, number of the input)."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product with one constant operand. `data`: the other operand's name. `axis`: of the
    scales in the weight as the product sees it, which is that of the output channels, but for a
    ConvTranspose on some targets. `stored`: the initializer's dtype."""

    site: NodeSite
    weight: ValueKey
    use: WeightUse
    data: str
    axis: int
    stored: np.dtype

    @property
    def op(self) -> str:
        return ops.op(self.site)

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def is_conv(self) -> bool:
        return self.op in ("Conv", "ConvTranspose")

    @property
    def data_edge(self) -> Edge:
        return self.site.position, 1 - self.use.input

    @property
    def dtype(self) -> np.dtype:
        """Of the weight as the product sees it, which is the type that it computes in."""
        return self.use.chain[-1].dtype if self.use.chain else self.stored

    @property
    def pair(self) -> tuple[str, int]:
        """The value that the weight's pair quantizes, and the channel axis there. Layers that
        agree in it share the pair."""
        (_, number), axis = self.weight_edge()
        site = self.site
        for step in self.use.chain:
            if step.op != "Transpose":
                break
        else:
            site = self.use.chain[0].site if self.use.chain else site
        return site.proto.input[number], axis

    def weight_edge(self) -> tuple[Edge, int]:
        """Where to quantize the weight, and the channel axis there: on the stored tensor where
        only transposes stand between, as it is folded there; else right before the product."""
        axis = self.axis
        for step in reversed(self.use.chain):
            if step.op != "Transpose":
                return (self.site.position, self.use.input), self.axis
            axis = step.perm[axis]
        if self.use.chain:
            return (self.use.chain[0].site.position, 0), axis
        return (self.site.position, self.use.input), axis


def find_layers(found: WeightUses, deconv_axis: int = 1) -> list[Layer]:
    """Every product of the four operators with a constant operand, in document order.

    deconv_axis: the axis of scales in the weight of ConvTranspose.
    """
    layers = []
    for key, uses in found.uses.items():
        for use in uses:
            if use.kind != "product" or use.consumer is None or use.op not in OPS:
                continue
            shape = use.chain[-1].shape if use.chain else tuple(found.tensors[key].dims)
            stored = numpy_dtype(found.tensors[key].data_type)
            axis = channel_axis(use.consumer, use.input, len(shape))
            axis = deconv_axis if use.op == "ConvTranspose" else axis
            layers.append(Layer(use.consumer, key, use, use.data, axis, stored))
    order = {id(site.proto): i for i, site in enumerate(found.index.nodes)}
    return sorted(layers, key=lambda each: (order[id(each.site.proto)], each.use.input))


class Flow:
    """What the rules ask of the main graph."""

    def __init__(self, found: WeightUses, shapes: Shapes, opset: int) -> None:
        self.found = found
        self.index: Index = found.index
        self.shapes = shapes
        self.opset = opset
        self.depth: dict[str, int] = {}
        self._behind_product: set[str] = set()
        for site in self.index.nodes:
            if site.scope:
                continue
            node = site.proto
            depth = 1 + max((self.depth.get(name, 0) for name in node.input), default=0)
            behind = ops.op(node) in OPS or any(n in self._behind_product for n in node.input)
            for name in node.output:
                self.depth[name] = depth
                if behind:
                    self._behind_product.add(name)

    # --- values ----------------------------------------------------------------------------
    def is_constant(self, value: str) -> bool:
        key = self.index.resolve(value)
        return key in self.found.tensors and key not in self.index.graph_inputs

    def is_output(self, value: str) -> bool:
        return ValueKey("", value) in self.index.graph_outputs

    def readers(self, value: str) -> list[Use]:
        return self.index.consumers(value)

    def edges(self, value: str) -> set[Edge]:
        """Its reads in the main graph."""
        return {(u.site.position, u.input) for u in self.readers(value) if not u.site.scope}

    def only_reader(self, value: str) -> Use | None:
        readers = self.readers(value)
        if len(readers) != 1 or readers[0].site.scope or self.is_output(value):
            return None
        return readers[0]

    def read_only_by(self, value: str, edges: set[Edge]) -> bool:
        """Whether nothing but `edges` sees the value: no body, no output, no other node."""
        readers = self.readers(value)
        if any(u.site.scope for u in readers) or self.is_output(value):
            return False
        return bool(readers) and self.edges(value) <= edges

    def is_dequantized(self, value: str) -> bool:
        """Whether the value comes from a DequantizeLinear, over commuting operators too."""
        return dq_behind(self.index, value) is not None

    def is_first(self, layer: Layer) -> bool:
        """Whether no product stands between a graph input and the layer."""
        return layer.data not in self._behind_product

    # --- epilogues -------------------------------------------------------------------------
    def epilogue(self, layer: Layer) -> str:
        """The value behind what TensorRT fuses to the product, residual Add aside."""
        value = layer.site.proto.output[0]
        while (use := self.only_reader(value)) is not None:
            node = use.site.proto
            is_norm = layer.is_conv and ops.is_onnx(node, "BatchNormalization") and use.input == 0
            is_bias = ops.is_onnx(node, "Add") and self.is_constant(node.input[1 - use.input])
            if not is_norm and not is_bias:
                break
            value = node.output[0]
        return value

    def residual_add(self, layer: Layer) -> Use | None:
        """The Add of two activations that a convolution's epilogue ends in."""
        return self._add_of(self.epilogue(layer)) if layer.is_conv else None

    def activated_add(self, layer: Layer) -> Use | None:
        """The Add of two activations behind a convolution's own activation, as in YOLO's blocks."""
        value = self.epilogue(layer)
        use = self.only_reader(value)
        if use is not None and ops.op(use.site) in ACTIVATIONS and use.input == 0:
            return self._add_of(use.site.proto.output[0]) if layer.is_conv else None
        swish = self._swish(value)
        return self._add_of(swish) if layer.is_conv and swish is not None else None

    def _add_of(self, value: str) -> Use | None:
        use = self.only_reader(value)
        if use is None or not ops.is_onnx(use.site, "Add"):
            return None
        return use if is_residual(self.shapes, use.site) else None

    def result(self, layer: Layer) -> str:
        """The value that leaves the fused kernel: epilogue, residual Add, activation."""
        value = self.epilogue(layer)
        if (add := self.residual_add(layer)) is not None:
            value = add.site.proto.output[0]
        use = self.only_reader(value)
        if use is not None and ops.op(use.site) in ACTIVATIONS and use.input == 0:
            return use.site.proto.output[0]
        return self._swish(value) or value

    def normalization(self, layer: Layer) -> Use | None:
        """The LayerNormalization that alone reads a convolution's result, over commuting operators
        perhaps."""
        if not layer.is_conv or self.residual_add(layer) is not None:
            return None
        use = self.only_reader(self.epilogue(layer))
        while use is not None and use.input == 0 and ops.op(use.site) in REARRANGING:
            use = self.only_reader(use.site.proto.output[0])
        if use is None or use.input or not ops.is_onnx(use.site, "LayerNormalization"):
            return None
        return use

    def _swish(self, value: str) -> str | None:
        mul = swish(self.index, value)
        return None if mul is None or mul.scope else mul.proto.output[0]

    def product_objection(self, site: NodeSite) -> tuple[str, str] | None:
        """(code, reason) why a product of two activations is not quantized on request."""
        if site.scope:
            return "O24-219", "calibration observes the main graph only, this is a body"
        if not ops.is_onnx(site, "MatMul"):
            return "O24-213", "both operands are computed at run time"
        if any(self.is_dequantized(name) for name in site.proto.input):
            return "O24-214", "an operand already stands behind Q/DQ"
        shapes = [self.shapes.shape(name) for name in site.proto.input]
        element = self.shapes.dtype(site.proto.input[0])
        if element is None or None in shapes:
            return "O24-216", "the operands' types or ranks are unknown"
        if reason := dtype_reason(numpy_dtype(element), self.opset):
            return "O24-216", reason
        left, right = (shape or () for shape in shapes)
        if min(len(left), len(right)) < 2:
            return "O24-210", "an operand is a vector"
        rows, k, columns = left[-2], left[-1], right[-1]
        if 1 in (rows, columns):
            return "O24-210", f"{rows} rows, {columns} columns"
        if any(isinstance(size, int) and size < MIN_SIZE for size in (k, columns)):
            return "O24-211", f"K = {k}, N = {columns}; both at least {MIN_SIZE} are expected"
        return None

    # --- which layers ----------------------------------------------------------------------
    def objection(self, layer: Layer) -> tuple[str, str] | None:
        """(code, reason) why a layer is not quantized, None where it is worth it: the first rule
        of REFUSALS that applies. What depends on options or on calibration is not asked here."""
        for rule in REFUSALS:
            if rule.check is not None and (reason := rule.check(self, layer)):
                return rule.code, reason
        return None

    def _fits_few_channels(self, layer: Layer) -> bool:
        """Whether INT8 kernels take a convolution of fewer than 16 channels: with groups, where
        the outputs are a multiple of 8 and the kernel is 3 or more everywhere; without, where one
        side is a multiple of 8, one side is 16 or more unless it is the first layer, and the kernel
        is square. *Source:* NVIDIA Model-Optimizer, onnx/quantization/graph_utils.py."""
        use = layer.use
        kernel = (use.chain[-1].shape if use.chain else self._dims(layer))[2:]
        if use.groups > 1:
            return use.N % 8 == 0 and min(kernel) >= 3
        wide = self.is_first(layer) or max(use.K, use.N) >= MIN_SIZE
        return wide and (use.N % 8 == 0 or use.K % 8 == 0) and len(set(kernel)) == 1

    def _dims(self, layer: Layer) -> tuple[int, ...]:
        return tuple(self.found.tensors[layer.weight].dims)

    def _free_size(self, layer: Layer) -> int | None:
        """Rows of the activation [elements]; None where a dynamic dimension decides."""
        shape = self.shapes.shape(layer.data)
        if shape is None:
            return None
        if len(shape) == 1:
            return 1
        if layer.op == "Gemm":
            transposed = bool(
                ops.attribute(layer.site, "transA" if layer.use.input else "transB", 0)
            )
            reduced = int(transposed != bool(layer.use.input))
        else:
            reduced = len(shape) - (1 if layer.use.input else 2)
        sizes = [dim for axis, dim in enumerate(shape) if axis != reduced]
        known = [dim for dim in sizes if isinstance(dim, int)]
        return math.prod(known) if len(known) == len(sizes) else None


def is_residual(shapes: Shapes, add: NodeSite) -> bool:
    """Whether an Add sums two tensors of one shape; a broadcast is no residual."""
    left, right = (shapes.shape(name, add.scope) for name in add.proto.input)
    return left is not None and left == right


@dataclass(frozen=True)
class Rule:
    """One rule. code: that of the records it leads to; text: what it says; source: what it rests
    on. check: for refusals, the reason why it applies to a layer, None where it does not."""

    name: str
    code: str
    text: str
    source: str
    check: Callable[[Flow, Layer], str | None] | None = None


_EXPLICIT = "TensorRT documentation, explicit quantization"
_MODELOPT = "NVIDIA Model-Optimizer, onnx/quantization/graph_utils.py"


def _in_a_body(flow: Flow, layer: Layer) -> str | None:
    return "calibration observes the main graph only, this is a body" if layer.site.scope else None


def _not_constant(flow: Flow, layer: Layer) -> str | None:
    if layer.weight in flow.index.graph_inputs:
        return f"{layer.weight.name!r} may be overridden by the caller"
    return "both operands are constant" if flow.is_constant(layer.data) else None


def _already(flow: Flow, layer: Layer) -> str | None:
    if any(step.op in ("QuantizeLinear", "DequantizeLinear") for step in layer.use.chain):
        return "the weight already stands behind Q/DQ"
    if flow.is_dequantized(layer.data):
        return "the activation already stands behind Q/DQ"
    return None


def _dtype(flow: Flow, layer: Layer) -> str | None:
    return dtype_reason(layer.dtype, flow.opset)


def dtype_reason(dtype: np.dtype, opset: int) -> str | None:
    """Why values of that type cannot be quantized in that opset."""
    element = helper.np_dtype_to_tensor_dtype(dtype)
    if element == TensorProto.FLOAT:
        return None
    if element not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return f"{dtype} has no QuantizeLinear"
    if opset < MIN_OPSET_16:
        return f"QuantizeLinear takes {dtype} from opset {MIN_OPSET_16} on, the model has {opset}"
    return None


def _few_channels(flow: Flow, layer: Layer) -> str | None:
    use = layer.use
    if not layer.is_conv or min(use.K, use.N) >= MIN_SIZE or flow._fits_few_channels(layer):
        return None
    per_group = " a group" if use.groups > 1 else ""
    return (
        f"{use.K} input channels{per_group}, {use.N} output channels; both at least "
        f"{MIN_SIZE} are expected, or one of the exceptions"
    )


def _matrix_vector(flow: Flow, layer: Layer) -> str | None:
    if layer.is_conv:
        return None
    if (free := flow._free_size(layer)) == 1 or layer.use.N == 1:
        which = "the activation has one row" if free == 1 else "the weight has one column"
        return f"K = {layer.use.K}, {which}"
    return None


def _small(flow: Flow, layer: Layer) -> str | None:
    use = layer.use
    if layer.is_conv or min(use.K, use.N) >= MIN_SIZE:
        return None
    return f"K = {use.K}, N = {use.N}; both at least {MIN_SIZE} are expected"


REFUSALS = (
    Rule(
        "main graph",
        "O24-219",
        "Layers in bodies of If, Loop, Scan and functions stay in float: their activations are "
        "not observed.",
        "onnx24, runtime/ranges.py",
        _in_a_body,
    ),
    Rule(
        "constant weight",
        "O24-213",
        "One operand is constant and the other is not; a weight that the caller may override is "
        "none.",
        f"{_EXPLICIT} (weights are quantized at build time)",
        _not_constant,
    ),
    Rule(
        "once",
        "O24-214",
        "What stands behind Q/DQ already stays as it is.",
        "onnx24: a second run changes nothing",
        _already,
    ),
    Rule(
        "type",
        "O24-216",
        "float32; float16 and bfloat16 from opset 19 on.",
        "ONNX operator QuantizeLinear",
        _dtype,
    ),
    Rule(
        "few channels",
        "O24-212",
        "Convolutions have 16 channels or more, or one of the forms that kernels are known for.",
        _MODELOPT,
        _few_channels,
    ),
    Rule(
        "matrix-vector",
        "O24-210",
        "A product with one row or one column is bound by memory.",
        _MODELOPT,
        _matrix_vector,
    ),
    Rule("small", "O24-211", "K and N are 16 or more.", _MODELOPT, _small),
)
"""Which layers stay in float, in the order in which they are asked."""


@dataclass
class Placement:
    """`edges`: activation → the reads that take its dequantized value instead. `parents`: links
    activations that share a scale. `moved`: activation → the one above it that its pair went to.
    `considered`: all that any rule looked at, which calibration
    has to observe. `results`: layer → the activation that the sparse rule quantizes for it.
    `rules`: activation → the names of the rules that put its pair there."""

    edges: dict[str, set[Edge]] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    considered: dict[str, None] = field(default_factory=dict)
    results: dict[Layer, str] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)
    steps: set[Edge] = field(default_factory=set)
    """Reads by commuting operators that pairs have moved over."""

    def groups(self) -> dict[str, list[str]]:
        """Activation → those that share its scale, itself included."""
        by_root: dict[str, list[str]] = {}
        for value in self.edges:
            by_root.setdefault(self._root(value), []).append(value)
        return {value: group for group in by_root.values() for value in group}

    def read_by(self, layer: Layer) -> str:
        """The activation whose pair the layer reads, perhaps over commuting operators."""
        return self.seat(layer.data)

    def seat(self, value: str) -> str:
        """Where the pair of `value` stands now that pairs have moved over commuting operators."""
        while value in self.moved:
            value = self.moved[value]
        return value

    def add(self, value: str, edges: Iterable[Edge], rule: str) -> None:
        self.edges.setdefault(value, set()).update(edges)
        if rule not in (names := self.rules.setdefault(value, [])):
            names.append(rule)

    def sources(self, read: Mapping[Edge, str]) -> dict[str, list[str]]:
        """Activation with a pair → those whose ranges its scale has to serve: what its readers
        see, over commuting operators too.

        read: the reads of products → the activation they read.
        """
        found: dict[str, list[str]] = {value: [] for value in self.edges}
        for value in dict.fromkeys(read.values()):
            if (seat := self.seat(value)) in found and value not in found[seat]:
                found[seat].append(value)
        for value, edges in self.edges.items():
            others = [e for e in edges if e not in read and e not in self.steps]
            if value not in found[value] and (others or not found[value]):
                found[value].append(value)
        return found

    def tie(self, a: str, b: str) -> None:
        self.parents[self._root(b)] = self._root(a)

    def _root(self, value: str) -> str:
        while value in self.parents and self.parents[value] != value:
            value = self.parents[value]
        return value


@dataclass(frozen=True)
class Request:
    """What to place pairs for. sparse: layers whose result the sparse rule quantizes. products:
    those of two activations that are wanted. fused: layers that are quantized already, for whose
    residual Add the skip branch is to be."""

    layers: Sequence[Layer]
    sparse: Sequence[Layer] = ()
    products: Sequence[NodeSite] = ()
    fused: Sequence[Layer] = ()

    def reads(self) -> dict[Edge, str]:
        """The reads of products → the activation they read."""
        found = {layer.data_edge: layer.data for layer in self.layers}
        for site in self.products:
            found.update({(site.position, i): site.proto.input[i] for i in (0, 1)})
        return found


@dataclass
class Site:
    """What a placement rule works on. range_of: the range of an activation, None where it is not
    known yet or no scale can be made of it. fp8: the pairs are FP8's."""

    flow: Flow
    request: Request
    placement: Placement
    range_of: Callable[[str], float | None] | None
    fp8: bool = False

    def commutes(self, node: NodeSite) -> bool:
        """Whether pairs of this format move over the node."""
        if self.fp8 and ops.op(node) not in FP8_COPIES:
            return False
        return crosses(self.flow.index, node)

    def fits(self, value: str) -> bool:
        """Whether an optional pair can stand on the activation."""
        self.placement.considered.setdefault(value)
        if self.flow.is_constant(value):
            return False
        return self.range_of is None or self.range_of(value) is not None

    def is_as_narrow(self, source: str, value: str) -> bool:
        """Whether a pair loses little by moving up from `value` to `source`."""
        if self.range_of is None:
            return True
        wide, narrow = self.range_of(source), self.range_of(value)
        return wide is not None and (narrow is None or wide <= MAX_RANGE_RATIO * narrow)


def place(
    flow: Flow,
    request: Request,
    range_of: Callable[[str], float | None] | None = None,
    *,
    fp8: bool = False,
) -> Placement:
    """The pairs for a request; without `range_of`, all that could come into question (its
    `considered` is what calibration has to observe). fp8: by the rules that hold for FP8."""
    site = Site(flow, request, Placement(), range_of, fp8)
    rules = [rule for rule in PLACEMENT if not fp8 or not rule.int8_because]
    for rule in rules:
        if rule.once is not None:
            rule.once(site)
    repeated = [rule.repeat for rule in rules if rule.repeat is not None]
    while any(repeat(site) for repeat in repeated):
        pass
    return site.placement


def _inputs(site: Site) -> None:
    for layer in site.request.layers:
        site.placement.considered.setdefault(layer.data)
        site.placement.add(layer.data, [layer.data_edge], "inputs")


def _products(site: Site) -> None:
    for product in site.request.products:
        for number in (0, 1):
            name = product.proto.input[number]
            site.placement.considered.setdefault(name)
            site.placement.add(name, [(product.position, number)], "products of activations")


def _sparse_results(site: Site) -> None:
    flow = site.flow
    for layer in site.request.sparse:
        value = flow.result(layer)
        if flow.is_output(value) or reaches_float_attention(flow.index, flow.shapes, value):
            continue
        if site.fits(value) and (edges := flow.edges(value)):
            site.placement.add(value, edges, "sparse result")
            site.placement.results[layer] = value


def _normalized_results(site: Site) -> None:
    for layer in site.request.layers:
        use = site.flow.normalization(layer)
        if use is not None and site.fits(name := use.site.proto.input[0]):
            site.placement.add(name, [(use.site.position, 0)], "normalized result")


def _skip_branches(site: Site) -> None:
    flow, placement = site.flow, site.placement
    fused: dict[int, list[Use]] = {}
    for layer in (*site.request.layers, *site.request.fused):
        if (add := flow.residual_add(layer) or flow.activated_add(layer)) is not None:
            fused.setdefault(add.site.position, []).append(add)
    for uses in fused.values():
        inputs = uses[0].site.proto.input
        for name in inputs:
            placement.considered.setdefault(name)
        keeps = max(uses, key=lambda use: (flow.depth.get(inputs[use.input], 0), -use.input))
        skip = 1 - keeps.input
        if inputs[0] != inputs[1] and site.fits(inputs[skip]):
            placement.add(inputs[skip], [(keeps.site.position, skip)], "skip branch")


def _move_up(site: Site) -> bool:
    """Move one pair over the commuting operator that makes its activation; False if none can."""
    flow, placement = site.flow, site.placement
    for value, edges in placement.edges.items():
        above = flow.index.producer(value)
        if above is None or not site.commutes(above):
            continue
        if len([name for name in above.proto.output if name]) > 1:  # MaxPool's indices
            continue
        source = above.proto.input[0]
        if not flow.read_only_by(value, edges) or not site.fits(source):
            continue
        if ops.op(above) in SELECTING and not site.is_as_narrow(source, value):
            continue
        for rule in placement.rules[value]:
            placement.add(source, [(above.position, 0)], rule)
        placement.add(source, [(above.position, 0)], "commuting operators")
        placement.steps.add((above.position, 0))
        placement.tie(source, value)
        placement.moved[value] = source
        del placement.edges[value]
        return True
    return False


def _share_over_concat(site: Site) -> bool:
    """Tie the scales around one Concat; False if every one is settled."""
    flow, placement = site.flow, site.placement
    for value, edges in placement.edges.items():
        above = flow.index.producer(value)
        if above is None or not ops.is_onnx(above, "Concat"):
            continue
        inputs = list(above.proto.input)
        seats = [placement.seat(name) for name in inputs]
        groups = {placement._root(name) for name in (value, *seats) if name in placement.edges}
        wanted = {
            name: {(above.position, i) for i, other in enumerate(inputs) if other == name}
            for name in inputs
        }
        fitting = [site.fits(name) for name in inputs]
        whole = flow.read_only_by(value, edges) and all(fitting)
        settled = len(groups) == 1 and (
            not whole
            or all(
                name in placement.moved or edges <= placement.edges.get(name, set())
                for name, edges in wanted.items()
            )
        )
        if settled:
            continue
        for name, seat in zip(inputs, seats, strict=True):
            if whole and name not in placement.moved:
                placement.add(name, wanted[name], "concat")
            if seat in placement.edges:
                placement.tie(value, seat)
        return True
    return False


@dataclass(frozen=True)
class PlacementRule(Rule):
    """once: applied in the order of the table. repeat: applied after those until none of them
    changes anything; returns whether it did. Neither: a rule that says where no pair goes.
    int8_because: why FP8 does not follow it; "" where it does."""

    once: Callable[[Site], None] | None = None
    repeat: Callable[[Site], bool] | None = None
    int8_because: str = ""


PLACEMENT = (
    PlacementRule(
        "inputs",
        "O24-200",
        "The activation and the constant weight of every Conv, ConvTranspose, Gemm and MatMul, "
        "never the bias. One pair for each activation, shared by all readers that are quantized; "
        "the others read the float.",
        f'{_EXPLICIT}, "quantize all inputs of weighted operations"',
        once=_inputs,
    ),
    PlacementRule(
        "products of activations",
        "O24-225",
        "On request, both operands of a MatMul of two activations (attention).",
        f"{_EXPLICIT}; NVIDIA Model-Optimizer leaves them in float unless asked",
        once=_products,
        int8_because="attention in FP8 has patterns of its own, which are not built here",
    ),
    PlacementRule(
        "whole epilogues",
        "O24-200",
        "Nothing between a product and the bias, BatchNormalization and activation behind it, "
        "which TensorRT fuses into its kernel.",
        f"{_EXPLICIT}, Q/DQ placement recommendations",
    ),
    PlacementRule(
        "sparse result",
        "O24-200",
        "The result of a 2:4 product is quantized for all its readers, since a sparse INT8 kernel "
        "is chosen only INT8-in and INT8-out. The pair stands behind the whole epilogue: bias, "
        "BatchNormalization, for a convolution the residual Add, activation. A MatMul's or Gemm's "
        "residual Add is no part of it: what follows there is a normalization that reads the sum, "
        "and the residual stream would lose precision in every block. A graph output stays float, "
        "and so does what goes into ONNX's Attention in float32, which TensorRT does not build "
        "behind Q/DQ (in 16 bit it does).",
        "Model-Optimizer pull request 1664 (none of 196 eligible layers without it, 140 with it)",
        once=_sparse_results,
        int8_because="nothing public shows a 2:4 kernel with FP8 out",
    ),
    PlacementRule(
        "normalized result",
        "O24-200",
        "A convolution's result that only a LayerNormalization reads, perhaps over Transpose or "
        "Reshape, is quantized, so that the convolution is INT8-out.",
        "NVIDIA Model-Optimizer, tests/unit/onnx/quantization/test_qdq_rules_int8.py (ConvNeXt)",
        once=_normalized_results,
        int8_because="Model-Optimizer's FP8 takes Conv, Gemm, MatMul and residual Adds alone",
    ),
    PlacementRule(
        "skip branch",
        "O24-200",
        "Where a convolution's result is added to another tensor, that other tensor is quantized "
        "for the Add, and the edge from the convolution is not: the sum is then part of the INT8 "
        "kernel. So too where the convolution's activation stands between. Of two convolutions the "
        "one that lies deeper keeps the fused edge.",
        "NVIDIA/TensorRT issues 1992, 3270; FP8: NVIDIA Model-Optimizer, onnx/quantization/fp8.py",
        once=_skip_branches,
    ),
    PlacementRule(
        "commuting operators",
        "O24-200",
        "A pair moves up over MaxPool, Transpose, Reshape and their kin, and over a Pad with "
        "zeros, where all readers behind them are quantized, so that branches share one pair, at "
        "their nearest common dominator, and the copies move 8 bits. Over Slice and Gather only "
        "where the range above is at most half as wide again. AveragePool does not commute.",
        f'{_EXPLICIT}, "Q/DQ propagation"',
        repeat=_move_up,
    ),
    PlacementRule(
        "concat",
        "O24-200",
        "A Concat's inputs and its result share one scale; where every reader of the result is "
        "quantized, the inputs are too, so that the copy itself is INT8.",
        f"{_EXPLICIT}; NVIDIA/TensorRT samples, pytorch-quantization ResNet and YOLO guides",
        repeat=_share_over_concat,
    ),
)
"""Where the pairs go, in the order in which the rules are applied."""


def range_objection(found: Range) -> tuple[str, str] | None:
    """(code, reason) why an activation of this range is not quantized."""
    if found.overflowed:
        share = f"{found.overflowed:,} of {found.values:,} values"
        return "O24-220", f"{share} of the activation were NaN or infinite"
    if not found.amax > 0:
        return "O24-215", f"all {found.values:,} values of the activation were 0"
    return None
