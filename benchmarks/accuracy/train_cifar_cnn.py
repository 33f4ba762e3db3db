"""Train a CIFAR-size ResNet-20 and write it as ONNX, with BatchNormalization nodes.

    python benchmarks/accuracy/train_cifar_cnn.py --mnist DIR [--cifar DIR] [--out out/bench]

0.27 M parameters: 3 x 3 convolutions of 16, 32 and 64 channels, three residual blocks a stage.
Without --cifar the data are digits32.py's, which are not CIFAR. Needs torch (extra `bench`) here
only. One thread, fixed seed and epochs: about 8 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from _fixture_code import load
from digits32 import Labelled, cifar10, digits32
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

_fixtures = load("fixtures/models/train.py")
NAME, INPUT, OUTPUT = "cifar_cnn", "image", "logits"


class ConvBn(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def write(self, g, x: str, name: str) -> str:
        return g.batch_norm(g.conv(x, self.conv, f"{name}.conv"), self.bn, f"{name}.bn")


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = ConvBn(c_in, c_out, stride=stride), ConvBn(c_out, c_out)
        self.skip = ConvBn(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x).relu())
        return (h + (x if self.skip is None else self.skip(x))).relu()

    def write(self, g, x: str, name: str) -> str:
        h = g.node("Relu", [self.first.write(g, x, f"{name}.first")], f"{name}.first.relu")
        h = self.second.write(g, h, f"{name}.second")
        skip = x if self.skip is None else self.skip.write(g, x, f"{name}.skip")
        return g.node("Relu", [g.node("Add", [h, skip], f"{name}.add")], f"{name}.relu")


class ResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3) -> None:
        super().__init__()
        self.stem = ConvBn(3, widths[0])
        layers, c_in = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Residual(c_in, width, 2 if stage and not block else 1))
                c_in = width
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(c_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean((2, 3)))

    def to_onnx(self) -> onnx.ModelProto:
        """`image [batch, 3, 32, 32]` float → `logits [batch, 10]`."""
        g = _fixtures.GraphWriter()
        h = g.node("Relu", [self.stem.write(g, INPUT, "stem")], "stem.relu")
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Residual)
            h = layer.write(g, h, f"block{i}")
        h = g.node("Flatten", [g.node("GlobalAveragePool", [h], "pool")], "flatten", axis=1)
        g.head(h, self.head)
        return g.document(
            "cifar-size-resnet20",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 10])],
        )


def shifted(x: Tensor, generator: torch.Generator, by: int) -> Tensor:
    """Each image moved by up to `by` pixels in both directions, edge pixels repeated."""
    n, size = len(x), x.shape[-1]
    padded = functional.pad(x, (by, by, by, by), mode="replicate")
    dy, dx = torch.randint(0, 2 * by + 1, (2, n, 1, 1, 1), generator=generator)
    rows = torch.arange(size)[None, None, :, None] + dy
    columns = torch.arange(size)[None, None, None, :] + dx
    channels = torch.arange(x.shape[1])[None, :, None, None]
    return padded[torch.arange(n)[:, None, None, None], channels, rows, columns]


def train(data: Labelled, epochs: int, rate: float, seed: int, flip: bool) -> ResNet:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = ResNet().to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    batch = 128
    optimizer = torch.optim.SGD(
        net.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = -(-len(x) // batch) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    started = time.perf_counter()
    for epoch in range(epochs):
        right, total = 0, 0.0
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            images = shifted(x[rows], generator, 2).contiguous(memory_format=torch.channels_last)
            if flip:
                flipped = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
                images = torch.where(flipped, images.flip(3), images)
            optimizer.zero_grad(set_to_none=True)
            logits = net(images)
            loss = functional.cross_entropy(logits, y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == y[rows]).sum())
            total += float(loss.detach()) * len(rows)
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total / len(x):.3f}, "
            f"accuracy {right / len(x):.3f}, {seconds:.0f} s",
            flush=True,
        )
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--mnist", type=Path, help="folder with t10k-images-idx3-ubyte.gz")
    parser.add_argument("--cifar", type=Path, help="folder with the python batches of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=24)
    args = parser.parse_args()
    shared = os.environ.get("ONNX24_SHARED", "../shared")
    mnist = args.mnist or Path(shared, "data/eval/mnist")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = cifar10(args.cifar) if args.cifar else digits32(mnist, args.out, 24)
    started = time.perf_counter()
    net = train(data, args.epochs, args.rate, args.seed, flip=bool(args.cifar))
    path = args.out / f"{NAME}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(net.to_onnx(), path)

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = np.array_split(data.test_x, -(-len(data.test_x) // 250))
    logits = np.concatenate([session.run([OUTPUT], {INPUT: part})[0] for part in parts])
    with torch.no_grad():
        expected = net(torch.from_numpy(data.test_x[:250])).numpy()
    difference = float(np.abs(logits[:250] - expected).max())
    if difference > 1e-3:
        raise SystemExit(f"{path.name}: ONNX and torch differ by {difference:.2e}")
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "data": "CIFAR-10" if args.cifar else "digits32 (MNIST digits on textures; not CIFAR)",
        "parameters": sum(p.numel() for p in net.parameters()),
        "epochs": args.epochs,
        "rate": args.rate,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started),
        "test_accuracy": round(float((logits.argmax(1) == data.test_y).mean()), 4),
        "torch": torch.__version__,
    }
    path.with_suffix(".json").write_text(json.dumps(entry, indent=2) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
