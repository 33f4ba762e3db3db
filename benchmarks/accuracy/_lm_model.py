"""The byte LM: as a torch module, and written as ONNX node by node."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from _fixture_code import load
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

_fixtures = load("fixtures/models/train.py")
GraphWriter = _fixtures.GraphWriter

MASKED = -1e9


class Block(nn.Module):
    """Pre-norm block, query, key and value apart; causal attention unless it is given a mask."""

    def __init__(self, d_model: int, heads: int, d_ff: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.query, self.key, self.value = (nn.Linear(d_model, d_model) for _ in range(3))
        self.project = nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: what is added to the scores, [n or 1, 1, tokens or 1, tokens]."""
        n, tokens, d = x.shape
        h = self.norm1(x)
        q, k, v = (
            layer(h).reshape(n, tokens, self.heads, d // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None
        )
        x = x + self.project(mixed.transpose(1, 2).reshape(n, tokens, d))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def write(self, g, x: str, mask: str, name: str) -> str:
        constants = g.attention_constants(self.project.in_features, self.heads, name)
        h = g.layer_norm(x, self.norm1, f"{name}.norm1")
        mixed = g.attention(h, self, constants, name, mask)
        x = g.node("Add", [x, g.dense(mixed, self.project, f"{name}.project")], f"{name}.residual1")
        h = g.layer_norm(x, self.norm2, f"{name}.norm2")
        h = _fixtures.Block._gelu(g, g.dense(h, self.up, f"{name}.up"), f"{name}.gelu")
        return g.node("Add", [x, g.dense(h, self.down, f"{name}.down")], f"{name}.residual2")


class ByteLm(nn.Module):
    """Embedding plus learned positions, blocks, LayerNorm, untied head."""

    def __init__(
        self, vocabulary: int, context: int, *, d_model: int, heads: int, d_ff: int, depth: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.position = nn.Parameter(torch.randn(context, d_model) * 0.02)
        self.blocks = nn.ModuleList(Block(d_model, heads, d_ff) for _ in range(depth))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocabulary)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name == "position":
                continue
            last = name.endswith(("project.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if last else 0.04)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def to_onnx(self, input_name: str, output_name: str) -> onnx.ModelProto:
        """`input_name [batch, context]` int64 → `output_name [batch, context, vocabulary]`."""
        g = GraphWriter()
        context, vocabulary = len(self.position), self.head.out_features
        above = np.triu(np.ones((context, context), bool), 1)
        mask = g.constant("mask", np.where(above, MASKED, 0.0)[None, None])
        table = g.weight("embedding.weight", self.embedding.weight)
        h = g.node("Gather", [table, input_name], "embedding", axis=0)
        h = g.node("Add", [h, g.weight("position.weight", self.position)], "position")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.write(g, h, mask, f"block{i}")
        h = g.layer_norm(h, self.norm, "norm")
        product = g.node("MatMul", [h, g.weight("head.weight", self.head.weight.T)], "head.matmul")
        g.node("Add", [product, g.weight("head.bias", self.head.bias)], output_name)
        logits = ["batch", context, vocabulary]
        return g.document(
            "byte-lm",
            [helper.make_tensor_value_info(input_name, TensorProto.INT64, ["batch", context])],
            [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, logits)],
        )
