"""Addresses of stores, shown and kept without what is secret in them: user names, passwords, tokens."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s'\"<>]*)", re.IGNORECASE)
_PASSWORD = re.compile(
    r"://([^\s/@]*:(?!\d+/)[^\s@]*|[^/@]*:[^/@]*)@"  # user:password@, where a raw / or a space may be in the password
    r"|[?&]\w*(pass|pwd|token|secret)\w*=",
    re.IGNORECASE,
)


def has_password(text: str) -> bool:
    """Whether an address in the text holds a password or a token."""
    return _PASSWORD.search(text) is not None


def public(address: str) -> str:
    """Scheme, host and path; `***` stands where there was more. A file's address (sqlite:///...) stays as it is."""
    scheme, mark, rest = address.partition("://")
    if not mark and re.match(r"[^/@]+:.*@", address):  # no address: a password may stand anywhere
        return f"{address.partition(':')[0]}:***"
    if not mark or rest.startswith("/"):
        return address
    place, *query = re.split(r"[?#]", rest, maxsplit=1)
    if query and "@" in query[0]:  # a raw ? in a password, or an @ in a query: which part is the host?
        return f"{scheme}://***"
    _, at, host = place.rpartition("@")
    return f"{scheme}://{'***@' * bool(at)}{host}{'?***' * bool(query and query[0])}"


def hide(text: str, address: str = "") -> str:
    """The text with every address in it as `public`, and without the secrets of `address` wherever they stand.

    A library quotes an address in parts, and one that it has misread in other parts than it has.
    """
    text = text.replace(address, public(address)) if address else text
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return _ADDRESS.sub(lambda match: public(match[0]), text)


def _secrets(address: str) -> set[str]:
    rest = address.partition("://")[2]
    credentials, query = rest.rpartition("@")[0], rest.partition("?")[2]
    if rest.startswith("/"):
        return set()
    values = [value for _, value in parse_qsl(query)]
    whole = {credentials, *credentials.split(":", 1), *values}
    parts = {part for secret in whole for part in re.split(r"[/?#@:\s]", secret)}
    return {found for secret in whole | parts for found in (secret, unquote(secret)) if len(found) > 1}
