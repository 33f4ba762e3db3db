"""`verify-provenance`: whether a model is what its metadata say of its making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnx24.cli.console import Console
from onnx24.cli.files import source_of
from onnx24.driver.usage import usage
from onnx24.passmgr.provenance import DataRanges, Provenance, data_digest
from onnx24.report.model import ModelFacts, findings_digest
from onnx24.report.table import table


def verify_model_provenance(
    path: str, original: str | None, report: str | None, *, as_json: bool
) -> int:
    """Returns: 0, or 1 where something is missing or does not fit. Raises: InputError."""
    model = source_of(path).load()
    recorded = Provenance.of(model)
    problems = recorded.problems(model)
    if original is not None:
        problems += _against(recorded, original)
    if report is not None and _digest_of_report(report) != recorded.report_sha256:
        problems.append(f"{report} is not the report of the run that made it")
    document: dict[str, Any] = {
        "file": path,
        "input": original,
        "verified": not problems,
        "recorded": recorded.to_json(),
        "problems": problems,
    }
    rows = [(name.replace("_", " "), value) for name, value in recorded.to_json().items()]
    verdict = "holds" if not problems else "does NOT hold"
    lines = [f"{path}: the record {verdict}"]
    lines += [f"  {problem} (O24-626)" for problem in problems]
    if recorded.is_fast:
        lines.append("  values are recorded by a checksum: against accidents, not against people")
    lines += [table(("recorded", "value"), rows, whole=(1,))] if rows else []
    Console(as_json=as_json).report("\n".join(lines), document)
    return 1 if problems else 0


def _digest_of_report(path: str) -> str:
    """Raises: InputError O24-020 for a file that is no report."""
    try:
        return findings_digest(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise usage(f"--report {path} is no JSON report: {err!r}", "pass the .json report") from err


def _against(recorded: Provenance, original: str) -> list[str]:
    """What contradicts that the model was made of the original."""
    model = source_of(original).load()
    facts = ModelFacts.of(model, original)
    problems = []
    if facts.sha256 not in (recorded.source_sha256, recorded.origin_sha256):
        made_of = recorded.source_sha256 or "nothing that is recorded"
        problems.append(f"it was made of {made_of}, and {original} is {facts.sha256}")
    elif facts.sha256 == recorded.source_sha256:
        if recorded.is_fast:
            same = DataRanges.of(model).checksum(model.weights) == recorded.source_data_checksum
        else:
            same = data_digest(facts.data_files) == recorded.source_data_sha256
        if not same:
            problems.append(f"the data files of {original} are others")
    return problems
