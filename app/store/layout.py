"""The number of partitions that the stored data was written with."""

from __future__ import annotations

import math
import time
from typing import Any

import redis

from app.store.errors import StoreMisconfigured, store_errors
from app.store.hold import Hold
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning


class Layout:
    """Refuses to work on data that was written with another number of partitions.

    Users would be looked for in the wrong partition, and reported as members of nothing. Raises
    StoreError.
    """

    def __init__(
        self, client: redis.Redis, keys: Keys, hold: Hold, tuning: Tuning = DEFAULT
    ) -> None:
        self._check_seconds = tuning.layout_check_seconds
        self._client = client
        self._keys = keys
        self._hold = hold
        self._write_checked: dict[str | None, float] = {}  # by app id
        self._read_checked = -math.inf

    def check_writable(self, app_id: str | None = None) -> None:
        """Check the layout before a write; an empty store gets this process's layout.

        Also registers the app, so that the background work of all processes finds it.
        """
        now = time.monotonic()
        if now - self._write_checked.get(app_id, -math.inf) < self._check_seconds:
            return
        partitions = self._keys.partitions
        with store_errors():
            found = self._client.set(self._keys.layout(), partitions, nx=True, get=True)
            self._compare(found)
            if app_id is not None:
                # In this order: a hold sees the app, or the app sees the hold (hold.py).
                self._client.sadd(self._keys.apps(), app_id)
                self._hold.check()
        self._write_checked[app_id] = now

    def check_readable(self) -> None:
        """Check the layout before a read. Writes nothing, so it works if the store is full."""
        now = time.monotonic()
        if now - self._read_checked < self._check_seconds:
            return
        with store_errors():
            self._compare(self._client.get(self._keys.layout()))
        self._read_checked = now

    def _compare(self, found: Any) -> None:
        if found is None:
            return
        if int(found) == 0:
            raise StoreMisconfigured("The stored data is an unfinished copy.")
        if int(found) != self._keys.partitions:
            raise StoreMisconfigured(
                f"STORE_PARTITIONS is {self._keys.partitions}, "
                f"but the stored data has {int(found)}."
            )
