"""The Procfile's web line, started as Heroku and its like do, and used over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.effort import thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import APP, KEY, ROOT, Service, running

HONCHO = (
    *(str(Path(sys.executable).with_name("honcho")), "start"),
    *("--env", os.devnull, "--no-prefix", "web"),
)
USER = "someone.in.particular@example.com"


@pytest.fixture(scope="module")
def web(store_url: str) -> Iterator[Service]:
    env = {"REDIS_URL": store_url, "WEB_CONCURRENCY": "3", "RATE_LIMIT": "off"}
    with running(env, HONCHO) as service:
        yield service


def identify(member: bool = True) -> dict[str, object]:
    return {"type": "identify", "userId": USER, "traits": {"Buyers:b1": member}}


def test_web_line__used_over_http__writes_to_the_store(
    web: Service, redis_client: redis.Redis
) -> None:
    reply = web.post(identify())
    assert (reply.status, reply.json()["changed"]) == (200, 1)
    assert redis_client.hgetall(f"cohorts:{{{APP}}}:user:{USER}") == {"Buyers:b1": "true"}


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "web"), pytest.param("WEB_CONCURRENCY", "two", marks=thorough)]
)
def test_web_line__wrong_setting__is_one_clear_line(name: str, value: str) -> None:
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "API_KEYS": KEY}
    (line,) = (ROOT / "Procfile").read_text().splitlines()
    started = subprocess.run(
        ["/bin/sh", "-c", line.removeprefix("web: ")],
        cwd=ROOT,
        env={**env, "REDIS_URL": "redis://127.0.0.1:1", name: value},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert started.returncode == 1
    assert started.stdout == ""
    assert started.stderr == f"cohort-receiver: {name}: Not a valid integer.\n"


def test_web_line__web_concurrency__starts_that_many_workers(web: Service) -> None:
    def started() -> int:
        return len([e for e in web.events() if e["event"].startswith("Booting worker")])

    wait_until(lambda: started() >= 3)  # the first one answers before the last one has begun
    assert started() == 3


def test_web_line__log__is_one_json_event_a_request_with_its_id(web: Service) -> None:
    sent_id = "3f6c-1/attempt=2"
    replies = [
        web.post(identify(), **{"X-Request-ID": sent_id}),
        web.post(identify()),
        web.post(b"{", **{"X-Request-ID": "not an id\t"}),
        web.post(identify(), Authorization="Bearer wrong-key-of-somebody"),
    ]
    ids = [reply.headers["X-Request-ID"] for reply in replies]
    assert ids[0] == sent_id
    assert len(set(ids)) == 4
    wait_until(lambda: all(any(i in line for line in web.lines) for i in ids))
    posts = [e for e in web.events() if e.get("request_id") in ids]
    assert sorted(e["request_id"] for e in posts) == sorted(ids)  # one event each
    events = {e["request_id"]: e for e in posts}
    assert [events[i]["status"] for i in ids] == [200, 200, 400, 401]
    assert [events[i].get("reason") for i in ids] == [
        None,
        None,
        "invalid_json",
        "invalid_credentials",
    ]
    assert {e["path"] for e in events.values()} == {"/api/v1/integration/amplitude/cohort"}
    assert all({"timestamp", "level", "method", "ms"} <= e.keys() for e in events.values())


def test_web_line__log__never_holds_a_key_nor_a_user_id(web: Service) -> None:
    replies = [
        web.post(identify()),
        web.post(identify(), api_key=KEY, app_id=APP),
        web.post(identify(), Authorization="Bearer wrong-key-of-somebody"),
        web.post({"type": "identify", "userId": USER, "traits": {"Buyers:b1": "yes"}}),
        web.post(json.dumps(identify()).encode()[:-5]),
        web.request("POST", f"/no/such/path/{USER}?api_key={KEY}", identify()),
    ]
    ids = {reply.headers["X-Request-ID"] for reply in replies}
    wait_until(lambda: ids <= {event.get("request_id") for event in web.events()})
    for secret in (KEY, "wrong-key-of-somebody", USER):
        assert secret not in web.output()


def test_web_line__told_to_stop__ends_in_order(store_url: str) -> None:
    with running({"REDIS_URL": store_url}, HONCHO) as web:
        web.hang_up()
        os.killpg(web.process.pid, signal.SIGTERM)
        web.process.wait(DEADLINE)
    assert "Shutting down: Master" in [e["event"] for e in web.events()]
    assert "Traceback" not in web.output()
