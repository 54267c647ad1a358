"""The number of partitions that the stored data was written with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import redis

from app.store.errors import UNAVAILABLE, StoreError, StoreMisconfigured, store_errors
from app.store.hold import Hold
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

# Names of checks that are not of an app; no app id has a space.
_READS, _WRITES = "all reads", "all writes"


class Layout:
    """Refuses to work on data that was written with another number of partitions.

    Otherwise users would be looked for in the wrong partition, and found in no cohort. Raises
    StoreError.
    """

    def __init__(
        self, client: redis.Redis, keys: Keys, hold: Hold, tuning: Tuning = DEFAULT
    ) -> None:
        self._check_seconds = tuning.layout_check_seconds
        self._client = client
        self._keys = keys
        self._hold = hold
        self._is_known = False
        self._checked: dict[str, float] = {}  # by app id, _READS or _WRITES

    def check_writable(self, app_id: str | None = None) -> None:
        """Check the layout before a write; an empty store gets this process's layout.

        Also registers the app, so that the background work of all processes finds it.
        """
        if app_id is None:
            self._check(_WRITES, self._claim, self._is_known)
        else:
            # Its registration must have succeeded once, or a hold could miss the app.
            self._check(app_id, lambda: self._register(app_id), app_id in self._checked)

    def check_readable(self) -> None:
        """Check the layout before a read. Writes nothing, so it works if the store is full."""
        self._check(_READS, self._read, self._is_known)

    def _check(self, name: str, check: Callable[[], None], has_passed: bool) -> None:
        """Run a check, at most once in ``layout_check_seconds``.

        Args:
            has_passed: it has passed before. Then it succeeds even if the node with these keys is
                unavailable: on a cluster, the request may need only other nodes.
        """
        now = time.monotonic()
        if now - self._checked.get(name, -math.inf) < self._check_seconds:
            return
        if has_passed:
            # Others don't wait for this check, which may take as long as the store's timeout.
            self._checked[name] = now
        try:
            check()
        except UNAVAILABLE:
            if not has_passed:
                raise
        except StoreError:
            self._checked.pop(name, None)
            raise
        else:
            self._checked[name] = now

    def _read(self) -> None:
        with store_errors():
            self._compare(self._client.get(self._keys.layout()))

    def _claim(self) -> None:
        with store_errors():
            found = self._client.set(self._keys.layout(), self._keys.partitions, nx=True, get=True)
            self._compare(found)

    def _register(self, app_id: str) -> None:
        self._claim()
        with store_errors():
            # In this order: a hold sees the app, or the app sees the hold (hold.py).
            self._client.sadd(self._keys.apps(), app_id)
        self._hold.check()

    def _compare(self, found: Any) -> None:
        self._is_known = False
        if found is not None and int(found) == 0:
            raise StoreMisconfigured("The stored data is an unfinished copy.")
        if found is not None and int(found) != self._keys.partitions:
            raise StoreMisconfigured(
                f"STORE_PARTITIONS is {self._keys.partitions}, "
                f"but the stored data has {int(found)}."
            )
        self._is_known = True
