"""The forms that replace the members of a cohort, and the test notification."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from app.cohorts import IncompleteReason
from app.services import services
from app.store import ResyncPlace, Store
from simulator.payloads import COHORT_PATH, batch
from tests.integration.conftest import APP, caller
from tests.integration.telemetry.test_notifications import running_receiver
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import ADMIN_KEY, KEYS, say
from tests.integration.web.dashboard.test_views import Browser

TRAIT = "[Amplitude] Power users: a/1"
PLACE = ResyncPlace(APP, "a/1")
PAGE = "/cohort?id=a%2F1"

store = read_api.store


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(store_partitions=3, **KEYS)


@pytest.fixture
def admin(app: Flask, store: Store) -> Browser:
    say(store, TRAIT, True, ["a", "b", "c"])
    return Browser(app).log_in(ADMIN_KEY)


def fields(page: Any, button: str) -> dict[str, str]:
    """The fields of the form with a button, as a browser sends them."""
    for form in re.findall(r"<form.*?</form>", page.text, re.S):
        if found := re.search(rf'<button name="action" value="(\w+)"[^>]*>{button}', form):
            hidden = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
            return {**dict(hidden), "action": found[1]}
    raise AssertionError(f"no such button: {button}")


def text(page: Any) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.text)).split())


def press(browser: Browser, button: str, page: Any = None, **more: str) -> Any:
    """Press a button of the cohort's page. Returns the page that follows."""
    sent = fields(page or browser.get(PAGE), button)
    reply = browser.send("/cohort/resync", **sent, **more)
    return browser.get(reply.headers["Location"].partition("#")[0])


def finish(store: Store) -> None:
    """What the background work does."""
    for _ in store.resyncs.steps(PLACE):
        pass


def test_resync__from_start_to_finish__verifies_the_cohort(
    app: Flask, store: Store, admin: Browser
) -> None:
    store.freshness.record_received(APP, [PLACE.cohort_id])
    store.completeness.raise_reason(APP, PLACE.cohort_id, IncompleteReason.STORE_LOST)
    assert "Replace the members" in text(admin.get(PAGE))
    assert "The resync has begun." in text(press(admin, "Start a resync", quiet="600"))
    assert (
        caller(app).post(COHORT_PATH, json=batch(["a", "b", "d"], TRAIT, True)).status_code == 200
    )
    page = admin.get(PAGE)
    assert "Confirmed 3 Not confirmed 1" in text(page)
    assert "It finishes automatically 10 minutes after" in text(page)
    press(admin, "Finish the resync")
    finish(store)
    assert {member.user_id for member in store.lookups.members(*PLACE)[0]} == {"a", "b", "d"}
    page = admin.get(PAGE)
    assert "has finished: 1 left, 3 members" in text(page)
    assert "incomplete" not in text(page)
    actions = [entry["action"] for entry in store.audit_trail.all()]
    assert {"open_resync", "finish_resync"} <= set(actions)


def test_resync__nobody_confirmed__is_forced_only_after_it_was_refused(
    store: Store, admin: Browser
) -> None:
    page = press(admin, "Start a resync")
    assert "Finish anyway" not in page.text
    page = press(admin, "Finish the resync", page)
    assert "Not finished: nobody was confirmed" in text(page)
    assert len(store.lookups.members(*PLACE)[0]) == 3
    sent = fields(page, "Finish anyway: 3 members leave")
    admin.send("/cohort/resync", **sent)
    finish(store)
    assert store.lookups.members(*PLACE)[0] == []


def test_resync__that_waits_because_requests_failed__says_so_and_can_be_finished(
    app: Flask, store: Store, admin: Browser
) -> None:
    store.freshness.record_received(APP, [PLACE.cohort_id])
    page = press(admin, "Start a resync", quiet="600")
    assert caller(app).post(COHORT_PATH, json=batch(["a"], TRAIT, True)).status_code == 200
    resync = store.resyncs.find(PLACE)
    assert resync is not None
    store.completeness.add_failed(APP, PLACE.cohort_id, 1, resync.started_ms)
    finish(store)
    page = admin.get(PAGE)
    assert "Not finished: requests for the cohort failed" in text(page)
    assert "Finish anyway" not in page.text
    assert "It finishes automatically" not in page.text
    page = press(admin, "Finish the resync", page)
    assert "Not finished: 2 of 3 members would leave" in text(page)
    admin.send("/cohort/resync", **fields(page, "Finish anyway: 2 members leave"))
    finish(store)
    assert [member.user_id for member in store.lookups.members(*PLACE)[0]] == ["a"]


def test_resync__aborted__changes_nothing(store: Store, admin: Browser) -> None:
    page = press(admin, "Start a resync")
    assert "Nothing has changed" in text(press(admin, "Abort it", page))
    assert len(store.lookups.members(*PLACE)[0]) == 3
    assert "Start a resync" in admin.get(PAGE).text
    # A page that was open all the while must not touch a later resync.
    press(admin, "Start a resync")
    admin.send("/cohort/resync", 404, **fields(page, "Finish the resync"))


def test_resync__started_twice__is_refused(admin: Browser) -> None:
    page = admin.get(PAGE)
    press(admin, "Start a resync", page)
    admin.send("/cohort/resync", 409, **fields(page, "Start a resync"))


def test_resync__of_who_may_not__is_refused(app: Flask, store: Store, admin: Browser) -> None:
    sent = fields(admin.get(PAGE), "Start a resync")
    reader = Browser(app).log_in()
    assert "Replace the members" not in reader.get(PAGE).text
    reader.send("/cohort/resync", 403, **{**sent, "token": reader.token()})
    admin.send("/cohort/resync", 403, **{**sent, "token": "x"})
    admin.send("/cohort/resync", 400, **{**sent, "action": "x"})
    admin.send("/cohort/resync", 400, **{**sent, "quiet": "7"})
    admin.send("/cohort/resync", 404, **{**sent, "id": "none"})
    assert store.resyncs.find(PLACE) is None


def test_import__is_shown_as_a_command_for_this_cohort(admin: Browser) -> None:
    page = html.unescape(admin.get(PAGE).text)
    assert "'http://localhost/api/v1/cohorts/a%2F1/members?dry_run=true'" in page


class TestTestNotification:
    def test_button__sends_one(self, make_app: Callable[..., Flask], store: Store) -> None:
        with running_receiver() as receiver:
            app = make_app(notify_url=receiver.url, **KEYS)
            admin = Browser(app).log_in(ADMIN_KEY)
            reply = admin.send("/health/test-notification", token=admin.token())
            assert "was delivered" in text(admin.get(reply.headers["Location"]))
            assert len(receiver.received) == 1
        assert services(app).store.audit_trail.all()[-1]["action"] == "test_notification"

    def test_button__nowhere_to_send__says_so(self, app: Flask, admin: Browser) -> None:
        assert "Set NOTIFY_URL" in text(admin.get("/health"))
        page = admin.send("/health/test-notification", 404, token=admin.token())
        assert "NOTIFY_URL is not set" in text(page)
