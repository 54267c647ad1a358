"""Which keys of a store change, told by the store itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import redis
from redis import exceptions

from app.store.errors import StoreError

_CHANNEL = b"__redis__:invalidate"
_LOOK_SECONDS = 0.2
_BARRIER_SECONDS = 30.0


class Watch:
    """Collects the names of keys that change, from when it begins until it is closed.

    The servers tell (client-side caching, in broadcast mode), so whoever writes need not know.

    Args:
        nodes: a client of each node that takes writes.
        prefix: of the keys that matter.
    """

    def __init__(self, nodes: Sequence[redis.Redis], prefix: str) -> None:
        self._watches = [_NodeWatch(node, prefix) for node in nodes]

    def __enter__(self) -> Watch:
        for watch in self._watches:
            watch.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for watch in self._watches:
            watch.close()

    def take(self) -> set[bytes]:
        """The keys that have changed since the last call, up to all that was answered by now.

        Raises:
            StoreError: a connection broke, so that changes may have been missed.
        """
        for watch in self._watches:
            watch.ask()
        return set().union(*(watch.take() for watch in self._watches))


class _NodeWatch:
    """One node's."""

    def __init__(self, node: redis.Redis, prefix: str) -> None:
        pool = node.connection_pool
        options = {**pool.connection_kwargs, "protocol": 2, "decode_responses": False}
        options.pop("redis_connect_func", None)
        kind: Any = getattr(pool.connection_class, "library_class", pool.connection_class)
        self._listener: Any = kind(**options)
        self._asker: Any = kind(**options)
        self._prefix = prefix
        self._keys: set[bytes] = set()
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._closed = False
        self._lost = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        self._listener.connect()
        self._listener.send_command("CLIENT", "ID")
        number = self._listener.read_response()
        self._listener.send_command("SUBSCRIBE", _CHANNEL)
        self._listener.read_response()
        self._asker.connect()
        self._asker.send_command(
            *("CLIENT", "TRACKING", "ON", "REDIRECT", number, "BCAST"),
            *("PREFIX", f"{self._prefix}:"),
        )
        self._asker.read_response()
        self._thread.start()

    def ask(self) -> None:
        # Answered after what it was told of before.
        self._answered.clear()
        if not self._lost:
            self._listener.send_command("PING")

    def take(self) -> set[bytes]:
        self._answered.wait(_BARRIER_SECONDS)
        if self._lost or not self._answered.is_set():
            raise StoreError("Lost sight of what changes at the source. Run the copy again.")
        with self._lock:
            keys, self._keys = self._keys, set()
        return keys

    def close(self) -> None:
        self._closed = True
        if self._thread.is_alive():
            self._thread.join(10)
        self._listener.disconnect()
        self._asker.disconnect()

    def _listen(self) -> None:
        try:
            while not self._closed:
                if not self._listener.can_read(timeout=_LOOK_SECONDS):
                    continue
                told = self._listener.read_response()
                if told[0] == b"pong":
                    self._answered.set()
                elif told[0] == b"message":
                    if told[2] is None:  # everything was deleted
                        raise exceptions.ConnectionError
                    with self._lock:
                        self._keys.update(told[2])
        except (exceptions.RedisError, OSError):
            self._lost = True
            self._answered.set()
