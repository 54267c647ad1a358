"""Clients of server-sent events that others wrote, cut off before the first change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis
import sseclient
from httpx_sse import connect_sse

from simulator import payloads
from tests.integration.reader.docs_examples import examples
from tests.support.effort import thorough
from tests.support.node import Program, node_folder
from tests.support.polling import DEADLINE, wait_until
from tests.support.proxy import Proxy
from tests.support.service import APP, Service, running
from tests.support.stores import client_of_empty_store, running_store

READ_KEY = "TEST_READ_KEY"
TRAIT = "[Amplitude] one: 1"


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    """A store that tests may empty: no other test's service takes that for a loss."""
    with running_store() as url:
        yield url


@pytest.fixture
def redis_client(store_url: str) -> Iterator[redis.Redis]:
    """A plain client on a store with nothing at all, not even where the stream had ended."""
    with client_of_empty_store(store_url) as client:
        yield client


@pytest.fixture(scope="module")
def service(store_url: str) -> Iterator[Service]:
    env = {
        "REDIS_URL": store_url,
        "RATE_LIMIT": "off",
        "READ_API_KEYS": f"{APP}:{READ_KEY}",
        "STREAM_HEARTBEAT_SECONDS": "1",
    }
    with running(env) as service:
        yield service


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    """Between the client and the service."""
    proxy = Proxy(("127.0.0.1", int(service.url.rpartition(":")[2])))
    yield proxy
    proxy.close()


def send(service: Service, user_id: str, member: bool = True) -> None:
    assert service.post(payloads.identify(user_id, TRAIT, member)).status == 200


class Event(NamedTuple):
    """An event as a client gives it."""

    id: str
    kind: str
    data: dict[str, Any]


@contextmanager
def httpx_sse_events(url: str, headers: dict[str, str]) -> Iterator[Iterator[Event]]:
    with (
        httpx.Client(headers=headers, timeout=DEADLINE) as client,
        connect_sse(client, "GET", url) as source,
    ):
        yield (Event(event.id, event.event, event.json()) for event in source.iter_sse())


@contextmanager
def sseclient_py_events(url: str, headers: dict[str, str]) -> Iterator[Iterator[Event]]:
    with httpx.stream("GET", url, headers=headers, timeout=DEADLINE) as reply:
        events = sseclient.SSEClient(reply.iter_bytes()).events()
        yield (Event(event.id, event.event, json.loads(event.data)) for event in events)


@pytest.mark.parametrize("connect", [httpx_sse_events, sseclient_py_events])
def test_python_client__cut_before_the_first_change__misses_nothing(
    connect: Callable[..., AbstractContextManager[Iterator[Event]]], service: Service
) -> None:
    url, key = f"{service.url}/api/v1/changes/stream", {"api_key": READ_KEY}
    with connect(url, key) as events:
        first = next(events)
        assert (first.kind, first.data) == ("position", {"next": first.id})
    user_id = connect.__name__
    send(service, user_id)
    with connect(url, key | {"Last-Event-ID": first.id}) as events:
        assert next(events) == first
        change = next(events)
        assert (change.kind, change.data["userIds"]) == ("change", [user_id])
    with connect(url, key | {"Last-Event-ID": change.id}) as events:
        assert next(events).id == change.id


PAGE = """
<script>
  const seen = [];
  const source = new EventSource("/changes");
  for (const kind of ["position", "change", "cursor_expired"])
    source.addEventListener(kind, ({ data }) => seen.push([kind, JSON.parse(data)]));
</script>
"""


@thorough
def test_browser__through_the_relay_of_the_page__misses_nothing_and_has_no_key(
    service: Service, proxy: Proxy, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Its own ``EventSource``, cut off before the first change, and after the store is emptied."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed; see make browser")
    if not (chromium := shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("chromium is not installed; see make browser")
    (relay,) = [example for example in examples("node.md", "js") if example.mark == "relay"]
    (node_folder(tmp_path) / "relay.mjs").write_text(relay.code)
    env = {"COHORTS_URL": f"http://127.0.0.1:{proxy.port}", "COHORTS_KEY": READ_KEY, "PORT": "0"}
    with Program(tmp_path, "relay.mjs", env) as program, sync_playwright() as playwright:
        origin = f"http://127.0.0.1:{program.wait_for('')}"
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.route(f"{origin}/", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        page.goto(origin)

        def seen() -> list[list[object]]:
            found: list[list[object]] = json.loads(page.evaluate("JSON.stringify(seen)"))
            return found

        wait_until(seen)
        proxy.refuse(True)
        send(service, "a")
        proxy.refuse(False)
        wait_until(lambda: len(seen()) >= 3)
        (first, at), (again, at_too), (change, data) = seen()
        assert (first, again, change) == ("position", "position", "change")
        assert at == at_too
        assert data["userIds"] == ["a"]  # type: ignore[index, call-overload]
        redis_client.flushall()
        wait_until(lambda: seen()[-1][0] == "cursor_expired")
        wait_until(lambda: page.evaluate("source.readyState") == 2)
        browser.close()
