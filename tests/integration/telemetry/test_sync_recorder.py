"""The sync history: one record for each request, and requests of one sync together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from limits import parse
from structlog.testing import capture_logs

from app.auth.authenticate import KeyRing
from app.cohorts import (
    Identify,
    Moves,
    Outcome,
    Rejection,
    RequestRecord,
    Sync,
    membership_changes,
    user_hash,
)
from app.server.background import Background
from app.services import services
from app.store import Store, Tuning
from app.store.errors import StoreError, StoreRefused, StoreTimeout
from app.telemetry.request_event import FinishedRequest
from app.telemetry.sync_recorder import SyncRecorder
from simulator.payloads import COHORT_PATH, WEBHOOK_PATH, batch, identify
from tests.integration.clock import Clock
from tests.integration.conftest import APP, KEY, caller
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import KEYS, OTHER_KEY, READ_KEY, Reader, say

ONE, TWO = "[Amplitude] one: 1", "[Amplitude] two: 2"
MINUTE = 60_000


app, store = read_api.app, read_api.store


@pytest.fixture
def http(app: Flask) -> FlaskClient:
    return caller(app)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_app(make_app: Callable[..., Flask], clock: Clock) -> Callable[..., Flask]:
    """Build the service with the test's clock in place of all others."""

    def make(**changes: Any) -> Flask:
        tuning = Tuning(now=clock, monotonic=clock, store_now=clock)
        return make_app(**{"tuning": tuning, **changes})

    return make


def flush(app: Flask) -> None:
    recorder: SyncRecorder = services(app).sync_recorder
    recorder.flush()


def syncs(app: Flask, **which: Any) -> list[Sync]:
    flush(app)
    store: Store = services(app).store
    return store.sync_history.syncs(APP, **which).syncs


def requests_of(app: Flask, sync: Sync, *, problems: bool = False) -> list[RequestRecord]:
    store: Store = services(app).store
    return store.sync_history.requests(APP, sync.id, problems=problems)


def fail(*args: Any) -> None:
    raise StoreTimeout("Away.")


class TestMoves:
    def test_apply__tells_who_really_entered_and_left_each_cohort(self, store: Store) -> None:
        def apply(*calls: Identify) -> dict[str, Moves]:
            return store.memberships.apply(APP, membership_changes(calls), source="test").moves

        users = [Identify(f"u{n}", {ONE: True}) for n in range(2500)]
        assert apply(*users) == {"1": Moves(2500, 0)}
        assert apply(*users) == {}
        assert apply(
            Identify("u1", {ONE: False, TWO: True}),
            Identify("u2", {ONE: True, TWO: True}),
            Identify("new", {ONE: True, TWO: False}),
        ) == {"1": Moves(1, 1), "2": Moves(2, 0)}


class TestSync:
    def test_requests__of_one_cohort__are_one_sync_with_their_sums(
        self, app: Flask, http: FlaskClient
    ) -> None:
        for n in range(30):
            users = [f"u{u}" for u in range(10 * n, 10 * n + 20)]
            assert http.post(COHORT_PATH, json=batch(users, ONE, True)).status_code == 200
            if n % 7 == 0:
                flush(app)
        http.post(COHORT_PATH, json=batch(["u1", "u2", "nobody"], ONE, False))
        (sync,) = syncs(app)
        assert (sync.cohort_id, sync.trait) == ("1", ONE)
        assert (sync.requests, sync.failed, sync.rejected) == (31, 0, 0)
        assert (sync.accepted, sync.changed) == (603, 310 + 3)
        assert (sync.entered, sync.left) == (310, 2)
        assert sync.sources == {"identify": 31}
        assert sync.keys == {app_label(app): 31}
        assert (sync.kept, sync.kept_problems) == (31, 0)
        assert sync.took_ms >= 0
        records = requests_of(app, sync)
        assert [record.accepted for record in records] == [20] * 30 + [3]
        assert [record.entered for record in records[:3]] == [20, 10, 10]
        assert (records[-1].left, records[-1].status) == (2, 200)
        assert all(
            sync.began_ms <= record.at_ms <= sync.last_ms and record.took_ms > 0
            for record in records
        )

    def test_request__its_id__is_that_of_the_reply(self, app: Flask, http: FlaskClient) -> None:
        reply = http.post(COHORT_PATH, json=identify("u", ONE, True))
        (sync,) = syncs(app)
        (record,) = requests_of(app, sync)
        assert record.request_id == reply.headers["X-Request-ID"]

    def test_pause__of_five_minutes__begins_another_sync(
        self, app: Flask, http: FlaskClient, clock: Clock
    ) -> None:
        for seconds in (0, 290, 290, 310, 10):
            clock.forward(seconds)
            http.post(COHORT_PATH, json=identify("u", ONE, True))
            http.post(COHORT_PATH, json=identify("u", TWO, True))
        found = syncs(app)
        for cohort_id in ("1", "2"):
            mine = [sync.requests for sync in found if sync.cohort_id == cohort_id]
            assert mine == [2, 3]

    def test_pause__between_flushes__begins_another_sync(
        self, app: Flask, http: FlaskClient, clock: Clock
    ) -> None:
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        assert len(syncs(app)) == 1
        clock.forward(290)
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        assert len(syncs(app)) == 1
        clock.forward(310)
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        newest, oldest = syncs(app)
        assert (newest.requests, oldest.requests) == (1, 2)

    def test_endless_stream_of_requests__is_cut_after_six_hours(
        self, app: Flask, http: FlaskClient, clock: Clock
    ) -> None:
        for _ in range(4 * 15):
            http.post(COHORT_PATH, json=identify("u", ONE, True))
            clock.forward(240)
            flush(app)
        assert len(syncs(app)) == 1
        for _ in range(2 * 15 + 2):
            http.post(COHORT_PATH, json=identify("u", ONE, True))
            clock.forward(240)
            flush(app)
        newest, oldest = syncs(app)
        assert 90 <= oldest.requests <= 91
        assert newest.requests + oldest.requests == 92

    def test_two_processes__add_to_the_same_sync(self, make_app: Callable[..., Flask]) -> None:
        apps = [make_app(), make_app()]
        for app in apps:
            caller(app).post(COHORT_PATH, json=identify("u", ONE, True))
            flush(app)
        (sync,) = syncs(apps[0])
        assert sync.requests == 2

    def test_request__for_several_cohorts__is_in_the_sync_of_each(
        self, app: Flask, http: FlaskClient
    ) -> None:
        body = identify("u", ONE, True) | {"traits": {ONE: True, TWO: False}}
        http.post(COHORT_PATH, json=body)
        found = {sync.cohort_id: sync for sync in syncs(app)}
        assert (found["1"].entered, found["2"].entered) == (1, 0)
        assert {sync.accepted for sync in found.values()} == {1}
        assert [sync.cohort_id for sync in syncs(app, cohort_id="2")] == ["2"]

    def test_request__for_very_many_cohorts__is_noted_once(
        self, app: Flask, http: FlaskClient
    ) -> None:
        for member, count in ((True, 100), (False, 90)):
            traits = {f"n: {n}": member for n in range(count)}
            http.post(COHORT_PATH, json=identify("u", ONE, True) | {"traits": traits})
        (sync,) = syncs(app)
        assert (sync.cohort_id, sync.entered, sync.left, sync.accepted) == ("", 100, 90, 2)

    def test_request__for_up_to_eight_cohorts__is_in_the_sync_of_each(
        self, app: Flask, http: FlaskClient
    ) -> None:
        for count in (8, 9):
            traits = {f"n: {count}-{n}": False for n in range(count)}
            http.post(COHORT_PATH, json=identify("u", ONE, True) | {"traits": traits})
        found = [sync.cohort_id for sync in syncs(app)]
        assert sorted(found) == ["", *(f"8-{n}" for n in range(8))]

    def test_request__is_recorded_with_all_that_its_event_and_outcome_say(self, app: Flask) -> None:
        event = {
            "app": APP,
            "source": "list",
            "key": "a-key",
            "request_id": "an-id",
            "accepted": 7,
            "changed": 5,
            "rejected": 3,
            "rejected_by": {"suppressed_user": 1, "unknown_user": 2},
            "repeated": True,
            "reason": "ignored",
            "first_error": "users.0: unknown",
            "cohorts": ["1"],
        }
        rejection = Rejection(user_hash("ann"), "unknown_user")
        outcome = Outcome({"1": ONE}, {"1": Moves(4, 2)}, [rejection], ["ann"])
        recorder: SyncRecorder = services(app).sync_recorder
        recorder.record(FinishedRequest(event, "lists", outcome, 200, 0.01234))
        (sync,) = syncs(app)
        (record,) = requests_of(app, sync, problems=True)
        expected = (12.3, 200, "list", "a-key", "an-id", 7, 5, 4, 2, 2, True, "")
        assert record[1:] == (*expected, "users.0: unknown", (rejection,), "")
        store: Store = services(app).store
        assert store.sync_history.left_out(APP, sync.id) == ["ann"]

    @pytest.mark.parametrize(
        ("status", "reason", "cohort"), [(399, "", ""), (400, "some", "1"), (500, "some", "")]
    )
    def test_request__without_an_outcome__has_its_reason_and_names_its_cohort_if_refused(
        self, app: Flask, status: int, reason: str, cohort: str
    ) -> None:
        event = {"app": APP, "source": "list", "request_id": "an-id", "reason": "some"}
        recorder: SyncRecorder = services(app).sync_recorder
        recorder.record(FinishedRequest({**event, "cohorts": ["1"]}, "lists", None, status, 0.5))
        (sync,) = syncs(app)
        (record,) = requests_of(app, sync, problems=status >= 400)
        expected = RequestRecord(0, 500.0, status, "list", "", "an-id", reason=reason)
        assert record._replace(at_ms=0) == expected._replace(unknown_cohort=cohort)

    def test_repeat__of_a_message__is_told(self, app: Flask, http: FlaskClient) -> None:
        message = {
            "cohort_name": "one",
            "cohort_id": "1",
            "in_cohort": True,
            "message_id": "m1",
            "users": [{"user_id": "u"}],
        }
        for _ in range(2):
            http.post("/api/v1/integration/amplitude/webhook", json=message)
        (sync,) = syncs(app)
        assert (sync.requests, sync.repeated, sync.entered) == (2, 1, 1)
        assert [record.repeated for record in requests_of(app, sync)] == [False, True]

    def test_list__made_and_filled__is_one_sync(self, app: Flask, http: FlaskClient) -> None:
        http.post("/lists", json={"name": ONE})
        http.post("/lists/1/add", json={"userIds": ["a", "b"]})
        (sync,) = syncs(app)
        assert (sync.requests, sync.entered, sync.sources) == (2, 2, {"list": 2})

    def test_other_app__sees_nothing(self, app: Flask, http: FlaskClient) -> None:
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        (sync,) = syncs(app)
        store: Store = services(app).store
        assert store.sync_history.syncs("other").syncs == []
        assert store.sync_history.sync("other", sync.id) is None


class TestClocks:
    """Times are those of the store: a process's clock may be wrong, or be set."""

    def send(self, app: Flask, http: FlaskClient, users: list[str]) -> None:
        http.post(COHORT_PATH, json=batch(users, ONE, True))
        flush(app)

    def test_worker_clock__ahead_for_a_while__changes_nothing(
        self, make_app: Callable[..., Flask], clock: Clock
    ) -> None:
        app = make_app(tuning=Tuning(now=clock))
        http, store = caller(app), services(app).store
        clock.forward(86_400)
        self.send(app, http, ["a"])
        clock.forward(-86_400)
        for users in (["b"], ["c"], ["d"]):
            self.send(app, http, users)
        (sync,) = syncs(app)
        assert (sync.requests, sync.entered) == (4, 4)
        assert abs(sync.last_ms - time.time() * 1000) < MINUTE
        assert store.size_history.of(APP, ["1"])[0][-1].members == 4

    def test_store_clock__ahead_for_a_while__is_forgotten_once_it_is_right(
        self, app: Flask, http: FlaskClient, store: Store, clock: Clock
    ) -> None:
        self.send(app, http, ["a"])
        clock.forward(86_400)
        self.send(app, http, ["b"])
        clock.forward(-86_400)
        for users in (["c"], ["d"], ["e"]):
            self.send(app, http, users)
        right, wrong, first = syncs(app)
        assert (first.requests, wrong.requests, right.requests) == (1, 1, 3)
        (sizes,) = services(app).store.size_history.of(APP, ["1"])
        assert sizes[-1].members == 5
        assert sizes == sorted(sizes)
        assert abs(sizes[-1].at_ms - time.time() * 1000) < MINUTE

    def test_sync__from_a_clock_that_was_ahead__does_not_keep_the_later_ones_from_aging(
        self, make_app: Callable[..., Flask], clock: Clock, redis_client: redis.Redis
    ) -> None:
        app = make_app(history_max_age_hours=1)
        http = caller(app)
        clock.forward(366 * 86_400)
        self.send(app, http, ["a"])
        clock.forward(-366 * 86_400)
        self.send(app, http, ["b"])
        clock.forward(2 * 3600)
        services(app).store.sync_history.trim(APP)
        assert redis_client.keys("cohorts:{shop}:sync:*") == []

    def test_request__that_waits_for_the_store__keeps_its_time(
        self, app: Flask, http: FlaskClient, clock: Clock
    ) -> None:
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        clock.forward(600)
        (sync,) = syncs(app)
        assert abs(sync.last_ms / 1000 + 600 - clock()) < 5


class TestProblems:
    def test_rejected_users__are_told_by_a_hash_and_the_reason(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(user_policy="known")
        store: Store = services(app).store
        store.registered_users.add(APP, ["known"])
        http = caller(app)
        http.post(COHORT_PATH, json=batch(["known", "stranger", "other"], ONE, True))
        http.post(COHORT_PATH, json=batch(["stranger"], ONE, True))
        (sync,) = syncs(app)
        assert (sync.accepted, sync.rejected, sync.failed) == (1, 3, 1)
        assert sync.reasons == {"unknown_user": 3}
        assert sync.failures == {"unknown_user": 1}
        some, none = requests_of(app, sync, problems=True)
        assert [tuple(rejection) for rejection in some.rejections] == [
            (user_hash("stranger"), "unknown_user"),
            (user_hash("other"), "unknown_user"),
        ]
        assert (none.status, none.reason) == (404, "unknown_user")
        assert syncs(app, problems=True) == [sync]

    def test_history__holds_no_user_id(
        self, app: Flask, http: FlaskClient, redis_client: redis.Redis
    ) -> None:
        store: Store = services(app).store
        store.erasure.erase(APP, "secret@example.com", suppress=True)
        http.post(COHORT_PATH, json=identify("secret@example.com", ONE, True))
        (sync,) = syncs(app)
        assert sync.reasons == {"suppressed_user": 1}
        for key in redis_client.scan_iter("*:sync:*"):
            kept = (
                redis_client.hgetall(key)
                if redis_client.type(key) == "hash"
                else redis_client.lrange(key, 0, -1)
            )
            assert "secret@" not in str(kept)

    @pytest.mark.parametrize(
        ("body", "headers", "reason", "detail"),
        [
            (
                b"{",
                {},
                "invalid_json",
                "The body is not valid JSON: unexpected end of data: line 1 column 2 (char 1)",
            ),
            (
                b'{"type": "identify", "userId": "a"}',
                {},
                "invalid_payload",
                "traits: Missing data for required field.",
            ),
            (b"x" * 2000, {}, "body_too_large", "The body may have at most 1024 bytes."),
            (
                b"{}",
                {"Content-Type": "text/plain"},
                "unsupported_media_type",
                "Content-Type must be application/json.",
            ),
        ],
    )
    def test_failure__without_a_cohort__is_told_with_its_reason(
        self, make_app: Callable[..., Flask], body: bytes, headers: Any, reason: str, detail: str
    ) -> None:
        app = make_app(max_body_bytes=1024)
        http = caller(app)
        for _ in range(3):
            http.post(
                COHORT_PATH, data=body, headers={"Content-Type": "application/json", **headers}
            )
        (sync,) = syncs(app)
        assert (sync.cohort_id, sync.requests, sync.failed) == ("", 3, 3)
        assert sync.failures == {reason: 3}
        assert sync.sources == {"identify": 3}
        record = requests_of(app, sync, problems=True)[0]
        assert (record.reason, record.detail) == (reason, detail)
        details = services(app).store.sync_history.first_details(APP, [sync])
        assert details == {sync.id: detail}

    def test_failures__of_other_reasons_or_sources__are_apart(
        self, app: Flask, http: FlaskClient
    ) -> None:
        for path, body in ((COHORT_PATH, "{"), (COHORT_PATH, "{}"), (WEBHOOK_PATH, "{")):
            http.post(path, data=body, content_type="application/json")
        found = {(*sync.sources, *sync.failures) for sync in syncs(app)}
        assert found == {
            ("identify", "invalid_json"),
            ("identify", "invalid_payload"),
            ("webhook", "invalid_json"),
        }

    @pytest.mark.parametrize("path", [COHORT_PATH, WEBHOOK_PATH])
    def test_invalid_json__is_told_with_its_place_and_without_its_text(
        self, app: Flask, http: FlaskClient, path: str
    ) -> None:
        body = b"\n" * 60_000 + b'{"userId": "alice", "time":\n1,234}'
        with capture_logs() as events:
            reply = http.post(path, data=body, content_type="application/json")
        (sync,) = syncs(app)
        (record,) = requests_of(app, sync, problems=True)
        assert "line 60002 column 3" in record.detail
        assert record.detail.endswith("print it with ?c")
        assert "alice" not in record.detail
        assert record.detail == reply.json["detail"] == events[-1]["first_error"]

    def test_rate_limit__is_told(self, make_app: Callable[..., Flask]) -> None:
        app = make_app(rate_limit=parse("2/minute"))
        http = caller(app)
        for _ in range(4):
            http.post(COHORT_PATH, json=identify("u", ONE, True))
        assert [sync.failures for sync in syncs(app, problems=True)] == [{"rate_limited": 2}]

    def test_read_key__that_sends__is_told(self, app: Flask) -> None:
        caller(app, READ_KEY).post(COHORT_PATH, json=identify("u", ONE, True))
        (sync,) = syncs(app)
        assert sync.failures == {"missing_scope": 1}

    def test_unknown_list__is_told_apart_from_the_cohorts(
        self, app: Flask, http: FlaskClient
    ) -> None:
        http.post("/lists/nowhere/add", json={"userIds": ["a"]})
        (sync,) = syncs(app)
        assert (sync.cohort_id, sync.failures) == ("", {"unknown_cohort": 1})
        (record,) = requests_of(app, sync, problems=True)
        assert (record.unknown_cohort, record.rejections) == ("nowhere", ())

    @pytest.mark.parametrize(
        ("body", "named"),
        [
            ({"type": "identify", "userId": "u", "traits": {ONE: 1}}, "1"),
            ({"type": "identify", "userId": "u", "traits": {"plan": 1}}, ""),
            ({"type": "identify", "userId": "u", "traits": {"a: " + "x" * 600: 1}}, ""),
        ],
    )
    def test_unknown_cohort__of_a_refused_request__is_recorded_as_it_was_sent(
        self, app: Flask, http: FlaskClient, body: Any, named: str
    ) -> None:
        assert http.post(COHORT_PATH, json=body).status_code == 400
        (sync,) = syncs(app)
        (record,) = requests_of(app, sync, problems=True)
        assert (sync.cohort_id, record.unknown_cohort) == ("", named)
        found = services(app).store.sync_history.first_problems(APP, [sync])
        assert found[sync.id].unknown_cohorts == ([named] if named else [])

    def test_flood_of_failures__is_counted_and_leaves_the_others(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(history_max_requests=200, history_max_syncs=200)
        http = caller(app)
        for n in range(50):
            http.post(COHORT_PATH, json=identify("u", f"n: {n}", True))
        for n in range(400):
            http.post(COHORT_PATH, data=b"{", content_type="application/json")
            if n % 10 == 0:
                flush(app)
        found = syncs(app, limit=300)
        assert len([sync for sync in found if sync.cohort_id]) == 50
        (failed,) = (sync for sync in found if not sync.cohort_id)
        assert failed.failed == 400
        assert failed.kept_problems <= 100

    def test_unknown_callers__are_counted_without_telling_whom(
        self, app: Flask, store: Store
    ) -> None:
        for _ in range(3):
            caller(app, "wrong").post(COHORT_PATH, json=identify("u", ONE, True))
        app.test_client().post(COHORT_PATH, json=identify("u", ONE, True))
        for _ in range(2):
            assert syncs(app) == []
        assert store.sync_history.unknown_callers() == {
            "invalid_credentials": 3,
            "missing_credentials": 1,
        }

    def test_wrong_addresses__are_counted_if_the_key_is_valid(
        self, app: Flask, http: FlaskClient, store: Store
    ) -> None:
        assert http.post(f"{WEBHOOK_PATH}s", json={}).status_code == 404
        assert http.put(WEBHOOK_PATH, json={}).status_code == 405
        for other in (caller(app, "wrong"), app.test_client()):
            assert other.post(f"{WEBHOOK_PATH}s", json={}).status_code == 404
            assert other.put(WEBHOOK_PATH, json={}).status_code == 405
        assert syncs(app) == []
        assert store.sync_history.unknown_callers() == {"not_found": 1, "method_not_allowed": 1}

    def test_unknown_callers__of_more_than_a_day_ago__are_not_counted(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        store.sync_history.count_unknown_callers({"now": 1})
        (key,) = redis_client.keys("cohorts:*callers*")
        (name,) = redis_client.hkeys(key)
        hour = int(name.partition(":")[0])
        redis_client.hset(key, mapping={f"{hour - 23}:recent": 2, f"{hour - 24}:old": 3})
        assert store.sync_history.unknown_callers() == {"now": 1, "recent": 2}


class TestBounds:
    def test_requests__more_than_are_kept__go_with_their_syncs(
        self, make_app: Callable[..., Flask], redis_client: redis.Redis
    ) -> None:
        app = make_app(history_max_requests=100)
        http = caller(app)
        for n in range(40):
            for _ in range(5):
                http.post(COHORT_PATH, json=identify("u", f"n: {n}", True))
            flush(app)
        found = syncs(app, limit=100)
        assert [sync.cohort_id for sync in found] == [str(n) for n in range(39, 19, -1)]
        assert sum(sync.kept for sync in found) == 100
        base = "cohorts:{shop}:"
        assert redis_client.hget(f"{base}history", "syncs") == "100"
        assert len(redis_client.keys(f"{base}sync:*:requests")) == 20
        assert len(redis_client.keys(f"{base}cohort:*:syncs")) == 20
        assert redis_client.hlen(f"{base}open") == 20

    def test_one_long_sync__keeps_its_newest_requests_and_its_sums(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(history_max_requests=1000)
        http = caller(app)
        for n in range(250):
            http.post(COHORT_PATH, json=identify(f"u{n}", ONE, True))
            if n % 40 == 0:
                flush(app)
        (sync,) = syncs(app)
        assert (sync.requests, sync.entered, sync.kept) == (250, 250, 100)

    def test_syncs__more_than_are_kept__go_oldest_first(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(history_max_syncs=10)
        http = caller(app)
        for n in range(15):
            http.post(COHORT_PATH, json=identify("u", f"n: {n}", True))
            flush(app)
        assert [sync.cohort_id for sync in syncs(app)] == [str(n) for n in range(14, 4, -1)]

    def test_age__over_what_is_kept__goes(
        self, make_app: Callable[..., Flask], clock: Clock
    ) -> None:
        app = make_app(history_max_age_hours=1)
        clock.forward(-3700)
        caller(app).post(COHORT_PATH, json=identify("u", ONE, True))
        flush(app)
        clock.forward(3700)
        caller(app).post(COHORT_PATH, json=identify("u", TWO, True))
        assert [sync.cohort_id for sync in syncs(app)] == ["2"]

    @pytest.mark.parametrize(
        "limits", [{"history_max_age_hours": 1}, {"history_max_requests": 0}], ids=str
    )
    def test_app_that_is_silent__what_is_too_old_is_not_shown_and_goes(
        self,
        make_app: Callable[..., Flask],
        redis_client: redis.Redis,
        clock: Clock,
        limits: dict[str, int],
    ) -> None:
        clock.forward(-3700)
        before = make_app(user_policy="known")
        for n in range(120):
            caller(before).post(COHORT_PATH, json=identify("u", f"n: {n}", True))
        caller(before).post(COHORT_PATH, data=b"{", content_type="application/json")
        found = syncs(before, limit=500)
        assert len(found) == 121
        clock.forward(3700)
        store: Store = services(make_app(**limits)).store
        assert store.sync_history.syncs(APP).syncs == []
        assert store.sync_history.sync(APP, found[0].id) is None
        for _ in range(3):  # some of it in each round
            Background(store).remove_old()
        base = "cohorts:{shop}:"
        assert redis_client.hgetall(f"{base}history") == {
            "next": "121",
            "syncs": "0",
            "failures": "0",
        }
        for pattern in ("sync:*", "cohort:*:syncs", "syncs", "failures", "problems", "open"):
            assert redis_client.keys(base + pattern) == []

    def test_app_that_only_failed__is_trimmed_too(
        self,
        make_app: Callable[..., Flask],
        redis_client: redis.Redis,
        clock: Clock,
    ) -> None:
        clock.forward(-3700)
        before = make_app()
        caller(before).post(COHORT_PATH, data=b"{", content_type="application/json")
        assert len(syncs(before)) == 1
        clock.forward(3700)
        Background(services(make_app(history_max_age_hours=1)).store).remove_old()
        assert redis_client.keys("cohorts:{shop}:sync:*") == []

    def test_no_requests_to_keep__keeps_no_history(
        self, make_app: Callable[..., Flask], redis_client: redis.Redis
    ) -> None:
        app = make_app(history_max_requests=0)
        caller(app).post(COHORT_PATH, json=identify("u", ONE, True))
        assert syncs(app) == []
        assert redis_client.keys("*sync*") == []

    def test_pages__hold_each_sync_once(self, app: Flask, http: FlaskClient) -> None:
        for n in range(25):
            http.post(COHORT_PATH, json=identify("u", f"n: {n}", True))
            if n % 5 == 0:
                http.post(f"/lists/none{n}/add", json={"userIds": ["a"]})
            flush(app)
        store: Store = services(app).store
        met: list[int] = []
        before = None
        while True:
            page = store.sync_history.syncs(APP, before=before, limit=7)
            met += [sync.id for sync in page.syncs]
            before = page.after
            if before is None:
                break
        assert met == sorted(set(met), reverse=True)
        assert len(met) == 26


class TestStoreTrouble:
    def test_store_that_fails__loses_nothing_and_counts_nothing_twice(
        self, app: Flask, http: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add = store.sync_history.add

        def add_and_fail(*args: Any) -> None:
            add(*args)
            raise StoreTimeout("The answer was lost.")

        http.post(COHORT_PATH, json=identify("u", ONE, True))
        monkeypatch.setattr(store.sync_history, "add", add_and_fail)
        for _ in range(3):
            with pytest.raises(StoreError):
                flush(app)
            http.post(COHORT_PATH, json=identify("u", ONE, True))
        monkeypatch.undo()
        (sync,) = syncs(app)
        assert (sync.requests, sync.kept) == (4, 4)

    def test_store_away_for_long__what_is_held_is_bounded(
        self, make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = make_app(tuning=Tuning(history_buffered=10), **KEYS)
        http, store = caller(app), services(app).store
        monkeypatch.setattr(store.sync_history, "add", fail)
        for _ in range(30):
            http.post(COHORT_PATH, json=identify("u", ONE, True))
            services(app).sync_recorder.work()
        monkeypatch.undo()
        with capture_logs() as logs:
            services(app).sync_recorder.work()
        (resumed,) = [entry for entry in logs if entry["event"] == "sync history resumed"]
        assert resumed["requests_dropped"] == 20
        (sync,) = syncs(app)
        assert sync.requests == 10

    def test_buffer__filled_again_and_again__has_room_after_each_flush(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(tuning=Tuning(history_buffered=10))
        http = caller(app)
        for _ in range(7):
            for _ in range(9):
                http.post(COHORT_PATH, json=identify("u", ONE, True))
            flush(app)
        (sync,) = syncs(app)
        assert sync.requests == 63

    def test_buffer__that_is_full__drops_the_latest_of_the_app_with_the_most(
        self, app: Flask, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store: Store = services(app).store
        recorder = SyncRecorder(store, Tuning(history_buffered=4, monotonic=clock))

        def record(app_id: str | None, source: str = "list") -> None:
            event = {"source": source, "request_id": "an-id"}
            event |= {"app": app_id} if app_id else {}
            recorder.record(FinishedRequest(event, "lists", None, 400, 0.1))

        with monkeypatch.context() as context, capture_logs() as logs:
            context.setattr(store.sync_history, "add", fail)
            for source in ("first", "second"):  # each written by itself
                record("busy", source)
                record("busy", source)
                recorder.work()
            for app_id in ("quiet", "quiet", "busy", None):
                record(app_id)
            recorder.work()
        (paused,) = logs
        assert (paused["event"], paused["reason"]) == ("sync history paused", "store_timeout")
        with capture_logs() as logs:
            recorder.work()
        (resumed,) = logs
        assert (resumed["event"], resumed["requests_dropped"]) == ("sync history resumed", 4)
        found = {
            app_id: [
                (*sync.sources, sync.requests) for sync in store.sync_history.syncs(app_id).syncs
            ]
            for app_id in ("busy", "quiet")
        }
        assert found == {"busy": [("first", 2)], "quiet": [("list", 2)]}
        with capture_logs() as logs:
            recorder.work()
        assert logs == []

    def test_buffer__with_a_single_write_of_the_largest_app__is_kept(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be on its way to the store."""
        store: Store = services(app).store
        recorder = SyncRecorder(store, Tuning(history_buffered=2))
        with monkeypatch.context() as context:
            context.setattr(store.sync_history, "add", fail)
            for apps in (("busy", "busy"), ("quiet",)):
                for app_id in apps:
                    event = {"source": "list", "request_id": "an-id", "app": app_id}
                    recorder.record(FinishedRequest(event, "lists", None, 400, 0.1))
                recorder.work()
        recorder.work()
        assert store.sync_history.syncs("quiet").syncs == []
        (sync,) = store.sync_history.syncs("busy").syncs
        assert sync.requests == 2

    def test_time__that_the_store_does_not_tell__is_counted_on_from_what_it_told_last(
        self, app: Flask, http: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store: Store = services(app).store
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        with monkeypatch.context() as context:
            context.setattr(store, "now", fail)
            with pytest.raises(StoreError):
                flush(app)
        assert len(syncs(app)) == 1
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        with monkeypatch.context() as context:
            context.setattr(store, "now", fail)
            (sync,) = syncs(app)
        assert sync.requests == 2

    def test_flush__with_nothing_buffered__does_not_ask_for_the_time(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(services(app).store, "now", fail)
        flush(app)

    def test_buffer__of_which_the_store_took_a_part__has_room_for_as_many(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store: Store = services(app).store
        recorder = SyncRecorder(store, Tuning(history_buffered=4))
        add = store.sync_history.add
        event = {"source": "list", "request_id": "an-id", "app": APP}

        def record_and_work() -> None:
            for _ in range(2):
                recorder.record(FinishedRequest(event, "lists", None, 400, 0.1))
            recorder.work()

        def add_once(*args: Any) -> None:
            monkeypatch.setattr(store.sync_history, "add", fail)
            add(*args)

        monkeypatch.setattr(store.sync_history, "add", fail)
        record_and_work()
        record_and_work()
        monkeypatch.setattr(store.sync_history, "add", add_once)
        recorder.work()
        record_and_work()
        monkeypatch.undo()
        recorder.work()
        (sync,) = store.sync_history.syncs(APP).syncs
        assert sync.requests == 6

    def test_finish__writes_all_that_is_buffered_and_gives_others_a_turn(
        self, app: Flask, http: FlaskClient
    ) -> None:
        turns = 0

        def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                gevent.sleep(0)

        recorder: SyncRecorder = services(app).sync_recorder
        event = {"app": APP, "source": "list", "request_id": "an-id"}
        for _ in range(350):
            recorder.record(FinishedRequest(event, "lists", None, 200, 0.1))
        other = gevent.spawn(take_turns)
        with capture_logs() as logs:
            recorder.finish()
        other.kill()
        assert logs == []
        assert turns >= 3
        (sync,) = syncs(app)
        assert sync.requests == 350

    def test_finish__while_the_store_is_away__says_that_history_is_incomplete(
        self, app: Flask, http: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        monkeypatch.setattr(services(app).store.sync_history, "add", fail)
        with capture_logs() as logs:
            services(app).sync_recorder.finish()
        (event,) = logs
        assert (event["event"], event["reason"]) == ("sync history incomplete", "store_timeout")

    def test_sizes__while_the_store_is_away__are_recorded_afterwards(
        self, app: Flask, http: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without another request for the cohorts."""
        http.post(COHORT_PATH, json=batch(["a", "b"], ONE, True))
        http.post(COHORT_PATH, json=batch(["a"], TWO, True))
        with monkeypatch.context() as patch:
            patch.setattr(services(app).store.size_history, "record", fail)
            for _ in range(2):
                with pytest.raises(StoreError):
                    flush(app)
        flush(app)
        sizes = store.size_history.of(APP, ["1", "2"])
        assert [[size.members for size in found] for found in sizes] == [[2], [1]]

    def test_store_that_refuses__does_not_hold_up_the_rest(
        self, app: Flask, http: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: Any) -> None:
            raise StoreRefused("The store refused a command.")

        http.post(COHORT_PATH, json=identify("u", ONE, True))
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(store.sync_history, "add", refuse)
            flush(app)
        assert [(entry["event"], entry["requests"]) for entry in logs] == [
            ("sync history refused", 1)
        ]
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        (sync,) = syncs(app)
        assert sync.requests == 1


class TestSizes:
    def test_sizes__are_noted_where_they_change(
        self, app: Flask, http: FlaskClient, store: Store
    ) -> None:
        http.post(COHORT_PATH, json=batch([f"u{n}" for n in range(10)], ONE, True))
        http.post(COHORT_PATH, json=batch(["u1"], TWO, True))
        flush(app)
        http.post(COHORT_PATH, json=batch(["u1", "u2"], ONE, False))
        flush(app)
        one, two, none = store.size_history.of(APP, ["1", "2", "never"])
        assert [size.members for size in one] == [10, 8]
        assert [size.members for size in two] == [1]
        assert none == []
        assert abs(one[-1].at_ms - time.time() * 1000) < MINUTE

    def test_sizes__of_changed_cohorts__are_recorded_every_three_seconds(
        self, app: Flask, http: FlaskClient, store: Store, clock: Clock
    ) -> None:
        clock.stands_at = time.time()
        found = []
        for seconds in (0, 2, 1):
            clock.forward(seconds)
            http.post(COHORT_PATH, json=identify(f"u{len(found)}", ONE, True))
            services(app).sync_recorder.work()
            found.append(store.size_history.of(APP, ["1"])[0][-1].members)
        assert found == [1, 1, 3]

    def test_sizes__after_a_user_was_erased__are_without_the_user(
        self, app: Flask, http: FlaskClient, store: Store
    ) -> None:
        http.post(COHORT_PATH, json=batch(["u1", "u2"], ONE, True))
        http.post(COHORT_PATH, json=identify("u1", TWO, False))
        flush(app)
        store.erasure.erase(APP, "u1")
        one, two = store.size_history.of(APP, ["1", "2"])
        assert one[-1].members == 1
        assert two == []  # the user was never in it

    def test_sizes__of_a_long_time__are_thinned_and_bounded(
        self, store: Store, clock: Clock
    ) -> None:
        clock.stands_at = 1_700_000_000.0
        for n in range(1000):
            say(store, ONE, True, [f"u{n}"])
            store.size_history.record(APP, ["1"])
            clock.forward(3600)
        (found,) = store.size_history.of(APP, ["1"])
        assert 180 <= len(found) <= 240
        assert found == sorted(found)
        assert found[0] == (1_700_000_000_000, 1)
        assert [size.members for size in found[-100:]] == list(range(901, 1001))

    def test_sizes__of_a_deleted_cohort__are_gone_and_stay_gone(
        self, app: Flask, http: FlaskClient, store: Store
    ) -> None:
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        flush(app)
        assert store.size_history.of(APP, ["1"]) != [[]]
        list(store.jobs.delete_cohort(APP, "1"))
        store.size_history.record(APP, ["1"])
        assert store.size_history.of(APP, ["1"]) == [[]]


def app_label(app: Flask) -> str:
    ring: KeyRing = services(app).keyring
    caller = ring.find(KEY)
    assert caller
    return caller.label


class TestReading:
    @pytest.fixture
    def reader(self, app: Flask) -> Reader:
        return Reader(app)

    def test_sync__over_http__tells_what_happened(
        self, app: Flask, http: FlaskClient, reader: Reader
    ) -> None:
        http.post(COHORT_PATH, json=batch(["a", "b"], ONE, True))
        http.post(COHORT_PATH, json=batch(["a"], ONE, False))
        flush(app)
        (sync,) = reader.get("/api/v1/syncs").json["syncs"]
        assert (sync["cohortId"], sync["trait"], sync["requests"]) == ("1", ONE, 2)
        assert (sync["accepted"], sync["entered"], sync["left"]) == (3, 2, 1)
        assert reader.get(f"/api/v1/syncs/{sync['id']}").json == sync
        first, second = reader.get(f"/api/v1/syncs/{sync['id']}/requests").json["requests"]
        assert (first["entered"], second["left"], second["status"]) == (2, 1, 200)
        (size,) = reader.get("/api/v1/cohorts/1/sizes").json["sizes"]
        assert size["members"] == 1

    def test_problems__over_http__are_told_apart(
        self, app: Flask, http: FlaskClient, reader: Reader
    ) -> None:
        http.post(COHORT_PATH, json=identify("a", ONE, True))
        http.post(COHORT_PATH, data=b"{", content_type="application/json")
        flush(app)
        (sync,) = reader.get("/api/v1/syncs?problems=true").json["syncs"]
        assert (sync["cohortId"], sync["failures"]) == (None, {"invalid_json": 1})
        path = f"/api/v1/syncs/{sync['id']}/requests"
        assert reader.get(path).json["requests"] == []
        (request,) = reader.get(f"{path}?problems=true").json["requests"]
        assert (request["status"], request["reason"]) == (400, "invalid_json")

    def test_pages__by_links__hold_all(self, app: Flask, http: FlaskClient, reader: Reader) -> None:
        for n in range(10):
            for _ in range(3):
                http.post(COHORT_PATH, json=identify("u", f"n: {n}", True))
        flush(app)
        pages = reader.pages("/api/v1/syncs?limit=3", "syncs")
        assert [len(page) for page in pages] == [3, 3, 3, 1]
        assert {sync["cohortId"] for page in pages for sync in page} == {str(n) for n in range(10)}
        (sync,) = reader.get("/api/v1/syncs?cohort=7").json["syncs"]
        pages = reader.pages(f"/api/v1/syncs/{sync['id']}/requests?limit=2", "requests")
        assert [len(page) for page in pages] == [2, 1]

    def test_sync__that_is_not_there__is_404(self, app: Flask, reader: Reader) -> None:
        assert reader.get("/api/v1/syncs/1", 404) == "unknown_sync"
        assert reader.get(f"/api/v1/syncs/{10**16 - 1}/requests", 404) == "unknown_sync"
        for sync_id in ("x", "-1", "1.0", "1" * 17):
            assert reader.get(f"/api/v1/syncs/{sync_id}", 400) == "invalid_parameter"
        assert reader.get("/api/v1/cohorts/1/sizes", 404) == "unknown_cohort"
        assert reader.get("/api/v1/syncs").json == {"syncs": [], "next": None}

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=501",
            "cursor=x",
            "cursor=WyJyIiwxXQ",
            "cursor=WyJzIix0cnVlXQ",
            "problems=1",
            "cohort=",
        ],
    )
    def test_query__malformed__is_400(self, reader: Reader, query: str) -> None:
        assert reader.get(f"/api/v1/syncs?{query}", 400) == "invalid_parameter"

    def test_other_app__is_told_nothing(self, app: Flask, http: FlaskClient) -> None:
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        (sync,) = syncs(app)
        other = Reader(app, OTHER_KEY)
        assert other.get("/api/v1/syncs").json["syncs"] == []
        assert other.get(f"/api/v1/syncs/{sync.id}", 404) == "unknown_sync"
