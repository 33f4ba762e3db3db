"""Train a byte-level transformer on the source text of Python's standard library; write ONNX.

    python benchmarks/accuracy/train_byte_lm.py [--out out/bench] [--steps N]

0.88 M parameters: d = 128, 4 pre-norm blocks of 4 heads, feed-forward 512, learned positions,
context 128, vocabulary 256, untied head. The text is the interpreter's own `*.py` files in
sorted order without its tests; every twentieth file is held out. Needs torch (extra `bench`) here
only. One thread, fixed seed, a fixed number of steps: about 10 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

CONTEXT, VOCABULARY = 128, 256
INPUT, OUTPUT = "tokens", "logits"
NAME = "byte_lm"
HELD_OUT = 20
"""One file of so many is kept for the test."""
_SKIPPED = {"site-packages", "test", "tests", "idle_test", "__pycache__"}


# --- text -----------------------------------------------------------------------------------


def source_text() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Training and test bytes: the standard library's files in sorted order, whole files each."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not _SKIPPED & set(path.relative_to(root).parts)
    )
    if len(files) < 100:
        raise SystemExit(f"{root}: expected the standard library's sources, found {len(files)}")
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, path in enumerate(files):
        parts[number % HELD_OUT == HELD_OUT - 1].append((root / path).read_bytes())
    train, test = (np.frombuffer(b"\n".join(part), np.uint8) for part in parts)
    return train, test


def windows(text: NDArray[np.uint8], count: int, seed: int | None = None) -> NDArray[np.int64]:
    """`[count, CONTEXT + 1]` bytes: evenly spread over the text, or at seeded random places."""
    last = len(text) - CONTEXT - 1
    if seed is None:
        starts = np.linspace(0, last, count).astype(np.int64)
    else:
        starts = np.random.RandomState(seed).randint(0, last, count)
    return text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64)


def cross_entropy(logits: NDArray[np.float32], following: NDArray[np.int64]) -> float:
    """Mean of −log p(next byte) [nats]; logits `[N, VOCABULARY]`, following `[N]`."""
    total = 0.0
    for start in range(0, len(logits), 4096):
        part = logits[start : start + 4096].astype(np.float64)
        part -= part.max(axis=-1, keepdims=True)
        picked = part[np.arange(len(part)), following[start : start + 4096]]
        total += float((np.log(np.exp(part).sum(axis=-1)) - picked).sum())
    return total / len(logits)


def nats_per_byte(session: ort.InferenceSession, rows: NDArray[np.int64]) -> float:
    """Mean cross entropy of the next byte over every position of `rows [N, CONTEXT + 1]`."""
    runs = [rows[i : i + 16, :-1] for i in range(0, len(rows), 16)]
    logits = np.concatenate([session.run([OUTPUT], {INPUT: run})[0] for run in runs])
    return cross_entropy(logits.reshape(-1, VOCABULARY), rows[:, 1:].ravel())


# --- model and training: torch from here on -------------------------------------------------


def train_and_write(path: Path, steps: int, batch: int, rate: float, seed: int) -> dict:
    import torch
    from _lm_model import ByteLm

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    text, held = source_text()
    net = ByteLm(VOCABULARY, CONTEXT, d_model=128, heads=4, d_ff=512, depth=4)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.05, cycle_momentum=False, final_div_factor=1e3
    )
    rng = np.random.RandomState(seed)
    data = torch.from_numpy(text.copy())
    offsets = torch.arange(CONTEXT + 1)
    started, mean = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        starts = torch.from_numpy(rng.randint(0, len(text) - CONTEXT - 1, batch))
        rows = data[starts[:, None] + offsets].long()
        optimizer.zero_grad(set_to_none=True)
        logits = net(rows[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += float(loss.detach())
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step}/{steps}: {mean / 100:.4f} nats, {seconds:.0f} s", flush=True)
            mean = 0.0
    net.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(net.to_onnx(INPUT, OUTPUT), path)

    rows = windows(held, 512)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = net(torch.from_numpy(rows[:16, :-1])).numpy()
    difference = float(np.abs(session.run([OUTPUT], {INPUT: rows[:16, :-1]})[0] - expected).max())
    if difference > 1e-3:
        raise SystemExit(f"{path.name}: ONNX and torch differ by {difference:.2e}")
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": steps,
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "seconds": round(time.perf_counter() - started),
        "nats_per_byte": round(nats_per_byte(session, rows), 4),
        "train_bytes": len(text),
        "train_sha256": hashlib.sha256(text.tobytes()).hexdigest(),
        "test_bytes": len(held),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=24)
    args = parser.parse_args()
    path = args.out / f"{NAME}.onnx"
    entry = train_and_write(path, args.steps, args.batch, args.rate, args.seed)
    path.with_suffix(".json").write_text(json.dumps(entry, indent=2) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
