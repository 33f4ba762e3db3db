"""Whether a model is what its metadata say of its making."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx24.driver.models import ModelLike, load
from onnx24.driver.result import Documented, MadeAndDocumented
from onnx24.driver.usage import usage
from onnx24.ir.inputs import regular
from onnx24.ir.model import External
from onnx24.lines import block
from onnx24.passmgr import signing
from onnx24.passmgr.provenance import DataRanges, Provenance, data_digest
from onnx24.report.model import ModelFacts, Report, findings_digest
from onnx24.report.table import table


@dataclass(frozen=True, kw_only=True, eq=False)
class Proof(Documented):
    """recorded: what the model says. problems: what is missing or does not fit."""

    recorded: Provenance
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the record."""
        return not self.problems


def verify_provenance(
    model: ModelLike,
    original: ModelLike | None = None,
    report: Report | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    signed_by: str | os.PathLike[str] | None = None,
) -> Proof:
    """Say what made a model and of what, and whether that holds.

    original: the model that it should have been made of. report: that of the run that should have
    made it, as an object, its document, or its file. signed_by: a file of public keys, one of which
    must have signed the model (`sign`). The record alone shows that nobody changed the model by
    accident; whoever changes it on purpose can change the record too.

    Raises: InputError; BackendError O24-646 without the library for signatures.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> sparse = onnx24.prune24(mlp([64, 32]))
    >>> onnx24.verify_provenance(sparse, report=sparse.report).holds
    True
    """
    source = load(model)
    loaded = source.load()
    recorded = Provenance.of(loaded)
    problems = recorded.problems(loaded)
    before = None if original is None else load(original)
    if before is not None:
        facts = ModelFacts.of(before.load(), before.name)
        problems += _against(recorded, before.load(), facts)
    if report is not None and _digest_of_report(report) != recorded.report_sha256:
        called = report if isinstance(report, str) else "the report"
        problems.append(f"{called} is not the report of the run that made it")
    found = [(problem, "O24-626") for problem in problems]
    if signed_by is not None and (problem := signing.signature_problem(loaded, signed_by)):
        found.append((problem, "O24-629"))
    problems = [problem for problem, _ in found]
    document: dict[str, Any] = {
        "file": source.name,
        "input": None if before is None else before.name,
        "verified": not problems,
        "recorded": recorded.to_json(),
        "problems": problems,
    }
    rows = [(name.replace("_", " "), value) for name, value in recorded.to_json().items()]
    verdict = "holds" if not problems else "does NOT hold"
    lines = [f"{source.name}: the record {verdict}"]
    lines += [f"  {problem} ({code})" for problem, code in found]
    if recorded.is_fast:
        lines.append("  values are recorded by a checksum: against accidents, not against people")
    lines += [table(("recorded", "value"), rows, whole=(1,))] if rows else []
    return Proof(document=document, text=block(lines), recorded=recorded, problems=tuple(problems))


def sign(
    model: ModelLike,
    key: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    external: External = "auto",
) -> MadeAndDocumented:
    """Sign a model with an Ed25519 key (`onnx24 sign`), so that `verify_provenance` and a policy
    can require it: the signature holds for these nodes, values and metadata and for no others.

    key: a private key in PEM, without a password. output: a file to write the model into. external:
    where weights go, as in `save`.

    Raises: InputError O24-645; BackendError O24-646 without the library.

    >>> import subprocess, onnx24
    >>> from onnx24.testing.generate import mlp
    >>> new = "openssl genpkey -algorithm ed25519 -out key.pem".split()
    >>> public = "openssl pkey -in key.pem -pubout -out key.pub".split()
    >>> _ = [subprocess.run(command, check=True) for command in (new, public)]
    >>> signed = onnx24.sign(onnx24.prune24(mlp([64, 32])), "key.pem")
    >>> onnx24.verify_provenance(signed, signed_by="key.pub").holds
    True
    """
    source = load(model)
    made = source.load()
    public = signing.sign(made, key)
    if output is not None:
        made.save(output, external=external)
    name = source.name if output is None else os.fspath(output)
    return MadeAndDocumented(
        compiled=made,
        name=name,
        document={"model": source.name, "output": None if output is None else name, "key": public},
        text=block([f"{source.name}: signed by {public}"]),
    )


def _digest_of_report(report: Any) -> str:
    """Raises: InputError O24-043 for a file that is no report."""
    if isinstance(report, Report):
        return findings_digest(report.to_json())
    if isinstance(report, Mapping):
        return findings_digest(report)
    try:
        return findings_digest(json.loads(regular(report).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        message = f"--report {os.fspath(report)} is no JSON report: {err!r}"
        raise usage(message, "pass the .json report") from err


def _against(recorded: Provenance, model: Any, facts: ModelFacts) -> list[str]:
    """What contradicts that the model was made of the original."""
    if facts.sha256 not in (recorded.source_sha256, recorded.origin_sha256):
        made_of = recorded.source_sha256 or "nothing that is recorded"
        return [f"it was made of {made_of}, and {facts.file} is {facts.sha256}"]
    if facts.sha256 == recorded.source_sha256:
        sha256, checksum = recorded.source_data_sha256, recorded.source_data_checksum
    else:
        sha256, checksum = recorded.origin_data_sha256, recorded.origin_data_checksum
    if checksum:
        same = DataRanges.of(model).checksum(model.weights) == checksum
    else:
        same = data_digest(facts.data_files) == sha256
    return [] if same else [f"the data files of {facts.file} are others than those recorded"]
