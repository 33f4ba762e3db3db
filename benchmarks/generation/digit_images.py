"""MNIST's test images at 16 x 16, split for the generation study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from digits32 import mnist_test

SIZE, TRAIN_IMAGES, SPLIT_SEED = 16, 7000, 24
Images = NDArray[np.float32]


class Split(NamedTuple):
    """Images `[N, 1, 16, 16]` in [-1, 1] and labels `[N]` int64."""

    train_x: Images
    train_y: NDArray[np.int64]
    held_x: Images
    held_y: NDArray[np.int64]


def digit_images(mnist: Path) -> Split:
    """7,000 images to train on and 3,000 held out: 28 x 28 in a frame of 2, means of 2 x 2."""
    images, labels = mnist_test(mnist)
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    small = framed.reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4))[:, None] * 2 - 1
    order = np.random.RandomState(SPLIT_SEED).permutation(len(small))
    train, held = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    x = small.astype(np.float32)
    return Split(x[train], labels[train], x[held], labels[held])
