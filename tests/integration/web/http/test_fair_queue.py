"""The order of requests that wait in different workers."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

import gevent
import pytest
import redis
from flask import Flask, g

from app.auth.keyring import Caller
from app.services import services
from app.settings import ApiKey
from app.store import Tuning
from app.web.http import fair_queue
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members
from tests.support.polling import wait_until

BOSS = "the-admin-key"
TRAIT = "[Amplitude] Power users: abc123"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("HEAD", ""), ("DELETE", ""), ("POST", "/resync")],
)
def test_request__without_a_body__waits_for_its_turn(
    method: str, path: str, make_app: Callable[..., Flask]
) -> None:
    app = make_app(store_connections=1, admin_api_keys=(ApiKey(APP, BOSS),))
    queue = services(app).fair_queue
    queue.take(APP)
    waiting = gevent.spawn(caller(app, BOSS).open, f"/api/v1/cohorts/1{path}", method=method)
    while not queue._waiting:
        assert not waiting.dead
        gevent.sleep(0)
    queue.give_back(APP)
    waiting.get(timeout=10)
    assert not queue._working


def test_turn_of_a_request__begins_once_and_only_for_a_known_caller(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(store_connections=1)
    working = services(app).fair_queue._working
    with app.test_request_context():
        fair_queue.begin()
        assert not working
        g.caller = Caller(APP, "ingest", "a key")
        with gevent.Timeout(10):
            fair_queue.begin()
            fair_queue.begin()
        assert working == {APP: 1}
    assert not working


def test_export__needs_no_other_turn_for_its_pieces(make_app: Callable[..., Flask]) -> None:
    app = make_app(store_connections=1, admin_api_keys=(ApiKey(APP, BOSS),))
    http = caller(app, BOSS)
    assert (
        http.post(payloads.COHORT_PATH, json=payloads.batch(["u"], TRAIT, True)).status_code == 200
    )
    with gevent.Timeout(10):
        assert '"userId":"u"' in http.get("/api/v1/cohorts/abc123/members.ndjson").text
    assert not services(app).fair_queue._working


def test_request__whose_body_has_not_arrived__takes_no_turn(make_app: Callable[..., Flask]) -> None:
    app = make_app(store_connections=1)
    queue = services(app).fair_queue
    seen = []

    class Body(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            seen.append(dict(queue._working))
            return super().read(size)

    body = json.dumps(payloads.batch(["u"], TRAIT, True)).encode()
    reply = caller(app).post(
        payloads.COHORT_PATH,
        input_stream=Body(body),
        content_type="application/json",
        content_length=len(body),
    )
    assert reply.status_code == 200
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("member", [True, False], ids=["enter", "leave"])
def test_request__that_waited_longer_than_a_newer_one__does_not_undo_it(
    member: bool, make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    busy, idle = (make_app(Tuning(waited_seconds=0), store_connections=1) for _ in range(2))

    def say(app: Flask, member: bool) -> None:
        body = payloads.batch(["u"], TRAIT, member)
        assert caller(app).post(payloads.COHORT_PATH, json=body).status_code == 200

    say(idle, not member)
    say(idle, member)
    queue = services(busy).fair_queue
    queue.take(APP)
    waiting = gevent.spawn(say, busy, member)
    while not queue._waiting:
        gevent.sleep(0)
    arrived = time.monotonic()
    wait_until(lambda: time.monotonic() > arrived + 0.003)  # the store's times are in ms
    say(idle, not member)
    queue.give_back(APP)
    waiting.get(timeout=10)
    assert members(redis_client, APP) == ({} if member else {"abc123": {"u"}})
