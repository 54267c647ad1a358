"""The load generator: many clients in one thread, each with one request in flight.

It shares the machine with what it measures, so it does as little as possible: requests are bytes
made in advance, and of a reply only the status and the length are read.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Address = tuple[str, int]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_RECEIVE_BYTES = 1 << 18


class LoadFailed(Exception):
    """The server replied with something other than 200, or not at all."""


@dataclass
class Result:
    """What a load did.

    Attributes:
        seconds: from the first request to the last reply.
        latencies: seconds per request, from (re)connecting to the last byte of the reply; at a
            fixed rate, from the moment the request was due.
        reply_bytes: size of all replies.
        cpu_seconds: used by the load generator itself.
        unanswered: requests still in flight at the deadline.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    reply_bytes: int = 0
    cpu_seconds: float = 0.0
    unanswered: int = 0

    @property
    def answered(self) -> int:
        """Requests that got a 200."""
        return len(self.latencies)


class _Client:
    """A connection, the request in flight, its unsent part, and the reply so far."""

    __slots__ = ("reply", "request", "sock", "started", "unsent", "writing")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.request: bytes | None = None
        self.unsent = memoryview(b"")
        self.reply = bytearray()
        self.started = 0.0
        self.writing = False


class _Schedule:
    """When the next request is due: at once, or at a fixed rate."""

    def __init__(self, requests: Iterable[bytes], rate: float | None, running: Callable[[], bool]):
        self._requests = iter(requests)
        self._interval = 1 / rate if rate else 0.0
        self._running = running
        self._due = time.perf_counter()
        self.ended = False

    def wait(self) -> float:
        """Seconds until the next request is due."""
        return max(0.0, self._due - time.perf_counter()) if self._interval else 0.0

    def take(self) -> tuple[float, bytes] | None:
        """The next request and when it was due; None if none is due yet, or ever again."""
        now = time.perf_counter()
        if not self.ended:
            self.ended = not self._running()
        if self.ended or (self._interval and now < self._due):
            return None
        request = next(self._requests, None)
        if request is None:
            self.ended = True
            return None
        if not self._interval:
            return now, request
        due, self._due = self._due, self._due + self._interval
        return due, request


def run(
    address: Address,
    requests: Iterable[bytes],
    *,
    clients: int,
    seconds: float,
    drain_seconds: float = 60.0,
    rate: float | None = None,
    running: Callable[[], bool] = lambda: True,
) -> Result:
    """Send each of ``requests`` once, over ``clients`` connections at a time.

    No request starts after ``seconds``; those in flight then have ``drain_seconds`` to finish.

    Args:
        rate: requests per second, evenly spaced; by default each client sends its next request
            once the last is answered. A request that finds no client free waits, and that counts.
        running: checked before each request; False ends the load early.

    Raises:
        LoadFailed: a request was refused or its connection broke.
    """
    result = Result()
    gc.disable()
    cpu = time.process_time()
    began = last = time.perf_counter()
    until, deadline = began + seconds, began + seconds + drain_seconds
    schedule = _Schedule(requests, rate, lambda: time.perf_counter() < until and running())
    poll = select.epoll()
    connected: dict[int, _Client] = {}
    free = [_Client() for _ in range(clients)]
    busy = 0

    def send(client: _Client) -> None:
        assert client.request is not None
        client.reply = bytearray()
        client.unsent = memoryview(client.request)
        if client.sock is None:
            client.sock = _connect(address)
            client.writing = False
            connected[client.sock.fileno()] = client
            poll.register(client.sock, select.EPOLLIN)
        _send(client, poll)

    def receive(client: _Client) -> bool:
        """Whether the reply is complete, and is a 200."""
        nonlocal last
        assert client.sock is not None
        try:
            part = client.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False  # the event concerned an earlier connection with the same number
        except ConnectionError:
            part = b""
        if client.request is None:
            _disconnect(client, connected)  # the server closed an idle connection
            return False
        client.reply += part
        if not part:
            raise LoadFailed(f"connection closed after {bytes(client.reply[:300])!r}")
        closes = _complete(client.reply)
        if closes is None:
            return False
        if client.reply[9:12] != b"200":
            raise LoadFailed(client.reply.decode(errors="replace")[:600])
        last = time.perf_counter()
        result.latencies.append(last - client.started)
        result.reply_bytes += len(client.reply)
        if closes:
            _disconnect(client, connected)
        return True

    try:
        while True:
            while free and (next_one := schedule.take()):
                client = free.pop()
                client.started, client.request = next_one
                busy += 1
                send(client)
            if schedule.ended and not busy:
                break
            wait = deadline - time.perf_counter()
            if wait <= 0:
                result.unanswered = busy
                break
            if free and not schedule.ended:
                wait = min(wait, schedule.wait())
            for number, event in poll.poll(wait):
                known = connected.get(number)
                if known is None:
                    continue
                client = known
                if event & select.EPOLLOUT:
                    _send(client, poll)
                if event & ~select.EPOLLOUT and receive(client):
                    client.request = None
                    free.append(client)
                    busy -= 1
    except OSError as error:
        raise LoadFailed(repr(error)) from error
    finally:
        for client in list(connected.values()):
            _disconnect(client, connected)
        poll.close()
        gc.enable()
    result.cpu_seconds = time.process_time() - cpu
    result.seconds = last - began
    return result


def _connect(address: Address) -> socket.socket:
    sock = socket.create_connection(address, timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def _disconnect(client: _Client, connected: dict[int, _Client]) -> None:
    if client.sock is not None:
        del connected[client.sock.fileno()]
        client.sock.close()
        client.sock = None


def _send(client: _Client, poll: select.epoll) -> None:
    assert client.sock is not None
    try:
        while client.unsent:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
    except BlockingIOError:
        pass
    if bool(client.unsent) != client.writing:
        client.writing = not client.writing
        poll.modify(client.sock, select.EPOLLIN | (select.EPOLLOUT if client.writing else 0))


def _complete(reply: bytearray) -> bool | None:
    """None while part of the reply is missing, else whether the server then closes."""
    end = reply.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(reply[: end + 2])
    length = _LENGTH.search(head)
    if length is None and not _CHUNKED.search(head):
        raise LoadFailed(f"reply without a length: {head[:300]!r}")
    whole = len(reply) >= end + 4 + int(length[1]) if length else reply.endswith(_LAST_CHUNK)
    return _CLOSE.search(head) is not None if whole else None
