"""Reading what TensorRT says: severities, layers, sparsity, parser errors.

One reader serves trtexec's output and the log that our worker writes, because both put
`[V] [TRT] ` or a longer prefix of that kind in front of each message.

Source: log excerpts in NVIDIA/TensorRT issues 1403, 2169, 4054 and 4056 (older wording), OSS
samples/common/logging.h (prefixes), tensorrt-rtx 1.7.1 (layer list).
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_PREFIX = re.compile(
    r"(?:\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] )?\[([FEWIV])\] (?:\[TRT\] )?(.*)\Z", re.DOTALL
)
_SPARSE_KERNEL = re.compile(r"sparse|spmma|sptensor", re.IGNORECASE)
_DTYPES = (
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8", re.IGNORECASE)),
    ("fp4", re.compile(r"fp4", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("int4", re.compile(r"int4", re.IGNORECASE)),
    ("int64", re.compile(r"int64", re.IGNORECASE)),
    ("int32", re.compile(r"int32", re.IGNORECASE)),
    ("bool", re.compile(r"bool", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Entry:
    """One message of the log. `severity`: F, E, W, I, V, or "" for text without a prefix."""

    severity: str
    message: str


@dataclass(frozen=True)
class Port:
    """A tensor that a layer reads or writes; a dimension of -1 is dynamic."""

    name: str
    dims: tuple[int, ...]
    dtype: str

    def nbytes(self, dynamic: int = 1) -> int:
        """Bytes, with that size for every dynamic dimension."""
        count = math.prod(dynamic if d < 0 else d for d in self.dims)
        return math.ceil(count * _BITS.get(self.dtype, 32) / 8)

    def to_inspector(self) -> dict[str, Any]:
        return {
            "Name": self.name,
            "Dimensions": list(self.dims),
            "Format/Datatype": self.dtype,
        }


_BITS = {"fp32": 32, "int32": 32, "int64": 64, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8,
         "bool": 8, "int4": 4, "fp4": 4}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the engine. `sparse` is None where the log does not tell the kernel, which is
    always so for TensorRT-RTX: its kernels are compiled on the user's machine. `reads`, `writes`
    and `holds`: activations in and out, and constants, as far as the log describes them."""

    name: str
    kind: str = ""
    tactic: str = ""
    onnx_nodes: tuple[str, ...] = ()
    dtypes_in: tuple[str, ...] = ()
    dtypes_out: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    sparse: bool | None = None
    reads: tuple[Port, ...] = field(default=(), repr=False)
    writes: tuple[Port, ...] = field(default=(), repr=False)
    holds: tuple[Port, ...] = field(default=(), repr=False)

    @property
    def is_reformat(self) -> bool:
        """It computes nothing: it copies, casts or reorders.

        *Source:* TensorRT 8.6 to 10 inspector ("Reformat", "Reformatting CopyNode …"); tensorrt-rtx
        1.7.1, whose generated kernels are named for what they do (`__myl_ReshTran_…`)."""
        if self.kind in ("Reformat", "NoOp") or self.name.startswith("Reformatting CopyNode"):
            return True
        made_of = re.match(r"__myl_((?:[A-Z][a-z]+)+)_", self.name)
        return made_of is not None and set(re.findall("[A-Z][a-z]+", made_of[1])) <= _MOVES

    @property
    def is_kernel(self) -> bool:
        """It runs on the GPU: neither synchronization nor arithmetic on shapes."""
        return self.kind not in ("signal", "wait", "shape_call")

    def traffic_bytes(self, dynamic: int = 1) -> int:
        """What it reads and writes, constants included, with that size for dynamic dimensions."""
        return sum(p.nbytes(dynamic) for p in (*self.reads, *self.writes, *self.holds))

    def to_inspector(self) -> dict[str, Any]:
        """As the engine inspector writes a layer; `layers_from_json` reads it back."""
        return {
            "Name": self.name,
            "LayerType": self.kind,
            "Inputs": [port.to_inspector() for port in self.reads],
            "Outputs": [port.to_inspector() for port in self.writes],
            "Constants": [port.to_inspector() for port in self.holds],
            "TacticName": self.tactic,
            "Metadata": "\x1e".join(f"[ONNX Layer: {name}]" for name in self.onnx_nodes),
        }

    def to_json(self) -> dict[str, Any]:
        hidden = {"reads", "writes", "holds"}
        out = {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in vars(self).items()
            if v and k not in hidden
        }
        out["sparse"] = self.sparse
        return out


_MOVES = {"Move", "Resh", "Tran", "Cast", "Copy", "Conc", "Slic"}


@dataclass(frozen=True, kw_only=True)
class ParserError:
    """A complaint of the ONNX parser. `index` counts nodes of the graph being parsed."""

    description: str
    index: int | None = None
    node: str = ""
    op: str = ""
    output: str = ""
    code: str = ""
    function: str = ""


@dataclass
class LogFacts:
    """What one pass over a log finds. Of the sparsity lines the last of each kind counts, since
    they are logged once per tactic pass."""

    layers: list[Layer] = field(default_factory=list)
    eligible: tuple[str, ...] | None = None
    chosen: tuple[str, ...] | None = None
    eligible_count: int | None = None
    chosen_count: int | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parser_errors: list[ParserError] = field(default_factory=list)
    version: str = ""
    compute_capability: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=40))

    @property
    def counts(self) -> tuple[int, int] | None:
        if self.eligible_count is None or self.chosen_count is None:
            return None
        return self.eligible_count, self.chosen_count


def read_log(lines: Iterable[str]) -> LogFacts:
    """Walk a log once."""
    facts = LogFacts()
    node = _NodeBeingParsed()
    for entry in entries(_kept(lines, facts.tail)):
        _note_sparsity(entry.message, facts)
        if entry.message.startswith("Layers:"):
            facts.layers = list(layers_from_text(entry.message))
        elif entry.severity == "W":
            facts.warnings.append(entry.message.strip())
        elif entry.severity in ("E", "F"):
            found = node.feed(entry.message)
            if found is not None:
                facts.parser_errors.append(found)
            elif not node.open:
                facts.errors.append(entry.message.strip())
        elif entry.severity == "I" and entry.message.startswith("Compute Capability: "):
            facts.compute_capability = entry.message.split(": ", 1)[1].strip()
        elif banner := re.search(r"&&&& \w+ TensorRT\.trtexec \[TensorRT v(\d+)\]", entry.message):
            facts.version = _dotted(int(banner[1]))
    return facts


def _kept(lines: Iterable[str], tail: deque[str]) -> Iterator[str]:
    for line in lines:
        line = line.rstrip("\r\n")
        if line.strip() and not line.startswith("Name: "):
            tail.append(line if len(line) <= 500 else line[:500] + "…")
        yield line


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """Messages with their continuation lines; a banner line (`&&&&`) stands by itself."""
    severity, message = "", ""
    for line in lines:
        match = _PREFIX.match(line)
        if match is None and not line.startswith("&&&& "):
            message = f"{message}\n{line}" if message or severity else line
            continue
        if message or severity:
            yield Entry(severity, message)
        severity, message = (match[1], match[2]) if match else ("", line)
    if message or severity:
        yield Entry(severity, message)


def _dotted(version: int) -> str:
    """8601 → 8.6.1, 101303 → 10.13.3. *Source:* NV_TENSORRT_VERSION, which changed at 10."""
    scale = (10_000, 100) if version >= 90_000 else (1_000, 100)
    return f"{version // scale[0]}.{version % scale[0] // scale[1]}.{version % scale[1]}"


# --- sparsity -------------------------------------------------------------------------------------

_SPARSITY = (
    ("eligible", re.compile(r"\(Sparsity\) Layers eligible for sparse math:(?P<names>.*)", re.S)),
    (
        "eligible",
        re.compile(
            r"\(Sparsity\) Found (?P<count>\d+) layer\(s\) eligible to use sparse tactics"
            r"(?::(?P<names>.*))?",
            re.S,
        ),
    ),
    (
        "chosen",
        re.compile(
            r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:"
            r"(?P<names>.*)",
            re.S,
        ),
    ),
    (
        "chosen",
        re.compile(
            r"\(Sparsity\) Chose (?P<count>\d+) layer\(s\) using sparse tactics(?::(?P<names>.*))?",
            re.S,
        ),
    ),
)


def _note_sparsity(message: str, facts: LogFacts) -> None:
    if "(Sparsity)" not in message:
        return
    for kind, pattern in _SPARSITY:
        match = pattern.search(message)
        if match is None:
            continue
        found = match.groupdict()
        listed = tuple(n for n in re.split(r",\s+", (found["names"] or "").strip()) if n)
        count = int(found["count"]) if found.get("count") else len(listed)
        # The newer wording at times counts without naming: then the names are not known.
        setattr(facts, kind, listed if listed or count == 0 else None)
        setattr(facts, f"{kind}_count", count)


# --- layers ---------------------------------------------------------------------------------------


def layers_from_text(message: str) -> Iterator[Layer]:
    """The layers of a `Layers:` message (VERBOSE log, ProfilingVerbosity.DETAILED)."""
    for line in message.split("\n")[1:]:
        if not line.strip():
            return  # `I/O Tensors:` and `Engine Metadata:` follow after a blank line
        yield _layer_from_line(line)


def _layer_from_line(line: str) -> Layer:
    head = re.match(r"Name: (.*?), LayerType: ([^,]*), ", line)
    if head is None:
        return Layer(name=line.removeprefix("Name: ").strip())
    tactic = re.search(r", TacticName: ([^,]*)", line)
    return Layer(
        name=head[1],
        kind=head[2],
        tactic=tactic[1] if tactic else "",
        onnx_nodes=_onnx_nodes(line.rpartition("Metadata: ")[2] if "Metadata: " in line else ""),
        dtypes_in=_text_dtypes(_section(line, "Inputs")),
        dtypes_out=_text_dtypes(_section(line, "Outputs")),
        constants=tuple(re.findall(r"\{ Name: (.*?), Dimensions:", _section(line, "Constants"))),
        sparse=_is_sparse(tactic[1] if tactic else "", None),
        reads=_text_ports(_section(line, "Inputs")),
        writes=_text_ports(_section(line, "Outputs")),
        holds=_text_ports(_section(line, "Constants")),
    )


def _section(line: str, title: str) -> str:
    """The tensors between `title: [` and its closing bracket; dimensions hold brackets too."""
    match = re.search(rf"{title}: \[ (\{{.*?\}})\], ", line)
    return match[1] if match else ""


def _text_dtypes(section: str) -> tuple[str, ...]:
    found = re.findall(r"(?:Datatype|Format/Datatype): ([^,}]*)", section)
    return tuple(_dtype(text) for text in found)


def _text_ports(section: str) -> tuple[Port, ...]:
    found = re.findall(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\].*?Datatype: ([^,}]*)", section)
    return tuple(Port(name, _dims(dims.split(",")), _dtype(text)) for name, dims, text in found)


def _json_ports(tensors: Any) -> tuple[Port, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(
        Port(
            str(t.get("Name", "")),
            _dims(t.get("Dimensions") or ()),
            _dtype(str(t.get("Format/Datatype") or t.get("Datatype") or "")),
        )
        for t in tensors
        if isinstance(t, dict)
    )


def _dims(sizes: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes if str(size).lstrip("-").isdigit())


def _dtype(text: str) -> str:
    return next((name for name, pattern in _DTYPES if pattern.search(text)), text.strip().lower())


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    # The separators between entries are the control characters "record" and "unit separator".
    return tuple(
        part.removeprefix("[ONNX Layer: ").removesuffix("]")
        for part in re.split("[\x1e\x1f]", metadata)
        if part.startswith("[ONNX Layer: ")
    )


def _is_sparse(tactic: str, has_sparse_weights: bool | None) -> bool | None:
    """A sparse kernel by its name. Sparse *weights* with a dense kernel are not sparse."""
    if _SPARSE_KERNEL.search(tactic):
        return True
    if re.match(r"sm\d+_|.*(?:xmma|cutlass|cudnn)", tactic) or has_sparse_weights is False:
        return False
    return None


def layers_from_json(text: str) -> list[Layer]:
    """The layers of trtexec's --exportLayerInfo file or of the engine inspector.

    Raises: ValueError when the text is not such a document.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        raise ValueError("layer information has no list 'Layers'")
    return [
        Layer(name=item) if isinstance(item, str) else _layer_from_dict(item)
        for item in document["Layers"]
    ]


def _layer_from_dict(item: dict[str, Any]) -> Layer:
    tactic = str(item.get("TacticName") or "")
    weights = item.get("HasSparseWeights")
    return Layer(
        name=str(item.get("Name", "")),
        kind=str(item.get("LayerType", "")),
        tactic=tactic,
        onnx_nodes=_onnx_nodes(str(item.get("Metadata") or "")),
        dtypes_in=_json_dtypes(item.get("Inputs")),
        dtypes_out=_json_dtypes(item.get("Outputs")),
        constants=tuple(
            str(c["Name"])
            for c in item.get("Constants") or ()
            if isinstance(c, dict) and "Name" in c
        ),
        sparse=_is_sparse(tactic, None if weights is None else bool(weights)),
        reads=_json_ports(item.get("Inputs")),
        writes=_json_ports(item.get("Outputs")),
        holds=_json_ports(item.get("Constants")),
    )


def _json_dtypes(tensors: Any) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(
        _dtype(str(t.get("Format/Datatype") or t.get("Datatype") or ""))
        for t in tensors
        if isinstance(t, dict)
    )


# --- the ONNX parser ------------------------------------------------------------------------------


class _NodeBeingParsed:
    """Collects the messages that TensorRT's parser logs about one bad node.

    *Source:* NVIDIA/TensorRT issues 1997 and 4587, and tensorrt-rtx 1.7.1: "While parsing node
    number N [Op -> "output"]:", the node's text between two markers, then "ERROR: …:LINE In
    function F:" with "[code] description".
    """

    def __init__(self) -> None:
        self._about: dict[str, Any] | None = None

    @property
    def open(self) -> bool:
        return self._about is not None

    def feed(self, message: str) -> ParserError | None:
        start = re.search(
            r'While parsing node number (\d+) \[(\S+)(?: -> "(.*?)")?\]', message, re.DOTALL
        )
        if start:
            self._about = {"index": int(start[1]), "op": start[2], "output": start[3] or ""}
            return None
        if self._about is None:
            return None
        if name := re.search(r'^(?:name: "(.*)"|Node name: (.+))$', message, re.MULTILINE):
            self._about.setdefault("node", name[1] or name[2])
        end = re.search(r"ERROR: \S+ In function (\w+):\s*(?:\[(\d+)\] )?(.*)", message, re.DOTALL)
        if end is None:
            return None
        about, self._about = self._about, None
        return ParserError(description=end[3].strip(), code=end[2] or "", function=end[1], **about)
