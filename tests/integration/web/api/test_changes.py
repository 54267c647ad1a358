"""The change feed in pages: nothing skipped, nothing repeated, and the truth about what is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from app.store import EntryId, PositionLost, Store, Tuning
from tests.integration.conftest import APP
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import KEYS, Reader, say

ONE = "[Amplitude] one: 1"


app, store, reader = read_api.app, read_api.store, read_api.reader


def told(reader: Reader, cursor: str = "earliest", limit: int = 100) -> tuple[list[Any], str]:
    """All that is there after a cursor, as (change, user), and where that ends."""
    found = []
    while True:
        page = reader.get(f"/api/v1/changes?cursor={cursor}&limit={limit}").json
        assert len(page["changes"]) <= limit
        found += [(c["change"], user) for c in page["changes"] for user in c["userIds"]]
        cursor = page["next"]
        if not page["more"]:
            return found, cursor


def test_changes__of_a_cohort__are_told_as_they_were(store: Store, reader: Reader) -> None:
    say(store, ONE, True, ["a/b", 'c"d', "🎉"], 1000)
    say(store, ONE, False, ["🎉"], 2000)
    changes = reader.get("/api/v1/changes").json["changes"]
    assert {(c["cohortId"], c["change"], c["at"]) for c in changes} == {
        ("1", "entered", 1000),
        ("1", "left", 2000),
    }
    assert sorted(told(reader)[0]) == [
        ("entered", "a/b"),
        ("entered", 'c"d'),
        ("entered", "🎉"),
        ("left", "🎉"),
    ]


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_pages__of_any_size__have_each_change_once_and_each_users_in_order(
    store: Store, reader: Reader, limit: int
) -> None:
    expected = []
    for n in range(20):
        users = [f"u{u}" for u in range(n % 4 + 1)]
        say(store, ONE, n % 2 == 0, users)
    for partition in range(store.keys.partitions):
        place = store.change_stream.oldest()
        expected += [
            (change.change, user)
            for change in store.change_stream.read(APP, place, limit=1000).changes
            if change.partition == partition
            for user in json.loads(change.users)
        ]
    found, cursor = told(reader, limit=limit)
    assert sorted(found) == sorted(expected)
    for user in ("u0", "u1", "u2", "u3"):
        changes = [change for change, who in found if who == user]
        assert changes == ["entered", "left"] * (len(changes) // 2) + ["entered"] * (
            len(changes) % 2
        )
    assert told(reader, cursor) == ([], cursor)
    say(store, ONE, True, ["new"])
    assert told(reader, cursor)[0] == [("entered", "new")]


def test_latest__tells_only_what_comes_after_it(store: Store, reader: Reader) -> None:
    cursor = reader.get("/api/v1/changes?cursor=latest").json["next"]
    say(store, ONE, True, ["a"])
    first, later = told(reader, cursor)
    assert first == [("entered", "a")]
    assert reader.get("/api/v1/changes?cursor=latest").json == {
        "changes": [],
        "more": False,
        "next": later,
    }


def test_large_changes__fill_a_page_by_their_size(
    store: Store, make_app: Callable[..., Flask]
) -> None:
    tuning = Tuning(change_bytes_per_call=100)
    reader = Reader(make_app(tuning=tuning, store_partitions=store.keys.partitions, **KEYS))
    for n in range(100):
        say(store, ONE, True, [f"a user with a rather long id {n}"])
    page = reader.get("/api/v1/changes?limit=1000").json
    assert len(page["changes"]) < 50
    assert page["more"]
    assert len(told(reader, limit=1000)[0]) == 100


def test_link__to_the_next_page__is_always_there(store: Store, reader: Reader) -> None:
    say(store, ONE, True, ["a"])
    reply = reader.get("/api/v1/changes?limit=5")
    link = f'</api/v1/changes?limit=5&cursor={reply.json["next"]}>; rel="next"'
    assert reply.headers["Link"] == link


@pytest.mark.parametrize(
    "cursor", ["x", "WyJtIiwwLDEsInUiXQ", "WyJjIiwxXQ", "WyJjIiwiMTAiXQ", "newest"]
)
def test_cursor__that_is_none__is_400(reader: Reader, cursor: str) -> None:
    assert reader.get(f"/api/v1/changes?cursor={cursor}", 400) == "invalid_parameter"
    assert reader.get(f"/api/v1/changes/stream?cursor={cursor}", 400) == "invalid_parameter"


class TestExpired:
    """One partition each time: the user is always the same."""

    def trim(self, store: Store, redis_client: redis.Redis, keep: int) -> None:
        redis_client.xtrim(self.stream(store), maxlen=keep, approximate=False)

    def stream(self, store: Store) -> str:
        return store.keys.changes(APP, store.keys.partition("u"))

    def turns(self, store: Store, count: int) -> None:
        for n in range(count):
            say(store, f"n: {n}", True, ["u"])
            say(store, f"n: {n}", False, ["u"])

    def cursor(self, reader: Reader) -> str:
        return str(reader.get("/api/v1/changes?cursor=latest").json["next"])

    def test_cursor__of_what_was_trimmed__is_410(
        self, store: Store, reader: Reader, redis_client: redis.Redis
    ) -> None:
        cursor = self.cursor(reader)
        self.turns(store, 5)
        self.trim(store, redis_client, 3)
        for path in ("changes", "changes/stream"):
            assert reader.get(f"/api/v1/{path}?cursor={cursor}", 410) == "cursor_expired"
        assert len(told(reader)[0]) == 3

    def test_cursor__whose_own_entry_was_trimmed_but_nothing_after_it__goes_on(
        self, store: Store, reader: Reader, redis_client: redis.Redis
    ) -> None:
        self.turns(store, 5)
        cursor = self.cursor(reader)
        self.turns(store, 2)
        self.trim(store, redis_client, 4)
        assert len(told(reader, cursor)[0]) == 4
        self.trim(store, redis_client, 3)
        assert reader.get(f"/api/v1/changes?cursor={cursor}", 410) == "cursor_expired"

    def test_cursor__after_a_part_of_what_was_held__knows_what_is_trimmed_later(
        self, store: Store, reader: Reader, redis_client: redis.Redis
    ) -> None:
        for n in range(40):
            say(store, ONE, True, [f"u{n}"])
        cursor = reader.get("/api/v1/changes?cursor=earliest&limit=1").json["next"]
        for partition in range(store.keys.partitions):
            redis_client.xtrim(store.keys.changes(APP, partition), maxlen=2, approximate=False)
        assert reader.get(f"/api/v1/changes?cursor={cursor}", 410) == "cursor_expired"
        for partition in range(1, store.keys.partitions):  # also where nothing was told of yet
            stream = store.keys.changes(APP, partition)
            place = list(store.change_stream.newest(APP))
            place[partition] = store.change_stream.read(
                APP, store.change_stream.oldest(), limit=1
            ).before[partition]
            redis_client.xtrim(stream, maxlen=1, approximate=False)
            with pytest.raises(PositionLost):
                store.change_stream.read(APP, tuple(place), limit=10)

    def test_cursor__at_the_end_of_a_feed_that_rested__goes_on(
        self, store: Store, reader: Reader, redis_client: redis.Redis
    ) -> None:
        self.turns(store, 3)
        cursor = self.cursor(reader)
        self.trim(store, redis_client, 1)
        assert told(reader, cursor)[0] == []
        self.turns(store, 1)
        self.trim(store, redis_client, 2)
        assert told(reader, cursor)[0] == [("entered", "u"), ("left", "u")]

    @pytest.mark.parametrize("which", [0, 2, 5])
    def test_entry__erased_with_its_user__is_no_loss(
        self, store: Store, reader: Reader, redis_client: redis.Redis, which: int
    ) -> None:
        self.turns(store, 1)
        cursor = self.cursor(reader)
        self.turns(store, 3)
        entry_id = redis_client.xrange(self.stream(store))[2 + which][0]
        redis_client.xdel(self.stream(store), entry_id)
        found, cursor = told(reader, cursor)
        assert len(found) == 5
        self.turns(store, 1)
        assert len(told(reader, cursor)[0]) == 2

    def test_store__emptied_or_set_back__is_410(
        self, store: Store, reader: Reader, redis_client: redis.Redis
    ) -> None:
        self.turns(store, 1)
        cursor = self.cursor(reader)
        redis_client.flushall()
        assert reader.get(f"/api/v1/changes?cursor={cursor}", 410) == "cursor_expired"
        self.turns(store, 1)
        assert reader.get(f"/api/v1/changes?cursor={cursor}", 410) == "cursor_expired"

    def test_place__of_another_number_of_partitions__is_lost(self, store: Store) -> None:
        with pytest.raises(PositionLost):
            store.change_stream.read(APP, (EntryId(0, 0),) * 5, limit=1)
