"""A store on hold: everything that writes is refused, whatever it knew before; reading goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask

import app as package
from app.cohorts import Cohort
from app.server.background import Background
from app.services import services
from app.settings import ApiKey, Settings
from app.store import Job, Store, StoreError, connect
from app.store.connection.scripts import load_script
from app.store.errors import StoreHeld
from app.store.hold import HoldLost
from app.store.maintenance.copy import HOLD_MS
from simulator import payloads
from tests.integration.conftest import APP, Run, caller
from tests.integration.web.api.read_api import say
from tests.support.effort import PARTITIONS

TRAIT, COHORT, USER = "[Amplitude] Power users: abc123", "abc123", "alice"
ADMIN = "the-admin-key"
SCRIPTS = [
    script
    for script in (Path(package.__file__).parent / "store").rglob("*.lua")
    if "no-writes" not in script.read_text().partition("\n")[0]
]


def content(store_url: str) -> dict[bytes, Any]:
    """All that is stored but the list of apps: a new app registers before it is refused."""
    with redis.Redis.from_url(store_url) as client:
        return {key: client.dump(key) for key in client.scan_iter() if key != b"cohorts:apps"}


@pytest.fixture(params=PARTITIONS)
def app(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    return make_app(store_partitions=request.param, admin_api_keys=(ApiKey(APP, ADMIN),))


@pytest.fixture
def store(app: Flask) -> Store:
    """A store in use, so that whatever is checked once in a while has been checked just now."""
    store = services(app).store
    say(store, TRAIT, True, [USER, "bob"])
    store.registered_users.add(APP, [USER])
    store.erasure.erase(APP, "carol", suppress=True)
    return store


WRITES: dict[str, Callable[[Store], Any]] = {
    "enter": lambda store: say(store, TRAIT, True, ["new"]),
    "leave": lambda store: say(store, TRAIT, False, [USER]),
    "new cohort": lambda store: say(store, "Another: def456", True, [USER]),
    "new app": lambda store: store.memberships.register_cohort(
        "new", Cohort("x", "X: x"), source="list"
    ),
    "register a cohort": lambda store: store.memberships.register_cohort(
        APP, Cohort("x", "X: x"), source="list"
    ),
    "rename": lambda store: store.memberships.register_cohort(
        APP, Cohort(COHORT, "New: abc123"), source="list"
    ),
    "delete": lambda store: store.jobs.begin_deletion(APP, COHORT),
    "background step": lambda store: store.jobs.lease(Job(APP, 0, COHORT)),
    "erase": lambda store: store.erasure.erase(APP, USER),
    "unsuppress": lambda store: store.erasure.unsuppress(APP, "carol"),
    "register": lambda store: store.registered_users.add(APP, ["new"]),
    "unregister": lambda store: store.registered_users.remove(APP, [USER]),
    "cadence": lambda store: store.freshness.set_cadence(APP, COHORT, 3_600_000),
    "size": lambda store: store.size_history.record(APP, [COHORT]),
    "history": lambda store: store.sync_history.trim(APP),
    "erase from history": lambda store: store.sync_history.erase(APP, USER),
    "audit": lambda store: store.audit_trail.add({"action": "erase_user"}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write__during_a_hold__is_refused_and_changes_nothing(
    store: Store, store_url: str, write: Callable[[Store], Any]
) -> None:
    store.hold.begin()
    before = content(store_url)
    with pytest.raises(StoreHeld):
        write(store)
    assert content(store_url) == before
    store.hold.release()
    write(store)


def test_write__of_an_app_that_has_only_registered__is_refused(store: Store) -> None:
    store.layout.check_writable("new")  # its last look at the global flag, for a second
    store.hold.begin()
    with pytest.raises(StoreHeld):
        store.memberships.register_cohort("new", Cohort("x", "X: x"), source="list")


def test_hold_of_a_copy__killed_while_the_stores_clock_was_ahead__is_over(
    store: Store, redis_client: redis.Redis
) -> None:
    apps = store.hold.begin(b"a copy", HOLD_MS)
    for flag in redis_client.scan_iter(match="*hold"):
        redis_client.pexpire(flag, 2 * 24 * 3600 * 1000)
    say(store, TRAIT, True, ["new"])
    store.hold.check()
    # A copy that still runs must not go on: something may have been written.
    with pytest.raises(HoldLost):
        store.hold.renew(apps, b"a copy", HOLD_MS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script__that_writes__refuses_during_a_hold(
    store_url: str, store: Store, script: Path
) -> None:
    store.hold.begin()
    with connect(Settings(redis_url=store_url)) as client:
        loaded = load_script(client, script.name, script.parent.name)
        with pytest.raises(redis.ResponseError, match="HELD "):
            loaded(keys=[store.keys.changes(APP, 0)])


def test_service__during_a_hold__refuses_writes_and_goes_on_reading(
    app: Flask, store: Store, store_url: str
) -> None:
    http = caller(app, ADMIN)
    store.hold.begin()
    before = content(store_url)
    for reply in (
        http.post(payloads.COHORT_PATH, json=payloads.batch(["new"], TRAIT, True)),
        http.post(f"/lists/{COHORT}/add", json={"userIds": ["new"]}),
        http.post("/lists", json={"name": "Another: def456"}),
        http.post("/api/v1/users", json={"userIds": ["new"]}),
        http.delete(f"/api/v1/users/{USER}"),
        http.delete(f"/api/v1/cohorts/{COHORT}"),
    ):
        assert (reply.status_code, reply.json["reason"]) == (503, "store_held"), reply.text
        assert int(reply.headers["Retry-After"]) > 0
    assert http.get(f"/api/v1/users/{USER}").json["traits"] == {TRAIT: True}
    assert http.get("/readyz").status_code == 200
    with pytest.raises(StoreError):
        services(app).sync_recorder.flush()
    assert content(store_url) == before
    store.hold.release()
    services(app).sync_recorder.flush()  # what was refused is in the history
    assert {s["failed"] for s in http.get("/api/v1/syncs").json["syncs"]} >= {1}


def test_background_work__during_a_hold__waits(store: Store) -> None:
    store.jobs.begin_deletion(APP, COHORT)
    store.hold.begin()
    Background(store).work()
    assert store.lookups.user(APP, "bob").traits == {TRAIT: True}
    store.hold.release()
    Background(store).work()
    assert store.lookups.user(APP, "bob").traits == {}


def test_commands__hold_and_release(store: Store, run: Run) -> None:
    assert run("store", "hold").exit_code == 0
    held = run("keys", "create", "--label", "late")
    assert (held.exit_code, "(store_held)" in held.output) == (1, True)
    assert store.api_keys.all() == []
    assert run("store", "release").exit_code == 0
    assert run("keys", "create", "--label", "late").exit_code == 0
    actions = [entry["action"] for entry in store.audit_trail.all()]
    assert actions == ["hold_store", "release_store", "create_key"]


def test_command__hold_after_an_interrupted_one__completes_it(store: Store, run: Run) -> None:
    say(store, TRAIT, True, [USER])
    store.hold._set([store.keys.hold()], b"begun", None)  # as far as it came
    assert run("store", "hold").exit_code == 0
    with pytest.raises(StoreHeld):
        say(store, TRAIT, False, [USER])
    assert run("store", "hold").exit_code == 0


def test_command__hold_during_a_copy__is_refused(store: Store, run: Run) -> None:
    store.hold.begin(b"of a copy", 60_000)
    result = run("store", "hold")
    assert (result.exit_code, "A copy holds the store." in result.output) == (1, True)
    assert store.hold.value() == b"of a copy"


def test_hold__of_a_full_store__is_possible(store: Store, redis_client: redis.Redis) -> None:
    redis_client.config_set("maxmemory", 1)
    try:
        store.hold.begin()
        with pytest.raises(StoreHeld):
            store.erasure.erase(APP, USER)
    finally:
        redis_client.config_set("maxmemory", 0)
