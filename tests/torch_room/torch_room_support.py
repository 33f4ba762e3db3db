"""Small real networks for the digits, and a training loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn


class ConvNet(nn.Module):
    """8 x 8 images → 10 logits. The first convolution has one channel, which 2:4 can't halve."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 32, 3, padding=1)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.max_pool2d(torch.relu(self.body(x)), 2)
        return self.head(torch.relu(self.depth(x)).mean((2, 3)))


class Transformer(nn.Module):
    """Rows of the image as 8 tokens, one block of attention and feed-forward."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.zeros(8, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image.flatten(1, 2)) + self.place
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {"conv": ConvNet, "transformer": Transformer}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]()


_TRAINED: dict[str, dict[str, torch.Tensor]] = {}


def dense(name: str, digits) -> nn.Module:
    """A net that was trained for a second; once a process."""
    model = made(name)
    if name not in _TRAINED:
        loop(model, torch.optim.Adam(model.parameters(), 3e-3), digits, 150)
        _TRAINED[name] = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(_TRAINED[name])
    return model.train()


def loop(model: nn.Module, optimizer, digits, steps: int, seed: int = 0) -> None:
    """The user's: knows nothing of masks."""
    model.train()
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(digits.train_x), 64)
        x, y = torch.from_numpy(digits.train_x[rows]), torch.from_numpy(digits.train_y[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def accuracy(model: nn.Module, digits) -> float:
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(digits.test_x))
    return float((logits.argmax(1).numpy() == digits.test_y).mean())
