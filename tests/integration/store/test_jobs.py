"""Deleting cohorts, erasing users, and what the registry tells."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from app.cohorts import Cohort, MembershipChange, Status
from app.server.background import Background
from app.settings import Settings
from app.store import Applied, Store, StoreError, Tuning, connect
from app.store.jobs import Job
from tests.integration.store_contents import Transition, members, traits, transitions
from tests.support.effort import PARTITIONS

APP = "shop"
ONE, TWO = "[Amplitude] one: 1", "[Amplitude] two: 2"
USERS = [f"u{n}" for n in range(20)]


@pytest.fixture(params=PARTITIONS)
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    return Store(connect(Settings(redis_url=store_url)), partitions=request.param)


def say(store: Store, trait: str, member: bool, *users: str, source: str = "test") -> Applied:
    change = MembershipChange(Cohort.from_trait(trait), member, list(users))
    return store.memberships.apply(APP, [change], source=source)


class TestRegistry:
    def test_record__of_a_cohort__tells_its_history(self, store: Store) -> None:
        before = time.time_ns() // 1_000_000
        say(store, ONE, True, *USERS, source="identify")
        say(store, ONE, False, *USERS[:5], source="list")
        say(store, ONE, True, *USERS, source="list")
        record = store.registry.find(APP, "1")
        assert record is not None
        assert (record.id, record.trait, record.status) == ("1", ONE, Status.ACTIVE)
        assert (record.members, record.entered, record.left) == (20, 25, 5)
        assert set(record.sources) == {"identify", "list"}
        assert before <= record.first_ms <= record.last_ms <= time.time_ns() // 1_000_000
        assert record.sources["identify"] <= record.sources["list"]

    def test_find__never_received__is_none(self, store: Store) -> None:
        assert store.registry.find(APP, "1") is None
        assert store.registry.trait(APP, "1") is None

    def test_page__of_many__goes_on_where_the_last_ended(self, store: Store) -> None:
        changes = [
            MembershipChange(Cohort.from_trait(f"n: {n:04}"), True, [f"u{n % 7}"])
            for n in range(250)
        ]
        store.memberships.apply(APP, changes, source="test")
        pages, after = [], ""
        while page := store.registry.page(APP, after=after, limit=100):
            pages.append([record.id for record in page])
            after = page[-1].id
        assert [len(page) for page in pages] == [100, 100, 50]
        assert [i for page in pages for i in page] == [f"{n:04}" for n in range(250)]
        assert len(list(store.registry.all(APP))) == 250


class TestDelete:
    def test_delete__takes_out_fields_and_memberships_and_nothing_else(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        say(store, ONE, False, *USERS[:5])
        say(store, TWO, True, *USERS[:2])
        assert sum(store.jobs.delete_cohort(APP, "1")) == 20
        assert traits(redis_client, APP) == {u: {TWO: "true"} for u in USERS[:2]}
        assert members(redis_client, APP) == {"2": set(USERS[:2])}
        assert store.registry.find(APP, "1") is None
        assert redis_client.keys("*cohort:1:*") == []
        assert store.jobs.pending() == []
        left = [t.user for t in transitions(redis_client, APP) if t[:2] == ("1", "left")]
        assert sorted(left) == sorted(USERS)

    def test_delete__its_changes__name_those_before_them(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        say(store, TWO, True, *USERS)
        assert sum(store.jobs.delete_cohort(APP, "1")) == 20
        say(store, TWO, False, *USERS)
        for stream in redis_client.scan_iter("*:changes"):
            entries = redis_client.xrange(stream)
            ids = ["0-0", *(entry_id for entry_id, _ in entries)]
            assert [fields["previous"] for _, fields in entries] == ids[:-1]

    def test_delete__in_the_background__resumes_and_ends(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *[f"user-{n}" for n in range(900)])
        assert store.jobs.begin_deletion(APP, "1")
        for job in store.jobs.pending():
            store.jobs.step(job)
        assert store.registry.find(APP, "1").status == Status.DELETING
        Background(store).work()
        Background(store).work()
        assert redis_client.keys("*user:*") == []
        assert store.registry.find(APP, "1") is None

    def test_push__while_it_drains__is_refused_and_starts_afresh_afterwards(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        store.jobs.begin_deletion(APP, "1")
        assert say(store, ONE, True, "new").refused == {"1"}
        assert not store.memberships.register_cohort(APP, Cohort.from_trait(ONE), source="list")
        Background(store).work()
        Background(store).work()
        assert say(store, ONE, True, "new").changed == 1
        record = store.registry.find(APP, "1")
        assert (record.members, record.entered, record.left) == (1, 1, 0)
        assert traits(redis_client, APP) == {"new": {ONE: "true"}}

    def test_push__to_a_partition_that_did_not_know_it__is_refused_too(
        self, store_url: str, redis_client: redis.Redis
    ) -> None:
        store = Store(connect(Settings(redis_url=store_url)), partitions=3)
        say(store, ONE, True, "u0")
        store.jobs.begin_deletion(APP, "1")
        refused = [say(store, ONE, True, user).refused for user in USERS]
        assert refused == [{"1"}] * len(USERS)
        Background(store).work()
        Background(store).work()
        assert redis_client.keys("*:cohort:1:state") == redis_client.keys("*:jobs") == []
        assert say(store, ONE, True, *USERS).changed == 20

    def test_delete__stopped_before_all_partitions_were_marked__is_finished_in_all(
        self, store_url: str, redis_client: redis.Redis
    ) -> None:
        store = Store(connect(Settings(redis_url=store_url)), partitions=3)
        say(store, ONE, True, *USERS)
        store.jobs.begin_deletion(APP, "1")
        for partition in (1, 2):
            redis_client.hdel(f"cohorts:{{{APP}:{partition}}}:cohort:1:state", "deleting")
            redis_client.delete(f"cohorts:{{{APP}:{partition}}}:jobs")
        for _ in range(3):
            Background(store).work()
        assert redis_client.keys("*user:*") == []
        assert store.registry.find(APP, "1") is None
        assert store.jobs.pending() == []

    def test_delete__mark_that_comes_after_the_end__takes_out_nobody(
        self, store_url: str, redis_client: redis.Redis
    ) -> None:
        store = Store(connect(Settings(redis_url=store_url)), partitions=3)
        say(store, ONE, True, *USERS)
        # a process that read that a deletion goes on, and was held up until it had ended
        for partition in (1, 2):
            base = f"cohorts:{{{APP}:{partition}}}:"
            redis_client.hset(f"{base}cohort:1:state", "deleting", "an earlier one")
            redis_client.sadd(f"{base}jobs", "1")
        Background(store).work()
        assert store.registry.find(APP, "1").members == 20
        assert store.registry.find(APP, "1").status == Status.ACTIVE
        assert store.jobs.pending() == []

    def test_delete__begun_while_another_process_ends_a_rename__keeps_its_job(
        self, store_url: str, redis_client: redis.Redis
    ) -> None:
        store = Store(connect(Settings(redis_url=store_url)))
        say(store, ONE, True, *USERS)
        store.jobs.begin_deletion(APP, "1")
        # what the other process does, which saw no deletion a moment before
        store.jobs._move(keys=[store.keys.changes(APP, 0)], args=["1", 200])
        assert store.jobs.pending() == [Job(APP, 0, "1")]

    def test_job__of_a_cohort_with_nothing_to_do__is_taken_off_the_list(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        jobs = store.keys.jobs(APP, store.keys.partition("1"))
        redis_client.sadd(jobs, "1")
        for job in store.jobs.pending():
            store.jobs.step(job)
        assert store.jobs.pending() == []

    def test_delete__of_a_cohort_being_renamed__takes_out_both_names(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        say(store, "[Amplitude] uno: 1", True, *USERS[:3])
        assert sum(store.jobs.delete_cohort(APP, "1")) == 20
        assert traits(redis_client, APP) == {}

    def test_delete__never_received__does_nothing(self, store: Store) -> None:
        assert list(store.jobs.delete_cohort(APP, "1")) == []
        assert not store.jobs.begin_deletion(APP, "1")


def test_store__that_lost_its_data__is_made_complete_again(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    partitions, alert = store.keys.partitions, Tuning(layout_check_seconds=0)
    store = Store(connect(Settings(redis_url=store_url)), partitions=partitions, tuning=alert)
    say(store, ONE, True, *USERS)
    redis_client.flushall()
    say(store, ONE, True, *USERS)
    assert store.apps() == [APP]
    assert store.jobs.begin_deletion(APP, "1")
    assert store.jobs.pending()


class TestErase:
    def test_erase__takes_out_hash_memberships_and_stream_entries(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        say(store, TWO, True, "u1")
        say(store, "no id", False, "u1")
        erased = store.erasure.erase(APP, "u1")
        assert (erased.traits, erased.stream_entries_removed) == (3, 1)
        assert erased.stream_entries_kept == 1
        assert set(traits(redis_client, APP)) == set(USERS) - {"u1"}
        assert "u1" not in members(redis_client, APP)["1"]
        assert Transition("2", "entered", "u1") not in transitions(redis_client, APP)
        for key in redis_client.scan_iter(match="*", _type="zset"):
            assert redis_client.zscore(key, "u1") is None
        record = store.registry.find(APP, "1")
        assert (record.members, record.entered - record.left) == (19, 19)

    def test_erase__of_a_user_whose_hash_was_lost__takes_out_the_memberships(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS)
        say(store, TWO, True, "u1")
        say(store, TWO, False, "u1")
        redis_client.delete(store.keys.user(APP, "u1"))
        assert store.erasure.erase(APP, "u1").traits == 2
        for key in redis_client.scan_iter(match="*", _type="zset"):
            assert redis_client.zscore(key, "u1") is None
        record = store.registry.find(APP, "1")
        assert (record.members, record.entered - record.left) == (19, 19)

    def test_erase__of_a_user_who_enters_meanwhile__leaves_what_is_new_whole(
        self, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        say(store, ONE, True, "u1")
        erase_orphans = store.erasure._erase_orphans

        def meanwhile(*args: Any) -> int:
            say(store, ONE, True, "u1")
            return erase_orphans(*args)

        monkeypatch.setattr(store.erasure, "_erase_orphans", meanwhile)
        store.erasure.erase(APP, "u1")
        assert members(redis_client, APP) == {"1": {"u1"}}
        assert traits(redis_client, APP)["u1"] == {ONE: "true"}
        assert store.checker.run([APP]).ok

    def test_erased__later_sync__takes_the_user_in_again(self, store: Store) -> None:
        say(store, ONE, True, "u1")
        store.erasure.erase(APP, "u1")
        assert say(store, ONE, True, "u1").changed == 1

    def test_erase__of_a_user_with_other_traits_by_now__looks_again(
        self, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        say(store, ONE, True, "u1")
        key = store.keys.user(APP, "u1")
        seen: list[list[bytes]] = []
        hgetall = store.erasure._client.hgetall

        def meanwhile(name: str) -> dict[bytes, bytes]:
            found = hgetall(name)
            if not seen:  # one trait goes and another comes, so that their number stays the same
                sum(store.jobs.delete_cohort(APP, "1"))
                say(store, TWO, True, "u1")
            seen.append([*found])
            return found

        monkeypatch.setattr(store.erasure._client, "hgetall", meanwhile)
        store.erasure.erase(APP, "u1")
        assert seen == [[ONE.encode()], [TWO.encode()]]
        assert redis_client.exists(key) == 0
        assert members(redis_client, APP) == {}

    def test_erase__of_a_user_with_very_many_traits__cut_short__is_completed_by_a_repeat(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changes = [
            MembershipChange(Cohort(f"{n}", f"n: {n}"), True, ["u1", "u2"]) for n in range(900)
        ]
        store.memberships.apply(APP, changes, source="test")
        erase, steps = store.erasure._erase, iter(range(2))

        def breaks_after_two(**call: Any) -> Any:
            if next(steps, None) is None:
                raise redis.ConnectionError
            return erase(**call)

        with monkeypatch.context() as patch:
            patch.setattr(store.erasure, "_erase", breaks_after_two)
            with pytest.raises(StoreError):
                store.erasure.erase(APP, "u1", suppress=True)
        left = len(store.lookups.user(APP, "u1").traits)
        assert 300 < left < 900
        # What is left agrees everywhere, and no sync brings back what is gone.
        assert say(store, "n: 1", True, "u1").suppressed == {"u1"}
        assert store.checker.run([APP]).ok
        assert store.erasure.erase(APP, "u1", suppress=True).traits == left
        assert store.lookups.user(APP, "u1").traits == {}
        assert len(store.lookups.user(APP, "u2").traits) == 900
        assert store.checker.run([APP]).ok

    def test_suppressed__later_sync__skips_the_user_and_says_so(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, "u1")
        store.erasure.erase(APP, "u1", suppress=True)
        applied = say(store, ONE, True, "u1", "u2")
        assert (applied.changed, applied.suppressed) == (1, {"u1"})
        assert set(traits(redis_client, APP)) == {"u2"}
        assert store.erasure.unsuppress(APP, "u1")
        assert not store.erasure.unsuppress(APP, "u1")
        assert say(store, ONE, True, "u1").changed == 1

    def test_erase__of_a_user_never_heard_of__does_nothing(self, store: Store) -> None:
        assert store.erasure.erase(APP, "nobody") == (0, 0, 0)
