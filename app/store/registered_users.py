"""The users that ``USER_POLICY=known`` accepts."""

from __future__ import annotations

from collections.abc import Iterable

import redis

from app.store.connection.calls import Call
from app.store.connection.script import StoreScript
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.layout import Layout

USERS_PER_CALL = 1000


class RegisteredUsers:
    """Adds and removes registered users. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, layout: Layout) -> None:
        self._keys = keys
        self._layout = layout
        self._add = load_script(client, "register_users.lua")
        self._remove = load_script(client, "remove_users.lua")

    def add(self, app_id: str, user_ids: Iterable[str]) -> int:
        """Register users. Returns how many were new."""
        return self._call(app_id, user_ids, self._add)

    def remove(self, app_id: str, user_ids: Iterable[str]) -> int:
        """Unregister users; their traits stay. Returns how many were registered."""
        return self._call(app_id, user_ids, self._remove, "registered")

    def _call(
        self, app_id: str, user_ids: Iterable[str], script: StoreScript, *options: str
    ) -> int:
        self._layout.check_writable(app_id)
        calls = [
            Call(
                self._keys.changes(app_id, partition),
                [*options, *users[start : start + USERS_PER_CALL]],
            )
            for partition, users in self._keys.by_partition(list(user_ids)).items()
            for start in range(0, len(users), USERS_PER_CALL)
        ]
        with store_errors():
            return sum(call_partitions(script, calls))
