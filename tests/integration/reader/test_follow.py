"""Following changes in a consumer group: at least once, in order, shared, after crashes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from flask import Flask

from app.settings import Settings
from app.store import Store, connect
from cohort_reader import AsyncFollower, Follower, MembershipChange
from cohort_reader.steps import Steps, run
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.reader.conftest import COHORT, Clients, RestartableStore, Service
from tests.support.polling import DEADLINE, wait_until

READER = Path(__file__).resolve().parents[3] / "reader"
QUICK = {"handler_seconds": 0.2, "retry_seconds": 0.01}

Make = Callable[..., Follower]


class Heard:
    """A handler that remembers what it was given."""

    def __init__(self) -> None:
        self.changes: list[MembershipChange] = []

    def __call__(self, change: MembershipChange) -> None:
        self.changes.append(change)

    def of(self, user_id: str) -> list[bool]:
        """Whether the user entered, one change after the other."""
        return [change.entered for change in self.changes if user_id in change.user_ids]

    def users(self) -> list[str]:
        return [user_id for change in self.changes for user_id in change.user_ids]


def poll_until(
    follower: Follower, handler: Callable[[MembershipChange], object], done: object
) -> None:
    def step() -> bool:
        follower.poll(handler)
        return bool(done())  # type: ignore[operator]

    wait_until(step)


def pending(client: redis.Redis, service: Service, group: str = "mail") -> int:
    return sum(
        row["pending"]
        for key in client.scan_iter(match=f"cohorts:{{{service.app}*:changes")
        for row in client.xinfo_groups(key)
        if row["name"] == group
    )


@contextmanager
def following(*followers: tuple[Follower, Callable[[MembershipChange], object]]) -> Iterator[None]:
    """Run followers in threads of their own."""
    errors: list[BaseException] = []

    def run(follower: Follower, handler: Callable[[MembershipChange], object]) -> None:
        try:
            follower.run(handler)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, args=pair) for pair in followers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for follower, _ in followers:
            follower.stop()
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        assert not errors


def test_changes__each__are_handed_over_once(
    service: Service, make: Make, ordered: bool, redis_client: redis.Redis
) -> None:
    before = time.time_ns() // 1_000_000
    service.push(["a", "b"])
    service.push(["b"], False)
    heard = Heard()
    follower = make(ordered=ordered)
    follower.poll(heard)
    assert (heard.of("a"), heard.of("b")) == ([True], [True, False])
    assert {change.cohort_id for change in heard.changes} == {COHORT}
    assert all(before <= change.at_ms <= time.time() * 1000 for change in heard.changes)
    assert all(change.deliveries == 1 for change in heard.changes)
    assert follower.poll(heard) == 0
    assert pending(redis_client, service) == 0


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy replies", "new replies"])
@pytest.mark.parametrize("decode", [True, False], ids=["text", "bytes"])
def test_client__however_it_gives_replies__will_do(
    split_service: Service,
    make: Make,
    connect_client: Clients,
    protocol: int,
    legacy: bool,
    decode: bool,
) -> None:
    split_service.push(["a", "é", "c"])
    client = connect_client(protocol=protocol, legacy_responses=legacy, decode_responses=decode)
    follower = make(client, max_deliveries=2, **QUICK)
    heard = Heard()

    def fail_for_c(change: MembershipChange) -> None:
        heard(change)
        if "c" in change.user_ids:
            raise ValueError("not c")

    poll_until(follower, fail_for_c, lambda: follower.failed_changes())
    (failed,) = follower.failed_changes()
    assert "c" in failed.change.user_ids
    assert [(lag.undelivered, lag.pending) for lag in follower.lag()] == [(0, 0)] * 3
    assert set(heard.users()) == {"a", "é", "c"}


def test_start__new__leaves_out_what_came_before(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    service.push(["a", "b", "c"])
    follower = make(start="new")
    assert follower.create_group()
    service.push(["d"])
    heard = Heard()
    follower.poll(heard)
    assert heard.users() == ["d"]


def newest_ms(client: redis.Redis) -> int:
    """When the newest change was added, by the store's clock."""
    ids = [client.xrevrange(key, count=1)[0][0] for key in client.scan_iter("*:changes")]
    return max(int(entry_id.split("-")[0]) for entry_id in ids)


def test_start__at_a_time__leaves_out_what_came_before_and_nothing_else(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    service.push(["a", "b", "c"])
    then = newest_ms(redis_client) + 1
    wait_until(lambda: redis_client.time()[0] * 10**6 + redis_client.time()[1] >= then * 1000)
    service.push(["d"])
    for ms in {then, newest_ms(redis_client)}:
        heard = Heard()
        make(group=f"since-{ms}", start=datetime.fromtimestamp(ms / 1000, UTC)).poll(heard)
        assert heard.users() == ["d"]


def test_start__before_anything_was_received__misses_nothing(
    redis_client: redis.Redis, make: Make, make_app: Callable[..., Flask]
) -> None:
    follower = make(start="new")
    assert follower.poll(Heard()) == 0
    assert follower.lag() == []
    Service(caller(make_app(store_partitions=3)), 3).push(["a", "b", "c"])
    heard = Heard()
    follower.poll(heard)
    assert sorted(heard.users()) == ["a", "b", "c"]


def test_group__that_exists__keeps_its_place(service: Service, make: Make) -> None:
    service.push("a")
    make().poll(Heard())
    service.push("b")
    for start in ("new", "all", datetime.now(UTC)):
        assert make(start=start).create_group()
    heard = Heard()
    make(start="new").poll(heard)
    assert heard.users() == ["b"]


def test_groups__several__each_hear_everything(service: Service, make: Make) -> None:
    service.push(["a", "b"])
    for group in ("mail", "audit"):
        heard = Heard()
        make(group=group).poll(heard)
        assert sorted(heard.users()) == ["a", "b"]


def test_two_followers__unordered__work_at_the_same_time_and_share(
    service: Service, make: Make
) -> None:
    for number in range(20):
        service.push(f"u{number}")
    both_at_work = threading.Barrier(2, timeout=DEADLINE)
    heard = [Heard(), Heard()]

    def handler(mine: Heard) -> Callable[[MembershipChange], None]:
        def handle(change: MembershipChange) -> None:
            if not mine.changes:
                both_at_work.wait()
            mine(change)

        return handle

    followers = [make(ordered=False, batch_size=3) for _ in heard]
    with following(*[(f, handler(h)) for f, h in zip(followers, heard, strict=True)]):
        wait_until(lambda: sum(len(h.changes) for h in heard) >= 20)
    assert Counter(heard[0].users() + heard[1].users()) == Counter(f"u{n}" for n in range(20))


def test_two_followers__ordered__share_the_partitions(split_service: Service, make: Make) -> None:
    users = [f"u{number}" for number in range(20)]
    for user_id in users:
        split_service.push(user_id)
    both_at_work = threading.Barrier(2, timeout=DEADLINE)
    heard = [Heard(), Heard()]

    def handler(mine: Heard) -> Callable[[MembershipChange], None]:
        def handle(change: MembershipChange) -> None:
            if not mine.changes:
                both_at_work.wait()
            mine(change)

        return handle

    followers = [make() for _ in heard]
    with following(*[(f, handler(h)) for f, h in zip(followers, heard, strict=True)]):
        wait_until(lambda: sum(len(h.changes) for h in heard) >= 20)
    assert Counter(heard[0].users() + heard[1].users()) == Counter(users)


def test_two_followers__ordered__never_work_on_one_partition_at_the_same_time(
    service: Service, make: Make
) -> None:
    at_work: Counter[int] = Counter()
    most: Counter[int] = Counter()
    lock = threading.Lock()
    heard = Heard()

    def handle(change: MembershipChange) -> None:
        with lock:
            at_work[change.partition] += 1
            most[change.partition] = max(most[change.partition], at_work[change.partition])
        heard(change)
        time.sleep(0.002)  # time to meet
        with lock:
            at_work[change.partition] -= 1

    with following(*[(make(batch_size=2), handle) for _ in range(3)]):
        for number in range(30):
            service.push(f"u{number}")
        wait_until(lambda: len(heard.changes) >= 30)
    assert set(most.values()) == {1}
    assert Counter(heard.users()) == Counter(f"u{number}" for number in range(30))


def test_order__of_each_user__holds_though_handlers_fail(service: Service, make: Make) -> None:
    users = payloads.user_ids(5)
    rounds = 8
    heard = Heard()
    calls = Counter[str]()

    def sometimes_fail(change: MembershipChange) -> None:
        calls["all"] += 1
        heard(change)
        if calls["all"] % 3 == 0:
            raise RuntimeError("once more, please")

    # Nobody is slow here, and none may be taken for it.
    options = {**QUICK, "handler_seconds": 10.0, "batch_size": 4, "max_deliveries": None}
    with following(*[(make(**options), sometimes_fail) for _ in range(2)]):
        for number in range(rounds):
            for user_id in users:
                service.push(user_id, number % 2 == 0)
        wanted = [number % 2 == 0 for number in range(rounds)]

        def seen(user_id: str) -> list[bool]:
            return [entered for entered, _ in groupby(heard.of(user_id))]

        wait_until(lambda: all(len(seen(user_id)) >= rounds for user_id in users))
    assert {user_id: seen(user_id) for user_id in users} == dict.fromkeys(users, wanted)
    for user_id in users:
        versions = [c.version for c in heard.changes if user_id in c.user_ids]
        assert versions == sorted(versions)


def die_in_handler(store_url: str, service: Service) -> None:
    """Run a follower in a process of its own that dies in the handler."""
    script = Path(__file__).with_name("dying_follower.py")
    died = subprocess.run(
        [sys.executable, script, store_url, "mail", service.app, "0.2"],
        env={"PYTHONPATH": str(READER)},
        timeout=DEADLINE,
        check=False,
    )
    assert died.returncode == 9


def test_crash__between_delivery_and_acknowledgement__hands_it_over_again_in_order(
    service: Service, make: Make, ordered: bool, store_url: str, redis_client: redis.Redis
) -> None:
    service.push("a")
    service.push("a", False)
    service.push("a")
    die_in_handler(store_url, service)
    assert pending(redis_client, service) == 3
    heard = Heard()
    follower = make(ordered=ordered, **QUICK)
    poll_until(follower, heard, lambda: len(heard.changes) == 3)
    assert heard.of("a") == [True, False, True]
    assert {change.deliveries for change in heard.changes} == {2}
    assert pending(redis_client, service) == 0


def test_group_of_another_program__whose_name_is_no_text__disturbs_nobody(
    service: Service, store_url: str
) -> None:
    service.push("a")
    with redis.Redis.from_url(store_url) as client:
        for key in client.scan_iter(match="*:changes"):
            client.xgroup_create(key, b"\xff", id="0")
        heard = Heard()
        follower = Follower(client, "mail", app=service.app, start="all")
        poll_until(follower, heard, lambda: heard.changes)
        assert not any(lag.lost for lag in follower.lag())
        assert follower.poll(heard) == 0
        run(follower._wait())


def crc64(data: bytes) -> bytes:
    """The checksum of a DUMP."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x95AC9329AC4BC9B5 * (crc & 1)
    return crc.to_bytes(8, "little")


def deliver_in_future(client: redis.Redis, stream: str, ms: int) -> None:
    """Let the group's pending entries seem to be delivered so much later: no command does that."""
    payload: Any = client.dump(stream)[:-8]
    (group,) = client.xinfo_stream(stream, full=True)["groups"]
    for *_, time_ms, _ in group["pending"]:
        payload = payload.replace(*(t.to_bytes(8, "little") for t in (time_ms, time_ms + ms)))
    client.restore(stream, 0, payload + crc64(payload), replace=True)


@pytest.mark.parametrize("owner", ["dead", "(released)"])
def test_stores_clock__ahead_for_a_while__does_not_stop_the_group(
    service: Service,
    make: Make,
    ordered: bool,
    owner: str,
    store_url: str,
    redis_client: redis.Redis,
) -> None:
    """What a follower that died, or whose handler failed, left then has times in the future."""
    service.push("a")
    service.push("a", False)
    make(start="all").create_group()
    ahead_ms = 2 * 24 * 3600 * 1000
    with redis.Redis.from_url(store_url) as client:
        for key in client.scan_iter(match="*:changes"):
            if client.xreadgroup("mail", owner, {key: ">"}):
                client.set(key + b":mail:lease", owner, px=ahead_ms)
                deliver_in_future(client, key, ahead_ms)
        heard = Heard()
        poll_until(make(ordered=ordered, **QUICK), heard, lambda: len(heard.changes) == 2)
    assert heard.of("a") == [True, False]
    assert pending(redis_client, service) == 0


def test_change_that_kills_every_process__is_given_up_unhandled(
    service: Service, make: Make, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.push("a")
    for _ in range(2):
        die_in_handler(store_url, service)
    heard = Heard()
    follower = make(max_deliveries=2, **QUICK)
    poll_until(follower, heard, lambda: follower.failed_changes())
    assert heard.changes == []
    (failed,) = follower.failed_changes()
    assert (failed.change.user_ids, failed.change.deliveries) == (("a",), 3)
    assert "delivered too often" in failed.error
    assert "giving up" in caplog.text


def test_follower__started_again_under_its_name__goes_on_at_once(
    service: Service, make: Make
) -> None:
    service.push(["a"])
    service.push(["a"], False)

    def crash(change: MembershipChange) -> None:
        raise Killed

    with pytest.raises(Killed):
        make(consumer="one", handler_seconds=1000).poll(crash)
    heard = Heard()
    make(consumer="one", handler_seconds=1000).poll(heard)
    assert heard.of("a") == [True, False]
    # the first was begun, the second was not
    assert [change.deliveries for change in heard.changes] == [2, 1]


class Killed(BaseException):
    """Ends a follower, as KeyboardInterrupt does."""


class LosingClient(redis.Redis):
    """Loses the reply to a script, once, and calls it again, as the library does on its own."""

    loses = 0

    def evalsha(self, *args: Any) -> Any:
        self.loses -= 1
        if self.loses == 0:
            super().evalsha(*args)
        return super().evalsha(*args)


@pytest.mark.parametrize("lost_reply", range(1, 5))
def test_reply__that_is_lost__costs_no_change_and_no_order(
    make_app: Callable[..., Flask], store_url: str, ordered: bool, lost_reply: int
) -> None:
    service = Service(caller(make_app()), 1)
    for number in range(5):
        service.push("a", number % 2 == 0)
    heard = Heard()
    with LosingClient.from_url(store_url) as client:
        follower = Follower(
            client, "mail", app=service.app, start="all", ordered=ordered, handler_seconds=1000
        )
        follower.create_group()
        client.loses = lost_reply
        poll_until(follower, heard, lambda: len(heard.changes) == 5)
    versions = [change.version for change in heard.changes]
    assert len(set(versions)) == 5
    if ordered:
        assert versions == sorted(versions)


def test_failure__in_order__holds_up_its_partition_until_it_succeeds(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    for member in (True, False, True):
        service.push("a", member)
    heard = Heard()
    failures = 2

    def fail_at_first(change: MembershipChange) -> None:
        heard(change)
        if len(heard.changes) <= failures:
            raise ValueError("not yet")

    follower = make(**QUICK)
    poll_until(follower, fail_at_first, lambda: len(heard.changes) == 5)
    assert heard.of("a") == [True, True, True, False, True]
    assert [change.deliveries for change in heard.changes] == [1, 2, 3, 1, 1]
    assert pending(redis_client, service) == 0


def test_failure__out_of_order__lets_the_others_go_on(service: Service, make: Make) -> None:
    for user_id in ("bad", "b", "c"):
        service.push(user_id)
    heard = Heard()

    def fail_once(change: MembershipChange) -> None:
        heard(change)
        if change.user_ids == ("bad",) and change.deliveries == 1:
            raise ValueError("not yet")

    follower = make(ordered=False, **QUICK)
    poll_until(follower, fail_once, lambda: len(heard.changes) == 4)
    assert heard.users()[-1] == "bad"
    assert heard.changes[-1].deliveries == 2


def test_failure__for_ever__is_given_up_and_kept(
    service: Service, make: Make, ordered: bool, redis_client: redis.Redis
) -> None:
    service.push("bad")
    service.push("bad", False)
    service.push("good")
    heard = Heard()

    def fail(change: MembershipChange) -> None:
        heard(change)
        if change.user_ids == ("bad",) and change.entered:
            raise ValueError("never")

    follower = make(ordered=ordered, max_deliveries=3, **QUICK)
    poll_until(follower, fail, lambda: follower.failed_changes() and len(heard.changes) == 5)
    assert Counter(heard.users()) == {"bad": 4, "good": 1}
    (failed,) = follower.failed_changes()
    assert failed.change.user_ids == ("bad",)
    assert failed.change.entered
    assert failed.change.deliveries == 3
    assert failed.error == "ValueError: never"
    first = next(change for change in heard.changes if change.user_ids == ("bad",))
    assert failed.change.id == first.id or not ordered
    assert pending(redis_client, service) == 0
    follower.remove_failed(failed)
    assert follower.failed_changes() == []


@pytest.mark.parametrize("service", [1], indirect=True, ids=["one partition"])
def test_failure__repeated__delays_the_next_delivery_twice_as_long_each_time(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    service.push("bad")
    stream = f"cohorts:{{{service.app}}}:changes"
    follower = make(handler_seconds=1000, retry_seconds=10)

    def fail(change: MembershipChange) -> None:
        raise ValueError("not yet")

    for delay in (10, 20, 40, 80):
        assert follower.poll(fail) == 0
        (row,) = redis_client.xpending_range(stream, "mail", "-", "+", 1)
        left = 1500 - row["time_since_delivered"] / 1000
        assert delay - 5 < left <= delay
        # it is due now
        due = {"idle": 1_500_000, "justid": True}
        redis_client.xclaim(stream, "mail", row["consumer"], 0, [row["message_id"]], **due)


def test_failure__with_a_long_message__keeps_its_beginning(service: Service, make: Make) -> None:
    service.push("bad")
    follower = make(max_deliveries=1)

    def fail(change: MembershipChange) -> None:
        raise ValueError("long" * 1000)

    assert follower.poll(fail) == 1
    (failed,) = follower.failed_changes()
    assert failed.error == ("ValueError: " + "long" * 1000)[:500]


def test_stop__in_the_handler__leaves_the_rest_to_others(service: Service, make: Make) -> None:
    users = [f"u{number}" for number in range(10)]
    for user_id in users:
        service.push(user_id)
    heard = Heard()
    first = make(handler_seconds=1000)

    def stop(change: MembershipChange) -> None:
        heard(change)
        first.stop()

    first.run(stop)
    assert len(heard.changes) == 1
    second = make(handler_seconds=1000)
    poll_until(second, heard, lambda: len(heard.changes) == 10)
    assert Counter(heard.users()) == Counter(users)
    assert {change.deliveries for change in heard.changes} == {1}


@pytest.mark.parametrize("service", [1], indirect=True, ids=["one partition"])
def test_batch__that_takes_longer_than_one_change_may__is_not_taken_over(
    service: Service, make: Make, ordered: bool
) -> None:
    for number in range(18):
        service.push("a", number % 2 == 0)
    heard, others = Heard(), Heard()

    def slow(change: MembershipChange) -> None:
        heard(change)
        time.sleep(0.1)  # all of them take longer than one may

    first = make(ordered=ordered, handler_seconds=1.0)
    second = make(ordered=ordered, handler_seconds=1.0)
    with following((first, slow)):
        wait_until(lambda: heard.changes)
        with following((second, others)):
            wait_until(lambda: len(heard.changes) + len(others.changes) >= 18)
    assert len(heard.changes) + len(others.changes) == 18
    assert {change.deliveries for change in [*heard.changes, *others.changes]} == {1}


@pytest.mark.parametrize("seconds", [400, 600])
def test_claims__while_a_batch_is_handled__leave_each_change_all_of_its_time(
    make_app: Callable[..., Flask], redis_client: redis.Redis, ordered: bool, seconds: int
) -> None:
    service = Service(caller(make_app()), 1)
    for user_id in "abcd":
        service.push(user_id)
    stream = f"cohorts:{{{service.app}}}:changes"
    lease = f"{stream}:mail:lease"
    follower = Follower(
        redis_client,
        "mail",
        app=service.app,
        start="all",
        ordered=ordered,
        handler_seconds=1000,
    )
    left: list[int] = []

    def slow(change: MembershipChange) -> None:
        """Let it seem to take so many seconds."""
        follower._renewed_at -= seconds
        if ordered:
            left.append(redis_client.pttl(lease))
            redis_client.pexpire(lease, left[-1] - seconds * 1000)
            return
        rows = redis_client.xpending_range(stream, "mail", change.id, "+", 10)
        left.append(1_500_000 - rows[0]["time_since_delivered"])
        for row in rows:
            idle = row["time_since_delivered"] + seconds * 1000
            ids = [row["message_id"]]
            redis_client.xclaim(stream, "mail", row["consumer"], 0, ids, idle=idle, justid=True)

    assert follower.poll(slow) == 4
    assert min(left) > 1_000_000


def test_rename__of_a_cohort__tells_nobody(service: Service, make: Make) -> None:
    service.push(["a", "b"])
    follower = make()
    follower.poll(Heard())
    renamed = payloads.trait_name("Best users", COHORT)
    service.push(["a", "b"], trait=renamed)
    heard = Heard()
    assert follower.poll(heard) == 0
    service.push(["a"], False, trait=renamed)
    follower.poll(heard)
    assert [(c.cohort_id, c.entered, c.user_ids) for c in heard.changes] == [
        (COHORT, False, ("a",))
    ]


def test_deletion__of_a_cohort__is_told_as_leaving(
    service: Service, make: Make, store_url: str
) -> None:
    service.push(["a", "b"])
    follower = make()
    follower.poll(Heard())
    store = Store(connect(Settings(redis_url=store_url)), partitions=service.partitions)
    assert sum(store.jobs.delete_cohort(service.app, COHORT)) == 2
    heard = Heard()
    follower.poll(heard)
    assert (heard.of("a"), heard.of("b")) == ([False], [False])


def test_erasure__of_a_user_whose_change_failed__holds_nobody_up(
    service: Service, make: Make, store_url: str, ordered: bool
) -> None:
    service.push("a")
    follower = make(ordered=ordered, **QUICK)

    def fail(change: MembershipChange) -> None:
        raise ValueError

    assert follower.poll(fail) == 0
    store = Store(connect(Settings(redis_url=store_url)), partitions=service.partitions)
    store.erasure.erase(service.app, "a")
    service.push("b")
    heard = Heard()
    poll_until(follower, heard, lambda: heard.users() == ["b"])
    wait_until(lambda: not sum(lag.pending for lag in follower.lag()) or follower.poll(heard))
    assert heard.users() == ["b"]


def test_lag__of_a_group__counts_what_is_not_done(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    follower = make()
    follower.create_group()
    for number in range(6):
        service.push(f"u{number}")
    assert sum(lag.undelivered or 0 for lag in follower.lag()) == 6

    def fail(change: MembershipChange) -> None:
        raise ValueError

    follower.poll(fail)
    assert sum(lag.pending for lag in follower.lag()) == 6
    assert not any(lag.lost for lag in follower.lag())


def test_lag__after_unread_entries_left_the_stream__says_lost(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    service.push("a")
    follower = make()
    follower.poll(Heard())
    service.push("a", False)
    service.push("a")
    assert not any(lag.lost for lag in follower.lag())
    trim(redis_client, 1)
    assert sum(lag.lost for lag in follower.lag()) == 1


def trim(client: redis.Redis, entries: int) -> None:
    """Let the oldest entries leave each stream, as age does."""
    for key in client.scan_iter(match="*:changes"):
        client.xtrim(key, maxlen=entries, approximate=False)


def lost(follower: Follower) -> bool:
    return any(lag.lost for lag in follower.lag())


STARTS = pytest.mark.parametrize(
    "start", ["new", "all", datetime(2020, 1, 1, tzinfo=UTC)], ids=["new", "all", "at a time"]
)


@STARTS
@pytest.mark.parametrize("seen", ["by a monitor", "as it reads on"])
def test_loss__before_a_new_groups_first_read__is_told_until_it_is_dealt_with(
    service: Service,
    make: Make,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    start: object,
    seen: str,
) -> None:
    service.push("before")
    follower = make(start=start)
    follower.create_group()
    for number in range(10):
        service.push("a", number % 2 == 0)
    assert not lost(follower)
    trim(redis_client, 2)
    if seen == "by a monitor":
        assert sum(lag.lost for lag in make().lag()) == 1
    heard = Heard()
    follower.poll(heard)
    assert heard.of("a") == [True, False]
    assert caplog.text.count("before group mail handled them") == 1
    service.push("b")
    follower.poll(heard)
    assert sum(lag.lost for lag in follower.lag()) == 1
    assert lost(make()), "told by others too"
    assert not lost(make(group="audit")), "of this group alone"
    follower.acknowledge_loss()
    assert not lost(make())
    service.push("c")
    service.push("c", False)
    trim(redis_client, 1)
    assert lost(follower), "once more"


@STARTS
def test_loss__none__is_told_of_what_was_trimmed_after_it_was_read(
    service: Service, make: Make, redis_client: redis.Redis, start: object
) -> None:
    follower = make(start=start)
    for number in range(10):
        service.push("a", number % 2 == 0)
        follower.poll(Heard())
    trim(redis_client, 2)
    assert not lost(follower)
    service.push("a")
    trim(redis_client, 1)
    assert not lost(follower)
    follower.poll(Heard())
    assert not lost(follower)


def test_loss__none__is_told_to_a_group_that_begins_with_all_that_is_held(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    for number in range(10):
        service.push("a", number % 2 == 0)
    trim(redis_client, 2)
    follower = make(start="all")
    assert not lost(follower)
    heard = Heard()
    follower.poll(heard)
    assert heard.of("a") == [True, False]
    assert not lost(follower)


def test_loss__before_the_group_was_made__is_told_where_it_begins_earlier(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    for number in range(10):
        service.push("a", number % 2 == 0)
    trim(redis_client, 2)
    assert lost(make(start=datetime(2020, 1, 1, tzinfo=UTC)))


@pytest.fixture
def erase(service: Service, store_url: str) -> Callable[..., None]:
    def erase(*user_ids: str) -> None:
        store = Store(connect(Settings(redis_url=store_url)), partitions=service.partitions)
        for user_id in user_ids:
            store.erasure.erase(service.app, user_id)

    return erase


ONE_PARTITION = pytest.mark.parametrize("service", [1], indirect=True, ids=["one partition"])


@ONE_PARTITION
@pytest.mark.parametrize("erased", ["abc", "abcd"])
def test_erasure__of_users_whose_changes_were_read__is_no_loss(
    service: Service, make: Make, erase: Callable[..., None], erased: str
) -> None:
    follower = make()
    for user_id in "abcd":
        service.push(user_id)
    follower.poll(Heard())
    erase(*erased)
    assert not lost(follower)
    service.push("e")
    assert not lost(follower)
    follower.poll(Heard())
    assert not lost(follower)


@ONE_PARTITION
def test_erasure__of_users_whose_changes_were_not_read__is_no_loss(
    service: Service, make: Make, erase: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    follower = make()
    service.push("a")
    follower.poll(Heard())
    for user_id in "bcd":
        service.push(user_id)
    erase("b", "c")
    assert not lost(follower)
    heard = Heard()
    follower.poll(heard)
    assert heard.users() == ["d"]
    assert not lost(follower)
    assert "before group" not in caplog.text


@ONE_PARTITION
def test_erasure__of_all_before_a_group_begins__is_no_loss(
    service: Service, make: Make, erase: Callable[..., None]
) -> None:
    service.push("a")
    erase("a")
    follower = make(start="all")
    follower.create_group()
    service.push("b")
    assert not lost(follower)
    heard = Heard()
    follower.poll(heard)
    assert heard.users() == ["b"]


@ONE_PARTITION
def test_erasure__where_nothing_older_is_held__is_told_as_loss(
    service: Service, make: Make, erase: Callable[..., None]
) -> None:
    follower = make()
    service.push("a")
    follower.poll(Heard())
    service.push("b")
    erase("a", "b")
    assert lost(follower), "it looks like a loss, and may not be left out"


class NotingFollower(Follower):
    """Notes its pauses instead of making them."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client, "mail", app=Service.app, start="all")
        self.pauses: list[float] = []

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def waits(self) -> float:
        """Wait for a change. Returns how long that took, in seconds."""
        began = time.monotonic()
        run(self._wait())
        return time.monotonic() - began


def test_wait__with_all_handled__lasts_half_of_the_clients_timeout_or_until_a_change_arrives(
    make_app: Callable[..., Flask], store_url: str
) -> None:
    service = Service(caller(make_app(store_partitions=3)), 3)
    with (
        redis.Redis.from_url(store_url) as client,
        redis.Redis.from_url(store_url, socket_timeout=0.2) as hasty_client,
    ):
        follower = NotingFollower(client)
        assert follower.poll(Heard()) == 0
        follower.waits()
        assert follower.pauses == [1.0], "nothing was received yet: there is nothing to block for"
        service.push(["a", "b", "c"])
        while follower.poll(Heard()):
            pass
        follower._client = hasty_client
        assert follower.waits() >= 0.09
        follower._client = client  # blocks for a second
        service.push("d")
        assert any(follower.waits() < 0.9 for _ in range(3))
        assert follower.pauses == [1.0]


def test_wait__while_another_follower_works_on_a_partition__is_short(
    make_app: Callable[..., Flask], store_url: str
) -> None:
    service = Service(caller(make_app(store_partitions=3)), 3)
    service.push(["a", "b", "c"])
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        follower = NotingFollower(client)
        while follower.poll(Heard()):
            pass
        first, *others = (f"{name}:mail:lease" for name in client.keys("*:changes"))
        client.set(first, "another", px=60_000)
        assert follower.poll(Heard()) == 0
        took = [follower.waits() for _ in range(3)]
        assert 0.09 <= min(took) < 0.9
        assert follower.pauses == []
        for lease in others:
            client.set(lease, "another", px=60_000)
        assert follower.poll(Heard()) == 0
        follower.waits()
        assert follower.pauses == [0.1], "there is no partition to block for"


def test_store__that_lost_its_data__is_followed_from_its_new_beginning(
    service: Service,
    make: Make,
    redis_client: redis.Redis,
) -> None:
    service.push(["a"])
    follower = make(start="new")
    follower.poll(Heard())
    redis_client.flushall()
    follower.poll(Heard())
    service.push(["b"])
    heard = Heard()
    poll_until(follower, heard, lambda: heard.changes)
    assert heard.users() == ["b"]


def test_store__that_loses_its_data_between_poll_and_wait__ends_no_run(
    service: Service,
    make: Make,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service.push("a")
    follower = make()
    core = getattr(follower, "_wrapped", follower)
    wait = core._wait

    def lose_all_and_wait() -> Steps[None]:
        monkeypatch.setattr(core, "_wait", wait)
        redis_client.flushall()
        yield from wait()
        service.push("b")

    monkeypatch.setattr(core, "_wait", lose_all_and_wait)
    heard = Heard()
    with following((follower, heard)):
        wait_until(lambda: "b" in heard.users())
    assert heard.users() == ["a", "b"]


def test_lag__after_the_store_lost_its_data__tells_of_the_group_that_is_made_again(
    service: Service,
    make: Make,
    redis_client: redis.Redis,
) -> None:
    service.push("a")
    follower = make(start="new")
    follower.poll(Heard())
    redis_client.flushall()
    assert follower.lag() == []
    assert follower.lag() == []
    service.push("b")
    assert sum(lag.undelivered or 0 for lag in follower.lag()) == 1
    heard = Heard()
    follower.poll(heard)
    assert heard.users() == ["b"]


def test_store__killed_and_started_again__is_followed_on(
    restartable_store: RestartableStore,
    make_app: Callable[..., Flask],
    make: Make,
    connect_client: Clients,
    ordered: bool,
) -> None:
    url = restartable_store.url
    service = Service(caller(make_app(redis_url=url, store_partitions=3)), 3)
    users = payloads.user_ids(40)
    heard = Heard()
    half = threading.Event()
    go_on = threading.Event()

    def handle(change: MembershipChange) -> None:
        heard(change)
        if len(heard.changes) == 5:
            half.set()
            assert go_on.wait(DEADLINE)

    # Not a thousand seconds later: it knows at once what it had in hand.
    follower = make(connect_client(url), ordered=ordered, handler_seconds=1000)
    for user_id in users[:20]:
        service.push(user_id)
    with following((follower, handle)):
        assert half.wait(DEADLINE)
        restartable_store.kill()
        go_on.set()
        restartable_store.start()
        for user_id in users[20:]:
            service.push(user_id)
        wait_until(lambda: set(heard.users()) == set(users))
        wait_until(lambda: all((lag.undelivered, lag.pending) == (0, 0) for lag in follower.lag()))
    assert max(Counter(heard.users()).values()) <= 2, "the change in hand at most"
    assert len(heard.users()) <= len(users) + 1


def test_follower__without_the_right__says_so(
    service: Service, make: Make, connect_client: Clients, redis_client: redis.Redis
) -> None:
    service.push("a")
    redis_client.acl_setuser("nobody", enabled=True, nopass=True, keys=["*"], commands=["+get"])
    client = connect_client(username="nobody", password="any")
    try:
        with pytest.raises(redis.exceptions.NoPermissionError):
            make(client).run(Heard())
    finally:
        redis_client.acl_deluser("nobody")


@pytest.mark.parametrize(
    "arguments",
    [
        {"group": "a:b"},
        {"group": ""},
        {"app": "{}"},
        {"start": "old"},
        {"start": datetime(2026, 1, 1)},
        {"batch_size": 0},
        {"handler_seconds": 0},
        {"retry_seconds": -1},
        {"max_deliveries": 0},
    ],
)
def test_arguments__that_make_no_sense__are_refused(
    redis_client: redis.Redis, arguments: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"must|too small"):
        Follower(redis_client, **{"group": "mail", **arguments})


def test_handler__that_is_a_coroutine_function__is_refused_before_anything_is_delivered(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    service = Service(caller(make_app()), 1)
    service.push("a")
    follower = Follower(redis_client, "mail", app=service.app, start="all")

    async def handle(change: MembershipChange) -> None:
        raise AssertionError("never awaited")

    class Callable_:
        async def __call__(self, change: MembershipChange) -> None:
            raise AssertionError("never awaited")

    for handler in (handle, Callable_()):
        for call in (follower.poll, follower.run):
            with pytest.raises(TypeError, match="coroutine function; use AsyncFollower"):
                call(handler)
    assert not redis_client.exists(f"cohorts:{{{service.app}}}:changes:mail:lease")
    heard = Heard()
    follower.poll(heard)
    assert [(change.user_ids, change.deliveries) for change in heard.changes] == [(("a",), 1)]


def test_handler__that_returns_an_awaitable__raises_and_nothing_is_acknowledged(
    make_app: Callable[..., Flask], redis_client: redis.Redis, ordered: bool
) -> None:
    service = Service(caller(make_app()), 1)
    service.push("a")
    service.push("b")

    async def handle(change: MembershipChange) -> None:
        raise AssertionError("never awaited")

    follower = Follower(redis_client, "mail", app=service.app, start="all", ordered=ordered)
    for call in (follower.poll, follower.run):
        with pytest.raises(TypeError, match="returned an awaitable; use AsyncFollower"):
            call(lambda change: handle(change))
    assert pending(redis_client, service) == 2
    assert follower.failed_changes() == []
    heard = Heard()
    poll_until(follower, heard, lambda: len(heard.changes) == 2)
    assert heard.users() == ["a", "b"]
    assert {change.deliveries for change in heard.changes} == {1}


def test_async_follower__takes_a_plain_function_too_and_survives_being_cancelled(
    make_app: Callable[..., Flask], store_url: str
) -> None:
    service = Service(caller(make_app()), 1)
    for user_id in "abc":
        service.push(user_id)
    heard = Heard()

    async def run() -> None:
        async with redis.asyncio.Redis.from_url(store_url) as client:
            options: dict[str, Any] = {"app": service.app, "start": "all", "handler_seconds": 1000}
            begun = asyncio.Event()

            async def hang(change: MembershipChange) -> None:
                begun.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(AsyncFollower(client, "mail", **options).run(hang))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            follower = AsyncFollower(client, "mail", **options)
            while len(heard.changes) < 3:
                await follower.poll(heard)

    asyncio.run(run())
    assert heard.users() == ["a", "b", "c"]
