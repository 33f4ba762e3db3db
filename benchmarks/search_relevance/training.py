"""Training the study's dense models, from scratch, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from corpora import Banking, Ranking
from rankers import BiEncoder, CrossEncoder, Encoder, RankNet
from torch import Tensor, nn
from torch.nn import functional
from wordpieces import UNKNOWN, WordPieces

TEMPERATURE = 0.07
DROPPED = 0.1
"""Share of tokens that training replaces by the unknown one."""
NEGATIVES = 3
NEAREST = 30
"""Among so many nearest training queries of other intents, hard negatives are drawn."""


@dataclass(frozen=True)
class Settings:
    """Sizes of everything. vocabulary [pieces], query_length and half_length [tokens] (of the
    bi-encoder, and of each half of the cross-encoder), *_steps: of training a dense model."""

    vocabulary: int = 2048
    width: int = 128
    heads: int = 4
    depth: int = 2
    query_length: int = 24
    half_length: int = 20
    bi_steps: int = 600
    cross_steps: int = 400
    rank_steps: int = 100
    hidden: tuple[int, int] = (256, 128)

    def quick(self) -> Settings:
        return replace(self, bi_steps=60, cross_steps=30, rank_steps=60)


def one_thread(seed: int) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def _optimized(
    net: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float, decay: float, label: str
) -> None:
    """AdamW with one cycle; `loss` draws its own batch."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.1, cycle_momentum=False
    )
    net.train()
    started, mean = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += float(value.detach())
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(
                f"{label}: step {step}/{steps}, loss {mean / 100:.4f}, {seconds:.0f} s", flush=True
            )
            mean = 0.0
    net.eval()


def _with_dropped(tokens: Tensor, generator: torch.Generator) -> Tensor:
    lost = torch.rand(tokens.shape, generator=generator) < DROPPED
    return torch.where(lost & (tokens != 0), UNKNOWN, tokens)


# --- the bi-encoder -----------------------------------------------------------------------------
def train_bi_encoder(
    banking: Banking, pieces: WordPieces, settings: Settings, seed: int
) -> BiEncoder:
    """Two losses on batches of 32 intents with 4 queries each: cross entropy with learned
    prototypes of the intents, and of each query with the others of its intent in the batch."""
    one_thread(seed)
    encoder = Encoder(
        len(pieces), settings.query_length,
        width=settings.width, heads=settings.heads, depth=settings.depth,
    )  # fmt: skip
    net = BiEncoder(encoder)
    prototypes = nn.Parameter(torch.randn(len(banking.intents), settings.width))
    both = nn.ModuleDict({"net": net})
    both.register_parameter("prototypes", prototypes)
    tokens = torch.from_numpy(pieces.ids(banking.train.texts, settings.query_length))
    generator = torch.Generator().manual_seed(seed)
    batches = _intent_batches(banking.train.intents, seed)

    def loss() -> Tensor:
        places = next(batches)
        intents = torch.from_numpy(banking.train.intents[places])
        vectors = net(_with_dropped(tokens[places], generator))
        scores = vectors @ functional.normalize(prototypes, dim=-1).T / TEMPERATURE
        known = functional.cross_entropy(scores, intents, label_smoothing=0.05)
        return known + _same_intent(vectors, intents)

    _optimized(both, loss, settings.bi_steps, 2e-3, 0.05, f"bi-encoder {seed}")
    return net


def _intent_batches(intents: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    count = intents.max() + 1
    of_intent = [np.flatnonzero(intents == i) for i in range(count)]
    while True:
        chosen = rng.choice(count, min(32, count), replace=False)
        yield np.concatenate([rng.choice(of_intent[i], 4) for i in chosen])


def _same_intent(vectors: Tensor, intents: Tensor) -> Tensor:
    """Mean −log of the share that queries of the same intent have in the softmax of cosines.

    *Source:* Khosla et al., Supervised contrastive learning (2004.11362).
    """
    itself = torch.eye(len(vectors), dtype=torch.bool)
    scores = (vectors @ vectors.T / TEMPERATURE).masked_fill(itself, -1e4)
    same = (intents[:, None] == intents[None, :]) & ~itself
    logs = functional.log_softmax(scores, -1)
    return -(torch.where(same, logs, 0).sum(1) / same.sum(1).clamp_min(1)).mean()


# --- the cross-encoder --------------------------------------------------------------------------
def train_cross_encoder(
    banking: Banking, pieces: WordPieces, settings: Settings, seed: int, bi: BiEncoder
) -> CrossEncoder:
    """Starts from the bi-encoder's encoder. Batches of 24 queries, each with one candidate of its
    intent, two near ones of other intents and a random one; cross entropy over the four, and of
    each by itself, so that 0 divides relevant from irrelevant."""
    one_thread(seed)
    half = settings.half_length
    encoder = Encoder(
        len(pieces), 2 * half, width=settings.width, heads=settings.heads, depth=settings.depth
    )
    known = bi.encoder.state_dict()
    known["position"] = torch.cat([known["position"][:half]] * 2)
    encoder.load_state_dict(known)
    net = CrossEncoder(encoder)
    tokens = torch.from_numpy(pieces.ids(banking.train.texts, half))
    vectors = _vectors(bi, pieces.ids(banking.train.texts, settings.query_length))
    intents = banking.train.intents
    wrong = _nearest_of_others(vectors, intents)
    of_intent = [np.flatnonzero(intents == i) for i in range(len(banking.intents))]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        places = rng.integers(0, len(intents), 24)
        rows = []
        for i in places:
            negative = [*rng.choice(wrong[i], NEGATIVES - 1), rng.integers(0, len(intents))]
            rows.append([rng.choice(of_intent[intents[i]]), *negative])
        shown = torch.from_numpy(np.array(rows))
        relevant = torch.from_numpy((intents[places][:, None] == intents[np.array(rows)]) * 1.0)
        queries = tokens[places][:, None].expand(-1, 1 + NEGATIVES, -1)
        pairs = torch.cat([queries, tokens[shown]], -1).reshape(-1, 2 * half)
        scores = net(_with_dropped(pairs, generator)).reshape(-1, 1 + NEGATIVES)
        alone = functional.binary_cross_entropy_with_logits(scores, relevant.float())
        return alone + functional.cross_entropy(scores, relevant.float() / relevant.sum(1, True))

    _optimized(net, loss, settings.cross_steps, 1e-3, 0.05, f"cross-encoder {seed}")
    return net


def _vectors(net: BiEncoder, tokens: np.ndarray) -> Tensor:
    with torch.no_grad():
        return torch.cat([net(torch.from_numpy(rows)) for rows in np.array_split(tokens, 32)])


def _nearest_of_others(vectors: Tensor, intents: np.ndarray) -> np.ndarray:
    """[N, NEAREST] places of the nearest queries of other intents."""
    labels = torch.from_numpy(intents)
    found = []
    for start in range(0, len(vectors), 512):
        part = slice(start, start + 512)
        scores = vectors[part] @ vectors.T
        scores[labels[part, None] == labels[None]] = -2
        found.append(scores.topk(min(NEAREST, len(vectors)), dim=1).indices.numpy())
    return np.concatenate(found)


# --- learning to rank ---------------------------------------------------------------------------
def train_rank_net(ranking: Ranking, settings: Settings, seed: int) -> RankNet:
    """ListNet's loss with gains 2^rel − 1, one query after another in batches of 16.

    *Source:* Cao et al., Learning to rank: from pairwise approach to listwise approach (ICML 2007).
    """
    one_thread(seed)
    train = ranking.train
    deviation = np.maximum(train.features.std(0), 1e-2)
    net = RankNet(train.features.mean(0), deviation, settings.hidden)
    queries = [np.flatnonzero(train.queries == q) for q in np.unique(train.queries)]
    features = torch.from_numpy(train.features)
    gains = torch.from_numpy(np.exp2(train.labels) - 1).float()
    rng = np.random.default_rng(seed)

    def loss() -> Tensor:
        chosen = rng.choice(len(queries), min(16, len(queries)), replace=False)
        values = []
        for q in chosen:
            rows = queries[q]
            scores = net(features[rows])[:, 0]
            share = gains[rows] / gains[rows].sum().clamp_min(1)
            values.append(-(share * functional.log_softmax(scores, 0)).sum())
        return torch.stack(values).mean()

    _optimized(net, loss, settings.rank_steps, 1e-3, 0.1, f"rank net {seed}")
    return net


# --- all of them --------------------------------------------------------------------------------
TASKS = ("bi-encoder", "cross-encoder", "learning-to-rank")


def train_missing(
    folder: Path, data: Path, settings: Settings, tasks: list[str], seeds: list[int]
) -> None:
    """`folder/TASK-SEED.onnx` for each task and seed, and the vocabulary. What is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    banking = Banking.read(data)
    pieces = vocabulary(folder, banking, settings)
    for seed in seeds:
        if "learning-to-rank" in tasks and not _path(folder, "learning-to-rank", seed).exists():
            net = train_rank_net(Ranking.read(data), settings, seed)
            _write(net, _path(folder, "learning-to-rank", seed))
        state = folder / f"bi-encoder-{seed}.pt"
        if {"bi-encoder", "cross-encoder"} & set(tasks) and not state.exists():
            net = train_bi_encoder(banking, pieces, settings, seed)
            _write(net, _path(folder, "bi-encoder", seed))
            torch.save(net, state)
        if "cross-encoder" in tasks and not _path(folder, "cross-encoder", seed).exists():
            bi = torch.load(state, weights_only=False)
            net = train_cross_encoder(banking, pieces, settings, seed, bi)
            _write(net, _path(folder, "cross-encoder", seed))


def vocabulary(folder: Path, banking: Banking, settings: Settings) -> WordPieces:
    path = folder / "vocabulary.json"
    if not path.exists():
        WordPieces.learn(banking.train.texts, settings.vocabulary).save(path)
    return WordPieces.load(path)


def _path(folder: Path, task: str, seed: int) -> Path:
    return folder / f"{task}-{seed}.onnx"


def _write(net: BiEncoder | CrossEncoder | RankNet, path: Path) -> None:
    """Whole or not at all, so that a run that is killed leaves no half a model."""
    partial = path.with_suffix(".part")
    onnx.save(net.to_onnx(), partial)
    partial.replace(path)
