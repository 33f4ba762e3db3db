"""Passes for the tests of the pass manager: they log, lie, fail and change what they are told."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx

from onnx24.effects import Effects
from onnx24.errors import InputError, NotMetError
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass

LAYERS = 5


def chain(layers: int = LAYERS) -> Model:
    """x [batch, 4] through `layers` MatMul with weights w0, w1, … [4, 4], all positive."""
    rng = np.random.default_rng(0)
    helper = onnx.helper
    weights = [
        onnx.numpy_helper.from_array(rng.uniform(0.1, 1, (4, 4)).astype(np.float32), f"w{i}")
        for i in range(layers)
    ]
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"layer{i}")
            for i in range(layers)
        ],
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


class Plain(Pass):
    """A test pass is what it changes; it may change anything unless it says otherwise."""

    effects: ClassVar = Effects.WEIGHTS | Effects.STRUCTURE


@dataclass(frozen=True, kw_only=True)
class Log(Plain):
    name: ClassVar = "log"
    effects: ClassVar = Effects.NONE
    codes: ClassVar = ("O24-100",)
    tag: Annotated[str, "what to log"] = ""

    def run(self, model: Model, ctx: Context) -> None:
        ctx.statistics["tag"] = self.tag
        ctx.record("logged", "O24-100", weight="w0", reason=self.tag)


@dataclass(frozen=True, kw_only=True)
class Scale(Plain):
    """Multiplies each weight; asks for every layer."""

    name: ClassVar = "scale"
    effects: ClassVar = Effects.WEIGHTS
    numeric: ClassVar = "close"
    factor: Annotated[float, "the factor"] = 1.5
    only: Annotated[str, "the layer that gets it"] = ""

    def run(self, model: Model, ctx: Context) -> None:
        for key in model.weights:
            if ctx.admit(key.name):
                factor = self.factor if self.only in ("", key.name) else 1.0
                model.weights.replace(key, model.weights[key] * np.float32(factor))


@dataclass(frozen=True, kw_only=True)
class SilentScale(Scale):
    """Says that it keeps the function."""

    name: ClassVar = "silent-scale"
    numeric: ClassVar = "rounding"


@dataclass(frozen=True, kw_only=True)
class LyingScale(Scale):
    """Says that it changes structure only."""

    name: ClassVar = "lying-scale"
    effects: ClassVar = Effects.STRUCTURE


@dataclass(frozen=True, kw_only=True)
class Rename(Plain):
    """Gives every node a prefix."""

    name: ClassVar = "rename"
    effects: ClassVar = Effects.STRUCTURE
    prefix: Annotated[str, "the prefix"] = "r_"

    def run(self, model: Model, ctx: Context) -> None:
        for node in model.proto.graph.node:
            node.name = self.prefix + node.name
        model.touch(Effects.STRUCTURE)


@dataclass(frozen=True, kw_only=True)
class Unname(Plain):
    """Takes the prefix away."""

    name: ClassVar = "unname"
    prefix: Annotated[str, "the prefix"] = "r_"

    def run(self, model: Model, ctx: Context) -> None:
        for node in model.proto.graph.node:
            node.name = node.name.removeprefix(self.prefix)
        model.touch(Effects.STRUCTURE)


@dataclass(frozen=True, kw_only=True)
class Untold(Plain):
    """Edits the document and does not tell the model."""

    name: ClassVar = "untold"

    def run(self, model: Model, ctx: Context) -> None:
        model.proto.graph.node[0].name = "another"


@dataclass(frozen=True, kw_only=True)
class TouchOnly(Plain):
    name: ClassVar = "touch-only"

    def run(self, model: Model, ctx: Context) -> None:
        model.touch(Effects.STRUCTURE | Effects.WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class BreakGraph(Plain):
    """Leaves a node that reads what nothing defines."""

    name: ClassVar = "break-graph"

    def run(self, model: Model, ctx: Context) -> None:
        model.proto.graph.node[0].input[0] = "nowhere"
        model.touch(Effects.STRUCTURE)


@dataclass(frozen=True, kw_only=True)
class RenameOutput(Plain):
    name: ClassVar = "rename-output"

    def run(self, model: Model, ctx: Context) -> None:
        model.proto.graph.node[-1].output[0] = "z"
        model.proto.graph.output[0].name = "z"
        model.touch(Effects.STRUCTURE)


@dataclass(frozen=True, kw_only=True)
class Claim(Plain):
    """Records w0 as 2:4, whatever it is."""

    name: ClassVar = "claim"

    def run(self, model: Model, ctx: Context) -> None:
        model.claims.add("w0")


@dataclass(frozen=True, kw_only=True)
class MoveClaims(Plain):
    """Renames the weights and moves their records along; `more` is recorded as well."""

    name: ClassVar = "move-claims"
    more: Annotated[str, "a further weight to record"] = ""

    def run(self, model: Model, ctx: Context) -> None:
        graph = model.proto.graph
        for tensor, node in zip(graph.initializer, graph.node, strict=True):
            old, tensor.name = tensor.name, f"{tensor.name}_t"
            node.input[1] = tensor.name
            model.claims.move(old, tensor.name)
        model.touch(Effects.STRUCTURE)
        if self.more:
            model.claims.add(self.more)


ERRORS: dict[str, Any] = {
    "bug": lambda: ZeroDivisionError("by zero"),
    "input": lambda: InputError.of("O24-035", "no data"),
    "policy": lambda: NotMetError.of("O24-610", "dense"),
    "interrupt": KeyboardInterrupt,
    "memory": MemoryError,
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "os": lambda: OSError(errno.EACCES, "Permission denied"),
}


@dataclass(frozen=True, kw_only=True)
class Fail(Plain):
    """Changes something and then fails, after as many sites as it is told."""

    name: ClassVar = "fail"
    how: Annotated[str, "a key of ERRORS"] = "bug"
    at: Annotated[int, "the site"] = 0

    def run(self, model: Model, ctx: Context) -> None:
        for position, key in enumerate(model.weights):
            if not ctx.admit(key.name):
                return
            model.weights.replace(key, model.weights[key] * np.float32(2))
            if position == self.at:
                model.proto.graph.node[0].name = "half done"
                raise ERRORS[self.how]()
