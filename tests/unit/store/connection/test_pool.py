"""The pool's queue, and the internals of redis-py that client, pool and connection rely on."""

from __future__ import annotations

import queue
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis
from redis.connection import Connection

from app.store.connection.pool import Client, FairLifoQueue, Pool, _Waiter, pooled
from app.store.connection.server import Server
from tests.support.polling import wait_until

ROOT = Path(__file__).resolve().parents[4]


class Silent(Connection):
    """A connection that is never opened, and notes what the library does with it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.polls = 0
        self.sent: list[bytes] = []

    def connect(self) -> None:
        pass

    def can_read(self, timeout: float = 0) -> bool:
        self.polls += 1
        return False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self.sent += command

    def disconnect(self, *args: Any) -> None:
        pass


def taken_from_a_pool(kind: Any) -> Any:
    pool = redis.BlockingConnectionPool(connection_class=kind, queue_class=FairLifoQueue)
    connection = pool.get_connection()
    pool.release(connection)
    return connection


def test_connection__taken_from_a_pool__is_polled_by_the_library_but_not_by_ours() -> None:
    assert taken_from_a_pool(Silent).polls == 1
    assert taken_from_a_pool(pooled(Silent, Server())).polls == 0


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "é"),
        ("ZADD", "key", 1.5, b"\0", "GT", 1_700_000_000_000),
        ("SCRIPT LOAD", "return 1"),
        ("EVALSHA", "f" * 40, 1, "key", *map(str, range(2000))),
    ],
    ids=lambda command: command[0],
)
def test_command__is_sent_as_the_library_packs_it(command: tuple[Any, ...]) -> None:
    client = Client.from_pool(Pool(connection_class=Silent, queue_class=FairLifoQueue))
    client.parse_response = lambda *_, **__: None  # nobody replies
    client.execute_command(*command)
    theirs = Silent()
    theirs.send_command(*command)
    sent = client.connection_pool.get_connection().sent
    assert b"".join(sent) == b"".join(theirs.sent) != b""


class TestQueue:
    def test_items__go_to_waiters_in_the_order_of_arrival(self) -> None:
        free = FairLifoQueue(1)
        received: list[int] = []

        def wait(number: int) -> Callable[[], None]:
            def run() -> None:
                item = free.get(timeout=30)
                received.append(number)
                free.put_nowait(item)

            return run

        threads = []
        for number in range(5):
            threads.append(Thread(target=wait(number)))
            threads[-1].start()
            wait_until(lambda: len(free._waiting) == len(threads))
        free.put_nowait("connection")
        for thread in threads:
            thread.join(30)
        assert received == [0, 1, 2, 3, 4]
        assert free.queue == ["connection"]

    def test_newcomer__while_others_wait__takes_nothing_from_them(self) -> None:
        free = FairLifoQueue(1)
        waiter = Thread(target=lambda: free.get(timeout=30))
        waiter.start()
        wait_until(lambda: bool(free._waiting))
        free.put_nowait("connection")
        with pytest.raises(queue.Empty):
            free.get(block=False)
        waiter.join(30)

    def test_get__after_the_timeout__raises_and_leaves_the_queue(self) -> None:
        free = FairLifoQueue(1)
        started = time.monotonic()
        with pytest.raises(queue.Empty):
            free.get(timeout=0.05)
        assert time.monotonic() - started >= 0.05
        free.put_nowait("connection")
        assert free.get(block=False) == "connection"

    def test_item__that_arrives_at_the_timeout__is_returned(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = FairLifoQueue(1)

        def wait(waiter: _Waiter, timeout: float) -> bool:
            free.put_nowait("connection")
            return False  # the time was up just before

        monkeypatch.setattr(_Waiter, "wait", wait)
        assert free.get(timeout=30) == "connection"

    def test_put__into_a_full_queue__raises(self) -> None:
        free = FairLifoQueue(1)
        free.put_nowait(None)
        with pytest.raises(queue.Full):
            free.put_nowait(None)

    def test_waiter__interrupted__takes_no_connection_with_it(self) -> None:
        """In greenlets, as in a worker: whoever waits may be ended by a timeout at any moment."""
        subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, cwd=ROOT, timeout=60)


INTERRUPTED = """
from gevent import monkey; monkey.patch_all()
import gevent
from app.store.connection.pool import FairLifoQueue

free = FairLifoQueue(1)
for is_given_first in (False, True):
    waiter = gevent.spawn(free.get, timeout=30)
    gevent.sleep(0)
    waiter.kill(block=False)  # takes effect when the waiter runs next
    if is_given_first:
        free.put_nowait("connection")
    waiter.join()
    assert not free._waiting
    if not is_given_first:
        free.put_nowait("connection")
    assert free.get(block=False) == "connection"

# Two wait; the first is interrupted after it was given the connection: the second gets it.
first, second = (gevent.spawn(free.get, timeout=30) for _ in range(2))
gevent.sleep(0)
first.kill(block=False)
free.put_nowait("connection")
gevent.joinall([first, second])
assert second.value == "connection"
"""
