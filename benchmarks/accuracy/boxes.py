"""Decoding, suppression and comparison of detectors' boxes `[x0, y0, x1, y1]`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


class Found(NamedTuple):
    """Boxes `[N, 4]`, scores `[N]`, classes `[N]`, best score first."""

    boxes: Boxes
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """`[len(a), len(b)]`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    area_a, area_b = (np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=-1) for x in (a, b))
    return common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-9)


def suppressed(
    boxes: Boxes,
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    threshold: float,
    overlap: float,
) -> Found:
    """Boxes above the score threshold, without those that overlap a better one of their class."""
    chosen = np.flatnonzero(scores > threshold)
    order = chosen[np.argsort(-scores[chosen], kind="stable")]
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    same = (iou(boxes, boxes) > overlap) & (classes[:, None] == classes[None])
    keep = np.ones(len(order), bool)
    for i in range(len(order)):
        if keep[i]:
            keep[i + 1 :] &= ~same[i, i + 1 :]
    return Found(boxes[keep], scores[keep], classes[keep])


def matches(a: Found, b: Found, least: float = 0.5) -> int:
    """How many boxes of `a`, best first, each find a box of `b`: same class, IoU of `least` up."""
    if not len(a.boxes) or not len(b.boxes):
        return 0
    overlaps = iou(a.boxes, b.boxes) * (a.classes[:, None] == b.classes[None])
    count = 0
    for row in overlaps:
        best = int(row.argmax())
        if row[best] >= least:
            overlaps[:, best] = 0
            count += 1
    return count


def agreement(reference: list[Found], found: list[Found]) -> float:
    """F1 over all images: 2 · matches / (boxes of one + boxes of the other), in [0, 1]."""
    total = sum(len(a.boxes) + len(b.boxes) for a, b in zip(reference, found, strict=True))
    both = sum(matches(a, b) for a, b in zip(reference, found, strict=True))
    return 2 * both / total if total else 1.0


# --- decoding -------------------------------------------------------------------------------


def ultraface(outputs: list[NDArray[np.float32]], threshold: float = 0.7) -> Found:
    """scores `[1, 4420, 2]` (background, face), boxes `[1, 4420, 4]` as shares of the image.

    *Source:* the model's own demo: probability 0.7, IoU 0.5.
    """
    scores, boxes = outputs
    classes = np.zeros(boxes.shape[1], np.int64)
    return suppressed(boxes[0], scores[0, :, 1], classes, threshold=threshold, overlap=0.5)


def yolox(outputs: list[NDArray[np.float32]], size: int = 416, threshold: float = 0.3) -> Found:
    """output `[1, 3549, 85]`: centre and log size in cells of strides 8, 16, 32; objectness; 80
    classes. *Source:* the model's demo: score 0.3, IoU 0.45.
    """
    rows = outputs[0][0]
    grids, strides = [], []
    for stride in (8, 16, 32):
        y, x = np.mgrid[0 : size // stride, 0 : size // stride]
        grids.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full(x.size, stride))
    stride = np.concatenate(strides)[:, None]
    centre = (rows[:, :2] + np.concatenate(grids)) * stride
    half = np.exp(np.minimum(rows[:, 2:4], 20)) * stride / 2
    classes = rows[:, 5:].argmax(axis=1)
    scores = rows[:, 4] * rows[:, 5:].max(axis=1)
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    return suppressed(boxes, scores, classes, threshold=threshold, overlap=0.45)
