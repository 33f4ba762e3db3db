"""Which layers TensorRT-RTX builds in INT8: onnx24's placement beside Model-Optimizer's.

    python benchmarks/int8_layers.py FOLDER --modelopt-python PYTHON [--limit N] [--out FILE]

Each model of FOLDER that ONNX Runtime runs and tensorrt-rtx builds is quantized by `qdq,fold-qdq`,
behind what the preset int8 puts before it, and by Model-Optimizer (in the interpreter that is
named, which wants versions of its own), on the same random samples. Both results are built for
sm86; counted are the products (Conv, ConvTranspose, Gemm, MatMul) that the build log shows as INT8
kernels. No GPU is needed, and nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "real"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24_real import data_for

from onnx24 import targets
from onnx24.backends import BuildOptions, Profile, get
from onnx24.errors import Onnx24Error
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import Session

TARGET = targets.load("sm86-rtx1")
MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
data = dict(np.load(sys.argv[2]))
quantize(sys.argv[1], quantize_mode="int8", calibration_data=data, calibration_method="max",
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=sys.argv[3])
"""
PIPELINE = "canonicalize,upgrade-opset{to=13},qdq{calibrator=max},fold-qdq"


@dataclass
class Row:
    """ours, theirs: INT8 layers of the build; None where there is no engine, and why."""

    model: str
    ours: int | None = None
    theirs: int | None = None
    why_ours: str = ""
    why_theirs: str = ""

    @property
    def holds(self) -> bool:
        """Whether ours has an engine, and as many INT8 layers as theirs, which may have none."""
        return self.ours is not None and self.ours >= (self.theirs or 0)


def int8_products(path: Path, shapes: dict[str, Profile]) -> int:
    """Products in layers that read INT8 and are no generated element-wise kernel."""
    engine = path.with_suffix(".engine")
    backend, options = get("tensorrt-rtx"), BuildOptions()
    built = backend.build(
        path, TARGET, engine=engine, shapes=shapes, options=options, timeout_s=300
    )
    ops = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    nodes = Model.load(path).proto.graph.node
    products = {n.name or n.output[0] for n in nodes if n.op_type in ops}
    found: set[str] = set()
    for layer in built.layers:
        if layer.kind != "kgen" and "int8" in layer.dtypes_in:
            found |= products & set(layer.onnx_nodes)
    return len(found)


def dynamic(model: Model, data: Calibration) -> dict[str, Profile]:
    """The samples' sizes, for the inputs with open dimensions."""
    feeds = next(iter(data.batches(model)))
    shapes = {}
    for value in model.proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in feeds and any(not dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = Profile(*[tuple(feeds[value.name].shape)] * 3)
    return shapes


def judge(source: Path, name: str, folder: Path, python: str) -> Row | None:
    """None for a model that ONNX Runtime does not run, RTX does not build, or that has no
    product."""
    try:
        model = Model.load(source)
        if not any(n.op_type in ("Conv", "Gemm", "MatMul") for n in model.proto.graph.node):
            return None
        data = data_for(model)
        feeds = next(iter(data.batches(model)))
        Session(model).run(feeds)
        shapes = dynamic(model, data)
        model.save(folder / "float.onnx")
        int8_products(folder / "float.onnx", shapes)
    except Onnx24Error:
        return None
    row = Row(name)
    try:
        passes = pipeline.parse(PIPELINE)
        manager.run(model, passes, target=TARGET, calibration=data, reproducer_dir=None)
        model.save(folder / "ours.onnx")
        row.ours = int8_products(folder / "ours.onnx", shapes)
    except Onnx24Error as err:
        row.why_ours = str(err).splitlines()[0][:160]
    np.savez(folder / "calib.npz", **feeds)
    command = [python, "-c", MODELOPT, *(str(folder / n) for n in ("float.onnx", "calib.npz"))]
    done = subprocess.run(
        [*command, str(folder / "theirs.onnx")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode or not (folder / "theirs.onnx").exists():
        row.why_theirs = (done.stderr.strip().splitlines() or ["no output"])[-1][:160]
        return row
    try:
        row.theirs = int8_products(folder / "theirs.onnx", shapes)
    except Onnx24Error as err:
        row.why_theirs = str(err).splitlines()[0][:160]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modelopt-python", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for path in sorted(args.folder.rglob("*.onnx"))[: args.limit]:
        with tempfile.TemporaryDirectory() as folder:
            name = str(path.relative_to(args.folder))
            row = judge(path, name, Path(folder), args.modelopt_python)
        if row is None:
            continue
        rows.append(row)
        verdict = "" if row.holds else "  <-- fewer"
        print(f"{row.ours!s:>5} {row.theirs!s:>5}  {row.model}{verdict}", flush=True)
        for who, why in (("ours", row.why_ours), ("theirs", row.why_theirs)):
            if why:
                print(f"             {who}: {why}", flush=True)
        if args.out:
            args.out.write_text(json.dumps([asdict(each) for each in rows], indent=1) + "\n")
    print(f"{sum(row.holds for row in rows)} of {len(rows)} models have at least as many")
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
