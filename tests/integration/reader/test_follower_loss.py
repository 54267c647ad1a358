"""No change is lost without a word: what a follower can no longer handle, it reports as lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial

import pytest
import redis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.store import Store
from cohort_reader import Follower, MembershipChange
from cohort_reader.steps import run
from tests.integration.conftest import caller
from tests.integration.reader.conftest import Clients, RestartableStore, Service
from tests.integration.reader.test_follow import (
    QUICK,
    Heard,
    Make,
    die_in_handler,
    following,
    lost,
    pending,
    poll_until,
    trim,
)
from tests.support.clusters import Node, running_server
from tests.support.polling import DEADLINE, wait_until
from tests.support.proxy import Proxy

pytestmark = pytest.mark.parametrize("service", [1], indirect=True, ids=["one partition"])


@pytest.mark.parametrize("kept", [0, 1, 2], ids=["all trimmed", "one kept", "two kept"])
def test_loss__of_changes_that_were_delivered_and_never_handled__is_reported(
    service: Service,
    make: Make,
    store_url: str,
    redis_client: redis.Redis,
    ordered: bool,
    kept: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for user_id in "abc":
        service.push(user_id)
    die_in_handler(store_url, service)
    trim(redis_client, kept)
    heard = Heard()
    follower = make(ordered=ordered, **QUICK)
    poll_until(follower, heard, lambda: not pending(redis_client, service))
    assert heard.users() == list("abc")[3 - kept :]
    assert lost(follower)
    assert "see Lag.lost" in caplog.text
    follower.acknowledge_loss()
    assert not lost(follower)


def test_loss__of_a_change_that_is_to_be_tried_again__is_none_as_it_is_kept_as_failed(
    service: Service, make: Make, redis_client: redis.Redis, ordered: bool
) -> None:
    service.push("a")

    def trim_and_fail(change: object) -> None:
        trim(redis_client, 0)
        raise ValueError("no more")

    follower = make(ordered=ordered, **QUICK)
    follower.poll(trim_and_fail)
    (failed,) = follower.failed_changes()
    assert failed.change.user_ids == ("a",)
    assert "no more" in failed.error
    assert pending(redis_client, service) == 0
    assert not lost(follower)


def test_loss__of_changes_that_a_stopped_follower_had_fetched__is_reported(
    service: Service, make: Make, redis_client: redis.Redis, ordered: bool
) -> None:
    for user_id in "abc":
        service.push(user_id)
    follower = make(ordered=ordered, **QUICK)
    heard = Heard()

    def trim_and_stop(change: object) -> None:
        heard(change)  # type: ignore[arg-type]
        trim(redis_client, 1)
        follower.stop()

    follower.run(trim_and_stop)
    assert heard.users() == ["a"]
    again = make(ordered=ordered, **QUICK)
    poll_until(again, heard, lambda: not pending(redis_client, service))
    assert heard.users() == ["a", "c"]
    assert lost(again)


class ClientOfFallenCluster(redis.Redis):
    """Fails as the client of a cluster of which no node answers, once it ``has_fallen``."""

    has_fallen = False

    def execute_command(self, *args: object, **options: object) -> object:
        if self.has_fallen:
            raise redis.exceptions.RedisClusterException("no node answers")
        return super().execute_command(*args, **options)


def test_stop__while_no_node_of_a_cluster_answers__ends_the_run_without_an_error(
    service: Service, store_url: str, make: Make
) -> None:
    with ClientOfFallenCluster.from_url(store_url) as client:
        follower = make(client=client)
        service.push("a")
        follower.poll(Heard())
        client.has_fallen = True
        follower.stop()
        follower.run(Heard())


class TrimmingClient(redis.Redis):
    """Trims a stream before the n-th command that it sends."""

    def trim_before(self, command: int, stream: str, entries: int) -> None:
        self.countdown, self.stream, self.entries = command, stream, entries

    def count(self) -> None:
        self.countdown = getattr(self, "countdown", 0) - 1
        if self.countdown == 0:
            super().execute_command("XTRIM", self.stream, "MAXLEN", "=", self.entries)

    def execute_command(self, *args: object, **options: object) -> object:
        self.count()
        return super().execute_command(*args, **options)

    def pipeline(self, *args: object, **options: object) -> redis.client.Pipeline:
        self.count()
        return super().pipeline(*args, **options)


@pytest.mark.parametrize("command", range(1, 8))
def test_loss__whatever_command_the_trim_comes_before__is_reported_and_only_then(
    service: Service, store_url: str, make: Make, command: int
) -> None:
    client = TrimmingClient.from_url(store_url)
    follower = make(client=client)
    service.push("first")
    follower.poll(Heard())
    for user_id in "abcd":
        service.push(user_id)
    client.trim_before(command, f"cohorts:{{{service.app}}}:changes", 2)
    heard = Heard()
    with client:
        follower.poll(heard)
        follower.poll(heard)
    assert heard.users() in (list("abcd"), list("cd"))
    assert lost(follower) == (heard.users() == list("cd"))


def test_loss__of_all_that_was_unread__is_reported_before_anything_new_arrives(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    service.push("a")
    follower = make()
    follower.poll(Heard())
    service.push("b")
    trim(redis_client, 0)
    assert lost(follower)
    follower.acknowledge_loss()
    assert not lost(follower)
    service.push("c")
    heard = Heard()
    follower.poll(heard)
    assert heard.users() == ["c"]
    assert not lost(follower)


def test_loss__by_a_store_that_lost_its_data__is_reported(
    service: Service, make: Make, redis_client: redis.Redis
) -> None:
    service.push("a")
    follower = make()
    follower.poll(Heard())
    redis_client.flushall()
    service.push("b")
    heard = Heard()
    poll_until(follower, heard, lambda: heard.users() == ["b"])
    assert lost(make())


def test_erasure__of_a_pending_change_with_an_older_one_held__is_no_loss(
    service: Service, make: Make, store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    service.push("older")
    make().poll(Heard())
    service.push("a")
    service.push("b")
    die_in_handler(store_url, service)
    store.erasure.erase(service.app, "a")
    heard = Heard()
    follower = make(**QUICK)
    poll_until(follower, heard, lambda: not pending(redis_client, service))
    assert heard.users() == ["b"]
    assert not lost(follower)


def test_store__that_is_read_only_for_a_moment__is_followed_on_at_once(
    service: Service,
    restartable_store: RestartableStore,
    make_app: Callable[..., Flask],
    make: Make,
    connect_client: Clients,
    ordered: bool,
) -> None:
    url = restartable_store.url
    sender = Service(caller(make_app(redis_url=url)), 1)
    client = redis.Redis.from_url(url)
    heard = Heard()
    replica = threading.Event()

    def handle(change: object) -> None:
        heard(change)  # type: ignore[arg-type]
        if len(heard.changes) == 2:
            client.replicaof("127.0.0.1", 1)
            replica.set()

    follower = make(connect_client(url), ordered=ordered, handler_seconds=1000)
    for user_id in "abcd":
        sender.push(user_id)
    with following((follower, handle)):
        assert replica.wait(DEADLINE)
        client.replicaof("NO", "ONE")
        wait_until(lambda: set(heard.users()) == set("abcd"))
        wait_until(lambda: all((lag.undelivered, lag.pending) == (0, 0) for lag in follower.lag()))
    assert len(heard.changes) <= 5


def test_primary__demoted_behind_the_same_address__is_left_at_once(
    service: Service,
    make: Make,
    connect_client: Clients,
    make_app: Callable[..., Flask],
    ordered: bool,
) -> None:
    heard = Heard()
    with (
        running_server() as primary,
        running_server() as replica,
        closing(Proxy(("127.0.0.1", primary.port))) as address,
    ):
        sender = Service(caller(make_app(redis_url=primary.url)), 1)
        replica.client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        client = connect_client(f"redis://127.0.0.1:{address.port}/0", socket_timeout=1.0)
        with following((make(client, ordered=ordered, handler_seconds=1000), heard)):
            sender.push("before")
            wait_until(lambda: heard.users() == ["before"])
            wait_until(lambda: _same_offset(primary, replica))
            replica.client.replicaof("no", "one")
            primary.client.replicaof("127.0.0.1", replica.port)
            address.switch(("127.0.0.1", replica.port))  # and open connections stay open
            switched = time.monotonic()
            Service(caller(make_app(redis_url=replica.url)), 1).push("after")
            wait_until(lambda: "after" in heard.users())
            assert time.monotonic() - switched < 5


def _same_offset(primary: Node, replica: Node) -> bool:
    return (
        primary.client.info("replication")["master_repl_offset"]
        == replica.client.info("replication")["slave_repl_offset"]
    )


def consumers(client: redis.Redis, service: Service) -> set[str]:
    return {
        row["name"]
        for key in client.scan_iter(match="*:changes")
        for row in client.xinfo_consumers(key, "mail")
    }


def test_run__that_ends__leaves_no_consumer_behind(
    service: Service, make: Make, redis_client: redis.Redis, ordered: bool
) -> None:
    for number in range(3):
        follower = make(ordered=ordered)
        service.push(f"u{number}")
        follower.run(lambda change, follower=follower: follower.stop())  # type: ignore[misc]
    assert {name for name in consumers(redis_client, service) if name != "(released)"} == set()


def test_consumers__that_died__are_removed_once_others_have_handled_their_changes(
    service: Service, make: Make, store_url: str, redis_client: redis.Redis
) -> None:
    service.push("a")
    die_in_handler(store_url, service)
    (dead,) = consumers(redis_client, service)
    heard = Heard()
    make(**QUICK).remove_idle_consumers(idle_seconds=0)
    assert consumers(redis_client, service) == {dead}, "it has a change that nobody handled"
    poll_until(make(**QUICK), heard, lambda: heard.users() == ["a"])
    make(**QUICK).remove_idle_consumers(idle_seconds=1000)
    assert dead in consumers(redis_client, service)
    make(**QUICK).remove_idle_consumers(idle_seconds=0)
    assert dead not in consumers(redis_client, service)


def _order(entry_id: str) -> list[int]:
    return [int(part) for part in entry_id.split("-")]


class Killed(BaseException):
    """Ends a follower in its handler."""


STEPS = st.lists(
    st.sampled_from(
        ["push", "push", "push", "poll", "fail", "killed", "crash", "trim", "erase", "trim in hand"]
    ),
    max_size=25,
)


@settings(suppress_health_check=list(HealthCheck))
@given(steps=STEPS, keep=st.integers(0, 3), is_ordered=st.booleans())
def test_loss__whatever_happens__every_change_is_handled_kept_as_failed_or_reported_lost(
    service: Service,
    redis_client: redis.Redis,
    store_url: str,
    kind: str,
    make: Make,
    steps: list[str],
    keep: int,
    is_ordered: bool,
) -> None:
    redis_client.flushall()
    stream = f"cohorts:{{{service.app}}}:changes"
    store = service.store(store_url)
    options = {"ordered": is_ordered, "handler_seconds": 0.01, "retry_seconds": 0}
    follower = make(max_deliveries=2, **options)
    pushed: dict[str, str] = {}
    erased: set[str] = set()
    handled: set[str] = set()

    def handle(what: str, change: MembershipChange) -> None:
        if what == "fail":
            raise ValueError
        if what == "killed":
            raise Killed
        if what == "trim in hand":
            redis_client.xtrim(stream, maxlen=keep, approximate=False)
        handled.add(change.id)

    def step(what: str) -> None:
        if what == "push":
            user_id = f"u{len(pushed)}"
            service.push(user_id)
            ((entry_id, _),) = redis_client.xrevrange(stream, count=1)
            pushed[str(entry_id)] = user_id
        elif what == "trim":
            redis_client.xtrim(stream, maxlen=keep, approximate=False)
        elif what == "erase" and pushed:
            entry_id = list(pushed)[len(pushed) // 2]
            store.erasure.erase(service.app, pushed[entry_id])
            erased.add(entry_id)
        elif what == "crash":  # of another follower, with all that it was given
            dying = Follower(redis_client, "mail", app=service.app, start="all", **options)
            if dying.create_group():
                run(dying._take(dying._streams[0]))
                redis_client.delete(f"{stream}:mail:lease")
        elif what in ("poll", "fail", "killed", "trim in hand"):
            with suppress(Killed):
                follower.poll(partial(handle, what))

    service.push("before")
    follower.poll(partial(handle, "poll"))
    for what in steps:
        step(what)

    def is_done() -> bool:
        follower.poll(partial(handle, "poll"))
        # After an erasure, the store can't tell how many entries are undelivered.
        (group,) = redis_client.xinfo_groups(stream)
        newest = redis_client.xrevrange(stream, count=1)
        if newest and _order(newest[0][0]) > _order(group["last-delivered-id"]):
            return False
        return not any(lag.pending or lag.undelivered for lag in follower.lag())

    wait_until(is_done)
    failed = {one.change.id for one in follower.failed_changes()}
    missing = set(pushed) - handled - failed - erased
    if not {"trim", "trim in hand", "erase"} & set(steps):
        assert not missing
        assert not lost(follower)
    if missing and pushed:
        assert lost(follower), (missing, pushed)
