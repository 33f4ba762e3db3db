"""What is asked of a model registry, and MLflow's answer.

MLflow is imported when a `MlflowStore` is made: it is an extra, and takes seconds to import.

*Source:* MLflow documentation, Model Registry (`models:/NAME/VERSION`, `models:/NAME@ALIAS`, tags
and aliases of model versions).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from onnx24.errors import InputError
from onnx24.redact import redacted

_FAST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
"""A server that is away is said within 10 s; MLflow's own defaults wait for minutes. What the user
set holds. *Source:* mlflow.environment_variables."""
_HOSTED = ("databricks", "databricks-uc", "uc")
_FILE_URI = re.compile(r"(?:sqlite:///|file:(?://)?)?(?P<path>[^:?#]+)(?:[?#].*)?")
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_SCRATCH = "onnx24-registry-"
REPORTS = "onnx24"
"""The folder of a run's artifacts that reports go to, and the experiment of versions without a
run."""


class Version(NamedTuple):
    """A registered model's version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


class Making(NamedTuple):
    """What tells a version from another one that was made later under the same number. created: of
    the version [ms since 1970]; source: where its files were registered from."""

    created: int
    source: str


class Store(Protocol):
    """A model registry. All methods raise InputError O24-047 where it cannot be used."""

    def resolve(self, uri: str) -> Version: ...
    def versions(self, name: str | None = None) -> list[Version]: ...
    def tags(self, version: Version) -> dict[str, str]: ...
    def making(self, version: Version) -> Making: ...
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

    uri: MLflow's own default (MLFLOW_TRACKING_URI) where None. A store that is not there is not
    made. Raises: InputError O24-047.
    """

    def __init__(self, uri: str | None = None) -> None:
        for key, value in _FAST.items():
            os.environ.setdefault(key, value)
        try:
            import mlflow
            from mlflow.exceptions import MlflowException
        except ImportError as err:
            raise InputError.of("O24-047", f"the package mlflow cannot be imported: {err}") from err
        # ImportError: a database's driver, a cloud's library.
        self._errors: tuple[type[Exception], ...] = (
            *(MlflowException, OSError, ImportError),
            *_of_databases(),
        )
        self._artifacts = mlflow.artifacts
        self._uri = uri or mlflow.get_tracking_uri()
        _require_there(self._uri, is_given=uri is not None)
        with self._failing("the registry"):
            self._client: Any = mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def resolve(self, uri: str) -> Version:
        """The version that a URI names. Raises: InputError O24-047."""
        name, version, alias = parse_uri(uri)
        with self._failing(uri):
            if alias is not None:
                version = self._client.get_model_version_by_alias(name, alias).version
            return Version(name, str(self._client.get_model_version(name, version).version))

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, of one model or of all, oldest first. Raises: InputError O24-047, also
        where no model has that name."""
        found, token = [], None
        with self._failing(name or "the registry"):
            if name is not None:
                self._client.get_registered_model(name)
            while True:
                query = "" if name is None else _by_name(name)
                page = self._client.search_model_versions(query, max_results=500, page_token=token)
                found += [Version(v.name, str(v.version)) for v in page]
                token = page.token
                if not token:
                    break
        found = [version for version in found if name is None or version.name == name]
        return sorted(found, key=lambda v: (v.name, int(v.version)))

    def tags(self, version: Version) -> dict[str, str]:
        with self._failing(version):
            return dict(self._client.get_model_version(*version).tags)

    def making(self, version: Version) -> Making:
        with self._failing(version):
            found = self._client.get_model_version(*version)
            return Making(int(found.creation_timestamp or 0), str(found.source or ""))

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
        with scratch_folder() as folder:
            with self._failing(version):
                self._artifacts.download_artifacts(
                    artifact_uri=str(version),
                    dst_path=str(folder),
                    tracking_uri=self._uri,
                    registry_uri=self._uri,
                )
            yield folder

    @contextmanager
    def _failing(self, what: object) -> Iterator[None]:
        try:
            yield
        except self._errors as err:
            reason = redacted(" ".join(str(err).split()))[:300]
            raise InputError.of("O24-047", f"{what}: {reason}") from None


def _of_databases() -> tuple[type[Exception], ...]:
    """What MLflow lets through of the libraries below it."""
    try:
        from alembic.util import CommandError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ()
    return (SQLAlchemyError, CommandError)


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _by_name(name: str) -> str:
    """A filter for the versions of one model; of all, where no quote of MLflow's holds the name."""
    quote = next((mark for mark in "'\"" if mark not in name), None)
    return "" if quote is None else f"name={quote}{name}{quote}"


def _require_there(uri: str, *, is_given: bool) -> None:
    """MLflow makes an empty store wherever a path points. Raises: InputError O24-047."""
    match = _FILE_URI.fullmatch(uri)
    if match is None or uri in _HOSTED or os.path.exists(unquote(match["path"])):
        return
    hint = "check the path" if is_given else "pass --tracking-uri, or set MLFLOW_TRACKING_URI"
    raise InputError.of("O24-047", f"there is no registry at {redacted(uri)}", hint=hint)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is removed on leaving, and after a kill by `clean_scratch`."""
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-") as folder:
        yield Path(folder)


def clean_scratch() -> None:
    """Remove the scratch folders of this user's processes that are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        number = path.name.removeprefix(_SCRATCH).partition("-")[0]
        if not number.isdigit() or path.is_symlink() or path.stat().st_uid != os.getuid():
            continue
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, OverflowError):
            continue
