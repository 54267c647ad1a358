"""Wait until replicas have what operators changed."""

from __future__ import annotations

import redis

from app.store.connection.calls import Call, NotReplicated, Wait
from app.store.connection.cluster import ClusterClient
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import store_errors
from app.store.keys import Keys

_LOOK_MS = 100


class Replication:
    """Waits for as many replicas as ``STORE_WAIT_REPLICAS`` says. Raises StoreError.

    Calls that change memberships wait themselves. An administrator's action is many calls, and
    this waits once, at its end.
    """

    def __init__(self, client: redis.Redis, keys: Keys, wait: Wait) -> None:
        self._client = client
        self._keys = keys
        self._wait = wait
        self._barrier = load_script(client, "barrier.lua")

    def confirm(self, app_id: str | None = None) -> None:
        """Wait until replicas have what was written about keys and, if given, an app.

        Raises:
            StoreError: ``store_not_replicated``. The primary has the writes. A repeat is safe.
        """
        if not self._wait.replicas:
            return
        shared = (self._keys.api_keys(), self._keys.audit())
        names = [f"{key}:{{{key}}}" for key in shared]  # each on the node of its key
        if app_id is not None:
            partitions = range(self._keys.partitions)
            names += [f"{self._keys.base(app_id, n)}barrier" for n in partitions]
        if not isinstance(self._client, ClusterClient):
            names = names[-1:]  # one server has everything
        with store_errors():
            call_partitions(self._barrier, [Call(name, ()) for name in names], self._wait)

    def has_reached(self, app_id: str, partition: int) -> bool:
        """Whether replicas have what was written to a partition; True if none is waited for.

        Waits for a tenth of a second at most; replicas that keep up need less.
        """
        if not self._wait.replicas:
            return True
        barrier = Call(f"{self._keys.base(app_id, partition)}barrier", ())
        try:
            call_partitions(self._barrier, [barrier], self._wait._replace(timeout_ms=_LOOK_MS))
        except NotReplicated:
            return False
        return True
