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
from collections.abc import Sequence
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
        latencies: seconds of each answered request, from the (re)connection to its last byte.
        cpu_seconds: what the load generator itself used.
        unanswered: requests in flight that had no answer when time was up.
    """

    answered: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    unanswered: int = 0


class _Client:
    """A connection, the part of a request that is still to be sent, and the reply so far."""

    __slots__ = ("reply", "sock", "started", "unsent", "writing")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.unsent = memoryview(b"")
        self.reply = b""
        self.started = 0.0
        self.writing = False


def run(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    drain_seconds: float = 30.0,
) -> Load:
    """Send ``requests``, each once, over ``clients`` connections at a time.

    No request begins after ``seconds``; those in flight then get ``drain_seconds`` more.

    Raises:
        LoadFailed: a request was refused or its connection broke.
    """
    load = Load()
    queue = iter(requests)
    poll = select.epoll()
    active: dict[int, _Client] = {}
    gc.disable()
    cpu = time.process_time()
    begun = last = time.perf_counter()
    until, deadline = begun + seconds, begun + seconds + drain_seconds

    def send_next(client: _Client) -> None:
        request = next(queue, None) if time.perf_counter() < until else None
        if request is None:
            _disconnect(client, active)
            return
        client.started = time.perf_counter()
        client.reply = b""
        client.unsent = memoryview(request)
        if client.sock is None:
            client.sock = _connect(address)
            client.writing = False
            active[client.sock.fileno()] = client
            poll.register(client.sock, select.EPOLLIN)
        _send(client, poll)

    try:
        for _ in range(clients):
            send_next(_Client())
        while active:
            events = poll.poll(max(0.0, deadline - time.perf_counter()))
            if not events:
                load.unanswered = len(active)
                break
            for number, event in events:
                client = active[number]
                assert client.sock is not None
                if event & select.EPOLLOUT:
                    _send(client, poll)
                if not event & ~select.EPOLLOUT:
                    continue
                part = client.sock.recv(65536)
                client.reply += part
                if not part:
                    raise LoadFailed(f"connection closed after {client.reply[:300]!r}")
                closes = _complete(client.reply)
                if closes is None:
                    continue
                last = time.perf_counter()
                if client.reply[9:12] != b"200":
                    raise LoadFailed(client.reply.decode(errors="replace")[:600])
                load.latencies.append(last - client.started)
                if closes:
                    _disconnect(client, active)
                send_next(client)
    except OSError as error:
        raise LoadFailed(repr(error)) from error
    finally:
        for client in list(active.values()):
            _disconnect(client, active)
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


def _disconnect(client: _Client, active: dict[int, _Client]) -> None:
    if client.sock is not None:
        del active[client.sock.fileno()]
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
