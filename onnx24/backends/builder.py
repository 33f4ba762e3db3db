"""One builder for every TensorRT that has a Python package. Runs in the child process only.

Enum values and builder flags move and vanish between majors (SPARSE_WEIGHTS is 8 until 9.x and 7
from 10 on; 11 removed FP16 and INT8), so each is looked up by name. `trt` is the module:
`tensorrt` 8.6 to 11 or `tensorrt_rtx`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build. `compute_capability` is "SM86" for a TensorRT that takes it, else "".
    `profiles`: input → [min, opt, max]. `hardware_compatibility` and `flags`: members of
    HardwareCompatibilityLevel and BuilderFlag that the caller asks for by name; "" for none. Paths
    are absolute."""

    module: str
    model: str
    engine: str
    compute_capability: str = ""
    strongly_typed: bool = True
    sparsity: bool = True
    profiles: dict[str, list[list[int]]] = field(default_factory=dict)
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: str = ""
    hardware_compatibility: str = ""
    flags: list[str] = field(default_factory=list)
    inspect: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Refused(Exception):
    """The build cannot go on. `status`: "target", "option", "parser", "shapes", "write", "cache"
    or "build"."""

    def __init__(self, status: str, message: str, errors: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.errors = list(errors)


def member(enum: Any, name: str) -> Any | None:
    """The enum's value of that name, None where this release does not have it."""
    return enum.__members__.get(name)


def network_flags(trt: Any, *, strongly_typed: bool) -> int:
    """Bits for create_network: 8.x and 9.x need EXPLICIT_BATCH; STRONGLY_TYPED since 9.x."""
    wanted = ["EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if strongly_typed else [])]
    flags = 0
    for name in wanted:
        value = member(trt.NetworkDefinitionCreationFlag, name)
        if value is not None:
            flags |= 1 << int(value)
    return flags


def builder_flags(trt: Any, network: Any, request: Request) -> list[str]:
    """Builder flags to set, by name. A weakly typed network must be allowed the reduced types
    that the model is written in; a strongly typed one must not be given them."""
    wanted = ["SPARSE_WEIGHTS"] if request.sparsity else []
    if not request.strongly_typed:
        wanted += sorted(_reduced_types(trt, network))
    return [name for name in wanted if member(trt.BuilderFlag, name) is not None]


def _reduced_types(trt: Any, network: Any) -> set[str]:
    of_dtype = {"HALF": "FP16", "BF16": "BF16", "FP8": "FP8"}
    quantizers = {member(trt.LayerType, "QUANTIZE"), member(trt.LayerType, "DEQUANTIZE")} - {None}
    found: set[str] = set()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type in quantizers:
            found.add("INT8")
        for j in range(layer.num_outputs):
            output = layer.get_output(j)
            if output is not None and output.dtype.name in of_dtype:
                found.add(of_dtype[output.dtype.name])
    return found


def build(trt: Any, request: Request, logger: Any) -> dict[str, Any]:
    """Parse, configure, build and write the engine; return facts about it.

    Raises: Refused.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, strongly_typed=request.strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.model):
        raise Refused("parser", "the parser refuses the model", parser_errors(parser))
    config = builder.create_builder_config()
    configure(trt, config, network, request)
    add_profile(builder, config, network, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused("build", "the builder returned no engine")
    try:
        with open(request.engine, "wb") as file:
            file.write(plan)
    except OSError as err:
        raise Refused("write", err.strerror or str(err)) from err
    _save_timing_cache(config, request)
    return {
        "layer_information": inspect(trt, plan, logger) if request.inspect else "",
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
    }


def parser_errors(parser: Any) -> list[dict[str, Any]]:
    """Every error of the parser; accessors that came later than 8.6 are looked for."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        found.append(
            {
                "description": error.desc(),
                "code": getattr(error.code(), "name", str(error.code())),
                "index": error.node(),
                "function": error.func(),
                "node": error.node_name() if hasattr(error, "node_name") else "",
                "op": error.node_operator() if hasattr(error, "node_operator") else "",
            }
        )
    return found


def configure(trt: Any, config: Any, network: Any, request: Request) -> None:
    """Raises: Refused when the package cannot build for the compute capability, or lacks an
    option that is asked for."""
    if request.compute_capability:
        _set_compute_capability(trt, config, request.compute_capability)
    for name in builder_flags(trt, network, request):
        config.set_flag(member(trt.BuilderFlag, name))
    for name in request.flags:
        config.set_flag(_required(trt, "BuilderFlag", name))
    if request.hardware_compatibility:
        level = _required(trt, "HardwareCompatibilityLevel", request.hardware_compatibility)
        config.hardware_compatibility_level = level
    config.profiling_verbosity = member(trt.ProfilingVerbosity, "DETAILED")
    if request.workspace_mib is not None:
        pool = member(trt.MemoryPoolType, "WORKSPACE")
        config.set_memory_pool_limit(pool, request.workspace_mib << 20)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.timing_cache:
        try:
            with open(request.timing_cache, "rb") as file:
                saved = file.read()
        except FileNotFoundError:
            saved = b""
        config.set_timing_cache(config.create_timing_cache(saved), ignore_mismatch=False)


def _required(trt: Any, enum: str, name: str) -> Any:
    value = member(getattr(trt, enum), name) if hasattr(trt, enum) else None
    if value is None:
        raise Refused("option", f"{trt.__version__} has no {enum}.{name}")
    return value


def _set_compute_capability(trt: Any, config: Any, name: str) -> None:
    value = member(trt.ComputeCapability, name)
    if value is None:
        known = [n for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
        raise Refused("target", f"it builds for {', '.join(known)}, not for {name}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(value, 0):
        raise Refused("target", f"it refuses to build for {name}")


def add_profile(builder: Any, config: Any, network: Any, request: Request) -> None:
    """One optimization profile for the dynamic inputs. Raises: Refused."""
    profile = builder.create_optimization_profile()
    needed = False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.is_shape_tensor:
            raise Refused(
                "shapes",
                f"the values of input {tensor.name!r} decide shapes inside the model, and no size "
                "given here can say them; make it a constant",
            )
        if all(dim >= 0 for dim in tensor.shape):
            continue
        if tensor.name not in request.profiles:
            raise Refused("shapes", f"input {tensor.name!r} is dynamic here and has no profile")
        needed = True
        low, opt, high = request.profiles[tensor.name]
        try:
            profile.set_shape(tensor.name, low, opt, high)
        except ValueError as err:
            raise Refused("shapes", f"input {tensor.name!r}: {err}") from err
    if needed and config.add_optimization_profile(profile) < 0:
        raise Refused("shapes", "the builder refuses the optimization profile")


def inspect(trt: Any, plan: Any, logger: Any) -> str:
    """The engine inspector's JSON; "" where the engine cannot be loaded (no GPU)."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    form = member(trt.LayerInformationFormat, "JSON")
    return engine.create_engine_inspector().get_engine_information(form)


def _save_timing_cache(config: Any, request: Request) -> None:
    if not request.timing_cache:
        return
    cache = config.get_timing_cache()
    if cache is None:
        return
    part = f"{request.timing_cache}.part"  # a killed build leaves the old file whole
    try:
        with open(part, "wb") as file:
            file.write(cache.serialize())
        os.replace(part, request.timing_cache)
    except OSError as err:
        raise Refused("cache", f"{request.timing_cache}: {err.strerror or err}") from err
