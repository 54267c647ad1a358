"""Streams of changes that are open while the store is emptied or restored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from app.store import Store
from app.web.api.change_stream import Feed
from tests.integration.conftest import APP
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import say
from tests.support.polling import wait_until

TRAIT = "[Amplitude] one: 1"

app, store = read_api.app, read_api.store


HEARTBEAT_SECONDS = 0.1
# So many in a row mean that nothing more comes.
MAX_HEARTBEATS = 15


@pytest.fixture
def feed(store: Store) -> Feed:
    return Feed(store.change_stream, heartbeat_seconds=HEARTBEAT_SECONDS, max_followers=10)


class Follower:
    """Reads events one by one, as long as something comes now and then."""

    def __init__(self, feed: Feed, store: Store) -> None:
        self._events = self._read(feed.follow(APP, store.change_stream.newest(APP)))
        assert next(self._events)[0] == "position"

    @staticmethod
    def _read(pieces: Iterator[bytes]) -> Iterator[tuple[str, Any]]:
        heartbeats = 0
        for piece in pieces:
            heartbeats = heartbeats + 1 if piece.startswith(b":") else 0
            assert heartbeats < MAX_HEARTBEATS
            for block in piece.decode().split("\n\n")[:-1]:
                fields = dict(line.split(": ", 1) for line in block.split("\n"))
                yield fields.get("event", "heartbeat"), json.loads(fields.get("data", "null"))

    def users(self) -> list[str]:
        """The users of the next change."""
        event, data = next(self._events)
        while event == "heartbeat":
            event, data = next(self._events)
        assert event == "change"
        users: list[str] = data["userIds"]
        return users

    def wait_for_poll(self) -> None:
        """Read a heartbeat, which comes after a pause in which the store is polled."""
        assert next(self._events)[0] == "heartbeat"

    def rest(self) -> list[str]:
        """The kinds of all events until the stream ends."""
        return [event for event, _ in self._events if event != "heartbeat"]


def backup(client: redis.Redis) -> Callable[[], None]:
    """Remember what the store holds. Returns a function that restores it."""
    kept = {key: client.dump(key) for key in client.scan_iter()}

    def restore() -> None:
        empty(client)
        for key, content in kept.items():
            client.restore(key, 0, content)

    return restore


def empty(client: redis.Redis) -> None:
    """Empty the store, which takes at least a ms: entries added later have other ids."""
    began = client.time()
    client.flushall()
    wait_until(lambda: client.time() > (began[0], began[1] + 1000))


@pytest.fixture
def raw(store_url: str, redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """A client that leaves replies as bytes."""
    with redis.Redis.from_url(store_url) as client:
        yield client


@pytest.mark.parametrize("written", [0, 1, 150])
@pytest.mark.parametrize("emptied", [True, False], ids=["emptied", "restored"])
def test_stream__open_while_the_store_is_set_back__says_so_and_ends(
    store: Store, feed: Feed, raw: redis.Redis, emptied: bool, written: int
) -> None:
    say(store, TRAIT, True, ["u"])
    restore = (lambda: empty(raw)) if emptied else backup(raw)
    followers = [Follower(feed, store) for _ in range(2)]
    say(store, TRAIT, False, ["u"])
    for follower in followers:
        assert follower.users() == ["u"]
    restore()
    for n in range(written):
        say(store, f"n: {n}", True, ["u"])
    for follower in followers:
        assert follower.rest() == ["cursor_expired"]


def test_stream__of_a_slow_client__is_compared_with_the_store_set_back_before_it_goes_on(
    store: Store, feed: Feed, raw: redis.Redis
) -> None:
    """The fast one sees the reset and the changes after it while the slow one is not served."""
    say(store, TRAIT, True, ["u"])
    restore = backup(raw)
    slow, fast = Follower(feed, store), Follower(feed, store)
    say(store, TRAIT, False, ["u"])
    assert slow.users() == fast.users() == ["u"]
    restore()
    assert fast.rest() == ["cursor_expired"]
    later = Follower(feed, store)
    later.wait_for_poll()
    say(store, "another: 2", True, ["u"])
    assert later.users() == ["u"]
    assert slow.rest() == ["cursor_expired"]


def test_stream__ahead_of_the_poll_as_the_store_is_set_back__ends(
    store: Store, feed: Feed, raw: redis.Redis
) -> None:
    """The store is set back to the last poll, so the poll alone would notice nothing."""
    say(store, TRAIT, True, ["u"])
    first = Follower(feed, store)
    first.wait_for_poll()
    restore = backup(raw)
    ahead = Follower(feed, store)
    say(store, TRAIT, False, ["u"])
    assert ahead.users() == ["u"]
    restore()
    assert ahead.rest() == ["cursor_expired"]
    say(store, "another: 2", True, ["u"])
    assert first.users() == ["u"]


def test_stream__whose_next_changes_were_erased__goes_on(
    store: Store, feed: Feed, raw: redis.Redis
) -> None:
    follower = Follower(feed, store)
    say(store, TRAIT, True, ["u"])
    assert follower.users() == ["u"]
    say(store, TRAIT, False, ["u"])
    stream = store.keys.changes(APP, store.keys.partition("u"))
    raw.xdel(stream, raw.xrevrange(stream, count=1)[0][0])
    say(store, TRAIT, True, ["u"])
    assert follower.users() == ["u"]
