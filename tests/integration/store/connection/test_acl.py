"""The store's users of docs/acl: what the service and its readers may do, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis
from flask import Flask
from limits import parse
from redis.exceptions import NoPermissionError
from urllib3 import Retry

from app import create_app
from app.cohorts import IncompleteReason
from app.server.background import Background
from app.server.resync_worker import ResyncWorker
from app.services import services
from app.settings import AmplitudeKeys, ApiKey, Settings
from app.telemetry.notifications import Notifier, Sender
from simulator import payloads
from simulator.upstream import ServedCohort, Upstream
from tests.integration.conftest import caller
from tests.integration.store.maintenance.test_copy import rights
from tests.integration.web.dashboard.test_views import Browser
from tests.integration.web.test_apps import COHORT, PARTS, USER, path, rules
from tests.support.clusters import Cluster, running_cluster
from tests.support.effort import thorough
from tests.support.stores import socket_url, start_store, store_folder

ACL = Path(__file__).resolve().parents[4] / "docs" / "acl"
SERVICE, READER = "cohort-receiver", "cohort-reader"
PASSWORD = "a-password-of-the-store"
# Has what every call requires.
BODY: dict[str, Any] = {
    "type": "identify",
    "userId": USER,
    "userIds": [USER],
    "traits": {f"n: {COHORT}": True},
    "name": f"n: {COHORT}",
    "cohort_name": "n",
    "cohort_id": COHORT,
    "in_cohort": True,
    "users": [{"user_id": USER}],
    "seconds": 3600,
}
KEY = "an-admin-key"


@pytest.fixture(scope="module")
def store_socket() -> Iterator[Path]:
    """The socket of a store with these users; its default user may do everything."""
    with store_folder() as folder:
        users = "".join((ACL / f"{name}.acl").read_text() for name in ("service", "reader"))
        (folder / "users.acl").write_text(users.replace("PASSWORD", PASSWORD))
        server = start_store(folder, "--aclfile", "users.acl")
        try:
            yield folder / "socket"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def everything(store_socket: Path) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(socket_url(store_socket.parent), decode_responses=True) as client:
        client.flushall()
        client.script_flush()
        client.acl_log_reset()
        client.config_resetstat()
        yield client


def address(socket: Path, user: str) -> str:
    return f"unix://{user}:{PASSWORD}@{socket}"


@pytest.fixture(scope="module")
def amplitude() -> Iterator[Upstream]:
    served = [ServedCohort("c3", "n", ["erin", "frank"]), ServedCohort("c2", "n")]
    with Upstream(served, job_seconds=0) as upstream:
        yield upstream


@pytest.fixture
def service(store_socket: Path, everything: redis.Redis, amplitude: Upstream) -> Flask:
    return make_service(amplitude, redis_url=address(store_socket, SERVICE))


def make_service(amplitude: Upstream, **settings: Any) -> Flask:
    return create_app(
        Settings(
            amplitude_keys=(AmplitudeKeys("shop", amplitude.api_key, amplitude.secret_key),),
            amplitude_url=amplitude.url,
            admin_api_keys=(ApiKey("shop", KEY),),
            stream_heartbeat_seconds=0.1,
            user_policy="known",
            auth_failure_rate_limit=parse("1/hour"),
            **settings,
        )
    )


def use(app: Flask) -> None:
    """Everything that the service does: each call, each command, all work beside them."""
    http = caller(app, KEY)
    assert [caller(app, "bad").get("/api/v1/syncs").status_code for _ in range(2)] == [401, 429]
    http.post("/api/v1/users", json={"userIds": [USER, "bob"]})
    for _ in range(2):
        http.post(payloads.COHORT_PATH, json=payloads.batch([USER, "bob"], f"n: {COHORT}", True))
    http.post(payloads.COHORT_PATH, json=payloads.batch([USER], f"renamed: {COHORT}", True))
    very_many = {f"{n}: {n}": True for n in range(1100)}
    http.post(payloads.COHORT_PATH, json={**BODY, "userId": "bob", "traits": very_many})
    assert len(http.get("/api/v1/users/bob").json["traits"]) > 1000
    webhook = {**BODY, "computed_time": 1, "message_id": "m"}
    for _ in range(2):
        http.post(payloads.WEBHOOK_PATH, json=webhook)
    http.post(payloads.COHORT_PATH, json=payloads.batch([USER], f"n: {COHORT}", False))
    services(app).sync_recorder.finish()
    services(app).sync_problems.work()
    services(app).store_watch.work()
    syncs = http.get("/api/v1/syncs").json["syncs"]
    rules = sorted(app.url_map.iter_rules(), key=lambda rule: "DELETE" in rule.methods)
    for rule in rules:
        if getattr(app.view_functions[rule.endpoint], "by_session", False):
            continue
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"}):
            url = path(rule).replace(PARTS["sync_id"], syncs[0]["id"])
            body = BODY if method in ("POST", "PUT") else None
            reply = http.open(
                url, method=method, json=body, query_string={"cursor": "earliest"}, buffered=False
            )
            for _, _piece in zip(range(3), reply.response, strict=False):
                pass
            reply.close()
            assert reply.status_code < 500, (url, reply.get_data())
    gevent.wait(timeout=30)  # what calls have begun
    use_pages(app)
    gevent.wait(timeout=30)
    http.post("/api/v1/users", json={"userIds": ["erin"]})
    http.post(payloads.COHORT_PATH, json=payloads.batch(["erin"], "n: c3", True))
    members = {"data": "user_id\nerin\n", "content_type": "text/csv"}
    assert http.put("/api/v1/cohorts/c3/members", **members).status_code == 200
    services(app).poller.work()
    reconciled = app.test_cli_runner().invoke(args=["cohorts", "reconcile", "c3", "--apply"])
    assert reconciled.exit_code == 0, reconciled.output
    http.post("/api/v1/cohorts/c3/resync")
    store = services(app).store
    sender = Sender("http://127.0.0.1:1", None, Retry(0))
    for _ in range(2):
        Background(store).work()
        ResyncWorker(store).work()
        Notifier(store, sender, None).work()
    services(app).sync_recorder.finish()
    services(app).sync_problems.work()
    services(app).store_watch.work()
    run = app.test_cli_runner().invoke
    for command in (
        "cohorts list",
        f"cohorts show {COHORT}",
        f"users show {USER}",
        "users register carol",
        "users unregister carol",
        "keys create --app shop --scope read --name k",
        "keys list",
        "store check",
        "store check --repair",
    ):
        done = run(args=command.split())
        assert "store_misconfigured" not in done.output, (command, done.output)
        assert "rights" not in done.output, (command, done.output)
        assert done.exit_code in (0, 1, 2), (command, done.output)


def use_pages(app: Flask) -> None:
    """Every page of the dashboard, and every form."""
    caller(app, KEY).post(payloads.COHORT_PATH, json=payloads.batch(["bob"], "n: c2", True))
    for reason in IncompleteReason:
        services(app).store.completeness.raise_reason("shop", "c2", reason)
    services(app).sync_recorder.finish()
    services(app).sync_problems.work()
    services(app).store_watch.work()
    sync_id = caller(app, KEY).get("/api/v1/syncs").json["syncs"][0]["id"]
    browser = Browser(app).log_in(KEY)
    fields = {"token": browser.token(), "suppress": "on", "id": "bob", "confirm": "bob"}
    others = {
        "/cohort": {"id": "c2"},
        "/cohort/members.csv": {"id": "c2"},
        "/cohort/delete": {"id": "c2", "confirm": "n"},
        "/cohort/reconcile": {"id": "c2"},
        "/sync": {"id": sync_id},
        "/sync/left-out.csv": {"id": sync_id},
    }
    # Logging out comes last.
    for method, url in sorted(rules(pages=True), key=lambda rule: (rule[0], rule[1] == "/logout")):
        row = {**fields, **others.get(url, {})}
        sent: dict[str, Any] = {"data" if method == "POST" else "query_string": row}
        reply = browser._http.open(url, method=method, **sent)
        assert reply.status_code < 500, (url, reply.text)


def test_service__as_its_own_user__is_refused_nothing(
    service: Flask, everything: redis.Redis
) -> None:
    use(service)
    refused = [(entry["reason"], entry["object"]) for entry in everything.acl_log()]
    assert refused == []
    assert everything.exists("cohorts:{shop}:changes")


def test_service__as_its_own_user__has_few_rights_that_it_does_not_use(
    service: Flask, everything: redis.Redis
) -> None:
    use(service)
    used = {
        name.removeprefix("cmdstat_")
        for name, stat in everything.info("commandstats").items()
        if stat["calls"]
    }
    granted = set(re.findall(r" \+(\S+)", (ACL / "service.acl").read_text()))
    assert granted - used <= RARELY_USED, granted - used - RARELY_USED


# Needed, but not in an ordinary run: repairs, the end of long jobs, records that are a day old, and
# what a server is asked when it has lost its scripts.
RARELY_USED = {"type", "rename", "pttl", "lrange", "ltrim", "script|exists", "script|load"}


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "CONFIG GET *",
        "CONFIG SET dir /tmp",
        "ACL LIST",
        "MODULE LIST",
        "SHUTDOWN",
        "SAVE",
        "REPLICAOF 127.0.0.1 1",
        "MIGRATE 127.0.0.1 1 k 0 1",
        "FUNCTION LIST",
        "SCRIPT FLUSH",
        "MONITOR",
        "CLIENT KILL 127.0.0.1:1",
        "PUBLISH c m",
        "GET elsewhere",
        "SET elsewhere 1",
    ],
)
@pytest.mark.parametrize("user", [SERVICE, READER])
def test_user__of_service_or_reader__may_not(store_socket: Path, user: str, command: str) -> None:
    client = redis.Redis.from_url(address(store_socket, user))
    with client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


def test_reader__reads_the_contract(
    service: Flask, everything: redis.Redis, store_socket: Path
) -> None:
    http = caller(service, KEY)
    http.post("/api/v1/users", json={"userIds": [USER]})
    http.post(payloads.COHORT_PATH, json=payloads.batch([USER], f"n: {COHORT}", True))
    base = "cohorts:{shop}:"
    with redis.Redis.from_url(address(store_socket, READER), decode_responses=True) as reader:
        assert reader.hgetall(f"{base}user:{USER}") == {f"n: {COHORT}": "true"}
        assert reader.zscore(f"{base}cohort:{COHORT}:members", USER)
        assert reader.hgetall(f"{base}cohort:{COHORT}:freshness")
        assert len(reader.xrange(f"{base}changes")) == 1


@pytest.mark.parametrize(
    "command",
    [
        "HSET cohorts:{shop}:user:ann n true",
        "HDEL cohorts:{shop}:user:ann n",
        "DEL cohorts:{shop}:user:ann",
        "ZADD cohorts:{shop}:cohort:c1:members 1 ann",
        "XADD cohorts:{shop}:changes * a b",
        "XTRIM cohorts:{shop}:changes MAXLEN 0",
        "HGETALL cohorts:{shop}:cohort:c1:state",
        "ZRANGE cohorts:{shop}:cohort:c1:left 0 -1",
        "GET cohorts:session-secret",
        "SMEMBERS cohorts:{shop}:suppressed",
        "SMEMBERS cohorts:apps",
        "HGETALL cohorts:keys",
        "EVAL return 0",
        "SCAN 0",
    ],
)
def test_reader__writes_nothing_and_reads_nothing_private(store_socket: Path, command: str) -> None:
    reader = redis.Redis.from_url(address(store_socket, READER))
    with reader, pytest.raises(NoPermissionError):
        reader.execute_command(*command.split())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with these users, and the rights that its page gives them besides."""
    with running_cluster(3, 0) as cluster:
        for node in cluster.nodes:
            for name, first in (("service", "+cluster|slots"), ("reader", "+readonly")):
                _, user, *own = (
                    (ACL / f"{name}.acl").read_text().replace("PASSWORD", PASSWORD).split()
                )
                own += rights("scaling.md", first)
                node.client.execute_command("ACL", "SETUSER", user, *own)
        yield cluster


@pytest.fixture
def cluster_service(cluster: Cluster, amplitude: Upstream) -> Flask:
    for node in cluster.nodes:
        node.client.flushall()
        node.client.acl_log_reset()
    url = cluster.url.replace("//", f"//{SERVICE}:{PASSWORD}@")
    return make_service(amplitude, redis_url=url, store_cluster=True, store_partitions=6)


@thorough
def test_service__as_its_own_user_on_a_cluster__is_refused_nothing(
    cluster: Cluster, cluster_service: Flask
) -> None:
    use(cluster_service)
    refused = [entry for node in cluster.nodes for entry in node.client.acl_log()]
    assert refused == []


def test_reader__on_a_cluster__reads_the_contract_and_nothing_else(
    cluster: Cluster, cluster_service: Flask
) -> None:
    http = caller(cluster_service, KEY)
    users = [USER, "bob", "carol", "dave"]
    http.post("/api/v1/users", json={"userIds": users})
    http.post(payloads.COHORT_PATH, json=payloads.batch(users, f"n: {COHORT}", True))
    keys = services(cluster_service).store.keys
    url = cluster.url.replace("//", f"//{READER}:{PASSWORD}@")
    with redis.RedisCluster.from_url(url, decode_responses=True) as reader:
        for user in users:
            partition = keys.partition(user)
            assert reader.hgetall(keys.user("shop", user)) == {f"n: {COHORT}": "true"}
            assert reader.zscore(keys.cohort("shop", partition, COHORT, "members"), user)
            assert reader.xrange(keys.changes("shop", partition))
            for refused in (
                lambda user=user: reader.hset(keys.user("shop", user), "n", "true"),
                lambda user=user: reader.delete(keys.user("shop", user)),
                lambda p=partition: reader.hgetall(keys.cohort("shop", p, COHORT, "state")),
                lambda p=partition: reader.smembers(keys.suppressed("shop", p)),
            ):
                with pytest.raises(NoPermissionError):
                    refused()
