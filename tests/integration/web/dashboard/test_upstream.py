"""What the pages show of Amplitude's own record."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from flask import Flask

from app.settings import AmplitudeKeys, ApiKey
from simulator.upstream import ALWAYS, SyncInfo, Upstream
from tests.integration.conftest import APP
from tests.integration.upstream.here import Here
from tests.integration.web.dashboard.test_views import Browser

BOSS, READER = "the-admin-key", "the-read-key"
PAGE = "/cohort?id=a1"


@pytest.fixture
def here(make_app: Callable[..., Flask]) -> Iterator[Here]:
    with Upstream(job_seconds=0, keys=("the-api-key", "the-secret-key")) as upstream:
        app = make_app(
            amplitude_keys=(AmplitudeKeys(APP, "the-api-key", "the-secret-key"),),
            amplitude_url=upstream.url,
            admin_api_keys=(ApiKey(APP, BOSS),),
            read_api_keys=(ApiKey(APP, READER),),
        )
        here = Here(app, upstream)
        here.send("a1", ["both", "<stale>"])
        sync = SyncInfo("receiver", "daily", last_successful=time.time())
        here.serve("a1", user_ids=["both", "lost&found"], anonymous=1, syncs=[sync])
        yield here


def text(reply: Any) -> str:
    """A page's text, without markup and with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", reply.text)).split())


def send(browser: Browser, **fields: str) -> Any:
    reply = browser.send("/cohort/reconcile", token=browser.token(), id="a1", **fields)
    gevent.wait(timeout=30)  # the background work of this process
    return reply


def test_cohort__after_a_poll__shows_size_and_sync(here: Here) -> None:
    here.poll()
    shown = text(Browser(here.app).log_in(READER).get(PAGE))
    assert "Size 3 (including anonymous users; a comparison shows how many)" in shown
    assert "Sync daily Last success just now Last failure none" in shown
    assert "Compare with Amplitude" not in shown  # not an administrator


def test_cohort__that_is_not_listed__says_what_to_do(here: Here) -> None:
    here.server.cohorts.clear()
    here.poll()
    page = Browser(here.app).log_in(BOSS).get(PAGE)
    assert "record has not shown this cohort yet. It is read every 30 minutes" in text(page)
    assert 'href="#upstream"' in page.text


def test_cohort__without_keys__shows_nothing_of_it(make_app: Callable[..., Flask]) -> None:
    app = make_app(admin_api_keys=(ApiKey(APP, BOSS),))
    Here(app, None).send("a1", 1)  # type: ignore[arg-type]
    browser = Browser(app).log_in(BOSS)
    assert "own record" not in text(browser.get("/health"))
    assert 'upstream"' not in browser.get(PAGE).text


def test_cohort__whose_sync_is_behind__shows_its_last_success(here: Here) -> None:
    here.server.cohorts["a1"].syncs = [SyncInfo(last_successful=time.time() - 7200)]
    here.poll()
    shown = text(Browser(here.app).log_in(READER).get(PAGE))
    assert "According to Amplitude, its sync last succeeded 2 hours ago" in shown


def test_button__compares_and_then_replaces(here: Here) -> None:
    browser = Browser(here.app).log_in(BOSS)
    assert ">Replace the members</button>" not in browser.get(PAGE).text
    reply = send(browser)
    assert reply.headers["Location"] == "/cohort?id=a1&done=reconciling#upstream"
    page = browser.get(PAGE)
    assert "1 user missing, 1 user extra." in text(page)
    assert "lost&amp;found" in page.text
    assert "&lt;stale&gt;" in page.text
    assert "Exports this month: 1 of 100." in text(page)
    assert ">Replace the members</button>" in page.text
    send(browser, apply="true")
    page = browser.get(PAGE)
    assert "Replaced: 1 entered, 1 left." in text(page)
    assert ">Replace the members</button>" not in page.text
    send(browser)
    assert "nobody is missing or extra" in text(browser.get(PAGE))


def test_ids__for_a_reader__are_not_shown(here: Here) -> None:
    send(Browser(here.app).log_in(BOSS))
    page = Browser(here.app).log_in(READER).get(PAGE)
    assert "1 user missing" in text(page)
    assert "lost" not in text(page)


def test_failure__is_shown_without_secrets(here: Here) -> None:
    browser = Browser(here.app).log_in(BOSS)
    here.server.faults["forbidden"] = ALWAYS
    send(browser)
    here.parts.poller.poll(APP)
    pages = [browser.get(path).text for path in (PAGE, "/health", "/")]
    assert "upstream_forbidden" in pages[0]
    assert "upstream_forbidden" in pages[1]
    assert not [page for page in pages if "the-secret-key" in page or "the-api-key" in page]


def test_form__of_a_reader__is_refused(here: Here) -> None:
    browser = Browser(here.app).log_in(READER)
    browser.send("/cohort/reconcile", 403, token=browser.token(), id="a1")


@pytest.mark.parametrize(
    ("fields", "status"), [({"id": "b2"}, 404), ({}, 404), ({"id": "a1", "apply": "x"}, 400)]
)
def test_form__that_is_wrong__is_refused(fields: dict[str, str], status: int, here: Here) -> None:
    browser = Browser(here.app).log_in(BOSS)
    browser.send("/cohort/reconcile", status, token=browser.token(), **fields)


def test_form__sent_twice__is_refused(here: Here) -> None:
    browser = Browser(here.app).log_in(BOSS)
    with here.parts.store.upstream.lease(APP, "reconcile"):
        reply = browser.send("/cohort/reconcile", 409, token=browser.token(), id="a1")
    assert "A reconcile of this app is running." in text(reply)


def test_health__lists_cohorts_that_never_arrived(here: Here) -> None:
    sync = SyncInfo("<braze>", "hourly")
    here.serve("b2", size=1204, syncs=[sync])
    here.poll()
    page = Browser(here.app).log_in(READER).get("/health")
    assert "Last read just now : 2 cohorts Exports this month 0 of 100" in text(page)
    assert "never received here: 1" in text(page)
    assert "A cohort 1,204 hourly never <braze>" in text(page)
    assert "<braze>" not in page.text
    here.send("b2", 1)  # after the poll
    assert "never received here" not in text(Browser(here.app).log_in(READER).get("/health"))
