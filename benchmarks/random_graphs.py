"""What passes promise, on random graphs with all dimensions equal and with different ones.

    python benchmarks/random_graphs.py [--seeds 0:2000] [--different 0:400] [--markdown FILE]

Every graph goes through the presets' structure part and, in turns, through one of the passes that
keep the function by itself (outputs before and after, every node run as written), every tenth one
also through prune24 (two zeros in each four weights that a product sums, found by running the
product alone) and qdq (weights within a step, fold-qdq changes nothing). A line for every broken
promise, and a table; exit 1 where there is a line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24.testing import promises
from onnx24.testing.random_graphs import random_graph

PART = 10


@dataclass
class Tally:
    """By promise: graphs, those that something was changed in, the worst difference."""

    graphs: Counter[str] = field(default_factory=Counter)
    touched: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, name: str, where: str, outcome: promises.Outcome) -> None:
        self.graphs[name] += 1
        self.touched[name] += bool(outcome.sites)
        self.worst[name] = max(self.worst.get(name, 0.0), outcome.worst)
        if outcome.complaint:
            self.broken.append(f"{where}: {name}: {outcome.complaint}")

    def merge(self, other: Tally) -> None:
        self.graphs += other.graphs
        self.touched += other.touched
        self.kinds += other.kinds
        self.broken += other.broken
        self.seconds += other.seconds
        for name, worst in other.worst.items():
            self.worst[name] = max(self.worst.get(name, 0.0), worst)


def judge(seeds: range, equal: bool) -> Tally:
    tally, start = Tally(), time.process_time()
    for seed in seeds:
        graph = random_graph(seed, equal=equal)
        tally.kinds.update(graph.kinds)
        where = f"seed {seed}, {'equal' if equal else 'different'}"
        *alone, whole = promises.SAME
        checks = {
            text: lambda text=text, graph=graph: promises.keeps_function(
                graph.proto, graph.feeds, text
            )
            for text in (whole, alone[seed % len(alone)])
        }
        if seed % 10 == 0:
            checks["prune24"] = lambda graph=graph, seed=seed: promises.prunes_what_is_summed(
                graph.proto, graph.feeds, calibrated=seed % 20 == 0
            )
            checks["qdq, fold-qdq"] = lambda graph=graph: promises.quantizes_near(
                graph.proto, graph.feeds
            )
        for name, check in checks.items():
            try:
                outcome = check()
            except Exception as err:  # noqa: BLE001 - a line of the table, whatever it is
                outcome = promises.Outcome(0, 0.0, f"{type(err).__name__}: {str(err)[:200]}")
            tally.add(name, where, outcome)
    tally.seconds = time.process_time() - start
    return tally


def table(tallies: dict[str, Tally]) -> str:
    lines = [
        "| dimensions | promise | graphs | changed | broken | worst difference |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for label, tally in tallies.items():
        for name, count in tally.graphs.items():
            broken = sum(f": {name}: " in line for line in tally.broken)
            lines.append(
                f"| {label} | `{name}` | {count} | {tally.touched[name]} | {broken} | "
                f"{tally.worst[name]:.1e} |"
            )
    return "\n".join(lines)


def report(tallies: dict[str, Tally], arguments: str) -> str:
    kinds = sum((tally.kinds for tally in tallies.values()), Counter())
    seconds = sum(tally.seconds for tally in tallies.values())
    counted = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    broken = [line for tally in tallies.values() for line in tally.broken]
    whole = list(promises.SAME)[-1]
    done = ", ".join(f"{tally.graphs[whole]:,} {label}" for label, tally in tallies.items())
    return (
        "# Random graphs: what passes promise\n\n"
        f"`python benchmarks/random_graphs.py {arguments}`: {done} graphs, {seconds:,.0f} s of "
        "CPU. A difference is relative to the output's largest value; equalize and smooth-quant "
        f"may make none, others {promises.ROUNDING:g} (another order of summation)."
        f"\n\n{table(tallies)}\n\n"
        f"Kinds of nodes: {counted}.\n\n"
        + ("\n".join(f"- {line}" for line in broken) or "No promise was broken.")
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:2000", help="graphs of equal dimensions")
    parser.add_argument("--different", default="0:400", help="graphs of different ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="written anew after every part")
    args = parser.parse_args()
    parts: list[tuple[float, range, bool]] = []
    for text, equal in ((args.seeds, True), (args.different, False)):
        seeds = range(*map(int, text.split(":")))
        starts = range(0, len(seeds), PART)
        parts += [(i / len(seeds), seeds[i : i + PART], equal) for i in starts]
    parts.sort(key=lambda part: part[0])  # both kinds from the start, for a run that is cut short
    tallies = {"equal": Tally(), "different": Tally()}
    with ProcessPoolExecutor(args.jobs) as pool:
        _, pieces, kinds = zip(*parts, strict=True)
        for done, tally in enumerate(pool.map(judge, pieces, kinds), 1):
            tallies["equal" if kinds[done - 1] else "different"].merge(tally)
            for line in tally.broken:
                print(line, flush=True)
            print(f"{done} of {len(parts)} parts", file=sys.stderr, flush=True)
            if args.markdown:
                said = f"--seeds {args.seeds} --different {args.different}"
                args.markdown.write_text(report(tallies, said), encoding="utf-8")
    print(table(tallies))
    return int(any(tally.broken for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
