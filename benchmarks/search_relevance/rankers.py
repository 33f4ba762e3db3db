"""The study's three nets: as torch modules, and written as ONNX node by node."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1] / "accuracy"))

from _fixture_code import load
from _lm_model import Block

_fixtures = load("fixtures/models/train.py")
GraphWriter = _fixtures.GraphWriter

MASKED = -1e4
"""Added to the scores of padding; within the range of fp16."""


class Encoder(nn.Module):
    """Tokens → hidden states and where there is a token: embedding, learned positions, blocks."""

    def __init__(self, vocabulary: int, length: int, *, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: [n, length]. Returns: [n, length, width], [n, length] of 0 and 1."""
        present = (tokens != 0).float()
        mask = ((1 - present) * MASKED)[:, None, None]
        h = self.embedding(tokens) + self.position
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h), present

    def write(self, g: GraphWriter, tokens: str) -> tuple[str, str]:
        zero = g.constant("zero", 0, np.int64)
        absent = g.node("Cast", [g.node("Equal", [tokens, zero], "is_padding")], "absent",
                        to=TensorProto.FLOAT)  # fmt: skip
        present = g.node("Sub", [g.constant("one", 1.0), absent], "present")
        mask = g.node("Mul", [absent, g.constant("masked", MASKED)], "mask.flat")
        mask = g.node("Unsqueeze", [mask, g.constant("mask.axes", [1, 2], np.int64)], "mask")
        table = g.weight("embedding.weight", self.embedding.weight)
        h = g.node("Gather", [table, tokens], "embedding", axis=0)
        h = g.node("Add", [h, g.weight("position.weight", self.position)], "position")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.write(g, h, mask, f"block{i}")
        return g.layer_norm(h, self.norm, "norm"), present


def mean_of(h: Tensor, present: Tensor) -> Tensor:
    """[n, length, width] → [n, width], over the tokens that are there."""
    return (h * present[:, :, None]).sum(1) / present.sum(1, keepdim=True)


def _write_mean(g: GraphWriter, h: str, present: str, name: str) -> str:
    axis, last = (g.constant(f"{name}.{a}", [i], np.int64) for a, i in (("axis", 1), ("last", 2)))
    weighed = g.node("Mul", [h, g.node("Unsqueeze", [present, last], f"{name}.weight")],
                     f"{name}.weighed")  # fmt: skip
    total = g.node("ReduceSum", [weighed, axis], f"{name}.sum", keepdims=0)
    count = g.node("ReduceSum", [present, axis], f"{name}.count", keepdims=1)
    return g.node("Div", [total, count], f"{name}.mean")


class BiEncoder(nn.Module):
    """Query → vector of length 1; relevance is the cosine of two vectors."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.position.shape[1]
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.project(mean_of(*self.encoder(tokens))), dim=-1)

    def to_onnx(self) -> onnx.ModelProto:
        """`tokens [batch, length]` int64 → `vector [batch, width]`."""
        g = GraphWriter()
        length, width = self.encoder.position.shape
        pooled = _write_mean(g, *self.encoder.write(g, "tokens"), "pool")
        h = g.dense(pooled, self.project, "project")
        norm = g.node("ReduceL2", [h], "norm.l2", axes=[1], keepdims=1)
        g.node("Div", [h, norm], "vector")
        return _model(g, "bi-encoder", ("tokens", TensorProto.INT64, length), ("vector", width))


class CrossEncoder(nn.Module):
    """Query and candidate read together → one logit of relevance. The first half of the tokens is
    the query, the second the candidate; attention goes through both, and a small net compares the
    halves' means u and v by (u, v, |u − v|, u·v)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.position.shape[1]
        self.compare = nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h, present = self.encoder(tokens)
        half = tokens.shape[1] // 2
        u = mean_of(h[:, :half], present[:, :half])
        v = mean_of(h[:, half:], present[:, half:])
        seen = torch.cat([u, v, (u - v).abs(), u * v], 1)
        return self.head(functional.relu(self.compare(seen)))

    def to_onnx(self) -> onnx.ModelProto:
        """`tokens [batch, length]` int64 → `relevance [batch, 1]`, a logit."""
        g = GraphWriter()
        length = len(self.encoder.position)
        h, present = self.encoder.write(g, "tokens")
        axis = g.constant("half.axis", [1], np.int64)
        starts = [g.constant(f"half.{i}", [i * length // 2], np.int64) for i in range(3)]
        means = []
        for i, name in enumerate(("query", "candidate")):
            bounds = [starts[i], starts[i + 1], axis]
            part = g.node("Slice", [h, *bounds], f"{name}.hidden")
            there = g.node("Slice", [present, *bounds], f"{name}.present")
            means.append(_write_mean(g, part, there, name))
        u, v = means
        apart = g.node("Abs", [g.node("Sub", [u, v], "difference")], "distance")
        product = g.node("Mul", [u, v], "product")
        seen = g.node("Concat", [u, v, apart, product], "seen", axis=1)
        h = g.node("Relu", [g.dense(seen, self.compare, "compare")], "compare.relu")
        inputs = [h, g.weight("head.weight", self.head.weight)]
        g.node("Gemm", [*inputs, g.weight("head.bias", self.head.bias)], "relevance", transB=1)
        return _model(g, "cross-encoder", ("tokens", TensorProto.INT64, length), ("relevance", 1))


class RankNet(nn.Module):
    """Features of a query and a document → score. Features are normalized in the graph."""

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(1 / deviation))
        sizes = (len(mean), *hidden)
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.head = nn.Linear(hidden[-1], 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        h = (features - self.mean) * self.scale
        for layer in self.layers:
            h = self.dropout(functional.relu(layer(h)))
        return self.head(h)

    def to_onnx(self) -> onnx.ModelProto:
        """`features [batch, F]` float → `relevance [batch, 1]`."""
        g = GraphWriter()
        h = g.node("Sub", ["features", g.weight("mean", self.mean)], "centred")
        h = g.node("Mul", [h, g.weight("scale", self.scale)], "normalized")
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            h = g.node("Relu", [g.dense(h, layer, f"layer{i}")], f"layer{i}.relu")
        inputs = [h, g.weight("head.weight", self.head.weight)]
        g.node("Gemm", [*inputs, g.weight("head.bias", self.head.bias)], "relevance", transB=1)
        wide = ("features", TensorProto.FLOAT, len(self.mean))
        return _model(g, "learning-to-rank", wide, ("relevance", 1))


def _model(
    g: GraphWriter, name: str, given: tuple[str, int, int], result: tuple[str, int]
) -> onnx.ModelProto:
    return g.document(
        name,
        [helper.make_tensor_value_info(given[0], given[1], ["batch", given[2]])],
        [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, ["batch", result[1]])],
    )
