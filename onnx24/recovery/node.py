"""What an operator's implementation is given, and the table that implementations enter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx24.recovery._torch import torch

Tensor = Any
"""A torch.Tensor; None stands for an optional input that is left out."""

TORCH_DTYPES: dict[int, Any] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}
"""onnx.TensorProto.DataType → torch's dtype."""


class Unsupported(Exception):
    """An operator's variant that is not implemented; the text is a predicate of the node."""


@dataclass(frozen=True, eq=False)
class Node:
    """One node. `opset`: the version of its domain that the model imports. `wanted`: for each
    output, whether anything reads it. `integer_output`: the quantized values are read by something
    else than DequantizeLinear, so that they must be integers. `is_weight`: the first input is an
    initializer, or its quantized values."""

    op: str
    domain: str
    opset: int
    name: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...] = ()
    integer_output: bool = False
    is_weight: bool = False
    bodies: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


Operator = Callable[..., Any]
"""`(node, *inputs)` → a tensor, or a tuple of one a output."""

OPERATORS: dict[tuple[str, str], Operator] = {}
"""(domain, operator) → implementation; ai.onnx is ""."""
CHECKS: dict[str, Callable[[Node], str]] = {}
"""Operator → why this node of it is not implemented, "" where it is; asked before anything runs."""


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Enter an implementation under its operators' names."""

    def enter(implementation: Operator) -> Operator:
        for name in names:
            OPERATORS[domain, name] = implementation
        return implementation

    return enter


def check(*names: str) -> Callable[[Callable[[Node], str]], Callable[[Node], str]]:
    def enter(question: Callable[[Node], str]) -> Callable[[Node], str]:
        for name in names:
            CHECKS[name] = question
        return question

    return enter


def integers(value: Tensor | Sequence[int]) -> list[int]:
    """A shape, axes, or other integers that an operator takes, as Python's."""
    if isinstance(value, torch.Tensor):
        return [int(v) for v in value.detach().reshape(-1).tolist()]
    return [int(v) for v in value]


def input_or_attribute(node: Node, given: Tensor, name: str) -> list[int] | None:
    """Integers that older opsets hold in an attribute and newer ones in an input."""
    if given is not None:
        return integers(given)
    value = node.get(name)
    return None if value is None else integers(value)
