"""An engine as its files describe it: layers, sparse tactics, times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx24.backends.logs import Layer, LogFacts, layers_from_json, read_log
from onnx24.errors import InputError

FOREIGN = re.compile(r"\{?ForeignNode\[(?P<first>.*?)\.\.\.(?P<last>.*?)\]\}?")
"""A stretch of the network that TensorRT's compiler Myelin took as a whole: only its ends are
named."""


@dataclass(frozen=True)
class LayerTime:
    """One layer of --exportProfile [ms]."""

    name: str
    median_ms: float
    average_ms: float


@dataclass
class Engine:
    """What the files of one build say. `latencies_ms`: of each run, in order, computing only.

    log: None where no log was given. `profile`: in the order of execution.
    """

    layers: list[Layer] = field(default_factory=list)
    log: LogFacts | None = None
    profile: list[LayerTime] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        *,
        log: str | None = None,
        layers: str | None = None,
        profile: str | None = None,
        times: str | None = None,
    ) -> Engine:
        """Files: the builder's log; --exportLayerInfo or the inspector's JSON; --exportProfile;
        --exportTimes. Raises: InputError O24-048 for one that is not what it should be."""
        engine = cls()
        if log is not None:
            with _opened(log) as lines:
                engine.log = read_log(lines)
            engine.layers = engine.log.layers
        if layers is not None:
            try:
                engine.layers = layers_from_json(_text(layers))
            except (ValueError, RecursionError) as err:
                raise _unreadable(layers, f"no layer information: {err}") from err
        if profile is not None:
            engine.profile = _profile(profile)
        if times is not None:
            engine.latencies_ms = _latencies(times)
        return engine

    @property
    def is_empty(self) -> bool:
        return not (self.layers or self.log or self.profile or self.latencies_ms)

    def known_layers(self) -> list[Layer]:
        """The layers, or where only a profile was given, its names."""
        return self.layers or [Layer(name=time.name) for time in self.profile]

    def is_eligible(self, layer: Layer) -> bool | None:
        """Whether the builder considered sparse kernels; None where it does not say."""
        return _listed(layer, self.log.eligible if self.log else None)

    def is_chosen(self, layer: Layer) -> bool | None:
        """Whether the layer runs a sparse kernel: by the log's list, else by the kernel's name."""
        said = _listed(layer, self.log.chosen if self.log else None)
        return layer.sparse if said is None else said

    def time_of(self, layer: Layer) -> LayerTime | None:
        return next((time for time in self.profile if time.name == layer.name), None)

    def reformats(self, layer: Layer) -> tuple[int, int]:
        """Layers that only copy or reorder, right before and right behind this one."""
        read = {port.name for port in layer.reads}
        written = {port.name for port in layer.writes}
        before = after = 0
        for other in self.layers:
            if not other.is_reformat or other is layer:
                continue
            if named := re.search(r"for (Input|Output) Tensor \d+ (?:to|from) (.*)$", other.name):
                before += named[1] == "Input" and named[2] == layer.name
                after += named[1] == "Output" and named[2] == layer.name
                continue
            before += any(port.name in read for port in other.writes)
            after += any(port.name in written for port in other.reads)
        return before, after


def _listed(layer: Layer, names: Sequence[str] | None) -> bool | None:
    return None if names is None else layer.name in names


# --- which nodes a layer holds --------------------------------------------------------------------


def nodes_of(layer: Layer, order: Sequence[str]) -> list[str]:
    """The model's nodes in a layer of the engine. order: the names of all nodes as the model has
    them.

    From the metadata where the engine has it (10 and later), else from the layer's name, which
    joins node names: `a + b`, `a || b`, `PWN(a, b)`, `{ForeignNode[a...b]}`, `[Fusion of …]`.
    *Source:* layer names in NVIDIA/TensorRT issues 1403, 2169, 4056, and tensorrt-rtx 1.7.1.
    """
    known = set(order)
    if layer.onnx_nodes:
        return _known(layer.onnx_nodes, known)
    if layer.is_reformat:
        return []
    if foreign := FOREIGN.search(layer.name):
        return _between(foreign["first"], foreign["last"], order)
    if layer.name in known:
        return [layer.name]
    return _known(_parts(layer.name), known)


def _known(names: Iterable[str], known: set[str]) -> list[str]:
    """Those of the model; the parser calls unnamed nodes `node_of_` and their first output."""
    plain = (name if name in known else name.removeprefix("node_of_") for name in names)
    return [name for name in dict.fromkeys(plain) if name in known]


def _parts(name: str) -> list[str]:
    name = re.sub(r"_myl\d+_\d+$", "", name)  # RTX: position in the compiled stream
    pieces = re.split(r" \+ | \|\| |\+", name)
    found = []
    for piece in pieces:
        inner = re.fullmatch(r"(?:PWN|POINTWISE)\((.*)\)", piece.strip())
        for part in re.split(r",\s*", inner[1]) if inner else [piece.strip()]:
            part = re.sub(r"^(?:PWN|POINTWISE)\(|\)$", "", part)
            found += [part, re.sub(r"_U\d+$", "", part)]
    return found


def _between(first: str, last: str, order: Sequence[str]) -> list[str]:
    positions = {name: i for i, name in enumerate(order)}
    start = _position(first, positions)
    end = _position(last, positions)
    if start is None or end is None:
        return []
    return list(order[min(start, end) : max(start, end) + 1])


def _position(name: str, positions: dict[str, int]) -> int | None:
    """Of the node, or of the first that a fused end names."""
    for part in (name, *_parts(name)):
        if part in positions:
            return positions[part]
    return None


# --- files ----------------------------------------------------------------------------------------


def _profile(path: str) -> list[LayerTime]:
    """*Source:* exportJSONProfile in samples/common/sampleReporting.cpp of TensorRT OSS, v8.6.1 and
    v10.16: a list whose first entry is the count of runs."""
    found = []
    for item in _list(path):
        if "name" not in item:
            continue
        try:
            average = float(item.get("averageMs", item.get("timeMs", "")))
            found.append(
                LayerTime(str(item["name"]), float(item.get("medianMs", average)), average)
            )
        except (TypeError, ValueError) as err:
            raise _unreadable(path, f"the entry {item} has no time") from err
    if not found:
        raise _unreadable(path, "no layer of it has a name and a time; is it --exportProfile's?")
    return found


def _latencies(path: str) -> list[float]:
    """*Source:* exportJSONTrace, in the same file."""
    try:
        found = [float(item["computeMs"]) for item in _list(path)]
    except (KeyError, TypeError, ValueError) as err:
        raise _unreadable(path, "its entries have no computeMs; is it --exportTimes's?") from err
    if not found:
        raise _unreadable(path, "it holds no run")
    return found


def _list(path: str) -> Iterable[dict[str, Any]]:
    try:
        document = json.loads(_text(path))
    except ValueError as err:
        raise _unreadable(path, f"no JSON: {err}") from err
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise _unreadable(path, "expected a list of objects, as trtexec writes it")
    return document


def _text(path: str) -> str:
    with _opened(path) as file:
        return file.read()


def _opened(path: str) -> Any:
    try:
        return open(path, encoding="utf-8", errors="replace")
    except OSError as err:
        raise _unreadable(path, err.strerror or str(err)) from err


def _unreadable(path: str, why: str) -> InputError:
    return InputError.of("O24-048", why, file=path)
