"""An import of members, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from app.auth.admin_actions import ResyncRefused
from app.auth.audit_trail import Operator
from app.auth.member_import import MemberImport
from app.cohorts import Cohort, MembershipChange, ResyncKind, ResyncRefusal, ResyncState
from app.store import ResyncPlace, Store
from app.store.losses import Loss, LossKind
from tests.integration.conftest import APP

OPERATOR = Operator("command", "ops")
COHORT = Cohort.from_trait("[Amplitude] Power users: abc123")
PLACE = ResyncPlace(APP, COHORT.id)


def say(store: Store, *user_ids: str) -> None:
    """Let users enter the cohort."""
    change = MembershipChange(COHORT, True, list(user_ids))
    store.memberships.apply(APP, [change], source="test")


def apply_one_of_two(importing: MemberImport) -> Iterator[None]:
    """Begin to apply a file with ann, but not bob; the rest of the steps."""
    importing.stage(["ann"])
    for _ in importing.compare():
        pass
    steps = importing.apply(force=True)
    next(steps)
    return steps


def test_apply__after_the_store_lost_data__is_refused_though_forced(store: Store) -> None:
    say(store, "ann", "bob")
    with MemberImport(store, OPERATOR, PLACE) as importing:
        importing.stage(["ann"])
        for _ in importing.compare():
            pass
        begun = store.resyncs.find(PLACE)
        assert begun is not None
        store.losses.spread(Loss(APP, LossKind.SET_BACK, begun.started_ms + 1, acknowledged=False))
        with pytest.raises(ResyncRefused) as caught:
            next(importing.apply(force=True))
    assert caught.value.reason is ResyncRefusal.STORE_LOST
    members, _ = store.lookups.members(APP, COHORT.id)
    assert {member.user_id for member in members} == {"ann", "bob"}
    assert store.audit_trail.all() == []


def test_apply__after_a_sync_named_all_users_of_the_file__is_not_refused(store: Store) -> None:
    say(store, "ann", "bob")
    with MemberImport(store, OPERATOR, PLACE) as importing:
        say(store, "ann", "bob")
        importing.stage(["ann", "bob"])
        for _ in importing.compare():
            pass
        for _ in importing.apply(force=False):
            pass
    assert importing.result() == (0, 0, 2, 0)


def test_apply__of_an_empty_file_while_a_sync_arrives__is_refused(store: Store) -> None:
    say(store, "ann", "bob")
    with MemberImport(store, OPERATOR, PLACE) as importing:
        say(store, "ann")
        importing.stage([])
        for _ in importing.compare():
            pass
        with pytest.raises(ResyncRefused) as caught:
            next(importing.apply(force=False))
    assert caught.value.reason is ResyncRefusal.EMPTY


@pytest.mark.parametrize("rest", [["user7", "user8"], []])
def test_import__during_which_a_failover_lost_some_of_the_file__is_refused(
    store: Store, store_url: str, rest: list[str]
) -> None:
    """Members whom the file named would leave."""
    users = [f"user{n}" for n in range(9)]
    say(store, *users)
    with redis.Redis.from_url(store_url) as client, MemberImport(store, OPERATOR, PLACE) as one:
        one.stage(users[:5])
        kept = {key: client.dump(key) for key in client.scan_iter()}
        one.stage(users[5:7])
        client.flushall()
        for key, value in kept.items():
            client.restore(key, 0, value)

        def complete() -> None:
            one.stage(rest)
            for _ in one.compare():
                pass
            next(one.apply(force=True))

        with pytest.raises(ResyncRefused) as caught:
            complete()
    assert caught.value.reason is ResyncRefusal.STORE_LOST
    members, _ = store.lookups.members(APP, COHORT.id)
    assert {member.user_id for member in members} == set(users)


@pytest.mark.parametrize("applying", [False, True])
def test_import__aborted_or_of_a_deleted_cohort__says_that_it_ended(
    store: Store, applying: bool
) -> None:
    say(store, "ann", "bob")
    with MemberImport(store, OPERATOR, PLACE) as importing:
        importing.stage(["ann"])
        begun = store.resyncs.find(PLACE)
        assert begun is not None
        if applying:
            for _ in importing.compare():
                pass
            assert store.resyncs.request_abort(PLACE, begun)
        else:
            list(store.jobs.delete_cohort(APP, COHORT.id))
        with pytest.raises(ResyncRefused) as caught:
            next(importing.apply(force=True)) if applying else importing.stage(["bob"])
    assert caught.value.reason is ResyncRefusal.ENDED


@pytest.mark.parametrize("successor", [False, True], ids=["deleted", "followed by another"])
def test_import__that_is_gone_while_it_is_applied__says_that_it_ended(
    store: Store, successor: bool
) -> None:
    say(store, "ann", "bob")
    with MemberImport(store, OPERATOR, PLACE) as importing:
        steps = apply_one_of_two(importing)
        list(store.jobs.delete_cohort(APP, COHORT.id))
        if successor:
            say(store, "ann", "bob")
            assert store.resyncs.open(PLACE, ResyncKind.RESYNC) is not None
        with pytest.raises(ResyncRefused) as caught:
            list(steps)
    assert caught.value.reason is ResyncRefusal.ENDED


def test_import__that_another_process_has_to_stop__says_that_it_ended(store: Store) -> None:
    say(store, "ann", "bob")
    with MemberImport(store, OPERATOR, PLACE) as importing:
        steps = apply_one_of_two(importing)
        begun = store.resyncs.find(PLACE)
        assert begun is not None
        assert store.resyncs._change(PLACE, begun.id, (begun.state,), ResyncState.ABORTING)
        with pytest.raises(ResyncRefused) as caught:
            list(steps)
    assert caught.value.reason is ResyncRefusal.ENDED
