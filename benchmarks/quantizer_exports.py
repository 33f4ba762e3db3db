"""What six quantizers write of one small trained net, in ten forms, through lint, lint --fix, lint
--symmetric and TensorRT-RTX. Needs the extra `torch` and tensorrt-rtx, and no GPU.

python benchmarks/quantizer_exports.py FOLDER [--only NAME …] [--markdown FILE]

Each quantizer gets a virtual environment in FOLDER, pinned, over the packages of this one. `--fix`
promises the same outputs, bit for bit; `--symmetric` may move a value by half of the old and half
of the new step at each pair, so that its distance from what the quantizer wrote is compared with
the quantizer's own from the float net.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ONNXSCRIPT = ("onnxscript", "onnx_ir")
PINS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime==1.32.0",),
    "modelopt": (
        "nvidia-modelopt==0.47.0", "omegaconf", "pulp", "pydantic", "pydantic_core",
        "annotated_types", "typing_inspection", "antlr4-python3-runtime==4.9.3",
        "nvidia-ml-py", "regex", "safetensors", "ninja", "PyYAML", "rich", "tqdm",
        "onnxconverter_common", "onnxslim", "cppimport", "polygraphy", "lief", *ONNXSCRIPT,
    ),
    "aimet": (
        "aimet-onnx==2.42.0", "Jinja2", "MarkupSafe", "PyYAML", "jsonschema", "referencing",
        "rpds_py", "jsonschema_specifications", "attrs", "onnx2torch", "osqp", "pybind11",
        "scikit-learn", "joblib", "threadpoolctl", "psutil", "pandas", "pytz", "python-dateutil",
        "six", "tzdata", "bokeh", "hvplot", "tqdm", *ONNXSCRIPT,
    ),
    "quark": (
        "amd-quark==0.13", "onnx==1.21.0", "onnxslim", "ninja", "zstandard", "sentencepiece",
        "evaluate", "plotly", "joblib", "pandas", "pydantic", "pydantic_core", "annotated_types",
        "typing_inspection", "psutil", "rich", "datasets", "python-dateutil", "six", "pytz",
        "tqdm", *ONNXSCRIPT,
    ),
    "brevitas": (
        "brevitas==0.13.4", "dependencies==2.0.1", "unfoldNd", "sympy", "mpmath", "packaging",
        "setuptools<81", "onnxoptimizer", *ONNXSCRIPT,
    ),
    "torchao": ("torchao==0.18.0", *ONNXSCRIPT),
}  # fmt: skip
TARGET = "sm86-rtx1"
SHAPE = (1, 3, 16, 16)


# --- the net -------------------------------------------------------------------------------
def _net(torch: Any, layers: Any = None) -> Any:
    """layers: torch.nn, or a quantizer's layers of the same names."""
    nn = torch.nn
    layers = layers or nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = layers.Conv2d(3, 16, 3, padding=1)
            self.conv2 = layers.Conv2d(16, 16, 3, padding=1)
            self.conv3 = layers.Conv2d(16, 32, 3, padding=1, stride=2)
            self.fc = layers.Linear(32 * 16, 16)
            self.relu1, self.relu2, self.relu3 = (layers.ReLU() for _ in range(3))
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Any) -> Any:
            x = self.relu1(self.conv1(x))
            x = self.relu2(self.conv2(x) + x)
            x = self.pool(self.relu3(self.conv3(x)))
            return self.fc(torch.flatten(x, 1))

    return Net()


def make_net(folder: Path) -> None:
    """net.pt, net.onnx and samples.npz: a net that has learned to tell 16 noisy patterns apart."""
    import torch

    torch.manual_seed(0)
    patterns = torch.randn(16, *SHAPE[1:])
    labels = torch.randint(0, 16, (512,))
    images = patterns[labels] + 0.7 * torch.randn(512, *SHAPE[1:])
    net = _net(torch)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for start in range(0, 512, 32):
        rows = slice(start, start + 32)
        loss = torch.nn.functional.cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(net.state_dict(), folder / "net.pt")
    samples = images[:64].numpy()
    np.savez(folder / "samples.npz", x=samples)
    _export(torch, net.eval(), folder / "net.onnx", opset_version=17)


def _export(torch: Any, net: Any, path: Path, **options: Any) -> None:
    example = torch.zeros(SHAPE)
    torch.onnx.export(
        net, (example,), str(path), input_names=["x"], output_names=["y"], dynamo=False, **options
    )


# --- the quantizers, each in its own environment ----------------------------------------------
class _Reader:
    """Samples one by one, as ONNX Runtime's and Quark's calibration asks for them."""

    def __init__(self, samples: np.ndarray) -> None:
        self._rows = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"x": row[None]}

    def rewind(self) -> None:
        pass


def _onnxruntime(folder: Path, samples: np.ndarray, out: Path, *, unsigned: bool = False) -> None:
    from onnxruntime import quantization as q

    class Reader(_Reader, q.CalibrationDataReader):  # type: ignore[misc, name-defined]
        pass

    options: dict[str, Any] = {"per_channel": True}
    if unsigned:
        options = {
            "activation_type": q.QuantType.QUInt8,
            "weight_type": q.QuantType.QUInt8,
            "extra_options": {"UseQDQContribOps": True},
        }
    q.quantize_static(folder / "net.onnx", out, Reader(samples), **options)


def _modelopt(folder: Path, samples: np.ndarray, out: Path, *, dtype: str = "fp32") -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(folder / "net.onnx"),
        calibration_data={"x": samples[:1]},
        calibration_eps=["cpu"],
        high_precision_dtype=dtype,
        output_path=str(out),
    )


def _aimet(folder: Path, samples: np.ndarray, out: Path) -> None:
    import onnx
    from aimet_onnx import QuantizationSimModel

    sim = QuantizationSimModel(
        onnx.load(folder / "net.onnx"),
        param_type="int8",
        activation_type="int8",
        providers=["CPUExecutionProvider"],
    )
    sim.compute_encodings([{"x": row[None]} for row in samples])
    onnx.save(sim.to_onnx_qdq(), out)


def _quark(folder: Path, samples: np.ndarray, out: Path, *, config: str = "A8W8") -> None:
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    made = ModelQuantizer(Config(global_quant_config=get_default_config(config)))
    made.quantize_model(str(folder / "net.onnx"), str(out), _Reader(samples))


def _brevitas(folder: Path, samples: np.ndarray, out: Path, *, dynamo: bool = False) -> None:
    import torch
    from brevitas import nn as qnn
    from brevitas.export import export_onnx_qcdq
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    class Layers:
        @staticmethod
        def Conv2d(*sizes: int, **options: Any) -> Any:
            return qnn.QuantConv2d(
                *sizes, weight_quant=Int8WeightPerChannelFloat,
                input_quant=Int8ActPerTensorFloat, **options,
            )  # fmt: skip

        @staticmethod
        def Linear(*sizes: int) -> Any:
            return qnn.QuantLinear(
                *sizes, bias=True, weight_quant=Int8WeightPerChannelFloat,
                input_quant=Int8ActPerTensorFloat,
            )  # fmt: skip

        ReLU = qnn.QuantReLU

    net = _net(torch, Layers)
    net.load_state_dict(torch.load(folder / "net.pt"), strict=False)
    net.train()
    with torch.no_grad():  # ranges are averaged over what is seen
        net(torch.from_numpy(samples))
    net.eval()
    with torch.no_grad():
        net(torch.zeros(SHAPE))
    export_onnx_qcdq(
        net, args=torch.zeros(SHAPE), export_path=str(out), dynamo=dynamo,
        opset_version=18 if dynamo else 17, input_names=["x"], output_names=["y"],
    )  # fmt: skip


def _torchao(folder: Path, samples: np.ndarray, out: Path) -> None:
    """PT2E's symmetric quantization, the reference representation of which is decomposed Q/DQ."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    net = _net(torch)
    net.load_state_dict(torch.load(folder / "net.pt"))
    example = (torch.from_numpy(samples[:1]),)
    graph = torch.export.export(net.eval(), example).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    for row in samples:
        prepared(torch.from_numpy(row[None]))
    converted = convert_pt2e(prepared)
    program = torch.onnx.export(
        converted, example, input_names=["x"], output_names=["y"], dynamo=True
    )
    program.save(str(out))


QUANTIZERS: dict[str, Callable[[Path, np.ndarray, Path], None]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime, UINT8 of com.microsoft": partial(_onnxruntime, unsigned=True),
    "modelopt": _modelopt,
    "modelopt, float16": partial(_modelopt, dtype="fp16"),
    "aimet": _aimet,
    "quark": _quark,
    "quark, XINT8": partial(_quark, config="XINT8"),
    "brevitas": _brevitas,
    "brevitas, dynamo": partial(_brevitas, dynamo=True),
    "torchao": _torchao,
}
"""By the package, a key of PINS, and what of its options is not the default's."""


def package(name: str) -> str:
    return name.split(",")[0]


def environment(folder: Path, name: str) -> Path:
    """The Python of a quantizer's environment, made where it is missing."""
    home = folder / name
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=False, symlinks=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = home / "lib" / version / "site-packages"
        below = sysconfig.get_path("purelib")
        (packages / "zz_below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        subprocess.run([*command, str(packages), *PINS[name]], check=True)
    return python


# --- what onnx24 makes of it ------------------------------------------------------------------
def _run(path: Path, samples: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: row[None]})[0] for row in samples])


def _error(got: np.ndarray, want: np.ndarray) -> float:
    wide = want.astype(np.float64)
    return float(np.linalg.norm(got - wide) / np.linalg.norm(wide))


def _onnx24(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("onnx24")), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def findings(path: Path) -> dict[str, int]:
    """Code → how often lint finds it."""
    out = _onnx24("lint", str(path), "--target", TARGET, "--json").stdout
    said = json.loads(out)
    listed = said.get("error", said)["diagnostics"]
    return dict(Counter(each["code"] for each in listed))


def builds(path: Path) -> str:
    engine = path.with_suffix(".engine")
    run = _onnx24("build", str(path), "--backend", "tensorrt-rtx", "--target", TARGET,
                  "--engine", str(engine))  # fmt: skip
    if run.returncode == 0:
        return "yes, UINT8 as INT8" if "O24-259" in run.stderr else "yes"
    return "no"


def _steps(path: Path) -> dict[str, tuple[float, float]]:
    """Of each activation's QuantizeLinear: its step, and the largest magnitude in its range."""
    import onnx

    graph = onnx.load(path).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    found = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            step, zero = (constants[name] for name in node.input[1:3])
            limits = np.iinfo(zero.dtype)
            largest = max(abs(limits.min - int(zero)), abs(limits.max - int(zero)))
            found[node.name] = float(step), float(step) * min(largest, 255)
            if (zero.dtype, int(zero)) in ((np.int8, 0), (np.uint8, 128)):
                found[node.name] = float(step), 127 * float(step)
    return found


def follows_the_rule(path: Path, symmetric: Path) -> bool:
    """Whether every activation that is quantized still has 127 steps over the same magnitudes."""
    before, after = _steps(path), _steps(symmetric)
    return all(
        abs(step - before[name][1] / 127) <= 1e-6 * step
        for name, (step, _) in after.items()
        if name in before
    ) and bool(set(before) & set(after))


def judge(path: Path, folder: Path, samples: np.ndarray) -> dict[str, Any]:
    """The row of one export."""
    fixed, symmetric = path.with_suffix(".fix.onnx"), path.with_suffix(".symmetric.onnx")
    _onnx24("lint", str(path), "-o", str(fixed), "--fix", "--target", TARGET)
    _onnx24("lint", str(path), "-o", str(symmetric), "--fix", "--symmetric", "--target", TARGET)
    want, real = _run(path, samples), _run(folder / "net.onnx", samples)
    return {
        "found": findings(path),
        "built": builds(path),
        "exact": bool(np.array_equal(_run(fixed, samples), want)),
        "left": findings(symmetric),
        "built_after": builds(symmetric),
        "rule": follows_the_rule(path, symmetric),
        "error": _error(want, real),
        "error_after": _error(_run(symmetric, samples), real),
        "moved": _error(_run(symmetric, samples), want),
    }


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    head = (
        "| quantizer | lint finds | builds | --fix: same bits | --symmetric leaves "
        "| steps by the rule | builds "
        "| error of the export | after | moved |"
    )
    lines = [
        "# Exports of six quantizers\n",
        "`python benchmarks/quantizer_exports.py FOLDER`, tensorrt-rtx for sm86. Errors are "
        "relative (L2), of the outputs of 64 samples: the export's and the repaired export's "
        "against the float net, and (moved) of the repaired against the export. The rule: 127 "
        "steps over the largest magnitude of the quantizer's range. What --symmetric leaves are "
        "warnings (docs/codes.md).\n",
        head,
        "|---" * 10 + "|",
    ]
    for name, row in rows.items():
        pin = next(pin for pin in PINS[package(name)] if "==" in pin)
        title = pin + name.removeprefix(package(name))
        if "failed" in row:
            lines.append(f"| {title} | not run: {row['failed']} |" + " |" * 8)
            continue
        said = [", ".join(f"{code} ×{n}" for code, n in sorted(row[key].items())) or "nothing"
                for key in ("found", "left")]  # fmt: skip
        numbers = [f"{100 * row[key]:.2f} %" for key in ("error", "error_after", "moved")]
        exact = "yes" if row["exact"] else "no"
        rule = "yes" if row["rule"] else "no"
        cells = [title, said[0], row["built"], exact, said[1], rule, row["built_after"], *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _export_path(folder: Path, name: str) -> Path:
    return folder / f"net.{name.replace(', ', '-').replace(' ', '_')}.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(QUANTIZERS), default=list(QUANTIZERS))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--export", choices=list(QUANTIZERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.export:
        samples = np.load(folder / "samples.npz")["x"]
        QUANTIZERS[given.export](folder, samples, _export_path(folder, given.export))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "net.onnx").exists():
        make_net(folder)
    samples = np.load(folder / "samples.npz")["x"]
    rows: dict[str, dict[str, Any]] = {}
    for name in given.only:
        out = _export_path(folder, name)
        try:
            python = environment(folder, package(name))
            command = [str(python), __file__, str(folder), "--export", name]
            if not out.exists():
                subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
            rows[name] = judge(out, folder, samples)
        except (subprocess.CalledProcessError, OSError, ValueError) as err:
            said = (getattr(err, "stderr", "") or str(err)).strip().splitlines()
            rows[name] = {"failed": said[-1][:200] if said else type(err).__name__}
        print(name, json.dumps(rows[name]), flush=True)
    text = markdown(rows)
    if given.markdown:
        given.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
