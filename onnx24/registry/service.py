"""`registry serve`: a small service between MLflow's webhooks and the gatekeeper.

A webhook is verified, its version goes into the queue, which is on the disk before the answer is
sent, and a bounded pool of workers checks it and writes the result back. A webhook that got lost,
or a version that was registered while the service was down, is found by looking through the
registry at the start and from time to time.

Nothing that happens outside ends a worker: where the queue, the disk or the registry fail, it says
so (health, metrics, log), waits a little longer each time, and goes on when they are back. A
sender has REQUEST_S seconds in all for one request; beyond MAX_CONNECTIONS a connection is closed
at once, with a 503.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from onnx24 import __version__
from onnx24.errors import Onnx24Error
from onnx24.redact import redacted
from onnx24.registry.gatekeeper import Gatekeeper
from onnx24.registry.queue import MAX_ATTEMPTS, Job, Queue
from onnx24.registry.store import Making, Store, Version
from onnx24.registry.webhook import DELIVERY, Refused, verify, version_of
from onnx24.report.table import printable

log = logging.getLogger("onnx24.registry")

MAX_BODY_BYTES = 1 << 20
MAX_CONNECTIONS = 64
MAX_WAITING = 100_000
REQUEST_S = 10.0
"""What one request may take, from the connection to its last byte."""
STOP_S = 1.0
"""How long a worker may go on with the version at hand when the service stops; what is not done by
then waits in the queue for the next start."""
RETRY_AFTER_S = 30
_IDLE_S = 0.2
_TROUBLE_S = (0.5, 1, 2, 5, 10)


class Service:
    """Use as a context manager, or call start() and stop().

    gatekeeper: makes one for each worker. promote: the alias that a version which passes gets.
    rescan_s: how often the registry is looked through [s].
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        gatekeeper: Callable[[], Gatekeeper],
        secret: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        workers: int = 2,
        promote: str | None = None,
        rescan_s: float = 300.0,
    ) -> None:
        self._store, self._queue, self._gatekeeper = store, queue, gatekeeper
        self._secret, self._promote, self._rescan_s = secret, promote, rescan_s
        self._stopping = threading.Event()
        self._events: Counter[str] = Counter()
        self._troubles: dict[str, str] = {}
        self._seconds = 0.0
        self._checks = 0
        self._lock = threading.Lock()
        self._promoting = threading.Lock()
        self._gatekeepers: list[Gatekeeper] = []
        self._server = _Server((host, port), _handler(self))
        self._threads = [
            threading.Thread(target=self._work, name=f"worker {i}", daemon=True)
            for i in range(workers)
        ]
        self._others = [
            threading.Thread(target=self._server.serve_forever, name="http", daemon=True),
            threading.Thread(target=self._rescan, name="rescan", daemon=True),
        ]

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        for thread in (*self._threads, *self._others):
            thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Answer no more, let the workers finish the version at hand for a while, then stop "
        "them."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for gatekeeper in list(self._gatekeepers):
            gatekeeper.kill()

    # --- what the HTTP side asks -----------------------------------------------------------
    def receive(self, headers: Any, body: bytes) -> tuple[int, str]:
        """(HTTP status, words) for a webhook."""
        try:
            verify(headers, body, self._secret)
            version = version_of(body)
        except Refused as refused:
            self._count("refused")
            return refused.status, str(refused)
        if version is None:
            self._count("ignored")
            return 200, "nothing to check"
        try:
            if self._queue.counts()["queued"] >= MAX_WAITING:
                self._count("overload")
                return 503, "too many versions wait"
            fresh = self._queue.put(version, headers.get(DELIVERY) or "")
        except (sqlite3.Error, OSError) as err:
            self._count("lost")
            self._trouble("webhook", err)
            return 503, "it can't be stored now; send it again"
        self._fine("webhook")
        self._count("accepted" if fresh else "known")
        return 202, "queued" if fresh else "known already"

    def health(self) -> tuple[int, str]:
        alive = sum(thread.is_alive() for thread in self._threads)
        counts = self._counts()
        with self._lock:
            troubles = dict(self._troubles)
        ok = alive == len(self._threads) and not self._stopping.is_set() and not troubles
        document = {
            "ok": ok,
            "version": __version__,
            "workers": alive,
            "troubles": troubles,
            **counts,
        }
        return (200 if ok else 503), json.dumps(document) + "\n"

    def _counts(self) -> dict[str, int]:
        """Of the queue; nothing, and a trouble, where it can't be read."""
        try:
            counts = self._queue.counts()
        except (sqlite3.Error, OSError) as err:
            self._trouble("queue", err)
            return {}
        self._fine("queue")
        return counts

    def _trouble(self, where: str, err: BaseException) -> None:
        """What does not work now; health is not ok until it does."""
        said = printable(redacted(f"{type(err).__name__}: {err}"))[:300]
        with self._lock:
            self._troubles[where] = said
        self._count("trouble")
        log.warning("%s: %s", where, said)

    def _fine(self, where: str) -> None:
        with self._lock:
            self._troubles.pop(where, None)

    def metrics(self) -> str:
        """In Prometheus's text format."""
        counts = self._counts()
        with self._lock:
            troubles = len(self._troubles)
            events, checks, seconds = dict(self._events), self._checks, self._seconds
        lines = ["# TYPE onnx24_versions gauge"]
        lines += [
            f'onnx24_versions{{state="{state}"}} {counts[state]}'
            for state in ("queued", "running", "done")
            if state in counts
        ]
        lines += ["# TYPE onnx24_troubles gauge", f"onnx24_troubles {troubles}"]
        alive = sum(thread.is_alive() for thread in self._threads)
        lines += ["# TYPE onnx24_workers gauge", f"onnx24_workers {alive}"]
        lines.append("# TYPE onnx24_results gauge")
        lines += [
            f'onnx24_results{{status="{key.removeprefix("done:")}"}} {count}'
            for key, count in sorted(counts.items())
            if key.startswith("done:")
        ]
        lines.append("# TYPE onnx24_webhooks_total counter")
        lines += [
            f'onnx24_webhooks_total{{result="{key}"}} {count}'
            for key, count in sorted(events.items())
        ]
        lines += [
            "# TYPE onnx24_check_seconds summary",
            f"onnx24_check_seconds_count {checks}",
            f"onnx24_check_seconds_sum {seconds:.3f}",
        ]
        return "\n".join(lines) + "\n"

    def _count(self, event: str) -> None:
        with self._lock:
            self._events[event] += 1

    # --- the workers -----------------------------------------------------------------------
    def _work(self) -> None:
        name = threading.current_thread().name
        with self._gatekeeper() as gatekeeper:
            self._gatekeepers.append(gatekeeper)
            for job in self._jobs(name):
                self._settle(name, job, *self._check(gatekeeper, job))

    def _jobs(self, name: str) -> Iterator[Job]:
        """The versions that wait, until the service stops, whatever the queue's file goes "
        "through."""
        failures = 0
        while not self._stopping.is_set():
            try:
                job = self._queue.take()
            except Exception as err:  # noqa: BLE001 - a locked file, a full disk, or a bug of ours
                self._trouble(name, err)
                self._pause(failures)
                failures += 1
                continue
            failures = 0
            self._fine(name)
            if job is None:
                self._stopping.wait(_IDLE_S)
            else:
                yield job

    def _check(self, gatekeeper: Gatekeeper, job: Job) -> tuple[str | None, Making | None]:
        """(what became of a version, how it was made); None for one to be tried again later."""
        begin = time.monotonic()
        if job.attempts > MAX_ATTEMPTS:  # each of them ended the process
            return "error", None
        try:
            making = self._store.making(job.version)
            if job.status and job.making == making:
                return job.status, making  # announced again, and the one that was checked
            # One at a time where an alias may move: the next one is compared with the new holder.
            with self._promoting if self._promote else nullcontext():
                outcome = gatekeeper.check(job.version, promote=self._promote)
        except (Onnx24Error, OSError) as err:
            # The registry is away, the disk is full, or the version is gone: later, at last never.
            log.warning("%s: %s", said(job.version), said(err))
            return ("error" if job.attempts >= MAX_ATTEMPTS else None), None
        except Exception:  # a bug of ours must not end the worker
            log.exception("%s: internal error", said(job.version))
            return "error", None
        with self._lock:
            self._checks += 1
            self._seconds += time.monotonic() - begin
        log.info("%s: %s", said(job.version), outcome.status)
        return outcome.status, making

    def _settle(self, name: str, job: Job, status: str | None, making: Making | None) -> None:
        """Write into the queue what became of a version, as often as it takes. A service that stops
        before leaves it as running, which the next start tries again."""
        failures = 0
        while True:
            try:
                if status is None:
                    self._queue.retry(job)
                else:
                    self._queue.finish(job, status, making)
                self._fine(name)
                return
            except Exception as err:  # noqa: BLE001 - as in _jobs
                if self._stopping.is_set():
                    return
                self._trouble(name, err)
                self._pause(failures)
                failures += 1

    def _pause(self, failures: int) -> None:
        self._stopping.wait(_TROUBLE_S[min(failures, len(_TROUBLE_S) - 1)])

    def _rescan(self) -> None:
        gatekeeper = self._gatekeeper()  # asked for tags only; no file is judged
        settled: set[tuple[Version, Making]] = set()
        while not self._stopping.is_set():
            try:
                for version in self._store.versions():
                    if self._stopping.is_set():
                        return
                    making = self._store.making(version)
                    if (version, making) in settled:
                        continue
                    if gatekeeper.is_settled(version):
                        settled.add((version, making))
                    else:
                        self._queue.meet(version, making)
                self._fine("rescan")
            except Exception as err:  # noqa: BLE001 - the registry or the queue; it is tried again
                self._trouble("rescan", err)
            self._stopping.wait(self._rescan_s)


def said(what: object) -> str:
    """For a line of the log: names are data, and may hold line ends and passwords."""
    return printable(redacted(str(what))).replace("\n", " ")


class _Server(ThreadingHTTPServer):
    """As many connections at a time as are answered well; the others are told so and closed."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                request.setblocking(False)
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # A time-out of the socket starts anew with each byte; this one does not.
        limit = threading.Timer(REQUEST_S, _hang_up, (request,))
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("a connection broke off", exc_info=True)


_BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\n"
    b"Retry-After: %d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % RETRY_AFTER_S
)


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _handler(service: Service) -> type[socketserver.BaseRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "onnx24"
        sys_version = ""
        timeout = REQUEST_S  # a sender that stops halfway does not keep a thread

        def do_GET(self) -> None:
            if self.path == "/healthz":
                status, text = service.health()
                self._answer(status, text, "application/json")
            elif self.path == "/metrics":
                self._answer(200, service.metrics(), "text/plain; version=0.0.4")
            else:
                self._answer(404, "not found\n")

        def do_POST(self) -> None:
            if self.path != "/webhook":
                self._answer(404, "not found\n")
                return
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                self._answer(400, "Content-Length is no number\n")
                return
            if len(length) > 12 or int(length) > MAX_BODY_BYTES:
                self._answer(413, f"more than {MAX_BODY_BYTES} bytes\n")
                return
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                self._answer(400, "the body is shorter than Content-Length says\n")
                return
            status, words = service.receive(self.headers, body)
            self._answer(status, f"{words}\n")

        def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if status == 503:
                self.send_header("Retry-After", str(RETRY_AFTER_S))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            log.debug(format, *arguments)

    return Handler
