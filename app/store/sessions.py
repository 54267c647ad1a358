"""What all workers share about dashboard sessions: the signing secret, and which have ended."""

from __future__ import annotations

import secrets
from typing import Any

import redis

from app.store.connection.scripts import register
from app.store.errors import store_errors
from app.store.keys import Keys

_SECRET_BYTES = 32
# Allowed when memory is full: an operator of a full store must be able to log in and out.
_SET = """#!lua flags=allow-oom
return redis.call('SET', KEYS[1], unpack(ARGV))
"""


class SessionStore:
    """Stores the secret that signs sessions, and which have ended. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._set = register(client, _SET)

    def secret(self) -> bytes:
        """The secret; created on first use. All sessions end if it is deleted."""
        key = self._keys.session_secret()
        with store_errors():
            found: Any = self._client.get(key)
            if found is None:
                made = secrets.token_bytes(_SECRET_BYTES)
                found = self._set(keys=[key], args=[made, "NX", "GET"]) or made
        return bytes(found)

    def end(self, session_id: str, seconds: int) -> None:
        """End a session that would have expired in ``seconds`` at the latest."""
        with store_errors():
            self._set(keys=[self._keys.ended_session(session_id)], args=[1, "EX", seconds])

    def is_ended(self, session_id: str) -> bool:
        """Whether a session has ended."""
        with store_errors():
            return bool(self._client.exists(self._keys.ended_session(session_id)))
