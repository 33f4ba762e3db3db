"""The command line: a contract that scripts rely on (docs/cli.md).

Nothing is imported before it is needed, so that `onnx24 --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and leave the process with its exit code.

    argv: without the program's name; `sys.argv` where None.
    """
    import signal
    import sys

    from onnx24.cli.app import run
    from onnx24.cli.failure import Terminated

    def terminate(*_: object) -> None:
        raise Terminated

    # As an exception, it removes half-written files on its way out.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(sys.argv[1:] if argv is None else argv))
