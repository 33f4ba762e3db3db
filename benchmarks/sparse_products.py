"""Dense against 2:4 products on a GPU: layers of BERT-base, BERT-large and a search encoder.

    cmake -S plugin -B build -DCUSPARSELT_ROOT=… && cmake --build build
    python benchmarks/sparse_products.py --harness build/spmm24_harness [--models bert-base,…]
        [--types fp16,int8] [--m 1,16,…] [--rounds 5] [--runs 50] [--markdown FILE] [--dry-run]

Dense is torch (cuBLAS: `linear` in fp16, `_int_mm` with int32 results in int8), 2:4 is plugin/'s
harness (cuSPARSELt with the plan cache, which also checks its products against float64 sums). In
each round both run all row counts, one after the other, so that clocks and heat are shared. Printed
are the median over the rounds, its spread, and the gain where that lies outside the spread. Rows
below 17 are padded to 32 for `_int_mm`, which takes no fewer.

Exit codes: 3 without a CUDA device or without torch for CUDA, 1 where a product is wrong. It has
not run on a GPU yet, and no number of it is in the repository.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24.backends.base import cuda_devices

ROWS = tuple(2**i for i in range(14))
TYPES = ("fp16", "int8")


@dataclass(frozen=True)
class Product:
    """y = x @ w.T: N outputs, K inputs."""

    name: str
    n: int
    k: int


def encoder(width: int, inner: int) -> tuple[Product, ...]:
    """The products with a weight of one layer of a transformer encoder."""
    return (
        Product("query, key, value", 3 * width, width),
        Product("attention output", width, width),
        Product("feed-forward up", inner, width),
        Product("feed-forward down", width, inner),
    )


MODELS = {
    "bert-base": encoder(768, 3072),
    "bert-large": encoder(1024, 4096),
    "search-encoder": encoder(384, 1536),
}
"""*Source:* Devlin and others, BERT (1810.04805), table 1; the search encoder is that of Wang and
others, MiniLM (2002.10957): hidden size 384, 1536 inside."""


@dataclass(frozen=True)
class Timing:
    """Medians of the rounds, one for each round [ms]."""

    dense: tuple[float, ...]
    sparse: tuple[float, ...]

    @property
    def gain(self) -> float | None:
        """Times faster; None where the ranges of the rounds overlap."""
        if max(self.sparse) < min(self.dense) or max(self.dense) < min(self.sparse):
            return median(self.dense) / median(self.sparse)
        return None


def harness_command(
    harness: Path, kind: str, product: Product, rows: Iterable[int], runs: int, seed: int
) -> list[str]:
    return [
        str(harness), "--type", kind, "--n", str(product.n), "--k", str(product.k),
        "--m", ",".join(map(str, rows)), "--runs", str(runs), "--seed", str(seed),
    ]  # fmt: skip


_LINE = re.compile(r"^M +(\d+) .* ([\d.]+) ms ", re.MULTILINE)


def harness_times(output: str) -> dict[int, float]:
    """Rows → median [ms], from what the harness prints."""
    return {int(rows): float(ms) for rows, ms in _LINE.findall(output)}


def dense_times(kind: str, product: Product, rows: Sequence[int], runs: int) -> dict[int, float]:
    """Rows → median [ms], by torch on the first CUDA device."""
    import torch

    def tensor(*shape: int) -> torch.Tensor:
        if kind == "int8":
            return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
        return torch.randn(shape, dtype=torch.float16, device="cuda")

    w = tensor(product.n, product.k)
    found = {}
    for m in rows:
        x = tensor(max(m, 32) if kind == "int8" and m < 17 else m, product.k)
        times = []
        for number in range(runs + 5):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch._int_mm(x, w.t()) if kind == "int8" else torch.nn.functional.linear(x, w)
            stop.record()
            stop.synchronize()
            if number >= 5:  # the first ones warm up
                times.append(start.elapsed_time(stop))
        found[m] = median(times)
    return found


def measure(args: argparse.Namespace, kind: str, product: Product) -> tuple[dict[int, Timing], str]:
    """Rows → timing, and the harness's description of the machine. Raises: SystemExit 1 for a
    product that is wrong, 3 where the harness fails."""
    dense: dict[int, list[float]] = {m: [] for m in args.m}
    sparse: dict[int, list[float]] = {m: [] for m in args.m}
    machine = ""
    for number in range(args.rounds):
        command = harness_command(args.harness, kind, product, args.m, args.runs, number + 1)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise SystemExit(1 if done.returncode == 1 else 3)
        machine = done.stdout.partition("\n")[0].partition(f", {kind}")[0]
        ours = harness_times(done.stdout)
        theirs = dense_times(kind, product, args.m, args.runs)
        for m in args.m:
            dense[m].append(theirs[m])
            sparse[m].append(ours[m])
    return {m: Timing(tuple(dense[m]), tuple(sparse[m])) for m in args.m}, machine


def row(model: str, kind: str, product: Product, m: int, timing: Timing) -> str:
    def cell(times: tuple[float, ...]) -> str:
        return f"{median(times):.4f} ({min(times):.4f} to {max(times):.4f})"

    gain = "in the noise" if timing.gain is None else f"{timing.gain:.2f}"
    sizes = f"{product.n} | {product.k} | {m}"
    dense, sparse = cell(timing.dense), cell(timing.sparse)
    return f"| {model} | {product.name} | {kind} | {sizes} | {dense} | {sparse} | {gain} |"


HEAD = (
    "| model | product | type | N | K | M | dense [ms] | 2:4 [ms] | times faster |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    args = _arguments()
    plan = [(model, kind, p) for model in args.models for kind in args.types for p in MODELS[model]]
    if args.dry_run:
        for model, kind, product in plan:
            command = harness_command(args.harness, kind, product, args.m, args.runs, 1)
            print(f"{model}, {product.name}: {args.rounds} x {' '.join(command)}")
    if cuda_devices() == 0:
        print("no CUDA device is present: nothing was measured", file=sys.stderr)
        return 3
    if args.dry_run:
        return 0
    import torch

    if not torch.cuda.is_available():
        print("torch is not built for CUDA: no dense product to compare with", file=sys.stderr)
        return 3
    lines: list[str] = []
    machine = ""
    for model, kind, product in plan:
        timings, machine = measure(args, kind, product)
        lines += [row(model, kind, product, m, timings[m]) for m in args.m]
        print("\n".join(lines[-len(args.m) :]), flush=True)
    title = (
        f"{torch.cuda.get_device_name()}; {machine}; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}; {args.rounds} rounds of {args.runs} runs; `{' '.join(sys.argv)}`"
    )
    if args.markdown:
        args.markdown.write_text("\n".join([title, "", HEAD, *lines]) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    def some_of(known: Iterable[str]):
        def parsed(text: str) -> list[str]:
            names = text.split(",")
            if wrong := [name for name in names if name not in known]:
                raise argparse.ArgumentTypeError(f"{wrong[0]!r}: choose of {', '.join(known)}")
            return names

        return parsed

    def counts(text: str) -> list[int]:
        values = [int(part) for part in text.split(",")]
        if min(values) < 1:
            raise argparse.ArgumentTypeError("rows are counted from 1")
        return values

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--harness", type=Path, default=Path("build/spmm24_harness"))
    parser.add_argument("--models", type=some_of(MODELS), default=list(MODELS))
    parser.add_argument("--types", type=some_of(TYPES), default=list(TYPES))
    parser.add_argument("--m", type=counts, default=list(ROWS), help="row counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
