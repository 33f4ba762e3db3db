"""Checking registered versions, writing the result where their users see it, and promoting.

Tags of a version. `onnx24.status` is written first, as `checking`, and last, so that no status
stands beside the tags of another check:

| tag | holds |
|---|---|
| `onnx24.status` | `checking`, `passed`, `failed`, `refused` (no model to judge), or `error` |
| `onnx24.policy`, `onnx24.policy.sha256` | the policy's name, and the digest of its rules |
| `onnx24.target` | the target |
| `onnx24.model.sha256` | of the file that was judged, with its data files; of all that were |
| `onnx24.findings` | `2 errors, 1 warning` |
| `onnx24.report` | URI of the whole result as JSON |
| `onnx24.checked-by` | the version of onnx24 |
| `onnx24.seal` | where the gate has a key: that it wrote these, for the version as it was made |

Whoever may upload a version may set its tags. So a result is believed only where the seal fits, an
HMAC-SHA256 under the gate's key over the other tags and over when and of what the version was made;
without a key nothing is believed, and versions are checked anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx24 import __version__
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.errors import InputError
from onnx24.gate.sandbox import Sandbox
from onnx24.gate.sources import ModelFile, Sources
from onnx24.gate.verdicts import failed
from onnx24.registry.flavor import loaded_file
from onnx24.registry.store import Store, Version
from onnx24.report.checked import NOT_MET, OK, REFUSED, Checked, worst
from onnx24.report.checktext import document
from onnx24.report.jsontext import json_text
from onnx24.report.policy import Policy

STATUS = "onnx24.status"
SEAL = "onnx24.seal"
CHECKING = "checking"
POLICY_DIGEST = "onnx24.policy.sha256"
CHECKED_BY = "onnx24.checked-by"
TARGET = "onnx24.target"
FINAL = ("passed", "failed", "refused", "error")
_STATUSES = {OK: "passed", NOT_MET: "failed", REFUSED: "refused"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one version. worse: how it falls behind the champion. promoted: the alias
    that points at it now."""

    version: Version
    results: tuple[Checked, ...]
    champion: Version | None = None
    worse: tuple[Diagnostic, ...] = ()
    promoted: str | None = None
    skipped: bool = False

    @property
    def exit_code(self) -> int:
        code = worst([result.exit_code for result in self.results])
        return NOT_MET if code == OK and self.worse else code

    @property
    def status(self) -> str:
        return _STATUSES.get(worst([r.exit_code for r in self.results]), "error")

    def to_json(self) -> dict[str, Any]:
        return {
            "version": str(self.version),
            "status": self.status,
            "exit_code": self.exit_code,
            "champion": None if self.champion is None else str(self.champion),
            "worse": [item.to_json() for item in self.worse],
            "promoted": self.promoted,
            "models": [result.to_json() for result in self.results],
        }


class Gatekeeper:
    """Checks versions of one registry by one policy. Use as a context manager. key: of the seals;
    "" for none."""

    def __init__(self, store: Store, policy: Policy, target: str, key: str = "") -> None:
        self._store, self._policy, self._target, self._key = store, policy, target, key
        self._sandbox = Sandbox(policy, target, digest_data=True)

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._sandbox.__exit__(kind)

    def kill(self) -> None:
        """End at once what is being read, from another thread."""
        self._sandbox.kill()

    def check(
        self,
        version: Version,
        *,
        promote: str | None = None,
        champion: str | None = None,
    ) -> Outcome:
        """Judge a version, write its tags and its report, and set the alias `promote` where it is
        met and no worse than the version of the alias `champion` (default: `promote`). An alias
        never goes back to an older version.

        Raises: InputError O24-047 where the registry cannot be used; nothing is promoted then.
        """
        results = self.judge(version)
        holder, worse = self._compared(version, results, champion or promote)
        outcome = Outcome(version=version, results=results, champion=holder, worse=worse)
        if promote is not None and outcome.exit_code == OK and self._is_newest(version, promote):
            outcome = Outcome(**{**vars(outcome), "promoted": promote})
        self._write(outcome)
        if outcome.promoted is not None:
            self._store.set_alias(outcome.promoted, version)
        return outcome

    def _is_newest(self, version: Version, alias: str) -> bool:
        holder = self._store.alias(version.name, alias)
        return holder is None or int(version.version) >= int(holder.version)

    def judge(self, version: Version) -> tuple[Checked, ...]:
        """The result for the file that MLflow loads of a version, or where it loads none for each
        model among its files; nothing is written."""
        with self._store.download(version) as folder:
            try:
                loaded = loaded_file(folder)
                sources = Sources([str(loaded or folder)], everything=True)
                with sources as files:
                    named = [ModelFile(f.path, _name(f, folder, version)) for f in files]
                    return tuple(self._sandbox.judge(*file) for file in named)
            except InputError as err:
                return (failed(str(version), self._policy, err.diagnostics, REFUSED),)

    def is_settled(self, version: Version) -> bool:
        """Whether a version has a result by these rules, for this target, of this onnx24, that a
        gate with this key wrote for it as it was made."""
        if not self._key:
            return False
        tags = self._store.tags(version)
        return (
            tags.get(STATUS) in FINAL
            and tags.get(POLICY_DIGEST) == self._policy.digest()
            and tags.get(TARGET) == self.target
            and tags.get(CHECKED_BY) == __version__
            and hmac.compare_digest(tags.get(SEAL, "").encode(), self._seal(version, tags).encode())
        )

    def _seal(self, version: Version, tags: Mapping[str, str]) -> str:
        said = {key: value for key, value in tags.items() if key in _SEALED}
        content = json.dumps([version, self._store.making(version), said], sort_keys=True)
        return hmac.new(self._key.encode(), content.encode(), hashlib.sha256).hexdigest()

    @property
    def target(self) -> str:
        return self._policy.target or self._target

    def _compared(
        self, version: Version, results: Sequence[Checked], alias: str | None
    ) -> tuple[Version | None, tuple[Diagnostic, ...]]:
        if alias is None or worst([r.exit_code for r in results]) != OK:
            return None, ()
        holder = self._store.alias(version.name, alias)
        if holder is None or holder == version:
            return holder, ()
        theirs = self.judge(holder)
        drop = self._policy.get("task.max_drop", 0.0)
        return holder, tuple(behind(results, theirs, str(version), str(holder), drop))

    def _write(self, outcome: Outcome) -> None:
        text = json_text({**document(outcome.results), "registry": _without_models(outcome)})
        name = f"{self._policy.digest()[:12]}.json"
        uri = self._store.save_report(outcome.version, name, text)
        tags = {
            "onnx24.policy": self._policy.name,
            POLICY_DIGEST: self._policy.digest(),
            TARGET: self.target,
            CHECKED_BY: __version__,
            "onnx24.model.sha256": _digest(outcome.results),
            "onnx24.findings": findings_text(outcome),
            "onnx24.report": uri,
        }
        if self._key:
            tags[SEAL] = self._seal(outcome.version, {**tags, STATUS: outcome.status})
        self._store.set_tags(outcome.version, {STATUS: CHECKING})
        self._store.set_tags(outcome.version, {**tags, STATUS: outcome.status})


_SEALED = (
    "onnx24.policy",
    POLICY_DIGEST,
    TARGET,
    CHECKED_BY,
    "onnx24.model.sha256",
    "onnx24.findings",
    "onnx24.report",
    STATUS,
)


def _name(file: ModelFile, folder: Path, version: Version) -> str:
    return f"{version}/{file.name.removeprefix(str(folder)).lstrip('/')}"


def _without_models(outcome: Outcome) -> dict[str, Any]:
    return {key: value for key, value in outcome.to_json().items() if key != "models"}


def _digest(results: Sequence[Checked]) -> str:
    facts = [result.facts for result in results]
    digests = [str(found.get("whole_sha256") or found.get("sha256", "")) for found in facts]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def findings_text(outcome: Outcome) -> str:
    counts = Counter(
        str(d.severity) for r in outcome.results for d in (*r.all_findings, *outcome.worse)
    )
    said = [
        f"{counts[name]} {name}{'s' * (counts[name] != 1)}"
        for name in ("error", "warning", "note")
        if counts[name]
    ]
    return ", ".join(said) or "none"


def behind(
    ours: Sequence[Checked], theirs: Sequence[Checked], version: str, holder: str, drop: float
) -> list[Diagnostic]:
    """Where a version is worse than the champion: 2:4 coverage, and the task's metrics by more
    than `drop`. Larger is better in all of them."""
    found = []
    for name, slack in (("coverage", 0.0), ("accuracy", drop), ("ndcg", drop), ("pnr", drop)):
        new, old = _smallest(ours, name), _smallest(theirs, name)
        if old is None or (new is not None and new >= old - slack - 1e-12):
            continue
        said = "not measured" if new is None else f"{new:.6g}"
        found.append(
            diagnostic(
                "O24-660",
                f"{name} is {said}, that of {holder} is {old:.6g}",
                file=version,
                facts={"metric": name, "value": new, "champion": old, "allowed_drop": slack},
            )
        )
    return found


def _smallest(results: Sequence[Checked], name: str) -> float | None:
    """A number of the version's model files; the worst where there are several."""
    values = [
        float(value)
        for result in results
        for value in (result.facts.get(name), result.facts.get("measured", {}).get(name))
        if isinstance(value, int | float)
    ]
    return min(values) if values else None
