"""Mutated models against `onnx24 check`: none may crash it, hang it, or fill the machine.

python benchmarks/fuzz_check.py [--count 10000] [--seed 0] [--models FOLDER] [--keep FOLDER]

Seeds are the fixture models, small generated ones, and every model of FOLDER. Each case mutates the
bytes (flips, insertions, cuts, copied pieces, changed lengths), the wire format (fields doubled,
dropped, swapped, nested), or the document (names, operators, attributes, shapes, types, edges,
external data), or several of these one after the other. A case fails on a fault of onnx24 (exit
code 70), an exit code outside the contract, or more than 5 s; the run fails where a process took
more than 1 GiB. Same seed, same cases. Exit code 1 where one failed; --keep writes those files.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx24.gate.sandbox import Sandbox
from onnx24.ir import wire
from onnx24.report.checked import Checked
from onnx24.report.policy import read_policy
from onnx24.testing.generate import mlp

ROOT = Path(__file__).resolve().parents[1]
MAX_SEED_BYTES = 1 << 20
SECONDS, MIB = 5.0, 1024
CONTRACT = (0, 1, 2)
"""What a model alone can lead to: no backend is asked, and a fault of ours is a failure."""


# --- mutations of bytes -----------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        out[_position(out, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    start = _position(out, rng)
    for i in range(start, min(start + rng.choice((1, 2, 8, 64)), len(out))):
        out[i] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = _position(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 9, 100))) + data[at:]


def remove(data: bytes, rng: random.Random) -> bytes:
    at = _position(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 9, 100)) :]


def move(data: bytes, rng: random.Random) -> bytes:
    a, b, size = _position(data, rng), _position(data, rng), rng.choice((8, 64, 512))
    return data[:b] + data[a : a + size] + data[b:]


def _position(data: bytes | bytearray, rng: random.Random) -> int:
    """Mostly where structure is: at the beginning and the end, not amid weights."""
    span = min(len(data), 2048)
    place = rng.random()
    if place < 0.4:
        return rng.randrange(span)
    if place < 0.7:
        return len(data) - 1 - rng.randrange(span)
    return rng.randrange(len(data))


# --- mutations of the wire format --------------------------------------------------------------

Field = tuple[int, int, int]


def _fields(data: bytes) -> list[Field]:
    buf, pos, found = memoryview(data), 0, []
    while pos < len(buf):
        start = pos
        tag, pos = wire.read_varint(buf, pos, len(buf))
        body, pos = wire.skip(buf, pos, len(buf), tag & 7)
        found.append((start, body, pos))
    return found


def rewire(data: bytes, rng: random.Random, depth: int = 0) -> bytes:
    """Change the list of fields of the message, or of one inside it."""
    try:
        fields = _fields(data)
    except wire.WireError:
        return flip(data, rng) if data else data
    if not fields:
        return data + rng.randbytes(2)
    start, body, end = rng.choice(fields)
    if depth < 6 and rng.random() < 0.75:
        inner = [f for f in fields if f[2] - f[1] > 2 and data[f[0]] & 7 == 2]
        if inner:
            start, body, end = rng.choice(inner)
            tag, _ = wire.read_varint(memoryview(data), start, len(data))
            new = rewire(data[body:end], rng, depth + 1)
            return data[:start] + wire.varint(tag) + wire.varint(len(new)) + new + data[end:]
    what = rng.randrange(6)
    piece = data[start:end]
    if what == 0:
        return data[:start] + data[end:]
    if what == 1:
        return data[:end] + piece * rng.choice((1, 1, 5, 200)) + data[end:]
    if what == 2:
        return data[:start] + data[end:] + piece
    if what == 3:
        number = rng.randrange(1, 30) << 3 | rng.choice((0, 1, 2, 5))
        return data[:start] + wire.varint(number) + data[body:]
    if what == 4:
        huge = wire.varint(rng.choice((1 << 31, (1 << 63) - 1, (1 << 64) - 1, len(data) * 2)))
        return data[:start] + wire.varint(rng.randrange(1, 30) << 3) + huge + data[start:]
    length = wire.varint(rng.randrange(len(data) * 2 + 1))
    return data[: start + 1] + length + data[body:]


# --- mutations of the document ----------------------------------------------------------------


def restructure(data: bytes, rng: random.Random) -> bytes:
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # noqa: BLE001 - an earlier mutation broke it
        return rewire(data, rng)
    try:
        for _ in range(rng.choice((1, 1, 2, 5))):
            rng.choice(_STRUCTURAL)(model, rng)
        return model.SerializeToString()
    except (TypeError, ValueError):  # names that an earlier mutation made bytes
        return rewire(data, rng)


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node) if model.graph.node else model.graph.node.add()


def _tensor(model: onnx.ModelProto, rng: random.Random) -> TensorProto:
    return (
        rng.choice(model.graph.initializer)
        if model.graph.initializer
        else model.graph.initializer.add()
    )


def _names(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in (*node.input, *node.output)] or ["a"]


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = rng.choice((node.input, node.output))
    odd = ("", "\x1b[2J", "a/b::c", "\u202e", "x" * 3000, "%s{}", rng.choice(_names(model)))
    if names:
        names[rng.randrange(len(names))] = rng.choice(odd)


def _op(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(_OPS)
    if rng.random() < 0.2:
        node.domain = rng.choice(("", "ai.onnx.ml", "com.microsoft", "nope"))


def _inputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input and rng.random() < 0.5:
        del node.input[rng.randrange(len(node.input)) :]
    else:
        node.input.extend(rng.choices(_names(model), k=rng.choice((1, 3, 50))))


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    name = rng.choice(
        ("axis", "perm", "group", "pads", "strides", "transB", "to", "value", "alpha")
    )
    value = rng.choice(
        (0, -1, 1 << 62, -(1 << 63), [0, 0, 0], [-1, 1 << 40], [9, 9, 9, 9], 1.5, float("nan"), "s")
    )
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    if rng.random() < 0.2:
        node.attribute[-1].type = rng.choice(list(AttributeProto.AttributeType.values()))


def _dims(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    odd = (0, -1, 1, 3, 4, 7, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1)
    if tensor.dims and rng.random() < 0.6:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(odd)
    elif rng.random() < 0.5:
        tensor.dims.extend(rng.choices(odd, k=rng.choice((1, 4, 40))))
    else:
        del tensor.dims[:]


def _dtype(model: onnx.ModelProto, rng: random.Random) -> None:
    _tensor(model, rng).data_type = rng.choice((*TensorProto.DataType.values(), 99, -1))


def _values(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    what = rng.randrange(4)
    if what == 0:
        tensor.raw_data = rng.randbytes(rng.choice((0, 1, 4, 4096)))
    elif what == 1:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([float("nan"), float("inf"), 1.0] * rng.choice((1, 400)))
    elif what == 2:
        tensor.int32_data.extend([1 << 30, -5])
    else:
        tensor.string_data.extend([b"\xff\x00"])


def _external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    places = ("../../etc/passwd", "/etc/passwd", "", "a\x00b", ".", "x" * 5000, "/onnx24/embedded")
    tensor.external_data.add(key="location", value=rng.choice(places))
    for key in ("offset", "length"):
        if rng.random() < 0.7:
            value = rng.choice(("0", "-1", "1e9", "", str(1 << 70), "4096", "x"))
            tensor.external_data.add(key=key, value=value)


def _shape(model: onnx.ModelProto, rng: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not values:
        return
    value = rng.choice(values)
    shape = value.type.tensor_type.shape
    if rng.random() < 0.3:
        value.ClearField("type")
    elif shape.dim and rng.random() < 0.7:
        dim = rng.choice(shape.dim)
        dim.dim_value = rng.choice((0, -1, 1 << 40, 3))
    else:
        shape.dim.add(dim_param="n")


def _edges(model: onnx.ModelProto, rng: random.Random) -> None:
    """A cycle, a shadowed name, another order."""
    nodes = list(model.graph.node)
    what = rng.randrange(3)
    if what == 0 and nodes:
        node = rng.choice(nodes)
        if node.input and node.output:
            node.input[0] = node.output[0]
    elif what == 1:
        rng.shuffle(nodes)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    elif nodes:
        model.graph.node.extend([rng.choice(nodes)] * rng.choice((1, 30)))


def _nest(model: onnx.ModelProto, rng: random.Random) -> None:
    """The graph becomes the body of an If of itself."""
    for _ in range(rng.choice((1, 3, 30))):
        body = onnx.GraphProto()
        body.CopyFrom(model.graph)
        if body.ByteSize() > 1 << 19:
            return
        del body.input[:]
        node = model.graph.node.add(op_type="If", name="if")
        node.input.append(rng.choice(_names(model)))
        node.output.append("nested")
        node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g.CopyFrom(body)


def _function(model: onnx.ModelProto, rng: random.Random) -> None:
    node = helper.make_node("F", ["a"], ["b"], domain="f")
    model.functions.append(
        helper.make_function("f", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    )
    model.opset_import.append(helper.make_opsetid("f", 1))
    target = _node(model, rng)
    target.op_type, target.domain = "F", "f"


def _opset(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.opset_import:
        model.opset_import[0].version = rng.choice((0, 1, 6, 9, 13, 21, 99, -1, 1 << 62))
    if rng.random() < 0.2:
        del model.opset_import[:]


def _metadata(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice(('[["","w"]]', "[[1,2,3]]", "{}", "[" * 3000, "null", "[[null,null]]"))
    key = rng.choice(("onnx24.sparse24", "onnx24.content.sha256", "onnx24.version"))
    model.metadata_props.add(key=key, value=value)


_STRUCTURAL: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _rename, _op, _inputs, _attribute, _dims, _dtype, _values, _external, _shape, _edges, _nest,
    _function, _opset, _metadata,
)  # fmt: skip
_OPS = (
    "QuantizeLinear", "DequantizeLinear", "Conv", "ConvTranspose", "Gemm", "MatMul", "Transpose",
    "Reshape", "Identity", "Cast", "Loop", "If", "Scan", "Einsum", "LSTM", "Constant", "Expand",
    "Tile", "Concat", "Split", "QLinearConv", "BatchNormalization", "Nope",
)  # fmt: skip
MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip, overwrite, cut, insert, remove, move, rewire, rewire, restructure, restructure,
)  # fmt: skip


# --- the run ----------------------------------------------------------------------------------


def seeds(folder: Path | None) -> list[bytes]:
    found = [mlp([64, 64, 32]).SerializeToString(), mlp([8, 4]).SerializeToString()]
    paths = sorted((ROOT / "fixtures" / "models").glob("*.onnx"))
    if folder is not None:
        paths += sorted(folder.rglob("*.onnx"))
    return found + [p.read_bytes() for p in paths if 0 < p.stat().st_size <= MAX_SEED_BYTES]


def cases(count: int, seed: int, models: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each case; a case depends on its number and the seed alone."""
    for i in range(count):
        rng = random.Random(f"{seed}/{i}")
        data, names = rng.choice(models), []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            mutation = rng.choice(MUTATIONS)
            names.append(mutation.__name__)
            data = mutation(data, rng) if data else rng.randbytes(8)
        yield f"{i}:{'+'.join(names)}", data


def run(
    count: int, seed: int, models: list[bytes], *, jobs: int = 2, keep: Path | None = None
) -> tuple[Counter[str], list[str], float]:
    """(how often each status and code, what failed, the slowest case [s])."""
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    policy = read_policy("registry-strict")
    with (
        tempfile.TemporaryDirectory(prefix="onnx24-fuzz-") as folder,
        Sandbox(policy, "sm86-trt10", jobs=jobs) as sandbox,
    ):
        warm = Path(folder, "warm.onnx")
        warm.write_bytes(models[0])
        list(sandbox.judge_all([(str(warm), "warm")] * jobs))  # what starts up is not timed
        todo = cases(count, seed, models)
        while batch := [case for _, case in zip(range(100), todo, strict=False)]:
            paths = []
            for i, (_, data) in enumerate(batch):
                path = Path(folder, f"{i}.onnx")
                path.write_bytes(data)
                paths.append(str(path))
            begin = time.monotonic()
            for (name, data), result in zip(
                batch, sandbox.judge_all([(p, "case.onnx") for p in paths]), strict=True
            ):
                seconds, begin = time.monotonic() - begin, time.monotonic()
                slowest = max(slowest, seconds)
                statuses[_kind(result)] += 1
                if why := _failure(result, seconds):
                    failures.append(f"{name}: {why}")
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{name.split(':')[0]}.onnx").write_bytes(data)
    return statuses, failures, slowest


def _kind(result: Checked) -> str:
    if not result.problem:
        return result.status
    problem = result.problem[0]
    crashed = " (ended by a signal)" if "ended by SIG" in problem.message else ""
    return f"{result.status} {problem.code}{crashed}"


def _failure(result: Checked, seconds: float) -> str:
    if result.exit_code not in CONTRACT:
        problems = "; ".join(item.render() for item in result.problem)
        return f"exit code {result.exit_code}: {problems}"
    return f"took {seconds:.1f} s" if seconds > SECONDS else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    begin = time.monotonic()
    models = seeds(options.models)
    statuses, failures, slowest = run(
        options.count, options.seed, models, jobs=options.jobs, keep=options.keep
    )
    # RUSAGE_CHILDREN: the largest of all descendants that were waited for.
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    if peak_mib > MIB:
        failures.append(f"a process took {peak_mib:.0f} MiB")
    for kind, number in statuses.most_common():
        print(f"{number:7,}  {kind}")
    print(
        f"{options.count:,} cases of {len(models)} models in {time.monotonic() - begin:.0f} s; "
        f"slowest {slowest:.2f} s, largest process {peak_mib:.0f} MiB; {len(failures)} failures"
    )
    for failure in failures[:50]:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
