"""Where Q/DQ pairs go, so that TensorRT fuses them.

The rules, each with what it rests on:

- *Inputs.* The activation and the constant weight of every Conv, ConvTranspose, Gemm and MatMul
  that is worth it; never the bias. One pair for each activation, shared by all readers that are
  quantized; the others read the float. *Source:* TensorRT documentation, explicit quantization,
  "quantize all inputs of weighted operations".
- *Not worth it.* Matrix-vector products, K or N below 16, convolutions of fewer than 16 channels
  for which no kernels are known (`_fits_few_channels`). *Source:* NVIDIA Model-Optimizer,
  onnx/quantization/graph_utils.py.
- *Whole epilogues.* Nothing is put between a product and the bias, BatchNormalization and
  activation behind it, which TensorRT fuses into its kernel.
- *Skip branch.* Where a convolution's result is added to another tensor, that other tensor is
  quantized for the Add, and the edge from the convolution is not: the sum is then part of the
  INT8 kernel. Of two convolutions the one that lies deeper keeps the fused edge. *Source:*
  NVIDIA/TensorRT issues 1992, 3270.
- *Commuting operators.* A pair moves up over MaxPool, Transpose, Reshape and their kin where all
  readers behind them are quantized, so that branches share one pair and the copies move 8 bits.
  *Source:* TensorRT documentation, explicit quantization, "Q/DQ propagation".
- *Concat.* Its inputs and its result share one scale; where every reader of the result is
  quantized, the inputs are too, so that the copy itself is INT8.
- *Sparse rule.* The result of a 2:4 product is quantized for all its readers, since a sparse INT8
  kernel is chosen only INT8-in and INT8-out (Model-Optimizer pull request 1664: none of 196
  eligible layers without the output Q/DQ, 140 with it). The pair stands behind the whole epilogue:
  BatchNormalization, bias, for a convolution the residual Add, ReLU or the like. A MatMul's or
  Gemm's residual Add is no part of it: what follows there is a normalization that reads the sum,
  and the residual stream would lose precision in every block. A graph output stays float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.ir.index import Index, NodeSite, Use
from onnx24.ir.keys import ValueKey
from onnx24.ir.weights import numpy_dtype
from onnx24.quant.calibrators import Calibrator

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MIN_SIZE = 16
"""Channels, or K and N, from which INT8 can gain. Source: NVIDIA Model-Optimizer."""

COMMUTING = frozenset(
    {"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
ACTIVATIONS = frozenset({"Clip", "LeakyRelu", "Relu"})
"""What TensorRT fuses behind a product as its activation."""

Edge = tuple[int, int]
"""A read in the main graph: (position of the node, number of the input)."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product with one constant operand. `data`: the other operand's name. `axis`: of the
    output channels in the weight as the product sees it. `stored`: the initializer's dtype."""

    site: NodeSite
    weight: ValueKey
    use: WeightUse
    data: str
    axis: int
    stored: np.dtype

    @property
    def op(self) -> str:
        return self.site.proto.op_type

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


def find_layers(found: WeightUses) -> list[Layer]:
    """Every product of the four operators with a constant operand, in document order."""
    layers = []
    for key, uses in found.uses.items():
        for use in uses:
            if use.kind != "product" or use.consumer is None or use.op not in OPS:
                continue
            shape = use.chain[-1].shape if use.chain else tuple(found.tensors[key].dims)
            stored = numpy_dtype(found.tensors[key].data_type)
            axis = _channel_axis(use, len(shape))
            layers.append(Layer(use.consumer, key, use, use.data, axis, stored))
    order = {id(site.proto): i for i, site in enumerate(found.index.nodes)}
    return sorted(layers, key=lambda each: (order[id(each.site.proto)], each.use.input))


def _channel_axis(use: WeightUse, rank: int) -> int:
    assert use.consumer is not None
    if use.op == "Conv":
        return 0
    if use.op == "ConvTranspose":
        return 1
    if use.op == "Gemm":
        name = "transB" if use.input else "transA"
        return int(_int_attribute(use.consumer, name) != use.input)
    if rank == 1:
        return 0
    return rank - 1 if use.input else rank - 2


def _int_attribute(site: NodeSite, name: str) -> int:
    return next((int(a.i) for a in site.proto.attribute if a.name == name), 0)


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
            behind = node.op_type in OPS or any(n in self._behind_product for n in node.input)
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
        while (site := self.index.producer(value)) is not None:
            if site.proto.op_type == "DequantizeLinear":
                return True
            if site.proto.op_type not in COMMUTING or not site.proto.input:
                return False
            value = site.proto.input[0]
        return False

    def is_first(self, layer: Layer) -> bool:
        """Whether no product stands between a graph input and the layer."""
        return layer.data not in self._behind_product

    # --- epilogues -------------------------------------------------------------------------
    def epilogue(self, layer: Layer) -> str:
        """The value behind what TensorRT fuses to the product, residual Add aside."""
        value = layer.site.proto.output[0]
        while (use := self.only_reader(value)) is not None:
            node = use.site.proto
            is_norm = layer.is_conv and node.op_type == "BatchNormalization" and use.input == 0
            is_bias = node.op_type == "Add" and self.is_constant(node.input[1 - use.input])
            if not is_norm and not is_bias:
                break
            value = node.output[0]
        return value

    def residual_add(self, layer: Layer) -> Use | None:
        """The Add of two activations that a convolution's epilogue ends in."""
        if not layer.is_conv:
            return None
        value = self.epilogue(layer)
        use = self.only_reader(value)
        if use is None or use.site.proto.op_type != "Add":
            return None
        shapes = [self.shapes.shape(name) for name in use.site.proto.input]
        if None in shapes or shapes[0] != shapes[1]:
            return None  # a broadcast is no residual
        return use

    def result(self, layer: Layer) -> str:
        """The value that leaves the fused kernel: epilogue, residual Add, activation."""
        value = self.epilogue(layer)
        if (add := self.residual_add(layer)) is not None:
            value = add.site.proto.output[0]
        use = self.only_reader(value)
        if use is not None and use.site.proto.op_type in ACTIVATIONS and use.input == 0:
            return use.site.proto.output[0]
        return self._swish(value) or value

    def _swish(self, value: str) -> str | None:
        """x · sigmoid(x), as exporters write it."""
        readers = [u.site for u in self.readers(value) if not u.site.scope]
        by_op = {site.proto.op_type: site for site in readers}
        if self.is_output(value) or len(readers) != 2 or set(by_op) != {"Mul", "Sigmoid"}:
            return None
        gate = self.only_reader(by_op["Sigmoid"].proto.output[0])
        if gate is None or gate.site is not by_op["Mul"]:
            return None
        return by_op["Mul"].proto.output[0]

    # --- which layers ----------------------------------------------------------------------
    def objection(self, layer: Layer) -> tuple[str, str] | None:
        """(code, reason) why a layer is not quantized, None where it is worth it. What depends on
        options or on calibration is not asked here."""
        if layer.site.scope:
            return "O24-219", "calibration observes the main graph only, this is a body"
        if layer.weight in self.index.graph_inputs:
            return "O24-213", f"{layer.weight.name!r} may be overridden by the caller"
        if self.is_constant(layer.data):
            return "O24-213", "both operands are constant"
        quantizers = ("QuantizeLinear", "DequantizeLinear")
        if any(step.op in quantizers for step in layer.use.chain):
            return "O24-214", "the weight already stands behind Q/DQ"
        if self.is_dequantized(layer.data):
            return "O24-214", "the activation already stands behind Q/DQ"
        return self._dtype_objection(layer) or self._size_objection(layer)

    def _dtype_objection(self, layer: Layer) -> tuple[str, str] | None:
        element = helper.np_dtype_to_tensor_dtype(layer.dtype)
        if element == TensorProto.FLOAT:
            return None
        if element not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return "O24-216", f"{layer.dtype} has no QuantizeLinear"
        if self.opset < 19:
            reason = f"QuantizeLinear takes {layer.dtype} from opset 19 on, the model has {{}}"
            return "O24-216", reason.format(self.opset)
        return None

    def _size_objection(self, layer: Layer) -> tuple[str, str] | None:
        use = layer.use
        if layer.is_conv:
            if min(use.K, use.N) >= MIN_SIZE or self._fits_few_channels(layer):
                return None
            per_group = " a group" if use.groups > 1 else ""
            return "O24-212", (
                f"{use.K} input channels{per_group}, {use.N} output channels; both at least "
                f"{MIN_SIZE} are expected, or one of the exceptions"
            )
        if (free := self._free_size(layer)) == 1 or use.N == 1:
            which = "the activation has one row" if free == 1 else "the weight has one column"
            return "O24-210", f"K = {use.K}, {which}"
        if min(use.K, use.N) < MIN_SIZE:
            return "O24-211", f"K = {use.K}, N = {use.N}; both at least {MIN_SIZE} are expected"
        return None

    def _fits_few_channels(self, layer: Layer) -> bool:
        """Whether INT8 kernels take a convolution of fewer than 16 channels: with groups, where
        the outputs are a multiple of 8 and the kernel is 3 or more everywhere; without, where one
        side is a multiple of 8, one side is 16 or more unless it is the first layer, and the kernel
        is square. *Source:* as above."""
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
            name = "transA" if layer.use.input else "transB"
            reduced = int(_int_attribute(layer.site, name) != layer.use.input)
        else:
            reduced = len(shape) - (1 if layer.use.input else 2)
        sizes = [dim for axis, dim in enumerate(shape) if axis != reduced]
        known = [dim for dim in sizes if isinstance(dim, int)]
        return math.prod(known) if len(known) == len(sizes) else None


@dataclass
class Placement:
    """`edges`: activation → the reads that take its dequantized value instead. `parents`: links
    activations that share a scale. `moved`: activation → the one above it that its pair went to.
    `considered`: all that any rule looked at, which calibration
    has to observe. `results`: layer → the activation that the sparse rule quantizes for it."""

    edges: dict[str, set[Edge]] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    considered: dict[str, None] = field(default_factory=dict)
    results: dict[Layer, str] = field(default_factory=dict)

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

    def add(self, value: str, edges: Iterable[Edge]) -> None:
        self.edges.setdefault(value, set()).update(edges)

    def tie(self, a: str, b: str) -> None:
        self.parents[self._root(b)] = self._root(a)

    def _root(self, value: str) -> str:
        while value in self.parents and self.parents[value] != value:
            value = self.parents[value]
        return value


def place(
    flow: Flow,
    layers: Iterable[Layer],
    sparse: Iterable[Layer] = (),
    usable: Callable[[str], bool] = lambda value: True,
) -> Placement:
    """The pairs for `layers`. sparse: those among them that the sparse rule is for. usable:
    whether an activation has a range that a scale can be made of; optional pairs on others are
    left out."""
    layers = list(layers)
    placement = Placement()

    def fits(value: str) -> bool:
        placement.considered.setdefault(value)
        return not flow.is_constant(value) and usable(value)

    for layer in layers:
        placement.considered.setdefault(layer.data)
        placement.add(layer.data, [layer.data_edge])
    for layer in sparse:
        value = flow.result(layer)
        if not flow.is_output(value) and fits(value) and (edges := flow.edges(value)):
            placement.add(value, edges)
            placement.results[layer] = value
    _skip_branches(flow, layers, placement, fits)
    while _move_up(flow, placement, fits) or _share_over_concat(flow, placement, fits):
        pass
    return placement


def _skip_branches(
    flow: Flow, layers: list[Layer], placement: Placement, fits: Callable[[str], bool]
) -> None:
    fused: dict[int, list[Use]] = {}
    for layer in layers:
        if (add := flow.residual_add(layer)) is not None:
            fused.setdefault(add.site.position, []).append(add)
    for uses in fused.values():
        inputs = uses[0].site.proto.input
        for name in inputs:
            placement.considered.setdefault(name)
        keeps = max(uses, key=lambda use: (flow.depth.get(inputs[use.input], 0), -use.input))
        skip = 1 - keeps.input
        if inputs[0] != inputs[1] and fits(inputs[skip]):
            placement.add(inputs[skip], [(keeps.site.position, skip)])


def _move_up(flow: Flow, placement: Placement, fits: Callable[[str], bool]) -> bool:
    """Move one pair over the commuting operator that makes its activation; False if none can."""
    for value, edges in placement.edges.items():
        site = flow.index.producer(value)
        if site is None or site.proto.op_type not in COMMUTING:
            continue
        if len([name for name in site.proto.output if name]) > 1:  # MaxPool's indices
            continue
        source = site.proto.input[0]
        if not flow.read_only_by(value, edges) or not fits(source):
            continue
        placement.add(source, [(site.position, 0)])
        placement.tie(source, value)
        placement.moved[value] = source
        del placement.edges[value]
        return True
    return False


def _share_over_concat(flow: Flow, placement: Placement, fits: Callable[[str], bool]) -> bool:
    """Tie the scales around one Concat; False if every one is settled."""
    for value, edges in placement.edges.items():
        site = flow.index.producer(value)
        if site is None or site.proto.op_type != "Concat":
            continue
        inputs = list(site.proto.input)
        seats = [placement.seat(name) for name in inputs]
        groups = {placement._root(name) for name in (value, *seats) if name in placement.edges}
        wanted = {
            name: {(site.position, i) for i, other in enumerate(inputs) if other == name}
            for name in inputs
        }
        fitting = [fits(name) for name in inputs]
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
                placement.add(name, wanted[name])
            if seat in placement.edges:
                placement.tie(value, seat)
        return True
    return False


def range_objection(calibrator: Calibrator) -> tuple[str, str] | None:
    """(code, reason) why an activation of this range is not quantized."""
    if calibrator.overflowed:
        share = f"{calibrator.overflowed:,} of {calibrator.values:,} values"
        return "O24-220", f"{share} of the activation were NaN or infinite"
    if not calibrator.amax > 0:
        return "O24-215", f"all {calibrator.values:,} values of the activation were 0"
    return None
