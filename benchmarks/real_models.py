"""What each pass does to every real model at hand, as a table.

    python benchmarks/real_models.py SHARED/models [--all] [--build] [--markdown FILE]

For each model and preset: weights eligible and pruned, layers quantized, what each pass changed
(W: weights, S: structure), the output difference against the original on random inputs, and, with
--build, whether TensorRT-RTX builds the result. Random inputs say whether the model still
computes something close, not how accurate it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "tests/real")]

from onnx24_real import PRESETS, compile_real, rtx_builds  # noqa: E402

PASSES = (
    "canonicalize", "upgrade-opset", "prune24", "matmul-to-conv1x1", "qdq", "fold-qdq", "cast16",
    "check24",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--all", action="store_true", help="operator graphs too")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    folders = ("zoo", "structural", "deeploy_golden", "polygraphy_tests")
    head = ["model", "preset", "pruned", "int8", *PASSES, "SQNR dB", "s", "RTX"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out.onnx")
        for folder in folders if args.all else folders[:2]:
            for path in sorted((args.models / folder).rglob("*.onnx")):
                label = path.stem if path.stem != "network" else path.parent.name
                for preset in PRESETS:
                    row = compile_real(path, preset, out)
                    if row.refused:
                        cells = [label, preset, f"refused: {row.refused.code}"]
                        rows.append(cells + [""] * (len(head) - len(cells)))
                    else:
                        worst = row.comparison.worst if row.comparison else None
                        sqnr = f"{worst.sqnr_db:.1f}" if worst and worst.sqnr_db is not None else ""
                        built = ""
                        if args.build:
                            error = rtx_builds(out, Path(scratch, "out.engine"))
                            built = {"": "yes", None: "no package"}.get(error, f"no: {error}")[:60]
                        changed = [row.changed.get(name, "") for name in PASSES]
                        rows.append(
                            [label, preset, str(row.pruned), str(row.quantized), *changed, sqnr,
                             f"{row.seconds:.2f}", built]
                        )  # fmt: skip
                    print(" | ".join(rows[-1]), flush=True)
    if args.markdown:
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
