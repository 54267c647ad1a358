"""A call whose caller has given up is not carried out when it arrives late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask

from app.cohorts import Cohort, MembershipChange
from app.settings import ApiKey, Settings
from app.store import Store, StoredKey, StoreError, connect
from app.store.connection.scripts import load_script
from app.store.errors import StoreTimeout
from simulator import payloads
from tests.integration.conftest import APP, KEY, caller
from tests.integration.store.test_hold import SCRIPTS
from tests.integration.store_contents import members, traits
from tests.support.late_proxy import LateProxy, late_proxy
from tests.support.stores import store_folder

TIMEOUT = 0.5
TRAIT, COHORT = "[Amplitude] n: 1", "1"
ADMIN = "the-admin-key"


@pytest.fixture
def late(store_url: str) -> Iterator[tuple[LateProxy, str]]:
    with store_folder() as folder, late_proxy(store_url, folder) as late:
        yield late


@pytest.fixture
def app(late: tuple[LateProxy, str], make_app: Callable[..., Flask]) -> Flask:
    """A service whose connections go through the proxy."""
    return make_app(
        redis_url=late[1],
        store_timeout_seconds=TIMEOUT,
        store_connections=1,
        admin_api_keys=(ApiKey(APP, ADMIN),),
    )


@pytest.fixture
def store(late: tuple[LateProxy, str], redis_client: redis.Redis) -> Iterator[Store]:
    settings = Settings(redis_url=late[1], store_timeout_seconds=TIMEOUT, store_connections=1)
    with connect(settings) as client:
        store = Store(client)
        store.layout.check_writable(APP)
        yield store


def say(store: Store, member: bool, *users: str) -> int:
    change = MembershipChange(Cohort.from_trait(TRAIT), member, list(users))
    return store.memberships.apply(APP, [change], source="test").changed


def given_up(proxy: LateProxy, call: Callable[[], Any]) -> None:
    """Make a call that does not get through in time."""
    proxy.hold_back()
    with pytest.raises((StoreError, redis.TimeoutError)):
        call()


def test_enter__that_arrives_after_the_user_left_again__is_refused(
    app: Flask, late: tuple[LateProxy, str], redis_client: redis.Redis
) -> None:
    http, path = caller(app, KEY), payloads.COHORT_PATH
    entering, leaving = (payloads.batch(["u"], TRAIT, member) for member in (True, False))
    assert http.post(path, json=payloads.batch(["other"], TRAIT, True)).status_code == 200
    late[0].hold_back()
    assert http.post(path, json=entering).status_code == 503
    assert http.post(path, json=entering).status_code == 200
    assert http.post(path, json=leaving).status_code == 200
    late[0].deliver()
    assert members(redis_client, APP) == {COHORT: {"other"}}
    assert traits(redis_client, APP)["u"] == {TRAIT: "false"}


def test_deletion_step__that_arrives_late__does_not_empty_a_new_cohort(
    store: Store, late: tuple[LateProxy, str], redis_client: redis.Redis
) -> None:
    say(store, True, "u")
    store.jobs.begin_deletion(APP, COHORT)
    (job,) = store.jobs.pending()
    stream = store.keys.changes(APP, job.partition)
    step = store.jobs._deletions._script
    given_up(late[0], lambda: step(keys=[stream], args=["step", COHORT, 500, 1000]))
    for _ in store.jobs.delete_cohort(APP, COHORT):
        pass
    say(store, True, "u")
    store.jobs.begin_deletion(APP, COHORT)  # so that a step finds the mark
    late[0].deliver()
    assert members(redis_client, APP) == {COHORT: {"u"}}


def test_erasure__that_arrives_late__does_not_erase_a_user_registered_since(
    store: Store, late: tuple[LateProxy, str], redis_client: redis.Redis
) -> None:
    store.registered_users.add(APP, ["u"])
    stream = store.keys.changes(APP, 0)
    store.erasure.erase(APP, "another")  # so that the server knows the script
    given_up(late[0], lambda: store.erasure._erase(keys=[stream], args=["u", "suppress", 250]))
    store.registered_users.add(APP, ["u"])
    late[0].deliver()
    assert redis_client.smembers("cohorts:{shop}:registered") == {"u"}
    assert not redis_client.exists("cohorts:{shop}:suppressed")


WRITES: dict[str, tuple[Callable[[Store], Any], Callable[[Store], Any]]] = {
    "remove users": (
        lambda store: store.registered_users.remove(APP, ["u"]),
        lambda store: store.registered_users.add(APP, ["u"]),
    ),
    "add users": (
        lambda store: store.registered_users.add(APP, ["u"]),
        lambda store: store.registered_users.remove(APP, ["u"]),
    ),
    "set a cadence": (
        lambda store: store.freshness.set_cadence(APP, COHORT, 1000),
        lambda store: store.freshness.set_cadence(APP, COHORT, 2000),
    ),
    "extend a key": (
        lambda store: store.api_keys.expire("k", None),
        lambda store: store.api_keys.expire("k", 1),
    ),
    "end a hold": (
        lambda store: store.hold._unset_flag(keys=[store.keys.hold()]),
        lambda store: store.hold.begin(),
    ),
    "hold": (lambda store: store.hold.begin(), lambda store: store.hold.release()),
    "keep a report": (
        lambda store: store.upstream.save_report(APP, COHORT, {"state": "running"}),
        lambda store: store.upstream.save_report(APP, COHORT, {"state": "done"}),
    ),
}


@pytest.mark.parametrize(("write", "other"), WRITES.values(), ids=WRITES)
def test_write__that_arrives_after_its_opposite__changes_nothing(
    write: Callable[[Store], Any],
    other: Callable[[Store], Any],
    store: Store,
    late: tuple[LateProxy, str],
    redis_client: redis.Redis,
) -> None:
    store.api_keys.create(StoredKey("k", "0" * 64, APP, "read", 1))
    write(store)
    other(store)
    first = content(redis_client)
    given_up(late[0], lambda: write(store))
    other(store)
    late[0].deliver()
    assert content(redis_client) == first


def test_renewal_of_a_copys_hold__that_arrives_late__does_not_end_that_of_an_operator(
    store: Store, late: tuple[LateProxy, str], redis_client: redis.Redis
) -> None:
    apps = store.hold.begin(b"a copy", 60_000)
    store.hold.renew(apps, b"a copy", 60_000)
    given_up(late[0], lambda: store.hold.renew(apps, b"a copy", 60_000))
    store.hold.begin()
    late[0].deliver()
    assert redis_client.pttl(store.keys.hold()) == -1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script__that_writes__refuses_after_its_deadline(store: Store, script: Path) -> None:
    loaded = load_script(store._client, script.name, script.parent.name)
    sha = store._client.script_load(loaded.script)
    deadline = f"{time.time_ns() // 1_000_000 - 1} 5000"
    with pytest.raises(redis.ResponseError, match="LATE "):
        store._client.execute_command("EVALSHA", sha, 1, store.keys.changes(APP, 0), deadline)


@pytest.mark.parametrize("hours", [-48, -0.01, 0.01, 48])
def test_call__after_the_servers_clock_was_set__is_carried_out(store: Store, hours: float) -> None:
    say(store, True, "u")
    pool = store._client.connection_pool
    connection = pool.get_connection()
    connection.server_clock._ahead_ms -= int(hours * 3_600_000)
    pool.release(connection)
    assert say(store, False, "u") == 1


def test_call__sent_before_the_servers_clock_was_set_back__is_refused(store: Store) -> None:
    stream, script = store.keys.changes(APP, 0), store.registered_users._add
    send = store._client.execute_command
    send("SCRIPT", "LOAD", script.script)
    now_ms = time.time_ns() // 1_000_000
    assert send("EVALSHA", script.sha, 1, stream, "u", f"{now_ms + 100} 5000") == 1
    for deadline in (f"{now_ms + 3_600_000} 5000", f"{now_ms - 1} 5000"):
        with pytest.raises(redis.ResponseError, match="LATE "):
            send("EVALSHA", script.sha, 1, stream, "v", deadline)


def test_call__of_a_process_that_was_stopped_before_it_sent__is_not_repeated(store: Store) -> None:
    """Its caller may have given up: another attempt would be late too."""
    say(store, True, "u")
    pool = store._client.connection_pool
    connection = pool.get_connection()
    send = connection.send_packed_command

    def send_late(*args: Any, **options: Any) -> None:
        time.sleep(TIMEOUT * 1.1)
        send(*args, **options)

    connection.send_packed_command = send_late
    pool.release(connection)
    with pytest.raises(StoreTimeout):
        say(store, False, "u")


def content(client: redis.Redis) -> dict[str, Any]:
    return {key: client.dump(key) for key in client.scan_iter() if not key.endswith(":changes")}
