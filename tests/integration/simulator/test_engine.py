"""`CohortSync` sends what Amplitude sends, and a correct receiver ends up in the expected state."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from simulator import payloads
from simulator.cohort import Cohort
from simulator.cohort_sync import MODES, Attempt, CohortSync, Mode
from simulator.connection import WEBHOOK_USER_AGENT, Reply, Target
from simulator.expected_state import compare
from simulator.faults import FaultRates, parse_faults
from simulator.replies import is_retried, list_id, retry_wait
from tests.integration.simulator.receiver import CLOSED_PORT, KEY, Receiver


class Clock:
    """A clock that advances by a second per call, so that webhooks need not wait."""

    def __init__(self) -> None:
        self._now = time.time() - 10_000
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self._now += 1
            return self._now


def cohort_sync(
    receiver: Receiver, mode: Mode = "property", size: int = 250, **options: Any
) -> CohortSync:
    options.setdefault("batch_size", 20)
    options.setdefault("time_scale", 0.001)
    options.setdefault("settle", 0.05)
    cohort = Cohort.synthetic("Power: users", "a1b2", size, churn=options.pop("churn", 0.2))
    target = Target(receiver.url, options.pop("key", KEY), timeout=options.pop("timeout", 10.0))
    return CohortSync(target, cohort, mode=mode, clock=Clock(), **options)


def sent(receiver: Receiver) -> list[tuple[str, Any]]:
    return [(path, json.loads(body)) for path, body in receiver.bodies]


@pytest.mark.parametrize("mode", MODES)
def test_run__correct_receiver__ends_in_the_expected_state(mode: Mode) -> None:
    with Receiver() as receiver, cohort_sync(receiver, mode) as sync:
        results = sync.run(4)
        assert [result.succeeded for result in results] == [True] * 4
        assert [(result.entered, result.left) for result in results] == [
            (250, 0), (50, 50), (50, 50), (50, 50)
        ]  # fmt: skip
        comparison = compare(sync.expected, receiver)
        assert comparison.ok
        assert comparison.checked == 350
        assert sync.expected.member_count() == 250
        assert sync.expected.uncertain_users == 0
        assert sync.stats.changes_acknowledged == 250 + 3 * 100
        assert receiver.statuses == {200: sync.stats.requests}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_run__every_fault__ends_in_the_expected_state(mode: Mode, seed: int) -> None:
    faults = FaultRates(0.2, 0.3, 0.2, 0.2, 0.02, 0.2, slow_seconds=0.05)
    with (
        Receiver() as receiver,
        cohort_sync(
            receiver,
            mode,
            size=60 if mode == "single" else 250,
            faults=faults,
            seed=seed,
            batch_size=10,
        ) as sync,
    ):
        results = sync.run(5)
        assert all(result.succeeded for result in results)
        assert sync.late_requests == 0
        assert set(sync.stats.faults) >= {"duplicate", "reorder", "drop-reply", "cut", "late"}
        comparison = compare(sync.expected, receiver)
        assert comparison.ok, comparison.examples
        assert comparison.uncertain == 0


@pytest.mark.parametrize("mode", ["property", "webhook"])
def test_run__same_seed__sends_the_same_requests(mode: Mode) -> None:
    def once() -> list[bytes]:
        with (
            Receiver() as receiver,
            cohort_sync(receiver, mode, faults=parse_faults("all=0.2,slow=0"), seed=7) as sync,
        ):
            sync.run(4)
            bodies = [body for _, body in receiver.bodies]
        if mode == "webhook":  # the clock decides the time
            bodies = [json.dumps(json.loads(b) | {"computed_time": ""}).encode() for b in bodies]
        return sorted(bodies)

    assert once() == once()


@pytest.mark.parametrize(
    ("mode", "turned"), [("property", True), ("list", True), ("webhook", False)]
)
def test_run__late_retries__turn_users_back_only_where_no_time_is_carried(
    mode: Mode, turned: bool
) -> None:
    with (
        Receiver() as receiver,
        cohort_sync(receiver, mode, churn=0.5, faults=FaultRates(late=0.5), seed=3) as sync,
    ):
        sync.run(4)
        expected = sync.expected.values()
        amplitude = set(sync.cohort.members)
        assert any((expected[user] is True) != (user in amplitude) for user in range(350)) is turned
        assert compare(sync.expected, receiver).ok


def test_run__receiver_ignores_the_time__differs_from_the_expected_state() -> None:
    with (
        Receiver("webhook-as-it-comes") as receiver,
        cohort_sync(receiver, "webhook", churn=0.5, faults=FaultRates(late=0.5)) as sync,
    ):
        sync.run(4)
        comparison = compare(sync.expected, receiver, examples=3)
        assert comparison.wrong > 3
        assert len(comparison.examples) == 3
        assert ": expected " in str(comparison.examples[0])


@pytest.mark.parametrize("flaw", [None, "applies-half-bodies"])
def test_sync__cut_bodies__must_leave_no_trace(flaw: str | None) -> None:
    with (
        Receiver(*filter(None, [flaw])) as receiver,
        cohort_sync(receiver, faults=FaultRates(late=1)) as sync,
    ):
        assert sync.sync().late_requests == 13  # their retries are still to come
        assert compare(sync.expected, receiver).ok is (flaw is None)


def test_sync__first__posts_the_documents_batches() -> None:
    with Receiver() as receiver, cohort_sync(receiver, size=45, threads=1) as sync:
        sync.sync()
        ids = sync.cohort.ids
        assert sent(receiver) == [
            (payloads.COHORT_PATH, payloads.batch(ids[0:20], sync.cohort.trait, True)),
            (payloads.COHORT_PATH, payloads.batch(ids[20:40], sync.cohort.trait, True)),
            (payloads.COHORT_PATH, payloads.batch(ids[40:45], sync.cohort.trait, True)),
        ]


def test_sync__single__posts_one_identify_a_request() -> None:
    with Receiver() as receiver, cohort_sync(receiver, "single", size=3, threads=1) as sync:
        sync.sync()
        assert sent(receiver) == [
            (payloads.COHORT_PATH, payloads.identify(user, sync.cohort.trait, True))
            for user in sync.cohort.ids[:3]
        ]


def test_sync__list__creates_the_list_once_then_adds_and_removes() -> None:
    with Receiver() as receiver, cohort_sync(receiver, "list", size=10, threads=1) as sync:
        sync.run(2)
        calls = sent(receiver)
        assert calls[0] == ("/lists", payloads.list_create(sync.cohort.trait))
        assert [path.rpartition("/")[2] for path, _ in calls] == ["lists", "add", "add", "remove"]
        assert calls[1] == (
            "/lists/list%201%2F%C3%BC/add",
            payloads.list_users(sync.cohort.ids[:10]),
        )
        assert len(calls[2][1]["userIds"]) == len(calls[3][1]["userIds"]) == 2


def test_sync__webhook__has_rising_times_and_an_id_of_its_own() -> None:
    with Receiver() as receiver, cohort_sync(receiver, "webhook", size=40, threads=1) as sync:
        sync.run(2)
        bodies = [body for _, body in sent(receiver)]
        first = bodies[0]
        assert first == payloads.webhook(
            "Power: users",
            "a1b2",
            sync.cohort.ids[:20],
            True,
            computed_time=first["computed_time"],
            message_id=first["message_id"],
        )
        assert len({body["message_id"] for body in bodies}) == len(bodies) == 4
        assert [body["in_cohort"] for body in bodies] == [True, True, True, False]
        assert int(bodies[2]["computed_time"]) > int(first["computed_time"])
        assert int(bodies[2]["computed_time"]) <= time.time()


@pytest.mark.parametrize("fault", ["cut", "slow"])
def test_sync__misbehaving_webhooks__say_who_sends_like_all_others(fault: str) -> None:
    faults = parse_faults(f"{fault}=0.5,slow-seconds=0.01")
    with Receiver() as receiver, cohort_sync(receiver, "webhook", faults=faults) as sync:
        sync.sync()
        assert sync.stats.faults[fault] > 0
        assert receiver.user_agents.keys() == {WEBHOOK_USER_AGENT}


def test_sync__path_given__replaces_the_documents() -> None:
    with Receiver() as receiver, cohort_sync(receiver, size=1, path="/elsewhere/") as sync:
        result = sync.sync()
        assert {path for path, _ in receiver.bodies} == {"/elsewhere"}
        assert result.succeeded  # 404 means: no such user
        assert sync.stats.changes_rejected == 1
        assert sync.stats.changes_acknowledged == 0


def test_retry_wait__eight_retries__from_one_second_to_over_two_minutes() -> None:
    assert [retry_wait(number) for number in range(8)] == [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("status", "again"),
    [(None, True), (429, True), (500, True), (503, True), (400, False), (401, False), (404, False)],
)
def test_is_retried__status__as_amplitude_does(status: int | None, again: bool) -> None:
    assert is_retried(Reply(status, b"", 0.1)) is again


@pytest.mark.parametrize("status", [429, 503])
def test_sync__receiver_fails_at_first__retries_until_delivered(status: int) -> None:
    with (
        Receiver(fail_first=8, fail_status=status) as receiver,
        cohort_sync(receiver, size=20) as sync,
    ):
        assert sync.sync().succeeded
        assert sync.stats.retries == 8
        assert sync.stats.statuses == {status: 8, 200: 1}
        assert compare(sync.expected, receiver).ok


def test_sync__retries_used_up__fails_and_the_next_sync_is_full_again() -> None:
    attempts: list[Attempt] = []
    with (
        Receiver(fail_first=9) as receiver,
        cohort_sync(receiver, size=20, churn=0, on_attempt=attempts.append) as sync,
    ):
        first = sync.sync()
        assert not first.succeeded
        assert first.failed_requests == 1
        assert "still failing after 8 retries" in first.problems[0]
        assert [attempt.number for attempt in attempts] == list(range(9))
        assert sync.expected.uncertain_users == 20  # a 503 may have been partly applied
        second = sync.sync()
        assert second.succeeded
        assert (second.entered, second.left) == (20, 0)
        assert sync.expected.uncertain_users == 0
        assert compare(sync.expected, receiver).ok


def test_sync__refused_with_400__is_not_retried() -> None:
    with (
        Receiver("small-limit") as receiver,
        cohort_sync(receiver, size=1001, batch_size=1001) as sync,
    ):
        result = sync.sync()
        assert not result.succeeded
        assert sync.stats.requests == 1
        assert sync.stats.gave_up == 1
        assert compare(sync.expected, receiver).ok


def test_sync__wrong_key__stops_at_once() -> None:
    with Receiver() as receiver, cohort_sync(receiver, key="wrong", size=2000, threads=2) as sync:
        assert sync.run(3)[-1].unauthorised
        assert sync.stats.requests <= 2


def test_sync__nothing_listens__gives_up_and_nothing_is_expected() -> None:
    cohort = Cohort.synthetic("n", "1", 10)
    target = Target(f"http://127.0.0.1:{CLOSED_PORT}", KEY)
    with CohortSync(target, cohort, time_scale=0.0001) as sync:
        result = sync.sync()
        assert result.failed_requests == 1
        assert sync.stats.errors == {"refused": 9}
        assert sync.expected.uncertain_users == 0
        assert set(sync.expected.values()) == {None}


def test_sync__no_answer_in_time__is_sent_again_and_settles_before_the_next() -> None:
    started = time.monotonic()
    with (
        Receiver(delay=0.3) as receiver,
        cohort_sync(receiver, size=20, churn=0, timeout=0.1, settle=0.4, retries=1) as sync,
    ):
        assert not sync.sync().succeeded
        assert sync.stats.errors == {"timeout": 2}
        assert sync.expected.uncertain_users == 20
        assert {frozenset(sync.expected.possible_values(user)) for user in range(20)} == {
            frozenset({None, True})
        }
        sync.sync()
        # Four timeouts, and the wait to settle after the first two.
        assert time.monotonic() - started >= 4 * 0.1 + 0.4
        assert compare(sync.expected, receiver).ok


def test_sync__second_list_made__is_noticed() -> None:
    faults = FaultRates(drop_reply=1)
    with (
        Receiver("second-list") as receiver,
        cohort_sync(receiver, "list", size=5, faults=faults, retries=3) as sync,
    ):
        result = sync.sync()
        assert len(sync.list_ids) > 1
        assert "more than one list" in result.problems[0]


def test_sync__no_list_id_answered__fails_with_the_answer() -> None:
    with Receiver("list-id-elsewhere") as receiver, cohort_sync(receiver, "list", size=5) as sync:
        result = sync.sync()
        assert not result.succeeded
        assert "no list id" in result.problems[0]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"list_id": "a"}, "a"),
        ({"listId": 7}, "7"),
        ({"response": {"listId": "b"}}, "b"),
        ({"id": "c"}, "c"),
        ({"list_id": ""}, None),
        ({"list_id": "\ud800"}, None),
        ({"list_id": True}, None),
        ([], None),
        (None, None),
    ],
)
def test_list_id__places__are_found(answer: Any, found: str | None) -> None:
    assert list_id(answer) == found


def test_sync__stop_set_while_waiting_for_a_retry__returns_soon() -> None:
    stop = threading.Event()
    with (
        Receiver(fail_first=100) as receiver,
        cohort_sync(
            receiver, size=20, time_scale=100, stop=stop, on_attempt=lambda _: stop.set()
        ) as sync,
    ):
        started = time.monotonic()
        result = sync.run(3)[-1]
        assert result.interrupted
        assert time.monotonic() - started < 5
        assert sync.stats.requests == 1


def test_sync__callback_raises__ends_and_raises() -> None:
    def fail(_: Attempt) -> None:
        raise RuntimeError("from the callback")

    with (
        Receiver() as receiver,
        cohort_sync(receiver, on_attempt=fail) as sync,
        pytest.raises(RuntimeError, match="from the callback"),
    ):
        sync.sync()


def test_sync__users_rejected_in_the_reply__are_uncertain_and_counted() -> None:
    with Receiver() as receiver, cohort_sync(receiver, size=20) as sync:
        original = receiver._write

        def write(*statements: Any) -> dict[str, Any]:
            return original(*statements[:15]) | {"rejected": 5}

        receiver._write = write  # type: ignore[method-assign]
        sync.sync()
        assert sync.stats.changes_rejected == 5
        assert sync.stats.changes_acknowledged == 15
        assert sync.expected.uncertain_users == 20


def test_run__two_cohorts_at_once_on_the_same_users__end_in_their_expected_states() -> None:
    with Receiver() as receiver:
        syncs = [
            CohortSync(
                Target(receiver.url, KEY),
                Cohort.synthetic(f"cohort {number}", str(number), 200, churn=0.3, seed=0),
                batch_size=20,
                time_scale=0.001,
                faults=parse_faults("all=0.2,slow=0"),
                seed=number,
            )
            for number in range(3)
        ]
        threads = [threading.Thread(target=sync.run, args=(3,)) for sync in syncs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for sync in syncs:
            sync.close()
            assert compare(sync.expected, receiver).ok
