"""A call that contradicts itself."""

from __future__ import annotations

from onnx24.errors import InputError


def usage(message: str, hint: str) -> InputError:
    """A command line, or a call, that cannot be understood."""
    return InputError.of("O24-043", message, hint=hint)
