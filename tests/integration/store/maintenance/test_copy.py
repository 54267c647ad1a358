"""A store copied to another one, with other partitions or other nodes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask

from app.cohorts import Cohort, MembershipChange
from app.settings import ApiKey, Settings
from app.store import Copier, CopyRefused, PlaceLost, Store, connect, side, wait_for
from simulator import payloads
from tests.cluster import CALM, Cluster, running_cluster, running_server
from tests.conftest import running_store
from tests.integration.conftest import APP, KEY, caller
from tests.integration.killed import KilledError, killed_at
from tests.integration.web.api.reading import say

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
    return Store(connect(settings), partitions=settings.store_partitions)


def copy(source: Settings, target: Settings, **options: Any) -> Any:
    return Copier(side(source), side(target)).run(**options)


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
def source(
    request: pytest.FixtureRequest, store_url: str, make_app: Callable[..., Flask]
) -> Settings:
    """A store in which everything has happened that can."""
    app = make_app(store_partitions=request.param, admin_api_keys=(ApiKey(APP, "the-admin"),))
    http, store = caller(app), app.extensions["store"]
    ids = payloads.user_ids(400)
    for member, users in ((True, ids), (False, [*ids[:50], "never in"]), (True, ids[40:60])):
        body = payloads.batch(users, OLD, member)
        assert http.post(payloads.COHORT_PATH, json=body).status_code == 200
    for users in (ids[100:170], ids[170:200]):  # with scores in the same millisecond
        say(store, OTHER, True, users, at_ms=1_700_000_000_000)
    say(store, OTHER, False, ids[150:160], at_ms=1_700_000_001_000)
    say(store, NEW, True, ids[:5])  # a rename that is not done yet
    say(store, "[Amplitude] Going: going", True, ids[300:])
    store.lifecycle.begin_delete(APP, "going")
    assert http.post("/lists", json={"name": "[Amplitude] Empty: empty"}).status_code == 200
    store.register_users(APP, ["é", "registered", *ids[:30]])
    store.lifecycle.erase(APP, ids[77], suppress=True)
    store.freshness.set_cadence(APP, "1", 3_600_000)
    store.sizes.note(APP, ["1"])
    change = MembershipChange(Cohort.from_trait(OTHER), True, ids[:3], None)
    store.apply("another-app", [change], way="test", message_id="m-1")
    return settings_of(store_url, request.param)


def everything(settings: Settings) -> dict[str, Any]:
    """All that callers can learn about, however it is laid out."""
    store = open_store(settings)
    found: dict[str, Any] = {"apps": store.apps()}
    client: Any = connect(settings)
    for app in store.apps():
        users = sorted(
            key.decode().split(":user:", 1)[1]
            for key in client.scan_iter(match=f"cohorts:{{{app}*:user:*")
        )
        found[f"{app} users"] = list(chain(*store.reads.users(app, users)))
        found[f"{app} cohorts"] = cohorts = list(store.registry.all(app))
        for cohort in cohorts:
            found[f"{app} members of {cohort.id}"] = sorted(
                member for page in store.reads.all_members(app, cohort.id) for member in page
            )
        found[f"{app} freshness"] = store.freshness.of(app, [c.id for c in cohorts])
        found[f"{app} sizes"] = store.sizes.of(app, [c.id for c in cohorts])
        found[f"{app} known"] = [store.user(app, u) for u in [*users, "é", "registered"]]
        for part in ("members", "left", "seen"):
            found[f"{app} {part}"] = sorted(
                (key.decode().rpartition("cohort:")[2], *pair)
                for key in client.scan_iter(match=f"cohorts:{{{app}*:{part}")
                for pair in client.zrange(key, 0, -1, withscores=True)
            )
        found[f"{app} suppressed"] = sorted(
            member
            for key in client.scan_iter(match=f"cohorts:{{{app}*:suppressed")
            for member in client.smembers(key)
        )
        found[f"{app} syncs"] = store.history.syncs(app)
    found["freshness"] = store.freshness_counts()
    return found


def work(settings: Settings) -> None:
    """Let the background work finish: renames, deletions."""
    store = open_store(settings)
    for _ in range(3):
        for job in store.lifecycle.jobs():
            store.spread_name(job.app_id, job.cohort_id)
            while store.lifecycle.lease(job) and store.lifecycle.step(job) is not None:
                pass


@pytest.mark.parametrize("partitions", [1, 5])
def test_copy__of_everything__agrees_and_goes_on(
    source: Settings, target_url: str, partitions: int
) -> None:
    target = settings_of(target_url, partitions)
    report = copy(source, target)
    assert report.ok, report
    assert report.users == 403
    assert everything(target) == everything(source)
    # the rename and the deletion that were under way are finished in both, each by itself
    work(source)
    work(target)
    assert everything(target) == everything(source)
    checked = open_store(target).checker.run(open_store(target).apps())
    assert checked.findings == []


def test_copy__to_a_cluster_and_back__agrees(
    source: Settings, target_url: str, cluster_url: str
) -> None:
    cluster = settings_of(cluster_url, 12, cluster=True)
    assert copy(source, cluster).ok
    assert everything(cluster) == everything(source)
    back = settings_of(target_url, 2)
    assert copy(cluster, back).ok
    assert everything(back) == everything(source)


def test_copy__again_after_changes__brings_only_these(source: Settings, target_url: str) -> None:
    target = settings_of(target_url, 4)
    assert copy(source, target).ok
    assert copy(source, target).different == 0
    store, ids = open_store(source), payloads.user_ids(400)
    work(source)
    say(store, NEW, False, ids[10:20])
    store.lifecycle.erase(APP, ids[21])
    store.lifecycle.unsuppress(APP, ids[77])
    store.unregister_users(APP, ["é"])
    report = copy(source, target)
    assert report.ok
    assert report.vanished == 1
    assert everything(target) == everything(source)


def test_copy__while_requests_come_in__agrees_in_the_end(
    source: Settings, target_url: str, make_app: Callable[..., Flask]
) -> None:
    target = settings_of(target_url, 4)
    store = open_store(source)
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.wait(0.002) and written < 20_000:
            say(store, OTHER, written % 3 != 0, [f"user-{written % 97}", f"new-{written}"])
            if written % 50 == 0:
                store.lifecycle.erase(APP, f"new-{written // 2}")
            written += 1

    def tell(line: str) -> None:
        if line.startswith("Following"):
            stop.set()
            thread.join()  # what it is at may come later than half a second of rest

    thread = threading.Thread(target=write)
    thread.start()
    try:
        report = copy(source, target, follow_seconds=0.5, tell=tell)
    finally:
        stop.set()
        thread.join()
    assert report.ok
    assert report.again > 0
    assert everything(target) == everything(source)


def test_copy__stopped_half_way__goes_on_where_it_was(source: Settings, target_url: str) -> None:
    target = settings_of(target_url, 4)
    store = open_store(source)
    for part in range(8):
        say(store, OTHER, True, [f"many-{part}-{n}" for n in range(1000)])
    done = 0

    class StoppedError(Exception):
        pass

    def stop(steps: int) -> None:
        nonlocal done
        done += steps
        if done > 5000:
            raise StoppedError

    with pytest.raises(StoppedError):
        copy(source, target, progress=stop)
    steps: list[int] = []
    report = copy(source, target, progress=steps.append)
    assert report.ok
    assert sum(steps) < 2 * Copier(side(source), side(target)).size() - 3000
    assert everything(target) == everything(source)


def test_copy__killed_between_any_two_commands__goes_on(
    store_url: str, redis_client: redis.Redis, target_url: str
) -> None:
    source = settings_of(store_url, 2)
    say(open_store(source), OLD, True, ["a", "b", "c"])
    say(open_store(source), OLD, False, ["c"])
    target = settings_of(target_url, 2)
    for command in range(10_000):
        connect(target).flushall()
        to = side(target)
        killed_at(to.client, command)
        try:
            Copier(side(source), to).run()
        except KilledError:
            pass
        else:
            break
        assert copy(source, target).ok, command
        assert everything(target) == everything(source), command
        # What it can't prove must not pass for proved: the copy's streams begin with the copy.
        copied = open_store(target)
        for partition in range(2):
            begun = f"{copied.keys.changes(APP, partition)}:begun"
            assert connect(target).exists(begun), command
    assert command > 40


def test_streams__of_a_copy__begin_anew_and_say_so(source: Settings, target_url: str) -> None:
    target = settings_of(target_url, source.store_partitions)
    behind = open_store(source).changes.newest(APP)
    say(open_store(source), OTHER, True, payloads.user_ids(200))  # in every partition
    assert copy(source, target).ok
    say(open_store(source), OTHER, False, payloads.user_ids(200))
    assert copy(source, target).ok
    assert copy(source, target).ok
    up_to_date = open_store(source).changes.newest(APP)
    copied = open_store(target)
    for _ in range(2):
        with pytest.raises(PlaceLost):
            copied.changes.read(APP, behind, limit=10)
    place = copied.changes.oldest()
    assert copied.changes.read(APP, place, limit=10).changes == []
    assert copied.changes.read(APP, up_to_date, limit=10).changes == []
    say(copied, OTHER, True, ["newcomer"])
    for start in (place, up_to_date):
        (change,) = copied.changes.read(APP, start, limit=10).changes
        assert change.users == b'["newcomer"]'
    with pytest.raises(PlaceLost):
        copied.changes.read(APP, behind, limit=10)


def test_message__that_was_applied__is_recognised_by_the_copy(
    store_url: str, target_url: str, redis_client: redis.Redis
) -> None:
    source, target = settings_of(store_url, 2), settings_of(target_url, 2)
    change = MembershipChange(Cohort.from_trait(OTHER), True, ["a", "b", "c"], None)

    def apply(settings: Settings) -> bool:
        return open_store(settings).apply(APP, [change], way="t", message_id="m").repeated

    assert not apply(source)
    assert copy(source, target).ok
    assert apply(target)


class TestRefused:
    """What could do harm is not begun."""

    def test_target__with_other_data(self, source: Settings, target_url: str) -> None:
        target = settings_of(target_url, 1)
        say(open_store(target), OTHER, True, ["somebody"])
        with pytest.raises(CopyRefused, match="no copy of this store"):
            copy(source, target)

    def test_target__that_a_service_has_written_to(self, source: Settings, target_url: str) -> None:
        target = settings_of(target_url, 2)
        assert copy(source, target).ok
        say(open_store(target), OTHER, True, ["somebody"])
        with pytest.raises(CopyRefused, match="A service has written"):
            copy(source, target)

    def test_target__that_is_the_source(self, source: Settings) -> None:
        with pytest.raises(CopyRefused, match="is the source"):
            copy(source, source)

    def test_target__begun_with_other_partitions(self, source: Settings, target_url: str) -> None:
        assert copy(source, settings_of(target_url, 2)).ok
        with pytest.raises(CopyRefused, match="with 2 partitions"):
            copy(source, settings_of(target_url, 3))


def test_keys__that_the_copy_does_not_know__are_told(
    source: Settings, target_url: str, redis_client: redis.Redis
) -> None:
    redis_client.set(f"cohorts:{{{APP}}}:something-new:17", "1")
    report = copy(source, settings_of(target_url, 1))
    assert not report.ok
    assert dict(report.left_behind) == {"something-new:…": 1}


def test_command__copies_and_says_so(
    source: Settings, target_url: str, make_app: Callable[..., Flask]
) -> None:
    app = make_app(store_partitions=source.store_partitions)
    runner = app.test_cli_runner()
    words = ["store", "copy", "--to", target_url, "--partitions", "3"]
    done = runner.invoke(args=words)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "Both stores agree.")
    assert runner.invoke(args=[*words[:-1], "4"]).exit_code == 1
    assert runner.invoke(args=[*words, "--cluster"]).exit_code == 2
    assert runner.invoke(args=["store", "copy", "--to", "x", "--partitions", "1"]).exit_code == 2
    assert KEY not in done.output


def rights(page: str, first: str) -> list[str]:
    """The rights that a page lists in a block that begins so."""
    block = re.search(rf"^({re.escape(first)}.*)$", (DOCS / page).read_text(), re.M)
    assert block
    return block[1].split()


def test_user_of_its_own__with_the_rights_of_the_pages__is_refused_nothing() -> None:
    _, name, *own = (DOCS / "acl" / "service.acl").read_text().replace("PASSWORD", "pw").split()
    own += rights("scaling.md", "+cluster|slots") + rights("moving.md", "+del")
    with running_server() as single, running_cluster(2, 1, *CALM) as cluster:
        nodes = [single, *cluster.nodes]
        for node in nodes:
            node.client.execute_command("ACL", "SETUSER", name, *own)
        one, many = (url.replace("//", f"//{name}:pw@") for url in (single.url, cluster.url))
        source = settings_of(one, 1)
        target = replace(settings_of(many, 4, cluster=True), store_wait_replicas=1)
        say(open_store(source), OTHER, True, payloads.user_ids(50))
        open_store(source).register_users(APP, ["registered"])
        assert copy(source, target, follow_seconds=0.1).ok
        assert copy(source, target).ok
        store = Store(connect(target), partitions=4, wait=wait_for(target))
        say(store, OTHER, False, payloads.user_ids(50))
        assert store.checker.run([APP]).ok
        assert [entry for node in nodes for entry in node.client.acl_log()] == []
