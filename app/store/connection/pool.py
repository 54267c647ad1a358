"""The pool of connections to the store: bounded, fair, and without a look before each use."""

from __future__ import annotations

import queue
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import redis
from hiredis import pack_command
from redis.connection import AbstractConnection


class FairQueue:
    """Hands each connection to whoever has waited longest; the parts of ``LifoQueue`` in use.

    The standard library's queues let a newcomer take what a waiter was woken up for. Under load
    some requests then wait for seconds while others never do.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: list[Any] = []
        self._lock = threading.Lock()
        self._waiting: deque[_Place] = deque()

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
            place = _Place()
            self._waiting.append(place)
        try:
            given = place.wait(timeout)
        except BaseException:
            self._give_up(place)
            raise
        if not given and not self._give_up(place, keep=True):
            raise queue.Empty
        return place.item

    def _give_up(self, place: _Place, *, keep: bool = False) -> bool:
        """Leave the line. True if something was given in the last moment, and is kept."""
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
                return False
        if not keep:
            self.put_nowait(place.item)
        return True


class _Place:
    """A place in the line."""

    def __init__(self) -> None:
        self.item: Any = None
        self._given = threading.Lock()
        self._given.acquire()

    def give(self, item: Any) -> None:
        self.item = item
        self._given.release()

    def wait(self, timeout: float | None) -> bool:
        return self._given.acquire(timeout=-1 if timeout is None else timeout)


class Pool(redis.BlockingConnectionPool):
    """Whoever finds no free connection waits in turn.

    Does what the library's own pool does, but for what that measures each time: nobody here asks
    for it, and it took as long as the rest.
    """

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        self._checkpid()
        try:
            connection = self.pool.get(block=True, timeout=self.timeout)
        except queue.Empty:
            raise redis.ConnectionError("No connection available.") from None
        if connection is None:
            connection = self.make_connection()  # type: ignore[no-untyped-call]
        try:
            connection.connect()
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        self._checkpid()
        if self.owns_connection(connection):
            with suppress(queue.Full):
                self.pool.put_nowait(connection)
        else:  # it was taken before this process began
            connection.disconnect()
            self.pool.put_nowait(None)


class Client(redis.Redis):
    """The library's client, without what it measures of each command.

    It also looks at each of a command's thousand arguments once, and not twice.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        # Some names are of two words, which go out as two.
        packed = None if " " in args[0] else (pack_command(args),)
        parse: Any = self.parse_response
        pool: Any = self.connection_pool
        connection = pool.get_connection()

        def send() -> Any:
            if packed is None:
                connection.send_command(*args, **options)
            else:
                connection.send_packed_command(packed)
            return parse(connection, args[0], **options)

        try:
            return connection.retry.call_with_retry(send, connection.disconnect)
        finally:
            pool.release(connection)


def make_pool(url: str, *, max_connections: int, timeout: float, **options: Any) -> Any:
    """A pool in which whoever finds no free connection waits in turn, at most ``timeout`` s."""
    pool = Pool.from_url(
        url, max_connections=max_connections, timeout=timeout, queue_class=FairQueue, **options
    )
    pool.connection_class = without_polling(pool.connection_class)
    return pool


def without_polling(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """The connection class without its look, before each use, whether the store has hung up.

    That look is a turn of the event loop for every command. A connection that has died shows at
    its next use, which is then retried on a new one; one that was left in the middle of an answer
    is closed by the library at once, and never comes back to the pool.
    """

    class Connection(kind):  # type: ignore[misc, valid-type]
        library_class = kind

        def can_read(self, timeout: float = 0) -> bool:
            return False

        def connect(self) -> None:
            if not self._sock:
                super().connect()

    return Connection
