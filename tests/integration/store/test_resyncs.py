"""A full sync, or a file, that replaces the membership of a cohort."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
import redis

from app.cohorts import (
    Cohort,
    CompletenessState,
    IncompleteReason,
    MembershipChange,
    Resync,
    ResyncKind,
    ResyncRefusal,
    ResyncState,
    VerifiedBy,
)
from app.settings import Settings
from app.store import (
    Applied,
    ConfirmedLost,
    FailedRequest,
    FileCounts,
    Partition,
    ResyncPlace,
    Store,
    connect,
)
from app.store.errors import StoreMisconfigured
from app.store.losses import Loss, LossKind
from app.store.resyncs import LOOKS_APART_MS
from tests.integration.killed_process import KilledError, killed_at
from tests.integration.store_contents import Transition, members, traits, transitions
from tests.support.effort import PARTITIONS
from tests.support.polling import wait_until
from tests.support.stores import running_store, socket_url, start_store, store_folder

APP = "shop"
TRAIT, OTHER = "[Amplitude] one: 1", "[Amplitude] two: 2"
PLACE = ResyncPlace(APP, "1")
USERS = [f"u{n}" for n in range(20)]


@pytest.fixture(params=PARTITIONS)
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    return Store(connect(Settings(redis_url=store_url)), partitions=request.param)


def say(
    store: Store, member: bool, *users: str, trait: str = TRAIT, at_ms: int | None = None
) -> Applied:
    change = MembershipChange(Cohort.from_trait(trait), member, list(users), at_ms)
    return store.memberships.apply(APP, [change], source="test")


def opened(store: Store, kind: ResyncKind = ResyncKind.RESYNC, quiet_ms: int | None = None) -> None:
    assert store.resyncs.open(PLACE, kind, quiet_ms=quiet_ms) is not None


def found(store: Store) -> Resync:
    resync = store.resyncs.find(PLACE)
    assert resync is not None
    return resync


def finish(store: Store, *, force: bool = False) -> ResyncRefusal | None:
    refused = store.resyncs.request_finish(PLACE, found(store), force=force)
    run(store)
    return refused


def refused(store: Store) -> ResyncRefusal | None:
    """Why an open resync did not finish."""
    resync = found(store)
    assert resync.state is ResyncState.OPEN
    return resync.refused


def run(store: Store) -> None:
    for _ in store.resyncs.steps(PLACE):
        pass


def leftovers(client: redis.Redis) -> list[str]:
    """What a resync keeps while it is open."""
    marks = [key for key in client.scan_iter(match="*:state") if client.hexists(key, "resync")]
    return (
        marks + list(client.scan_iter(match="*:confirmed*")) + list(client.scan_iter("*:resyncs"))
    )


def test_finish__removes_who_was_not_confirmed__as_real_transitions(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    say(store, True, *USERS, trait=OTHER)
    opened(store)
    say(store, True, *USERS[:15])
    say(store, False, "u0")
    say(store, True, "new")
    before = Counter(transitions(redis_client, APP))
    assert (found(store).confirmed, found(store).unconfirmed) == (15, 5)
    assert finish(store) is None
    stay = {*USERS[1:15], "new"}
    assert members(redis_client, APP) == {"1": stay, "2": set(USERS)}
    assert Counter(transitions(redis_client, APP)) - before == Counter(
        Transition("1", "left", user) for user in USERS[15:]
    )
    assert {u for u, t in traits(redis_client, APP).items() if t.get(TRAIT) == "true"} == stay
    assert traits(redis_client, APP)["u19"] == {TRAIT: "false", OTHER: "true"}
    record = store.registry.find(APP, "1")
    assert record is not None
    assert (record.entered, record.left) == (21, 6)
    done = found(store)
    assert (done.state, done.removed, done.members) == (ResyncState.FINISHED, 5, 15)
    assert leftovers(redis_client) == []


def test_finish__verifies_the_cohort__but_for_what_went_wrong_since(store: Store) -> None:
    say(store, True, *USERS)
    for reason in (IncompleteReason.STORE_LOST, IncompleteReason.SYNC_FAILED):
        store.completeness.raise_reason(APP, "1", reason)
    store.completeness.leave_out(APP, "1", {"invalid_user_id": 2, "unknown_user": 1})
    for failed in (IncompleteReason.SYNC_FAILED, None):
        time.sleep(0.002)  # times are in ms
        opened(store)
        say(store, True, *USERS)
        if failed:
            store.completeness.raise_reason(APP, "1", failed)
            store.completeness.leave_out(APP, "1", {"unknown_user": 3})
        finish(store)
        (completeness,) = store.completeness.of(APP, ["1"])
        assert completeness.verified_by == VerifiedBy.RESYNC
        assert [open.reason for open in completeness.reasons] == ([failed] if failed else [])
        assert completeness.left_out == ({"unknown_user": 3} if failed else {})
    assert completeness.state == CompletenessState.VERIFIED


def test_finish__by_a_process_that_was_suspended__verifies_nothing_after_another_has(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS)
    verify = store.completeness.verify

    def suspend(*args: Any) -> None:
        """Another process finishes, and a sync fails, which the next one makes good."""
        monkeypatch.undo()
        run(store)
        store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        store.completeness.clear_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        verify(*args)

    monkeypatch.setattr(store.completeness, "verify", suspend)
    finish(store)
    (completeness,) = store.completeness.of(APP, ["1"])
    assert completeness.state == CompletenessState.UNVERIFIED


def test_finish__where_only_registered_users_are_accepted__keeps_members_who_are_not(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    store.registered_users.add(APP, USERS[:15])
    opened(store)
    named = MembershipChange(Cohort("1", TRAIT), True, [*USERS[5:], "stranger"])
    applied = store.memberships.apply(APP, [named], source="test", known_only=True)
    assert applied.unknown == {"1": {"stranger"}}
    finish(store)
    assert members(redis_client, APP) == {"1": set(USERS[5:])}


def test_finish__of_a_finished_one__changes_nothing(store: Store) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS[:15])
    for _ in range(3):
        assert finish(store) is None
        assert (found(store).removed, found(store).members) == (5, 15)
        say(store, True, "later")  # a member is not removed by a repeat
        say(store, False, "later")


def test_open__while_one_is_open__is_refused(store: Store) -> None:
    say(store, True, *USERS)
    opened(store)
    for kind in ResyncKind:
        assert store.resyncs.open(PLACE, kind) is None
    assert store.resyncs.open(ResyncPlace(APP, "2"), ResyncKind.RESYNC) is not None
    say(store, True, *USERS)
    finish(store)
    opened(store)


@pytest.mark.parametrize(
    ("confirmed", "refused"),
    [(0, ResyncRefusal.EMPTY), (9, ResyncRefusal.SHRINKS), (10, None)],
)
def test_finish__if_most_would_leave__is_refused_unless_forced(
    store: Store, redis_client: redis.Redis, confirmed: int, refused: ResyncRefusal | None
) -> None:
    say(store, True, *USERS)
    opened(store)
    if confirmed:
        say(store, True, *USERS[:confirmed])
    assert finish(store) == refused
    if refused:
        assert members(redis_client, APP) == {"1": set(USERS)}
        assert found(store).state == ResyncState.OPEN
        assert finish(store, force=True) is None
    assert members(redis_client, APP).get("1", set()) == set(USERS[:confirmed])


def test_abort__is_as_if_it_had_never_been_opened(store: Store, redis_client: redis.Redis) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS[:3])
    assert store.resyncs.request_abort(PLACE, found(store))
    run(store)
    assert store.resyncs.find(PLACE) is None
    assert leftovers(redis_client) == []
    assert members(redis_client, APP) == {"1": set(USERS)}
    opened(store)
    assert found(store).confirmed == 0


def test_call__late_after_the_end__still_counts(store: Store, redis_client: redis.Redis) -> None:
    say(store, True, "a", "b", at_ms=1_000)
    say(store, True, *USERS, at_ms=1_000)
    opened(store)
    say(store, True, *USERS, at_ms=2_000)
    finish(store)
    assert members(redis_client, APP) == {"1": set(USERS)}
    say(store, True, "a", at_ms=2_000)  # computed before the resync was finished
    say(store, True, "b", at_ms=500)  # older than the last statement about the user
    assert members(redis_client, APP) == {"1": {*USERS, "a"}}


def test_user__who_enters_while_it_finishes__stays(store: Store, redis_client: redis.Redis) -> None:
    say(store, True, *(f"n{n}" for n in range(2000)))
    opened(store)
    say(store, True, *(f"n{n}" for n in range(1500)))
    store.resyncs.request_finish(PLACE, found(store), force=False)
    steps = store.resyncs.steps(PLACE)
    next(steps)
    still = sorted(members(redis_client, APP)["1"])
    late = [user for user in still if int(user[1:]) >= 1500][-3:]
    say(store, True, *late, "new")
    for _ in steps:
        pass
    assert members(redis_client, APP)["1"] == {*(f"n{n}" for n in range(1500)), *late, "new"}


def test_finish__killed_at_any_command__is_completed_by_another_process(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    for command in range(0, 60, 3):
        redis_client.flushall()
        say(store, True, *USERS)
        opened(store)
        say(store, True, *USERS[:12])
        client = connect(Settings(redis_url=store_url))
        killed = Store(client, partitions=store.keys.partitions)
        killed_at(client, command)
        try:
            finish(killed)
        except KilledError:
            finish(store)
        else:
            break
        assert members(redis_client, APP) == {"1": set(USERS[:12])}
        assert leftovers(redis_client) == []
        assert (found(store).state, found(store).members) == (ResyncState.FINISHED, 12)
    assert command > 3


def test_cohort__renamed_meanwhile__loses_all_names(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS[:12], trait="[Amplitude] uno: 1")
    finish(store)
    found_traits = traits(redis_client, APP)
    assert [found_traits[u] for u in USERS[12:]] == [{"[Amplitude] uno: 1": "false"}] * 8


def test_cohort__deleted_meanwhile__leaves_nothing(store: Store, redis_client: redis.Redis) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS[:12])
    for _ in store.jobs.delete_cohort(APP, "1"):
        pass
    assert store.resyncs.find(PLACE) is None
    assert leftovers(redis_client) == []
    run(store)


def test_user__erased_meanwhile__is_not_kept(store: Store, redis_client: redis.Redis) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS)
    store.erasure.erase(APP, "u3")
    kept = [redis_client.smembers(key) for key in redis_client.scan_iter(match="*:confirmed")]
    assert set().union(*kept) == set(USERS) - {"u3"}


def test_user__received_again_during_the_erasure__stays(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS)
    search = store.erasure._erase_orphans

    def received_again(*args: Any) -> int:
        say(store, True, "u3")
        return search(*args)

    monkeypatch.setattr(store.erasure, "_erase_orphans", received_again)
    store.erasure.erase(APP, "u3")
    assert finish(store) is None
    assert members(redis_client, APP)["1"] == set(USERS)


def make_due(client: redis.Redis) -> None:
    for key in client.scan_iter(match="*:resyncs"):
        client.zadd(key, {"1": 0})


@pytest.mark.parametrize("kind", [ResyncKind.RESYNC, ResyncKind.IMPORT])
def test_opening__completed_by_a_second_process_that_is_late__keeps_who_is_confirmed(
    store: Store, kind: ResyncKind
) -> None:
    """The background work looks at a resync at once, and may find that it is still opening."""
    complete, seen = store.resyncs._complete_opening, []

    def noted(place: ResyncPlace, opening: Resync) -> Resync:
        seen.append(opening)
        return complete(place, opening)

    say(store, True, *USERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.resyncs, "_complete_opening", noted)
        opened(store, kind)
    if kind is ResyncKind.IMPORT:
        store.resyncs.stage(PLACE, found(store), USERS)
    else:
        say(store, True, *USERS)
    complete(PLACE, *seen)
    assert (found(store).confirmed, found(store).unconfirmed) == (len(USERS), 0)


def test_opening__completed_after_the_resync_has_ended__leaves_no_marks(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    opened(store)
    ended = found(store)
    assert store.resyncs.request_abort(PLACE, ended)
    run(store)
    store.resyncs._complete_opening(PLACE, ended)
    assert leftovers(redis_client) == []


def test_abort__by_a_second_process_that_is_late__keeps_what_a_later_one_has(
    store: Store, redis_client: redis.Redis
) -> None:
    opened(store, ResyncKind.IMPORT)
    first = found(store)
    assert store.resyncs.request_abort(PLACE, first)
    run(store)
    opened(store, ResyncKind.IMPORT)
    store.resyncs.stage(PLACE, found(store), USERS)
    store.resyncs._abort(PLACE, first)
    store.memberships.register_cohort(APP, Cohort("1", TRAIT), source="")
    assert store.resyncs.request_apply(PLACE, found(store))
    run(store)
    assert members(redis_client, APP) == {"1": set(USERS)}


class TestDue:
    """What the background work does."""

    def make_due(self, store: Store, client: redis.Redis) -> None:
        make_due(client)
        assert store.resyncs.due(APP) == [PLACE]
        run(store)

    def test_open__is_looked_at_later(self, store: Store, redis_client: redis.Redis) -> None:
        say(store, True, *USERS)
        opened(store)
        assert store.resyncs.due(APP) == []
        self.make_due(store, redis_client)
        assert found(store).state == ResyncState.OPEN
        assert store.resyncs.due(APP) == []

    def test_quiet__after_a_sync__finishes(self, store: Store, redis_client: redis.Redis) -> None:
        say(store, True, *USERS)
        opened(store, quiet_ms=0)
        say(store, True, *USERS[:12])
        self.make_due(store, redis_client)
        assert found(store).state == ResyncState.OPEN
        self.make_due(store, redis_client)
        run(store)
        assert found(store).state == ResyncState.FINISHED
        assert members(redis_client, APP) == {"1": set(USERS[:12])}

    def test_quiet__after_a_request_that_failed_permanently__waits(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        """Members whom that request named would leave."""
        say(store, True, *USERS)
        store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        time.sleep(0.002)  # times are in ms
        opened(store, quiet_ms=0)
        say(store, True, *USERS[:12])
        store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        self.make_due(store, redis_client)
        # A later sync was without failures.
        store.completeness.clear_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        for _ in range(3):
            self.make_due(store, redis_client)
        assert refused(store) is ResyncRefusal.REQUESTS_FAILED
        assert finish(store) is None
        assert found(store).state == ResyncState.FINISHED

    def test_quiet__after_a_failure_from_before__finishes(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        """A failure is permanent only minutes later, when retries have stopped."""
        say(store, True, *USERS)
        opened(store, quiet_ms=0)
        say(store, True, *USERS[:12])
        store.completeness.add_failed(APP, "1", 1, found(store).started_ms - 1)
        for _ in range(2):
            self.make_due(store, redis_client)
        assert found(store).state == ResyncState.FINISHED
        (completeness,) = store.completeness.of(APP, ["1"])
        assert completeness.state is CompletenessState.VERIFIED

    @pytest.mark.parametrize("elapsed_ms", [LOOKS_APART_MS + 5_000, -3_600_000])
    def test_quiet__if_nobody_looked_meanwhile__waits(
        self, store: Store, redis_client: redis.Redis, elapsed_ms: int
    ) -> None:
        """The service was down and may have missed requests, or the clock has jumped."""
        say(store, True, *USERS)
        opened(store, quiet_ms=0)
        say(store, True, *USERS[:12])
        self.make_due(store, redis_client)
        (record,) = redis_client.scan_iter(match="*:resync")
        redis_client.hincrby(record, "looked_at", -elapsed_ms)
        for _ in range(3):
            self.make_due(store, redis_client)
        assert refused(store) is ResyncRefusal.REQUESTS_FAILED

    def test_open__when_the_clock_was_set_back__is_looked_at(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, True, *USERS)
        opened(store)
        for key in redis_client.scan_iter(match="*:resyncs"):
            redis_client.zincrby(key, 3_600_000, "1")
        assert store.resyncs.due(APP) == [PLACE]

    def test_quiet__while_a_failed_request_may_be_retried__waits(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, True, *USERS)
        opened(store, quiet_ms=0)
        say(store, True, *USERS[:12])
        request = FailedRequest("1", 7)
        store.failed_requests.add(APP, {request: found(store).started_ms + 1})
        for _ in range(3):
            self.make_due(store, redis_client)
        assert found(store).state == ResyncState.OPEN
        store.failed_requests.take(APP, [request])
        for _ in range(2):
            self.make_due(store, redis_client)
        assert found(store).state == ResyncState.FINISHED

    def test_quiet__at_an_earlier_look__counts_if_nothing_came_and_it_is_recent(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        """In between, a worker would notice that the store went back to a moment of silence."""
        say(store, True, *USERS)
        opened(store, quiet_ms=0)
        say(store, True, *USERS[:12])
        self.make_due(store, redis_client)
        (record,) = redis_client.scan_iter(match="*:resync")
        redis_client.hincrby(record, "quiet_at", -120_000)
        self.make_due(store, redis_client)
        assert found(store).state == ResyncState.OPEN
        time.sleep(0.01)
        store.freshness.call(APP, "received", ["1"])
        self.make_due(store, redis_client)
        assert found(store).state == ResyncState.OPEN
        self.make_due(store, redis_client)
        assert found(store).state == ResyncState.FINISHED

    def test_quiet__without_a_sync__waits(self, store: Store, redis_client: redis.Redis) -> None:
        say(store, True, *USERS)
        redis_client.eval(  # the cohort was received an hour ago
            "for _, key in ipairs(redis.call('KEYS', '*:freshness')) do "
            "redis.call('HINCRBY', key, 'last_received', -3600000) end",
            0,
        )
        opened(store, quiet_ms=0)
        self.make_due(store, redis_client)
        assert (found(store).state, found(store).refused) == (ResyncState.OPEN, None)

    def test_quiet__if_most_would_leave__waits_and_says_why(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, True, *USERS)
        opened(store, quiet_ms=0)
        say(store, True, "u0")
        self.make_due(store, redis_client)
        self.make_due(store, redis_client)
        assert refused(store) is ResyncRefusal.SHRINKS

    def test_open__forgotten_for_a_week__is_aborted(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, True, *USERS)
        opened(store)
        (record,) = redis_client.scan_iter(match="*:resync")
        redis_client.hset(record, "started", 0)
        self.make_due(store, redis_client)
        run(store)
        assert store.resyncs.find(PLACE) is None
        assert leftovers(redis_client) == []

    def test_import__that_stopped_midway__is_aborted(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, True, *USERS)
        opened(store, ResyncKind.IMPORT)
        store.resyncs.stage(PLACE, found(store), ["x", "y"])
        self.make_due(store, redis_client)
        run(store)
        assert store.resyncs.find(PLACE) is None
        assert leftovers(redis_client) == []
        assert members(redis_client, APP) == {"1": set(USERS)}


class TestFile:
    def stage(self, store: Store, *users: str) -> FileCounts:
        opened(store, ResyncKind.IMPORT)
        return self.count(store, *users)

    def count(self, store: Store, *users: str) -> FileCounts:
        store.resyncs.stage(PLACE, found(store), users)
        *_, counts = store.resyncs.count_file(PLACE, found(store))
        return counts

    def apply(self, store: Store) -> Resync:
        assert store.resyncs.request_apply(PLACE, found(store))
        run(store)
        return found(store)

    def test_file__replaces_the_members(self, store: Store, redis_client: redis.Redis) -> None:
        say(store, True, *USERS)
        counts = self.stage(store, *USERS[:12], "u1", "new", "newer")
        assert counts == FileCounts(added=2, removed=8, unchanged=12, members=20)
        assert members(redis_client, APP) == {"1": set(USERS)}
        done = self.apply(store)
        assert (done.added, done.removed, done.members) == (2, 8, 14)
        assert members(redis_client, APP) == {"1": {*USERS[:12], "new", "newer"}}
        assert traits(redis_client, APP)["new"] == {TRAIT: "true"}
        assert leftovers(redis_client) == []

    def test_comparison__that_takes_long__keeps_the_import_open(
        self, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        say(store, True, *USERS)
        opened(store, ResyncKind.IMPORT)
        store.resyncs.stage(PLACE, found(store), USERS)
        make_due(redis_client)
        monkeypatch.setattr("app.store.resyncs._RENEW_SECONDS", 0)
        for _ in store.resyncs.count_file(PLACE, found(store)):
            pass
        assert store.resyncs.due(APP) == []

    def test_count__of_members_whom_calls_named_before_the_file__is_that_of_the_file(
        self, store: Store
    ) -> None:
        say(store, True, *USERS[:5])
        opened(store, ResyncKind.IMPORT)
        say(store, True, *USERS[:10])
        counts = self.count(store, *USERS[:8], "new")
        assert counts == FileCounts(added=1, removed=0, unchanged=10, members=10)

    def test_count__of_a_cohort_that_arrives_during_the_import__removes_nobody(
        self, store: Store
    ) -> None:
        opened(store, ResyncKind.IMPORT)
        say(store, True, *USERS)
        counts = self.count(store, "u0", "new")
        assert counts == FileCounts(added=1, removed=0, unchanged=20, members=20)
        assert self.apply(store).removed == 0

    @pytest.mark.parametrize("between", ["users read", "steps"])
    def test_import__of_a_process_that_was_suspended_until_a_later_one__adds_nobody_of_either(
        self, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, between: str
    ) -> None:
        say(store, True, "u0")
        self.stage(store, *USERS)
        assert store.resyncs.request_apply(PLACE, found(store))

        def go_on() -> None:
            """Another process completes the import, and a later one has begun."""
            monkeypatch.undo()
            run(store)
            assert members(redis_client, APP) == {"1": set(USERS)}
            self.stage(store, "u0", "new")
            assert store.resyncs.request_apply(PLACE, found(store))
            run(store)
            self.stage(store, "u0", "newer")

        suspended = store.resyncs.steps(PLACE)
        if between == "steps":
            next(suspended)
            go_on()
        else:
            enter = store.memberships.enter

            def suspend(*args: Any, **kwargs: Any) -> Applied:
                go_on()
                return enter(*args, **kwargs)

            monkeypatch.setattr(store.memberships, "enter", suspend)
        list(suspended)
        assert members(redis_client, APP) == {"1": {"u0", "new"}}
        assert found(store).state == ResyncState.OPEN

    def test_users__who_change_during_the_import__are_not_undone(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, True, *USERS)
        self.stage(store, *USERS[:12])
        say(store, False, "u3")
        say(store, True, "came")
        self.apply(store)
        assert members(redis_client, APP) == {"1": {*USERS[:12], "came"} - {"u3"}}

    def test_import__ended_by_another_process__does_not_verify_the_cohort(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        """Two processes may apply the same import, and one may find that it cannot go on."""
        say(store, True, *USERS)
        self.stage(store, *USERS[:12])
        assert store.resyncs.request_apply(PLACE, found(store))
        steps = store.resyncs.steps(PLACE)
        while found(store).state is not ResyncState.FINISHING:
            next(steps)
        store.resyncs._stop(PLACE, found(store))
        list(steps)
        (completeness,) = store.completeness.of(APP, ["1"])
        assert completeness.state is CompletenessState.UNVERIFIED
        assert leftovers(redis_client) == []

    def test_call__of_an_earlier_time_that_arrives_after_the_import__counts_for_members(
        self, store: Store, redis_client: redis.Redis
    ) -> None:
        """The file may be older than the call, and Amplitude does not repeat it."""
        say(store, True, *USERS, at_ms=1000)
        earlier_ms = time.time_ns() // 1_000_000 - 1000
        self.stage(store, *USERS)
        self.apply(store)
        say(store, False, "u3", at_ms=earlier_ms)
        assert members(redis_client, APP) == {"1": set(USERS) - {"u3"}}

    def test_apply__killed_at_any_command__is_completed_by_another_process(
        self, store: Store, store_url: str, redis_client: redis.Redis
    ) -> None:
        for command in range(0, 60, 3):
            redis_client.flushall()
            say(store, True, *USERS)
            self.stage(store, *USERS[5:], "new")
            client = connect(Settings(redis_url=store_url))
            killed = Store(client, partitions=store.keys.partitions)
            killed_at(client, command)
            try:
                self.apply(killed)
            except KilledError:
                if found(store).state == ResyncState.OPEN:
                    continue  # nothing had been applied yet
                run(store)
            else:
                break
            assert members(redis_client, APP) == {"1": {*USERS[5:], "new"}}
            assert leftovers(redis_client) == []
        assert command > 3


def test_open__in_a_store_that_permits_no_info__is_refused() -> None:
    """It could begin, but neither finish nor be aborted then."""
    with running_store() as url, redis.Redis.from_url(url) as admin:
        admin.acl_setuser("me", enabled=True, nopass=True, keys="*", commands=["+@all", "-info"])
        address = url.replace("unix://", "unix://me:any@")
        store = Store(connect(Settings(redis_url=address)))
        say(store, True, *USERS)
        for kind in ResyncKind:
            with pytest.raises(StoreMisconfigured):
                store.resyncs.open(PLACE, kind)
        assert store.resyncs.find(PLACE) is None


def test_import__while_the_store_restarts__adds_everybody() -> None:
    """Another server process lists a set in another order."""
    users = [f"u{n}" for n in range(5000)]
    with store_folder() as folder:
        for_restart = ("--appendonly", "yes")
        server = start_store(folder, *for_restart)
        try:
            store = Store(connect(Settings(redis_url=socket_url(folder))), known_only=True)
            store.registered_users.add(APP, users[:3000])
            say(store, True, "u0")
            opened(store, ResyncKind.IMPORT)
            store.resyncs.stage(PLACE, found(store), users)
            assert store.resyncs.request_apply(PLACE, found(store))
            steps = store.resyncs.steps(PLACE)
            next(steps)
            next(steps)
            server.terminate()
            server.wait(30)
            server = start_store(folder, *for_restart)
            list(steps)
            done = found(store)
            assert (done.added, done.members, done.unknown) == (2999, 3000, 2000)
        finally:
            server.terminate()
            server.wait(30)


def test_removal__given_up_after_each_step__goes_on_where_it_was(
    store: Store, redis_client: redis.Redis
) -> None:
    everybody = [f"u{n}" for n in range(9_000)]
    for start in range(0, len(everybody), 1_000):
        say(store, True, *everybody[start : start + 1_000])
    opened(store)
    say(store, True, *everybody[:5_000:5])
    assert store.resyncs.request_finish(PLACE, found(store), force=True) is None
    calls = 0
    while not found(store).is_finished:
        steps = store.resyncs.steps(PLACE)
        next(steps, None)
        steps.close()
        calls += 1
        assert calls < 40
    assert members(redis_client, APP)["1"] == set(everybody[:5_000:5])
    assert found(store).removed == 8_000


def lose(store: Store, client: redis.Redis, partition: int) -> None:
    """Let a partition go back to what it was before anybody was confirmed, and be found out."""
    place = Partition(APP, partition)
    found, mark = store.losses.compare(place, None, None, "observer", advance=True)
    assert (found, mark is not None) == (None, True)
    client.unlink(store.keys.cohort(APP, partition, "1", "confirmed"))
    client.hset(f"{store.keys.base(APP, partition)}mark", "position", 0)
    found, _ = store.losses.compare(place, mark, None, "observer", advance=True)
    assert found is LossKind.SET_BACK
    (loss,) = store.losses.of([APP])
    for _ in store.losses.mark_cohorts(loss):
        pass


def pass_time(client: redis.Redis, hours: float) -> None:
    """Let keys expire as if nobody had worked on the store for so long."""
    for key in client.scan_iter():
        if 0 <= client.pttl(key) <= hours * 3600 * 1000:
            client.delete(key)


@pytest.mark.parametrize("kind", [ResyncKind.RESYNC, ResyncKind.IMPORT])
@pytest.mark.parametrize(("hours", "all_stay"), [(6 * 24, False), (8 * 24, True)])
def test_process__killed_before_the_first_step__removes_nobody_once_what_was_confirmed_has_expired(
    store: Store, redis_client: redis.Redis, kind: ResyncKind, hours: float, all_stay: bool
) -> None:
    say(store, True, *USERS)
    opened(store, kind)
    if kind is ResyncKind.IMPORT:
        store.resyncs.stage(PLACE, found(store), [*USERS[:15], "new"])
        assert store.resyncs.request_apply(PLACE, found(store))
    else:
        say(store, True, *USERS[:15], "new")
        assert store.resyncs.request_finish(PLACE, found(store), force=True) is None
    pass_time(redis_client, hours)
    run(store)
    stay = {*USERS, "new"} if kind is ResyncKind.RESYNC else set(USERS)
    assert members(redis_client, APP)["1"] == (stay if all_stay else {*USERS[:15], "new"})
    (completeness,) = store.completeness.of(APP, ["1"])
    assert (completeness.state is CompletenessState.VERIFIED) != all_stay
    if all_stay and kind is ResyncKind.RESYNC:
        assert found(store).refused is ResyncRefusal.STORE_LOST
    else:
        assert leftovers(redis_client) == []


def test_upload__after_its_first_users_have_expired__is_refused(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    opened(store, ResyncKind.IMPORT)
    store.resyncs.stage(PLACE, found(store), USERS)
    pass_time(redis_client, 8 * 24)
    with pytest.raises(ConfirmedLost):
        store.resyncs.stage(PLACE, found(store), USERS)
    assert store.resyncs.request_abort(PLACE, found(store))
    run(store)
    assert leftovers(redis_client) == []


@pytest.mark.parametrize("force", [False, True])
def test_finish__after_the_store_was_set_back__is_refused_and_nobody_leaves(
    store: Store, redis_client: redis.Redis, force: bool
) -> None:
    say(store, True, *USERS)
    opened(store, quiet_ms=1)
    say(store, True, *USERS)
    lose(store, redis_client, 0)
    assert finish(store, force=force) is ResyncRefusal.STORE_LOST

    say(store, True, "u0")

    def is_refused() -> bool:  # it would finish by itself
        run(store)
        return found(store).refused is ResyncRefusal.STORE_LOST

    wait_until(is_refused)
    assert found(store).state is ResyncState.OPEN
    assert members(redis_client, APP)["1"] == set(USERS)
    assert store.resyncs.request_abort(PLACE, found(store))
    run(store)
    assert leftovers(redis_client) == []
    opened(store)
    say(store, True, *USERS[1:])
    assert finish(store) is None
    assert members(redis_client, APP)["1"] == set(USERS[1:])


@pytest.mark.parametrize("kind", [ResyncKind.RESYNC, ResyncKind.IMPORT])
def test_removal__when_the_store_is_set_back_meanwhile__stops(
    store: Store, redis_client: redis.Redis, kind: ResyncKind
) -> None:
    say(store, True, *USERS)
    opened(store, kind)
    store.resyncs.stage(PLACE, found(store), USERS)
    if kind is ResyncKind.IMPORT:
        assert store.resyncs.request_apply(PLACE, found(store))
    else:
        assert store.resyncs.request_finish(PLACE, found(store), force=False) is None
    steps = store.resyncs.steps(PLACE)
    next(steps)
    for partition in range(store.keys.partitions):
        lose(store, redis_client, partition)
    for _ in steps:
        pass
    assert members(redis_client, APP)["1"] == set(USERS)
    if kind is ResyncKind.IMPORT:
        assert store.resyncs.find(PLACE) is None
        assert leftovers(redis_client) == []
    else:
        assert found(store).refused is ResyncRefusal.STORE_LOST


def test_removal__asked_for_before_a_loss_and_carried_out_after_it__removes_nobody(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    opened(store)
    assert store.resyncs.request_finish(PLACE, found(store), force=True) is None
    by_partition = store.keys.by_partition(USERS)
    for partition, users in by_partition.items():
        lose(store, redis_client, partition)
        removed = store.memberships.remove_unconfirmed(*PLACE, partition, found(store).id, users)
        assert removed == 0
    assert members(redis_client, APP)["1"] == set(USERS)


def test_loss__before_the_end_and_noted_after_it__leaves_the_cohort_incomplete(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS)
    started = found(store).started_ms
    assert finish(store) is None
    (before,) = store.completeness.of(APP, ["1"])
    assert before.state is CompletenessState.VERIFIED
    store.losses.spread(Loss(APP, LossKind.LOST, started, acknowledged=False))
    (loss,) = store.losses.of([APP])
    for _ in store.losses.mark_cohorts(loss):
        pass
    (after,) = store.completeness.of(APP, ["1"])
    assert {open.reason for open in after.reasons} == {IncompleteReason.STORE_LOST}
