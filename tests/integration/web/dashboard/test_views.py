"""The dashboard's pages, as a browser without scripts gets them."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import redis
from flask import Flask, Response, request
from flask.testing import FlaskClient
from limits import parse
from werkzeug.http import parse_cookie

from app import errors
from app.cohorts import Cohort, IncompleteReason, RequestRecord, Sync, user_hash
from app.errors import Problem
from app.services import services
from app.store import Size, Store, SyncBatch, SyncGroup, Tuning
from app.store.errors import StoreError
from app.web.dashboard import charts, formatting
from app.web.dashboard.advice import ADVICE
from app.web.dashboard.setup import TEMPLATES
from simulator.payloads import COHORT_PATH, WEBHOOK_PATH, batch, identify, webhook
from tests.integration.conftest import APP, KEY, Run, caller
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import ADMIN_KEY, KEYS, OTHER_KEY, READ_KEY, say
from tests.support.polling import wait_until

ONE = "[Amplitude] Power users: abc123"
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"


store = read_api.store


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    """With partitions: pages are put together from all of them."""
    return make_app(store_partitions=3, **KEYS)


class Browser:
    """Follows links and sends forms, with the cookies that it was given."""

    def __init__(self, app: Flask, base_url: str = "http://localhost") -> None:
        self._http: FlaskClient = app.test_client()
        self._base_url = base_url

    def get(self, path: str, status: int = 200, headers: Any = None) -> Any:
        reply = self._http.get(path, headers=headers, base_url=self._base_url)
        return self._checked(reply, status)

    def send(self, path: str, status: int = 303, headers: Any = None, **fields: str) -> Any:
        reply = self._http.post(path, data=fields, headers=headers, base_url=self._base_url)
        return self._checked(reply, status)

    def log_in(self, key: str = READ_KEY) -> Browser:
        self.send("/login", key=key)
        return self

    def token(self) -> str:
        return re.search(r'name="token" value="(\w+)"', self.get("/health").text)[1]  # type: ignore[index]

    def _checked(self, reply: Any, status: int) -> Any:
        assert reply.status_code == status, reply.text
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["Cache-Control"] == "no-store"
        if reply.mimetype == "text/html":
            assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=\"", reply.text)
        return reply


@pytest.fixture
def browser(app: Flask) -> Browser:
    return Browser(app).log_in()


@pytest.fixture
def admin(app: Flask) -> Browser:
    return Browser(app).log_in(ADMIN_KEY)


def cohort_page(cohort_id: str) -> str:
    return f"/cohort?{urlencode({'id': cohort_id})}"


def _add_syncs(
    store: Store, times_ms: list[int], took_ms: float = 5, cohort_id: str = "abc123"
) -> None:
    """Add syncs of one request each."""
    for number, at_ms in enumerate(times_ms):
        batch = SyncBatch(SyncGroup(APP, cohort_id), ONE)
        batch.add(RequestRecord(at_ms, took_ms, 200, "list", "key", "id", entered=1), {})
        store.sync_history.add(APP, [batch], f"sync-{number}")


class TestLogIn:
    @pytest.mark.parametrize("path", ["/syncs?problems=true", "/users?id=a%26b", "/health"])
    def test_page__without_a_session__asks_for_it_and_comes_back(
        self, app: Flask, path: str
    ) -> None:
        browser = Browser(app)
        asked = browser.get(path, 303).headers["Location"]
        browser.get(asked)
        assert browser.send(asked, key=READ_KEY).headers["Location"] == path
        browser.get(path)

    def test_cookie__is_for_this_site_and_no_script(self, app: Flask) -> None:
        cookie = Browser(app).send("/login", key=READ_KEY).headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
        assert READ_KEY not in cookie
        over_tls = Browser(app, "https://localhost").send("/login", key=READ_KEY)
        assert over_tls.headers["Set-Cookie"].startswith("__Host-")
        assert "Secure" in over_tls.headers["Set-Cookie"].split("; ")

    def test_wrong_key__is_401_and_says_so(self, app: Flask) -> None:
        page = Browser(app).send("/login", 401, key="wrong")
        assert "Unknown API key." in page.text
        assert "Set-Cookie" not in page.headers

    def test_ingest_key__cannot_log_in(self, app: Flask) -> None:
        page = Browser(app).send("/login", 403, key=KEY)
        assert "cannot read cohorts" in page.text

    def test_wrong_keys__count_as_bad_credentials_of_the_address(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(auth_failure_rate_limit=parse("3/minute"), **KEYS)
        browser = Browser(app)
        for _ in range(2):
            browser.send("/login", 401, key="wrong")
        assert caller(app, "wrong").get("/api/v1/cohorts").status_code == 401
        page = browser.send("/login", 429, key="wrong")
        assert int(page.headers["Retry-After"]) > 0
        assert caller(app, "wrong").get("/api/v1/cohorts").status_code == 429

    def test_key_without_a_session__opens_no_page(self, app: Flask) -> None:
        reply = caller(app, READ_KEY).get("/")
        assert (reply.status_code, reply.headers["Location"]) == (303, "/login")

    @pytest.mark.parametrize(
        "wanted", ["//evil.example", "/\\evil.example", "https://evil.example", "x", "/\nx"]
    )
    def test_next__never_leads_away(self, app: Flask, wanted: str) -> None:
        reply = Browser(app).send(f"/login?next={quote(wanted)}", key=READ_KEY)
        assert reply.headers["Location"] == "/"

    def test_log_out__ends_the_session_also_where_its_cookie_was_copied(self, app: Flask) -> None:
        browser = Browser(app).log_in()
        cookie = browser._http.get_cookie("cohort-receiver")
        browser.send("/logout", token=browser.token())
        browser.get("/health", 303)
        thief = app.test_client()
        thief.set_cookie("cohort-receiver", cookie.value)
        assert thief.get("/health").status_code == 303

    def test_session__of_a_key_that_is_gone__is_over(self, make_app: Callable[..., Flask]) -> None:
        browser = Browser(make_app(**KEYS)).log_in()
        cookie = browser._http.get_cookie("cohort-receiver")
        for settings, status in ((KEYS, 200), ({}, 303)):
            http = make_app(**settings).test_client()
            http.set_cookie("cohort-receiver", cookie.value)
            assert http.get("/health").status_code == status

    def test_session__of_a_key_that_was_revoked__is_over(self, app: Flask, run: Run) -> None:
        words = ("keys", "create", "--json", "--app-id", APP, "--scope", "read")
        made = json.loads(run(*words).stdout)
        ring = services(app).keyring
        ring.refresh()
        browser = Browser(app).log_in(made["key"])
        browser.get("/health")
        run("keys", "revoke", made["id"], "--yes")
        ring.refresh()
        browser.get("/health", 303)

    def test_session__of_a_worker_whose_clock_is_ahead__is_accepted(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as ahead:
            real = time.time
            ahead.setattr(time, "time", lambda: real() + 5)
            browser = Browser(app).log_in()
        browser.get("/health")

    @pytest.mark.parametrize("cookie", ["x", "a.b.c", "", "é"])
    def test_cookie__made_up__opens_nothing(self, app: Flask, cookie: str) -> None:
        http = app.test_client()
        http.set_cookie("cohort-receiver", cookie)
        assert http.get("/health").status_code == 303

    def test_cookie__many_made_up__ask_the_store_once(
        self, app: Flask, redis_client: redis.Redis
    ) -> None:
        http = app.test_client()
        http.set_cookie("cohort-receiver", "a.b.c")

        def gets() -> int:
            return int(redis_client.info("commandstats")["cmdstat_get"]["calls"])

        http.get("/health")
        before = gets()
        for _ in range(20):
            http.get("/health")
        assert gets() - before < 20

    def test_session__is_renewed_by_a_click_but_not_by_an_automatic_refresh(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(tuning=Tuning(session_renewed_seconds=-1), **KEYS)
        browser = Browser(app).log_in()
        assert "Set-Cookie" in browser.get("/health").headers
        assert (
            "Set-Cookie" not in browser.get("/health", headers={"X-Auto-Refresh": "true"}).headers
        )

    def test_session__a_week_after_the_log_in__is_over(self, app: Flask) -> None:
        sessions = services(app).sessions
        opened = sessions.open(services(app).keyring.find(READ_KEY))
        http = app.test_client()
        for seconds, status in ((7 * 86_400 - 60, 200), (7 * 86_400 + 1, 303)):
            old = opened._replace(began=opened.began - seconds)
            with app.test_request_context():
                reply = Response()
                sessions.set_cookie(old, request, reply)
            http.set_cookie(
                "cohort-receiver", parse_cookie(reply.headers["Set-Cookie"])["cohort-receiver"]
            )
            assert http.get("/health").status_code == status

    def test_apps__see_only_their_own(self, app: Flask, store: Store) -> None:
        say(store, ONE, True, ["alice"])
        other = Browser(app).log_in(OTHER_KEY)
        assert "Power users" not in other.get("/?setup=webhook").text
        other.get(cohort_page("abc123"), 404)
        assert "Power users" not in other.get("/users?id=alice").text

    def test_form__from_another_site__is_refused(self, app: Flask, admin: Browser) -> None:
        for headers in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
        ):
            Browser(app).send("/login", 403, headers=headers, key=READ_KEY)
            admin.send("/logout", 403, headers=headers, token=admin.token())
        Browser(app).send("/login", headers={"Origin": "http://localhost"}, key=READ_KEY)

    def test_form__without_the_token__is_refused(self, store: Store, admin: Browser) -> None:
        say(store, ONE, True, ["alice"])
        for token in ("", "x", "é"):
            fields = {"id": "abc123", "confirm": "Power users", "token": token}
            admin.send("/cohort/delete", 403, **fields)
            admin.send("/logout", 403, token=token)
        assert "being deleted" not in admin.get(cohort_page("abc123")).text

    def test_body__that_is_no_form__is_rejected(self, app: Flask) -> None:
        http = app.test_client()
        assert http.post("/login", json={"key": READ_KEY}).status_code == 415
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert http.post("/login", data=b"key=%ff\xff", headers=headers).status_code == 400
        assert http.post("/login", data=b"&a=1" * 30, headers=headers).status_code == 400

    def test_sessions__add_nothing_to_api_calls(
        self, app: Flask, redis_client: redis.Redis
    ) -> None:
        reply = caller(app).post(COHORT_PATH, json=identify("u", ONE, True))
        assert "Set-Cookie" not in reply.headers
        assert "Vary" not in reply.headers
        assert redis_client.keys("*session*") == []


class TestOverview:
    @pytest.mark.parametrize(
        ("query", "address", "pasted"),
        [
            ("?setup=webhook", "api/v1/integration/amplitude/webhook", "webhook"),
            ("?setup=property", "api/v1/integration/amplitude/cohort", "identify"),
            ("?setup=list", "lists/$listId/remove", "user"),
        ],
    )
    def test_empty_store__shows_how_to_set_up_each_integration(
        self, browser: Browser, query: str, address: str, pasted: str
    ) -> None:
        page = html.unescape(browser.get(f"/{query}").text)
        assert "Ready for the first cohort" in page
        assert f"http://localhost/{address}" in page
        assert TEMPLATES[pasted] in page
        assert "-m simulator sync http://localhost" in page

    def test_setup__while_messages_arrive__shows_each_with_its_outcome(
        self, app: Flask, browser: Browser
    ) -> None:
        http = caller(app)
        http.post(
            "/api/v1/integration/amplitude/webhook", data="{", content_type="application/json"
        )
        services(app).sync_recorder.flush()
        empty = browser.get("/", status=303)
        assert empty.location == "/?setup=webhook"
        assert "invalid_json" in browser.get(empty.location).text
        http.post(COHORT_PATH, json=identify("u", ONE, True))
        services(app).sync_recorder.flush()
        page = browser.get("/?setup=webhook").text
        assert "Set up an integration" in page
        assert "Power users" in page
        assert browser.get("/?setup=other", status=400)

    def test_latest_syncs__are_those_with_the_latest_requests(
        self, make_app: Callable[..., Flask]
    ) -> None:
        # With a constant clock, a request is recorded at the store's time of the flush.
        tuning = Tuning(freshness_noted_seconds=0, monotonic=lambda: 0.0)
        app = make_app(tuning=tuning, **KEYS)
        http, browser = caller(app), Browser(app).log_in()

        def flush() -> None:
            services(app).sync_recorder.flush()
            flushed = services(app).store.now()
            wait_until(lambda: services(app).store.now() > flushed + 0.001)

        for name in ("busy: b0", *(f"other: o{n}" for n in range(9)), "busy: b0"):
            http.post(COHORT_PATH, json=identify("u", name, True))
            flush()
        page = browser.get("/").text.partition('id="latest"')[2].partition("</section>")[0]
        shown = re.findall(r'<code class="id">(\w+)</code>', page)
        assert shown == ["b0", "o8", "o7", "o6", "o5", "o4"]
        # A refused request does not count as received.
        http.post(COHORT_PATH, json=batch(["u"], "other: o0", "maybe"))  # type: ignore[arg-type]
        flush()
        page = browser.get("/").text.partition('id="latest"')[2].partition("</section>")[0]
        assert re.findall(r'<code class="id">(\w+)</code>', page)[:2] == ["o0", "b0"]

    def test_store__that_lost_all_cohorts__is_not_taken_for_a_new_one(
        self, app: Flask, store: Store, browser: Browser, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, ["u"])
        losses = store.losses
        marks = {
            place: losses.compare(place, None, None, "token", advance=True)[1]
            for place in losses.partitions([APP])
        }
        redis_client.flushall()
        for place, mark in marks.items():
            losses.compare(place, mark, None, "token", advance=True)
        page = browser.log_in().get("/").text
        assert "There are no cohorts: the store lost them." in page
        assert "Nothing is known to be wrong." not in page

    def test_cohorts__are_listed_with_what_matters(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        http = caller(app)
        http.post(COHORT_PATH, json=batch([f"u{n}" for n in range(1234)], ONE, True))
        services(app).sync_recorder.flush()
        page = browser.get("/").text
        assert "<bdi>Power users</bdi>" in page
        assert "abc123" in page
        assert "1,234" in page
        assert 'class="spark"' in page
        assert "just now" in page
        assert "+1,234" in page

    def test_filter_and_order__are_kept_over_pages(self, store: Store, browser: Browser) -> None:
        for n in range(25):
            say(store, f"[Amplitude] Cohort {n:02}: id{n:02}", True, ["u"])
        say(store, "other: x", True, ["u"])
        first = browser.get("/?name=cohort&sort=name&freshness=fresh&status=active").text
        assert "no history yet" in first
        assert 'aria-label="no history yet"' not in first
        assert first.count('<th scope="row">') == 20
        following = html.unescape(re.search(r'href="([^"]+)" rel="next"', first)[1])  # type: ignore
        assert "status=active" in following
        second = browser.get(following).text
        assert second.count('<th scope="row">') == 5
        assert "id24" in second
        assert 'value="cohort"' in second

    def test_empty_fields__of_the_form__mean_all(self, store: Store, browser: Browser) -> None:
        say(store, ONE, True, ["u"])
        assert "Power users" in browser.get("/?name=&freshness=&sort=name").text

    @pytest.mark.parametrize(
        "path", ["/?sort=x", "/?cursor=x", "/syncs?cursor=x", "/sync?id=x", "/cohort", "/?status=x"]
    )
    def test_address__that_is_invalid__is_400(self, browser: Browser, path: str) -> None:
        browser.get(path, 400)

    def test_unknown_callers__are_shown_with_advice(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        caller(app, "wrong").post(COHORT_PATH, json=identify("u", ONE, True))
        services(app).sync_recorder.flush()
        page = browser.get("/?setup=webhook").text
        assert "The API key is unknown" in page
        assert "Was a key rotated?" in page

    def test_requests_to_a_wrong_address__are_shown_with_advice(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        say(store, ONE, True, ["u"])
        caller(app).post(f"{COHORT_PATH}s", json=identify("u", ONE, True))
        services(app).sync_recorder.flush()
        for path in ("/", "/?setup=webhook", "/health"):
            page = browser.get(path).text
            assert "or to a wrong path or method" in page
            assert "1 request" in page
            assert "Check the address in the Amplitude destination" in page


class TestWrongNow:
    """What the list of cohorts begins with."""

    def test_nothing_wrong__says_so(self, store: Store, browser: Browser) -> None:
        say(store, ONE, True, ["u"])
        page = browser.get("/").text
        assert "Nothing is known to be wrong." in page
        assert "What is wrong now" not in page

    def test_incomplete_cohorts__lead_the_page_with_what_to_do(
        self, store: Store, browser: Browser
    ) -> None:
        for n in range(8):
            cohort_id = f"id{n}"
            say(store, f"[Amplitude] Cohort {n}: {cohort_id}", True, ["u"])
            store.freshness.record_received(APP, [cohort_id])
            store.completeness.raise_reason(APP, cohort_id, IncompleteReason.SYNC_FAILED)
        page = browser.get("/").text
        wrong = page.partition('id="wrong"')[2].partition("</section>")[0]
        assert page.index('id="wrong"') < page.index('id="all"')
        assert "8 cohorts incomplete." in wrong
        assert "Fix the cause" in wrong
        assert wrong.count('href="/cohort?') == 5
        following = html.unescape(re.search(r'<a href="([^"]+)">all 8', wrong)[1])  # type: ignore
        assert browser.get(following).text.count('<th scope="row">') == 8

    def test_incomplete_after_a_failed_sync__links_to_it_with_the_first_error(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        say(store, ONE, True, ["u"])
        store.freshness.record_received(APP, ["abc123"])
        store.completeness.raise_reason(APP, "abc123", IncompleteReason.SYNC_FAILED)
        store.completeness.raise_reason(APP, "abc123", IncompleteReason.COUNT_DIFFERS)
        call = {"type": "identify", "userId": "u", "traits": {ONE: 1}}
        assert caller(app).post(COHORT_PATH, json=call).status_code == 400
        services(app).sync_recorder.flush()
        (sync,) = store.sync_history.syncs(APP).syncs
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        gaps = browser.get(cohort_page("abc123")).text.partition("is incomplete")[2]
        gaps = gaps.partition("</ul>")[0]
        assert wrong.count(f'<a href="/sync?id={sync.id}">Failed sync</a>') == 1
        assert "<code>invalid_payload</code>" in wrong
        assert f"<bdi>traits.{ONE}: " in wrong
        assert gaps.count(f'<a href="/sync?id={sync.id}">Show the failed sync</a>.') == 1

    def test_users_left_out__in_the_last_sync_of_a_cohort__are_shown_with_a_link_to_it(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(user_policy="known", store_partitions=3, **KEYS)
        current = services(app).store
        current.registered_users.add(APP, ["known"])
        users = ["known", *(f"stranger-{n}" for n in range(1000))]
        for trait in (ONE, "later clean: x"):
            caller(app).post(COHORT_PATH, json=batch(users, trait, True))
        services(app).sync_recorder.flush()
        current.completeness.leave_out(APP, "abc123", {"unknown_user": 1000})
        _add_syncs(current, [formatting.now_ms() + 400_000], cohort_id="x")
        (sync,) = current.sync_history.syncs(APP, cohort_id="abc123").syncs
        browser = Browser(app).log_in()
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        assert "1 cohort with users left out in the last sync." in wrong
        assert f'href="/sync?id={sync.id}"><bdi>Power users</bdi></a>' in wrong
        assert "1,000 users, " in wrong
        assert "later clean" not in wrong
        page = browser.get(cohort_page("abc123")).text
        assert f'<a href="/sync?id={sync.id}">1,000</a> <code>unknown_user</code>' in page

    def test_late_and_never_received_cohorts__are_named(
        self, store: Store, browser: Browser
    ) -> None:
        for cohort_id in ("fresh1", "late1"):
            say(store, f"[Amplitude] {cohort_id}: {cohort_id}", True, ["u"])
            store.freshness.record_received(APP, [cohort_id])
        day = 24 * 3_600_000
        store.freshness.set_cadence(APP, "late1", day)
        _move_due(store, "late1", formatting.now_ms() - day)
        cohort = Cohort("empty1", "[Amplitude] empty1: empty1")
        store.memberships.register_cohort(APP, cohort, source="list")
        store.freshness.record_known(APP, "empty1")
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", wrong)).split())
        assert "1 cohort late." in text
        assert "late1 became late 1 day ago" in text
        assert "1 cohort created or imported, but never synced." in text
        assert "fresh1" not in text

    def test_failed_requests__without_a_cohort__are_not_hidden_by_later_syncs(
        self, app: Flask, browser: Browser
    ) -> None:
        http = caller(app)
        http.post(COHORT_PATH, data=b"{", content_type="application/json")
        services(app).sync_recorder.flush()
        for n in range(12):
            http.post(COHORT_PATH, json=identify("u", f"good: {n}", True))
            services(app).sync_recorder.flush()
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        assert "1 request failed that names no cohort." in wrong
        assert "Show the request</a>" in " ".join(wrong.split())
        assert "The body is not valid JSON." in wrong

    def test_failed_requests__after_which_the_same_succeeded__are_no_longer_red(
        self, app: Flask, browser: Browser
    ) -> None:
        http = caller(app)

        def post(path: str, body: Any) -> str:
            if isinstance(body, str):
                http.post(path, data=body, content_type="application/json")
            else:
                http.post(path, json=body)
            services(app).sync_recorder.flush()
            return browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]

        def message(cohort_id: str) -> Any:
            return webhook("A", cohort_id, ["u"], True, computed_time=1, message_id=cohort_id)

        broken = '{"cohort_id": "w1", "cohort_name": "A "B"'
        post(COHORT_PATH, identify("u", "other: x", True))
        post(WEBHOOK_PATH, broken)
        wrong = post(COHORT_PATH, "{")
        assert wrong.count('class="bad"') == 2
        # Of another source, and of another cohort.
        wrong = post("/lists", {"name": "list: y"})
        wrong = post(WEBHOOK_PATH, message("w2"))
        assert wrong.count('class="bad"') == 2
        wrong = post(COHORT_PATH, identify("u", "new: z", True))
        assert wrong.count('class="bad"') == 1
        wrong = post(WEBHOOK_PATH, message("w1"))
        assert 'class="bad"' not in wrong
        assert wrong.count("Later ones succeeded.") == 2
        wrong = post(COHORT_PATH, "{")
        assert wrong.count('class="bad"') == 1

    def test_failed_requests__for_a_cohort_that_the_store_lost__are_shown(
        self, app: Flask, store: Store, browser: Browser, redis_client: redis.Redis
    ) -> None:
        http = caller(app)
        http.post("/lists", json={"name": "[Amplitude] Lost: lost1"})
        services(app).sync_recorder.flush()
        redis_client.flushall()
        say(store, "another: x", True, ["u"])
        http.post("/lists/lost1/add", json={"userIds": ["u"]})
        services(app).sync_recorder.flush()
        wrong = browser.log_in().get("/").text.partition('id="wrong"')[2]
        text = " ".join(re.sub("</?(?:strong|code)[^>]*>", "", wrong).split())
        assert "1 request failed for a cohort that was not known here: lost1." in text

    def test_failed_requests__for_a_cohort_that_was_deleted__are_not_shown(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        http = caller(app)
        http.post("/lists", json={"name": "[Amplitude] Gone: gone1"})
        http.post("/lists/gone1/add", json={"userIds": 5})
        services(app).sync_recorder.flush()
        list(store.jobs.delete_cohort(APP, "gone1"))
        say(store, "another: x", True, ["u"])
        assert (
            "gone1"
            not in browser.log_in()
            .get("/")
            .text.partition('id="wrong"')[2]
            .partition("</section>")[0]
        )

    def test_many_problems__fold(self, app: Flask, store: Store, browser: Browser) -> None:
        say(store, "another: x", True, ["u"])

        def wrong(*refused: str) -> str:
            for path in refused:
                caller(app).post(path, data="{", content_type="application/json")
            services(app).sync_recorder.flush()
            page: str = browser.get("/").text
            return page.partition('id="wrong"')[2].partition("</section>")[0]

        assert "<details>" not in wrong(COHORT_PATH, WEBHOOK_PATH, "/lists")
        caller(app, "").post(COHORT_PATH, json={})
        assert wrong().count("<details>") == 4

    def test_requests_without_a_valid_key__that_have_ended__are_no_longer_red(
        self, app: Flask, store: Store, browser: Browser, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, ["u"])
        caller(app, "wrong").post(COHORT_PATH, json={})
        services(app).sync_recorder.flush()
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        assert '<li class="bad"><strong>1 request without a valid key' in wrong
        key = "cohorts:unknown-callers"
        (field,) = redis_client.hgetall(key)
        hour, reason = field.split(":")
        redis_client.hdel(key, field)
        redis_client.hset(key, f"{int(hour) - 3}:{reason}", 1)
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        assert '<li class="warn"><strong>1 request without a valid key' in wrong
        assert "in the last 24 hours, none in the last hour." in wrong

    def test_too_many_users__in_a_request__are_named_as_the_cause(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(max_batch_users=1000, **KEYS)
        say(services(app).store, "another: x", True, ["u"])
        users = [f"u{n}" for n in range(1001)]
        assert caller(app).post(COHORT_PATH, json=batch(users, ONE, True)).status_code == 400
        services(app).sync_recorder.flush()
        (sync,) = services(app).store.sync_history.syncs(APP).syncs
        browser = Browser(app).log_in()
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        for page in (wrong, browser.get("/syncs").text, browser.get(f"/sync?id={sync.id}").text):
            assert "First error: <bdi>batch: Must hold at most 1,000 users.</bdi>" in page
            assert "Lower the batch size in Amplitude to 1,000 or less" in page
            assert "payload template" not in page

    def test_failed_requests__for_a_cohort_that_is_not_known__show_the_id_that_was_sent(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        say(store, "another: x", True, ["u"])
        for list_id in ("nolist", "<b>", "nolist"):
            caller(app).post(f"/lists/{list_id}/add", json={"userIds": ["u"]})
        services(app).sync_recorder.flush()
        (sync,) = store.sync_history.syncs(APP).syncs
        wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        text = " ".join(re.sub("</?(?:strong|code)[^>]*>", "", wrong).split())
        assert (
            "3 requests failed for cohorts that were not known here, such as nolist, &lt;b&gt;."
        ) in text
        page = browser.get(f"/sync?id={sync.id}").text
        assert 'For <code class="id">nolist</code>, a cohort that was not known here' in page

    def test_store_full__leads(
        self, store: Store, browser: Browser, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, ["alice"])
        redis_client.config_set("maxmemory", 1)
        try:
            wrong = browser.get("/").text.partition('id="wrong"')[2].partition("</section>")[0]
        finally:
            redis_client.config_set("maxmemory", 0)
        assert "The store is full and rejects writes." in wrong


def _move_due(store: Store, cohort_id: str, late_ms: int) -> None:
    """Let a cohort be late from a time on."""
    partition = store.keys.partition(cohort_id)
    client: Any = store.freshness._client
    client.zadd(store.keys.due(APP, partition), {cohort_id: late_ms})
    client.hset(store.keys.freshness(APP, cohort_id), "late_after", late_ms)


class TestCohort:
    def test_page__shows_size_syncs_members_and_names(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        http = caller(app)
        users = [f"user-{n:03}" for n in range(120)]
        http.post(COHORT_PATH, json=batch(users, "[Amplitude] Old name: abc123", True))
        services(app).sync_recorder.flush()
        http.post(COHORT_PATH, json=batch(users[:20], ONE, False))
        services(app).sync_recorder.flush()
        page = browser.get(cohort_page("abc123")).text
        assert "<bdi>Power users</bdi>" in page
        assert "[Amplitude] Old name: abc123" in page
        assert '<path class="stroke"' in page
        assert "+120" in page
        assert "\N{MINUS SIGN}20" in page
        assert page.count("/users?id=user-") == 20
        following = html.unescape(re.search(r'href="([^"]+)" rel="next"', page)[1])  # type: ignore
        assert browser.get(following.partition("#")[0]).text.count("/users?id=user-") == 20

    def test_chart__of_the_syncs__shows_the_times_of_the_first_and_the_last(
        self, store: Store, browser: Browser
    ) -> None:
        say(store, ONE, True, ["alice"])
        times = [formatting.now_ms() - hours * 3_600_000 for hours in (3, 2, 1)]
        _add_syncs(store, times)
        page = browser.get(cohort_page("abc123")).text
        axis = page.partition('<figure class="chart bars"')[2].partition("</figure>")[0]
        assert re.findall(r'<span><time datetime="([^"]+)"', axis) == [
            formatting.iso(at) for at in times
        ]

    @pytest.mark.parametrize("cohort_id", ["a/b", "..", "a?b&c=d#e", "100%", "é 🎉", "<b>"])
    def test_link__to_a_cohort_of_any_id__leads_there(
        self, store: Store, browser: Browser, cohort_id: str
    ) -> None:
        say(store, f"n: {cohort_id}", True, ["a/b?c#d&e"])
        page = browser.get("/").text
        link = html.unescape(re.search(r'href="(/cohort\?[^"]+)"', page)[1])  # type: ignore
        found = browser.get(link).text
        assert f"<dd><code>{html.escape(cohort_id)}</code></dd>" in found
        user = html.unescape(re.search(r'href="(/users\?id=[^"]+)"', found)[1])  # type: ignore
        assert "a/b?c#d&amp;e</bdi>" in browser.get(user).text

    def test_members__are_downloaded_as_csv(self, store: Store, browser: Browser) -> None:
        users = [f"user-{n}" for n in range(50)]
        say(store, "[Amplitude] N: a/1 é", True, users)
        page = browser.get(cohort_page("a/1 é")).text
        link = html.unescape(re.search(r'href="([^"]+)" download', page)[1])  # type: ignore
        reply = browser.get(link)
        assert reply.mimetype == "text/csv"
        assert "attachment" in reply.headers["Content-Disposition"]
        assert len(reply.text.splitlines()) == 51
        browser.get("/cohort/members.csv?id=none", 404)

    def test_next_sync__is_shown_with_the_cadence(self, store: Store, browser: Browser) -> None:
        say(store, ONE, True, ["u"])
        store.freshness.record_received(APP, ["abc123"])
        assert "<dt>Next sync</dt><dd>unknown" in browser.get(cohort_page("abc123")).text
        store.freshness.set_cadence(APP, "abc123", 6 * 3_600_000)
        assert re.search(
            "Next sync</dt><dd><time[^>]*>in 6 hours<", browser.get(cohort_page("abc123")).text
        )
        assert "every 6 hours, next <time" in browser.get("/").text

    def test_cohort__never_received__is_404(self, browser: Browser) -> None:
        page = browser.get(cohort_page("x"), 404)
        assert "There is no such cohort" in page.text


class TestHostileInput:
    def test_names_and_ids__that_are_markup__stay_text(
        self, app: Flask, store: Store, admin: Browser
    ) -> None:
        http = caller(app)
        http.post(COHORT_PATH, json=identify(HOSTILE, f"{HOSTILE}: {HOSTILE}", True))
        http.post(COHORT_PATH, json={"type": "identify", "traits": {HOSTILE: 1}, "userId": "u"})
        services(app).sync_recorder.flush()
        sync_ids = [sync.id for sync in store.sync_history.syncs(APP).syncs]
        user = urlencode({"id": HOSTILE})
        for path in (
            "/",
            "/syncs",
            cohort_page(HOSTILE),
            f"/users?{user}",
            f"/?name={quote(HOSTILE)}",
            f"/login?next=/{quote(HOSTILE)}",
            f"/syncs?cohort={quote(HOSTILE)}",
            *(f"/sync?id={sync_id}" for sync_id in sync_ids),
        ):
            page = admin.get(path, 303 if path.startswith("/login") else 200).text
            assert "<script>alert" not in page, path
            assert "<img src=x" not in page, path
            assert "\"'&{{" not in page, path
            assert "49" not in re.findall(r"&amp;(\d+)", page), path

    def test_names__that_reorder_text__are_shown_escaped_and_typed_so(
        self, store: Store, admin: Browser
    ) -> None:
        say(store, "[Amplitude] \u202egnitelsim: x1", True, ["\u2066a\x00".replace("\x00", "\x01")])
        say(store, "[Amplitude] قبوצה \u200d: x2", True, ["u"])
        for page in (admin.get("/").text, admin.get(cohort_page("x1")).text):
            assert "\u202e" not in page
            assert "<bdi>\\u202egnitelsim</bdi>" in page
        assert "\\u2066a\\u0001" in admin.get(cohort_page("x1")).text
        assert "قبوצה \u200d" in admin.get("/").text  # joiners are part of words and of emoji
        token = admin.token()
        admin.send("/cohort/delete", token=token, id="x1", confirm="\\u202egnitelsim")

    def test_cohorts__of_the_same_name__differ_in_the_list_of_syncs(
        self, app: Flask, browser: Browser
    ) -> None:
        for cohort_id in ("t1", "t2"):
            caller(app).post(
                COHORT_PATH, json=identify("u", f"[Amplitude] Twin: {cohort_id}", True)
            )
        services(app).sync_recorder.flush()
        for path in ("/", "/syncs"):
            summaries = re.findall("<summary>.*?</summary>", browser.get(path).text, re.S)
            assert len({re.sub("<time.*?</time>", "", one) for one in summaries}) == 2

    def test_search__with_white_space_around_it__finds(
        self, store: Store, browser: Browser
    ) -> None:
        say(store, ONE, True, ["alice"])
        for name in ("  power  users ", f"\t{ONE} ", "abc123 "):
            assert "<bdi>Power users</bdi>" in browser.get(f"/?name={quote(name)}").text
        assert "Member since" in browser.get("/users?id=%20alice%20").text

    def test_user_id__that_is_invalid__is_400_with_the_reason(self, browser: Browser) -> None:
        page = browser.get(f"/users?id={'x' * 1025}", 400)
        assert "Must be at most 1024 bytes" in page.text


class TestSyncs:
    @pytest.fixture
    def synced(self, make_app: Callable[..., Flask]) -> Flask:
        app = make_app(user_policy="known", **KEYS)
        services(app).store.registered_users.add(APP, ["known"])
        http = caller(app)
        for n in range(120):
            http.post(COHORT_PATH, json=batch(["known", f"stranger-{n}"][: 1 + n % 2], ONE, True))
        http.post(COHORT_PATH, data=b"{", content_type="application/json")
        services(app).sync_recorder.flush()
        return app

    def test_sync__is_one_line_that_expands(self, synced: Flask) -> None:
        browser = Browser(synced).log_in()
        page = browser.get("/syncs").text
        assert page.count("<details>") == 2
        assert "120 requests" in page
        assert "<strong>60 users rejected.</strong>" in page
        assert "Register the users" in page
        assert "Failed requests" in page
        assert "The body is not valid JSON." in page
        assert "line 1 column 2" in page
        (refused,) = (line for line in page.split("<summary>") if "Failed requests" in line)
        assert (
            "via Property-based calls: <code>invalid_json</code>" in refused.split("</summary>")[0]
        )

    def test_sync__its_page__shows_each_request_and_the_rejected_users(self, synced: Flask) -> None:
        browser = Browser(synced).log_in()
        page = browser.get("/syncs").text
        links = [html.unescape(link) for link in re.findall(r'href="(/sync\?id=\d+)"', page)]
        texts = [browser.get(link).text for link in links]
        (sync,) = (text for text in texts if "Sync of <a" in text)
        assert "stranger" not in sync
        found = browser.get("/users?id=stranger-1").text
        assert "Nothing is stored about this user" in found
        assert user_hash("stranger-1") in sync
        assert "Rejected, unknown_user:" in sync
        assert "60 rejected" in sync.partition("<dl")[0]
        assert user_hash("stranger-1") in found

    def test_sync__users_left_out__are_shown_to_administrators_until_erased(
        self, synced: Flask
    ) -> None:
        store = services(synced).store
        (sync,) = store.sync_history.syncs(APP, cohort_id="abc123").syncs
        path, download = f"/sync?id={sync.id}", f"/sync/left-out.csv?id={sync.id}"
        admin = Browser(synced).log_in(ADMIN_KEY)
        assert "stranger-1<" in admin.get(path).text
        assert "users register left-out.csv --app-id shop<" in admin.get(path).text
        header, *rows = admin.get(download).text.splitlines()
        assert (header, len(rows)) == ('"user_id","reason"', 60)
        assert '"stranger-1","unknown_user"' in rows
        hashed = f"/users?id={user_hash('stranger-1')}"
        assert "This is the hash of" in admin.get(hashed).text
        reader = Browser(synced).log_in()
        assert "stranger" not in reader.get(path).text
        assert "stranger" not in reader.get(hashed).text
        reader.get(download, 403)
        store.erasure.erase(APP, "stranger-1")
        assert 'stranger-1"' not in admin.get(download).text
        assert len(admin.get(download).text.splitlines()) == 60

    def test_sync__users_left_out_are_not_to_be_kept__are_removed(
        self, synced: Flask, make_app: Callable[..., Flask], redis_client: redis.Redis
    ) -> None:
        assert redis_client.keys("*left-out")
        off = make_app(user_policy="known", history_left_out_users=0, **KEYS)
        caller(off).post(COHORT_PATH, json=batch(["known", "stranger-x"], ONE, True))
        services(off).sync_recorder.flush()
        assert redis_client.keys("*left-out") == []

    def test_sync__with_an_invalid_call__shows_the_first_error(
        self, app: Flask, browser: Browser
    ) -> None:
        for user_id in ("", "alice"):
            call = {"type": "identify", "userId": user_id, "traits": {ONE: True}}
            caller(app).post(COHORT_PATH, json=call)
        services(app).sync_recorder.flush()
        for path in ("/", "/syncs"):
            assert "First error: <bdi>userId: Invalid User ID: it must be" in browser.get(path).text

    def test_sync__with_users_without_an_id__says_that_others_were_applied_only_if_they_were(
        self, app: Flask, browser: Browser
    ) -> None:
        for users, applied in (([""], False), (["a", ""], True)):
            trait = f"cohort: {len(users)}"
            caller(app).post(COHORT_PATH, json=batch(users, trait, True))
            services(app).sync_recorder.flush()
            page = browser.get(f"/syncs?cohort={len(users)}").text
            assert "<strong>1 user rejected.</strong>" in page
            assert ("Everything else was applied." in page) == applied
            assert "Other users of the request" not in page

    def test_sync__with_users_without_an_id__shows_them(self, app: Flask, browser: Browser) -> None:
        caller(app).post(COHORT_PATH, json=batch(["a", "", " "], ONE, True))
        services(app).sync_recorder.flush()
        (sync,) = services(app).store.sync_history.syncs(APP).syncs
        page = " ".join(browser.get(f"/sync?id={sync.id}").text.split())
        assert "Rejected, invalid_user_id: no usable id" in page
        assert "and 1 more" in page

    def test_sync__of_many_requests__has_pages_of_each_kind(
        self, store: Store, browser: Browser
    ) -> None:
        batch = SyncBatch(SyncGroup(APP, "abc123"), ONE)
        for n in range(45):
            at = formatting.now_ms() - 60_000 + n
            batch.add(RequestRecord(at, 1, 200, "list", "key", f"good{n:02}", entered=1), {})
            bad = RequestRecord(at, 1, 200, "list", "key", f"bad{n:02}", rejected=1)
            batch.add(bad, {"unknown_user": 1})
        store.sync_history.add(APP, [batch], "one")
        (sync,) = store.sync_history.syncs(APP).syncs
        path, seen = f"/sync?id={sync.id}", set[str]()
        for link in (path, f"{path}&problems=true"):
            following: str | None = link
            while following:
                page = browser.get(following).text
                found = set(re.findall(r">((?:good|bad)\d\d)<", page))
                assert len(found) <= 40
                seen |= found
                links = [
                    html.unescape(one) for one in re.findall(r'href="([^"]+)" rel="next"', page)
                ]
                links = [one for one in links if ("problems=true" in one) == (link != path)]
                following = links[0].partition("#")[0] if links else None
        assert len(seen) == 90

    def test_sync__of_a_cohort_that_is_not_stored__links_to_no_page_of_it(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(user_policy="known", **KEYS)
        say(services(app).store, "another: x", True, ["u"])
        reply = caller(app).post(COHORT_PATH, json=batch(["stranger"], ONE, True))
        assert reply.json["reason"] == "unknown_user"
        services(app).sync_recorder.flush()
        (sync,) = services(app).store.sync_history.syncs(APP).syncs
        browser = Browser(app).log_in()
        for path in ("/", "/syncs", "/syncs?cohort=abc123", f"/sync?id={sync.id}"):
            page = browser.get(path).text
            assert "/cohort?id=abc123" not in page, path
            assert "The cohort is not stored here." in page, path
        say(services(app).store, ONE, True, ["u"])
        for path in ("/", "/syncs", "/syncs?cohort=abc123", f"/sync?id={sync.id}"):
            page = browser.get(path).text
            assert "/cohort?id=abc123" in page, path
            assert "The cohort is not stored here." not in page, path

    def test_times__under_a_millisecond__are_shown(self, store: Store, browser: Browser) -> None:
        _add_syncs(store, [formatting.now_ms()], took_ms=0.4)
        assert "0.4 ms, slowest 0.4 ms" in browser.get("/syncs").text

    def test_problems__alone__are_shown(self, synced: Flask) -> None:
        caller(synced).post(COHORT_PATH, json=identify("known", "good: 1", True))
        services(synced).sync_recorder.flush()
        browser = Browser(synced).log_in()
        assert browser.get("/syncs").text.count("<details>") == 3
        assert browser.get("/syncs?problems=true").text.count("<details>") == 2
        assert browser.get("/syncs?cohort=1").text.count("<details>") == 1

    def test_request__refused_as_too_large__shows_on_the_cohort_that_it_names(
        self, app: Flask, store: Store, browser: Browser
    ) -> None:
        say(store, ONE, True, ["alice"])
        users = [f"u{n}" for n in range(10_001)]
        assert caller(app).post(COHORT_PATH, json=batch(users, ONE, True)).status_code == 400
        services(app).sync_recorder.flush()
        assert "1 failed" in browser.get(cohort_page("abc123")).text
        reply = caller(app, READ_KEY).get("/api/v1/syncs?cohort=abc123&problems=true")
        assert [sync["failed"] for sync in reply.json["syncs"]] == [1]

    def test_sync__that_is_gone__is_404(self, browser: Browser) -> None:
        assert "no longer in the history" in browser.get("/sync?id=7", 404).text

    def test_reasons__every_one_that_a_sender_can_get__is_explained(self) -> None:
        def kinds(base: type) -> set[type]:
            return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))

        reasons = {kind.reason for kind in kinds(Problem) if kind.__module__ == errors.__name__}
        reasons |= {kind.reason for kind in kinds(StoreError)}
        never_for_senders = {
            "too_many_cohorts",
            "cursor_expired",
            "too_many_followers",
            "unknown_sync",
            # of calls for administrators
            *("no_resync", "resync_unfinished", "resync_empty", "resync_shrinks"),
            *("resync_ended", "resync_store_lost"),
            *("resync_finishing", "invalid_file", "no_reconcile", "upstream_not_configured"),
            *("reconcile_running", "export_budget_spent"),
        }
        assert reasons - never_for_senders <= ADVICE.keys()
        assert all(ADVICE[kind.reason].action_now for kind in kinds(StoreError))


class TestAdmin:
    def test_read_key__may_not_delete_or_erase(self, store: Store, browser: Browser) -> None:
        say(store, ONE, True, ["alice"])
        assert "Delete cohort" not in browser.get(cohort_page("abc123")).text
        assert "Erase user" not in browser.get("/users?id=alice").text
        token = browser.token()
        fields = {"token": token, "id": "abc123", "confirm": "Power users"}
        browser.send("/cohort/delete", 403, **fields)
        browser.send("/users/erase", 403, token=token, id="alice", confirm="alice")
        assert store.lookups.user(APP, "alice").traits == {ONE: True}

    def test_delete__with_its_name_typed__begins(self, store: Store, admin: Browser) -> None:
        say(store, ONE, True, ["alice"])
        fields = {"token": admin.token(), "id": "abc123"}
        page = admin.send("/cohort/delete", 400, **fields, confirm="power users")
        assert "The name does not match. Nothing was deleted." in page.text
        reply = admin.send("/cohort/delete", **fields, confirm=" Power  users ")
        assert "The cohort is being deleted" in admin.get(reply.headers["Location"]).text
        assert store.registry.find(APP, "abc123").status == "deleting"

    def test_erase__with_the_id_typed__erases(self, store: Store, admin: Browser) -> None:
        say(store, ONE, True, ["alice", "bob"])
        fields = {"token": admin.token(), "id": "alice"}
        page = admin.send("/users/erase", 400, **fields, confirm="Alice")
        assert "Nothing was erased" in page.text
        assert store.lookups.user(APP, "alice").traits == {ONE: True}
        reply = admin.send("/users/erase", **fields, confirm="alice")
        assert "The user was erased." in admin.get(reply.headers["Location"]).text
        assert store.lookups.user(APP, "alice").traits == {}
        assert not store.lookups.user_record(APP, "alice").suppressed
        fields = {"token": admin.token(), "id": "bob", "confirm": "bob", "suppress": "true"}
        admin.send("/users/erase", **fields)
        assert store.lookups.user_record(APP, "bob").suppressed
        assert "is suppressed" in admin.get("/users?id=bob").text

    @pytest.mark.parametrize(
        ("trait", "user_id"),
        [
            ("  ", "a\r\nb "),
            ("\u3164", "  "),
            ("\r\n", "a\nb"),
            ("\u2800: \r\n%41", "%41"),
            ("n: 1", "\u200b"),
        ],
    )
    def test_names_and_ids__of_white_space_or_nothing_seen__are_typed_as_shown(
        self, store: Store, admin: Browser, trait: str, user_id: str
    ) -> None:
        say(store, trait, True, [user_id])
        found = admin.get(html.unescape(self._first_link(admin.get("/").text, "/cohort")))
        user = admin.get(self._first_link(found.text, "/users"))
        admin.send("/users/erase", **self._confirmed(user.text))
        assert store.lookups.user(APP, user_id).traits == {}
        admin.send("/cohort/delete", **self._confirmed(found.text))
        assert "is being deleted" in admin.get(found.request.full_path).text

    def _first_link(self, page: str, target: str) -> str:
        link, text = re.search(rf'href="({target}\?[^"]+)"><bdi>(.*?)</bdi>', page, re.S).groups()  # type: ignore
        assert formatting.is_visible(text)
        return html.unescape(link)

    def _confirmed(self, page: str) -> dict[str, str]:
        """The fields of a page's form, with what it shows typed to confirm."""
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        shown = re.search(r"<strong><bdi>(.*?)</bdi></strong>", page, re.S)[1]  # type: ignore
        return {**fields, "confirm": " ".join(html.unescape(shown).split())}

    @pytest.mark.parametrize("score", ["-inf", "inf", "-62135596801000", "1e300"])
    def test_times__whatever_the_store_holds__are_shown(
        self, app: Flask, store: Store, run: Run, redis_client: redis.Redis, score: str
    ) -> None:
        say(store, ONE, True, ["alice"])
        for key in redis_client.keys("*:cohort:abc123:members"):
            redis_client.zadd(key, dict.fromkeys(redis_client.zrange(key, 0, -1), score))
        browser = Browser(app).log_in()
        for page in ("/", cohort_page("abc123"), "/users?id=alice"):
            browser.get(page)
        for path in ("users/alice", "cohorts/abc123/members", "cohorts/abc123/members?format=csv"):
            assert caller(app, READ_KEY).get(f"/api/v1/{path}").status_code == 200
        assert run("users", "show", "alice").exit_code == 0

    def test_delete__of_a_cohort_from_the_year_1__begins(
        self, app: Flask, store: Store, admin: Browser
    ) -> None:
        call = {"type": "identify", "userId": "alice", "traits": {ONE: True}}
        for time_ in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
            body = call | {"timestamp": time_}
            assert caller(app).post("/v1/identify", json=body).status_code == 200
            for page in ("/", cohort_page("abc123"), "/users?id=alice", "/syncs"):
                admin.get(page)
        admin.send("/cohort/delete", **self._confirmed(admin.get(cohort_page("abc123")).text))

    def test_delete__of_what_is_not_there__is_404(self, admin: Browser) -> None:
        fields = {"token": admin.token(), "id": "x", "confirm": "x"}
        admin.send("/cohort/delete", 404, **fields)


class TestHealth:
    def test_health__shows_the_store(self, store: Store, browser: Browser) -> None:
        page = browser.get("/health").text
        assert "Store memory" in page
        assert "no limit" in page
        assert "No renames or deletions in progress." in page

    def test_store_that_may_evict_keys__shows_a_warning(
        self, browser: Browser, redis_client: redis.Redis
    ) -> None:
        redis_client.config_set("maxmemory", 1 << 30)
        redis_client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert "The store may lose data." in browser.get("/health").text
        finally:
            redis_client.config_set("maxmemory-policy", "noeviction")
            redis_client.config_set("maxmemory", 0)

    def test_store_unreachable__is_an_error_page(
        self, make_app: Callable[..., Flask], tmp_path: Any
    ) -> None:
        app = make_app(**KEYS)
        cookie = Browser(app).log_in()._http.get_cookie("cohort-receiver")
        gone = make_app(redis_url=f"unix://{tmp_path}/none", **KEYS)
        http = gone.test_client()
        http.set_cookie("cohort-receiver", cookie.value)
        page = http.get("/")
        assert page.status_code == 503
        assert page.mimetype == "text/html"
        assert "The store could not be reached." in page.text
        assert "See Health" not in page.text
        assert 'href="/readyz"' in page.text
        for label in ("Cohorts", "Syncs", "Users", "Health"):
            assert f">{label}</a>" in page.text
        assert http.get("/login").status_code == 503

    def test_store_full__the_dashboard_still_opens(
        self, app: Flask, store: Store, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, ["alice"])
        store.sessions.secret()
        redis_client.config_set("maxmemory", 1)
        try:
            browser = Browser(app).log_in()
            assert "Power users" in browser.get("/").text
            health = browser.get("/health").text
            assert "The store is full and rejects writes." in health
            assert "nearly full" in health
            assert "See Health" not in health
        finally:
            redis_client.config_set("maxmemory", 0)


class TestAssets:
    def test_assets__are_cached_for_a_year_and_no_other_file_is_served(self, app: Flask) -> None:
        http = app.test_client()
        page = http.get("/login").text
        for address in re.findall(r'(?:href|src)="(/assets/[^"]+)"', page):
            reply = http.get(address, buffered=True)
            assert reply.status_code == 200
            assert "immutable" in reply.headers["Cache-Control"]
        for name in ("views.py", "..%2Fviews.py", "x.css"):
            assert http.get(f"/assets/{name}").status_code == 404


class TestCharts:
    def test_line__of_sizes__is_steps_from_zero_with_round_ticks(self) -> None:
        sizes = [Size(0, 10), Size(500_000, 20), Size(750_000, 0)]
        line = charts.line(sizes, 900_000)
        assert line
        assert line.path == "M0 50.0H555.6V0.0H833.3V100.0H1000"
        assert (line.high, line.first, line.last) == (20, 10, 0)
        assert [tick.value for tick in line.ticks] == [20, 15, 10, 5, 0]
        assert line.times_ms == [0, 300_000, 600_000, 900_000]
        short = charts.line(sizes[:1], 150_000)
        assert short
        assert short.times_ms == [0, 75_000, 150_000]  # no minute twice
        assert charts.line([], 1000) is None
        for members, top in ((0, 1), (7, 8), (7234, 8000), (1_000_000, 1_000_000)):
            one = charts.line([Size(0, members)], 1000)
            assert one
            assert one.ticks[0].value == top
            assert one.ticks[-1] == (0, charts.HEIGHT)
            assert len(one.ticks) <= 5

    def test_bars__one_far_longer_than_the_others__is_clipped(self) -> None:
        def synced(*moves: tuple[int, int]) -> list[Sync]:
            return [Sync(1, "c", "", 0, 0, entered=up, left=down) for up, down in moves]

        even = charts.bars(synced((10, 0), (40, 5)))
        assert even
        assert (even.most_entered, even.most_left, even.clipped) == (40, 20, [])
        assert [tick.value for tick in even.ticks] == [40, 20, 0, -20]
        assert max(bar.entered_height for bar in even.bars) == even.middle
        assert (even.bars[0].x, even.bars[-1].x + even.bars[-1].width) == (0, charts.WIDTH)
        first = charts.bars(synced((10, 2), (8, 3), (5000, 0)))
        assert first
        assert first.most_entered == 15
        assert [sync.entered for sync in first.clipped] == [5000]
        assert first.bars[0].entered_height == first.middle
        assert charts.bars(synced((0, 0))) is None

    @pytest.mark.parametrize(
        ("ms", "said"),
        [
            (0.04, "<0.1 ms"),
            (0.42, "0.4 ms"),
            (93, "93 ms"),
            (1500, "2 s"),
            (42_000, "42 s"),
            (75_000, "1 min"),
            (119_000, "2 min"),
            (3_660_000, "1 h"),
            (5_400_000, "90 min"),
            (180_000, "3 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
        ],
    )
    def test_span__uses_one_unit(self, ms: float, said: str) -> None:
        assert formatting.span(ms) == said

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0, "just now"),
            (-4, "just now"),
            (42, "42 seconds ago"),
            (61, "1 minute ago"),
            (111, "2 minutes ago"),
            (61 * 60, "1 hour ago"),
            (90 * 60, "90 minutes ago"),
            (22 * 3600, "22 hours ago"),
            (-7200, "in 2 hours"),
        ],
    )
    def test_ago__uses_one_unit(self, seconds: int, said: str) -> None:
        assert formatting.ago(formatting.now_ms() - seconds * 1000) == said

    @pytest.mark.parametrize(
        ("hours", "said"), [(1, "every hour"), (21, "every 21 hours"), (24, "every day")]
    )
    def test_every__one_unit__leaves_out_the_number(self, hours: int, said: str) -> None:
        assert formatting.every(hours * 3_600_000) == said

    @pytest.mark.parametrize(
        ("trait", "cohort_id", "said"),
        [
            (ONE, "abc123", "Power users"),
            ("a: b: c", "c", "a: b"),
            ("plain", "name-1", "plain"),
            (": x", "x", "x"),
            ("[Amplitude]", "name-2", "name-2"),
            ("", "x", "x"),
            ("   ", "name-3", "name-3"),
            ("\u200b\u3164: x", "x", "x"),
            ("\u200b: \u200b", "\u200b", "%E2%80%8B"),
        ],
    )
    def test_cohort_name__is_the_name_in_amplitude(
        self, trait: str, cohort_id: str, said: str
    ) -> None:
        assert formatting.cohort_name(trait, cohort_id) == said
