"""Whether every real model that TensorRT-RTX builds as it is also builds after each preset.

    python benchmarks/preset_builds.py SHARED/models [--all] [--markdown FILE]

Needs no GPU. Every model is built as it is first; those that do not build are listed and left. What
comes out of a preset with bytes that were built already is not built again. Samples are random: the
question is whether an engine comes out, not how accurate it is. Exit code 1 where a preset breaks a
build.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real")]

from onnx24_real import compile_real, rtx_builds  # noqa: E402

from onnx24.errors import InputError  # noqa: E402
from onnx24.ir.model import Model  # noqa: E402
from onnx24.passmgr import manager, pipeline  # noqa: E402
from onnx24.targets import DEFAULT, load, presets  # noqa: E402

FOLDERS = ("zoo", "structural", "deeploy_golden", "polygraphy_tests")


class Builder:
    """Builds models, each compiled content once."""

    def __init__(self, scratch: Path) -> None:
        self._engine = scratch / "out.engine"
        self._known: dict[str, str] = {}

    def error(self, model: Path) -> str:
        """ "" where an engine comes out."""
        try:
            error = rtx_builds(model, self._engine)
        except InputError as err:  # onnx24 refuses it before TensorRT is asked
            return str(err)
        if error is None:
            raise SystemExit("tensorrt_rtx is not installed: pip install 'onnx24[rtx]'")
        return error

    def error_once(self, compiled: Path) -> str:
        digest = hashlib.sha256(compiled.read_bytes()).hexdigest()
        if digest not in self._known:
            self._known[digest] = self.error(compiled)
        return self._known[digest]


def cells(source: Path, builder: Builder, out: Path) -> list[str]:
    """One for the model as it is, and one for each preset."""
    if builder.error(source):
        return ["no", *[""] * len(presets())]
    return ["yes", *(_after(source, preset, builder, out) for preset in presets())]


def _after(source: Path, preset: str, builder: Builder, out: Path) -> str:
    refused, by = compile_real(source, preset, out).refused, ""
    if refused and refused.code == "O24-016":  # ONNX Runtime can't run it; `opt` needs no run
        refused, by = _opt(source, preset, out), " (opt)"
    if refused:
        return f"refused: {refused.code}"
    error = builder.error_once(out)
    return f"NO: {error}"[:80] if error else f"yes{by}"


def _opt(source: Path, preset: str, out: Path) -> InputError | None:
    model = Model.load(source)
    try:
        manager.run(model, pipeline.parse(presets()[preset]), target=load(DEFAULT))
    except InputError as err:
        return err
    model.save(out)
    return None


def page(rows: Sequence[Sequence[str]], version: str) -> str:
    head = ["model", "as it is", *presets()]
    built = [row for row in rows if row[1] == "yes"]
    counts = [
        f"{name} {sum(row[i].startswith('yes') for row in built)}"
        for i, name in enumerate(head[2:], 2)
    ]
    lines = [
        "# What TensorRT-RTX builds, as it is and after each preset",
        "",
        f"Made by `benchmarks/preset_builds.py MODELS --all`, tensorrt-rtx {version}, no GPU.",
        f"{len(rows)} models, {len(built)} build as they are, of these after a preset:",
        f"{', '.join(counts)}.",
        "(opt): ONNX Runtime can't run the original (O24-016), as `compile` demands and `opt` does",
        "not. refused: onnx24 refuses the model, with that code.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--all", action="store_true", help="operator graphs too")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        builder, out = Builder(Path(folder)), Path(folder, "out.onnx")
        for part in FOLDERS if args.all else FOLDERS[:2]:
            for path in sorted((args.models / part).rglob("*.onnx")):
                name = str(path.relative_to(args.models / part)).removesuffix("/network.onnx")
                rows.append([f"{part}/{name.removesuffix('.onnx')}", *cells(path, builder, out)])
                print(" | ".join(rows[-1]), flush=True)
    if args.markdown:
        import tensorrt_rtx

        args.markdown.write_text(page(rows, tensorrt_rtx.__version__))
    return int(any(cell.startswith("NO") for row in rows for cell in row))


if __name__ == "__main__":
    sys.exit(main())
