"""The queue on disk, and MLflow's signatures."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onnx24.errors import InputError
from onnx24.registry.gatekeeper import behind
from onnx24.registry.queue import MAX_ATTEMPTS, Queue
from onnx24.registry.store import Making, Version, parse_uri
from onnx24.registry.webhook import (
    DELIVERY,
    SIGNATURE,
    TIMESTAMP,
    Refused,
    sign,
    verify,
    version_of,
)
from onnx24.report.checked import Checked

ROOT = Path(__file__).resolve().parents[2]
MADE = Making(1, "runs:/a")


# --- the queue --------------------------------------------------------------------------------


def test_a_version_is_queued_once_for_each_policy(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q", "p1")
    assert queue.put(Version("m", "1")) and not queue.put(Version("m", "1"))
    job = queue.take()
    assert job is not None and job.version == ("m", "1") and queue.take() is None
    assert not queue.meet(Version("m", "1"), MADE), "running"
    queue.finish(job, "passed", MADE)
    assert not queue.meet(Version("m", "1"), MADE), "done, as it was made"
    assert queue.counts() == {"queued": 0, "running": 0, "done": 1, "done:passed": 1}
    queue.close()
    other = Queue(tmp_path / "q", "p2")
    assert other.put(Version("m", "1")), "by other rules it is checked anew"


def test_a_version_that_was_made_again_is_checked_again(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q", "p")
    version = Version("m", "1")
    queue.put(version, "d1")
    queue.finish(queue.take(), "passed", MADE)  # type: ignore[arg-type]
    assert queue.meet(version, Making(2, "runs:/b")), "another one under its number"
    job = queue.take()
    assert job is not None and (job.status, job.making) == ("passed", MADE)
    assert queue.put(version, "d2"), "announced while it is checked"
    queue.finish(job, "failed", Making(2, "runs:/b"))
    assert queue.counts() == {"queued": 1, "running": 0, "done": 0}
    assert queue.take() is not None


def test_a_delivery_is_taken_once_also_after_a_restart(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q", "p")
    assert queue.put(Version("m", "1"), "d1")
    queue.finish(queue.take(), "passed", MADE)  # type: ignore[arg-type]
    queue.close()
    queue = Queue(tmp_path / "q", "p")
    assert not queue.put(Version("m", "1"), "d1")
    assert queue.counts()["queued"] == 0


@pytest.mark.parametrize("kind", ["folder", "damaged", "other", "busy"])
def test_a_file_that_is_no_queue_is_refused_and_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "q"
    held = None
    if kind == "folder":
        path.mkdir()
    elif kind == "damaged":
        path.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    elif kind == "other":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE experiments (id INTEGER)")
        db.close()
    else:
        held = Queue(path, "p")
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(InputError) as caught:
        Queue(path, "p")
    assert caught.value.code == "O24-642"
    assert held is not None or not path.is_file() or path.read_bytes() == before


def test_files_of_the_first_version_are_taken_over(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "q") as db:
        db.execute(
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, "
            "policy TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'queued', status TEXT, "
            "attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, "
            "UNIQUE (name, version, policy))"
        )
        db.execute("INSERT INTO jobs (name, version, policy) VALUES ('m', '1', 'p')")
    db.close()
    job = Queue(tmp_path / "q", "p").take()
    assert job is not None and job.version == ("m", "1")


def test_what_was_running_is_queued_again_after_a_restart(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q", "p")
    for i in range(3):
        queue.put(Version("m", str(i)))
    queue.finish(queue.take(), "failed")  # type: ignore[arg-type]
    assert queue.take() is not None
    queue.close()
    again = Queue(tmp_path / "q", "p")
    assert again.counts() == {"queued": 2, "running": 0, "done": 1, "done:failed": 1}
    job = again.take()
    assert job is not None and job.attempts == 2


def test_a_retry_waits_and_errors_are_tried_again_by_the_next_process(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q", "p")
    queue.put(Version("m", "1"))
    job = queue.take()
    assert job is not None
    queue.retry(job)
    assert queue.take() is None
    time.sleep(0.6)
    job = queue.take()
    assert job is not None and job.attempts == 2 < MAX_ATTEMPTS
    queue.finish(job, "error")
    assert queue.counts()["done:error"] == 1
    queue.close()
    assert Queue(tmp_path / "q", "p").counts()["queued"] == 1


def test_threads_never_take_the_same_version(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q", "p")
    for i in range(60):
        queue.put(Version("m", str(i)))
    taken: list[str] = []

    def work() -> None:
        while (job := queue.take()) is not None:
            taken.append(job.version.version)
            queue.finish(job, "passed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [str(i) for i in range(60)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """A process says each version that it has put; killed in the middle, none of them is lost."""
    script = (
        "import sys; from onnx24.registry.queue import Queue; "
        "from onnx24.registry.store import Version\n"
        "queue = Queue(sys.argv[1], 'p')\n"
        "for i in range(100000):\n"
        "    queue.put(Version('m', str(i))); print(i, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "q")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(25)]
    process.kill()
    said += process.stdout.read().split()
    process.wait()
    with sqlite3.connect(tmp_path / "q") as db:
        kept = {row[0] for row in db.execute("SELECT version FROM jobs")}
    assert len(said) >= 25 and set(said) <= kept


# --- webhooks ---------------------------------------------------------------------------------

BODY = json.dumps(
    {"entity": "model_version", "action": "created", "data": {"name": "m", "version": "3"}}
).encode()


def headers(secret: str = "s", body: bytes = BODY, sent: float | None = None) -> dict[str, str]:
    stamp = str(int(time.time() if sent is None else sent))
    return {SIGNATURE: sign(secret, "d1", stamp, body), TIMESTAMP: stamp, DELIVERY: "d1"}


def test_a_signed_webhook_names_its_version() -> None:
    verify(headers(), BODY, "s")
    assert version_of(BODY) == ("m", "3")
    other = BODY.replace(b"created", b"deleted")
    assert version_of(other) is None


def test_the_signature_is_mlflows_own() -> None:
    delivery = pytest.importorskip("mlflow.webhooks.delivery", reason="mlflow is not installed")
    ours = sign("top secret ü", "id-1", "1700000000", BODY)
    assert ours == delivery._generate_hmac_signature(
        "top secret ü", "id-1", "1700000000", BODY.decode()
    )


def test_webhooks_that_are_refused() -> None:
    def says(given: dict[str, str], body: bytes = BODY) -> str:
        with pytest.raises(Refused) as caught:
            verify(given, body, "s")
        assert caught.value.status == 401
        return str(caught.value)

    assert "not signed" in says({})
    assert "not signed" in says({**headers(), DELIVERY: ""})
    assert "does not fit" in says(headers(secret="other"))
    assert "does not fit" in says(headers(), BODY + b" ")
    assert "does not fit" in says({**headers(), DELIVERY: "d2"})
    assert "does not fit" in says({**headers(), SIGNATURE: "v1,\xff"})
    assert "ago" in says(headers(sent=time.time() - 3600))
    assert "ago" in says(headers(sent=time.time() + 3600))
    stamp = {SIGNATURE: sign("s", "d1", "soon", BODY), TIMESTAMP: "soon", DELIVERY: "d1"}
    assert "no number" in says(stamp)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"entity": "model_version", "action": "created"}',
        BODY.replace(b'"3"', b'"../3"'),
        BODY.replace(b'"m"', b"7"),
        b"[" * 100_000,
    ],
)
def test_bodies_that_are_no_webhook(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        version_of(body)
    assert caught.value.status == 400


def test_uris() -> None:
    assert parse_uri("models:/net/3") == ("net", "3", None)
    assert parse_uri("models:/my net@champion") == ("my net", None, "champion")
    for wrong in ("net", "models:/net", "models:/net/x", "runs:/net/1", "models:/a/b/1"):
        with pytest.raises(InputError) as caught:
            parse_uri(wrong)
        assert caught.value.code == "O24-047"


# --- the champion -----------------------------------------------------------------------------


def result(coverage: float | None, **measured: float) -> tuple[Checked, ...]:
    return (
        Checked(
            file="m", policy="p", exit_code=0, facts={"coverage": coverage, "measured": measured}
        ),
    )


def test_what_is_worse_than_the_champion() -> None:
    def metrics(ours: tuple[Checked, ...], theirs: tuple[Checked, ...], drop: float) -> list[str]:
        return [str(d.facts["metric"]) for d in behind(ours, theirs, "a", "b", drop)]

    same = result(1.0, accuracy=0.9)
    assert metrics(same, same, 0.0) == []
    assert metrics(result(0.9, accuracy=0.95), same, 0.0) == ["coverage"]
    assert metrics(result(1.0, accuracy=0.89), same, 0.0) == ["accuracy"]
    assert metrics(result(1.0, accuracy=0.89), same, 0.02) == []
    assert metrics(result(1.0), same, 0.0) == ["accuracy"], "what is not measured is no better"
    assert metrics(same, result(None), 0.0) == []
