"""A store that lost its data, or went back to an earlier state of itself; and what is neither."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from app.cohorts import Cohort, MembershipChange, ResyncKind, VerifiedBy
from app.server.store_watch import MarksFile, StoreWatch
from app.settings import Settings
from app.store import (
    Loss,
    LossKind,
    Partition,
    ResyncPlace,
    Store,
    StoreError,
    Tuning,
    connect,
    wait_for,
)
from tests.integration.conftest import APP
from tests.integration.web.api.read_api import say
from tests.support.clusters import running_cluster, running_server
from tests.support.effort import PARTITIONS
from tests.support.polling import wait_until
from tests.support.stores import socket_url, start_store, store_folder

COHORT, TRAIT = "abc123", "[Amplitude] Power users: abc123"
DAY_MS = 24 * 3600 * 1000
TUNING = Tuning(freshness_noted_seconds=0, layout_check_seconds=0)


Back = Callable[[], AbstractContextManager[None]]


class Worker:
    """A process of the service, as far as it concerns losses; in a test, it works when told to."""

    def __init__(
        self,
        url: str,
        memory: Path | None = None,
        partitions: int = 1,
        *,
        replicas: int = 0,
        tuning: Tuning = TUNING,
    ) -> None:
        settings = Settings(
            redis_url=url, store_partitions=partitions, store_wait_replicas=replicas
        )
        self.store = Store(
            connect(settings), partitions=partitions, wait=wait_for(settings), tuning=tuning
        )
        # At one address: a failover behind it, or another server, isn't noticed.
        file = MarksFile(memory, "redis://the-store", "cohorts", partitions)
        self._watch = StoreWatch(self.store, tuning, file)

    def work(self) -> None:
        self._watch.work()

    def send(self, *user_ids: str, trait: str = TRAIT) -> None:
        say(self.store, trait, True, user_ids)

    def loss(self) -> Loss | None:
        (loss,) = self.store.losses.of([APP]) or [None]
        return loss

    def kind(self) -> str | None:
        loss = self.loss()
        return loss and loss.kind

    def reasons(self, cohort_id: str = COHORT) -> list[str]:
        (found,) = self.store.completeness.of(APP, [cohort_id])
        return [open.reason for open in found.reasons]

    def counts(self, cohort_id: str = COHORT) -> list[int]:
        (found,) = self.store.completeness.of(APP, [cohort_id])
        return [open.count for open in found.reasons]


@pytest.fixture(params=PARTITIONS)
def start(
    request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis
) -> Callable[..., Worker]:
    """Starts a worker of the service."""
    return lambda memory=None: Worker(store_url, memory, request.param)


def empty_after_a_call(worker: Worker, client: redis.Redis) -> None:
    """Empty the store after a call, and let the worker find it."""
    worker.send("alice")
    worker.work()
    client.flushall()
    worker.work()


@pytest.fixture
def set_back(store_url: str) -> Back:
    """Undoes what is written meanwhile, as a restored backup does."""

    @contextmanager
    def back() -> Iterator[None]:
        with redis.Redis.from_url(store_url) as client:
            kept = {key: (client.dump(key), max(client.pttl(key), 0)) for key in client.scan_iter()}
            yield
            client.flushall()
            for key, (value, ttl) in kept.items():
                client.restore(key, ttl, value)

    return back


# What is a loss --------------------------------------------------------------------------------


def test_emptied_store__is_noticed_once_by_several_workers(
    start: Callable[..., Worker], redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = start(), start()
    first.send("alice")
    for worker in (first, second):
        worker.work()
    redis_client.flushall()
    for worker in (second, first, second):
        worker.work()
    loss = first.loss()
    assert loss is not None
    assert (loss.kind, loss.acknowledged) == (LossKind.LOST, False)

    first.send("bob")
    assert first.reasons() == ["store_lost"]
    assert first.counts() == [1]
    first.store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC)
    for worker in (first, second):
        worker.work()
    second.send("carol")
    assert second.reasons() == []
    assert second.loss() == loss


def test_emptied_store__differences_before_anybody_noticed(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    worker.send("alice")
    worker.work()
    redis_client.flushall()
    worker.send("bob")
    assert worker.reasons() == []
    worker.work()
    assert worker.kind() == "lost"
    assert worker.reasons() == ["store_lost"]


def test_emptied_store__arrival_soon_after_one_before_the_loss__is_noted_and_marked(
    store_url: str, redis_client: redis.Redis
) -> None:
    tuning = replace(TUNING, freshness_noted_seconds=1000)
    busy, other = (Worker(store_url, tuning=tuning) for _ in range(2))
    busy.send("alice")
    other.work()
    redis_client.flushall()
    other.work()
    assert other.kind() == "lost"
    busy.send("bob")
    assert busy.reasons() == ["store_lost"]
    (freshness,) = busy.store.freshness.of(APP, [COHORT])
    assert freshness.last_received_ms is not None


def test_emptied_store__a_new_worker_takes_it_for_new_but_the_old_one_does_not(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    old = start()
    old.send("alice")
    old.work()
    redis_client.flushall()
    new = start()
    new.send("bob")
    new.work()
    assert new.kind() is None
    old.work()
    new.work()
    assert new.kind() == "lost"
    assert new.reasons() == ["store_lost"]


def test_restored_backup__marks_all_cohorts(start: Callable[..., Worker], set_back: Back) -> None:
    workers = [start(), start()]
    workers[0].send("alice")
    workers[0].send("alice", trait="Other: quiet")
    for worker in workers:
        worker.work()
    with set_back():
        workers[1].send("bob")
        for worker in workers:
            worker.work()
    for worker in (*workers, *workers):
        worker.work()
    assert workers[0].kind() == "set_back"
    assert [workers[0].reasons(cohort) for cohort in (COHORT, "quiet")] == [["store_set_back"]] * 2
    assert workers[0].counts() == [1]


def test_cohort_that_the_backup_lacks__is_marked_when_it_arrives(
    start: Callable[..., Worker], set_back: Back
) -> None:
    worker = start()
    worker.send("alice", "bob", "carol", "dora", "emma", "frank")  # in all partitions
    worker.work()
    with set_back():
        worker.send("alice", trait="Other: later")
        worker.work()
    worker.work()
    worker.send("bob", trait="Other: later")
    assert worker.reasons("later") == ["store_set_back"]


def test_set_back__soon_after_another_that_was_repaired__is_another_loss(
    start: Callable[..., Worker], set_back: Back
) -> None:
    worker = start()
    worker.send("alice")
    worker.work()
    with set_back():
        worker.send("bob")
        worker.work()
    worker.work()
    (first,) = worker.store.losses.acknowledge([APP])
    worker.store.completeness.verify(APP, COHORT, VerifiedBy.IMPORT)
    worker.work()
    with set_back():
        worker.send("bob")
        worker.work()
    for _ in range(3):
        worker.work()
    second = worker.loss()
    assert second is not None
    assert (second.kind, second.acknowledged) == (LossKind.SET_BACK, False)
    assert second.at_ms > first.at_ms
    assert worker.reasons() == ["store_set_back"]


def test_set_back__of_another_partition_soon_after__concerns_what_was_repaired_in_between(
    store_url: str, redis_client: redis.Redis
) -> None:
    """As when the nodes of a cluster fail over one after the other."""
    worker = Worker(store_url, partitions=3)
    users = [f"user{n}" for n in range(20)]  # in all partitions
    worker.send(*users)
    in_second = [user for user in users if worker.store.keys.partition(user) == 1]
    ids = [f"c{n}" for n in range(20)]
    alone = next(one for one in ids if worker.store.keys.partition(one) == 1)
    worker.send(*in_second, trait=f"Alone: {alone}")
    worker.work()

    def go_back(partition: int) -> None:
        with redis.Redis.from_url(store_url) as client:
            keys = client.keys(worker.store.keys.base(APP, partition) + "*")
            kept = {key: (client.dump(key), max(client.pttl(key), 0)) for key in keys}
            worker.send(*users)
            worker.send(*(f"{partition}-{n}" for n in range(20)))  # in all partitions
            worker.work()
            for key in client.keys(worker.store.keys.base(APP, partition) + "*"):
                client.delete(key)
            for key, (value, ttl) in kept.items():
                client.restore(key, ttl, value)
        worker.work()

    go_back(0)
    (first,) = worker.store.losses.of([APP])
    assert worker.reasons() == ["store_set_back"]
    place = ResyncPlace(APP, COHORT)
    resync = worker.store.resyncs.open(place, ResyncKind.RESYNC)
    assert resync
    for cohort in (COHORT, alone):
        worker.store.completeness.verify(APP, cohort, VerifiedBy.IMPORT)
        assert worker.reasons(cohort) == []
    go_back(1)
    worker.work()
    (second,) = worker.store.losses.of([APP])
    assert second.found_ms == first.found_ms  # it is reported once
    assert worker.reasons() == worker.reasons(alone) == ["store_set_back"]
    assert worker.store.resyncs.is_lost(place, resync)
    # In a partition where it was found already, it is another loss; after an acknowledgement too.
    go_back(0)
    worker.work()
    (third,) = worker.store.losses.of([APP])
    assert third.found_ms > second.found_ms
    worker.store.losses.acknowledge([APP])
    go_back(2)
    worker.work()
    (fourth,) = worker.store.losses.of([APP])
    assert fourth.found_ms > third.found_ms
    assert not fourth.acknowledged
    for partition in range(3):
        left_ms = redis_client.pttl(worker.store.keys.loss(APP, partition))
        assert 0 < left_ms <= 90 * DAY_MS


def test_set_back__by_less_than_the_mark_advanced__is_found_by_what_was_acknowledged(
    start: Callable[..., Worker], set_back: Back
) -> None:
    """A failover loses what was written in the last moment, and the mark had no time to advance."""
    worker = start()
    worker.send("alice")
    worker.work()
    with set_back():
        worker.send("bob")
    worker.work()
    assert worker.kind() == "set_back"


@pytest.mark.parametrize("sent_after", [0, 3])
def test_set_back__that_loses_who_was_confirmed_in_a_resync__is_found(
    start: Callable[..., Worker], set_back: Back, sent_after: int
) -> None:
    """Nobody entered or left, so no entry of the stream is missing; but members would leave."""
    worker, other = start(), start()
    users = ["alice", "bob", "carol", "dora", "emma", "frank"]  # in all partitions
    worker.send(*users)
    place = ResyncPlace(APP, COHORT)
    resync = worker.store.resyncs.open(place, ResyncKind.RESYNC)
    assert resync
    worker.send(*users[:4])
    for one in (worker, other, worker):
        one.work()
    assert worker.kind() is None
    with set_back():
        worker.send(*users[4:])
    for _ in range(sent_after):  # as many confirmations as before, and more
        worker.send(*users)
    worker.work()
    assert worker.kind() == "set_back"
    assert worker.reasons() == ["store_set_back"]
    assert worker.store.resyncs.is_lost(place, resync)
    (first,) = worker.store.losses.acknowledge([APP])
    for one in (other, worker, other, worker):
        one.send(*users)
        one.work()
    assert worker.loss() == first._replace(acknowledged=True)


def test_set_back__that_a_call_notices_while_its_worker_learns_of_it__is_found_once(
    start: Callable[..., Worker], set_back: Back, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(), start()
    other.send("alice")
    one.work()
    other.work()
    with set_back():
        other.send("bob")
        other.work()
    other.work()
    loss, compare = one.loss(), one.store.losses.compare
    assert loss is not None

    def compare_during_calls(partition: Partition, *args: Any, **kwargs: Any) -> Any:
        found = compare(partition, *args, **kwargs)
        one.store.memberships.confirmations[partition] = 2**53
        one.store.memberships.acknowledged[partition] = loss.at_ms - 1, 0
        return found

    monkeypatch.setattr(one.store.losses, "compare", compare_during_calls)
    one.work()
    monkeypatch.undo()
    one.work()
    assert one.loss() == loss


def test_set_back__then_new_entries__is_found_by_what_was_acknowledged(
    start: Callable[..., Worker], set_back: Back
) -> None:
    worker, other = start(), start()
    worker.send("alice")
    worker.work()
    with set_back():
        worker.send("bob")
    other.send("bob", "carol", "dora", "emma")
    worker.work()
    assert worker.kind() == "set_back"


def test_set_back__then_others_advance_the_mark_past_it__is_found(
    start: Callable[..., Worker], set_back: Back
) -> None:
    worker, other = start(), start()
    worker.send("alice")
    worker.work()
    with set_back():
        worker.send("bob")
        worker.work()
    other.work()
    for n in range(3):
        other.send(f"user{n}")
        other.work()
    assert other.kind() is None
    worker.work()
    assert worker.kind() == "set_back"


def test_loss__found_while_the_clock_was_ahead__keeps_no_later_import_from_being_applied(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    empty_after_a_call(worker, redis_client)
    worker.send("alice")
    for key in redis_client.scan_iter(match="*:loss"):
        redis_client.hincrby(key, "at", 10 * DAY_MS)
    worker.work()
    worker.work()
    place, resyncs = ResyncPlace(APP, COHORT), worker.store.resyncs
    time.sleep(0.002)
    opened = resyncs.open(place, ResyncKind.IMPORT)
    assert opened is not None
    assert not resyncs.is_lost(place, opened)
    assert worker.reasons() == ["store_lost"]


def test_two_losses__are_two(
    start: Callable[..., Worker], set_back: Back, redis_client: redis.Redis
) -> None:
    worker = start()
    empty_after_a_call(worker, redis_client)
    worker.store.losses.acknowledge([APP])
    worker.send("alice")
    worker.work()
    with set_back():
        worker.send("bob")
        worker.work()
    worker.work()
    loss = worker.loss()
    assert loss is not None
    assert (loss.kind, loss.acknowledged) == ("set_back", False)
    assert worker.reasons() == ["store_lost", "store_set_back"]


def test_restart__remembers_in_a_file(
    start: Callable[..., Worker], redis_client: redis.Redis, tmp_path: Path
) -> None:
    memory = tmp_path / "marks.json"
    before = start(memory)
    before.send("alice")
    before.work()
    start(memory).work()
    assert before.kind() is None
    redis_client.flushall()
    start(memory).work()
    assert before.kind() == "lost"


def test_restart__notices_a_store_that_was_set_back_meanwhile(
    start: Callable[..., Worker], set_back: Back, tmp_path: Path
) -> None:
    memory = tmp_path / "marks.json"
    before = start(memory)
    before.send("alice")
    before.work()
    with set_back():
        before.send("bob")
        before.work()
    start(memory).work()
    assert before.kind() == "set_back"
    assert before.reasons() == ["store_set_back"]


def test_failover_to_a_replica_that_lagged() -> None:
    with running_server() as primary, running_server() as replica:
        url, other_url = (f"redis://127.0.0.1:{node.port}" for node in (primary, replica))
        with store_folder() as folder:
            worker = Worker(url, folder / "marks.json")
            worker.send("alice")
            worker.work()
            with redis.Redis.from_url(other_url) as client:
                client.replicaof("127.0.0.1", primary.port)
                wait_until(lambda: client.info("replication")["master_link_status"] == "up")
                client.replicaof("NO", "ONE")
            worker.send("bob")
            worker.work()
            after = Worker(other_url, folder / "marks.json")
            after.work()
            assert after.kind() == "set_back"
            assert after.reasons() == ["store_set_back"]


# What is not ------------------------------------------------------------------------------------


def test_failover_to_a_replica_that_has_all_that_was_acknowledged__is_no_loss() -> None:
    with running_server() as primary, running_server() as replica, store_folder() as folder:
        replica.client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        worker = Worker(primary.url, folder / "marks.json", replicas=1)
        worker.send("alice")
        worker.work()
        replica.client.replicaof("NO", "ONE")
        with pytest.raises(StoreError, match="too few replicas"):
            worker.send("bob")  # and will be sent again
        Worker(primary.url, folder / "marks.json", replicas=1).work()  # advances the mark
        after = Worker(replica.url, folder / "marks.json")
        after.work()
        assert after.kind() is None


def test_emptied_before_anything_was_stored__is_no_loss(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    worker.work()
    worker.store.layout.check_writable(APP)
    worker.work()
    redis_client.flushall()
    worker.work()
    worker.send("alice")
    worker.work()
    assert worker.kind() is None
    assert worker.reasons() == []


def test_paused_worker__is_no_loss(start: Callable[..., Worker], redis_client: redis.Redis) -> None:
    """After a long pause, its last position is no longer among those that the mark knows."""
    paused, other = start(), start()
    paused.send("alice")
    paused.work()
    for n in range(300):
        other.send(f"user{n}")
        other.work()
    paused.work()
    assert paused.kind() is None
    paused.send("bob")
    paused.work()
    assert paused.kind() is None


def test_short_pause__is_no_loss(start: Callable[..., Worker], redis_client: redis.Redis) -> None:
    paused, other = start(), start()
    paused.send("alice")
    for worker in (paused, other, other, paused, other):
        worker.work()
    other.send("bob")
    for worker in (other, paused, other, paused):
        worker.work()
    assert paused.kind() is None


def test_worker_that_remembers_what_was_before_a_loss__is_no_further_loss(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    """It was paused while others found the loss, and the loss has been acknowledged."""
    paused, other = start(), start()
    paused.send("alice")
    for worker in (paused, other):
        worker.work()
    redis_client.flushall()
    other.send("bob")
    other.work()
    other.store.losses.acknowledge([APP])
    paused.work()
    loss = other.loss()
    assert loss is not None
    assert loss.acknowledged


def test_entries_trimmed_or_erased_after_they_were_acknowledged__are_no_loss(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    worker.send("alice")
    worker.work()
    worker.send("bob")
    worker.store.erasure.erase(APP, "bob")
    worker.send("carol")
    worker.work()
    worker.send("dora")
    for partition in range(worker.store.keys.partitions):
        redis_client.xtrim(worker.store.keys.changes(APP, partition), maxlen=0)
    worker.work()
    assert worker.kind() is None


def test_deleted_cohorts_and_erased_users__are_no_loss(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    worker.send("alice")
    worker.work()
    for _ in worker.store.jobs.delete_cohort(APP, COHORT):
        pass
    worker.store.erasure.erase(APP, "alice")
    worker.work()
    assert worker.kind() is None


def test_another_prefix_or_address__is_another_store(
    start: Callable[..., Worker], redis_client: redis.Redis, tmp_path: Path
) -> None:
    worker = start(tmp_path / "marks.json")
    worker.send("alice")
    worker.work()
    same = ("redis://the-store", "cohorts", worker.store.keys.partitions)
    assert MarksFile(tmp_path / "marks.json", *same).read()
    for other in (
        ("redis://the-store", "others", same[2]),
        ("redis://another-store", "cohorts", same[2]),
        ("redis://the-store", "cohorts", 7),
    ):
        assert MarksFile(tmp_path / "marks.json", *other).read() == {}
    rotated = ("redis://user:secret@the-store", *same[1:])
    assert MarksFile(tmp_path / "marks.json", *rotated).read()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_unreadable_memory__is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "marks.json"
    path.write_bytes(content)
    with capture_logs() as logs:
        assert MarksFile(path, "redis://the-store", "cohorts", 1).read() == {}
    assert [log["event"] for log in logs] == ["store marks not read"]


def test_memory__that_cannot_be_written__is_reported(tmp_path: Path) -> None:
    memory = MarksFile(tmp_path / "none" / "marks.json", "redis://the-store", "cohorts", 1)
    with capture_logs() as logs:
        assert memory.read() == {}  # as at the first start
        memory.write({})
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("store marks not written", "No such file or directory")
    ]


def test_store_unavailable_for_a_while__is_no_loss() -> None:
    with store_folder() as folder:
        options = ("--appendonly", "yes")
        server = start_store(folder, *options)
        worker = Worker(socket_url(folder))
        worker.send("alice")
        worker.work()
        server.terminate()
        server.wait(30)
        worker.work()
        server = start_store(folder, *options)
        try:
            worker.work()
            assert worker.kind() is None
            worker.send("bob")
            worker.work()
            assert worker.kind() is None
        finally:
            server.terminate()
            server.wait(30)


# Afterwards -------------------------------------------------------------------------------------


def test_acknowledged__cohorts_stay_incomplete_and_later_ones_are_marked(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    empty_after_a_call(worker, redis_client)
    worker.send("bob")
    assert [loss.app_id for loss in worker.store.losses.acknowledge([APP])] == [APP]
    assert worker.store.losses.acknowledge([APP]) == []
    loss = worker.loss()
    assert loss is not None
    assert loss.acknowledged
    worker.send("bob", trait="Other: later")
    assert worker.reasons() == worker.reasons("later") == ["store_lost"]


def test_intended__nothing_is_marked_any_more(
    start: Callable[..., Worker], redis_client: redis.Redis
) -> None:
    worker = start()
    empty_after_a_call(worker, redis_client)
    worker.send("bob")
    assert sum(worker.store.losses.forgive([APP])) == 1
    worker.send("bob", trait="Other: later")
    worker.work()
    assert worker.loss() is None
    assert worker.reasons() == worker.reasons("later") == []


def test_intended__while_cohorts_of_another_app_are_marked__stays_forgotten(
    start: Callable[..., Worker], set_back: Back, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    losses, mark_cohorts = worker.store.losses, worker.store.losses.mark_cohorts
    entered = MembershipChange(Cohort.from_trait(TRAIT), True, ["alice"])
    for app_id in ("an app that comes first", APP):
        worker.store.memberships.apply(app_id, [entered], source="test")
    worker.work()
    with set_back():
        for app_id in ("an app that comes first", APP):
            bob = entered._replace(user_ids=["bob"])
            worker.store.memberships.apply(app_id, [bob], source="test")
        worker.work()

    def mark(loss: Loss) -> Iterator[int]:
        assert loss.app_id != APP
        list(losses.forgive([APP]))
        return mark_cohorts(loss)

    monkeypatch.setattr(losses, "mark_cohorts", mark)
    worker.work()
    assert worker.loss() is None
    assert worker.reasons() == []


def test_many_cohorts__are_marked_in_steps_that_can_be_interrupted(
    start: Callable[..., Worker], set_back: Back
) -> None:
    worker = start()
    for n in range(250):
        worker.send("alice", trait=f"Many: c{n:03}")
    worker.work()
    with set_back():
        worker.send("bob")
        worker.work()
    losses = worker.store.losses
    other = start()
    other.work()
    worker._watch._compare()  # finds it, without marking any cohort yet
    (loss,) = losses.unfinished([APP])
    steps = losses.mark_cohorts(loss)
    assert 0 < next(steps) <= 100
    steps.close()
    assert losses.unfinished([APP]) == [loss]
    assert 250 - 100 <= sum(losses.mark_cohorts(loss)) <= 250 * worker.store.keys.partitions
    assert losses.unfinished([APP]) == []
    assert all(worker.reasons(f"c{n:03}") == ["store_set_back"] for n in range(250))
    assert worker.counts("c000") == [1]


def test_one_node_of_a_cluster_loses_its_data__concerns_all_cohorts_of_the_app() -> None:
    partitions = 6
    with running_cluster(3) as cluster:
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{cluster.nodes[0].port}",
            store_cluster=True,
            store_partitions=partitions,
        )
        store = Store(connect(settings), partitions=partitions, tuning=TUNING)
        watch = StoreWatch(store, TUNING, MarksFile(None, "", "cohorts", partitions))
        users = [f"user{n}" for n in range(60)]
        for cohort in ("a", "b", "c"):
            say(store, f"Some: {cohort}", True, users)
        watch.work()
        node = cluster.master_of(store.keys.changes(APP, 0))
        with redis.Redis(port=node.port) as client:
            client.flushall()
        watch.work()
        (loss,) = store.losses.of([APP])
        assert loss.kind == "lost"
        found = store.completeness.of(APP, ["a", "b", "c"])
        assert [[open.reason for open in one.reasons] for one in found] == [["store_lost"]] * 3
