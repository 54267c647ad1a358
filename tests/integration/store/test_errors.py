"""What a store's refusals are reported as, and what of them is logged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
import redis
from flask import Flask

from app.settings import Settings
from app.store import Store, StoreError, connect
from app.store.errors import store_errors
from simulator import payloads
from tests.integration.conftest import caller
from tests.support.clusters import Node, running_cluster

BODY = payloads.identify("somebody", "[Amplitude] n: 1", True)


@pytest.fixture
def limited(store_url: str, redis_client: redis.Redis) -> Iterator[Callable[..., str]]:
    """Gives the address for a user of the store who lacks some permissions."""

    def make(*lacks: str) -> str:
        rights = ["on", ">pw", "~*", "+@all", *lacks]
        redis_client.execute_command("ACL", "SETUSER", "limited", "reset", *rights)
        return store_url.replace("unix://", "unix://limited:pw@")

    yield make
    redis_client.acl_deluser("limited")


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("-evalsha", "run the 'evalsha' command"),
        ("-zadd", r"run (the 'zadd'|this) command"),  # within a script; Redis doesn't name it
        ("-set", r"run (the 'set'|this) command"),
    ],
)
def test_permission__missing__is_named_in_reply_and_log(
    make_app: Callable[..., Flask],
    limited: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
    lacks: str,
    told: str,
) -> None:
    http = caller(make_app(redis_url=limited(lacks)))
    reply = http.post(payloads.COHORT_PATH, json=BODY)
    assert (reply.status_code, reply.json["reason"]) == (503, "store_misconfigured")
    assert "lacks a permission" in reply.json["detail"]
    (event,) = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert event["detail"] == reply.json["detail"]
    assert re.search(told, event["store_reported"])


@pytest.mark.parametrize(
    ("command", "reason", "reported"),
    [
        (("HGET", "key", "somebody"), "store_error", "WRONGTYPE Operation against a key holding"),
        (("UNHEARD", "somebody"), "store_error", "unknown command 'UNHEARD'"),
        (("SELECT", "99"), "store_misconfigured", "DB index is out of range"),
    ],
)
@pytest.mark.parametrize("pipelined", [False, True], ids=["alone", "in a pipeline"])
def test_refusal__of_another_kind__is_reported_without_the_values_of_the_command(
    store: Store,
    redis_client: redis.Redis,
    command: tuple[str, ...],
    reason: str,
    reported: str,
    pipelined: bool,
) -> None:
    redis_client.set("key", "a string")
    client = store._client
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command(*command)
    with pytest.raises(StoreError) as caught, store_errors():
        pipeline.execute() if pipelined else client.execute_command(*command)
    assert caught.value.reason == reason
    assert caught.value.reported.startswith(reported)
    assert "somebody" not in caught.value.reported


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running_cluster(1, 0) as cluster:
        yield cluster.nodes[0]


@pytest.mark.parametrize(
    ("rights", "password", "detail"),
    [
        (["+@all"], "wrong", "refuses the user name or password"),
        (["+@all", "-cluster"], "pw", "lacks a permission"),
        (["+@all"], "pw", None),
    ],
    ids=["wrong password", "missing permission", "neither"],
)
def test_cluster__that_refuses_its_user__is_reported_as_misconfigured(
    node: Node, rights: list[str], password: str, detail: str | None
) -> None:
    node.client.execute_command("ACL", "SETUSER", "u", "reset", "on", ">pw", "~*", *rights)
    url = node.url.replace("//", f"//u:{password}@")
    with connect(Settings(redis_url=url, store_cluster=True)) as client:
        if detail is None:
            Store(client).check()
            return
        with pytest.raises(StoreError, match=detail) as caught:
            Store(client).check()
        assert caught.value.reason == "store_misconfigured"
