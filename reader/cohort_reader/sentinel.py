"""Addresses of stores behind Sentinels."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_PORT = 26379


def is_sentinel(url: str) -> bool:
    """Whether a URL names Sentinels rather than a store."""
    return url.startswith(("redis+sentinel://", "rediss+sentinel://"))


def sentinel_arguments(url: str, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments of the library's ``Sentinel``, and the name of the service.

    Args:
        url: ``redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]``, and
            ``?sentinel_username=`` and ``sentinel_password=`` for the Sentinels themselves;
            ``rediss+sentinel://`` for TLS.
        options: of connections to the Sentinels and to the store.

    Raises:
        ValueError: it has another form.
    """
    parts = urlsplit(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, password = map(unquote, userinfo.partition(":"))
    service, _, db = parts.path.removeprefix("/").partition("/")
    addresses = [re.fullmatch(r"\[?([^\]]+?)\]?(?::(\d+))?", host) for host in hosts.split(",")]
    if not service or not all(addresses) or not re.fullmatch(r"\d*", db):
        raise ValueError("expected redis+sentinel://host:port,host:port/service/db")
    query = dict(parse_qsl(parts.query))
    tls = {"ssl": True} if parts.scheme.startswith("rediss") else {}
    return {
        "sentinels": [(found[1], int(found[2] or _PORT)) for found in addresses if found],
        "sentinel_kwargs": {
            "username": query.get("sentinel_username"),
            "password": query.get("sentinel_password"),
            **tls,
            **options,
        },
        "username": user or None,
        "password": password or None,
        "db": int(db or 0),
        **tls,
        **options,
    }, unquote(service)
