"""A model larger than the memory that may be used: peak memory and speed of `onnx24 prune24`.

    python benchmarks/huge_model.py [--gib 6] [--dtype float32 float16] [--rounds 5] [--cold]
                                    [--layout external embedded] [--others] [--folder DIR]
                                    [--provenance auto|full|fast|off ...]

Generates a model with external data (MatMul, Gemm and Conv weights), prunes it by magnitude as a
process, and copies its data file with shutil.copyfile, in turn, several times, each after a sync
and with the input in the page cache (`--cold`: dropped from it); medians are compared. Peaks are
those of the process: VmHWM, which counts mapped pages, and the largest RssAnon that was seen in
/proc/PID/status. `--provenance` is the command's: what of input and output is digested (auto: what
users get). `--others` also runs inspect, check24 and canonicalize. Writes one line of markdown a
row, and the shortest of all runs below it. Needs about three times the size on disk; Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.01


@dataclass(frozen=True)
class Usage:
    """seconds: from start to end. cpu_s: user and system time of all threads. peak_mib: VmHWM or,
    where that is larger, ru_maxrss."""

    seconds: float
    cpu_s: float
    peak_mib: float
    anonymous_mib: float


def layers(size_bytes: int, itemsize: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(operator, weight shape) of about `size_bytes` in all: two thirds MatMul of a transformer's
    feed-forward, the rest Gemm with transB and 3×3 Conv."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("MatMul", (4096, 8192)),
        ("MatMul", (8192, 4096)),
        ("Gemm", (4096, 4096)),
        ("Conv", (1024, 1024, 3, 3)),
    ]
    total, i = 0, 0
    while total < size_bytes:
        op, shape = shapes[i % len(shapes)]
        yield op, shape
        total += int(np.prod(shape)) * itemsize
        i += 1


def generate(folder: Path, size_bytes: int, dtype: str, *, seed: int = 0) -> Path:
    """Write the model and its data file, one weight in memory at a time. Returns: its path."""
    kind = np.dtype(dtype)
    element = helper.np_dtype_to_tensor_dtype(kind)
    noise = np.random.default_rng(seed).standard_normal(1 << 26, np.float32)
    noise = (noise * np.float32(0.02)).astype(kind)
    nodes: list[onnx.NodeProto] = []
    initializers: list[TensorProto] = []

    def store(file, name: str, shape: tuple[int, ...]) -> str:
        count = int(np.prod(shape))
        start = 7919 * len(initializers) % (noise.size - count)
        file.write(bytes(-file.tell() % 4096))
        tensor = TensorProto(name=name, data_type=element, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "model.data", "offset": file.tell(), "length": count * kind.itemsize}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        file.write(noise[start : start + count].data)
        initializers.append(tensor)
        return name

    current = {"MatMul": "x", "Gemm": "g", "Conv": "c"}
    with open(folder / "model.data", "wb") as file:
        for i, (op, shape) in enumerate(layers(size_bytes, kind.itemsize)):
            inputs = [current[op], store(file, f"{op}{i}.weight", shape)]
            attributes: dict[str, object] = {}
            if op != "MatMul":
                inputs.append(store(file, f"{op}{i}.bias", shape[:1]))
                attributes = {"transB": 1} if op == "Gemm" else {"pads": [1, 1, 1, 1]}
            nodes.append(helper.make_node(op, inputs, [f"y{i}"], f"{op}{i}", **attributes))
            current[op] = f"y{i}"
    width = {"x": ["N", 4096], "g": ["N", 4096], "c": ["N", 1024, 8, 8]}
    out = {"MatMul": ["N", None], "Gemm": ["N", 4096], "Conv": ["N", 1024, 8, 8]}
    graph = helper.make_graph(
        nodes,
        "huge",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in width.items()],
        [helper.make_tensor_value_info(current[op], element, out[op]) for op in out],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def measure(arguments: list[str]) -> Usage:
    """Run the command line as a process and watch it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has its bytecode
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    peak = anonymous = 0
    while True:
        pid, status, resources = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        text = _status(process.pid)
        peak = max(peak, _kib(text, "VmHWM"))
        anonymous = max(anonymous, _kib(text, "RssAnon"))
        time.sleep(POLL_S)
    seconds = time.perf_counter() - begin
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(arguments)}: exit {process.returncode}\n{said}")
    cpu_s = resources.ru_utime + resources.ru_stime
    return Usage(seconds, cpu_s, max(peak, resources.ru_maxrss) / 1024, anonymous / 1024)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return ""


def _kib(status: str, key: str) -> int:
    found = re.search(key + r":\s+(\d+) kB", status)
    return int(found[1]) if found else 0


def _ready(path: Path, *, cold: bool) -> None:
    """Nothing waits to be written, and the file is in the page cache, or none of it is."""
    os.sync()
    with open(path, "rb", buffering=0) as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def copy(source: Path, target: Path) -> Usage:
    begin, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(source, target)
    return Usage(time.perf_counter() - begin, time.process_time() - cpu, 0.0, 0.0)


def compare(
    path: Path, data: Path, rounds: int, *, cold: bool, provenance: str
) -> tuple[list[Usage], list[Usage]]:
    """Copy and prune in turn."""
    copied, pruned = [], []
    beside = path.with_name("copy.data")
    out = path.with_name("pruned.onnx")
    for _ in range(rounds):
        _ready(data, cold=cold)
        copied.append(copy(data, beside))
        beside.unlink()
        _ready(data, cold=cold)
        arguments = ["prune24", str(path), "-o", str(out), "--provenance", provenance]
        pruned.append(measure(arguments))
        written = out.with_name("pruned.onnx.data")
        for file in (out, written):
            file.unlink(missing_ok=True)
    return copied, pruned


def others(path: Path) -> list[tuple[str, Usage]]:
    """What the commands need that only look, or change no weight."""
    out = path.with_name("other.onnx")
    pruned = path.with_name("pruned.onnx")
    commands = {
        "prune24": ["prune24", str(path), "-o", str(pruned)],
        "prune24 of a model that is 2:4": ["prune24", str(pruned), "-o", str(out)],
        "inspect": ["inspect", str(path)],
        "inspect, after prune24": ["inspect", str(pruned)],
        "check24, after prune24": ["check24", str(pruned), "-o", str(out)],
        "opt canonicalize": ["opt", str(path), "-o", str(out), "--pipeline", "canonicalize"],
        "opt canonicalize,prune24": [
            *("opt", str(path), "-o", str(out), "--pipeline", "canonicalize,prune24")
        ],
    }
    found = []
    for name, arguments in commands.items():
        found.append((name, measure(arguments)))
        for file in path.parent.glob("other.onnx*"):
            file.unlink()
    for file in path.parent.glob("pruned.onnx*"):
        file.unlink()
    return found


def embed(path: Path) -> Path:
    """The same model in one file, written without holding it in memory."""
    sys.path.insert(0, str(ROOT))
    from onnx24.ir.model import Model

    whole = path.with_name("whole.onnx")
    model = Model.load(path)
    model.save(whole, external="embed")
    path.with_name("model.data").unlink()
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gib", type=float, default=6.0, help="size of the data file [GiB]")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"])
    parser.add_argument("--layout", nargs="+", default=["external"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="with the input out of the page cache")
    parser.add_argument("--provenance", nargs="+", default=["auto"], help="as the command's")
    parser.add_argument("--others", action="store_true", help="measure other commands, too")
    parser.add_argument("--folder", type=Path, help="where the files go for the time being")
    args = parser.parse_args()
    for dtype in args.dtype:
        for layout in args.layout:
            with tempfile.TemporaryDirectory(dir=args.folder, prefix="onnx24-huge-") as folder:
                path = in_process(generate, Path(folder), int(args.gib * 2**30), dtype)
                data = path.with_name("model.data")
                if layout == "embedded":
                    path = data = in_process(embed, path)
                for provenance in args.provenance:
                    report(path, data, dtype, layout, provenance, args)


def in_process(function: Callable[..., Path], *arguments: object) -> Path:
    """In a process of its own: a child's ru_maxrss begins with the size of its parent."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def report(
    path: Path, data: Path, dtype: str, layout: str, provenance: str, args: argparse.Namespace
) -> None:
    size = data.stat().st_size
    cache = "cold" if args.cold else "warm"
    record = "" if provenance == "auto" else f", provenance {provenance}"
    if args.rounds:
        copied, pruned = compare(path, data, args.rounds, cold=args.cold, provenance=provenance)
        medians = [
            statistics.median(getattr(usage, key) for usage in runs)
            for runs in (copied, pruned)
            for key in ("seconds", "cpu_s")
        ]
        copy_s, copy_cpu_s, prune_s, prune_cpu_s = medians
        load = os.getloadavg()[0]
        print(
            f"| {layout} {dtype}, {size / 2**30:.2f} GiB, {cache}{record} "
            f"| {copy_s:.2f} ({copy_cpu_s:.2f}) | {prune_s:.2f} ({prune_cpu_s:.2f}) "
            f"| {copy_s / prune_s:.2f} | {max(u.peak_mib for u in pruned):.0f} "
            f"| {max(u.anonymous_mib for u in pruned):.0f} | {load:.1f} |",
            flush=True,
        )
        pairs = zip(copied, pruned, strict=True)
        spread = ", ".join(f"{a.seconds:.2f}/{b.seconds:.2f}" for a, b in pairs)
        print(f"  copy/prune24 [s]: {spread}", flush=True)
        least = [
            min(getattr(usage, key) for usage in runs)
            for key in ("seconds", "cpu_s")
            for runs in (copied, pruned)
        ]
        print(
            f"  shortest: {least[0]:.2f}/{least[1]:.2f} s, ratio {least[0] / least[1]:.2f}; "
            f"CPU {least[2]:.2f}/{least[3]:.2f} s",
            flush=True,
        )
    for name, usage in others(path) if args.others else []:
        print(
            f"| {name}, {layout} {dtype}, {size / 2**30:.2f} GiB | {usage.seconds:.2f} "
            f"| {usage.peak_mib:.0f} | {usage.anonymous_mib:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
