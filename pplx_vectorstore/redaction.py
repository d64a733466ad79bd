"""What may be shown of texts and addresses that hold keys and passwords."""

from __future__ import annotations

import re
from collections.abc import Iterable


def without_password(url: str) -> str:
    """Return a URL as it may be shown: user, password, query and fragment have no place in messages.

    Up to the last @, whatever comes before: a password may hold any character. What is no URL comes back as it is,
    unless it looks like one whose scheme was forgotten.

    >>> without_password("https://user:p@ss/w?rd@host:6333/path?key=secret"), without_password("a folder@home")
    ('https://host:6333/path', 'a folder@home')
    >>> without_password("user:password@host:6333")
    'host:6333'
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*:)?//|(?=[^/\\@:]*:[^@]*@)", url)
    if scheme is None:
        return url
    return scheme[0] + re.split("[?#]", url[scheme.end() :].rpartition("@")[2])[0]


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return a text with three stars for each secret: a server may quote what it was sent.

    >>> redact("invalid key pplx-4711", ["pplx-4711"])
    'invalid key ***'
    """
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "***")
    return text
