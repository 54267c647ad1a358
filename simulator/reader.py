"""Readers: how the simulator looks at what a receiver has stored.

A reader is optional; without one only the wire is checked. There are two, both for Cohort Receiver:
one looks into Redis or Valkey (one hash for each user, its fields the trait names, its values
`true` or `false`), the other asks the service itself, over HTTP.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.request
import zlib
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import redis

Value = bool | None
Traits = dict[str, Value | str]


class ReaderError(Exception):
    """The store can't be read; the text says why."""


class Reader(Protocol):
    """Reads users' traits from wherever a receiver keeps them."""

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        """Return each user's traits, in the order asked for; an empty dict for an unknown user.

        A value that is neither true nor false is given as the string that was found. Raises
        `ReaderError`.
        """
        ...


class RedisReader:
    """Reads `{prefix}:{{tag}}:user:{user id}` hashes, where the tag is the app, or with several
    partitions `app:crc32(user id) mod partitions`.

    `url` is `redis://`, `rediss://` or `unix://`, as redis-py takes it.
    """

    def __init__(
        self, url: str, *, prefix: str = "cohorts", app: str = "default", partitions: int = 1
    ) -> None:
        self._prefix = prefix
        self._app = app
        self._partitions = partitions
        try:
            self._redis = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=30)
        except ValueError as error:
            raise ReaderError(f"{_without_password(url)}: {error}") from None
        self._where = _without_password(url)

    def key(self, user_id: str) -> bytes:
        """Return the name of a user's hash."""
        raw = user_id.encode()
        tag = self._app
        if self._partitions > 1:
            tag = f"{tag}:{zlib.crc32(raw) % self._partitions}"
        return f"{self._prefix}:{{{tag}}}:user:".encode() + raw

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        """Read the users' hashes, a few hundred to a round trip (see `Reader.traits`)."""
        found: list[Traits] = []
        try:
            for start in range(0, len(user_ids), 500):
                with self._redis.pipeline(transaction=False) as pipe:
                    for user_id in user_ids[start : start + 500]:
                        pipe.hgetall(self.key(user_id))
                    found += [
                        {_text(name): _value(value) for name, value in fields.items()}
                        for fields in pipe.execute()
                    ]
        except redis.RedisError as error:
            raise ReaderError(f"{self._where}: {error}") from None
        return found

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class HttpReader:
    """Asks `POST {url}/api/v1/users/query`, with a key that may read as username of Basic."""

    USERS_A_CALL = 1000

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/") + "/api/v1/users/query"
        self._where = _without_password(self._url)
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode(),
        }

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        """Ask for the users' traits, a thousand at a time (see `Reader.traits`)."""
        found: list[Traits] = []
        for start in range(0, len(user_ids), self.USERS_A_CALL):
            part = list(user_ids[start : start + self.USERS_A_CALL])
            request = urllib.request.Request(  # noqa: S310  the user's own address
                self._url, json.dumps({"userIds": part}).encode(), self._headers
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  # nosec B310
                    found += [user["traits"] for user in json.load(reply)["users"]]
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                raise ReaderError(f"{self._where}: {error}") from None
        return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _value(raw: bytes) -> Value | str:
    return {b"true": True, b"false": False}.get(raw, _text(raw))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
