"""SIGINT and SIGTERM end a command: at once where Python runs, else within two seconds.

As an exception a signal removes half-written files on its way out. A library that is being
imported may make another error of it, or swallow it, and native code lets Python see none before it
returns: so the first signal decides the exit code whatever error comes of it, and a thread that the
C handler wakes ends the process where the exception has not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from onnx24.cli.failure import Terminated

GRACE_S = 1.5
_ENDS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """What the process was asked to end by."""

    def __init__(self) -> None:
        self.received = 0
        self._writer = -1

    def install(self) -> None:
        """In the main thread, and only where nobody else handles them."""
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number in _ENDS:
            if signal.getsignal(number) is usual[number]:
                signal.signal(number, self._handle)
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def error(self) -> BaseException | None:
        """The exception that the signal stands for; None where there was none."""
        if not self.received:
            return None
        return KeyboardInterrupt() if self.received == signal.SIGINT else Terminated()

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number
        raise self.error() or Terminated()

    def _forget(self) -> None:
        """A forked process has no watching thread, and its signals are not its parent's."""
        if self._writer >= 0:
            signal.set_wakeup_fd(-1)

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in _ENDS and signal.getsignal(number) == self._handle:
                    time.sleep(GRACE_S)
                    _leave(128 + number)


def catch_cut_files() -> None:
    """Say O24-073 where a mapped file was cut while it was read, and leave: the page that is gone
    is a SIGBUS, which Python's own handlers never get to see. POSIX only.

    The handler is Python called from C, in the thread that read; native code that holds no lock of
    the interpreter's lets it in, and nothing goes on after it.
    """
    number = getattr(signal, "SIGBUS", None)
    if _HANDLERS or number is None or signal.getsignal(number) is not signal.SIG_DFL:
        return
    try:
        import ctypes

        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        _HANDLERS.append(kind(lambda _: _say_cut()))
        ctypes.CDLL(None).signal(int(number), _HANDLERS[-1])
    except (ImportError, OSError, AttributeError, MemoryError):  # no executable memory (SELinux)
        return


_HANDLERS: list[object] = []
"""What C calls has to stay alive."""


def _say_cut() -> None:
    from onnx24.ir.overlay import became_shorter

    os.write(2, f"{became_shorter('a mapped file')}\n".encode())
    _leave(2)


def _leave(code: int) -> None:
    """Without asking the main thread, which is in native code or deaf."""
    from onnx24.ir.files import AtomicFiles

    AtomicFiles.discard_all()
    os._exit(code)
