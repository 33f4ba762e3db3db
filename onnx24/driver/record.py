"""What a run says of itself: in the model's record, and in the report's section `run`."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from onnx24.analysis.cache import AnalysisCache
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr import manager, provenance
from onnx24.report.model import ModelFacts, build_report, findings_digest

if TYPE_CHECKING:
    from onnx24.analysis.coverage import Covered
    from onnx24.runtime.split import Split
    from onnx24.targets import Target

_PACKAGES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "networkx", "ml_dtypes")


def judge(
    model: Model, target: Target, cache: AnalysisCache | None = None
) -> Mapping[ValueKey, Any]:
    """Which weights could be 2:4 on the target, and why the others could not."""
    from onnx24.analysis.eligibility import Eligibility

    return (
        (AnalysisCache() if cache is None else cache).get(model, Eligibility).judge(model, target)
    )


class Recorder:
    """Says in a model what made it, in the strength that was asked for. Made of the model as it was
    loaded: it remembers what that refers to."""

    def __init__(self, model: Model, facts: ModelFacts, mode: str) -> None:
        self._model, self._source = model, facts
        self._strength = provenance.strength(mode, model)
        self._ranges = provenance.DataRanges.of(model)
        model.weights.sums_drafts = self._strength == "fast"

    def record(
        self,
        result: manager.RunResult,
        target: Target,
        split: Split | None,
        verdicts: Mapping[ValueKey, Any],
        found: Covered,
    ) -> None:
        """Unless nothing was done: then the model stays as it was."""
        model, source = self._model, self._source
        if not result.changed:
            return
        if self._strength == "off":
            provenance.forget(model)
            return
        fast = self._strength == "fast"
        findings = build_report(
            command="",
            status="",
            source=source,
            result=result,
            target=target,
            output=None,
            verdicts=verdicts,
            found=found,
        ).findings()
        provenance.record(
            model,
            target=target.name,
            source_sha256=source.sha256,
            source_data=self._ranges.checksum(model.weights) if fast else self._sha256_of_data(),
            fast=fast,
            calibration_sha256=split.fitted.digest() if split else "",
            held_out_sha256=split.digest() if split else "",
            report_sha256=findings_digest(findings),
        )

    def _sha256_of_data(self) -> str:
        """The input's, while the output's values are digested: both take longer than pruning."""
        with ThreadPoolExecutor(1) as pool:
            source = pool.submit(lambda: self._source.data_files)
            provenance.digest_values(self._model)
        return provenance.data_digest(source.result())


class Clock:
    """The section `run` of a report: everything that another run of the same job would change."""

    def __init__(self) -> None:
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._begin = time.perf_counter()

    def run(self) -> dict[str, Any]:
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "not installed"
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._begin, 3),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": versions,
        }
