"""URIs without the passwords that they hold: what may be printed, logged and written into files."""

from __future__ import annotations

import re

__all__ = ["redacted"]

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/@:]*):[^\s/@]*@")
_SECRET = r"[a-z_-]*(?:password|token|secret|key|sig)[a-z_-]*"
_QUERY = re.compile(rf"(?i)(?P<key>[?&]{_SECRET}=)[^&\s]+")


def redacted(text: str) -> str:
    """The text with `user:password@` of every URI in it, and query values that are called a
    password, token, secret, key or signature, replaced by `***`."""
    return _QUERY.sub(r"\g<key>***", _USERINFO.sub(r"\g<scheme>\g<user>:***@", text))
