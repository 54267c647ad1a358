"""The service on a cluster: three masters, each with a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from flask import Flask
from limits import parse

from app.auth.keyring import make_key
from app.cohorts import Cohort, CompletenessState, MembershipChange, ResyncKind
from app.services import services
from app.settings import Settings
from app.store import FileCounts, ResyncPlace, Store, StoreError, connect, wait_for
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members, traits, transitions
from tests.integration.web.api.read_api import ADMIN_KEY, KEYS, Reader
from tests.integration.web.ingest import test_contract, test_segment, test_webhook
from tests.support.clusters import CALM, Cluster, Node, running_cluster, running_server
from tests.support.stores import running_store

TRAIT, COHORT = "[Amplitude] Power users: abc123", "abc123"
PARTITIONS = 12


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster that belongs to this test process alone; no test may break it."""
    with running_cluster(3, 1, *CALM) as cluster:
        yield cluster


@pytest.fixture
def store_url(cluster: Cluster) -> str:
    return cluster.url


@pytest.fixture
def redis_client(cluster: Cluster) -> Iterator[redis.RedisCluster]:
    """A reader's client, on an empty cluster."""
    with cluster.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def make_app(make_app: Callable[..., Flask]) -> Callable[..., Flask]:
    return lambda **changes: make_app(**{"store_cluster": True, **changes})


def open_store(url: str, partitions: int = PARTITIONS, **changes: object) -> Store:
    settings = Settings(redis_url=url, store_cluster=True, **changes)  # type: ignore[arg-type]
    return Store(connect(settings), partitions=partitions, wait=wait_for(settings))


@pytest.fixture
def store(store_url: str, redis_client: redis.RedisCluster) -> Store:
    return open_store(store_url)


def enter(store: Store, users: list[str], trait: str = TRAIT) -> int:
    change = MembershipChange(Cohort.from_trait(trait), True, users, None)
    return store.memberships.apply(APP, [change], source="test").changed


# One partition is one node's affair: what a single store does.
on_all_masters = pytest.mark.parametrize("service", [3], indirect=True, ids=["three partitions"])


@on_all_masters
class TestBatch(test_contract.TestBatch):
    """The contract holds on a cluster."""


@on_all_masters
class TestSingleIdentify(test_contract.TestSingleIdentify):
    """The contract holds on a cluster."""


@on_all_masters
class TestList(test_contract.TestList):
    """The contract holds on a cluster."""


@on_all_masters
class TestBatchAtListRemove(test_contract.TestBatchAtListRemove):
    """The contract holds on a cluster."""


@on_all_masters
class TestWebhook(test_webhook.TestContract):
    """The contract holds on a cluster."""


@on_all_masters
class TestSegmentBatch(test_segment.TestBatch):
    """The contract holds on a cluster."""


def test_partitions__of_one_app__lie_on_all_masters(cluster: Cluster, store: Store) -> None:
    enter(store, payloads.user_ids(500))
    assert all(node.client.dbsize() > 50 for node in cluster.masters)


def test_resync_and_import__continued_by_another_process__replace_the_members(
    store: Store, store_url: str, redis_client: redis.RedisCluster
) -> None:
    users = payloads.user_ids(500)
    place, other = ResyncPlace(APP, COHORT), open_store(store_url)

    def complete() -> None:
        steps = store.resyncs.steps(place)
        next(steps)
        steps.close()
        for _ in other.resyncs.steps(place):
            pass
        found = other.resyncs.find(place)
        assert found
        assert found.is_finished
        (completeness,) = other.completeness.of(APP, [COHORT])
        assert completeness.state is CompletenessState.VERIFIED

    enter(store, users)
    assert store.resyncs.open(place, ResyncKind.RESYNC)
    enter(store, users[:400])
    opened = store.resyncs.find(place)
    assert opened
    assert (opened.confirmed, opened.unconfirmed) == (400, 100)
    assert store.resyncs.request_finish(place, opened, force=False) is None
    complete()
    assert members(redis_client, APP) == {COHORT: set(users[:400])}

    opened = store.resyncs.open(place, ResyncKind.IMPORT)
    assert opened
    store.resyncs.stage(place, opened, [*users[:300], "new"])
    *_, counts = store.resyncs.count_file(place, opened)
    assert counts == FileCounts(added=1, removed=100, unchanged=300, members=400)
    assert store.resyncs.request_apply(place, opened)
    complete()
    assert members(redis_client, APP) == {COHORT: {*users[:300], "new"}}


@pytest.mark.parametrize("hours", [-48, 48])
def test_writes__after_the_clocks_of_nodes_were_set__are_carried_out(
    store: Store, hours: int
) -> None:
    users = payloads.user_ids(500)
    enter(store, users)
    library = store._client._cluster
    for number, node in enumerate(library.get_primaries()):
        pool = library.get_redis_connection(node).connection_pool
        pool.server_clock._ahead_ms += number * hours * 3_600_000
    assert enter(store, users, "[Amplitude] Other: def456") == 500
    assert enter(store, ["one"]) == 1


def test_calls__on_all_nodes__read_what_was_written(make_app: Callable[..., Flask]) -> None:
    app = make_app(store_partitions=PARTITIONS, **KEYS)
    ids = payloads.user_ids(700)
    reply = caller(app).post(payloads.COHORT_PATH, json=payloads.batch(ids, TRAIT, True))
    assert (reply.status_code, reply.json["changed"]) == (200, 700)
    reader = Reader(app)
    found = reader.send("POST", "/api/v1/users/query", json={"userIds": ids}).json["users"]
    assert [user["userId"] for user in found] == ids
    assert all(user["traits"] == {TRAIT: True} for user in found)
    (cohort,) = reader.get("/api/v1/cohorts?sort=members").json["cohorts"]
    assert (cohort["id"], cohort["members"]) == (COHORT, 700)
    pages = reader.pages(f"/api/v1/cohorts/{COHORT}/members?limit=300", "members")
    assert {member["userId"] for page in pages for member in page} == set(ids)
    changes = reader.get("/api/v1/changes?limit=100").json["changes"]
    assert sorted(user for change in changes for user in change["userIds"]) == sorted(ids)
    assert len(reader.get(f"/api/v1/cohorts/{COHORT}/members.ndjson").text.splitlines()) == 700


def test_rename_and_delete__in_the_background__reach_all_nodes(
    make_app: Callable[..., Flask], redis_client: redis.RedisCluster
) -> None:
    app = make_app(store_partitions=PARTITIONS)
    store, background = services(app).store, services(app).background
    ids = payloads.user_ids(600)
    enter(store, ids)
    enter(store, ids[:1], "[Amplitude] Loyal: abc123")
    background.work()
    background.work()
    assert set(map(str, traits(redis_client, APP).values())) == {
        "{'[Amplitude] Loyal: abc123': 'true'}"
    }
    assert store.checker.run([APP]).ok
    store.erasure.erase(APP, ids[0])
    store.jobs.begin_deletion(APP, COHORT)
    background.work()
    assert traits(redis_client, APP) == members(redis_client, APP) == {}
    assert store.checker.run([APP]).found == {}


def test_check__on_a_cluster__finds_and_repairs(
    store: Store, redis_client: redis.RedisCluster
) -> None:
    enter(store, payloads.user_ids(300))
    redis_client.delete(store.keys.user(APP, payloads.user_ids(1)[0]))
    report = store.checker.run([APP], repair=True)
    assert dict(report.found) == dict(report.repaired) == {"member_without_trait": 1}
    assert store.checker.run([APP]).ok


def test_rate_limit__on_a_cluster__counts(make_app: Callable[..., Flask]) -> None:
    http = caller(make_app(rate_limit=parse("3/hour")))
    body = payloads.identify("u1", TRAIT, True)
    found = [http.post(payloads.COHORT_PATH, json=body).status_code for _ in range(5)]
    assert found == [200, 200, 200, 429, 429]


def test_scripts__lost_with_a_restart__are_loaded_again(
    store: Store, redis_client: redis.RedisCluster
) -> None:
    assert enter(store, payloads.user_ids(100)) == 100
    redis_client.script_flush()
    assert enter(store, [f"more-{n}" for n in range(100)]) == 100
    redis_client.script_flush()
    assert enter(store, ["one"]) == 1
    redis_client.script_flush()
    assert store.checker.run([APP]).ok


def test_connections__broken_by_the_store__are_made_anew(
    cluster: Cluster, store: Store, redis_client: redis.RedisCluster
) -> None:
    for round_ in range(3):
        for node in cluster.masters:
            node.client.client_kill_filter(_type="normal", skipme=True)
        assert enter(store, [f"user-{round_}-{n}" for n in range(50)]) == 50


def test_calls__more_than_there_are_connections__wait_in_turn(
    store_url: str, redis_client: redis.RedisCluster
) -> None:
    store = open_store(store_url, store_connections=2)
    with ThreadPoolExecutor(16) as pool:
        each = [[f"user-{n}-{m}" for m in range(40)] for n in range(64)]
        assert sum(pool.map(lambda users: enter(store, users), each)) == 64 * 40
    assert len(transitions(redis_client, APP)) == 64 * 40


def test_wait__for_replicas__is_answered_when_they_have_it(
    cluster: Cluster, store_url: str, redis_client: redis.RedisCluster
) -> None:
    store = open_store(store_url, store_wait_replicas=1)
    assert enter(store, payloads.user_ids(100)) == 100
    assert sum(node.client.dbsize() for node in cluster.nodes[3:]) >= 100


def test_wait__for_more_replicas_than_there_are__is_503(make_app: Callable[..., Flask]) -> None:
    app = make_app(store_wait_replicas=2, store_timeout_seconds=0.5)
    reply = caller(app).post(payloads.COHORT_PATH, json=payloads.identify("u1", TRAIT, True))
    assert (reply.status_code, reply.json["reason"]) == (503, "store_not_replicated")
    assert int(reply.headers["Retry-After"]) > 0


def test_wait__on_disk_without_an_append_only_file__says_that_it_cannot(
    store_url: str, redis_client: redis.RedisCluster
) -> None:
    store = open_store(store_url, store_wait_replicas=1, store_wait_fsync=True)
    with pytest.raises(StoreError):
        enter(store, ["u1"])


def test_wait__on_disk_of_master_and_replica__is_a_200(make_app: Callable[..., Flask]) -> None:
    with running_cluster(1, 1, "--appendonly", "yes") as cluster:
        app = make_app(
            redis_url=cluster.url,
            store_cluster=True,
            store_wait_replicas=1,
            store_wait_fsync=True,
            store_timeout_seconds=10.0,
        )
        reply = caller(app).post(payloads.COHORT_PATH, json=payloads.identify("u1", TRAIT, True))
        assert (reply.status_code, reply.json["changed"]) == (200, 1)
        stats = cluster.masters[0].client.info("commandstats")
        assert stats["cmdstat_waitaof"]["calls"] > 0


def test_wait__on_a_single_store__is_for_its_replicas_too() -> None:
    with running_store() as url:
        settings = Settings(redis_url=url, store_wait_replicas=1, store_timeout_seconds=0.4)
        store = Store(connect(settings), wait=wait_for(settings))
        with pytest.raises(StoreError) as error:
            enter(store, ["u1"])
        assert error.value.reason == "store_not_replicated"


def test_slot__that_moves_key_by_key__refuses_and_loses_nothing() -> None:
    with running_cluster(2, 0) as cluster:
        store = open_store(cluster.url, 1)
        ids = payloads.user_ids(100)
        enter(store, ids)
        stream = store.keys.changes(APP, 0)
        source = cluster.master_of(stream)
        (target,) = (node for node in cluster.masters if node is not source)
        slot = source.client.execute_command("CLUSTER KEYSLOT", APP)
        names = {node: node.client.execute_command("CLUSTER MYID") for node in (source, target)}

        def set_slot(node: Node, *what: str) -> None:
            node.client.execute_command("CLUSTER SETSLOT", slot, *what)

        set_slot(target, "IMPORTING", names[source])
        set_slot(source, "MIGRATING", names[target])
        keys = source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
        keys.sort(key=lambda key: (key == stream, key))
        # the stream, which leads to all other keys, goes last: first it is here, then there
        for some in (keys[::2], [*keys[1::2][:-1], stream]):
            source.client.migrate("127.0.0.1", target.port, some, 0, 5000)
            for attempt in (
                lambda: enter(store, [*ids[:50], "new"]),
                lambda: list(store.lookups.users(APP, ids)),
                lambda: list(store.lookups.all_members(APP, COHORT)),
            ):
                with pytest.raises(StoreError) as error:
                    attempt()
                assert error.value.reason == "store_loading", str(error.value.__cause__)
        rest = source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
        if rest:
            source.client.migrate("127.0.0.1", target.port, rest, 0, 5000)
        set_slot(target, "NODE", names[target])
        set_slot(source, "NODE", names[target])

        assert enter(store, [*ids[:50], "new"]) == 1
        assert cluster.master_of(stream) is target
        assert sum(map(len, store.lookups.all_members(APP, COHORT))) == 101
        assert store.checker.run([APP]).ok


def test_cluster__not_there__is_503_and_the_service_starts(make_app: Callable[..., Flask]) -> None:
    http = caller(make_app(redis_url="redis://127.0.0.1:1/0"))
    reply = http.post(payloads.COHORT_PATH, json=payloads.identify("u1", TRAIT, True))
    assert (reply.status_code, reply.json["reason"]) == (503, "store_unreachable")
    assert http.get("/healthz").status_code == 200


def test_cluster__where_none_is_expected__is_said(cluster: Cluster) -> None:
    store = Store(connect(Settings(redis_url=cluster.url)), partitions=PARTITIONS)
    with pytest.raises(StoreError) as error:
        enter(store, payloads.user_ids(200))
    assert error.value.reason == "store_misconfigured"


def test_single_store__where_a_cluster_is_expected__is_said() -> None:
    with running_server() as node:
        store = open_store(node.url)
        with pytest.raises(StoreError) as error:
            enter(store, ["u1"])
        assert error.value.reason == "store_misconfigured"


def test_keys__made_by_command__are_kept_on_a_cluster_too(
    make_app: Callable[..., Flask], store: Store
) -> None:
    key, kept = make_key(APP, "ingest", "amplitude")
    assert store.api_keys.create(kept)
    app = make_app(store_partitions=PARTITIONS)
    body = payloads.identify("ann", TRAIT, True)
    http = caller(app, key)
    assert http.post(payloads.COHORT_PATH, json=body).status_code == 200
    store.api_keys.note_used({kept.id: 1})
    assert store.api_keys.used() == {kept.id: 1}
    store.api_keys.revoke(kept.id)
    services(app).keyring.refresh()
    assert http.post(payloads.COHORT_PATH, json=body).json["reason"] == "revoked_key"


def test_history_and_dashboard__on_a_cluster__tell_what_happened(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(store_partitions=8, **KEYS)
    http = caller(app)
    for n in range(20):
        http.post(
            payloads.COHORT_PATH,
            json=payloads.batch([f"u{n}", f"v{n}"], f"[Amplitude] n: {n % 5}", True),
        )
    http.post(payloads.COHORT_PATH, data=b"{", content_type="application/json")
    caller(app, "wrong").post(payloads.COHORT_PATH, json={})
    services(app).sync_recorder.flush()
    reader = Reader(app)
    syncs = reader.get("/api/v1/syncs").json["syncs"]
    told = sorted((sync["cohortId"] or "", sync["requests"], sync["entered"]) for sync in syncs)
    assert told == [("", 1, 0), *((str(n), 4, 8) for n in range(5))]
    for n in range(5):
        assert reader.get(f"/api/v1/cohorts/{n}/sizes").json["sizes"][-1]["members"] == 8
    browser = app.test_client()
    assert browser.post("/login", data={"key": ADMIN_KEY}).status_code == 303
    for path in ("/", "/cohort?id=1", "/syncs", f"/sync?id={syncs[0]['id']}", "/users?id=u1"):
        assert browser.get(path).status_code == 200, path
    assert "Store memory" in browser.get("/health").text
    assert "1 request." in browser.get("/").text
