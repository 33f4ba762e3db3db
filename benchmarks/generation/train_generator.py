"""Train a small label-conditioned diffusion transformer on digits, and the net that judges it.

    python benchmarks/generation/train_generator.py --mnist DIR [--out out/bench]

digit_generator.onnx: a denoiser of 16 x 16 images, (image, time, label) → velocity, 4 blocks of
width 128 with adaptive normalization. digit_features.onnx: a classifier whose 64 features the
Fréchet distance is taken on. Needs torch (extra `bench`) here only. One thread, fixed seeds and
steps: 2 to 3 minutes of one core.

*Source:* diffusion transformers, arXiv 2212.09748; the velocity as what is predicted, 2202.00512.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from _fixture_code import load
from digit_images import SIZE, Split, digit_images

_fixtures = load("fixtures/models/train.py")
GENERATOR, FEATURES = "digit_generator", "digit_features"
PATCH, WAVES, MAX_WAVE = 4, 32, 100.0
TOKENS = (SIZE // PATCH) ** 2
EMA = 0.998


class Block(nn.Module):
    """Attention and feed-forward; shift, scale and gate of both come from the condition."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        n, tokens, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(
            6, dim=-1
        )
        h = functional.layer_norm(x, (width,)) * (1 + scale1) + shift1
        q, k, v = (
            layer(h).reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        shares = ((q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5).softmax(-1)
        mixed = (shares @ v).transpose(1, 2).reshape(n, tokens, width)
        x = x + gate1 * self.project(mixed)
        h = functional.layer_norm(x, (width,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(functional.silu(self.up(h)))

    def write(self, g, x: str, condition: str, name: str) -> str:
        width = self.project.in_features
        constants = g.attention_constants(width, self.heads, name)
        parts = modulation(g, self.modulate, condition, f"{name}.modulate", 6)
        h = normalized(g, x, parts[0], parts[1], width, f"{name}.norm1")
        mixed = g.attention(h, self, constants, name)
        mixed = g.dense(mixed, self.project, f"{name}.project")
        x = g.node("Add", [x, g.node("Mul", [mixed, parts[2]], f"{name}.gate1")], f"{name}.sum1")
        h = normalized(g, x, parts[3], parts[4], width, f"{name}.norm2")
        h = silu(g, g.dense(h, self.up, f"{name}.up"), f"{name}.silu")
        h = g.dense(h, self.down, f"{name}.down")
        return g.node("Add", [x, g.node("Mul", [h, parts[5]], f"{name}.gate2")], f"{name}.sum2")


def silu(g, x: str, name: str) -> str:
    return g.node("Mul", [x, g.node("Sigmoid", [x], f"{name}.sigmoid")], name)


def modulation(g, layer: nn.Linear, condition: str, name: str, count: int) -> list[str]:
    """`[N, 1, width]` each."""
    flat = g.dense(condition, layer, name)
    axis = g.constant(f"{name}.axis", [1], np.int64)
    row = g.node("Unsqueeze", [flat, axis], f"{name}.row")
    names = [f"{name}.part{i}" for i in range(count)]
    sizes = g.constant(f"{name}.sizes", [layer.out_features // count] * count, np.int64)
    g.nodes.append(helper.make_node("Split", [row, sizes], names, f"{name}.split", axis=2))
    return names


def normalized(g, x: str, shift: str, scale: str, width: int, name: str) -> str:
    one = g.constant(f"{name}.ones", np.ones(width))
    zero = g.constant(f"{name}.zeros", np.zeros(width))
    h = g.node("LayerNormalization", [x, one, zero], name, axis=-1, epsilon=1e-5)
    factor = g.node("Add", [scale, g.constant(f"{name}.one", 1.0)], f"{name}.factor")
    return g.node("Add", [g.node("Mul", [h, factor], f"{name}.scaled"), shift], f"{name}.shifted")


class Denoiser(nn.Module):
    """(image [N, 1, 16, 16], time [N] in 0 to 1, label [N]) → velocity, shaped as the image."""

    def __init__(self, width: int = 128, heads: int = 4, hidden: int = 384, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.position = nn.Parameter(torch.randn(1, TOKENS, width) * 0.02)
        self.register_buffer("waves", torch.logspace(0, np.log10(MAX_WAVE), WAVES)[None])
        self.time1, self.time2 = nn.Linear(2 * WAVES, width), nn.Linear(width, width)
        self.labels = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, PATCH * PATCH)
        nn.init.zeros_(self.out.weight)

    def forward(self, image: Tensor, time: Tensor, label: Tensor) -> Tensor:
        n, side = len(image), SIZE // PATCH
        angles = time[:, None] * self.waves
        embedded = torch.cat([angles.sin(), angles.cos()], 1)
        embedded = self.time2(functional.silu(self.time1(embedded)))
        condition = functional.silu(embedded + self.labels(label))
        h = self.patches(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulate(condition)[:, None].chunk(2, dim=-1)
        h = self.out(functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        tiles = h.reshape(n, side, side, PATCH, PATCH).permute(0, 1, 3, 2, 4)
        return tiles.reshape(n, 1, SIZE, SIZE)

    def to_onnx(self) -> onnx.ModelProto:
        g = _fixtures.GraphWriter()
        width, side = self.out.in_features, SIZE // PATCH
        axis = g.constant("time.axis", [1], np.int64)
        column = g.node("Unsqueeze", ["time", axis], "time.column")
        angles = g.node("Mul", [column, g.weight("time.waves", self.waves)], "time.angles")
        both = [g.node(op, [angles], f"time.{op.lower()}") for op in ("Sin", "Cos")]
        h = g.node("Concat", both, "time.embedding", axis=1)
        h = g.dense(silu(g, g.dense(h, self.time1, "time1"), "time.silu"), self.time2, "time2")
        table = g.weight("labels.weight", self.labels.weight)
        h = g.node("Add", [h, g.node("Gather", [table, "label"], "labels")], "condition.sum")
        condition = silu(g, h, "condition")

        h = g.conv("image", self.patches, "patches")
        shape = g.constant("tokens.shape", [0, width, TOKENS], np.int64)
        h = g.node("Transpose", [g.node("Reshape", [h, shape], "tokens")], "rows", perm=[0, 2, 1])
        h = g.node("Add", [h, g.weight("position.weight", self.position)], "position")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.write(g, h, condition, f"block{i}")
        shift, scale = modulation(g, self.modulate, condition, "modulate", 2)
        h = g.dense(normalized(g, h, shift, scale, width, "norm"), self.out, "out")
        tiles = g.constant("tiles.shape", [0, side, side, PATCH, PATCH], np.int64)
        h = g.node("Reshape", [h, tiles], "tiles")
        h = g.node("Transpose", [h], "tiles.transpose", perm=[0, 1, 3, 2, 4])
        whole = g.constant("image.shape", [0, 1, SIZE, SIZE], np.int64)
        g.node("Reshape", [h, whole], "velocity")
        pixels = ["batch", 1, SIZE, SIZE]
        return g.document(
            "digit-generator",
            [
                helper.make_tensor_value_info("image", TensorProto.FLOAT, pixels),
                helper.make_tensor_value_info("time", TensorProto.FLOAT, ["batch"]),
                helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            ],
            [helper.make_tensor_value_info("velocity", TensorProto.FLOAT, pixels)],
            opset=18,
        )


class Features(nn.Module):
    """A classifier; its 64 features are what the Fréchet distance is taken on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(32 * 16, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        features = self.hidden(h).relu()
        return features, self.head(features)

    def to_onnx(self) -> onnx.ModelProto:
        g = _fixtures.GraphWriter()
        h = g.node("Relu", [g.conv("image", self.conv1, "conv1")], "relu1")
        h = g.node("Relu", [g.conv(h, self.conv2, "conv2")], "relu2")
        h = g.node("Flatten", [h], "flatten", axis=1)
        h = g.node("Relu", [g.dense(h, self.hidden, "hidden")], "features")
        g.head(h, self.head)
        return g.document(
            "digit-features",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
            [
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 64]),
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
            ],
            opset=18,
        )


def train_generator(data: Split, steps: int, batch: int, rate: float, seed: int) -> Denoiser:
    """The mean over the last steps' weights (EMA)."""
    torch.manual_seed(seed)
    net = Denoiser()
    mean = Denoiser()
    mean.load_state_dict(net.state_dict())
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    started, total = time.perf_counter(), 0.0
    for step in range(steps):
        rows = torch.randint(0, len(x), (batch,))
        times = (torch.rand(1) + torch.arange(batch) / batch) % 1
        alpha, sigma = (
            f(times * torch.pi / 2)[:, None, None, None] for f in (torch.cos, torch.sin)
        )
        noise = torch.randn(batch, 1, SIZE, SIZE)
        velocity = net(alpha * x[rows] + sigma * noise, times, y[rows])
        loss = (velocity - (alpha * noise - sigma * x[rows])).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        keep = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        if (step + 1) % 250 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{steps}: loss {total / 250:.4f}, {seconds:.0f} s", flush=True)
            total = 0.0
    return mean.eval()


def train_features(data: Split, epochs: int, seed: int) -> Features:
    torch.manual_seed(seed)
    net = Features()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    steps = -(-len(x) // 64) * epochs
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(net(x[rows])[1], y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def _same(path: Path, feeds: dict[str, np.ndarray], expected: Tensor, output: str) -> None:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = float(np.abs(session.run([output], feeds)[0] - expected.numpy()).max())
    if difference > 1e-3:
        raise SystemExit(f"{path.name}: ONNX and torch differ by {difference:.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--mnist", type=Path, help="folder with t10k-images-idx3-ubyte.gz")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=24)
    args = parser.parse_args()
    shared = os.environ.get("ONNX24_SHARED", "../shared")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = digit_images(args.mnist or Path(shared, "data/eval/mnist"))
    args.out.mkdir(parents=True, exist_ok=True)

    judge = train_features(data, 8, args.seed)
    path = args.out / f"{FEATURES}.onnx"
    onnx.save(judge.to_onnx(), path)
    with torch.no_grad():
        logits = judge(torch.from_numpy(data.held_x))[1]
    _same(path, {"image": data.held_x}, logits, "logits")
    accuracy = float((logits.argmax(1).numpy() == data.held_y).mean())
    print(f"features: held-out accuracy {accuracy:.4f}", flush=True)

    started = time.perf_counter()
    net = train_generator(data, args.steps, args.batch, args.rate, args.seed)
    path = args.out / f"{GENERATOR}.onnx"
    onnx.save(net.to_onnx(), path)
    feeds = {
        "image": data.held_x[:64],
        "time": np.linspace(0, 1, 64, dtype=np.float32),
        "label": data.held_y[:64],
    }
    with torch.no_grad():
        velocity = net(*map(torch.from_numpy, feeds.values()))
    _same(path, feeds, velocity, "velocity")
    entry = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": args.steps,
        "batch": args.batch,
        "rate": args.rate,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started),
        "features_accuracy": round(accuracy, 4),
        "torch": torch.__version__,
    }
    path.with_suffix(".json").write_text(json.dumps(entry, indent=2) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
