"""A CIFAR-size data set made from MNIST's test images: 32 x 32 colour digits on textures.

CIFAR-10 can't be fetched where this project is built, so the study of a CIFAR-size CNN runs on
this substitute: each of the 10,000 MNIST test images is scaled, turned and shifted, and its
strokes replace a seeded procedural colour texture by another one, under noise. 7,000 digit images
are for training (several renderings of each), 3,000 for the test; no digit is in both. It is not
CIFAR, and says nothing about natural images. A folder of the real CIFAR-10 is used where given.
"""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE, TRAIN_DIGITS, RENDERINGS = 32, 7000, 4
CONTRAST = (0.12, 0.45)
"""By how much the strokes' colour differs in each channel; the low end makes some digits hard."""
NOISE = 0.12
"""Standard deviation of the pixels' noise, at most."""
Images = NDArray[np.float32]


class Labelled(NamedTuple):
    """Images `[N, 3, 32, 32]` float32, about zero mean and unit variance; labels `[N]` int64."""

    train_x: Images
    train_y: NDArray[np.int64]
    test_x: Images
    test_y: NDArray[np.int64]


def mnist_test(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`[10000, 28, 28]` in [0, 1] and labels, from the IDX files in `folder`."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return images.astype(np.float32) / 255, labels


def digits32(mnist: Path, cache: Path, seed: int = 24) -> Labelled:
    """The substitute, rendered once and kept in `cache`."""
    path = cache / f"digits32-{seed}.npz"
    if not path.exists():
        images, labels = mnist_test(mnist)
        order = np.random.RandomState(seed).permutation(len(images))
        train, test = order[:TRAIN_DIGITS], order[TRAIN_DIGITS:]
        parts = [_render(images[train], seed + 1 + i) for i in range(RENDERINGS)]
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            train_x=np.concatenate(parts),
            train_y=np.tile(labels[train], RENDERINGS),
            test_x=_render(images[test], seed),
            test_y=labels[test],
        )
    with np.load(path) as found:
        return Labelled(
            _normalized(found["train_x"]),
            found["train_y"],
            _normalized(found["test_x"]),
            found["test_y"],
        )


def cifar10(folder: Path) -> Labelled:
    """The real CIFAR-10 from its python batches. *Source:* cs.toronto.edu/~kriz/cifar.html."""

    def read(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        with open(folder / name, "rb") as file:
            batch = pickle.load(file, encoding="bytes")
        return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[b"labels"], np.int64)

    parts = [read(f"data_batch_{i}") for i in range(1, 6)]
    test_x, test_y = read("test_batch")
    train_x = np.concatenate([x for x, _ in parts])
    train_y = np.concatenate([y for _, y in parts])
    return Labelled(_normalized(train_x), train_y, _normalized(test_x), test_y)


def _normalized(images: NDArray[np.uint8]) -> Images:
    return (images.astype(np.float32) - 128) / 64


def _render(digits: NDArray[np.float32], seed: int) -> NDArray[np.uint8]:
    """`[N, 28, 28]` → `[N, 3, 32, 32]`, image by image from one stream of random numbers."""
    rng = np.random.RandomState(seed)
    out = np.empty((len(digits), 3, SIZE, SIZE), np.uint8)
    for row, digit in enumerate(digits):
        stroke = _placed(digit, rng)
        ground = rng.uniform(0.1, 0.9, 3)
        contrast = rng.uniform(*CONTRAST) * rng.uniform(0.7, 1.3, 3)
        ink = ground + np.where(ground < 0.5, 1, -1) * contrast
        image = _texture(rng, ground) * (1 - stroke) + _texture(rng, ink) * stroke
        image += rng.standard_normal(image.shape) * NOISE * rng.uniform(0.3, 1.0)
        out[row] = np.clip(image * 255, 0, 255).round()
    return out


def _placed(digit: NDArray[np.float32], rng: np.random.RandomState) -> NDArray[np.float64]:
    """The digit on 32 x 32, scaled by 0.75 to 1.15, turned by up to 20°, moved by up to 4 px."""
    from scipy.ndimage import affine_transform

    angle, zoom = np.deg2rad(rng.uniform(-20, 20)), rng.uniform(0.75, 1.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    centre = np.full(2, (SIZE - 1) / 2) + rng.uniform(-4, 4, 2)
    offset = np.full(2, 13.5) - turn @ centre
    return affine_transform(digit.astype(np.float64), turn, offset, (SIZE, SIZE), order=1)


def _texture(rng: np.random.RandomState, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[3, 32, 32]` in about [0, 1]: a colour, two waves and two octaves of smooth noise."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    image = np.broadcast_to(colour[:, None, None], (3, SIZE, SIZE)).copy()
    for _ in range(2):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(1, 8)
        along = x * np.cos(angle) + y * np.sin(angle)
        wave = np.sin(2 * np.pi * (frequency * along + rng.uniform()))
        image += rng.normal(0, 0.08, 3)[:, None, None] * wave
    for cells in (4, 8):
        coarse = rng.standard_normal((3, cells, cells))
        image += 0.06 * _enlarged(coarse, SIZE // cells)
    return image


def _enlarged(coarse: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Linear interpolation between the cells' centres, along both axes."""
    size = coarse.shape[1] * factor
    at = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, coarse.shape[1] - 1)
    low = np.minimum(at.astype(int), coarse.shape[1] - 2)
    part = at - low
    rows = coarse[:, low] * (1 - part)[:, None] + coarse[:, low + 1] * part[:, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
