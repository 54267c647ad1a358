"""Readers: how the simulator reads back what a receiver has stored.

A reader is optional; without one only the replies are checked. There are two, both for Cohort
Receiver: one reads its Redis or Valkey store (a hash per user, trait name to `true` or `false`),
the other its HTTP API.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import redis

Value = bool | None
Traits = dict[str, Value | str]


class ReaderError(Exception):
    """The receiver's state can't be read."""


class Reader(Protocol):
    """Reads users' traits from a receiver."""

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        """Return each user's traits, in the order of `user_ids`; {} for an unknown user.

        A value that is neither true nor false is returned as a string. Raises `ReaderError`.
        """
        ...


class RedisReader:
    """Reads the hashes `{prefix}:{{tag}}:user:{user id}` from Redis or Valkey.

    The tag is the app, or with several partitions `app:N` where N is the CRC-32 of the user id
    modulo the number of partitions. `url` is any that redis-py accepts.
    """

    USERS_PER_PIPELINE = 500

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
        """Return the key of a user's hash."""
        raw = user_id.encode()
        tag = self._app
        if self._partitions > 1:
            tag = f"{tag}:{zlib.crc32(raw) % self._partitions}"
        return f"{self._prefix}:{{{tag}}}:user:".encode() + raw

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        """See `Reader.traits`."""
        found: list[Traits] = []
        try:
            for start in range(0, len(user_ids), self.USERS_PER_PIPELINE):
                with self._redis.pipeline(transaction=False) as pipe:
                    for user_id in user_ids[start : start + self.USERS_PER_PIPELINE]:
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
    """Queries `POST {url}/api/v1/users/query`. `key` needs the scope `read`."""

    USERS_PER_REQUEST = 1000

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/") + "/api/v1/users/query"
        self._where = _without_password(self._url)
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode(),
        }

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        """See `Reader.traits`."""
        found: list[Traits] = []
        for start in range(0, len(user_ids), self.USERS_PER_REQUEST):
            chunk = list(user_ids[start : start + self.USERS_PER_REQUEST])
            request = urllib.request.Request(  # noqa: S310  an address given by the operator
                self._url, json.dumps({"userIds": chunk}).encode(), self._headers
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  # nosec B310
                    found += [user["traits"] for user in json.load(reply)["users"]]
            except urllib.error.HTTPError as error:
                error.close()
                hint = " It needs a key with the scope read." if error.code in (401, 403) else ""
                raise ReaderError(f"{self._where} returned {error.code}.{hint}") from None
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
