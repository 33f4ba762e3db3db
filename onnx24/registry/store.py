"""What is asked of a model registry, and MLflow's answer.

MLflow is imported when a `MlflowStore` is made: it is an extra, and takes seconds to import.

*Source:* MLflow documentation, Model Registry (`models:/NAME/VERSION`, `models:/NAME@ALIAS`, tags
and aliases of model versions).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from onnx24.errors import InputError

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
REPORTS = "onnx24"
"""The folder of a run's artifacts that reports go to, and the experiment of versions without a
run."""


class Version(NamedTuple):
    """A registered model's version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


class Store(Protocol):
    """A model registry. All methods raise InputError O24-047 where it cannot be used."""

    def resolve(self, uri: str) -> Version: ...
    def versions(self, name: str | None = None) -> list[Version]: ...
    def tags(self, version: Version) -> dict[str, str]: ...
    def alias(self, name: str, alias: str) -> Version | None: ...
    def set_alias(self, alias: str, version: Version) -> None: ...
    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None: ...
    def save_report(self, version: Version, file_name: str, text: str) -> str: ...
    def download(self, version: Version) -> Any: ...


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """(name, version, alias) of `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Raises: InputError O24-047.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise InputError.of(
            "O24-047", f"{uri!r}: expected models:/NAME/VERSION or models:/NAME@ALIAS", hint=""
        )
    return match["name"], match["version"], match["alias"]


class MlflowStore:
    """An MLflow tracking server, or a store that MLflow reaches directly (`sqlite:///…`).

    uri: MLflow's own default (MLFLOW_TRACKING_URI) where None.
    """

    def __init__(self, uri: str | None = None) -> None:
        try:
            import mlflow
            from mlflow.exceptions import MlflowException
        except ImportError as err:
            raise InputError.of("O24-047", f"the package mlflow cannot be imported: {err}") from err
        self._errors: tuple[type[Exception], ...] = (MlflowException, OSError)
        self._artifacts = mlflow.artifacts
        self._uri = uri or mlflow.get_tracking_uri()
        self._client: Any = mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def resolve(self, uri: str) -> Version:
        """The version that a URI names. Raises: InputError O24-047."""
        name, version, alias = parse_uri(uri)
        with self._failing(uri):
            if alias is not None:
                version = self._client.get_model_version_by_alias(name, alias).version
            return Version(name, str(self._client.get_model_version(name, version).version))

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, of one model or of all, oldest first."""
        query = "" if name is None else f"name='{_quoted(name)}'"
        found, token = [], None
        with self._failing(name or "the registry"):
            while True:
                page = self._client.search_model_versions(query, max_results=500, page_token=token)
                found += [Version(v.name, str(v.version)) for v in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda v: (v.name, int(v.version)))

    def tags(self, version: Version) -> dict[str, str]:
        with self._failing(version):
            return dict(self._client.get_model_version(*version).tags)

    def alias(self, name: str, alias: str) -> Version | None:
        """The version that an alias points at; None where there is no such alias."""
        with self._failing(name):
            known = self._client.get_registered_model(name).aliases
        return Version(name, str(known[alias])) if alias in known else None

    def set_alias(self, alias: str, version: Version) -> None:
        with self._failing(version):
            self._client.set_registered_model_alias(version.name, alias, version.version)

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags in their order, so that the last one says that all are there."""
        with self._failing(version):
            for key, value in tags.items():
                self._client.set_model_version_tag(*version, key, value)

    def save_report(self, version: Version, file_name: str, text: str) -> str:
        """Keep a report beside the version's run. Returns: its URI."""
        folder = f"{REPORTS}/{version.name}/{version.version}"
        with self._failing(version):
            run_id = self._client.get_model_version(*version).run_id or self._own_run(version)
            self._client.log_text(run_id, text, f"{folder}/{file_name}")
        return f"runs:/{run_id}/{folder}/{file_name}"

    def _own_run(self, version: Version) -> str:
        """The run for reports of a version that has none; always the same one."""
        experiment = self._client.get_experiment_by_name(REPORTS)
        number = experiment.experiment_id if experiment else self._client.create_experiment(REPORTS)
        query = f"tags.`onnx24.of` = '{_quoted(str(version))}'"
        runs = self._client.search_runs([number], query, max_results=1)
        run = runs[0] if runs else self._client.create_run(number, tags={"onnx24.of": str(version)})
        return str(run.info.run_id)

    @contextmanager
    def download(self, version: Version) -> Iterator[Path]:
        """The version's files in a temporary folder, which is removed on leaving."""
        with tempfile.TemporaryDirectory(prefix="onnx24-") as folder:
            with self._failing(version):
                self._artifacts.download_artifacts(
                    artifact_uri=str(version),
                    dst_path=folder,
                    tracking_uri=self._uri,
                    registry_uri=self._uri,
                )
            yield Path(folder)

    @contextmanager
    def _failing(self, what: object) -> Iterator[None]:
        try:
            yield
        except self._errors as err:
            reason = " ".join(str(err).split())[:300]
            raise InputError.of("O24-047", f"{what}: {reason}") from err


def _quoted(text: str) -> str:
    return text.replace("'", "''")
