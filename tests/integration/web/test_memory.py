"""What callers choose leaves nothing behind in the process, however many values they choose."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.cohorts import Cohort
from app.services import services
from app.settings import ApiKey
from app.store import Tuning
from simulator import payloads
from tests.integration.conftest import caller
from tests.support.effort import thorough

Send = Callable[[FlaskClient, str], Any]

READ_KEY = "the-read-key"
WARM_UP, MEASURED = 100, 400
JSON = "application/json"
IDENTIFY = "/api/v1/integration/amplitude/cohort"
# The only inputs that name no page or call.
UNROUTED = {"path", "asset"}


def _body(client: FlaskClient, **headers: str) -> Any:
    return client.post(IDENTIFY, data=b"{}", headers={"Content-Type": JSON, **headers})


def _get(path: str, **fixed: str) -> Send:
    """Read a path with a value in it."""
    return lambda client, value: client.get(
        path.format(value), headers={"Authorization": f"Bearer {READ_KEY}", **fixed}
    )


def _header(name: str, form: str = "{}") -> Send:
    """Send a body with a value in one of its headers."""
    return lambda client, value: _body(client, **{name: form.format(value)})


# Each input of a call by what it is, with a function that sends one value.
INPUTS: dict[str, Send] = {
    "charset": _header("Content-Type", "application/json; charset={}"),
    "media type": _header("Content-Type", "application/{}+json"),
    "media type parameter": _header("Content-Type", "application/json; {0}={0}"),
    "content encoding": _header("Content-Encoding"),
    "accept": _header("Accept", "text/{}"),
    "accept charset": _header("Accept-Charset"),
    "accept language": _header("Accept-Language"),
    "host": _header("Host", "{}.example.com"),
    "forwarded address": lambda client, value: _body(
        client, **{"X-Forwarded-For": f"2001:db8:{int(value[5:]):x}::1", "api_key": value}
    ),
    "forwarded scheme": _header("X-Forwarded-Proto"),
    "request id": _header("X-Request-ID"),
    "unknown header": lambda client, value: _body(client, **{value: value}),
    "key": _header("api_key"),
    "basic authentication": lambda client, value: client.post(IDENTIFY, auth=(value, value)),
    "authentication scheme": _header("Authorization", "{} x"),
    "app id": _header("app_id"),
    "cookie": lambda client, value: client.get("/", headers={"Cookie": f"{value}=1"}),
    "session": lambda client, value: client.get(
        "/", headers={"Cookie": f"cohort-receiver={value}"}
    ),
    "entered key": lambda client, value: client.post("/login", data={"key": value}),
    "path": lambda client, value: client.get(f"/{value}/{value}"),
    "method": lambda client, value: client.open(IDENTIFY, method=value.upper().replace("-", "")),
    "asset": lambda client, value: client.get(f"/assets/{value}"),
    "user id": _get("/api/v1/users/{}"),
    "cohort id": _get("/api/v1/cohorts/{}"),
    "exported cohort": _get("/api/v1/cohorts/{}/members.csv"),
    "cursor": _get("/api/v1/cohorts?cursor={}"),
    "position": _get("/api/v1/changes?cursor={}"),
    "query parameter": _get("/api/v1/cohorts?{0}={0}"),
    "filter": _get("/api/v1/cohorts?name={}"),
    "sync": lambda client, value: _get("/api/v1/syncs/{}")(client, value[5:]),
    "member of a body": lambda client, value: client.post(IDENTIFY, json={value: value}),
    "trait": lambda client, value: client.post(
        IDENTIFY, json=payloads.identify(value, f"[Amplitude] n: {value}", True)
    ),
    "list name": lambda client, value: client.post("/lists", json={"name": value}),
    "sent list": lambda client, value: client.post(
        f"/lists/{value}/add", json={"userIds": [value]}
    ),
}


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(
        Tuning(rates_remembered=16, successes_remembered=16, arrivals_remembered=16),
        read_api_keys=(ApiKey("shop", READ_KEY),),
        proxy_hops=1,
        history_max_requests=0,  # finished requests would wait for the background work
    )


@pytest.fixture(scope="module", autouse=True)
def full_caches() -> Iterator[None]:
    """Fill the process's caches that have a bound: of trait names, and of the members of bodies."""
    names = {f"[Amplitude] n: {n}": 1 for n in range(20_000)}
    orjson.loads(orjson.dumps(names))
    for name in names:
        Cohort.from_trait(name)
    del names, name  # or a name stays in memory when the cache drops it
    gc.freeze()  # what other tests left need not be looked through each time
    yield
    gc.unfreeze()


@thorough
@pytest.mark.parametrize("what", INPUTS)
def test_inputs__of_many_values__leave_nothing_in_memory(app: Flask, what: str) -> None:
    client, send = caller(app), INPUTS[what]
    numbers = count()

    def blocks_left(values: int) -> int:
        before = sys.getallocatedblocks()
        for number in islice(numbers, values):
            reply = send(client, f"more-{number}")
            assert what in UNROUTED or b'"not_found"' not in reply.data
        services(app).sync_problems.work()
        gc.collect()
        return sys.getallocatedblocks() - before

    blocks_left(WARM_UP)
    # A value that is kept takes a block at least, for its text. Now and then, something else does.
    assert any(blocks_left(MEASURED) < MEASURED for _ in range(3))
