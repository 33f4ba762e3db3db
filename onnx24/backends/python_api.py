"""Building through a TensorRT Python package, in a child process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import onnx24
from onnx24.backends.base import (
    DEFAULT_OPTIONS,
    HARDWARE_COMPATIBILITY,
    TRY_THE_ORIGINAL,
    Availability,
    Backend,
    BuildOptions,
    BuildResult,
    Profile,
    cannot_write,
    check_finished,
    failed,
    keep_log,
    log_warnings,
    parser_diagnostic,
    resolve_profiles,
    sha256_of,
    staged_engine,
    timing_cache_facts,
)
from onnx24.backends.builder import Request
from onnx24.backends.logs import Layer, LogFacts, ParserError, layers_from_json, read_log
from onnx24.backends.onnx_file import OnnxFile
from onnx24.backends.process import run_logged
from onnx24.diagnostics import Diagnostic
from onnx24.errors import BackendError, InputError
from onnx24.targets import Target


class PythonBackend(Backend):
    """Base of the two backends that use a Python package of TensorRT."""

    module: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]
    install: ClassVar[str]
    inspect: ClassVar[bool] = False

    def available(self) -> Availability:
        if importlib.util.find_spec(self.module) is None:
            return Availability(False, hint=self.install)
        return Availability(True, self.version())

    def version(self) -> str:
        for name in self.distributions:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""

    def check_target(self, target: Target) -> list[Diagnostic]:
        """Notes for the report. Raises: BackendError O24-507."""
        return []

    def check_options(self, options: BuildOptions) -> None:
        """Raises: BackendError O24-509 for what this package cannot do in any release."""

    def compute_capability(self, target: Target) -> str:
        """The name of the ComputeCapability value to build for; "" for the GPU that is here."""
        return ""

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
        notes = self.check_target(target)
        self.check_options(options)
        model = OnnxFile.read(model_path)
        notes += model.warnings()
        profiles = resolve_profiles(model.inputs, shapes)
        cache_before = sha256_of(options.timing_cache)
        with staged_engine(engine, model_path) as (part, scratch):
            request = Request(
                module=self.module,
                model=str(model.handed_over(model_path, scratch)),
                engine=str(part),
                compute_capability=self.compute_capability(target),
                strongly_typed=target.strongly_typed,
                sparsity=options.sparsity,
                profiles={n: [list(p.min), list(p.opt), list(p.max)] for n, p in profiles.items()},
                workspace_mib=options.workspace_mib,
                optimization_level=options.optimization_level,
                timing_cache=str(options.timing_cache.absolute()) if options.timing_cache else "",
                hardware_compatibility=HARDWARE_COMPATIBILITY[options.hardware_compatibility][0],
                flags=options.flags(),
                inspect=self.inspect,
            )
            try:
                response, facts, seconds = self._run(request, scratch, timeout_s)
            finally:
                keep_log(scratch / "log.txt", log)
            self._raise_refusal(response, facts, model, model_path, target, engine)
            size = part.stat().st_size
        return BuildResult(
            backend=self.name,
            version=response["version"],
            target=target.name,
            engine_path=engine,
            engine_bytes=size,
            seconds=seconds,
            layers=_layers(response, facts, model),
            profiles=profiles,
            sparsity_eligible=facts.eligible,
            sparsity_chosen=facts.chosen,
            sparse_counts=facts.counts,
            diagnostics=(*notes, *log_warnings(facts)),
            log_tail="\n".join(facts.tail),
            timing_cache=timing_cache_facts(options.timing_cache, cache_before),
            layer_information=response.get("layer_information", ""),
        )

    def _run(
        self, request: Request, scratch: Path, timeout_s: float | None
    ) -> tuple[dict[str, Any], LogFacts, float]:
        """Run the worker. Raises: BackendError O24-503 or O24-504."""
        ask, answer, log = (scratch / n for n in ("request.json", "response.json", "log.txt"))
        ask.write_text(json.dumps(request.to_json()), encoding="utf-8")
        done = run_logged(
            [sys.executable, "-m", "onnx24.backends._worker", str(ask), str(answer)],
            log=log,
            cwd=scratch,
            timeout_s=timeout_s,
            env=child_environment(),
        )
        with open(log, encoding="utf-8", errors="replace") as lines:
            facts = read_log(lines)
        check_finished(self.name, done, facts)
        if not answer.exists():
            raise failed(
                "O24-503", f"{self.name} ended with status {done.returncode} and no answer", facts
            )
        return json.loads(answer.read_text("utf-8")), facts, done.seconds

    def _raise_refusal(
        self,
        response: dict[str, Any],
        facts: LogFacts,
        model: OnnxFile,
        model_path: Path,
        target: Target,
        engine: Path,
    ) -> None:
        status, message = response["status"], response.get("message", "")
        if status == "ok":
            return
        if status == "parser":
            errors = [ParserError(**e) for e in response["errors"]] or facts.parser_errors
            if errors:
                raise BackendError([parser_diagnostic(e, model, model_path) for e in errors])
            raise failed("O24-501", f"{self.name} cannot parse {model_path}", facts)
        if status == "missing":
            raise BackendError.of(
                "O24-500",
                f"the package {self.module} is installed and cannot be imported: {message}",
                hint=self.install,
            )
        if status == "target":
            raise BackendError.of(
                "O24-507",
                f"{self.name} {response['version']} cannot build for {target.name}: {message}",
            )
        if status == "option":
            raise BackendError.of("O24-509", f"{self.name} {message}", hint="leave the option out")
        if status == "shapes":
            raise InputError.of("O24-505", message)
        if status == "write":
            raise cannot_write(engine, message)
        if status == "cache":
            raise InputError.of("O24-040", f"the timing cache cannot be written: {message}")
        reason = facts.errors[-1] if facts.errors else message
        raise failed(
            "O24-502", f"{self.name} built no engine: {reason}", facts, hint=TRY_THE_ORIGINAL
        )


def child_environment() -> dict[str, str]:
    """Ours, with the folder that holds this very onnx24 first: a bare checkout is not installed,
    and the child's working folder is its scratch folder."""
    root = str(Path(onnx24.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}


def _layers(response: dict[str, Any], facts: LogFacts, model: OnnxFile) -> tuple[Layer, ...]:
    text = response.get("layer_information")
    layers = layers_from_json(text) if text else facts.layers
    made_up = model.parser_names()
    return tuple(
        replace(layer, onnx_nodes=tuple(made_up.get(n, n) for n in layer.onnx_nodes))
        for layer in layers
    )
