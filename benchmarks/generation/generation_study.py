"""A small digit generator, dense beside 2:4: pictures from the same noise, and how far they are.

    python benchmarks/generation/generation_study.py [--steps 200] [--pictures 2048]
        [--markdown benchmarks/results/generation.md] [--png benchmarks/results/generation.png]

train_generator.py makes the two models. Pictures of each method are kept under --out and not made
again. README.md says what is measured. Needs torch for recovery and pillow for --png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "accuracy")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from digit_images import SIZE, Images, digit_images  # noqa: E402
from frechet import frechet  # noqa: E402
from methods import METHODS, Method, Workshop, estimated_us  # noqa: E402
from tasks import Places  # noqa: E402

from onnx24.ir.model import Model  # noqa: E402
from onnx24.runtime.data import load_data  # noqa: E402
from onnx24.runtime.session import Session  # noqa: E402

STEPS = 20
"""Of the sampler (DDIM)."""
TRAJECTORIES = 160
"""Calibration: 160 of the dense model's own trajectories, 3,200 inputs at all times."""
ROWS = 256
RATES = (0.0, 3e-4)
"""Learning rates that are tried; 0 is the recipe's own choice."""
ENDS = {
    "dense": ("fp32", "int8"),
    "magnitude": ("fp32",),
    "basic": ("fp32",),
    "one-shot": ("fp32", "int8"),
    "one-shot + recover": ("fp32", "int8"),
}
"""Method → the types that pictures are made in."""
SEEDS = {"calibration": 1, "pictures": 2, "again": 3}
"""Of the noise: that of calibration is never that of pictures."""
RESAMPLES = 200


@dataclass(frozen=True)
class Start:
    """Where pictures come from: noise `[N, 1, 16, 16]` and labels `[N]`."""

    noise: Images
    labels: NDArray[np.int64]

    @staticmethod
    def drawn(count: int, seed: int) -> Start:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((count, 1, SIZE, SIZE), np.float32)
        return Start(noise, rng.integers(0, 10, count))


def velocity(session: Session, feeds: dict[str, NDArray]) -> Images:
    """The model's output, row block by row block."""
    count = len(feeds["label"])
    parts = [
        session.run({name: value[i : i + ROWS] for name, value in feeds.items()})["velocity"]
        for i in range(0, count, ROWS)
    ]
    return np.concatenate(parts)


def generate(model: Model, start: Start) -> tuple[Images, list[dict[str, NDArray]]]:
    """Pictures in [-1, 1], and what the model was fed at each step.

    x(t) = cos(πt/2)·picture + sin(πt/2)·noise, v = cos·noise − sin·picture, t from 1 to 0 in equal
    steps, without new noise. *Source:* DDIM, arXiv 2010.02502.
    """
    session = Session(model)
    x, fed = start.noise, []
    times = np.linspace(0.995, 0, STEPS + 1)
    picture = x
    for now, then in pairwise(times):
        feeds = {
            "image": x,
            "time": np.full(len(x), now, np.float32),
            "label": start.labels,
        }
        fed.append(feeds)
        v = velocity(session, feeds)
        alpha, sigma = np.cos(now * np.pi / 2), np.sin(now * np.pi / 2)
        picture = np.clip(alpha * x - sigma * v, -1, 1)
        noise = (x - alpha * picture) / sigma
        x = np.cos(then * np.pi / 2) * picture + np.sin(then * np.pi / 2) * noise
        x = x.astype(np.float32)
    return picture.astype(np.float32), fed


def calibration(model: Model, path: Path) -> Path:
    """Inputs along the dense model's trajectories. Step after step, so that what is held out of
    160 by every eighth or tenth sample are whole trajectories."""
    if not path.exists():
        _, fed = generate(model, Start.drawn(TRAJECTORIES, SEEDS["calibration"]))
        stacked = {name: np.concatenate([feeds[name] for feeds in fed]) for name in fed[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **stacked)
    return path


# --- scores ----------------------------------------------------------------------------------
class Judge:
    """The classifier: features for the distance, and whether a picture shows its label."""

    def __init__(self, model: Model, held: Images) -> None:
        self._session = Session(model)
        self.real, _ = self.look(held)

    def look(self, pictures: Images) -> tuple[NDArray, NDArray[np.int64]]:
        """Features `[N, 64]` and the likeliest digit."""
        found = [
            self._session.run({"image": pictures[i : i + ROWS]})
            for i in range(0, len(pictures), ROWS)
        ]
        features = np.concatenate([f["features"] for f in found])
        return features, np.concatenate([f["logits"] for f in found]).argmax(1)

    def scores(self, pictures: Images, labels: NDArray, beside: Images | None) -> dict[str, Any]:
        """distance: to the held-out real images, with the half-width of its 95 % bootstrap
        interval; right: labels that are shown [%]; apart: relative difference from the pictures
        that `beside` shows from the same noise, and the share of pictures read as another digit."""
        features, seen = self.look(pictures)
        rng = np.random.default_rng(0)
        draws = [
            frechet(features[rng.integers(0, len(features), len(features))], self.real)
            for _ in range(RESAMPLES)
        ]
        row = {
            "distance": frechet(features, self.real),
            "spread": 1.96 * float(np.std(draws)),
            "right": 100 * float(np.mean(seen == labels)),
        }
        if beside is not None:
            difference = np.linalg.norm(pictures - beside) / np.linalg.norm(beside)
            row |= {
                "apart": float(difference),
                "other": 100 * float(np.mean(seen != self.look(beside)[1])),
            }
        return row


# --- the study -------------------------------------------------------------------------------
class Study:
    """Models, samples, pictures; everything under `folder` is made once."""

    def __init__(self, places: Places, steps: int, count: int) -> None:
        self.folder = places.out / "generation"
        self.dense = Model.load(places.out / "digit_generator.onnx")
        self.steps, self.count = steps, count
        path = calibration(self.dense, self.folder / f"trajectories-{STEPS}.npz")
        data = load_data(str(path), self.dense)
        self.shop = Workshop(self.dense, data, steps)
        self.judge_model = Model.load(places.out / "digit_features.onnx")
        self.split = digit_images(places.shared / "data/eval/mnist")

    def pictures(self, name: str, make: Any, seed: str = "pictures") -> Images:
        path = self.folder / f"{name.replace(' ', '')}-{self.count}-{seed}.npy"
        if not path.exists():
            images, _ = generate(make(), Start.drawn(self.count, SEEDS[seed]))
            np.save(path, images)
        return np.load(path)

    def rate(self, method: Method) -> tuple[float, dict[str, Any]]:
        """The learning rate with the least divergence on held-out trajectories."""
        path = self.folder / f"rates-{method.name.replace(' ', '')}-{self.steps}.json"
        if not path.exists():
            trials = {}
            for rate in RATES:
                found = self.shop.trained(method, rate).recovered
                assert found is not None
                trials[f"{rate:g}"] = found.after
                trials["start"] = found.before
                if not rate:
                    trials["used"] = found.learning_rate
                print(f"  {method.name}, rate {rate:g}: {found.before:.5f} → {found.after:.5f}")
            path.write_text(json.dumps(trials))
        trials = json.loads(path.read_text())
        return min(RATES, key=lambda rate: (trials[f"{rate:g}"], rate)), trials

    def measure(self, method: Method) -> list[dict[str, Any]]:
        """One row for each precision."""
        rows = []
        made: list[Model] = []

        def trained() -> Model:
            if not made:
                rate = self.rate(method)[0] if method.recipe else None
                made.append(self.shop.trained(method, rate).model)
            return made[0]

        for end in ENDS[method.name]:
            stem = f"{method.name}-{end}"
            path = self.folder / f"{stem.replace(' ', '')}-{self.steps}.onnx"
            begin = time.perf_counter()
            if not path.exists():
                self.shop.finished(trained(), method, end).save(path)
            model = Model.load(path)
            pictures = self.pictures(f"{stem}-{self.steps}", lambda model=model: model)
            us, int8, sparse = estimated_us(
                model, {"image": (64, 1, SIZE, SIZE), "time": (64,), "label": (64,)}
            )
            rows.append(
                {
                    "method": method.name,
                    "end": end,
                    "bytes": path.stat().st_size,
                    "us": us,
                    "int8": int8,
                    "sparse": sparse,
                    "pictures": pictures,
                    "trials": self.rate(method)[1] if method.recipe else {},
                }
            )
            print(f"{stem}: {time.perf_counter() - begin:.0f} s", flush=True)
        return rows


def report(study: Study) -> tuple[str, list[tuple[str, Images]]]:
    """The table as markdown, and the pictures with their names."""
    judge = Judge(study.judge_model, study.split.held_x)
    start = Start.drawn(study.count, SEEDS["pictures"])
    again = Start.drawn(study.count, SEEDS["again"])
    rows = [row for name in ENDS for row in study.measure(METHODS[name])]
    dense = rows[0]["pictures"]
    lines, shown, trials = [], [], []
    for row in rows:
        name = f"{row['method']}, {row['end']}"
        beside = None if row is rows[0] else dense
        found = judge.scores(row["pictures"], start.labels, beside)
        shown.append((name, row["pictures"]))
        lines.append(
            [
                row["method"],
                row["end"],
                f"{found['distance']:.2f} ± {found['spread']:.2f}",
                f"{found['right']:.2f}",
                "" if beside is None else f"{found['apart']:.3f}",
                "" if beside is None else f"{found['other']:.2f}",
                f"{row['bytes'] / 1024:.0f}",
                "" if row["us"] == rows[0]["us"] else f"{rows[0]['us'] / row['us']:.2f}",
                f"{row['sparse']} / {row['int8']}",
            ]
        )
        if row["trials"] and row["end"] == "fp32":
            tried = row["trials"]
            cells = [f"{tried[name]:.5f}" for name in ("start", *(f"{r:g}" for r in RATES))]
            cells[1] += f" ({tried['used']:.1g})"
            trials.append([row["method"], *cells])
    second = study.pictures("dense-fp32", lambda: study.dense, "again")
    floors = [
        ("dense, other noise", judge.scores(second, again.labels, None)),
        ("real images (train)", judge.scores(study.split.train_x[: study.count],
                                             study.split.train_y[: study.count], None)),
    ]  # fmt: skip
    for name, found in floors:
        distance = f"{found['distance']:.2f} ± {found['spread']:.2f}"
        lines.insert(1, [name, "", distance, f"{found['right']:.2f}", *[""] * 5])
    head = ["method", "type", "Fréchet distance", "right digit %", "apart", "other digit %",
            "KiB", "speed", "2:4 / INT8"]  # fmt: skip
    text = HEAD.format(count=study.count, steps=study.steps, sampler=STEPS, held=TRAJECTORIES)
    text += _table(head, lines)
    text += "\n## Learning rates tried\n\nRelative squared error of the velocity on held-out "
    text += "trajectories.\n\n"
    names = ["the recipe's own", *(f"{rate:g}" for rate in RATES[1:])]
    text += _table(["method", "start", *names], trials)
    return text, shown


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


HEAD = """# A digit generator, dense beside 2:4

Made by `python benchmarks/generation/generation_study.py`; `benchmarks/generation/README.md` says
what the models and methods are, and what was learnt. {count} pictures of each model from the same
noise and labels, {sampler} steps of the sampler; recovery takes {steps} steps. generation.png shows
the first of them.

*Fréchet distance*: on 64 features of a small classifier, to 3,000 held-out real images, with the
95 % interval of a bootstrap over pictures (less is better). *right digit*: pictures in which the
classifier sees the label asked for. *apart*: relative difference from the dense model's pictures
from the same noise; *other digit*: pictures that the classifier reads otherwise than those.
*speed*: dense fp16's roofline bound over this model's at 64 images on an A10, an **estimate** from
data-sheet peaks and no measurement (no GPU was at hand); floats count as fp16, whatever the row's
type. *2:4 / INT8*: layers that are.

"""


def picture(rows: list[tuple[str, Images]], labels: NDArray, path: Path, columns: int = 20) -> None:
    """One line for each method: two pictures of each digit, the same noise in each column."""
    from PIL import Image, ImageDraw

    order = np.argsort(labels, kind="stable")
    first = [order[np.flatnonzero(labels[order] == digit)[:2]] for digit in range(10)]
    chosen = np.concatenate(first)[:columns]
    cell, left = 2 * SIZE, 150
    sheet = Image.new("L", (left + cell * columns, cell * len(rows)), 255)
    pen = ImageDraw.Draw(sheet)
    for y, (name, images) in enumerate(rows):
        pen.text((4, y * cell + 10), name, fill=0)
        for x, which in enumerate(chosen):
            pixels = np.rint((images[which, 0] + 1) * 127.5).astype(np.uint8)
            tile = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + x * cell, y * cell))
    sheet.quantize(16).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the two models, and what is kept; out/bench")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--png", type=Path)
    given = parser.parse_args()
    study = Study(Places.default(given.out), given.steps, given.pictures)
    text, shown = report(study)
    print(text)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")
    if given.png:
        picture(shown, Start.drawn(given.pictures, SEEDS["pictures"]).labels, given.png)


if __name__ == "__main__":
    main()
