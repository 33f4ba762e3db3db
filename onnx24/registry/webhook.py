"""MLflow's webhooks: who sent one, and which version it is about.

*Source:* MLflow documentation, Webhooks: `X-MLflow-Signature` is "v1," and the base64 of the
HMAC-SHA256 of `delivery id.timestamp.body` under the webhook's secret; the payload has `entity`,
`action` and `data`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from onnx24.registry.store import Version

SIGNATURE, TIMESTAMP, DELIVERY = (
    "X-MLflow-Signature",
    "X-MLflow-Timestamp",
    "X-MLflow-Delivery-Id",
)
MAX_AGE_S = 900
"""An older webhook may be one that somebody recorded and sends again. MLflow sends one that was not
taken again, with its first id and timestamp, up to three times and at most a minute apart, each
with a time-out of half a minute. *Source:* mlflow/webhooks/delivery.py, mlflow 3.17 (4 tries)."""
_MAX_NAME = 500
"""Longer than MLflow's own databases store."""


class Refused(Exception):
    """A webhook that is not acted on. `status`: the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def sign(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """The signature that MLflow sends."""
    content = f"{delivery}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def verify(
    headers: Mapping[str, str], body: bytes, secret: str, *, now: float | None = None
) -> None:
    """Raises: Refused for a webhook that nobody who knows the secret has sent just now."""
    signature, timestamp, delivery = (
        headers.get(name) or "" for name in (SIGNATURE, TIMESTAMP, DELIVERY)
    )
    if not (signature and timestamp and delivery):
        raise Refused(401, "not signed")
    expected = sign(secret, delivery, timestamp, body)
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
        raise Refused(401, "the signature does not fit")
    try:
        age = (time.time() if now is None else now) - int(timestamp)
    except ValueError:
        raise Refused(401, "the timestamp is no number") from None
    if abs(age) > MAX_AGE_S:
        raise Refused(401, f"sent {age:.0f} s ago")


def version_of(body: bytes) -> Version | None:
    """The version that a webhook announces; None for other events, which are nothing to us.

    Raises: Refused for a body that is no webhook's.
    """
    try:
        document = json.loads(body)
        event = (document["entity"], document["action"])
        if event != ("model_version", "created"):
            return None
        name, version = document["data"]["name"], str(document["data"]["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise Refused(400, f"no webhook of MLflow: {type(err).__name__}") from err
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise Refused(400, "no name of a model")
    if not (version.isascii() and version.isdigit() and len(version) < 19):
        raise Refused(400, "no version")
    return Version(name, version)
