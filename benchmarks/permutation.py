"""What an order of channels gains for 2:4, and what finding it costs.

    python benchmarks/permutation.py [MODEL ...] [--calib DATA] [--markdown FILE]

The error is ‖W − Ŵ‖ / ‖W‖ of the pruned weight, by magnitude, and with the columns of W scaled by
the norms of the channels (Wanda) where calibration data for the model are given. "plain" is a
round-robin start and one assignment after the other over all groups, as published; "search" is
onnx24.sparsity.permutation. Times are of one core (process time). The trained models of fixtures/
come first, with the digits that they were tested on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures")]

from onnx24 import targets  # noqa: E402
from onnx24.analysis.cache import AnalysisCache  # noqa: E402
from onnx24.analysis.coupling import Coupling  # noqa: E402
from onnx24.analysis.eligibility import judge  # noqa: E402
from onnx24.analysis.weight_uses import WeightUses  # noqa: E402
from onnx24.errors import InputError  # noqa: E402
from onnx24.ir.model import Model  # noqa: E402
from onnx24.passmgr.manager import run  # noqa: E402
from onnx24.passmgr.pipeline import parse  # noqa: E402
from onnx24.rewrite.permutation import permute_channels  # noqa: E402
from onnx24.runtime.channels import channel_norms  # noqa: E402
from onnx24.runtime.compare import compare  # noqa: E402
from onnx24.runtime.data import Calibration, load_data  # noqa: E402
from onnx24.runtime.session import Session  # noqa: E402
from onnx24.sparsity import permutation  # noqa: E402
from onnx24.sparsity.permutation import lost, search  # noqa: E402

SIZES = (128, 256, 512, 768, 1024, 2048, 3072, 4096)


def weights(kind: str, rows: int, k: int) -> np.ndarray:
    """`normal`: independent; `like trained`: columns of unlike size, and a part of low rank."""
    rng = np.random.default_rng(k)
    w = rng.standard_normal((rows, k), np.float32)
    if kind == "normal":
        return w
    w *= np.exp(0.3 * rng.standard_normal(k)).astype(np.float32)
    low = rng.standard_normal((rows, 32), np.float32) @ rng.standard_normal((32, k), np.float32)
    return w + low * np.float32(0.2)


def plain(saliency: np.ndarray) -> np.ndarray:
    """Round robin, then assignments of one place after the other over all groups."""
    order = np.argsort(-saliency.sum(axis=0), kind="stable")
    groups = order.reshape(4, -1).T.copy()
    columns = np.ascontiguousarray(saliency.T, np.float32)
    stale = place = 0
    while stale < 4:
        worth = permutation._worth_of_columns(columns, groups, place)
        gained = permutation._reassign(groups, [place], worth)
        stale, place = (0 if gained else stale + 1), (place + 1) % 4
    return groups.reshape(-1)


def gain(saliency: np.ndarray, order: np.ndarray) -> float:
    return 1 - float(np.sqrt(lost(saliency, order) / lost(saliency)))


def timed(call, saliency: np.ndarray) -> tuple[np.ndarray, float]:
    start = time.process_time()
    return call(saliency), time.process_time() - start


def search_rows() -> Iterator[list[str]]:
    for kind in ("normal", "like trained"):
        for k in SIZES:
            saliency = np.square(weights(kind, k, k))
            found, seconds = timed(search, saliency)
            row = [kind, str(k), str(k), f"{gain(saliency, found):.1%}", f"{seconds:.2f}"]
            if k <= 1024:
                base, base_seconds = timed(plain, saliency)
                row += [f"{gain(saliency, base):.1%}", f"{base_seconds:.2f}"]
            else:
                row += ["–", "–"]
            yield row


def error(w: np.ndarray, norm: np.ndarray | None) -> float:
    """‖W − Ŵ‖ / ‖W‖ for `[R, K]`, its columns scaled by norm."""
    saliency = np.square(w if norm is None else w * norm.astype(np.float32))
    return float(np.sqrt(lost(saliency) / saliency.sum(dtype=np.float64)))


def model_rows(path: Path, data: Calibration | None) -> tuple[list[list[str]], list[str]]:
    """(a row for each weight along permuted channels, a row for the model)."""
    original = Model.load(path)
    cache, target = AnalysisCache(), targets.load(targets.DEFAULT)
    verdicts = judge(original, cache, target)
    chosen = [key for key, verdict in verdicts.items() if verdict.eligible]
    errors: list[dict] = []
    seconds = 0.0
    worst = 0.0
    for wanda in (False, True) if data is not None else (False,):
        model = Model.load(path)
        cache = AnalysisCache()
        found = cache.get(model, WeightUses)
        norms = None
        if wanda and data is not None:
            uses = [use for key in chosen for use in found.products(key)]
            norms = channel_norms(model, uses, data, lambda items, label, total=None: iter(items))
        start = time.process_time()
        results = permute_channels(
            model, found, cache.get(model, Coupling), chosen, norms, min_gain=0.01
        )
        seconds = seconds or time.process_time() - start
        entry = {}
        old, new = (AnalysisCache().get(m, WeightUses) for m in (original, model))
        for key in dict.fromkeys(k for r in results if r.done for k in r.weights):
            use = next(use for use in found.products(key) if use.eligible)
            norm = (norms or {}).get(use.data)
            axis = use.k_axis
            assert axis is not None
            pair = [
                np.moveaxis(f.read(m, key).astype(np.float32), axis, -1).reshape(-1, use.K)
                for f, m in ((old, original), (new, model))
            ]
            if norm is None:
                entry[key] = [error(w, None) for w in pair]
                continue
            scaled = [error(pair[0], norm)]
            moved = channel_norms(model, [use], data, lambda items, label, total=None: iter(items))[
                use.data
            ]  # type: ignore[arg-type]
            entry[key] = [*scaled, error(pair[1], moved)]
        errors.append({"entry": entry, "results": results})
        sample = load_data("random:2", original) if data is None else data
        try:
            worst = max(worst, compare(original, model, sample).worst.rel_l2)
        except InputError:
            worst = float("nan")
    rows = []
    for key, (before, after) in errors[0]["entry"].items():
        use = next(use for use in found.products(key) if use.eligible)
        cells = [path.stem, use.node, use.op, str(use.K), str(use.N)]
        cells += [f"{before:.4f}", f"{after:.4f}", f"{1 - after / before:.1%}"]
        if len(errors) > 1 and key in errors[1]["entry"]:
            before, after = errors[1]["entry"][key]
            cells += [f"{before:.4f}", f"{after:.4f}", f"{1 - after / before:.1%}"]
        else:
            cells += ["–"] * 3
        rows.append(cells)
    results = errors[0]["results"]
    gains = [r.gain for r in results if r.done]
    summary = [path.stem, str(len(chosen)), str(len(gains)), str(len(results) - len(gains))]
    if gains:
        summary += [f"{np.mean(gains):.1%}", f"{min(gains):.1%}", f"{max(gains):.1%}"]
    else:
        summary += ["–"] * 3
    return rows, [*summary, f"{seconds:.2f}", f"{worst:.1e}"]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def digits(folder: str, model: Model) -> Calibration:
    """512 of the training digits, as the models of fixtures/ take them."""
    import data as fixture_data

    path = Path(folder, "digits.npz")
    fixture_data.write_calibration(path, model.proto.graph.input[0].name, 512)
    return load_data(str(path), model)


def accuracy_row(path: Path, folder: str) -> list[str]:
    """Test accuracy: dense, pruned by magnitude, pruned after a permutation without and with
    norms."""
    import data as fixture_data

    test = fixture_data.digits()
    row = [path.stem]
    for text in (
        "check24",
        "prune24{permute=off}",
        "permute24{norms=off},prune24{permute=off}",
        "permute24{norms=on},prune24{permute=off}",
    ):
        model = Model.load(path)
        run(
            model,
            parse(text),
            target=targets.load(targets.DEFAULT),
            calibration=digits(folder, model),
            reproducer_dir=None,
        )
        name = model.proto.graph.input[0].name
        (logits,) = Session(model).run({name: test.test_x}).values()
        row.append(f"{fixture_data.accuracy(logits, test.test_y):.2%}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    parts = [
        "## Search\n",
        table(
            ["weights", "R", "K", "search: less error", "s", "plain: less error", "s"],
            search_rows(),
        ),
    ]
    print("\n".join(parts), flush=True)
    layers, models, accuracies = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vit", "cnn"):
            path = ROOT / "fixtures" / "models" / f"{name}.onnx"
            rows, summary = model_rows(path, digits(folder, Model.load(path)))
            layers += rows
            models.append(summary)
            accuracies.append(accuracy_row(path, folder))
    for path in args.models:
        rows, summary = model_rows(path, None)
        if int(summary[2]):
            layers += rows
        models.append(summary)
        print(summary, flush=True)
    parts += [
        "\n## Accuracy on the test digits\n",
        table(["model", "dense", "magnitude", "permuted", "permuted with norms"], accuracies),
        "\n## Models\n",
        table(
            ["model", "eligible", "groups permuted", "groups left", "mean", "least", "most", "s",
             "outputs, rel. L2"],
            models,
        ),
        "\n## Weights along permuted channels\n",
        table(
            ["model", "node", "op", "K", "N", "magnitude", "after", "less", "Wanda", "after",
             "less"],
            layers,
        ),
    ]  # fmt: skip
    text = "\n".join(parts) + "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
