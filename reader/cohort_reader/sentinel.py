"""Addresses of stores behind Sentinels."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote

_PORT = 26379
_HOST = r"(?:\[[^\]]+\]|[^\s:/?#@\[\],]+)(?::\d+)?"
# Not urlsplit: it refuses several hosts if one is an IPv6 address.
_URL = re.compile(
    rf"(rediss?)\+sentinel://(?:([^/?#@]*)@)?({_HOST}(?:,{_HOST})*)/([^/?#]+)(?:/(\d*))?(?:\?(.*))?"
)


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
        ValueError: the URL has another form.
    """
    found = _URL.fullmatch(url)
    if not found:
        raise ValueError("expected redis+sentinel://host:port,host:port/service/db")
    scheme, userinfo, hosts, service, db, query_text = found.groups()
    user, _, password = map(unquote, (userinfo or "").partition(":"))
    query = dict(parse_qsl(query_text or ""))
    tls = {"ssl": True} if scheme == "rediss" else {}
    return {
        "sentinels": [_address(host) for host in hosts.split(",")],
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


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("[").partition("]:" if text.startswith("[") else ":")
    return host.removesuffix("]"), int(port or _PORT)
