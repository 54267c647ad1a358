"""The pool's queue, and the internals of redis-py that the lean connection relies on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import redis
from redis.connection import Connection

from app.store.connection.pool import FairLifoQueue, lean
from tests.support.polling import wait_until


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


def taken_from_a_pool(kind: Any) -> Any:
    pool = redis.BlockingConnectionPool(connection_class=kind, queue_class=FairLifoQueue)
    connection = pool.get_connection()
    pool.release(connection)
    return connection


class TestLean:
    def test_pool__polls_a_connection_of_the_library_before_each_use__but_no_lean_one(self) -> None:
        assert taken_from_a_pool(Silent).polls == 1
        assert taken_from_a_pool(lean(Silent)).polls == 0

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
    def test_command__is_sent_as_the_library_packs_it(self, command: tuple[Any, ...]) -> None:
        ours, theirs = lean(Silent)(), Silent()
        ours.send_command(*command)
        theirs.send_command(*command)
        assert b"".join(ours.sent) == b"".join(theirs.sent) != b""

    def test_arguments__are_looked_through_by_the_library__but_not_by_a_lean_connection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = lean(Silent)(), Silent()

        def pack(*args: Any) -> list[bytes]:
            raise AssertionError("the library packs")

        for connection in (ours, theirs):
            monkeypatch.setattr(connection._command_packer, "pack", pack)
        ours.send_command("GET", "key")
        with pytest.raises(AssertionError, match="the library packs"):
            theirs.send_command("GET", "key")


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

    def test_put__into_a_full_queue__raises(self) -> None:
        free = FairLifoQueue(1)
        free.put_nowait(None)
        with pytest.raises(queue.Full):
            free.put_nowait(None)
