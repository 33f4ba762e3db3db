"""A real MLflow server on a SQLite file and a local folder, started once for these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from registry_support import free_port, wait_for

from onnx24.testing.generate import mlp

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # The webhook's receiver is on the loopback address, without TLS.
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",
}


@dataclass(frozen=True)
class Server:
    """`client`: an MlflowClient; `models`: kind → (source URI, run id, model id), as logged."""

    uri: str
    client: Any
    models: dict[str, tuple[str, str, str]]

    def register(self, name: str, kind: str) -> str:
        """A new version of a registered model. Returns: its number."""
        source, run_id, model_id = self.models[kind]
        made = self.client.create_model_version(name, source, run_id, model_id=model_id)
        return str(made.version)

    def new_model(self, name: str) -> str:
        self.client.create_registered_model(name)
        return name


def sparse(proto: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            values = np.array(numpy_helper.to_array(tensor))
            values[0::4] = values[1::4] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("mlflow", reason="mlflow is not installed (extra: mlflow)")
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    before = {key: os.environ.get(key) for key in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(f"{uri}/health", process, folder / "server.log")
        yield Server(uri, *_logged(uri))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _logged(uri: str) -> tuple[Any, dict[str, tuple[str, str, str]]]:
    """A client, and three models: 2:4, half 2:4, dense."""
    import mlflow
    import mlflow.onnx

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.set_experiment("tests")
    kinds = {"sparse": ("fc0.weight", "fc1.weight"), "half": ("fc0.weight",), "dense": ()}
    found = {}
    for kind, names in kinds.items():
        with mlflow.start_run() as run:
            proto = sparse(mlp([64, 64, 32]), names)
            info = mlflow.onnx.log_model(proto, name="model")
            found[kind] = (info.model_uri, run.info.run_id, info.model_id)
    return mlflow.MlflowClient(uri, uri), found
