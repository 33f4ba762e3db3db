"""Who vouches for a model: an Ed25519 signature in metadata_props, made and checked offline.

What is signed is `provenance.content_digest`: graph, values, wherever they lie, and every other
entry. So a signature moves with the model into a registry or out of a data file, and holds for no
other model and no edited one. Keys are PEM files, as `openssl genpkey -algorithm ed25519` makes
them, or OpenSSH's public ones; the arithmetic is the library `cryptography`'s.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from onnx24.errors import BackendError, InputError
from onnx24.ir.inputs import regular
from onnx24.passmgr.provenance import SIGNATURE_KEY, content_digest

if TYPE_CHECKING:
    from onnx24.ir.model import Model

__all__ = ["sign", "signature_problem"]

_SAID = b"onnx24 signature 1\0"
"""What comes before the digest, so that a signature of something else is none of a model."""
_ENTRY = re.compile(r"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})")
_PUBLIC = re.compile(
    rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----|^ssh-\S+ \S+", re.DOTALL | re.MULTILINE
)


def sign(model: Model, key: str | os.PathLike[str]) -> str:
    """Write the signature of the private key in the file `key` into the model. Returns: the public
    key in hex. Raises: InputError O24-645; BackendError O24-646 without the library."""
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(regular(key).read_bytes(), None)
    except (OSError, ValueError, TypeError) as err:  # TypeError: it needs a password
        raise _no_key(key, str(err)) from err
    if not isinstance(private, Ed25519PrivateKey):
        raise _no_key(key, "it is of another algorithm")
    public = private.public_key().public_bytes_raw().hex()
    signature = private.sign(_message(model)).hex()
    model.metadata[SIGNATURE_KEY] = f"ed25519 {public} {signature}"
    return public


def signature_problem(model: Model, keys: str | os.PathLike[str]) -> str:
    """Why no key of the file `keys`, which may hold several, vouches for the model; "" where one
    does. Raises: as sign."""
    from cryptography.exceptions import InvalidSignature

    trusted = {key.public_bytes_raw().hex(): key for key in _public_keys(keys)}
    said = model.metadata.get(SIGNATURE_KEY, "")
    if (entry := _ENTRY.fullmatch(said)) is None:
        return "it is signed by nobody" if not said else f"{SIGNATURE_KEY!r} is no signature"
    public, signature = entry[1], bytes.fromhex(entry[2])
    if public not in trusted:
        return f"it is signed by {public}, which is no key of {os.fspath(keys)}"
    try:
        trusted[public].verify(signature, _message(model))
    except InvalidSignature:
        return f"it is not what {public} signed"
    return ""


def _public_keys(path: str | os.PathLike[str]) -> list[Any]:
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        texts = _PUBLIC.findall(regular(path).read_bytes())
        keys = [
            forms.load_ssh_public_key(text)
            if text.startswith(b"ssh-")
            else forms.load_pem_public_key(text)
            for text in texts
        ]
    except (OSError, ValueError, UnsupportedAlgorithm) as err:
        raise _no_key(path, str(err)) from err
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found or len(found) != len(keys):
        raise _no_key(path, f"{len(found)} of its {len(keys)} public keys are Ed25519")
    return found


def _message(model: Model) -> bytes:
    return _SAID + bytes.fromhex(content_digest(model))


def _no_key(path: str | os.PathLike[str], why: str) -> InputError:
    return InputError.of("O24-645", f"expected an Ed25519 key: {why}", file=os.fspath(path))


def _require_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as err:
        raise BackendError.of("O24-646", "signatures need the library cryptography") from err
