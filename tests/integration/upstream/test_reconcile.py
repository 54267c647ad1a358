"""Reconciling a cohort with an export from Amplitude."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask

from app.auth.audit_trail import COMMAND, Operator
from app.cohorts import CompletenessState, IncompleteReason, ResyncKind, VerifiedBy
from app.services import services
from app.settings import AmplitudeKeys
from app.store import FailedRequest, Loss, LossKind, ResyncPlace, Tuning
from app.store.upstream import RECONCILE
from app.upstream import errors
from app.upstream.reconcile import Order, Reconciler, Report
from simulator.upstream import ALWAYS, SyncInfo, Upstream
from tests.integration.clock import Clock
from tests.integration.conftest import APP
from tests.integration.upstream.conftest import MakeClient
from tests.integration.upstream.here import Here
from tests.support.service import ROOT

OPERATOR = Operator(COMMAND, "somebody")
LOST = IncompleteReason.STORE_LOST


def reconcile(here: Here, **order: Any) -> Report:
    return here.parts.reconciler.run(Order(OPERATOR, APP, "a1", **order))


def members(here: Here) -> set[str]:
    pages = here.parts.store.lookups.all_members(APP, "a1")
    return {member.user_id for page in pages for member in page}


def test_reconcile__of_a_cohort_that_is_equal__verifies_it(here: Here) -> None:
    here.send("a1", 3)
    here.parts.store.completeness.raise_reason(APP, "a1", LOST)
    here.serve("a1", user_ids=["user0", "user1", "user2"], anonymous=2)
    report = reconcile(here)
    assert (report.state, report.missing, report.extra, report.members) == ("done", 0, 0, 3)
    assert (report.size, report.rows, report.anonymous) == (5, 5, 2)
    found = here.completeness("a1")
    assert (found.state, found.verified_by) == (CompletenessState.VERIFIED, VerifiedBy.RECONCILE)
    assert found.upstream
    assert (found.upstream.size, found.upstream.anonymous) == (5, 2)


def test_reconcile__of_a_cohort_that_differs__names_who_and_changes_nothing(here: Here) -> None:
    here.send("a1", ["both", "stale"])
    here.parts.store.completeness.raise_reason(APP, "a1", LOST)
    here.serve("a1", user_ids=["both", "lost1", "lost2"])
    report = reconcile(here)
    assert (report.state, report.missing, report.extra) == ("done", 2, 1)
    assert (sorted(report.missing_ids), report.extra_ids) == (["lost1", "lost2"], ["stale"])
    assert members(here) == {"both", "stale"}
    assert here.reasons("a1") == {LOST}


def test_reconcile__applied__replaces_the_members_as_real_transitions(
    here: Here, redis_client: redis.Redis
) -> None:
    here.send("a1", ["both", "stale"])
    here.parts.store.completeness.raise_reason(APP, "a1", LOST)
    here.serve("a1", user_ids=["both", "lost1", "lost2"], anonymous=1)
    before = redis_client.xlen(f"cohorts:{{{APP}}}:changes")
    report = reconcile(here, apply=True)
    assert (report.state, report.added, report.removed) == ("done", 2, 1)
    assert members(here) == {"both", "lost1", "lost2"}
    entries = redis_client.xrange(f"cohorts:{{{APP}}}:changes")[before:]
    assert len(entries) == 2
    found = here.completeness("a1")
    assert (found.state, found.verified_by) == (CompletenessState.VERIFIED, VerifiedBy.RECONCILE)
    assert here.reasons("a1") == set()
    report = reconcile(here)
    assert (report.missing, report.extra) == (0, 0)


def test_reconcile__with_a_sync_after_the_export_began__keeps_what_the_sync_says(
    here: Here,
) -> None:
    """The file is older: who left since must stay out, and who entered must stay."""
    here.send("a1", ["stays", "leaves"])
    here.serve("a1", user_ids=["stays", "leaves", "lost"])
    begin_export = here.server.begin_export

    def begin(*args: Any) -> Any:
        found = begin_export(*args)
        here.send("a1", ["leaves"], member=False)
        here.send("a1", ["enters"])
        return found

    here.server.begin_export = begin  # type: ignore[method-assign]
    report = reconcile(here, apply=True)
    assert report.state == "done"
    assert members(here) == {"stays", "lost", "enters"}


def test_reconcile__during_which_a_sync_arrives__says_so_and_does_not_verify(here: Here) -> None:
    here.send("a1", ["user0"])
    here.serve("a1", user_ids=["user0", "user1"])
    begin_export = here.server.begin_export

    def begin(*args: Any) -> Any:
        found = begin_export(*args)
        here.parts.store.freshness.call(APP, "received", ["a1"])
        here.send("a1", ["user1"])
        return found

    here.server.begin_export = begin  # type: ignore[method-assign]
    report = reconcile(here)
    assert (report.missing, report.extra, report.sync_arrived) == (0, 0, True)
    assert here.completeness("a1").state is CompletenessState.UNVERIFIED


def test_reconcile__during_which_a_loss_is_found__does_not_hide_it(here: Here) -> None:
    """Cohorts are marked after a loss was found, which may take a while."""
    here.send("a1", ["user0"])
    here.serve("a1", user_ids=["user0"])
    begin_export, store = here.server.begin_export, here.parts.store
    losses = []

    def begin(*args: Any) -> Any:
        losses.append(Loss(APP, LossKind.SET_BACK, int(store.now() * 1000), False))
        store.losses.spread(losses[0])
        return begin_export(*args)

    here.server.begin_export = begin  # type: ignore[method-assign]
    assert reconcile(here).is_equal
    for _ in store.losses.mark_cohorts(losses[0]):
        pass
    assert here.reasons("a1") == {IncompleteReason.STORE_SET_BACK}


def test_reconcile__by_a_process_whose_clock_is_ahead__does_not_forget_what_failed_meanwhile(
    make_here: Callable[..., Here],
) -> None:
    clock = Clock()
    here = make_here(Tuning(now=clock))
    clock.forward(600)
    here.send("a1", ["user0"])
    here.serve("a1", user_ids=["user0"])
    begin_export, store = here.server.begin_export, here.parts.store
    failed = FailedRequest("a1", 7)

    def begin(*args: Any) -> Any:
        store.failed_requests.add(APP, {failed: int(store.now() * 1000)})
        return begin_export(*args)

    here.server.begin_export = begin  # type: ignore[method-assign]
    assert reconcile(here).is_equal
    assert list(store.failed_requests.all(APP)) == [failed]


def test_reconcile__during_which_something_goes_wrong__does_not_clear_that(here: Here) -> None:
    here.send("a1", ["user0"])
    here.serve("a1", user_ids=["user0"])
    begin_export = here.server.begin_export

    def begin(*args: Any) -> Any:
        here.parts.store.completeness.raise_reason(APP, "a1", LOST)
        return begin_export(*args)

    here.server.begin_export = begin  # type: ignore[method-assign]
    assert reconcile(here).missing == 0
    assert here.reasons("a1") == {LOST}


def test_reconcile__that_waits_long_for_the_export__keeps_its_import_open(
    here: Here, make_client: MakeClient, redis_client: redis.Redis
) -> None:
    here.send("a1", ["user0"])
    here.serve("a1", user_ids=["user0", "user1"])
    here.server.job_seconds = 0.5
    due = f"cohorts:{{{APP}}}:resyncs"
    begin_export = here.server.begin_export

    def begin(*args: Any) -> Any:
        redis_client.zadd(due, {"a1": 1})  # as if no step had been taken for minutes
        return begin_export(*args)

    here.server.begin_export = begin  # type: ignore[method-assign]
    scores: list[float] = []
    pause = time.sleep

    def sleep(seconds: float) -> None:
        pause(seconds)
        scores.append(redis_client.zscore(due, "a1") or 0)

    reconciler = Reconciler(
        here.parts.store,
        {APP: make_client(sleep=sleep, export_seconds=5)},
        exports_most=9,
        known_only=False,
        tuning=Tuning(),
        keep_seconds=0.05,
    )
    assert reconciler.run(Order(OPERATOR, APP, "a1", apply=True)).state == "done"
    assert scores[-1] > time.time() * 1000
    assert members(here) == {"user0", "user1"}


def test_reconcile__after_one_whose_process_was_killed__begins_anew(here: Here) -> None:
    here.send("a1", ["user0"])
    here.serve("a1", user_ids=["user0", "user1"])
    assert here.parts.store.resyncs.open(ResyncPlace(APP, "a1"), ResyncKind.RECONCILE)
    assert reconcile(here, apply=True).state == "done"
    assert members(here) == {"user0", "user1"}


def test_reconcile__that_would_remove_most__is_refused_unless_forced(here: Here) -> None:
    here.send("a1", 9)
    here.serve("a1", user_ids=["user0", "user1"])
    report = reconcile(here, apply=True)
    assert (report.state, report.reason) == ("refused", "resync_shrinks")
    assert len(members(here)) == 9
    assert here.parts.store.resyncs.find(ResyncPlace(APP, "a1")) is None
    assert reconcile(here, apply=True, force=True).state == "done"
    assert members(here) == {"user0", "user1"}


def test_reconcile__with_an_empty_export__is_refused(here: Here) -> None:
    here.send("a1", 3)
    here.serve("a1", user_ids=[], anonymous=3)
    report = reconcile(here, apply=True)
    assert (report.state, report.reason) == ("refused", "resync_empty")
    assert len(members(here)) == 3


def test_reconcile__suppressed_users__are_not_missing(here: Here) -> None:
    here.send("a1", ["user0", "erased"])
    here.parts.store.erasure.erase(APP, "erased", suppress=True)
    here.serve("a1", user_ids=["user0", "erased"], anonymous=1)
    report = reconcile(here)
    assert (report.missing, report.suppressed, report.missing_ids) == (0, 1, [])
    assert here.completeness("a1").state is CompletenessState.VERIFIED
    # The next count is compared without them.
    here.poll()
    here.poll()
    assert here.completeness("a1").state is CompletenessState.VERIFIED
    assert reconcile(here, apply=True).added == 0


@pytest.mark.parametrize("apply", [False, True])
def test_reconcile__with_users_who_are_listed_twice__does_not_let_the_counts_differ(
    apply: bool, here: Here
) -> None:
    """Amplitude counts each of them."""
    here.send("a1", 50)
    users = [f"user{n}" for n in range(50)]
    here.serve("a1", user_ids=[*users, *users[:5]], anonymous=3, syncs=[SyncInfo()])
    report = reconcile(here, apply=apply)
    assert (report.missing, report.extra) == (0, 0)
    for _ in range(3):
        here.poll()
    assert here.reasons("a1") == set()


def test_reconcile__with_known_users_only__does_not_miss_the_others(
    make_here: Callable[..., Here],
) -> None:
    here = make_here(user_policy="known")
    here.parts.store.registered_users.add(APP, ["known", "lost"])
    here.send("a1", ["known"])
    here.serve("a1", user_ids=["known", "lost", "stranger"])
    report = reconcile(here)
    assert (report.missing_ids, report.unregistered) == (["lost"], 1)
    reconcile(here, apply=True)
    assert members(here) == {"known", "lost"}


def test_reconcile__by_another_property__compares_its_values(here: Here) -> None:
    here.send("a1", ["email:ann", "email:bob"])
    here.serve("a1", user_ids=["ann", "bob"], anonymous=1)
    report = reconcile(here, column="email")
    assert (report.missing, report.extra, report.anonymous) == (0, 0, 1)


def test_reconcile__with_several_partitions__applies_to_all(
    make_here: Callable[..., Here],
) -> None:
    here = make_here(store_partitions=4)
    here.send("a1", 1000)
    here.serve("a1", user_ids=[f"user{n}" for n in range(500, 1500)], anonymous=5)
    report = reconcile(here, apply=True)
    assert (report.missing, report.extra) == (500, 500)
    assert (report.added, report.removed) == (500, 500)
    assert members(here) == {f"user{n}" for n in range(500, 1500)}


def test_reconcile__of_many_differences__reports_some_ids_and_passes_on_all(here: Here) -> None:
    here.send("a1", 300)
    here.serve("a1", user_ids=[f"new{n}" for n in range(400)])
    missing: list[str] = []
    extra: list[str] = []

    def on_ids(absent: Any, more: Any) -> None:
        missing.extend(absent)
        extra.extend(more)

    report = here.parts.reconciler.run(Order(OPERATOR, APP, "a1"), on_ids=on_ids)
    assert (len(set(missing)), len(set(extra))) == (400, 300)
    assert (len(report.missing_ids), len(report.extra_ids)) == (100, 100)


def test_reconcile__whose_ids_nobody_reads__is_not_blamed_on_the_disk(here: Here) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["new"])

    def on_ids(*_: Any) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        here.parts.reconciler.run(Order(OPERATOR, APP, "a1"), on_ids=on_ids)
    report = here.parts.reconciler.report(APP, "a1")
    assert report is not None
    assert report.reason == "reconcile_interrupted"


def test_reconcile__that_its_operator_interrupts__is_no_internal_error(here: Here) -> None:
    def interrupt(stage: str) -> None:
        if stage == "Comparing":
            raise KeyboardInterrupt

    here.send("a1", 3)
    here.serve("a1", user_ids=["user0"])
    with pytest.raises(KeyboardInterrupt):
        here.parts.reconciler.run(Order(OPERATOR, APP, "a1", apply=True), progress=interrupt)
    report = here.parts.reconciler.report(APP, "a1")
    assert report is not None
    assert (report.state, report.reason) == ("interrupted", "reconcile_interrupted")
    assert here.parts.store.resyncs.find(ResyncPlace(APP, "a1")) is None
    assert len(members(here)) == 3


# The export budget


def test_budget__is_counted_and_ends(make_here: Callable[..., Here]) -> None:
    here = make_here(amplitude_exports_per_month=2)
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    assert [reconcile(here).exports for _ in range(2)] == [1, 2]
    report = reconcile(here)
    assert (report.state, report.reason) == ("failed", "export_budget_spent")
    assert (report.exports, report.exports_most, here.server.exports) == (2, 2, 2)
    with pytest.raises(errors.ExportBudgetSpent):
        here.parts.reconciler.begin(Order(OPERATOR, APP, "a1"))


def test_budget__of_amplitude__is_respected(here: Here) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    here.server.max_exports = here.server.exports = 500
    report = reconcile(here)
    assert (report.state, report.reason) == ("failed", "export_budget_spent")
    assert (report.amplitude_exports, report.amplitude_most) == (500, 500)
    assert here.parts.store.upstream.exports(APP) == 0


def test_budget__of_an_export_that_fails__is_spent(here: Here) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    here.server.faults["failed"] = ALWAYS
    assert reconcile(here).reason == "upstream_export_failed"
    assert here.parts.store.upstream.exports(APP) == 1


def test_budget__in_the_next_month__is_new(
    here: Here, redis_client: redis.Redis, make_app: Callable[..., Flask]
) -> None:
    key = here.parts.store.keys.upstream_exports(APP)
    redis_client.hset(key, "2000-01", 100)
    assert here.parts.store.upstream.exports(APP) == 0
    assert here.parts.store.upstream.spend_export(APP, 100)
    assert list(redis_client.hvals(key)) == ["1"]
    assert redis_client.ttl(key) > 0


# Failures


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("forbidden", "upstream_forbidden"),
        ("malformed", "upstream_bad_reply"),
        ("failed", "upstream_export_failed"),
        ("cut", "upstream_file_invalid"),
    ],
)
def test_reconcile__that_fails__changes_nothing(fault: str, reason: str, here: Here) -> None:
    here.send("a1", 3)
    here.serve("a1", user_ids=["user0", "user9"])
    here.server.faults[fault] = ALWAYS
    report = reconcile(here, apply=True)
    assert (report.state, report.reason) == ("failed", reason)
    assert report.detail
    assert members(here) == {"user0", "user1", "user2"}
    # Nothing is left open.
    assert here.parts.store.resyncs.find(ResyncPlace(APP, "a1")) is None
    assert not here.parts.store.upstream.is_leased(APP, RECONCILE)
    here.server.faults.clear()
    assert reconcile(here, apply=True, force=True).state == "done"


def test_reconcile__of_a_file_without_its_end__is_refused(here: Here) -> None:
    """A file may end at the end of a row: only Amplitude's own count shows that."""
    here.send("a1", 100)
    here.serve("a1", user_ids=[f"user{n}" for n in range(70)], size=100)
    report = reconcile(here, apply=True)
    assert (report.state, report.reason) == ("failed", "upstream_file_incomplete")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": 2_000_001}, "upstream_too_large"),
        ({"discoverable": False}, "upstream_not_listed"),
    ],
)
def test_reconcile__that_amplitude_would_refuse__costs_no_export(
    changes: dict[str, Any], reason: str, here: Here
) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"], **changes)
    assert reconcile(here).reason == reason
    assert here.parts.store.upstream.exports(APP) == 0
    assert not [path for path in here.server.requests if "/request/" in path]


def test_reconcile__with_a_full_disk__says_so(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    assert reconcile(here).reason == "no_disk_space"


def test_reconcile__beside_another__is_refused(here: Here) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    with here.parts.store.upstream.lease(APP, RECONCILE):
        with pytest.raises(errors.ReconcileRunning):
            reconcile(here)
        with pytest.raises(errors.ReconcileRunning):
            here.parts.reconciler.begin(Order(OPERATOR, APP, "a1"))


def test_begin__twice__is_refused_until_the_first_has_run(here: Here) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    order, reconciler = Order(OPERATOR, APP, "a1"), here.parts.reconciler
    report = reconciler.begin(order)
    with pytest.raises(errors.ReconcileRunning):
        reconciler.begin(order)
    assert reconciler.run(order, report).state == "done"
    assert reconciler.begin(order).state == "running"


def test_reconcile__applied_during_a_resync__is_refused(here: Here) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    here.parts.store.resyncs.open(ResyncPlace(APP, "a1"), ResyncKind.RESYNC)
    assert reconcile(here, apply=True).reason == "resync_open"
    assert here.parts.store.upstream.exports(APP) == 0
    assert here.server.exports == 0
    assert reconcile(here).state == "done"


def test_reconcile__without_keys__is_refused(make_app: Callable[..., Flask]) -> None:
    reconciler = services(make_app()).reconciler
    with pytest.raises(errors.UpstreamNotConfigured):
        reconciler.run(Order(OPERATOR, APP, "a1"))


def test_report__of_a_process_that_died__is_interrupted(
    make_app: Callable[..., Flask], upstream: Upstream
) -> None:
    clock = Clock()
    keys = AmplitudeKeys(APP, upstream.api_key, upstream.secret_key)
    app = make_app(Tuning(now=clock), amplitude_keys=(keys,), amplitude_url=upstream.url)
    reconciler = services(app).reconciler
    assert reconciler.report(APP, "a1") is None
    reconciler.begin(Order(OPERATOR, APP, "a1"))
    found = reconciler.report(APP, "a1")
    assert found
    assert found.state == "running"  # about to begin
    clock.forward(60)
    found = reconciler.report(APP, "a1")
    assert found
    assert (found.state, found.reason) == ("interrupted", "reconcile_interrupted")


def test_reconcile__killed_while_the_stores_clock_was_ahead__may_be_repeated(
    here: Here, redis_client: redis.Redis
) -> None:
    with here.parts.store.upstream.lease(APP, RECONCILE):
        with pytest.raises(errors.ReconcileRunning):
            here.parts.reconciler.begin(Order(OPERATOR, APP, "a1"))
        key = here.parts.store.keys.upstream_lease(APP, RECONCILE)
        redis_client.pexpire(key, 2 * 24 * 3600 * 1000)
        assert here.parts.reconciler.begin(Order(OPERATOR, APP, "a1")).state == "running"


def test_exports__counted_while_a_processs_clock_is_ahead__belong_to_this_month(
    make_app: Callable[..., Flask], upstream: Upstream
) -> None:
    keys = AmplitudeKeys(APP, upstream.api_key, upstream.secret_key)
    clock = Clock()
    app = make_app(Tuning(now=clock), amplitude_keys=(keys,), amplitude_url=upstream.url)
    exports = services(app).store.upstream
    for days in (0, 40, -40):
        clock.forward(days * 86_400)
        assert exports.spend_export(APP, 3)
    assert exports.exports(APP) == 3


def test_report__while_it_runs__says_so_and_expires(here: Here, redis_client: redis.Redis) -> None:
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"])
    here.server.job_seconds = 0.5
    reconciler = here.parts.reconciler
    thread = threading.Thread(target=reconciler.run, args=(Order(OPERATOR, APP, "a1"),))
    states = []
    thread.start()
    while thread.is_alive():
        if found := reconciler.report(APP, "a1"):
            states.append(found.state)
        thread.join(0.05)
    assert "running" in states
    found = reconciler.report(APP, "a1")
    assert found
    assert found.state == "done"
    assert 0 < redis_client.ttl(here.parts.store.keys.reconcile(APP, "a1")) <= 86400


def test_reconcile__and_its_files__leave_nothing_behind(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"], syncs=[SyncInfo()])
    assert reconcile(here).state == "done"
    assert list(tmp_path.iterdir()) == []


def test_reconcile__whose_process_is_killed__leaves_no_files_behind_for_long(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "from pathlib import Path\n"
        "from app.upstream.reconcile import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    (Path(folder) / 'export.csv').touch()\n"
        "    print('ready', flush=True)\n"
        "    input()\n"
    )
    command, env = [sys.executable, "-c", code], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        Reconciler.remove_abandoned()
        (folder,) = tmp_path.iterdir()
        assert (folder / "export.csv").exists()  # it is in use
        process.kill()
        process.wait()
    assert folder.exists()
    here.send("a1", 1)
    here.serve("a1", user_ids=["user0"], syncs=[SyncInfo()])
    assert reconcile(here).state == "done"
    assert list(tmp_path.iterdir()) == []
