"""The gate of a real MLflow registry: check, promote, scan, and the webhook service."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_support import free_port, wait_for
from typer.testing import CliRunner, Result

from onnx24.cli.app import app
from onnx24.registry.service import MAX_CONNECTIONS
from onnx24.registry.webhook import DELIVERY, SIGNATURE, TIMESTAMP, sign

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SECRET = "loopback only"
EVENTS = int(os.environ.get("ONNX24_SOAK_EVENTS", "30"))
KILLS = 5 if EVENTS >= 200 else 2


@pytest.fixture
def strict(tmp_path: Path) -> str:
    path = tmp_path / "strict.toml"
    path.write_text("[sparsity]\nmin_coverage = 1.0\n")
    return str(path)


@pytest.fixture
def loose(tmp_path: Path) -> str:
    path = tmp_path / "loose.toml"
    path.write_text("[sparsity]\nmin_coverage = 0.5\n")
    return str(path)


def registry(server: Any, *arguments: str) -> Result:
    command, *rest = arguments
    return CliRunner().invoke(app, ["registry", command, *rest, "--tracking-uri", server.uri])


def tags(server: Any, name: str, version: str) -> dict[str, str]:
    return dict(server.client.get_model_version(name, version).tags)


def alias(server: Any, name: str) -> str | None:
    found = server.client.get_registered_model(name).aliases.get("champion")
    return None if found is None else str(found)


def test_a_version_that_passes_becomes_the_champion(server: Any, strict: str) -> None:
    name = server.new_model("passes")
    assert server.register(name, "sparse") == "1"
    result = registry(server, "check", f"models:/{name}/1", "--policy", strict, "--json",
                      "--promote", "champion")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["status"], found["promoted"]) == ("passed", "champion")
    written = tags(server, name, "1")
    assert written["onnx24.status"] == "passed" and written["onnx24.findings"] == "none"
    assert len(written["onnx24.policy.sha256"]) == len(written["onnx24.model.sha256"]) == 64
    assert alias(server, name) == "1"
    import mlflow

    report = json.loads(mlflow.artifacts.load_text(written["onnx24.report"]))
    assert report["met"] and report["registry"]["version"] == f"models:/{name}/1"
    again = registry(server, "check", f"models:/{name}@champion", "--policy", strict)
    assert again.exit_code == 0 and f"models:/{name}/1: passed" in again.stdout


def test_a_dense_model_that_calls_itself_sparse_is_refused(server: Any, strict: str) -> None:
    name = server.new_model("refused")
    server.register(name, "sparse")
    server.register(name, "dense")
    assert registry(server, "check", f"models:/{name}/1", "--policy", strict, "--promote",
                    "champion").exit_code == 0  # fmt: skip
    result = registry(server, "check", f"models:/{name}/2", "--policy", strict, "--promote",
                      "champion")  # fmt: skip
    assert result.exit_code == 1 and "O24-611" in result.stdout
    assert "'champion' was not given to it" in result.stdout
    assert tags(server, name, "2")["onnx24.status"] == "failed"
    assert tags(server, name, "2")["onnx24.findings"] == "1 error"
    assert alias(server, name) == "1"


def test_a_version_that_is_worse_than_the_champion(server: Any, loose: str) -> None:
    name = server.new_model("worse")
    server.register(name, "sparse")
    server.register(name, "half")
    for version, exit_code in (("1", 0), ("2", 1)):
        result = registry(server, "check", f"models:/{name}/{version}", "--policy", loose,
                          "--promote", "champion")  # fmt: skip
        assert result.exit_code == exit_code, result.output
    assert "O24-660" in result.stdout and "coverage is 0.666667" in result.stdout
    assert alias(server, name) == "1"
    assert tags(server, name, "2")["onnx24.status"] == "passed", "it does meet the policy"
    alone = registry(server, "check", f"models:/{name}/2", "--policy", loose)
    assert alone.exit_code == 0


def test_what_is_not_there_is_said(server: Any, strict: str) -> None:
    for uri in ("models:/nothing/1", "models:/nothing@champion", "nonsense"):
        result = registry(server, "check", uri, "--policy", strict)
        assert result.exit_code == 2 and "O24-047" in result.stderr, uri


def test_a_version_without_a_model_is_refused(server: Any, strict: str) -> None:
    name = server.new_model("empty")
    run = server.client.create_run(server.client.get_experiment_by_name("tests").experiment_id)
    server.client.log_text(run.info.run_id, "not a model", "stuff/notes.txt")
    server.client.create_model_version(name, f"runs:/{run.info.run_id}/stuff", run.info.run_id)
    result = registry(server, "check", f"models:/{name}/1", "--policy", strict)
    assert result.exit_code == 2 and "O24-045" in result.stdout
    assert tags(server, name, "1")["onnx24.status"] == "refused"


def test_a_scan_checks_what_has_no_result(server: Any, strict: str) -> None:
    name = server.new_model("scanned")
    for kind in ("sparse", "dense", "half"):
        server.register(name, kind)
    first = registry(server, "scan", "--policy", strict, "--name", name, "--json")
    assert first.exit_code == 1
    found = {v["version"]: v["status"] for v in json.loads(first.stdout)["versions"]}
    assert found == {
        f"models:/{name}/1": "passed",
        f"models:/{name}/2": "failed",
        f"models:/{name}/3": "failed",
    }
    unsealed = registry(server, "scan", "--policy", strict, "--name", name)
    assert unsealed.exit_code == 1 and "(earlier)" not in unsealed.stdout, "tags prove nothing"


def test_a_result_is_believed_where_the_gate_can_show_that_it_wrote_it(
    server: Any, strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNX24_GATE_KEY", "known to the gate")
    name = server.new_model("it's sealed")
    for kind in ("sparse", "dense"):
        server.register(name, kind)
    scan = ("scan", "--policy", strict, "--name", name)
    assert registry(server, *scan).exit_code == 1
    second = registry(server, *scan)
    assert second.exit_code == 1 and second.stdout.count("(earlier)") == 2
    assert registry(server, *scan, "--again").stdout.count("(earlier)") == 0
    # An uploader says that the dense one passed, and copies the seal of the other.
    sealed = tags(server, name, "1")
    for key, value in sealed.items():
        server.client.set_model_version_tag(name, "2", key, value)
    third = registry(server, *scan)
    assert third.stdout.count("(earlier)") == 1 and third.exit_code == 1
    assert tags(server, name, "2")["onnx24.status"] == "failed"
    # The same number, made again of another model, with the tags of the first.
    server.client.delete_model_version(name, "1")
    server.client.delete_registered_model(name)
    server.new_model(name)
    assert server.register(name, "dense") == "1"
    for key, value in sealed.items():
        server.client.set_model_version_tag(name, "1", key, value)
    assert registry(server, *scan).exit_code == 1
    assert tags(server, name, "1")["onnx24.status"] == "failed"


def test_what_mlflow_loads_is_judged(server: Any, strict: str, tmp_path: Path) -> None:
    """A 2:4 decoy beside a dense model, as an uploader would place it."""
    import mlflow

    name = server.new_model("decoy")
    server.register(name, "dense")
    sparse, dense = (
        Path(
            mlflow.artifacts.download_artifacts(
                server.models[kind][0], dst_path=str(tmp_path / kind)
            )
        )
        for kind in ("sparse", "dense")
    )
    run = server.client.create_run(server.client.get_experiment_by_name("tests").experiment_id)
    for folder, kind in ((dense, "decoyed"), (sparse, "swapped")):
        other = dense if folder is sparse else sparse
        (folder / "another.onnx").write_bytes((other / "model.onnx").read_bytes())
        if kind == "swapped":  # the pickle-like flavor loads another file than the flavor onnx
            said = (folder / "MLmodel").read_text()
            head, mark, tail = said.partition("python_function:")
            tail = tail.replace("data: model.onnx", "data: another.onnx", 1)
            (folder / "MLmodel").write_text(head + mark + tail)
        server.client.log_artifacts(run.info.run_id, str(folder), kind)
        server.client.create_model_version(name, f"runs:/{run.info.run_id}/{kind}", run.info.run_id)
    decoyed = registry(server, "check", f"models:/{name}/2", "--policy", strict, "--json")
    assert decoyed.exit_code == 1
    assert [Path(m["file"]).name for m in json.loads(decoyed.stdout)["models"]] == ["model.onnx"]
    swapped = registry(server, "check", f"models:/{name}/3", "--policy", strict)
    assert swapped.exit_code == 2 and "O24-641" in swapped.stdout
    assert tags(server, name, "3")["onnx24.status"] == "refused"


def test_names_and_stores_that_are_not_there(server: Any, strict: str, tmp_path: Path) -> None:
    missing = registry(server, "scan", "--policy", strict, "--name", "it isn't there")
    assert missing.exit_code == 2 and "O24-047" in missing.stderr
    away = f"sqlite:///{tmp_path}/none.db"
    result = CliRunner().invoke(
        app, ["registry", "scan", "--policy", strict, "--tracking-uri", away]
    )
    assert result.exit_code == 2 and "there is no registry" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "strict.toml"]
    for alias_name in ("latest", "v3", "a b"):
        asked = ("models:/x/1", "--policy", strict, "--promote", alias_name)
        refused = registry(server, "check", *asked)
        assert refused.exit_code == 2 and "O24-043" in refused.stderr


def test_an_alias_never_goes_back(server: Any, strict: str) -> None:
    name = server.new_model("forward")
    for _ in range(2):
        server.register(name, "sparse")
    check = ("--policy", strict, "--promote", "champion")
    assert registry(server, "check", f"models:/{name}/2", *check).exit_code == 0
    back = registry(server, "check", f"models:/{name}/1", *check)
    assert back.exit_code == 0 and "was not given to it" in back.stdout
    assert alias(server, name) == "2"


# --- the service ------------------------------------------------------------------------------


class Served:
    """`registry serve` as a process that can be killed and started again."""

    def __init__(self, server: Any, policy: str, folder: Path, port: int, *more: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.policy = policy
        self._log = folder / "serve.log"
        self._command = [
            *(sys.executable, str(ROOT / "cli.py"), "registry", "serve", "--policy", policy),
            *("--queue", str(folder / "queue.sqlite"), "--port", str(port)),
            *("--tracking-uri", server.uri, *more),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**os.environ, "ONNX24_WEBHOOK_SECRET": SECRET},
            )
        wait_for(f"{self.url}/healthz", self.process, self._log)

    def run_to_its_end(self) -> int:
        environment = {**os.environ, "ONNX24_WEBHOOK_SECRET": SECRET}
        return subprocess.run(self._command, env=environment, capture_output=True).returncode

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def send(self, body: bytes, delivery: str, secret: str = SECRET) -> int:
        """The HTTP status for a webhook as MLflow sends it; 0 where nobody answers."""
        stamp = str(int(time.time()))
        request = urllib.request.Request(
            f"{self.url}/webhook",
            data=body,
            headers={
                "Content-Type": "application/json",
                SIGNATURE: sign(secret, delivery, stamp, body),
                TIMESTAMP: stamp,
                DELIVERY: delivery,
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as err:
            return err.code
        except OSError:
            return 0


@pytest.fixture
def served(server: Any, loose: str, tmp_path: Path) -> Iterator[Served]:
    service = Served(server, loose, tmp_path, free_port(), "--rescan", "3600")
    yield service
    if service.process is not None and service.process.poll() is None:
        service.kill()


def event(name: str, version: str) -> bytes:
    data = {"name": name, "version": version}
    return json.dumps({"entity": "model_version", "action": "created", "data": data}).encode()


def statuses(server: Any, name: str) -> dict[str, str | None]:
    found = server.client.search_model_versions(f"name='{name}'", max_results=1000)
    return {str(v.version): v.tags.get("onnx24.status") for v in found}


def wait_until_settled(server: Any, name: str, count: int, seconds: float) -> dict[str, str | None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = statuses(server, name)
        if len(found) == count and all(found.values()) and "checking" not in found.values():
            return found
        time.sleep(0.5)
    return statuses(server, name)


def test_mlflows_own_webhook_leads_to_a_result(server: Any, served: Served) -> None:
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    served.start()
    name = server.new_model("announced")
    created = WebhookEvent(WebhookEntity.MODEL_VERSION, WebhookAction.CREATED)
    hook = server.client.create_webhook("onnx24", f"{served.url}/webhook", [created], secret=SECRET)
    try:
        assert server.client.test_webhook(hook.webhook_id).success
        time.sleep(1.2)  # the server's list of webhooks is a second old at most
        server.register(name, "sparse")
        server.register(name, "dense")
        found = wait_until_settled(server, name, 2, 90)
        assert found == {"1": "passed", "2": "failed"}
    finally:
        server.client.delete_webhook(hook.webhook_id)
    text = served.get("/metrics")
    assert 'onnx24_results{status="passed"}' in text
    assert 'onnx24_webhooks_total{result="accepted"}' in text
    assert json.loads(served.get("/healthz"))["ok"] is True
    assert served.stop() == 0


def test_strangers_are_turned_away(server: Any, served: Served, tmp_path: Path) -> None:
    served.start()
    assert served.send(event("x", "1"), "d", secret="guess") == 401
    assert served.send(b"{}", "d") == 400
    assert served.send(b'{"entity": "prompt", "action": "created"}', "d") == 200
    for path in ("/", "/webhook", "/../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            served.get(path)
    huge = urllib.request.Request(f"{served.url}/webhook", data=b"x" * (2 << 20))
    with pytest.raises(OSError):
        urllib.request.urlopen(huge, timeout=10)
    for wrong in ("+5", "-1", "five"):
        with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as raw:
            raw.sendall(f"POST /webhook HTTP/1.0\r\nContent-Length: {wrong}\r\n\r\n".encode())
            assert b" 400 " in raw.recv(200)
    second = Served(server, served.policy, tmp_path, free_port())
    assert second.run_to_its_end() == 2, "one service works on a queue"
    assert json.loads(served.get("/healthz"))["ok"] is True


def test_slow_senders_keep_neither_answers_nor_the_end_waiting(server: Any, served: Served) -> None:
    served.start()
    port = int(served.url.rsplit(":", 1)[1])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS)]
    try:
        for one in slow:
            one.sendall(b"POST /webhook HTTP/1.0\r\nContent-Length: 9\r\n\r\n")
        deadline = time.monotonic() + 60
        answer = b""
        while b" 503 " not in answer and time.monotonic() < deadline:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as more:
                more.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                answer = more.recv(300)
        assert b" 503 " in answer and b"Retry-After" in answer
        assert served.stop() == 0, "SIGTERM ends it although they all hold their connections"
    finally:
        for one in slow:
            one.close()


def test_every_version_ends_with_one_status_whatever_is_killed(
    server: Any, served: Served, tmp_path: Path
) -> None:
    """Events, each sent twice; the service is killed (kill -9) amid them, and started again. What
    was not acknowledged is sent again, as MLflow does."""
    import sqlite3

    name = server.new_model("soaked")
    kinds = ("sparse", "half", "dense")
    kind_of = {server.register(name, kinds[i % 3]): kinds[i % 3] for i in range(EVENTS)}
    served.start()
    kill_at = {EVENTS * (i + 1) // (KILLS + 1) for i in range(KILLS)}
    for i, version in enumerate(kind_of):
        if i in kill_at:
            time.sleep(0.7)  # let it be in the middle of a check
            served.kill()
            assert served.send(event(name, version), f"d{i}") == 0
            served.start()
        assert served.send(event(name, version), f"d{i}") == 202
        assert served.send(event(name, version), f"again{i}") == 202, "a second delivery"
    found = wait_until_settled(server, name, EVENTS, 60 + EVENTS)
    expected = {"sparse": "passed", "half": "passed", "dense": "failed"}
    assert found == {version: expected[kind] for version, kind in kind_of.items()}
    deadline = time.monotonic() + 30
    while json.loads(served.get("/healthz"))["done"] < EVENTS and time.monotonic() < deadline:
        time.sleep(0.3)
    assert served.stop() == 0
    with sqlite3.connect(tmp_path / "queue.sqlite") as db:
        rows = db.execute(
            "SELECT version, state, status FROM jobs WHERE name = ?", (name,)
        ).fetchall()
    assert len(rows) == len({row[0] for row in rows}) == EVENTS
    assert {(v, s) for v, state, s in rows if state == "done"} == set(found.items())


def test_versions_that_nobody_announced_are_found(server: Any, loose: str, tmp_path: Path) -> None:
    name = server.new_model("unannounced")
    server.register(name, "sparse")
    service = Served(server, loose, tmp_path, free_port(), "--rescan", "1")
    service.start()
    try:
        assert wait_until_settled(server, name, 1, 90) == {"1": "passed"}
        server.register(name, "dense")
        assert wait_until_settled(server, name, 2, 90) == {"1": "passed", "2": "failed"}
    finally:
        service.kill()


def test_serving_without_a_secret_is_refused(server: Any, loose: str) -> None:
    result = registry(server, "serve", "--policy", loose, "--secret-file", "/dev/null")
    assert result.exit_code == 2 and "ONNX24_WEBHOOK_SECRET" in result.stderr
