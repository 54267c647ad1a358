"""Apps share a service and a store, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from limits import parse
from werkzeug.routing import Rule

from app import create_app
from app.auth.authenticate import METRICS, PUBLIC
from app.server.background import Background
from app.services import services
from app.settings import AmplitudeKeys, ApiKey, Settings
from app.web.openapi import document
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.web.dashboard.test_views import Browser

OURS, THEIRS = "ours", "theirs"
OUR_KEY, THEIR_KEY = "our-admin-key", "their-admin-key"
# What only we know: it stands in no request of the other app's.
SECRET = "Secret-name"
USER, OTHER_USER, COHORT = "ann", "bob-whom-nobody-asks-for", "c1"
TRAIT = f"{SECRET}: {COHORT}"

# Parts of paths, for every route that there is. A new kind of part must be given a value here.
PARTS = {
    "user_id": USER,
    "name": "overview.md",
    "cohort_id": COHORT,
    "list_id": COHORT,
    "sync_id": "OUR-SYNC",  # replaced by its id, once there is one
}


def examples() -> dict[tuple[str, str], Any]:
    """The example body of each call in the API description, about our user and cohort."""
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    found = {}
    for route, item in document(app)["paths"].items():
        for method, operation in item.items():
            if "requestBody" in operation:
                media_type, content = next(iter(operation["requestBody"]["content"].items()))
                if media_type == "application/json":
                    text = json.dumps(next(iter(content["examples"].values()))["value"])
                else:
                    text = content["example"]
                text = text.replace("abc123", COHORT).replace("user1@example.com", USER)
                url = re.sub(r"{(\w+)}", lambda part: PARTS[part[1]], route)
                found[method.upper(), url] = {"data": text, "content_type": media_type}
    return found


BODIES = examples()


def rules(*, pages: bool = False) -> list[tuple[str, str]]:
    """Every method and path of the service but those that are open to all: calls, or pages."""
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    return [
        (method, path(rule))
        for rule in app.url_map.iter_rules()
        if getattr(app.view_functions[rule.endpoint], "scope", None) != PUBLIC
        if getattr(app.view_functions[rule.endpoint], "by_session", False) == pages
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"})
    ]


def path(rule: Rule) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda part: PARTS.get(part[1], COHORT), rule.rule)


@pytest.fixture
def service(make_app: Callable[..., Flask]) -> Flask:
    app = make_app(
        admin_api_keys=(ApiKey(OURS, OUR_KEY), ApiKey(THEIRS, THEIR_KEY)),
        stream_heartbeat_seconds=0.1,
        amplitude_keys=tuple(AmplitudeKeys(app_id, "key", "secret") for app_id in (OURS, THEIRS)),
        amplitude_url="http://127.0.0.1:1",
    )
    absent = [{"id": SECRET, "name": SECRET, "size": 777000, "targets": SECRET}]
    services(app).store.upstream.note_poll(OURS, listed=1, absent=absent, total=1, behind=0)
    us = caller(app, OUR_KEY)
    us.post(payloads.COHORT_PATH, json=payloads.batch([USER, OTHER_USER], TRAIT, True))
    us.post("/api/v1/users", json={"userIds": [USER]})
    us.put(f"/api/v1/cohorts/{COHORT}/cadence", json={"seconds": 777})
    services(app).sync_recorder.finish()
    return app


def our_sync(service: Flask) -> str:
    found: str = caller(service, OUR_KEY).get("/api/v1/syncs").json["syncs"][0]["id"]
    return found


def ours(store_url: str) -> dict[bytes, bytes | None]:
    """All that the store keeps of our app, as it keeps it."""
    with redis.Redis.from_url(store_url) as client:
        return {key: client.dump(key) for key in client.scan_iter(f"cohorts:{{{OURS}*")}


def send(http: FlaskClient, method: str, url: str, **more: Any) -> Any:
    body = BODIES.get((method, url.removesuffix("/")), {})
    url = url.replace("OUR-SYNC", our_sync(http.application))
    query = {"suppress": "true", "cursor": "earliest"} if "changes" in url else {"suppress": "true"}
    return http.open(url, method=method, query_string=query, **body, **more)


def beginning(reply: Any) -> bytes:
    """What it says; of a stream that does not end, the first pieces."""
    pieces: Iterator[bytes] = iter(reply.response)
    data = b""
    for _, piece in zip(range(3), pieces, strict=False):
        data += piece if isinstance(piece, bytes) else piece.encode()
    reply.close()
    return data


@pytest.mark.parametrize(("method", "url"), rules(), ids=str)
def test_call__with_the_other_apps_key__neither_reads_nor_changes_ours(
    service: Flask, store_url: str, method: str, url: str
) -> None:
    before = ours(store_url)
    assert len(before) >= 5
    reply = send(caller(service, THEIR_KEY), method, url, buffered=False)
    # It got to the call itself: a refused body or method would prove nothing.
    assert reply.status_code in (200, 201, 202, 204, 404), reply.get_data()
    said = beginning(reply).decode() + str(reply.headers)
    for _ in range(2):
        Background(services(service).store).work()
    services(service).sync_recorder.finish()
    assert SECRET not in said
    assert OTHER_USER not in said
    assert '"members": 2' not in said
    assert not re.search(r"(?<![\d.])777000(?!\d)", said)  # timings have such digits too
    assert ours(store_url) == before


@pytest.mark.parametrize(("method", "url"), rules(), ids=str)
def test_call__with_our_key_and_the_other_app_named__is_401(
    service: Flask, store_url: str, method: str, url: str
) -> None:
    before = ours(store_url)
    reply = send(caller(service, OUR_KEY), method, url, headers={"app_id": THEIRS})
    assert reply.status_code == 401
    assert ours(store_url) == before


@pytest.mark.parametrize(("method", "url"), rules(pages=True), ids=str)
def test_page__for_the_other_apps_administrator__neither_shows_nor_changes_ours(
    service: Flask, store_url: str, method: str, url: str
) -> None:
    before = ours(store_url)
    browser = Browser(service).log_in(THEIR_KEY)
    token = browser.token()
    for sought in (USER, COHORT, our_sync(service)):
        fields = {"id": sought, "user_id": sought, "confirm": sought, "suppress": "on"}
        if method == "POST":
            fields["token"] = token
        reply = browser._http.open(
            url,
            method=method,
            **{"data" if method == "POST" else "query_string": fields},
        )
        assert reply.status_code in (200, 303, 400, 404), reply.text
        assert reply.headers.get("Location", "") != f"/login?next={url}"
        said = reply.text + str(reply.headers)
        assert SECRET not in said
        assert OTHER_USER not in said
        if url == "/logout":
            break
    Background(services(service).store).work()
    services(service).sync_recorder.finish()
    assert ours(store_url) == before


def test_rules__in_this_test__are_all_that_there_are(service: Flask) -> None:
    for rule in service.url_map.iter_rules():
        for part in rule.arguments:
            scope = getattr(service.view_functions[rule.endpoint], "scope", None)
            assert part in PARTS or scope in (PUBLIC, METRICS), f"{rule.rule}: {part}"


def test_limit__of_an_app__counts_its_keys_together_and_no_other_app(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(
        api_keys=(ApiKey(OURS, "one"), ApiKey(OURS, "two"), ApiKey(THEIRS, "three")),
        app_rate_limit=parse("3/hour"),
    )
    said = [
        caller(app, key)
        .post(payloads.COHORT_PATH, json=payloads.identify(USER, TRAIT, True))
        .status_code
        for key in ("one", "two", "one", "two", "one", "three")
    ]
    assert said == [200, 200, 200, 429, 429, 200]
