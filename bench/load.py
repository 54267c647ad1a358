"""The load generator: many clients in one thread, each with one request in flight.

It shares the machine with what it measures, so it does as little as it can: requests are bytes
made beforehand, replies are only looked at for their status and length.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class LoadFailed(Exception):
    """The server answered something else than 200, or not at all."""


@dataclass
class Load:
    """What a load has done.

    Attributes:
        answered: requests that were answered with 200.
        seconds: from the first request to the last answer.
        latencies: seconds of each answered request, from the (re)connection to its last byte; at a
            steady rate from the moment when it was due.
        moments: when each of these began, on the clock of ``time.perf_counter``.
        cpu_seconds: what the load generator itself used.
        unanswered: requests in flight that had no answer when time was up.
        repeated: how often a request was sent again.
    """

    answered: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    unanswered: int = 0
    repeated: int = 0


class _Client:
    """A connection, the request in flight, the part of it still to be sent, the reply so far."""

    __slots__ = ("reply", "request", "sock", "started", "unsent", "writing")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.request: bytes | None = None
        self.unsent = memoryview(b"")
        self.reply = b""
        self.started = 0.0
        self.writing = False


class _Schedule:
    """When the next request is due: at once, or at a steady rate."""

    def __init__(self, requests: Iterable[bytes], rate: float | None, goes_on: Callable[[], bool]):
        self._requests = iter(requests)
        self._interval = 1 / rate if rate else None
        self._goes_on = goes_on
        self._due = time.perf_counter()
        self.ended = False

    def wait(self) -> float:
        """Seconds until the next request is due."""
        return max(0.0, self._due - time.perf_counter()) if self._interval else 0.0

    def take(self) -> tuple[float, bytes] | None:
        """The next request and when it was due; None when none is due now, or ever."""
        now = time.perf_counter()
        if not self.ended:
            self.ended = not self._goes_on()
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
    address: tuple[str, int],
    requests: Iterable[bytes],
    *,
    clients: int,
    seconds: float,
    drain_seconds: float = 30.0,
    rate: float | None = None,
    most_repeats: int = 0,
    goes_on: Callable[[], bool] = lambda: True,
) -> Load:
    """Send ``requests``, each once, over ``clients`` connections at a time.

    No request begins after ``seconds``; those in flight then get ``drain_seconds`` more.

    Args:
        rate: requests a second, evenly; by default each client sends as fast as it is answered. A
            request that finds no client free waits, and its latency counts from when it was due.
        most_repeats: how many requests in all may be sent again, as Amplitude does, after they
            were refused or their connection broke.
        goes_on: asked before each request; False ends the load before its time.

    Raises:
        LoadFailed: a request was refused or its connection broke.
    """
    load = Load()
    gc.disable()
    cpu = time.process_time()
    begun = last = time.perf_counter()
    until, deadline = begun + seconds, begun + seconds + drain_seconds
    schedule = _Schedule(requests, rate, lambda: time.perf_counter() < until and goes_on())
    poll = select.epoll()
    connected: dict[int, _Client] = {}
    free = [_Client() for _ in range(clients)]
    busy = 0

    def send(client: _Client) -> None:
        assert client.request is not None
        client.reply = b""
        client.unsent = memoryview(client.request)
        if client.sock is None:
            client.sock = _connect(address)
            client.writing = False
            connected[client.sock.fileno()] = client
            poll.register(client.sock, select.EPOLLIN)
        try:
            _send(client, poll)
        except ConnectionError as error:
            repeat(client, repr(error))

    def repeat(client: _Client, why: str) -> None:
        if load.repeated >= most_repeats:
            raise LoadFailed(why)
        load.repeated += 1
        _disconnect(client, connected)
        send(client)

    def receive(client: _Client) -> bool:
        """Whether the reply is complete, and right."""
        nonlocal last
        assert client.sock is not None
        try:
            part = client.sock.recv(65536)
        except BlockingIOError:
            return False  # the event was about an earlier connection of the same number
        except ConnectionError:
            part = b""
        if client.request is None:
            _disconnect(client, connected)  # kept for later, but the server has closed it
            return False
        client.reply += part
        if not part:
            repeat(client, f"connection closed after {client.reply[:300]!r}")
            return False
        closes = _complete(client.reply)
        if closes is None:
            return False
        if client.reply[9:12] != b"200":
            repeat(client, client.reply.decode(errors="replace")[:600])
            return False
        last = time.perf_counter()
        load.latencies.append(last - client.started)
        load.moments.append(client.started)
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
                load.unanswered = busy
                break
            if free and not schedule.ended:
                wait = min(wait, schedule.wait())
            for number, event in poll.poll(wait):
                waiting = connected.get(number)
                if waiting is None:
                    continue
                client = waiting
                if event & select.EPOLLOUT:
                    try:
                        _send(client, poll)
                    except ConnectionError as error:
                        repeat(client, repr(error))
                        continue
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
    load.cpu_seconds = time.process_time() - cpu
    load.answered, load.seconds = len(load.latencies), last - begun
    return load


def _connect(address: tuple[str, int]) -> socket.socket:
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


def _complete(reply: bytes) -> bool | None:
    """None while parts of the reply are missing, else whether the server closes after it."""
    end = reply.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(reply, 0, end + 2)
    if length is None:
        raise LoadFailed(f"reply without a length: {reply[:300]!r}")
    if len(reply) < end + 4 + int(length[1]):
        return None
    return _CLOSE.search(reply, 0, end + 2) is not None
