"""Keys made by command: what they open, and what is kept of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
import redis
from flask import Flask
from structlog.testing import capture_logs

from app.auth import keyring
from app.auth.keyring import READ, Caller, KeyRing, make_key
from app.services import services
from app.settings import ApiKey, Settings
from app.store import ApiKeys, Store, StoredKey, StoreError, Tuning, connect
from tests.integration.clock import Clock
from tests.integration.conftest import APP, KEY, Run, caller
from tests.integration.killed_process import KilledError, killed_at
from tests.support.polling import wait_until
from tests.support.stores import running_store

COHORT = "/api/v1/integration/amplitude/cohort"
ONE = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


def make(run: Run, *words: str, app_id: str = APP) -> tuple[str, str]:
    """Make a key. Returns it and its id."""
    result = run("keys", "create", "--json", "--app-id", app_id, *words)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    return told["key"], told["id"]


def refresh(app: Flask) -> None:
    """What the background work does every second."""
    services(app).keyring.refresh()


def post(app: Flask, key: str, **headers: str) -> tuple[int, str | None]:
    reply = caller(app, key).post(COHORT, json=ONE, headers=headers)
    return reply.status_code, reply.json.get("reason")


def test_create__prints_the_key_alone_on_standard_output(run: Run) -> None:
    result = run("keys", "create", "--app-id", APP, "--label", "amplitude")
    (key,) = result.stdout.splitlines()
    assert re.fullmatch("cr_[0-9a-f]{64}", key)
    assert key not in result.stderr
    assert re.search(r"\bamplitude-[0-9a-f]{8}\b", result.stderr)


@pytest.mark.parametrize(
    ("scope", "ingest", "read", "admin"),
    [("ingest", 200, 403, 403), ("read", 403, 200, 403), ("admin", 200, 200, 202)],
)
def test_key__of_each_scope__opens_what_it_says(
    app: Flask, run: Run, scope: str, ingest: int, read: int, admin: int
) -> None:
    assert caller(app).post(COHORT, json=ONE).status_code == 200
    key, _ = make(run, "--scope", scope)
    refresh(app)
    http = caller(app, key)
    assert http.post(COHORT, json=ONE).status_code == ingest
    assert http.get("/api/v1/cohorts").status_code == read
    assert http.delete("/api/v1/cohorts/b1").status_code == admin


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("/api/v1/cohorts", "scope read or admin."),
        ("/metrics", "scope read or admin, or METRICS_TOKEN."),
    ],
)
def test_key__without_the_scope__is_told_which_keys_would_do(
    app: Flask, path: str, needed: str
) -> None:
    assert caller(app).get(path).json["detail"] == f"This call needs a key with {needed}"


def test_key__of_one_app__is_no_key_of_another(app: Flask, run: Run) -> None:
    key, _ = make(run, "--expires", "1h", app_id="staging")
    refresh(app)
    assert post(app, key, app_id="staging") == (200, None)
    assert post(app, key, app_id=APP) == (401, "invalid_credentials")
    store: Store = services(app).store
    assert store.lookups.user("staging", "ann").traits
    assert not store.lookups.user(APP, "ann").traits


@pytest.mark.parametrize("form", ["basic", "bearer", "header"])
def test_key__sent_in_each_form__is_taken(app: Flask, run: Run, form: str) -> None:
    key, _ = make(run)
    http = app.test_client()
    if form == "basic":
        reply = http.post(COHORT, json=ONE, auth=(key, ""))
    else:
        headers = {"Authorization": f"Bearer {key}"} if form == "bearer" else {"api_key": key}
        reply = http.post(COHORT, json=ONE, headers=headers)
    assert reply.status_code == 200


def test_store__after_a_key_was_made_and_used__does_not_hold_it(
    app: Flask, run: Run, redis_client: redis.Redis, capfd: pytest.CaptureFixture[str]
) -> None:
    key, _ = make(run)
    assert post(app, key)[0] == 200
    kept = redis_client.hgetall("cohorts:keys")
    assert kept
    assert key not in json.dumps(kept)
    assert not [name for name in redis_client.keys("*") if key in name]
    assert key not in capfd.readouterr().out


def test_expired_key__is_401_and_says_so(app: Flask, run: Run) -> None:
    key, key_id = make(run, "--expires", "1h")
    refresh(app)
    assert post(app, key) == (200, None)
    services(app).store.api_keys.expire(key_id, time.time_ns() // 1_000_000 - 1)
    refresh(app)
    reply = caller(app, key).post(COHORT, json=ONE)
    assert (reply.status_code, reply.json["reason"]) == (401, "expired_key")
    assert "WWW-Authenticate" in reply.headers
    assert key not in reply.text


def test_key_that_expires__while_the_store_is_gone__is_refused_in_time(
    store: Store, app: Flask, run: Run
) -> None:
    key, _ = make(run, "--expires", "1h")
    clock = Clock()
    ring = KeyRing(services(app).settings, store.api_keys, Tuning(now=clock))
    assert ring.find(key)
    clock.forward(3601)
    assert ring.find(key) is None
    assert ring.refusal(key)[0].reason == "expired_key"


@pytest.mark.parametrize("reason", ["expired_key", "revoked_key"])
def test_key_that_has_ended__log_and_history_know_whose_it_was(
    app: Flask, run: Run, capfd: pytest.CaptureFixture[str], reason: str
) -> None:
    key, key_id = make(run)
    store: Store = services(app).store
    if reason == "expired_key":
        store.api_keys.expire(key_id, time.time_ns() // 1_000_000 - 1)
    else:
        run("keys", "revoke", key_id, "--yes")
    refresh(app)
    capfd.readouterr()
    assert post(app, key) == (401, reason)
    (event,) = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (event["app"], event["key"], event["reason"]) == (APP, key_id, reason)
    services(app).sync_recorder.flush()
    (sync,) = store.sync_history.syncs(APP).syncs
    assert (sync.failures, sync.keys) == ({reason: 1}, {key_id: 1})
    assert store.sync_history.unknown_callers() == {}


def test_key__from_the_moment_it_expires__opens_nothing(store: Store) -> None:
    clock = Clock()
    clock.stands_at = 1_900_000_000.0
    key, stored = make_key(APP, READ, expires_ms=1_900_000_001_000)
    store.api_keys.create(stored)
    ring = KeyRing(Settings(), store.api_keys, Tuning(now=clock))
    owner = ring.find(key)
    assert owner is not None
    assert ring.holds(owner)
    clock.forward(1)
    assert ring.find(key) is None
    assert not ring.holds(owner)


def test_revoked_key__is_401_and_says_so_for_good(app: Flask, run: Run) -> None:
    key, key_id = make(run)
    refresh(app)
    assert run("keys", "revoke", key_id, "--yes").exit_code == 0
    refresh(app)
    assert post(app, key) == (401, "revoked_key")
    again = run("keys", "expire", key_id, "never")
    assert again.exit_code == 1
    assert "revoked" in again.stderr


def test_rotation__old_and_new_key__overlap(app: Flask, run: Run) -> None:
    old, old_id = make(run, "--label", "amplitude")
    new, _ = make(run, "--label", "amplitude")
    assert run("keys", "expire", old_id, "7d").exit_code == 0
    refresh(app)
    assert post(app, old) == post(app, new) == (200, None)
    assert run("keys", "revoke", old_id, "--yes").exit_code == 0
    refresh(app)
    assert post(app, old) == (401, "revoked_key")
    assert post(app, new) == (200, None)


def test_list__shows_the_store_s_keys_and_those_of_the_environment(app: Flask, run: Run) -> None:
    _, one = make(run, "--label", "amplitude", "--expires", "2999-01-31")
    _, two = make(run, "--scope", "read", app_id="staging")
    run("keys", "revoke", two, "--yes")
    result = run("keys", "list")
    head, env, first, second = result.stdout.splitlines()
    assert head.split()[:5] == ["ID", "APP", "SCOPE", "FROM", "STATUS"]
    assert env.split()[1:5] == [APP, "ingest", "environment", "active"]
    assert first.split()[:5] == [one, APP, "ingest", "store", "active"]
    assert first.split()[6] == "2999-01-31T00:00:00Z"
    assert second.split()[:5] == [two, "staging", "read", "store", "revoked"]
    assert [key["id"] for key in json.loads(run("keys", "list", "--json").stdout)][1:] == [one, two]
    only = json.loads(run("keys", "list", "--json", "--app-id", APP).stdout)
    assert {key["app_id"] for key in only} == {APP}


def test_list__after_use__tells_when_each_key_was_last_used(app: Flask, run: Run) -> None:
    key, key_id = make(run)
    make(run, "--label", "idle")
    began = time.time_ns() // 1_000_000
    assert post(app, key)[0] == 200
    assert caller(app).post(COHORT, json=ONE).status_code == 200
    ring: KeyRing = services(app).keyring
    ring.write_uses()  # not due
    used = {key["id"]: key["last_used"] for key in json.loads(run("keys", "list", "--json").stdout)}
    assert set(used.values()) == {None}
    ring._uses_written = -keyring.USES_SECONDS
    ring.write_uses()
    used = {key["id"]: key["last_used"] for key in json.loads(run("keys", "list", "--json").stdout)}
    idle = next(name for name in used if name.startswith("idle-"))
    assert used.pop(idle) is None
    assert used.keys() > {key_id}
    assert all(ms >= began for ms in used.values())


def test_uses__of_a_key__are_written_every_30_seconds(store: Store) -> None:
    clock = Clock()
    clock.forward(-3600)
    ring = KeyRing(
        Settings(api_keys=(ApiKey(APP, KEY),)), store.api_keys, Tuning(now=clock, monotonic=clock)
    )
    written = []
    for seconds in (29, 2, 29, 2):
        clock.forward(seconds)
        owner = ring.find(KEY)
        assert owner is not None
        ring.write_uses()
        written.append(store.api_keys.used().get(owner.label))
    assert written[0] is None
    assert written[1] == written[2] < written[3]


def test_session__counts_as_a_use_of_its_key(app: Flask, run: Run) -> None:
    key, key_id = make(run)
    refresh(app)
    ring: KeyRing = services(app).keyring
    owner = ring.find(key)
    assert owner is not None
    ring._uses.clear()
    assert ring.holds(owner)
    assert ring._uses.keys() == {key_id}


def test_create__killed_at_any_command__stores_no_part_of_a_key(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    for command in range(10):
        client = connect(Settings(redis_url=store_url))
        killed_at(client, command)
        key = StoredKey(f"k{command}", "0" * 64, APP, "read", 1, 2**42)
        try:
            Store(client).api_keys.create(key)
        except KilledError:
            assert redis_client.hkeys("cohorts:keys") == []
        else:
            break
    assert store.api_keys.all() == [key]


def test_note_used__an_earlier_time__changes_nothing(store: Store) -> None:
    store.api_keys.note_used({"a": 2000})
    store.api_keys.note_used({"a": 1000, "b": 1})
    assert store.api_keys.used() == {"a": 2000, "b": 1}


def test_note_used__a_time_in_the_future__counts_as_the_present(store: Store) -> None:
    now = time.time_ns() // 1_000_000
    store.api_keys.note_used({"a": now + 86_400_000})
    assert now <= store.api_keys.used()["a"] < now + 60_000


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--app-id", APP, "--scope", "root"),
        ("create", "--app-id", APP, "--label", "a b"),
        ("create", "--app-id", "a/b"),
        ("create", "--app-id", APP, "--expires", "soon"),
        ("create", "--app-id", APP, "--expires", "2001-01-01"),
        ("create", "--app-id", APP, "--expires", "999999999d"),
        ("expire", "x"),
    ],
)
def test_command__wrong_usage__is_2_and_makes_nothing(
    words: tuple[str, ...], run: Run, redis_client: redis.Redis
) -> None:
    assert run("keys", *words).exit_code == 2
    assert not redis_client.exists("cohorts:keys")


def test_revoke__of_what_it_can_not_revoke__says_why(app: Flask, run: Run) -> None:
    unknown = run("keys", "revoke", "nobody", "--yes")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "Unknown key: nobody." in unknown.stderr
    (env,) = json.loads(run("keys", "list", "--json").stdout)
    fixed = run("keys", "revoke", env["id"], "--yes")
    assert fixed.exit_code == 1
    assert "environment" in fixed.stderr


def test_revoke__store_full__works(app: Flask, run: Run, redis_client: redis.Redis) -> None:
    key, key_id = make(run)
    redis_client.config_set("maxmemory", 1)
    try:
        assert run("keys", "revoke", key_id, "--yes").exit_code == 0
    finally:
        redis_client.config_set("maxmemory", 0)
    refresh(app)
    assert post(app, key) == (401, "revoked_key")


def test_revoke__not_confirmed__changes_nothing(app: Flask, run: Run) -> None:
    key, key_id = make(run)
    assert run("keys", "revoke", key_id, input="n\n").exit_code == 1
    refresh(app)
    assert post(app, key)[0] == 200


class TestStoreGone:
    """What is left of keys while the store can't be had."""

    def test_known_key__stays_known(
        self, app: Flask, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, _ = make(run)
        refresh(app)
        ring: KeyRing = services(app).keyring
        unreachable(ring, monkeypatch)
        ring.refresh()
        ring.write_uses()
        assert ring.find(key)
        assert ring.find("unknown") is None

    def test_unknown_key__before_any_was_read__is_503_and_not_401(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(redis_url="redis://127.0.0.1:1", api_keys=(ApiKey(APP, KEY),))
        assert post(app, "cr_perhaps-good") == (503, "store_unreachable")

    def test_uses__not_written__are_written_later(
        self, app: Flask, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring: KeyRing = services(app).keyring
        assert ring.find(KEY)
        with monkeypatch.context() as context:
            unreachable(ring, context)
            ring._uses_written = -keyring.USES_SECONDS
            ring.write_uses()
        ring._uses_written = -keyring.USES_SECONDS
        ring.write_uses()
        assert len(store.api_keys.used()) == 1

    def test_key_of_the_environment__stays_valid_for_sessions(self) -> None:
        settings = Settings(redis_url="redis://127.0.0.1:1", api_keys=(ApiKey(APP, KEY),))
        with connect(settings) as client:
            ring = KeyRing(settings, Store(client).api_keys, Tuning())
            owner = ring.find(KEY)
            assert owner is not None
            assert ring.holds(owner)
            with pytest.raises(StoreError):
                ring.holds(Caller(APP, READ, "another"))

    def test_refresh__that_fails__warns_once_in_each_outage(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring: KeyRing = services(app).keyring
        for _ in range(2):
            with monkeypatch.context() as context, capture_logs() as logs:
                unreachable(ring, context)
                ring.refresh()
                (event,) = logs
                ring.refresh()
                assert logs == [event]
            assert (event["event"], event["reason"]) == (
                "cannot read keys from the store",
                "store_unreachable",
            )
            ring.refresh()


def unreachable(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ring's own connection lead nowhere."""
    nobody = redis.Redis.from_url("redis://127.0.0.1:1", retry=None)
    monkeypatch.setattr(ring._stored, "_client", nobody)


def test_requests__many_with_a_stored_key__ask_the_store_for_keys_once(
    app: Flask, run: Run, redis_client: redis.Redis
) -> None:
    key, _ = make(run)
    refresh(app)
    before = calls(redis_client)
    for _ in range(20):
        assert post(app, key)[0] == 200
    assert calls(redis_client) == before


def calls(redis_client: redis.Redis) -> int:
    """How often all fields of a hash were read."""
    return redis_client.info("commandstats").get("cmdstat_hgetall", {}).get("calls", 0)


def test_create__long_after_another_has_ended__forgets_that_one(
    app: Flask, run: Run, store: Store, redis_client: redis.Redis
) -> None:
    _, ended = make(run)
    _, recent = make(run)
    store.api_keys.expire(ended, time.time_ns() // 1_000_000 - 91 * 24 * 3600 * 1000)
    store.api_keys.expire(recent, time.time_ns() // 1_000_000 - 1)
    _, new = make(run)
    assert {key.id for key in store.api_keys.all()} == {recent, new}
    assert not [name for name in redis_client.hkeys("cohorts:keys") if ended in name]


def test_first_expiry__of_keys_in_use__is_told_to_prometheus(app: Flask, run: Run) -> None:
    ring: KeyRing = services(app).keyring
    used, _ = make(run, "--expires", "2d")
    make(run, "--expires", "1d")
    refresh(app)
    assert ring.first_expiry() is None
    assert post(app, used)[0] == 200
    expiry = ring.first_expiry()
    assert expiry == pytest.approx(time.time() + 2 * 24 * 3600, abs=60)


def test_first_expiry__is_the_earliest_of_the_valid_keys_used_within_a_day(store: Store) -> None:
    clock = Clock()
    now = int(clock())
    keys = {}
    for label, days in (("later", 9), ("first", 5), ("revoked", 4), ("unused", 3), ("endless", 0)):
        expires_ms = (now + days * 86_400) * 1000 if days else None
        keys[label], stored = make_key(APP, READ, label, expires_ms)
        store.api_keys.create(stored)
    rings = [
        KeyRing(Settings(), store.api_keys, Tuning(now=clock, monotonic=clock)) for _ in range(2)
    ]
    for label in ("later", "first", "revoked", "endless"):
        owner = rings[0].find(keys[label])
        assert owner is not None
        if label == "revoked":
            store.api_keys.revoke(owner.label)
    for ring in rings:  # the other process reads it from the store
        clock.forward(31)
        ring.refresh()
        ring.write_uses()
        assert ring.first_expiry() == now + 5 * 86_400
    clock.forward(86_400 - 62 - 15)
    assert rings[0].first_expiry() is not None
    clock.forward(16)
    assert rings[0].first_expiry() is None


def test_keys__with_another_prefix__are_apart(make_app: Callable[..., Flask]) -> None:
    app = make_app(key_prefix="other")
    runner = app.test_cli_runner()
    result = runner.invoke(args=["keys", "create", "--app-id", APP])
    assert result.exit_code == 0
    stored: ApiKeys = services(app).store.api_keys
    assert len(stored.all()) == 1
    assert len(services(make_app()).store.api_keys.all()) == 0


def test_keys__beside_records_that_can_not_be_read__are_taken(
    app: Flask, run: Run, redis_client: redis.Redis
) -> None:
    key, key_id = make(run)
    record = json.loads(redis_client.hget("cohorts:keys", key_id))
    redis_client.hset("cohorts:keys", key_id, json.dumps({**record, "of a later version": 1}))
    for name, value in (
        ("no-json", "{"),
        ("no-object", "1"),
        ("no-digest", json.dumps({**record, "digest": "xyz"})),
        ("no-app", json.dumps({"digest": record["digest"]})),
    ):
        redis_client.hset("cohorts:keys", name, value)
    refresh(app)
    assert post(app, key) == (200, None)
    assert [k["id"] for k in json.loads(run("keys", "list", "--json").stdout)][1:] == [key_id]


def test_key__that_could_not_be_read_again_for_long__is_503_and_not_accepted(
    make_app: Callable[..., Flask],
) -> None:
    """Revocations may have been missed; the key may also still be valid."""
    with running_store() as url:
        app = make_app(tuning=Tuning(last_read_trusted_seconds=0.2), redis_url=url)
        key, stored = make_key("shop", READ)
        services(app).store.api_keys.create(stored)
        services(app).keyring.refresh()
        assert services(app).keyring.find(key) is not None
    services(app).keyring.refresh()
    wait_until(lambda: _is_unavailable(services(app).keyring, key))
    # Keys of the environment don't depend on the store.
    assert services(app).keyring.find(KEY) is not None


def _is_unavailable(ring: KeyRing, key: str) -> bool:
    try:
        assert ring.find(key) is not None
    except StoreError as error:
        return error.reason == "store_unreachable"
    return False
