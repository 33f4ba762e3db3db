"""Findings that are known and accepted, so that only new ones fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from onnx24.errors import InputError
from onnx24.ir.files import atomic_write
from onnx24.ir.inputs import regular
from onnx24.report.checked import Checked, fingerprint
from onnx24.report.jsontext import json_text

SCHEMA = 1


def read_baseline(path: str) -> frozenset[str]:
    """The accepted fingerprints. Raises: InputError O24-046."""
    try:
        document = json.loads(regular(path).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}, expected {SCHEMA}")
        return frozenset(str(entry["fingerprint"]) for entry in document["findings"])
    except OSError as err:
        raise _bad(path, err.strerror or str(err)) from err
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise _bad(path, f"not a baseline: {err!r}") from err


def write_baseline(path: str, results: Sequence[Checked]) -> int:
    """Accept all findings of these results. Returns: how many. Raises: InputError O24-040."""
    entries: list[dict[str, Any]] = []
    for result in results:
        for finding in (*result.findings, *result.accepted):
            entries.append(
                {
                    "fingerprint": fingerprint(result.file, finding),
                    "file": result.file,
                    "code": finding.code,
                    "message": finding.message,
                }
            )
    entries.sort(key=lambda entry: (entry["file"], entry["code"], entry["fingerprint"]))
    with atomic_write(path) as file:
        file.write(json_text({"schema": SCHEMA, "findings": entries}).encode("utf-8"))
    return len(entries)


def _bad(path: str, why: str) -> InputError:
    return InputError.of("O24-046", why, file=path)
