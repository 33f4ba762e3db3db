"""trtexec: the exact command line for a TensorRT major, and its output read back.

Source: samples/common/sampleOptions.cpp of TensorRT OSS at v8.6.1, v9.3.0, v10.2.0, v10.15, v11.0
and v11.1 for which flag exists where.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from onnx24.backends.base import (
    DEFAULT_OPTIONS,
    HARDWARE_COMPATIBILITY,
    TRY_THE_ORIGINAL,
    Availability,
    Backend,
    BuildOptions,
    BuildResult,
    Profile,
    check_finished,
    cuda_devices,
    failed,
    keep_log,
    log_warnings,
    parser_diagnostic,
    resolve_profiles,
    sha256_of,
    staged_engine,
    timing_cache_facts,
)
from onnx24.backends.logs import Layer, LogFacts, layers_from_json, read_log
from onnx24.backends.onnx_file import OnnxFile
from onnx24.backends.process import Finished, run_logged
from onnx24.errors import BackendError, InputError
from onnx24.targets import Target

PROGRAM = "trtexec"


def command(
    model_path: Path,
    target: Target,
    engine: Path,
    profiles: Mapping[str, Profile] | None = None,
    *,
    precisions: Iterable[str] = (),
    options: BuildOptions = DEFAULT_OPTIONS,
    layer_info: Path | None = None,
    times: Path | None = None,
    profile: Path | None = None,
    program: str = PROGRAM,
) -> list[str]:
    """The argument list that builds `engine` with the target's TensorRT major.

    `profiles` holds dynamic inputs only: trtexec refuses shapes for static ones. `precisions`
    ("int8", "fp16", …) are those that the model is written in; a weakly typed build must be
    allowed them. With `times` or `profile` the engine is also run and timed.
    Raises: BackendError O24-507 for a TensorRT-RTX target, O24-509 for an option that came later;
    InputError O24-505 for an input name that cannot be written on trtexec's command line.
    """
    if target.trt_major is None:
        raise BackendError.of(
            "O24-507",
            f"trtexec builds for enterprise TensorRT; the target {target.name} is TensorRT-RTX",
            hint="use the backend tensorrt-rtx",
        )
    args = [program, f"--onnx={model_path}", f"--saveEngine={engine}"]
    if profiles:
        args += [shapes_option(kind, profiles) for kind in ("min", "opt", "max")]
    if target.strongly_typed:
        args += ["--stronglyTyped"] if target.trt_major < 11 else []  # 11: always on, deprecated
    else:
        args += [f"--{p}" for p in sorted(set(precisions)) if p in ("fp16", "int8")]
    args += _options(options, target.trt_major)
    args += ["--profilingVerbosity=detailed", "--verbose"]
    if layer_info is not None:
        args.append(f"--exportLayerInfo={layer_info}")
    if times is not None:
        args.append(f"--exportTimes={times}")
    if profile is not None:
        args.append(f"--exportProfile={profile}")
    if times is None and profile is None:
        # 8.5 and before know --buildOnly alone, 10 and later --skipInference alone.
        args.append("--buildOnly" if target.trt_major == 8 else "--skipInference")
    return args


def _options(options: BuildOptions, major: int) -> list[str]:
    args = ["--sparsity=enable"] if options.sparsity else []
    if options.workspace_mib is not None:
        args.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimization_level is not None:
        args.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.timing_cache is not None:
        args.append(f"--timingCacheFile={options.timing_cache}")
    word = HARDWARE_COMPATIBILITY[options.hardware_compatibility][1]
    if major < 10 and (options.strip or word == "sameComputeCapability"):
        what = "engines without weights" if options.strip else f"compatibility {word}"
        raise BackendError.of(
            "O24-509",
            f"TensorRT {major} has no {what}; that came with TensorRT 10",
            hint="leave the option out",
        )
    args += [f"--hardwareCompatibilityLevel={word}"] if word else []
    args += ["--versionCompatible"] if options.version_compatible else []
    args += ["--refit"] if options.refit else []
    args += ["--stripWeights"] if options.strip else []
    return args


def shapes_option(kind: str, profiles: Mapping[str, Profile]) -> str:
    """--minShapes, --optShapes, --maxShapes; --shapes, of opt, for kind ""."""
    specs = [
        f"{_quoted(name)}:" + "x".join(map(str, getattr(p, kind or "opt")))
        for name, p in profiles.items()
    ]
    return f"--{kind}{'S' if kind else 's'}hapes={','.join(specs)}"


def _quoted(name: str) -> str:
    if "'" in name:
        raise InputError.of(
            "O24-505",
            f"the input name {name!r} holds a single quote, which trtexec cannot read",
            hint="rename the input",
        )
    return f"'{name}'" if any(c in name for c in ":,") else name


class Trtexec(Backend):
    """The program trtexec, found on PATH."""

    name: ClassVar[str] = "trtexec"

    def available(self) -> Availability:
        if shutil.which(PROGRAM) is None:
            return Availability(
                False,
                hint="install TensorRT from NVIDIA (its tar or deb holds trtexec; the pip package "
                "does not) and put trtexec on PATH, or run on a machine that has it what "
                "`onnx24 build MODEL --print-command` prints",
            )
        if cuda_devices() == 0:
            return Availability(
                False,
                hint="trtexec needs an NVIDIA GPU with its driver to build; use the backend "
                "tensorrt-rtx on a machine without one",
            )
        return Availability(True)  # it tells its version only when it runs

    def build(
        self,
        model_path: Path,
        target: Target,
        *,
        engine: Path,
        shapes: Mapping[str, Profile] | None = None,
        options: BuildOptions = DEFAULT_OPTIONS,
        timeout_s: float | None = None,
        log: Path | None = None,
    ) -> BuildResult:
        self.require()
        model = OnnxFile.read(model_path)
        profiles = resolve_profiles(model.inputs, shapes)
        cache_before = sha256_of(options.timing_cache)
        with staged_engine(engine, model_path) as (part, scratch):
            argv = command(
                model.handed_over(model_path, scratch),
                target,
                part,
                profiles,
                precisions=model.precisions,
                options=replace(options, timing_cache=absolute(options.timing_cache)),
                layer_info=scratch / "layers.json",
                program=shutil.which(PROGRAM) or PROGRAM,
            )
            done = _run(argv, scratch, timeout_s, log)
            with open(scratch / "log.txt", encoding="utf-8", errors="replace") as lines:
                facts = read_log(lines)
            check_finished(self.name, done, facts)
            _check_success(done, facts, part, model, model_path)
            _check_release(facts, target)
            size = part.stat().st_size
            exported = scratch / "layers.json"
            information = exported.read_text("utf-8") if exported.exists() else ""
            layers = _layers(information, facts, model)
        return BuildResult(
            backend=self.name,
            version=facts.version,
            target=target.name,
            engine_path=engine,
            engine_bytes=size,
            seconds=done.seconds,
            layers=layers,
            profiles=profiles,
            sparsity_eligible=facts.eligible,
            sparsity_chosen=facts.chosen,
            sparse_counts=facts.counts,
            diagnostics=tuple(log_warnings(facts)),
            log_tail="\n".join(facts.tail),
            command=tuple(argv),
            timing_cache=timing_cache_facts(options.timing_cache, cache_before),
            layer_information=information,
        )


def _run(argv: list[str], scratch: Path, timeout_s: float | None, log: Path | None) -> Finished:
    try:
        return run_logged(argv, log=scratch / "log.txt", cwd=scratch, timeout_s=timeout_s)
    except OSError as err:
        raise BackendError.of(
            "O24-500", f"{argv[0]} cannot be started: {err.strerror or err}"
        ) from err
    finally:
        keep_log(scratch / "log.txt", log)


def _check_success(
    done: Finished, facts: LogFacts, part: Path, model: OnnxFile, model_path: Path
) -> None:
    if facts.parser_errors and done.returncode:
        raise BackendError([parser_diagnostic(e, model, model_path) for e in facts.parser_errors])
    if done.returncode or part.stat().st_size == 0:
        reason = facts.errors[-1] if facts.errors else f"it ended with status {done.returncode}"
        raise failed("O24-502", f"trtexec built no engine: {reason}", facts, hint=TRY_THE_ORIGINAL)


def _check_release(facts: LogFacts, target: Target) -> None:
    """An engine of another major or compute capability would not load on the target."""
    hint = "choose the target that fits this machine, or build on the target"
    if facts.version and facts.version.split(".")[0] != target.trt:
        raise BackendError.of(
            "O24-507",
            f"trtexec here is TensorRT {facts.version}; the target {target.name} wants "
            f"TensorRT {target.trt}",
            hint=hint,
        )
    if facts.compute_capability and facts.compute_capability != target.compute_capability:
        raise BackendError.of(
            "O24-507",
            f"the GPU here has compute capability {facts.compute_capability}; the target "
            f"{target.name} wants {target.compute_capability}",
            hint=hint,
        )


def _layers(information: str, facts: LogFacts, model: OnnxFile) -> tuple[Layer, ...]:
    layers = layers_from_json(information) if information else facts.layers
    made_up = model.parser_names()
    return tuple(
        replace(layer, onnx_nodes=tuple(made_up.get(n, n) for n in layer.onnx_nodes))
        for layer in layers
    )


def absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


def shell_line(argv: Iterable[str]) -> str:
    """The command as one line for a shell, for reports and scripts."""
    return shlex.join(argv)
