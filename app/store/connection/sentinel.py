"""Connect to the primary that Sentinels name, and follow it after a failover."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from app.settings import SENTINEL_URL

_PORT = 26379
# A Sentinel is never busy for long. If it does not reply within this time, the next one is asked.
_TIMEOUT_SECONDS = 1.0
# How the library shows a Sentinel that failed.
_CLIENT = re.compile(r"<redis\.client\.Redis\(.*?host=([^,]*),port=(\d+),.*?\)>\)>\)>")


class SentinelUrl(NamedTuple):
    """``redis+sentinel://[user:password@]host:port[,host:port…]/<service>[/<db>]``

    Attributes:
        user, password: for the primary.
        sentinel_user, sentinel_password: for the Sentinels, from the query: ``sentinel_username``,
            ``sentinel_password``.
        tls: whether connections to the primary and to the Sentinels use TLS.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int
    user: str | None
    password: str | None
    sentinel_user: str | None
    sentinel_password: str | None
    tls: bool

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """The parts of a URL that the settings have checked."""
        found = SENTINEL_URL.fullmatch(url)
        assert found, "the settings have checked it"
        user, _, password = map(unquote, (found["userinfo"] or "").partition(":"))
        query = dict(parse_qsl(found["query"] or ""))
        return cls(
            tuple(map(_address, found["hosts"].split(","))),
            unquote(found["service"]),
            int(found["db"] or 0),
            user or None,
            password or None,
            query.get("sentinel_username"),
            query.get("sentinel_password"),
            found["scheme"] == "rediss",
        )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("[").partition("]:" if text.startswith("[") else ":")
    return host.removesuffix("]"), int(port or _PORT)


class Primary:
    """The address of the primary, as the Sentinels know it.

    Args:
        moved: called when the primary's address has changed.
    """

    def __init__(
        self, url: SentinelUrl, timeout: float, moved: Callable[[], None], **options: Any
    ) -> None:
        timeout = min(timeout, _TIMEOUT_SECONDS)
        self._service = url.service
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            url.sentinels,
            sentinel_kwargs={
                "username": url.sentinel_user,
                "password": url.sentinel_password,
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 1),  # by default ten, with pauses
                "ssl": url.tls,
                **options,
            },
        )
        self._moved = moved
        self._asking = threading.Lock()
        self._asked = -1.0
        self._address: tuple[str, int] | None = None
        self._failure: exceptions.ConnectionError | None = None

    def address(self) -> tuple[str, int]:
        """Ask the Sentinels. Calls at the same moment share a reply.

        Raises:
            redis.AuthenticationError: the Sentinels refuse the credentials.
            redis.ConnectionError: no Sentinel knows a primary that is up.
        """
        wanted = time.monotonic()
        # The library's object does not support threads: it reorders its list of Sentinels.
        with self._asking:
            if self._asked < wanted:
                self._asked = time.monotonic()
                self._ask()
            if self._failure:
                raise type(self._failure)(*self._failure.args)
            assert self._address, "it was asked for"
            return self._address

    def _ask(self) -> None:
        try:
            found = self._sentinel.discover_master(self._service)  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            # The library's error has the addresses and errors of all Sentinels in its text only.
            refused = "AuthenticationError" in str(error)
            kind = exceptions.AuthenticationError if refused else exceptions.ConnectionError
            self._failure = kind(_CLIENT.sub(r"\1:\2", str(error)))
            return
        finally:
            for sentinel in self._sentinel.sentinels:  # rarely asked: keep no connections
                sentinel.close()
        self._failure = None
        if self._address not in (None, found):
            self._moved()
        self._address = found


class SentinelConnection(Connection):
    """Connects to the current primary."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._primary = primary

    def _connect(self) -> Any:
        self.host, self.port = self._primary.address()
        return super()._connect()  # type: ignore[no-untyped-call]


class SentinelSSLConnection(SentinelConnection, SSLConnection):
    """The same with TLS."""


def follow_primary(client: redis.Redis) -> None:
    """Ask the Sentinels, if the store has any, which server is the primary now.

    A former primary that was paused or cut off keeps its connections, and replies on them, until
    the Sentinels demote it, some ten seconds after it is back.
    """
    pool = getattr(client, "connection_pool", None)  # a cluster has several
    primary = pool.connection_kwargs.get("primary") if pool else None
    if primary is not None:
        with suppress(exceptions.ConnectionError):
            primary.address()


def sentinel_connections(
    url: str, timeout: float, moved: Callable[[], None], **tls_options: Any
) -> tuple[type[Connection], dict[str, Any]]:
    """The class of connections to the primary, and its options.

    Args:
        moved: called when the primary's address has changed.
    """
    parts = SentinelUrl.parse(url)
    options = {
        "primary": Primary(parts, timeout, moved, **tls_options),
        "username": parts.user,
        "password": parts.password,
        "db": parts.db,
    }
    if parts.tls:
        return SentinelSSLConnection, {**options, **tls_options}
    return SentinelConnection, options
