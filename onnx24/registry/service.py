"""`registry serve`: a small service between MLflow's webhooks and the gatekeeper.

A webhook is verified, its version goes into the queue, which is on the disk before the answer is
sent, and a bounded pool of workers checks it and writes the result back. A webhook that got lost,
or a version that was registered while the service was down, is found by looking through the
registry at the start and from time to time.
"""

from __future__ import annotations

import json
import logging
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from onnx24 import __version__
from onnx24.errors import Onnx24Error
from onnx24.registry.gatekeeper import Gatekeeper
from onnx24.registry.queue import MAX_ATTEMPTS, Job, Queue
from onnx24.registry.store import Store, Version
from onnx24.registry.webhook import Refused, verify, version_of

log = logging.getLogger("onnx24.registry")

MAX_BODY_BYTES = 1 << 20
MAX_CONNECTIONS = 64
MAX_WAITING = 100_000
_IDLE_S = 0.2


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
        self._seconds = 0.0
        self._checks = 0
        self._lock = threading.Lock()
        self._promoting = threading.Lock()
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

    def stop(self, timeout_s: float = 60.0) -> None:
        """Answer no more, and let the workers finish the version at hand."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

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
        if self._queue.counts()["queued"] >= MAX_WAITING:
            self._count("overload")
            return 503, "too many versions wait"
        fresh = self._queue.put(version)
        self._count("accepted" if fresh else "known")
        return 202, "queued" if fresh else "known already"

    def health(self) -> tuple[int, str]:
        alive = sum(thread.is_alive() for thread in self._threads)
        ok = alive == len(self._threads) and not self._stopping.is_set()
        document = {"ok": ok, "version": __version__, "workers": alive, **self._queue.counts()}
        return (200 if ok else 503), json.dumps(document) + "\n"

    def metrics(self) -> str:
        """In Prometheus's text format."""
        counts = self._queue.counts()
        with self._lock:
            events, checks, seconds = dict(self._events), self._checks, self._seconds
        lines = ["# TYPE onnx24_versions gauge"]
        lines += [
            f'onnx24_versions{{state="{state}"}} {counts[state]}'
            for state in ("queued", "running", "done")
        ]
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
        with self._gatekeeper() as gatekeeper:
            while not self._stopping.is_set():
                job = self._queue.take()
                if job is None:
                    self._stopping.wait(_IDLE_S)
                else:
                    self._check(gatekeeper, job)

    def _check(self, gatekeeper: Gatekeeper, job: Job) -> None:
        begin = time.monotonic()
        if job.attempts > MAX_ATTEMPTS:  # each of them ended the process
            self._queue.finish(job, "error")
            return
        try:
            # One at a time where an alias may move: the next one is compared with the new holder.
            with self._promoting if self._promote else nullcontext():
                outcome = gatekeeper.check(job.version, promote=self._promote, only_newer=True)
        except Onnx24Error as err:
            # The registry is away, or the version is gone: later, and at last never.
            log.warning("%s: %s", job.version, err)
            if job.attempts >= MAX_ATTEMPTS:
                self._queue.finish(job, "error")
            else:
                self._queue.retry(job)
            return
        except Exception:  # a bug of ours must not end the worker
            log.exception("%s: internal error", job.version)
            self._queue.finish(job, "error")
            return
        self._queue.finish(job, outcome.status)
        with self._lock:
            self._checks += 1
            self._seconds += time.monotonic() - begin
        log.info("%s: %s", job.version, outcome.status)

    def _rescan(self) -> None:
        gatekeeper = self._gatekeeper()  # asked for tags only; no file is judged
        settled: set[Version] = set()
        while not self._stopping.is_set():
            try:
                for version in self._store.versions():
                    if self._stopping.is_set():
                        return
                    if version in settled or self._queue.knows(version):
                        continue
                    if gatekeeper.is_settled(version):
                        settled.add(version)
                    else:
                        self._queue.put(version)
            except Onnx24Error as err:
                log.warning("rescan: %s", err)
            self._stopping.wait(self._rescan_s)


class _Server(ThreadingHTTPServer):
    """As many connections at a time as are answered well; the others wait in the kernel's queue."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("a connection broke off", exc_info=True)


def _handler(service: Service) -> type[socketserver.BaseRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "onnx24"
        sys_version = ""
        timeout = 10  # [s]; a sender that stops halfway does not keep a thread

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
            if not length.isdigit() or int(length) > MAX_BODY_BYTES:
                self._answer(413, "too large, or of unknown length\n")
                return
            body = self.rfile.read(int(length))
            status, words = service.receive(self.headers, body)
            self._answer(status, f"{words}\n")

        def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            log.debug(format, *arguments)

    return Handler
