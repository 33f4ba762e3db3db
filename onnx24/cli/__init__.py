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
    import sys

    from onnx24.cli.app import run
    from onnx24.cli.signals import Signals

    signals = Signals()
    signals.install()
    sys.exit(run(sys.argv[1:] if argv is None else argv, signals))
