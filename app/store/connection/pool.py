"""The pool of connections to the store: bounded, fair, and without polling before each use."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import redis
from hiredis import pack_command
from redis import exceptions
from redis.commands.core import Script
from redis.connection import AbstractConnection

from app.store.connection.calls import NO_WAIT, Call, NotReplicated, Wait
from app.store.connection.fence import ServerClock, is_late
from app.store.connection.script import StoreScript
from app.store.connection.sentinel import sentinel_connections
from app.store.connection.server import Server

# Errors of a server that is not, or no longer, the primary. The command was not carried out.
DEMOTED = (redis.ReadOnlyError, exceptions.MasterDownError)


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
        """Leave the queue. True if an item arrived just before; unless ``keep``, pass it on."""
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


class Pool(redis.BlockingConnectionPool):
    """A pool without the library's own measurements, which doubled the time to take a connection.

    Calls that find no free connection wait in turn.

    Attributes:
        server: what the pool knows of its server (server.py); set by :func:`make_pool`.
    """

    server = Server()

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        self.server.check()
        return self._take(self.server.check)

    def probe(self) -> None:
        """Send a PING, to find out whether the server replies."""
        connection = self._take(lambda: None)
        try:
            connection.send_command("PING")
            connection.read_response()
        finally:
            self.release(connection)

    def _take(self, check: Callable[[], None]) -> Any:
        """An open connection. ``check`` is called after the wait for a free one."""
        self._checkpid()
        try:
            connection = self.pool.get(block=True, timeout=self.timeout)
        except queue.Empty:
            raise redis.ConnectionError("No connection available.") from None
        if connection is None:
            connection = self.make_connection()  # type: ignore[no-untyped-call]
        try:
            check()
            connection.connect()
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        self._checkpid()
        if self.owns_connection(connection):
            if connection.should_reconnect():
                connection.disconnect()
            with suppress(queue.Full):
                self.pool.put_nowait(connection)
        else:  # created by the process from which this one was forked
            connection.disconnect()
            self.pool.put_nowait(None)


class Client(redis.Redis):
    """The library's client, without its measurement of each command.

    A command's arguments are packed in one pass instead of two.
    """

    def register_script(self, script: Any) -> Script:
        return StoreScript(self, script)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        # The library splits a command of two words into two arguments.
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

    def write(self, script: StoreScript, call: Call, wait: Wait = NO_WAIT) -> Any:
        """Call a script that writes, with its deadline, and wait for replicas if asked to.

        Raises:
            NotReplicated: too few replicas acknowledged the write in time.
        """
        # On one connection, as WAIT covers only the writes of its connection.
        then = wait.command() if wait.replicas else ()
        try:
            reply, *others = self._send_fenced("EVALSHA", script.sha, call, then)
        except exceptions.NoScriptError:
            reply, *others = self._send_fenced("EVAL", script.script, call, then)
        for acknowledged in others:
            if isinstance(acknowledged, Exception):
                raise acknowledged
            if not wait.satisfied(acknowledged):
                raise NotReplicated
        return reply

    def _send_fenced(self, name: str, script: Any, call: Call, then: tuple[Any, ...]) -> list[Any]:
        """The reply to a script call, and that to another command, if any."""
        pool: Any = self.connection_pool
        connection = pool.get_connection()

        def send() -> list[Any]:
            connection.connect()
            clock, timeout = connection.server_clock, connection.socket_timeout
            sent = time.monotonic()
            replies = exchange(clock.deadline(timeout))
            if is_late(replies[0]) and time.monotonic() - sent < timeout:
                clock.read(connection)  # the server's clock was changed
                replies = exchange(clock.deadline(timeout))
            if isinstance(replies[0], Exception):
                raise replies[0]
            return replies

        def exchange(deadline: str) -> list[Any]:
            packed = pack_command((name, script, 1, call.stream, *call.arguments(), deadline))
            if not then:
                connection.send_packed_command((packed,))
                return [self._reply(connection, name)]
            connection.send_packed_command((packed + pack_command(then),))
            return [self._reply(connection, name), self._reply(connection, then[0])]

        try:
            replies: list[Any] = connection.retry.call_with_retry(send, connection.disconnect)
            return replies
        finally:
            pool.release(connection)

    def _reply(self, connection: Any, name: str) -> Any:
        """The next reply, or the error that the server replied with."""
        parse: Any = self.parse_response
        try:
            return parse(connection, name)
        except exceptions.ResponseError as error:
            return error


def make_pool(
    url: str,
    *,
    max_connections: int,
    timeout: float,
    tls_options: Mapping[str, Any],
    **options: Any,
) -> Any:
    """A pool in which calls queue for a free connection, for up to ``timeout`` seconds."""
    options |= {
        "max_connections": max_connections,
        "timeout": timeout,
        "queue_class": FairLifoQueue,
    }
    server = Server()
    if "+sentinel://" in url:
        kind, more = sentinel_connections(url, timeout, server.changed, **tls_options)
        make: Any = Pool
        pool = make(connection_class=pooled(kind, server), **more, **options)
    else:
        pool = Pool.from_url(url, **tls_options, **options)
        pool.connection_class = pooled(pool.connection_class, server)
    pool.server, server.probe = server, pool.probe
    return pool


def pooled(kind: type[AbstractConnection], server: Server) -> type[AbstractConnection]:
    """The connection class for one pool: reconnects after a failover, and is not polled.

    A demoted server may keep its connections open. Commands on them would fail until a restart, or
    return outdated data. So once one connection of the pool notices, all of them reconnect
    before their next use.

    The library polls a connection before each use, in case it was closed. That costs a turn of the
    event loop for every command. A dead connection is noticed by the command, which is then retried
    on a new one. Nor is polling needed to find unread data: the library closes a connection whose
    reply was not read to its end.

    Each connection knows its server's clock, for the deadlines of calls that write.
    """

    class Connection(kind):  # type: ignore[misc, valid-type]
        changes_before = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.server_clock = ServerClock()

        def on_connect_check_health(self, check_health: bool = True) -> None:
            super().on_connect_check_health(check_health=check_health)
            self.server_clock.read(self)

        def can_read(self, timeout: float = 0) -> bool:
            return False

        def connect(self) -> None:
            if self._sock and self.changes_before != server.changes:
                self.disconnect()
            if not self._sock:
                self.changes_before = server.changes
                began = time.monotonic()
                try:
                    super().connect()
                except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                    server.failed(error, time.monotonic() - began)
                    raise

        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                reply = super().read_response(*args, **options)
            except DEMOTED:
                if self.changes_before == server.changes:
                    server.changed()
                self.mark_for_reconnect()  # later: a pipeline reads all of its replies first
                raise
            except exceptions.TimeoutError as error:
                server.failed(error, self.socket_timeout)
                raise
            except exceptions.ResponseError:
                server.replied()
                raise
            server.replied()
            return reply

    return Connection
