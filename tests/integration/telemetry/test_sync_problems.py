"""What requests tell about the completeness of their cohorts: failures for good, users left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from limits import parse
from structlog.testing import capture_logs

from app.auth.audit_trail import Operator
from app.auth.member_import import MemberImport
from app.cohorts import VerifiedBy
from app.services import services
from app.settings import ApiKey
from app.store import FailedRequest, ResyncPlace, Tuning
from app.telemetry.request_event import FinishedRequest
from app.telemetry.sync_problems import RETRIED_SECONDS
from simulator import payloads
from tests.integration.clock import Clock
from tests.integration.conftest import APP, KEY, caller
from tests.integration.killed_process import KilledError
from tests.support.stores import socket_url, start_store, store_folder

COHORT, TRAIT = "abc123", "[Amplitude] Power users: abc123"
PATH = payloads.COHORT_PATH
LIST = f"/lists/{COHORT}/add"
MINUTE = 60_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Service:
    """The service as the tests see it: one process of it, which works when told to."""

    def __init__(self, app: Flask, clock: Clock) -> None:
        self.app, self.clock = app, clock
        self.http: FlaskClient = caller(app)
        self.store = services(app).store

    def send(self, *user_ids: Any, status: int = 200, path: str = LIST, **body: Any) -> None:
        reply = self.http.post(path, json=body or {"userIds": list(user_ids)})
        assert reply.status_code == status, reply.text

    def create(self) -> None:
        self.http.post("/lists", json={"name": TRAIT})
        self.send("alice")

    def work(self) -> None:
        services(self.app).sync_problems.work()

    def later(self, seconds: float = RETRIED_SECONDS + 1) -> None:
        self.clock.forward(seconds)

    def reasons(self) -> dict[str, int]:
        self.work()
        (found,) = self.store.completeness.of(APP, [COHORT])
        return {str(open.reason): open.count for open in found.reasons}

    def left_out(self) -> dict[str, int]:
        self.work()
        (found,) = self.store.completeness.of(APP, [COHORT])
        return dict(found.left_out)


Make = Callable[..., Service]


@pytest.fixture
def make(make_app: Callable[..., Flask], clock: Clock) -> Make:
    def make(**settings: Any) -> Service:
        return Service(
            make_app(
                Tuning(monotonic=clock, store_now=clock, freshness_noted_seconds=0), **settings
            ),
            clock,
        )

    return make


@pytest.fixture
def service(make: Make) -> Service:
    service = make()
    service.create()
    return service


@pytest.fixture
def own_store_service(make: Make) -> Any:
    """A service whose store can be stopped and started."""
    with store_folder() as folder:
        options = ("--appendonly", "yes")
        server = start_store(folder, *options)
        service = make(redis_url=socket_url(folder))
        service.create()

        def stop() -> None:
            server.terminate()
            server.wait(30)

        def start() -> None:
            nonlocal server
            server = start_store(folder, *options)

        yield service, stop, start
        server.terminate()
        server.wait(30)


def age(client: redis.Redis, service: Service, ms: int) -> None:
    """Let time pass for the store: move what it knows of the cohort into the past."""
    key = service.store.keys.freshness(APP, COHORT)
    fields = client.hgetall(key)
    if "starts" in fields:
        fields["starts"] = json.dumps([start - ms for start in json.loads(fields["starts"])])
        fields["last_received"] = str(int(fields["last_received"]) - ms)
    if "reasons" in fields:
        reasons = json.loads(fields["reasons"])
        for open in reasons:
            open.update(since=open["since"] - ms, last=open["last"] - ms)
        fields["reasons"] = json.dumps(reasons)
    client.hset(key, mapping=fields)


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (LIST, {"userIds": "alice"}),
        (LIST, {"userIds": [], "context": 1}),
        (PATH, {"type": "identify", "userId": "a", "traits": {TRAIT: "true"}}),
        (PATH, {"batch": [payloads.identify("a", TRAIT, True), {"traits": {TRAIT: 1}}]}),
        (payloads.WEBHOOK_PATH, {"cohort_name": "n", "cohort_id": COHORT, "users": 7}),
        ("/v1/identify", {"userId": "a", "traits": {TRAIT: True}, "timestamp": "nonsense"}),
    ],
)
def test_refused_request__names_its_cohort(
    service: Service, path: str, body: dict[str, Any]
) -> None:
    assert service.http.post(path, json=body).status_code == 400
    assert service.reasons() == {"sync_failed": 1}
    services(service.app).sync_recorder.flush()
    (sync, *_) = service.store.sync_history.syncs(APP, cohort_id=COHORT).syncs
    assert sync.failed == 1


def test_refused_request__with_broken_json__names_its_cohort(service: Service) -> None:
    """Amplitude pastes a name with a quote into the template as it is."""
    body = f'{{"cohort_name": "The "best" users", "cohort_id": "{COHORT}", "users": []}}'
    reply = service.http.post(payloads.WEBHOOK_PATH, data=body, content_type="application/json")
    assert reply.status_code == 400
    assert service.reasons() == {"sync_failed": 1}


@pytest.mark.parametrize("body", [b'{"cohort_id": 77, "users": 7}', b'{"cohort_id": 77, "users'])
def test_refused_request__with_a_number_as_id__names_its_cohort(
    service: Service, body: bytes
) -> None:
    service.http.post("/lists", json={"name": "Numbered: 77"})
    reply = service.http.post(payloads.WEBHOOK_PATH, data=body, content_type="application/json")
    assert reply.status_code == 400
    service.work()
    (found,) = service.store.completeness.of(APP, ["77"])
    assert [open.reason for open in found.reasons] == ["sync_failed"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"cohort_id": "',
        b'{"batch": [1, null, {"traits": []}, {"traits": {"": 1, "x: unknown": 1}}]}',
        b'{"traits": {"a: \\u0000": true, "b: \\ud800": true}}',
        b'{"cohort_id": 5, "name": {}, "batch": {}}',
        b'{"cohort_id": "' + b"x" * 2000 + b'"}',
        b'{"traits": {' + b",".join(b'"n: %d": 1' % n for n in range(2000)) + b"}}",
    ],
)
@pytest.mark.parametrize("path", [PATH, payloads.WEBHOOK_PATH, "/lists", "/v1/batch"])
def test_refused_request__that_names_no_known_cohort__changes_nothing(
    service: Service, redis_client: redis.Redis, path: str, body: bytes
) -> None:
    before = set(redis_client.scan_iter())
    reply = service.http.post(path, data=body, content_type="application/json")
    assert reply.status_code == 400
    service.work()
    assert set(redis_client.scan_iter()) == before
    services(service.app).sync_recorder.flush()
    assert all(
        not sync.failed for sync in service.store.sync_history.syncs(APP, cohort_id=COHORT).syncs
    )


def test_refused_request__that_names_very_many_cohorts__asks_the_store_about_few(
    service: Service, redis_client: redis.Redis
) -> None:
    traits = [{f"n: {user}-{n}": 1 for n in range(100)} for user in range(100)]
    redis_client.config_resetstat()
    reply = service.http.post(PATH, json={"batch": [{"traits": of_one} for of_one in traits]})
    assert reply.status_code == 400
    commands = redis_client.info("commandstats")
    assert 0 < sum(each["calls"] for each in commands.values()) < 200


def test_refused_requests__are_counted(service: Service) -> None:
    for _ in range(3):
        service.send(userIds=5, status=400)
    assert service.reasons() == {"sync_failed": 3}


def test_refused__for_its_key_or_path__is_no_failure_of_a_sync(service: Service) -> None:
    stranger = caller(service.app, "wrong")
    assert stranger.post(LIST, json={"userIds": ["bob"]}).status_code == 401
    assert service.http.post("/lists/unknown/add", json={"userIds": ["bob"]}).status_code == 404
    assert service.reasons() == {}


@pytest.mark.parametrize(("cohorts", "are_failed"), [(12, True), (120, False)])
def test_failed_request__that_names_many_cohorts__is_a_failure_of_each_or_of_none(
    own_store_service: Any, cohorts: int, are_failed: bool
) -> None:
    service, stop, start = own_store_service
    names = [f"n: {number}" for number in range(cohorts)]
    body = {"batch": [payloads.identify("bob", name, True) for name in names]}
    service.send(path=PATH, **body)
    stop()
    service.send(status=503, path=PATH, **body)
    start()
    service.work()
    service.send(path=PATH, **body)
    service.work()
    service.later()
    service.work()
    found = service.store.completeness.of(APP, [str(number) for number in range(cohorts)])
    assert not any(one.reasons for one in found)
    stop()
    service.send(status=503, path=PATH, **body)
    start()
    service.work()
    service.later()
    service.work()
    found = service.store.completeness.of(APP, [str(number) for number in range(cohorts)])
    assert all(bool(one.reasons) == are_failed for one in found)


# Repeated ---------------------------------------------------------------------------------------


def test_store_down__and_the_retry_succeeds__is_no_failure(own_store_service: Any) -> None:
    service, stop, start = own_store_service
    stop()
    service.send("bob", status=503)
    service.work()
    start()
    service.send("bob")
    assert service.reasons() == {}
    service.later()
    assert service.reasons() == {}
    assert service.store.failed_requests.all(APP) == {}


def test_store_down__and_no_retry_succeeds__is_a_failure_for_good(own_store_service: Any) -> None:
    """It is written when the store is back; requests that succeed don't make it good."""
    service, stop, start = own_store_service
    stop()
    for _ in range(3):
        service.send("bob", status=503)
    service.send("carol", "dora", status=503)
    service.work()
    start()
    service.send("carol")
    assert service.reasons() == {}
    service.later(RETRIED_SECONDS - 1)
    assert service.reasons() == {}
    service.later(2)
    assert service.reasons() == {"sync_failed": 2}
    assert service.reasons() == {"sync_failed": 2}


def test_store_down__for_a_list_new_to_the_process__is_a_failure_unless_its_retry_succeeds(
    make: Make, own_store_service: Any
) -> None:
    service, stop, start = own_store_service
    other = make(redis_url=services(service.app).settings.redis_url)
    stop()
    for user_id in ("bob", "carol"):
        other.send(user_id, status=503)
    other.send("bob", status=503, path="/lists/invented/add")
    start()
    other.work()
    service.send("carol")
    assert service.reasons() == {}
    service.later()
    assert service.reasons() == {"sync_failed": 1}
    assert service.store.failed_requests.all(APP) == {}
    (invented,) = service.store.completeness.of(APP, ["invented"])
    assert invented.reasons == ()


def test_process__that_ends_while_the_store_is_down__says_what_it_could_not_record(
    own_store_service: Any,
) -> None:
    service, stop, start = own_store_service
    problems = services(service.app).sync_problems
    service.work()
    with capture_logs() as logs:
        problems.finish()
        assert logs == []
        stop()
        service.send("", status=404)  # no failure of a sync
        problems.finish()
        assert [one["event"] for one in logs] == ["request"]
        service.send("bob", status=503)
        problems.finish()
    start()
    (event,) = [one for one in logs if one["event"] == "sync problems not recorded"]
    assert event["app"] == APP


def test_same_request_again__that_fails_for_good__is_not_hidden_by_its_earlier_success(
    own_store_service: Any,
) -> None:
    service, stop, start = own_store_service
    service.send("bob")
    service.later(1)
    stop()
    service.send("bob", status=503)
    service.work()
    start()
    service.later()
    assert service.reasons() == {"sync_failed": 1}


def test_retry_that_succeeds__before_the_request_that_was_given_up_fails__counts(
    own_store_service: Any,
) -> None:
    service, stop, start = own_store_service
    problems = services(service.app).sync_problems
    failed: list[FinishedRequest] = []
    problems.record = failed.append  # type: ignore[method-assign]
    stop()
    service.send("bob", status=503)
    start()
    del problems.record
    service.send("bob")
    service.later(1)
    problems.record(failed[0]._replace(seconds=2.0))
    service.later()
    assert service.reasons() == {}


def test_failure_before_an_import__is_settled_by_it(own_store_service: Any) -> None:
    service, stop, start = own_store_service
    stop()
    service.send("bob", status=503)
    service.work()
    start()
    service.work()
    service.later(1)
    place = ResyncPlace(APP, COHORT)
    with MemberImport(service.store, Operator("a test", "nobody"), place) as importing:
        importing.stage(["alice", "bob"])
        for _ in importing.compare():
            pass
        for _ in importing.apply(force=False):
            pass
    service.later()
    assert service.reasons() == {}


def test_retry_that_fails_again__is_waited_for_again(own_store_service: Any) -> None:
    service, stop, start = own_store_service
    stop()
    service.send("bob", status=503)
    service.later(RETRIED_SECONDS - 10)
    service.send("bob", status=503)
    start()
    service.later(20)
    assert service.reasons() == {}
    service.send("bob")
    service.later()
    assert service.reasons() == {}


def test_retry_that_another_process_answers__is_recognised(make: Make, clock: Clock) -> None:
    first, second = make(), make()
    first.create()
    first.app.config["PROPAGATE_EXCEPTIONS"] = False
    services(first.app).store.memberships.apply = None  # type: ignore[method-assign,assignment]
    first.send("bob", status=500)
    clock.forward(1)
    second.send("bob")
    for service in (second, first, second):
        service.work()
    clock.forward(RETRIED_SECONDS + 1)
    assert first.reasons() == second.reasons() == {}


def test_failure_for_good__is_raised_by_one_process(make: Make, clock: Clock) -> None:
    first, second = make(), make()
    first.create()
    second.send("alice")
    first.app.config["PROPAGATE_EXCEPTIONS"] = False
    services(first.app).store.memberships.apply = None  # type: ignore[method-assign,assignment]
    first.send("bob", status=500)
    for service in (first, second):
        service.work()
    clock.forward(RETRIED_SECONDS + 1)
    second.work()
    assert first.reasons() == second.reasons() == {"sync_failed": 1}


def test_failure_for_good__of_a_process_that_has_ended__is_raised_by_another(
    make: Make, clock: Clock
) -> None:
    first, second = make(), make()
    first.create()
    second.work()
    first.app.config["PROPAGATE_EXCEPTIONS"] = False
    services(first.app).store.memberships.apply = None  # type: ignore[method-assign,assignment]
    first.send("bob", status=500)
    first.work()
    clock.forward(RETRIED_SECONDS + 1)
    assert second.reasons() == {"sync_failed": 1}


def test_failure_for_good__is_recorded_before_the_next_app_is_looked_at(
    make: Make, clock: Clock
) -> None:
    """A process that is killed meanwhile loses the failures that it has not recorded."""
    keys = (ApiKey(APP, KEY), ApiKey("other", "the-other-key"))
    first, second = make(api_keys=keys), make()
    first.create()
    other = caller(first.app, "the-other-key")
    other.post("/lists", json={"name": TRAIT})
    first.app.config["PROPAGATE_EXCEPTIONS"] = False
    services(first.app).store.memberships.apply = None  # type: ignore[method-assign,assignment]
    first.send("bob", status=500)
    assert other.post(LIST, json={"userIds": ["bob"]}).status_code == 500
    first.work()
    clock.forward(RETRIED_SECONDS + 1)
    store = second.store
    take, apps = store.failed_requests.take, []

    def killed_at_the_second(app_id: str, requests: Any) -> Any:
        apps.append(app_id)
        if len(apps) == 2:
            raise KilledError
        return take(app_id, requests)

    store.failed_requests.take = killed_at_the_second  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        second.work()
    (found,) = store.completeness.of(apps[0], [COHORT])
    assert [open.count for open in found.reasons] == [1]


def test_failure_before_a_replacement__decided_after_it__changes_nothing(service: Service) -> None:
    started_ms = int(service.store.now() * 1000)
    service.store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC, started_ms)
    service.store.completeness.add_failed(APP, COHORT, 1, started_ms - 1)
    assert service.reasons() == {}
    service.store.completeness.add_failed(APP, COHORT, 2, started_ms)
    assert service.reasons() == {"sync_failed": 2}


def test_rate_limited__until_the_sender_gives_up(make: Make) -> None:
    service = make(rate_limit=parse("2/day"))
    service.create()
    service.later(1)
    service.send("bob", status=429)
    assert service.reasons() == {}
    service.later()
    assert service.reasons() == {"sync_failed": 1}


def test_rate_limited__for_a_list_new_to_the_process__is_a_failure(make: Make) -> None:
    service = make(rate_limit=parse("2/day"))
    service.create()
    other = make(rate_limit=parse("2/day"))
    other.send("bob", status=429)
    other.work()
    service.later()
    assert service.reasons() == {"sync_failed": 1}


def test_clock_of_a_process__ahead_meanwhile__does_not_hide_a_failure(
    make_app: Callable[..., Flask], clock: Clock
) -> None:
    wall = Clock()
    tuning = Tuning(now=wall, monotonic=clock, store_now=clock, freshness_noted_seconds=0)
    service = Service(make_app(tuning, rate_limit=parse("2/day")), clock)
    service.create()
    service.later(1)
    wall.forward(86_400)
    service.send("bob", status=429)
    assert service.reasons() == {}
    wall.forward(-86_400)
    for each in (clock, wall):
        each.forward(RETRIED_SECONDS + 1)
    assert service.reasons() == {"sync_failed": 1}


def test_failed_requests__more_than_are_kept(service: Service, redis_client: redis.Redis) -> None:
    failed = service.store.failed_requests
    many = {FailedRequest(COHORT, number): 1 for number in range(1, 10_500)}
    failed.add(APP, many)
    failed.add(APP, dict.fromkeys(list(many)[:2], 9))
    kept = failed.all(APP)
    assert (len(kept), list(kept.values())[-2:]) == (10_000, [9, 9])
    assert 0 < redis_client.pttl(service.store.keys.failed_requests(APP)) <= 60 * MINUTE


# Cleared ----------------------------------------------------------------------------------------


def settled(service: Service) -> dict[str, int]:
    services(service.app).sync_problems._settle_at = 0
    return service.reasons()


def test_next_sync_without_failures__clears_it(service: Service, redis_client: redis.Redis) -> None:
    service.send(userIds=5, status=400)
    assert service.reasons() == {"sync_failed": 1}
    service.send("bob")
    age(redis_client, service, 6 * MINUTE)
    assert settled(service) == {"sync_failed": 1}  # the rest of the same sync
    age(redis_client, service, 60 * MINUTE)
    service.send("bob", "carol")
    assert settled(service) == {"sync_failed": 1}  # it may still fail
    age(redis_client, service, 6 * MINUTE)
    assert settled(service) == {}
    assert service.store.completeness.of(APP, [COHORT])[0].state == "unverified"


def test_next_sync_with_a_failure__does_not_clear_it(
    service: Service, redis_client: redis.Redis
) -> None:
    service.send(userIds=5, status=400)
    service.work()
    age(redis_client, service, 60 * MINUTE)
    service.send("bob")
    service.send(userIds=5, status=400)
    service.work()
    age(redis_client, service, 6 * MINUTE)
    assert settled(service) == {"sync_failed": 2}


def test_next_sync__that_is_still_retried__does_not_clear_it(
    service: Service, redis_client: redis.Redis
) -> None:
    service.send(userIds=5, status=400)
    service.work()
    age(redis_client, service, 60 * MINUTE)
    service.send("bob")
    service.app.config["PROPAGATE_EXCEPTIONS"] = False
    apply = services(service.app).store.memberships.apply
    services(service.app).store.memberships.apply = None  # type: ignore[method-assign,assignment]
    service.send("carol", status=500)
    services(service.app).store.memberships.apply = apply  # type: ignore[method-assign]
    age(redis_client, service, 6 * MINUTE)
    assert settled(service) == {"sync_failed": 1}
    service.send("carol")
    service.work()
    age(redis_client, service, 6 * MINUTE)
    assert settled(service) == {}


# Left out ---------------------------------------------------------------------------------------


def test_users_left_out__are_counted_and_leave_the_cohort_complete(make: Make) -> None:
    service = make(user_policy="known")
    service.store.registered_users.add(APP, ["alice"])
    service.create()
    service.send("alice", "bob", "carol")
    service.send("bob", status=404)
    service.send("alice", "", None)
    assert service.left_out() == {"unknown_user": 3, "invalid_user_id": 2}
    service.later()
    assert service.reasons() == {}


def test_suppressed_users__are_no_problem_anywhere(service: Service) -> None:
    service.store.erasure.erase(APP, "mallory", suppress=True)
    service.send("alice", "mallory")
    service.send("mallory")
    assert service.left_out() == {}
    assert service.reasons() == {}
    services(service.app).sync_recorder.flush()
    (sync,) = service.store.sync_history.syncs(APP).syncs
    assert (sync.rejected, sync.failed, sync.has_problems) == (0, 0, False)
    assert sync.reasons == {"suppressed_user": 2}
    assert service.store.sync_history.syncs(APP, problems=True).syncs == []


def test_store_down__users_left_out_are_counted_when_it_is_back(own_store_service: Any) -> None:
    service, stop, start = own_store_service
    service.send("alice", "", "")
    stop()
    service.work()
    start()
    assert service.left_out() == {"invalid_user_id": 2}
    assert service.left_out() == {"invalid_user_id": 2}


def test_history_turned_off__completeness_is_still_known(make: Make) -> None:
    service = make(history_max_requests=0)
    service.create()
    service.send("alice", "")
    service.send(userIds=5, status=400)
    assert service.left_out() == {"invalid_user_id": 1}
    assert service.reasons() == {"sync_failed": 1}
