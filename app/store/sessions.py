"""What all workers know of the dashboard's sessions: how they are signed, which have ended."""

from __future__ import annotations

import secrets
from typing import Any

import redis

from app.store.errors import translated
from app.store.keys import Keys

_SECRET_BYTES = 32


class SessionStore:
    """Keeps the secret that sessions are signed with, and those that were ended.

    Raises StoreError.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def secret(self) -> bytes:
        """The secret, which is made when it is first asked for. Sessions end with it."""
        key = self._keys.session_secret()
        with translated():
            found: Any = self._client.get(key)
            if found is None:
                made = secrets.token_bytes(_SECRET_BYTES)
                found = self._client.set(key, made, nx=True, get=True) or made
        return bytes(found)

    def end(self, session_id: str, seconds: int) -> None:
        """End a session for good; it would have lasted so long at most."""
        with translated():
            self._client.set(self._keys.ended_session(session_id), 1, ex=seconds)

    def is_ended(self, session_id: str) -> bool:
        """Whether a session was ended."""
        with translated():
            return bool(self._client.exists(self._keys.ended_session(session_id)))
