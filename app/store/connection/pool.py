"""The pool of connections to the store: bounded and fair."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Any

import redis
from hiredis import pack_command
from redis.connection import AbstractConnection


class FairLifoQueue:
    """Hands each item to the longest waiter. Has the methods of ``LifoQueue`` that pools use.

    The standard library's queues let a newcomer take the item for which a waiter was woken up.
    Under load, some requests then wait for seconds while others never do.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: list[Any] = []
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()

    def put_nowait(self, item: Any) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().give(item)
            elif len(self.queue) >= self.maxsize:
                raise queue.Full
            else:
                self.queue.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        with self._lock:
            if self.queue:
                return self.queue.pop()
            if not block:
                raise queue.Empty
            waiter = _Waiter()
            self._waiting.append(waiter)
        try:
            received = waiter.wait(timeout)
        except BaseException:
            self._leave(waiter)
            raise
        if not received and not self._leave(waiter, keep=True):
            raise queue.Empty
        return waiter.item

    def _leave(self, waiter: _Waiter, *, keep: bool = False) -> bool:
        """Leave the queue. True if an item arrived at the last moment; unless kept, pass it on."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                return False
        if not keep:
            self.put_nowait(waiter.item)
        return True


class _Waiter:
    """A call of :meth:`FairLifoQueue.get` that waits for an item."""

    def __init__(self) -> None:
        self.item: Any = None
        self._received = threading.Lock()
        self._received.acquire()

    def give(self, item: Any) -> None:
        self.item = item
        self._received.release()

    def wait(self, timeout: float | None) -> bool:
        return self._received.acquire(timeout=-1 if timeout is None else timeout)


def make_pool(url: str, *, max_connections: int, timeout: float, **options: Any) -> Any:
    """A pool in which calls queue for a free connection, for up to ``timeout`` seconds."""
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=max_connections, timeout=timeout, queue_class=FairLifoQueue, **options
    )
    pool.connection_class = lean(pool.connection_class)
    return pool


def lean(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """A connection class of the library, without two costs.

    Together they are about 6% of the CPU time of a request with a thousand users;
    ``tests/unit/store/connection/test_pool.py`` checks the library internals behind them.
    """

    class Connection(kind):  # type: ignore[misc, valid-type]
        def can_read(self, timeout: float = 0) -> bool:
            """Skip the pool's poll, before each use, for a connection that was closed.

            The command notices that and is retried on a new connection. The library closes a
            connection whose reply was not read to its end, so it never returns to the pool.
            """
            return False

        def send_command(self, *args: Any, **options: Any) -> None:
            """Pack the arguments in one pass; the library checks the type of each first."""
            if isinstance(args[0], str) and " " not in args[0]:
                packed = (pack_command(args),)
                self.send_packed_command(packed, options.get("check_health", True))
            else:  # the library splits names such as SCRIPT LOAD
                super().send_command(*args, **options)

    return Connection
