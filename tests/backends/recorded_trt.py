"""A stand-in for TensorRT's Python module, made from the recorded names of one release.

`surface("8.6")` gives a module with exactly the enums (names and numbers) and the methods that the
release has (fixtures/tensorrt/api-*.json); any other name raises AttributeError, as the real module
would. It parses nothing and builds nothing: a "plan" is a text that says what was asked for. So it
shows which calls a build makes on each release, not that such a release ran.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "tensorrt"
RELEASES = ("8.6", "10", "11")


def record(release: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"api-{release}.json").read_text(encoding="utf-8"))


class _Recorded:
    """Base of the classes: only recorded names can be read or set from outside."""

    _names: frozenset[str]

    def __init__(self) -> None:
        self.__dict__["state"] = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} of this release has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"{type(self).__name__} of this release has no {name!r}")
        self.__dict__["state"][name] = value
        self.__dict__[name] = value


def surface(release: str, *, fails: str = "", layers: str = '{"Layers": []}') -> ModuleType:
    """The module. `fails`: "parse" or "build"; layers: what the engine inspector says."""
    api = record(release)
    trt = ModuleType("tensorrt")
    trt.__version__ = api["version"]
    for name, members in api["enums"].items():
        setattr(trt, name, enum.IntEnum(name, members))
    for name, names in api["classes"].items():
        behaviour = _behaviour(trt, name, fails, layers)
        known = {k: v for k, v in behaviour.items() if k in names or k == "__init__"}
        setattr(trt, name, type(name, (_Recorded,), {"_names": frozenset(names), **known}))
    trt.ILogger = type("ILogger", (), {"log": lambda self, severity, message: None})
    trt.built, trt.executed = [], []
    return trt


def _behaviour(trt: ModuleType, name: str, fails: str, layers: str) -> dict[str, Any]:
    """What the methods that a build uses do; those that the release lacks are left out."""

    def make(cls: str, **values: Any) -> Any:
        made = getattr(trt, cls)()
        made.__dict__.update(values)
        return made

    def create_network(self: Any, flags: int) -> Any:
        x = make("ITensor", name="x", shape=(-1, 4), is_shape_tensor=False)
        y = make("ITensor", name="y", dtype=trt.DataType.HALF)
        ops = (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE, trt.LayerType.CONVOLUTION)
        stack = [make("ILayer", type=op, num_outputs=1, get_output=lambda i: y) for op in ops]
        return make(
            "INetworkDefinition",
            created_with=flags,
            num_layers=len(stack),
            get_layer=stack.__getitem__,
            num_inputs=1,
            get_input=lambda i: x,
            num_outputs=1,
            get_output=lambda i: y,
        )

    def build_serialized_network(self: Any, network: Any, config: Any) -> bytes | None:
        flags = sorted(f.name for f in config.__dict__.get("set", []))
        asked = {
            "network_flags": network.created_with,
            "flags": flags,
            "pools": config.__dict__.get("pools", {}),
            "profiles": [p.__dict__["shapes"] for p in config.__dict__.get("profiles", [])],
            "set": {
                key: getattr(value, "name", value)
                for key, value in config.__dict__["state"].items()
            },
        }
        trt.built.append(asked)
        return None if fails == "build" else json.dumps(asked).encode()

    def set_shape(self: Any, tensor: str, low: Any, opt: Any, high: Any) -> None:
        self.__dict__.setdefault("shapes", {})[tensor] = [list(low), list(opt), list(high)]

    def add_optimization_profile(self: Any, profile: Any) -> int:
        self.__dict__.setdefault("profiles", []).append(profile)
        return len(self.__dict__["profiles"]) - 1

    def parse_from_file(self: Any, path: str) -> bool:
        open(path, "rb").close()
        return fails != "parse"

    def get_error(self: Any, index: int) -> Any:
        error = make(
            "ParserError",
            desc=lambda: "no such operator",
            code=lambda: "UNSUPPORTED_NODE",
            node=lambda: 0,
            func=lambda: "importTwist",
        )
        if "node_name" in error._names:
            error.__dict__.update(node_name=lambda: "twist", node_operator=lambda: "Twist")
        return error

    table: dict[str, dict[str, Any]] = {
        "Builder": {
            "__init__": lambda self, logger: _Recorded.__init__(self),
            "create_network": create_network,
            "create_builder_config": lambda self: make("IBuilderConfig"),
            "create_optimization_profile": lambda self: make("IOptimizationProfile"),
            "build_serialized_network": build_serialized_network,
        },
        "OnnxParser": {
            "__init__": lambda self, network, logger: _Recorded.__init__(self),
            "parse_from_file": parse_from_file,
            "num_errors": property(lambda self: 1 if fails == "parse" else 0),
            "get_error": get_error,
        },
        "IBuilderConfig": {
            "set_flag": lambda self, flag: self.__dict__.setdefault("set", []).append(flag),
            "set_memory_pool_limit": lambda self, pool, size: self.__dict__.setdefault(
                "pools", {}
            ).update({pool.name: size}),
            "add_optimization_profile": add_optimization_profile,
            "create_timing_cache": lambda self, data: make("ITimingCache", data=data),
            "set_timing_cache": lambda self, cache, ignore_mismatch: (
                self.__dict__.update(cache=cache) or True
            ),
            "get_timing_cache": lambda self: self.__dict__.get("cache"),
        },
        "IOptimizationProfile": {"set_shape": set_shape},
        "ITimingCache": {"serialize": lambda self: self.__dict__["data"] + b"timing;"},
        "Runtime": {
            "__init__": lambda self, logger: _Recorded.__init__(self),
            "deserialize_cuda_engine": lambda self, plan: (
                None if plan == b"broken" else make("ICudaEngine", plan=plan)
            ),
        },
        "ICudaEngine": {
            "create_engine_inspector": lambda self: make("EngineInspector"),
            "create_execution_context": lambda self: make("IExecutionContext", plan=self.plan),
            "num_io_tensors": 2,
            "get_tensor_name": lambda self, i: "xy"[i],
            "get_tensor_mode": lambda self, n: trt.TensorIOMode["INPUT" if n == "x" else "OUTPUT"],
            "get_tensor_shape": lambda self, n: (-1, 4),
            "get_tensor_dtype": lambda self, n: trt.DataType["HALF" if n == "x" else "FLOAT"],
        },
        "IExecutionContext": {
            "set_input_shape": lambda self, n, shape: self.__dict__.update(shape=shape),
            "get_tensor_shape": lambda self, n: self.shape,
            "set_tensor_address": lambda self, n, address: self.__dict__.update({n: address}),
            "execute_async_v3": lambda self, stream: trt.executed.append(
                (self.plan, stream, self.x, self.y)
            ),
        },
        "EngineInspector": {"get_engine_information": lambda self, form: layers},
    }
    return table.get(name, {})
