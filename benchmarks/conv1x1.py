"""MatMul against 1x1 convolution, on the layers that TensorRT-RTX makes of them.

    python benchmarks/conv1x1.py [--models SHARED/models] [--markdown FILE]

No GPU is needed and no time is measured: the builder's layer list is counted. For each model and
form: kernels (layers that run on the GPU), reformats (kernels that only copy or reorder), and
traffic (what all kernels read and write, constants included). Batch sizes are fixed, so that every
size in the list is a number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24 import targets
from onnx24.backends import BuildResult, get
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.data import load_data

TARGET = "sm86-rtx1"
FORMS = ("MatMul", "tokens", "nchw", "conv1d")
FP16 = "cast16"
INT8 = "upgrade-opset{to=13},qdq,fold-qdq"


@dataclass(frozen=True)
class Counts:
    """Of one engine. traffic_bytes: of all kernels together."""

    kernels: int
    reformats: int
    traffic_bytes: int

    @classmethod
    def of(cls, built: BuildResult) -> Counts:
        kernels = [layer for layer in built.layers if layer.is_kernel]
        return cls(
            len(kernels),
            sum(layer.is_reformat for layer in kernels),
            sum(layer.traffic_bytes() for layer in kernels),
        )


def feed_forward(path: Path, *, tokens: int, k: int, inner: int, depth: int) -> Path:
    """`depth` feed-forward blocks with GELU and residual sums, without norms: the best case for
    sharing reshapes."""
    rng = np.random.default_rng(0)
    lines, weights, x = [], {}, "x"
    for i in range(depth):
        weights[f"up{i}"] = (rng.standard_normal((k, inner)) / np.sqrt(k)).astype(np.float32)
        weights[f"down{i}"] = (rng.standard_normal((inner, k)) / np.sqrt(k)).astype(np.float32)
        weights[f"b{i}"] = np.zeros(inner, np.float32)
        y = "y" if i == depth - 1 else f"s{i}"
        lines += [
            f"u{i} = MatMul({x}, up{i})", f"v{i} = Add(u{i}, b{i})", f"d{i} = Div(v{i}, root)",
            f"e{i} = Erf(d{i})", f"f{i} = Add(e{i}, one)", f"m{i} = Mul(v{i}, f{i})",
            f"g{i} = Mul(m{i}, half)", f"w{i} = MatMul(g{i}, down{i})", f"{y} = Add(w{i}, {x})",
        ]  # fmt: skip
        x = y
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[4,{tokens},{k}] x) => '
        f"(float[4,{tokens},{k}] y) <float root = {{1.4142135}}, float one = {{1.0}}, "
        f"float half = {{0.5}}> {{ {' '.join(lines)} }}"
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in weights.items())
    onnx.save_model(proto, path)
    return path


def with_batch(source: Path, path: Path, batch: int) -> Path:
    """The model with `batch` for each unknown first dimension and 8 for the other unknown ones."""
    proto = onnx.load(source)
    for value in proto.graph.input:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0:
                dim.dim_value = batch if i == 0 else 8
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value <= 0:
                dim.Clear()
    onnx.save_model(onnx.shape_inference.infer_shapes(proto, data_prop=True), path)
    return path


def counts(source: Path, form: str, after: str, scratch: Path) -> Counts:
    """Compile and build in one form; `after`: the passes for the type."""
    model = Model.load(source)
    rewrite = "" if form == "MatMul" else f"matmul-to-conv1x1{{when=always form={form}}},"
    manager.run(
        model,
        pipeline.parse(f"canonicalize,{rewrite}{after}"),
        target=targets.load(TARGET),
        calibration=load_data("random:4", model),
    )
    out = scratch / "out.onnx"
    model.save(out)
    engine = scratch / "out.engine"
    built = get("tensorrt-rtx").build(out, targets.load(TARGET), engine=engine, timeout_s=300)
    return Counts.of(built)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[1] / "fixtures" / "models"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sources = {
            "feed-forward, 2 blocks, 4×128×768×3072": feed_forward(
                scratch / "ffn.onnx", tokens=128, k=768, inner=3072, depth=2
            ),
            "vit (fixture), batch 8": with_batch(here / "vit.onnx", scratch / "vit.onnx", 8),
        }
        named = {
            "mnistfc_256x4": "zoo/mnistfc_256x4.onnx",
            "mjp_apollo_policy": "zoo/mjp_apollo_policy.onnx",
            "magika_std_v3_3": "zoo/magika_std_v3_3.onnx",
            "deeploy_cct_2_opset20": "structural/deeploy_cct_2_opset20.onnx",
        }
        for name, file in named.items() if args.models else ():
            path = scratch / f"{name}.onnx"
            sources[name] = with_batch(args.models / file, path, 8)
        for name, source in sources.items():
            for kind, after in (("fp16", FP16), ("int8", INT8)):
                base = None
                for form in FORMS:
                    try:
                        found = counts(source, form, after, scratch)
                    except Exception as err:  # noqa: BLE001 - one line of the table, not the end
                        cells = [name, kind, form, f"not built: {err}"[:90], "", "", ""]
                    else:
                        base = base or found
                        cells = [
                            name, kind, form, str(found.kernels), str(found.reformats),
                            f"{found.traffic_bytes / 1e6:.2f}",
                            f"{found.traffic_bytes / base.traffic_bytes:.2f}",
                        ]  # fmt: skip
                    rows.append(cells)
                    print(" | ".join(cells), flush=True)
    if args.markdown:
        args.markdown.write_text(_page(rows), encoding="utf-8")


_READING = """How to read it:
- Attention between the products (vit, cct) is what the convolution form costs: heads are split
  and joined by reshapes that a MatMul absorbs and a convolution does not. There it reads and
  writes 1.1 to 1.5 times as much. So the pass is off by default where MatMul itself can be sparse.
- Where products follow each other with elementwise nodes between (feed-forward), one pair of
  reshapes is shared and the convolution form costs nothing.
- tokens is the cheapest form or within 2 % of it.
- int8 of models with a batch of 1 (mnistfc, mjp) is not comparable: `qdq` leaves matrix-vector
  products in float (O24-210) and does not see that a convolution over one token is one."""


def _page(rows: list[list[str]]) -> str:
    head = ["model", "type", "form", "kernels", "reformats", "traffic [MB]", "against MatMul"]
    lines = [
        "# MatMul and 1x1 convolution in TensorRT-RTX's layer lists",
        "",
        f"Made by `benchmarks/conv1x1.py`, {get('tensorrt-rtx').available().version} for "
        f"{TARGET}, no GPU: layers are counted, no time is measured. Traffic is what the listed "
        "kernels read and write, constants included; caches are not considered.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        _READING,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
