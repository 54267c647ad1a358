"""A client's connection, with limits on how long it may keep a worker waiting."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from termios import FIONREAD, TIOCOUTQ
from typing import Any, NamedTuple

from gevent import Timeout, getcurrent
from gevent.socket import wait_write

# A client that keeps reading its reply more slowly than this is disconnected; see Connection.
MIN_BYTES_PER_SECOND = 4096
_CHECK_SECONDS = 0.5
# How long a connection may be idle once the worker is about to exit.
_LEAVING_SECONDS = 0.2
_RESET = struct.pack("ii", 1, 0)


class Limits(NamedTuple):
    """How long a connection may keep a worker waiting, in seconds.

    Attributes:
        idle: for the next request.
        head: for the rest of a request's head, or for the first request.
        send: how far the client may fall behind :data:`MIN_BYTES_PER_SECOND` in its reading.
    """

    idle: float
    head: float
    send: float


class Connection:
    """A connection whose client must send request heads and read replies in time.

    Patience with a client shrinks by the time spent waiting to send to it, and grows with the bytes
    that it reads, up to the limit. So a slow client can finish a large export. One that reads
    nothing is disconnected after the limit; one that reads only a few bytes, soon after.
    """

    def __init__(self, client: socket.socket, limits: Limits) -> None:
        self._socket: Any = client
        self._limits = limits
        self._patience = limits.send
        self._is_new = True
        self._waiting: Any = None
        # Time limits for the next request: until its first byte, and from then on.
        self._idle: Timeout | None = None
        self._head: Timeout | None = None

    @contextmanager
    def awaiting_head(self, *, is_leaving: bool = False) -> Iterator[None]:
        """Limit the wait for a request. When the time is up, the block ends silently.

        Args:
            is_leaving: the worker is about to exit.
        """
        limits = self._limits
        seconds = limits.head if self._is_new else limits.idle
        self._idle = idle = Timeout(min(seconds, _LEAVING_SECONDS) if is_leaving else seconds)
        self._head = head = Timeout(limits.head)
        self._is_new = False
        self._waiting = getcurrent()
        try:
            idle.start()
            yield
        except Timeout as timeout:
            if timeout is not idle and timeout is not head:
                raise
        finally:
            self._idle = self._head = None
            idle.close()
            head.close()

    def end_idle(self) -> None:
        """End the wait for the next request, unless some of it has arrived. Called by the hub."""
        if self._idle is not None and not self._queued(FIONREAD):
            self._waiting.throw(self._idle)

    def recv(self, size: int, flags: int = 0) -> Any:
        data = self._socket.recv(size, flags)
        if self._idle is not None and self._head is not None:
            self._idle.close()
            self._idle = None
            self._head.start()
        return data

    def send(self, data: Any) -> int:
        """Send what the client takes now. Raises BrokenPipeError if it has been too slow."""
        try:
            sent: int = self._socket.send(data, 0, 0.0)
        except BlockingIOError:
            self._wait()
            return 0
        if self._patience < self._limits.send:
            self._earn(sent)
        return sent

    def sendall(self, data: Any) -> None:
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def _wait(self) -> None:
        """Wait until there is room for more of the reply."""
        unread = self._unread()
        while self._patience > 0:
            began = time.monotonic()
            try:
                wait_write(self._socket.fileno(), timeout=min(self._patience, _CHECK_SECONDS))
                has_room = True
            except TimeoutError:
                has_room = False
            before, unread = unread, self._unread()
            self._patience -= time.monotonic() - began
            self._earn(before - unread)
            if has_room:
                return
        # A reset, so that the kernel doesn't keep the rest of the reply.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise BrokenPipeError(errno.EPIPE, "The client reads its reply too slowly.")

    def _earn(self, taken: int) -> None:
        """Restore patience for bytes that the client has taken."""
        earned = self._patience + taken / MIN_BYTES_PER_SECOND
        self._patience = min(self._limits.send, earned)

    def _unread(self) -> int:
        """Bytes that the client has not taken yet.

        The client's progress shows here first: the kernel reports room only once a third of its
        buffer, of up to some MB, is free.
        """
        return self._queued(TIOCOUTQ)

    def _queued(self, queue: int) -> int:
        try:
            (size,) = struct.unpack("i", ioctl(self._socket.fileno(), queue, b"\0" * 4))
        except OSError:  # closed, or not Linux
            return 0
        return int(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)
