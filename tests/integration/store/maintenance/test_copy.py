"""A store copied to another one, with other partitions or other nodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from limits import parse

from app.cohorts import Cohort, MembershipChange
from app.services import services
from app.settings import ApiKey, Settings
from app.store import Copy, CopyRefused, PositionLost, Store, StoreError, connect, wait_for
from app.store.errors import StoreHeld
from app.store.hold import HoldLost
from simulator import payloads
from tests.integration.conftest import APP, KEY, caller
from tests.integration.web.api.read_api import say
from tests.support.clusters import CALM, Cluster, running_cluster, running_server
from tests.support.effort import PARTITIONS, thorough
from tests.support.polling import wait_until
from tests.support.stores import running_store

DOCS = Path(__file__).resolve().parents[4] / "docs"
OLD, NEW, OTHER = "[Amplitude] Old name: 1", "[Amplitude] New name: 1", "No id at all"


@pytest.fixture(scope="module")
def target_server() -> Iterator[str]:
    with running_store() as url:
        yield url


@pytest.fixture
def target_url(target_server: str) -> str:
    with redis.Redis.from_url(target_server) as client:
        client.flushall()
    return target_server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(3, 0) as cluster:
        yield cluster


@pytest.fixture
def cluster_url(cluster: Cluster) -> str:
    with cluster.client() as client:
        client.flushall()
    return cluster.url


def settings_of(url: str, partitions: int, cluster: bool = False) -> Settings:
    return Settings(redis_url=url, store_partitions=partitions, store_cluster=cluster)


def open_store(settings: Settings) -> Store:
    return Store(
        connect(settings), prefix=settings.key_prefix, partitions=settings.store_partitions
    )


def copy(source: Settings, target: Settings, **options: Any) -> Any:
    return Copy(source, target).run(**{"notify": lambda line: None, **options})


@pytest.fixture(params=PARTITIONS)
def source(
    request: pytest.FixtureRequest, store_url: str, make_app: Callable[..., Flask]
) -> Settings:
    """A store in which everything has happened that can."""
    app = make_app(store_partitions=request.param, admin_api_keys=(ApiKey(APP, "the-admin"),))
    http, store = caller(app), services(app).store
    ids = payloads.user_ids(400)
    for member, users in ((True, ids), (False, [*ids[:50], "never in"]), (True, ids[40:60])):
        body = payloads.batch(users, OLD, member)
        assert http.post(payloads.COHORT_PATH, json=body).status_code == 200
    for users in (ids[100:170], ids[170:200]):  # with scores in the same millisecond
        say(store, OTHER, True, users, at_ms=1_700_000_000_000)
    say(store, OTHER, False, ids[150:160], at_ms=1_700_000_001_000)
    say(store, NEW, True, ids[:5])  # a rename that is not done yet
    say(store, "[Amplitude] Going: going", True, ids[300:])
    store.jobs.begin_deletion(APP, "going")
    assert http.post("/lists", json={"name": "[Amplitude] Empty: empty"}).status_code == 200
    services(app).sync_recorder.flush()
    store.registered_users.add(APP, ["é", "registered", *ids[:30]])
    store.erasure.erase(APP, ids[77], suppress=True)
    store.freshness.set_cadence(APP, "1", 3_600_000)
    store.size_history.record(APP, ["1"])
    services(app).rates.hit(parse("10/hour"), "key", APP, "ingest")
    change = MembershipChange(Cohort.from_trait(OTHER), True, ids[:3], None)
    store.memberships.apply("another-app", [change], source="test", message_id="m-1")
    return settings_of(store_url, request.param)


def everything(settings: Settings) -> dict[str, Any]:
    """All that callers can learn about, however it is laid out."""
    store = open_store(settings)
    found: dict[str, Any] = {"apps": store.apps()}
    client: Any = connect(settings)
    for app in store.apps():
        users = sorted(
            key.decode().split(":user:", 1)[1]
            for key in client.scan_iter(match=f"{settings.key_prefix}:{{{app}*:user:*")
        )
        found[f"{app} users"] = list(chain(*store.lookups.users(app, users)))
        found[f"{app} cohorts"] = cohorts = list(store.registry.all(app))
        for cohort in cohorts:
            found[f"{app} members of {cohort.id}"] = sorted(
                member for page in store.lookups.all_members(app, cohort.id) for member in page
            )
        found[f"{app} freshness"] = store.freshness.of(app, [c.id for c in cohorts])
        found[f"{app} sizes"] = store.size_history.of(app, [c.id for c in cohorts])
        found[f"{app} known"] = [
            store.lookups.user_record(app, u) for u in [*users, "é", "registered"]
        ]
        for part in ("members", "left", "seen"):
            found[f"{app} {part}"] = sorted(
                (key.decode().rpartition("cohort:")[2], *pair)
                for key in client.scan_iter(match=f"{settings.key_prefix}:{{{app}*:{part}")
                for pair in client.zrange(key, 0, -1, withscores=True)
            )
        found[f"{app} suppressed"] = sorted(
            member
            for key in client.scan_iter(match=f"{settings.key_prefix}:{{{app}*:suppressed")
            for member in client.smembers(key)
        )
        found[f"{app} syncs"] = store.sync_history.syncs(app)
    found["freshness"] = store.freshness_counts()
    return found


def work(settings: Settings) -> None:
    """Let the background work finish: renames, deletions."""
    store = open_store(settings)
    for _ in range(10):
        for job in store.jobs.pending():
            store.memberships.spread_name(job.app_id, job.cohort_id)
            while store.jobs.lease(job) and store.jobs.step(job):
                pass
    assert not store.jobs.pending()


@pytest.mark.parametrize("partitions", [1, 5])
def test_copy__of_everything__agrees_and_goes_on(
    source: Settings, target_url: str, partitions: int
) -> None:
    target = settings_of(target_url, partitions)
    report = copy(source, target)
    assert report.ok, report
    assert report.compared["user"] == 403
    assert everything(target) == everything(source)
    # the rename and the deletion that were under way are finished in both, each by itself
    work(source)
    work(target)
    assert everything(target) == everything(source)
    checked = open_store(target).checker.run(open_store(target).apps())
    assert checked.findings == []


@thorough
def test_copy__to_a_cluster_and_back__agrees(
    source: Settings, target_url: str, cluster_url: str
) -> None:
    cluster = settings_of(cluster_url, 12, cluster=True)
    assert copy(source, cluster).ok
    assert everything(cluster) == everything(source)
    back = settings_of(target_url, 2)
    assert copy(cluster, back).ok
    assert everything(back) == everything(source)


def test_copy__within_a_server_to_another_prefix__agrees(source: Settings) -> None:
    target = replace(source, key_prefix="other")
    assert copy(source, target).ok
    assert everything(target) == everything(source)


def test_copy__interrupted__starts_over(source: Settings, target_url: str) -> None:
    target, store = settings_of(target_url, 4), open_store(source)

    def interrupt(steps: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        copy(source, target, progress=interrupt)
    with pytest.raises(StoreError, match="unfinished copy"):
        open_store(target).check_readable()
    store.erasure.erase(APP, payloads.user_ids(1)[0])  # the source is in use again
    assert copy(source, target).ok
    assert everything(target) == everything(source)


def test_copy__with_differences__reports_them_and_is_not_usable(
    source: Settings, target_url: str
) -> None:
    target = settings_of(target_url, 1)
    store, base = connect(target), f"cohorts:{{{APP}}}:"
    user, other = payloads.user_ids(2)
    connect(source).hset("cohorts:keys", "a-key", "{}")

    def spoil(line: str) -> None:
        if line.startswith("Comparing"):
            store.hset(f"{base}user:{user}", OLD, "spoiled")
            store.zincrby(f"{base}cohort:1:members", 1, other)
            store.zadd(f"{base}cohort:1:left", {"surplus": 1})
            store.srem(f"{base}registered", "é")
            store.hset(f"{base}cohort:1:state", "trait", "[Amplitude] Spoiled: 1")
            store.hset("cohorts:keys", "a-key", "spoiled")
            store.append(f"{base}cohort:1:sizes", "spoiled")
            store.hset(f"{base}cohort:1:freshness", "cadence", 1)
            store.hset(f"{base}user:surplus", OLD, "true")

    report = copy(source, target, notify=spoil)
    assert not report.ok
    once = ("user", "cohort", "keys", "cohort members", "registered", "surplus user")
    sizes = ("size of cohort left", "size of registered")
    assert report.different == Counter([*once, *sizes, "cohort sizes", "cohort freshness"])
    assert any(example.endswith(f"user:{user}") for example in report.examples)
    with pytest.raises(StoreError, match="unfinished copy"):
        say(open_store(target), OTHER, True, ["somebody"])
    assert copy(source, target).ok


def test_copy__of_keys_that_it_does_not_know__reports_them(
    source: Settings, target_url: str, redis_client: redis.Redis
) -> None:
    redis_client.set(f"cohorts:{{{APP}}}:something-new", "1")
    redis_client.set(f"cohorts:{{{APP}}}:user:no-hash", "1")
    report = copy(source, settings_of(target_url, 4))
    assert not report.ok
    assert report.not_copied == {"something-new": 1, "user that is not a hash": 1}


@pytest.mark.parametrize(
    "part", ["cohort:1:members", "cohort:1:state", "due", "registered", "history", "sync:1"]
)
def test_copy__of_a_key_of_another_type__names_it_and_goes_on(
    source: Settings, target_url: str, part: str
) -> None:
    there = open_store(source)
    client: Any = connect(source)
    say(there, OTHER, True, ["somebody"])
    key = f"{there.keys.base(APP, 0)}{part}"
    client.delete(key)
    client.set(key, "another program's")
    target = settings_of(target_url, 2)
    report = copy(source, target)
    assert not report.ok
    assert [what for what in report.not_copied if what.endswith("that is a string")]
    assert key in report.examples
    found = open_store(target).lookups.user(APP, "somebody")
    assert found.traits == {OTHER: True}


def test_copy__to_a_store_with_data__is_refused(source: Settings, target_url: str) -> None:
    target = settings_of(target_url, 1)
    say(open_store(target), OTHER, True, ["somebody"])
    before = everything(target)
    for other in (target, source):
        with pytest.raises(CopyRefused, match="holds data"):
            copy(source, other)
    assert everything(target) == before
    assert open_store(source).hold.value() is None


def test_streams__of_a_copy__begin_anew_and_say_so(source: Settings, target_url: str) -> None:
    target = settings_of(target_url, source.store_partitions)
    say(open_store(source), OTHER, True, payloads.user_ids(200))  # in every partition
    place = open_store(source).change_stream.newest(APP)
    assert copy(source, target).ok
    copied = open_store(target)
    with pytest.raises(PositionLost):
        copied.change_stream.read(APP, place, limit=10)
    start = copied.change_stream.oldest()
    assert copied.change_stream.read(APP, start, limit=10).changes == []
    say(copied, OTHER, True, ["newcomer"])
    (change,) = copied.change_stream.read(APP, start, limit=10).changes
    assert change.users == b'["newcomer"]'


class TestHold:
    """Nothing is written to the source while it is copied."""

    def test_source__during_a_copy__takes_no_writes(
        self, source: Settings, target_url: str
    ) -> None:
        store, refused = open_store(source), []
        say(store, OTHER, True, ["before"])

        def write(line: str) -> None:
            with pytest.raises(StoreHeld):
                say(store, OTHER, True, ["during"])
            refused.append(line)

        assert copy(source, settings_of(target_url, 4), notify=write).ok
        assert len(refused) == 2
        say(store, OTHER, True, ["after"])
        assert store.lookups.user(APP, "during").traits == {}

    def test_copy__that_loses_its_hold__fails(self, source: Settings, target_url: str) -> None:
        target = settings_of(target_url, 4)
        for lose in (
            open_store(source).hold.release,
            open_store(source).hold.begin,  # another copy would have taken it over like this
            lambda: connect(source).unlink(open_store(source).keys.partition_hold(APP, 0)),
        ):
            with pytest.raises(HoldLost):
                copy(source, target, notify=lambda _, lose=lose: lose())
            with pytest.raises(StoreError, match="unfinished copy"):
                open_store(target).check_readable()
            open_store(source).hold.release()

    def test_hold__of_an_operator__stays_after_a_copy(
        self, source: Settings, target_url: str
    ) -> None:
        store = open_store(source)
        store.hold.begin()
        report = copy(source, settings_of(target_url, 4))
        assert report.ok
        assert report.still_held
        with pytest.raises(StoreHeld):
            say(store, OTHER, True, ["somebody"])
        say(open_store(settings_of(target_url, 4)), OTHER, True, ["somebody"])
        store.hold.release()
        say(store, OTHER, True, ["somebody"])

    def test_hold__of_a_copy_that_was_killed__expires(self, source: Settings) -> None:
        store = open_store(source)
        store.hold.begin(b"a copy", 100)
        with pytest.raises(StoreHeld):
            say(store, OTHER, True, ["somebody"])
        wait_until(lambda: not connect(source).keys("cohorts:*hold"))
        say(store, OTHER, True, ["somebody"])


def test_command__copies_and_says_so(
    source: Settings, target_url: str, make_app: Callable[..., Flask]
) -> None:
    app = make_app(store_partitions=source.store_partitions)
    runner = app.test_cli_runner()
    words = ["store", "copy", "--to", target_url, "--partitions", "3"]
    done = runner.invoke(args=words)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "Both stores agree.")
    assert runner.invoke(args=words).exit_code == 1  # the target holds data now
    assert runner.invoke(args=[*words, "--cluster"]).exit_code == 2
    assert runner.invoke(args=[*words, "--prefix", "a:b"]).exit_code == 2
    assert runner.invoke(args=["store", "copy", "--to", "x", "--partitions", "1"]).exit_code == 2
    assert KEY not in done.output


def rights(page: str, first: str) -> list[str]:
    """The rights that a page lists in a block that begins so."""
    block = re.search(rf"^({re.escape(first)}.*)$", (DOCS / page).read_text(), re.M)
    assert block
    return block[1].split()


def test_user_of_its_own__with_the_rights_of_the_pages__is_refused_nothing() -> None:
    _, name, *own = (DOCS / "acl" / "service.acl").read_text().replace("PASSWORD", "pw").split()
    own += rights("scaling.md", "+cluster|slots") + rights("moving.md", "+dbsize")
    with running_server() as single, running_cluster(2, 1, *CALM) as cluster:
        nodes = [single, *cluster.nodes]
        for node in nodes:
            node.client.execute_command("ACL", "SETUSER", name, *own)
        one, many = (url.replace("//", f"//{name}:pw@") for url in (single.url, cluster.url))
        source = settings_of(one, 1)
        target = replace(settings_of(many, 4, cluster=True), store_wait_replicas=1)
        say(open_store(source), OTHER, True, payloads.user_ids(50))
        open_store(source).registered_users.add(APP, ["registered"])
        assert copy(source, target).ok
        store = Store(connect(target), partitions=4, wait=wait_for(target))
        say(store, OTHER, False, payloads.user_ids(50))
        assert store.checker.run([APP]).ok
        assert [entry for node in nodes for entry in node.client.acl_log()] == []
