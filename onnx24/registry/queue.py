"""Versions that wait for their check, in a SQLite file that survives the process.

One row for each version and set of rules. A row is queued, running or done; what was running when
the process died is queued again when the file is opened. Asking for a version that waits changes
nothing; one that is announced again after its check was made anew under its number, and waits
again. The ids of announcements are kept for a while, so that one that is sent again is known.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from onnx24.errors import InputError
from onnx24.registry.store import Making, Version

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two services from one file there
    fcntl = None  # type: ignore[assignment]

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
    again INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL DEFAULT 0,
    source TEXT NOT NULL DEFAULT '',
    UNIQUE (name, version, policy)
);
CREATE INDEX IF NOT EXISTS waiting ON jobs (state, not_before, id);
CREATE TABLE IF NOT EXISTS deliveries (id TEXT PRIMARY KEY, received REAL NOT NULL);
"""
_APPLICATION = 0x6F323471
"""SQLite's application id of our files ("o24q"), so that another program's database is not taken
for one."""
_LATER = (
    ("again", "INTEGER NOT NULL DEFAULT 0"),
    ("created", "INTEGER NOT NULL DEFAULT 0"),
    ("source", "TEXT NOT NULL DEFAULT ''"),
)
"""Columns that files of onnx24 0.1 lack."""
REMEMBERED_S = 3600.0
"""How long a delivery's id is known: longer than the signature of one is taken
(webhook.MAX_AGE_S), so that no recorded one is taken twice."""
MAX_ATTEMPTS = 20
"""A version whose check has been begun so often, and never ended, is done, as an "error"; when the
file is opened the next time, it is tried again."""
_BACKOFF_S = (0.5, 1, 2, 5, 10, 30, 60)


class Job(NamedTuple):
    """status, making: of the last check that ended, "" and zeros where there was none."""

    id: int
    version: Version
    attempts: int
    status: str = ""
    making: Making = Making(0, "")


class Queue:
    """Safe to use from several threads of one process; a second process is refused. policy: what
    names the rules that versions are checked by (the policy's digest, the target, the version of
    onnx24); by other rules they are checked anew. wait_s: for a file that another program locks."""

    def __init__(self, path: str | Path, policy: str, *, wait_s: float = 5.0) -> None:
        """Raises: InputError O24-642 for a file that can't be a queue or is in use."""
        self._policy = policy
        self._lock = threading.Lock()
        self._guard = _exclusive(path)
        try:
            self._db = sqlite3.connect(
                path, check_same_thread=False, isolation_level=None, timeout=wait_s
            )
            self._open(path)
        except (sqlite3.Error, OSError) as err:
            self._release()
            raise _unusable(path, str(err)) from err
        except BaseException:
            self._release()
            raise

    def _open(self, path: str | Path) -> None:
        db = self._db
        tables = {
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
        }
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if tables - {"sqlite_sequence"} and application != _APPLICATION and tables != {"jobs"}:
            raise _unusable(path, f"it is another program's database, with {len(tables)} tables")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # what was acknowledged is on the disk
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.executescript(_SCHEMA)
        present = {row[1] for row in db.execute("PRAGMA table_info(jobs)")}
        for name, kind in _LATER:
            if name not in present:
                db.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
        with self._transaction() as transaction:
            transaction.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
            transaction.execute(
                "UPDATE jobs SET state = 'queued', status = NULL, attempts = 0, not_before = 0 "
                "WHERE state = 'done' AND status = 'error'"
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._release()

    def _release(self) -> None:
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def put(self, version: Version, delivery: str = "") -> bool:
        """Queue a version that was announced. delivery: the announcement's id.

        Returns: False where the announcement is known or the version waits already. One that is
        done waits again, and one that is being checked will, since it may be another by now.
        """
        with self._transaction() as db:
            now = time.time()
            db.execute("DELETE FROM deliveries WHERE received < ?", (now - REMEMBERED_S,))
            if delivery:
                seen = db.execute(
                    "INSERT OR IGNORE INTO deliveries (id, received) VALUES (?, ?)", (delivery, now)
                )
                if not seen.rowcount:
                    return False
            return self._queue(db, version)

    def meet(self, version: Version, making: Making) -> bool:
        """Queue a version that was found in the registry, unless it waits or was checked as it was
        made. Returns: whether it was queued."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT state, created, source FROM jobs "
                "WHERE name = ? AND version = ? AND policy = ?",
                (*version, self._policy),
            ).fetchone()
            if row is not None and (row[0] != "done" or Making(*row[1:]) == making):
                return False
            return self._queue(db, version)

    def _queue(self, db: sqlite3.Connection, version: Version) -> bool:
        made = db.execute(
            "INSERT OR IGNORE INTO jobs (name, version, policy) VALUES (?, ?, ?)",
            (*version, self._policy),
        )
        if made.rowcount:
            return True
        place = "WHERE name = ? AND version = ? AND policy = ? AND state = "
        done = db.execute(
            f"UPDATE jobs SET state = 'queued', attempts = 0, not_before = 0 {place}'done'",
            (*version, self._policy),
        )
        running = db.execute(
            f"UPDATE jobs SET again = 1 {place}'running' AND again = 0", (*version, self._policy)
        )
        return bool(done.rowcount or running.rowcount)

    def take(self) -> Job | None:
        """The version that has waited longest, which is running from now on; None for none."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT id, name, version, attempts, coalesce(status, ''), created, source "
                "FROM jobs WHERE state = 'queued' "
                "AND policy = ? AND not_before <= ? ORDER BY not_before, id LIMIT 1",
                (self._policy, time.time()),
            ).fetchone()
            if row is None:
                return None
            number, name, version, attempts, status, created, source = row
            db.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1 WHERE id = ?",
                (number,),
            )
            making = Making(created, source)
            return Job(number, Version(name, version), attempts + 1, status, making)

    def finish(self, job: Job, status: str, making: Making | None = None) -> None:
        """A version is done, or waits again where it was announced meanwhile. making: of what was
        checked."""
        created, source = making or Making(0, "")
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'done', status = ?, created = ?, source = ? WHERE id = ?",
                (status, created, source, job.id),
            )
            db.execute(
                "UPDATE jobs SET state = 'queued', attempts = 0, not_before = 0, again = 0 "
                "WHERE id = ? AND again = 1",
                (job.id,),
            )

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
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("ROLLBACK")
                raise


def _unusable(path: str | Path, why: str) -> InputError:
    return InputError.of("O24-642", why, file=str(path))


def _exclusive(path: str | Path) -> IO[bytes] | None:
    """Hold the file `PATH.lock`, as long as the process lives. Raises: InputError O24-642."""
    if fcntl is None or str(path) == ":memory:":
        return None
    if Path(path).is_dir():
        raise _unusable(path, "it is a folder")
    try:
        guard = open(f"{path}.lock", "ab")  # noqa: SIM115 - open as long as the queue
    except OSError as err:
        raise _unusable(path, os.strerror(err.errno or 0)) from err
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        guard.close()
        raise _unusable(path, "another service works on it") from err
    return guard
