"""Lists of cohorts, their details, and how fresh they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from app.cohorts import Cohort, MembershipChange
from app.store import Store, Tuning
from app.web.http.cursors import close_cursor
from tests.integration.conftest import APP
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import ADMIN_KEY, KEYS, Reader, say
from tests.support.effort import PARTITIONS

HOUR = 3600 * 1000
DAY = 24 * HOUR


store, reader = read_api.store, read_api.reader


@pytest.fixture(params=PARTITIONS)
def app(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    """The service, which notes every arrival."""
    tuning = Tuning(freshness_noted_seconds=0)
    return make_app(tuning=tuning, store_partitions=request.param, **KEYS)


@pytest.fixture
def tuned_reader(store: Store, make_app: Callable[..., Flask]) -> Callable[..., Reader]:
    """Read the same store by a service with other bounds."""

    def make(**bounds: int) -> Reader:
        partitions = store.keys.partitions
        return Reader(make_app(tuning=Tuning(**bounds), store_partitions=partitions, **KEYS))

    return make


@pytest.fixture
def admin(app: Flask) -> Reader:
    return Reader(app, ADMIN_KEY)


@pytest.fixture
def at(store: Store, redis_client: redis.Redis) -> Any:
    """Say that a cohort was received some ms ago: by moving all that was noted into the past."""

    def shift(cohort_id: str, ms: int) -> None:
        key = store.keys.freshness(APP, cohort_id)
        for field, value in redis_client.hgetall(key).items():
            if field in ("last_received", "late_after"):
                redis_client.hset(key, field, int(value) - ms)
            elif field == "starts":
                redis_client.hset(
                    key, field, json.dumps([start - ms for start in json.loads(value)])
                )
        due = store.keys.due(APP, store.keys.partition(cohort_id))
        if 0 < redis_client.zscore(due, cohort_id) < float("inf"):
            redis_client.zincrby(due, -ms, cohort_id)

    return shift


def ids(reply: Any) -> list[str]:
    return [cohort["id"] for cohort in reply.json["cohorts"]]


class TestList:
    @pytest.fixture(autouse=True)
    def cohorts(self, store: Store) -> None:
        for n, name in enumerate(["Beta", "alpha", "Gamma", "alpha two", "delta"]):
            users = [f"u{u}" for u in range(3 * n % 5 + 1)]
            say(store, f"[Amplitude] {name}: id{n}", True, users)

    @pytest.mark.parametrize(
        ("sort", "expected"),
        [
            ("id", [0, 1, 2, 3, 4]),
            ("name", [1, 3, 0, 4, 2]),
            ("-name", [2, 4, 0, 3, 1]),
            ("members", [0, 2, 4, 1, 3]),
            ("-members", [3, 1, 4, 2, 0]),
        ],
    )
    @pytest.mark.parametrize("limit", [1, 2, 5, 100])
    def test_sort__in_pages_of_any_size__is_kept(
        self, reader: Reader, sort: str, expected: list[int], limit: int
    ) -> None:
        pages = reader.pages(f"/api/v1/cohorts?sort={sort}&limit={limit}", "cohorts")
        assert [cohort["id"] for page in pages for cohort in page] == [f"id{n}" for n in expected]
        assert all(len(page) == min(limit, 5) for page in pages[:-1])

    def test_last_received__sorts_by_it(
        self, store: Store, reader: Reader, at: Callable[..., None]
    ) -> None:
        for n, hours in enumerate([3, 1, 5, 2, 4]):
            at(f"id{n}", hours * HOUR)
        expected = ["id1", "id3", "id0", "id4", "id2"]
        assert ids(reader.get("/api/v1/cohorts?sort=-last_received")) == expected
        assert ids(reader.get("/api/v1/cohorts?sort=last_received")) == expected[::-1]

    def test_name__in_any_case__filters(self, reader: Reader) -> None:
        assert ids(reader.get("/api/v1/cohorts?name=ALPHA")) == ["id1", "id3"]
        assert ids(reader.get("/api/v1/cohorts?name=ALPHA&sort=-members&limit=1")) == ["id3"]
        assert ids(reader.get("/api/v1/cohorts?name=nothing")) == []

    def test_status__filters(self, store: Store, reader: Reader) -> None:
        store.jobs.begin_deletion(APP, "id2")
        say(store, "renamed: id4", True, ["u0"])
        assert ids(reader.get("/api/v1/cohorts?status=deleting")) == ["id2"]
        assert ids(reader.get("/api/v1/cohorts?status=renaming")) == ["id4"]
        assert ids(reader.get("/api/v1/cohorts?status=active")) == ["id0", "id1", "id3"]

    def test_filter__that_leaves_few_of_many__gives_short_pages_but_all(
        self, tuned_reader: Callable[..., Reader]
    ) -> None:
        reader = tuned_reader(cohorts_examined=2, cohorts_per_call=2)
        pages = reader.pages("/api/v1/cohorts?name=delta", "cohorts")
        assert [[cohort["id"] for cohort in page] for page in pages] == [[], [], ["id4"]]

    def test_more_cohorts_than_can_be_sorted__is_a_400_that_says_what_to_do(
        self, tuned_reader: Callable[..., Reader]
    ) -> None:
        reader = tuned_reader(cohorts_per_call=1, cohorts_sorted=5)
        assert len(ids(reader.get("/api/v1/cohorts?sort=name"))) == 5
        reader = tuned_reader(cohorts_per_call=1, cohorts_sorted=4)
        assert reader.get("/api/v1/cohorts?sort=name", 400) == "too_many_cohorts"
        assert len(ids(reader.get("/api/v1/cohorts"))) == 5

    @pytest.mark.parametrize(
        "query", ["sort=-id", "sort=x", "status=x", "freshness=x", "limit=0", "cursor=x", "name="]
    )
    def test_query__malformed__is_400(self, reader: Reader, query: str) -> None:
        assert reader.get(f"/api/v1/cohorts?{query}", 400) == "invalid_parameter"

    def test_cursor__of_another_order__is_400(self, reader: Reader) -> None:
        cursor = reader.get("/api/v1/cohorts?sort=name&limit=1").json["next"]
        path = f"/api/v1/cohorts?sort=members&limit=1&cursor={cursor}"
        assert reader.get(path, 400) == "invalid_parameter"

    @pytest.mark.parametrize(
        ("sort", "last"),
        [
            ("id", 5),
            ("name", 5),
            ("-name", True),
            ("members", "x"),
            ("-members", 0.5),
            ("last_received", True),
        ],
    )
    def test_cursor__of_another_type__is_400(self, reader: Reader, sort: str, last: Any) -> None:
        cursor = close_cursor(["l", sort, last, "id1"])
        path = f"/api/v1/cohorts?sort={sort}&cursor={cursor}"
        assert reader.get(path, 400) == "invalid_parameter"

    def test_etag__while_nothing_changes__is_304(self, store: Store, reader: Reader) -> None:
        tag = reader.get("/api/v1/cohorts").headers["ETag"]
        assert reader.get("/api/v1/cohorts", 304, headers={"If-None-Match": tag}).data == b""
        say(store, "[Amplitude] Beta: id0", True, ["one more"])
        assert reader.get("/api/v1/cohorts", headers={"If-None-Match": tag}).status_code == 200


class TestDetail:
    def test_cohort__its_history__is_told(self, store: Store, reader: Reader) -> None:
        before = time.time_ns() // 1_000_000
        say(store, "old: 1", True, ["a", "b"])
        say(store, "new: 1", True, ["c"])
        say(store, "new: 1", False, ["a"])
        told = reader.get("/api/v1/cohorts/1").json
        assert (told["trait"], told["members"], told["entered"], told["left"]) == (
            "new: 1",
            2,
            3,
            1,
        )
        assert [name["trait"] for name in told["earlierNames"]] == ["old: 1"]
        assert before <= told["firstSeen"] <= told["sources"]["test"]
        assert told["status"] == "renaming"


class TestFreshness:
    def fresh(self, reader: Reader, cohort_id: str = "1") -> dict[str, Any]:
        told: dict[str, Any] = reader.get(f"/api/v1/cohorts/{cohort_id}").json["freshness"]
        (listed,) = (
            cohort["freshness"]
            for cohort in reader.get("/api/v1/cohorts").json["cohorts"]
            if cohort["id"] == cohort_id
        )
        assert listed == told
        return told

    def test_first_arrival__is_fresh_and_has_no_cadence_yet(
        self, store: Store, reader: Reader
    ) -> None:
        before = time.time_ns() // 1_000_000
        say(store, "n: 1", True, ["u"])
        told = self.fresh(reader)
        assert before <= told.pop("lastReceived") <= time.time_ns() // 1_000_000
        assert told == {
            "state": "fresh",
            "cadence": None,
            "cadenceSource": None,
            "lateAfter": None,
        }

    def test_cohort__made_but_never_sent__is_never(self, store: Store, reader: Reader) -> None:
        cohort = Cohort.from_trait("n: 1")
        store.memberships.register_cohort(APP, cohort, source="list")
        assert self.fresh(reader)["state"] == "never"
        assert ids(reader.get("/api/v1/cohorts?freshness=never")) == ["1"]
        say(store, "n: 1", True, ["u"])
        store.memberships.register_cohort(APP, cohort, source="list")
        assert self.fresh(reader)["state"] == "fresh"

    def test_cadence__of_daily_syncs__is_learned_and_tells_when_one_is_missing(
        self, store: Store, reader: Reader, at: Callable[..., None]
    ) -> None:
        for _ in range(4):
            at("1", DAY) if store.registry.find(APP, "1") else None
            for part in range(3):  # a sync is several requests, close in time
                say(store, "n: 1", True, [f"u{part}"])
        told = self.fresh(reader)
        assert (told["cadenceSource"], told["state"]) == ("learned", "fresh")
        assert abs(told["cadence"] - DAY) < 60_000
        assert told["lateAfter"] == told["lastReceived"] + told["cadence"] * 3 // 2
        at("1", DAY * 3 // 2 - HOUR)
        assert self.fresh(reader)["state"] == "fresh"
        at("1", 2 * HOUR)
        assert self.fresh(reader)["state"] == "late"
        assert ids(reader.get("/api/v1/cohorts?freshness=late")) == ["1"]
        say(store, "n: 1", True, ["u"])
        assert self.fresh(reader)["state"] == "fresh"

    def test_cadence__one_sync_cut_in_two_and_one_left_out__stays_what_it_is(
        self, store: Store, reader: Reader, at: Callable[..., None]
    ) -> None:
        say(store, "n: 1", True, ["u"])
        for pause in (HOUR, HOUR, 6 * 60_000, HOUR, 2 * HOUR, HOUR, HOUR):
            at("1", pause)
            say(store, "n: 1", True, ["u"])
        assert abs(self.fresh(reader)["cadence"] - HOUR) < 60_000

    def test_cadence__after_a_clock_that_was_ahead__is_learned_from_later_syncs(
        self, store: Store, reader: Reader, at: Callable[..., None]
    ) -> None:
        say(store, "n: 1", True, ["u"])
        at("1", -2 * DAY)
        for pause in (0, HOUR, HOUR):
            at("1", pause)
            say(store, "n: 1", True, ["u"])
        assert abs(self.fresh(reader)["cadence"] - HOUR) < 60_000
        assert self.fresh(reader)["state"] == "fresh"

    def test_cadence__that_changed__is_learned_anew(
        self, store: Store, reader: Reader, at: Callable[..., None]
    ) -> None:
        say(store, "n: 1", True, ["u"])
        for pause in [DAY] * 5 + [HOUR] * 8:
            at("1", pause)
            say(store, "n: 1", True, ["u"])
        assert abs(self.fresh(reader)["cadence"] - HOUR) < 60_000

    def test_cadence__set_by_an_admin__goes_before_what_is_learned(
        self, store: Store, reader: Reader, admin: Reader, at: Callable[..., None]
    ) -> None:
        say(store, "n: 1", True, ["u"])
        path = "/api/v1/cohorts/1/cadence"
        told = admin.send("PUT", path, json={"seconds": 600}).json
        assert (told["cadence"], told["cadenceSource"]) == (600_000, "set")
        assert told["lateAfter"] == told["lastReceived"] + 900_000
        for _ in range(3):
            at("1", HOUR)
            assert self.fresh(reader)["state"] == "late"
            say(store, "n: 1", True, ["u"])
        assert self.fresh(reader)["cadence"] == 600_000
        told = admin.send("DELETE", path).json
        assert told["cadenceSource"] == "learned"
        assert abs(told["cadence"] - HOUR) < 60_000

    def test_cadence__set_before_anything_came__waits_for_it(
        self, store: Store, admin: Reader
    ) -> None:
        store.memberships.register_cohort(APP, Cohort.from_trait("n: 1"), source="list")
        path = "/api/v1/cohorts/1/cadence"
        told = admin.send("PUT", path, json={"seconds": 600}).json
        assert (told["state"], told["lateAfter"]) == ("never", None)
        assert admin.send("DELETE", path).json["cadence"] is None

    @pytest.mark.parametrize(
        "body", [{}, {"seconds": 59}, {"seconds": "600"}, {"seconds": True}, {"seconds": 1e9}]
    )
    def test_cadence__malformed__is_400(self, store: Store, admin: Reader, body: dict) -> None:
        say(store, "n: 1", True, ["u"])
        assert admin.send("PUT", "/api/v1/cohorts/1/cadence", 400, json=body) == "invalid_payload"

    def test_cadence__may_be_a_minute_to_a_year(self, store: Store, admin: Reader) -> None:
        say(store, "n: 1", True, ["u"])
        path = "/api/v1/cohorts/1/cadence"
        for seconds in (60, 366 * 86400):
            told = admin.send("PUT", path, json={"seconds": seconds}).json
            assert told["cadence"] == 1000 * seconds
        assert admin.send("PUT", path, 400, json={"seconds": 366 * 86400 + 1}) == "invalid_payload"

    def test_cadence__by_a_reader_or_of_an_unknown_cohort__is_refused(
        self, reader: Reader, admin: Reader
    ) -> None:
        path, body = "/api/v1/cohorts/1/cadence", {"seconds": 600}
        assert reader.send("PUT", path, 403, json=body) == "missing_scope"
        assert admin.send("PUT", path, 404, json=body) == "unknown_cohort"

    def test_readiness__with_late_cohorts__stays_200_and_counts_them(
        self, app: Flask, store: Store, admin: Reader, at: Callable[..., None]
    ) -> None:
        for cohort_id in "12345":
            say(store, f"n: {cohort_id}", True, ["u"])
        store.memberships.register_cohort(APP, Cohort.from_trait("n: 6"), source="list")
        for cohort_id in "12":
            path = f"/api/v1/cohorts/{cohort_id}/cadence"
            admin.send("PUT", path, json={"seconds": 60})
            at(cohort_id, HOUR)
        reply = app.test_client().get("/readyz")
        assert reply.status_code == 200
        assert reply.json["cohorts"] == {"fresh": 3, "late": 2, "never": 1}

    def test_users__all_of_whom_were_left_out__are_no_arrival(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        store.erasure.erase(APP, "gone", suppress=True)
        for known_only, user in ((True, "unknown"), (False, "gone")):
            change = MembershipChange(Cohort.from_trait("n: 1"), True, [user])
            store.memberships.apply(APP, [change], source="test", known_only=known_only)
        assert redis_client.keys("*:freshness") == []
        assert set(store.freshness.counts([APP]).values()) == {0}
        say(store, "n: 1", True, ["gone", "u"])
        assert sum(store.freshness.counts([APP]).values()) == 1

    def test_freshness__in_the_store__is_what_the_reference_says(
        self, store: Store, admin: Reader, redis_client: redis.Redis
    ) -> None:
        say(store, "n: 1", True, ["u"])
        admin.send("PUT", "/api/v1/cohorts/1/cadence", json={"seconds": 600})
        found = redis_client.hgetall(store.keys.freshness(APP, "1"))
        assert found["cadence"] == "600000"
        assert found["cadence_source"] == "set"
        assert int(found["late_after"]) == int(found["last_received"]) + 900_000

    def test_deleted_cohort__leaves_nothing_behind(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, "n: 1", True, ["u"])
        assert list(store.jobs.delete_cohort(APP, "1")) == [1]
        assert redis_client.keys("*:freshness") == []
        assert redis_client.keys("*:due") == []
