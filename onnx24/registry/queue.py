"""Versions that wait for their check, in a SQLite file that survives the process.

One row for each version and policy. A row is queued, running or done; what was running when the
process died is queued again when the file is opened. Asking for a version twice changes nothing.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from onnx24.registry.store import Version

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    policy TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done')),
    status TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    UNIQUE (name, version, policy)
);
CREATE INDEX IF NOT EXISTS waiting ON jobs (state, not_before, id);
"""
MAX_ATTEMPTS = 20
"""A version whose check has been begun so often, and never ended, is done, as an "error"; when the
file is opened the next time, it is tried again."""
_BACKOFF_S = (0.5, 1, 2, 5, 10, 30, 60)


class Job(NamedTuple):
    id: int
    version: Version
    attempts: int


class Queue:
    """Safe to use from several threads. policy: the digest of the rules that versions are checked
    by; with other rules they are checked anew."""

    def __init__(self, path: str | Path, policy: str) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # what was acknowledged is on the disk
        self._db.executescript(_SCHEMA)
        with self._transaction() as db:
            db.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
            db.execute(
                "UPDATE jobs SET state = 'queued', status = NULL, attempts = 0, not_before = 0 "
                "WHERE state = 'done' AND status = 'error'"
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def put(self, version: Version) -> bool:
        """Queue a version. Returns: False where it is known already."""
        with self._transaction() as db:
            done = db.execute(
                "INSERT OR IGNORE INTO jobs (name, version, policy) VALUES (?, ?, ?)",
                (*version, self._policy),
            )
            return done.rowcount == 1

    def knows(self, version: Version) -> bool:
        with self._transaction() as db:
            found = db.execute(
                "SELECT 1 FROM jobs WHERE name = ? AND version = ? AND policy = ?",
                (*version, self._policy),
            )
            return found.fetchone() is not None

    def take(self) -> Job | None:
        """The version that has waited longest, which is running from now on; None for none."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT id, name, version, attempts FROM jobs WHERE state = 'queued' "
                "AND policy = ? AND not_before <= ? ORDER BY not_before, id LIMIT 1",
                (self._policy, time.time()),
            ).fetchone()
            if row is None:
                return None
            number, name, version, attempts = row
            db.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1 WHERE id = ?",
                (number,),
            )
            return Job(number, Version(name, version), attempts + 1)

    def finish(self, job: Job, status: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE jobs SET state = 'done', status = ? WHERE id = ?", (status, job.id))

    def retry(self, job: Job) -> None:
        """Put a version back, to be taken after a while that grows with its attempts."""
        wait = _BACKOFF_S[min(job.attempts - 1, len(_BACKOFF_S) - 1)]
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', not_before = ? WHERE id = ?",
                (time.time() + wait, job.id),
            )

    def counts(self) -> dict[str, int]:
        """Rows by state, and the done ones by status as well ("done:passed")."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT state, coalesce(status, ''), count(*) FROM jobs WHERE policy = ? "
                "GROUP BY 1, 2",
                (self._policy,),
            ).fetchall()
        found = {"queued": 0, "running": 0, "done": 0}
        for state, status, count in rows:
            found[state] += count
            if state == "done":
                found[f"done:{status}"] = count
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
