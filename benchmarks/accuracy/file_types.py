"""Inputs of magika v3.3: its golden cases, and other files of many types for calibration."""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sources import Sources

BLOCK, SIDE, PADDING, LEAST = 4096, 1024, 256, 8
_REPO = "google/magika"


def features(content: bytes) -> NDArray[np.int32] | None:
    """`[2048]`: the first 1,024 bytes of the stripped first block, then the last 1,024 of the
    stripped last one, 256 where there are none; None where the model is not asked (fewer than 8
    bytes). *Source:* magika's `_extract_features_from_seekable`, `standard_v3_3.config.min.json`.
    """
    first, last = content[:BLOCK].lstrip(), content[-BLOCK:].rstrip()
    if len(content) < LEAST or len(first) < LEAST:
        return None
    tokens = np.full(2 * SIDE, PADDING, np.int32)
    head, tail = first[:SIDE], last[-SIDE:]
    tokens[: len(head)] = np.frombuffer(head, np.uint8)
    if tail:
        tokens[-len(tail) :] = np.frombuffer(tail, np.uint8)
    return tokens


def golden(data: Path, sources: Sources) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Inputs `[N, 2048]` and labels `[N]` of the golden cases for which the model is asked.

    data: the folder with the config and the cases by content; the cases by path, and the files
    that they name, come from the model's repository.
    """
    config = json.loads((data / "standard_v3_3.config.min.json").read_text(encoding="utf-8"))
    numbers = {label: i for i, label in enumerate(config["target_labels_space"])}
    name = "standard_v3_3-inference_examples_by_{}.json.gz"
    by_content = json.loads(gzip.decompress((data / name.format("content")).read_bytes()))
    reference = sources.read(_REPO, "tests_data/reference/" + name.format("path"))
    by_path = json.loads(gzip.decompress(reference))
    contents = [base64.b64decode(case["content_base64"]) for case in by_content]
    contents += [sources.read(_REPO, case["path"]) for case in by_path]
    rows, labels = [], []
    for content, case in zip(contents, by_content + by_path, strict=True):
        row = features(content)
        label = numbers.get(case["prediction"]["dl"])
        if row is not None and label is not None:
            rows.append(row)
            labels.append(label)
    return np.stack(rows), np.array(labels)


def calibration(sources: Sources, count: int, seed: int) -> NDArray[np.int32]:
    """`[count, 2048]` of files that are not golden cases: linguist's samples of programming
    languages and file-type's fixtures of binary formats, one of each language and format in
    random order, then a second of each, and so on."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sources.files("github-linguist/linguist", "samples"):
        groups[path.split("/")[1]].append(("github-linguist/linguist", path))
    for path in sources.files("sindresorhus/file-type", "fixture"):
        groups["." + path.rsplit(".", 1)[-1]].append(("sindresorhus/file-type", path))
    rng = np.random.RandomState(seed)
    for name in sorted(groups):
        rng.shuffle(groups[name])
    names = sorted(groups)
    rows: list[NDArray[np.int32]] = []
    turn = 0
    while len(rows) < count:
        left = [name for name in names if len(groups[name]) > turn]
        if not left:
            raise SystemExit(f"{count} files asked for; there are {len(rows)}")
        for i in rng.permutation(len(left)):
            row = features(sources.read(*groups[left[i]][turn]))
            if row is not None:
                rows.append(row)
        turn += 1
    return np.stack(rows[:count])
