"""Followers of the change feed, in a process of their own: they read, count and do nothing else."""

from __future__ import annotations

import multiprocessing
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

_EVENT = b"\nevent: change\n"


class Followers:
    """Connections that follow the change feed as server-sent events."""

    def __init__(self, commands: Connection) -> None:
        self._commands = commands

    def heard(self) -> list[int]:
        """How many changes each has heard of."""
        self._commands.send("heard")
        counts: list[int] = self._commands.recv()
        return counts

    def wait(self, changes: int, seconds: float) -> float:
        """Wait until each has heard of so many changes. Returns the seconds that it took.

        Raises:
            TimeoutError: it took longer than ``seconds``.
        """
        began = time.perf_counter()
        while min(counts := self.heard()) < changes:
            if time.perf_counter() - began > seconds:
                raise TimeoutError(f"{changes} changes, but followers heard of {counts}")
            time.sleep(0.01)
        return time.perf_counter() - began


@contextmanager
def following(address: tuple[str, int], request: bytes, count: int) -> Iterator[Followers]:
    """``count`` followers who send ``request``, once all of them are answered."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_follow, args=(address, request, count, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.recv() == "ready"
        yield Followers(ours)
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()


def _follow(address: tuple[str, int], request: bytes, count: int, commands: Connection) -> None:
    """What the process does, until its pipe closes."""
    poll = select.epoll()
    poll.register(commands, select.EPOLLIN)
    places: dict[int, int] = {}
    sockets = []
    for place in range(count):
        sock = socket.create_connection(address, 10)
        sock.sendall(request)
        if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("the service refused a follower")
        sock.setblocking(False)
        sockets.append(sock)
        places[sock.fileno()] = place
        poll.register(sock, select.EPOLLIN)
    heard, tails = [0] * count, [b""] * count
    commands.send("ready")
    while True:
        for number, _ in poll.poll():
            if number == commands.fileno():
                try:
                    commands.recv()
                except EOFError:
                    return
                commands.send(heard)
                continue
            place = places[number]
            part = sockets[place].recv(1 << 20)
            if not part:
                poll.unregister(number)
                continue
            heard[place] += (tails[place] + part).count(_EVENT)
            tails[place] = part[1 - len(_EVENT) :]
