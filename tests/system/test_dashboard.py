"""The dashboard in Chromium: keyboard, screen reader, phone, light and dark.

``make browser`` also saves the pictures for docs/dashboard.md.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from simulator import payloads
from tests.support import sample_history
from tests.support.effort import thorough
from tests.support.service import ADMIN_KEY, APP, ROOT, Service, running
from tests.support.stores import running_store, socket_url, start_store, store_folder

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
READ_KEY = "TEST_READ_KEY"
HOSTILE = "</title><script>window.broken=1</script><img src=x onerror=window.broken=2>"
# A name of white space, and an id of two lines.
BLANK_COHORT = f"name-{sha256(b'  ').hexdigest()[:24]}"
BLANK_USER = "two\nlines"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
TALL = {"width": 1280, "height": 1240}
TIMEOUT_MS = 20_000
# Open pages refresh every ten seconds.
REFRESH_MS = 10_500

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
# One pair of colours and size notices most mistakes in all of them.
looks = pytest.mark.parametrize(
    ("colours", "size"),
    [
        pytest.param("light", DESKTOP, id="light-desktop"),
        pytest.param("dark", PHONE, id="dark-phone", marks=thorough),
        pytest.param("light", PHONE, id="light-phone", marks=thorough),
        pytest.param("dark", DESKTOP, id="dark-desktop", marks=thorough),
    ],
)

PAGES = {
    "cohorts": "/",
    "cohort": "/cohort?id=a7k2mq",
    "syncs": "/syncs",
    "user": "/users?id=ann.lee@example.com",
    "health": "/health",
    "guide": "/guide/operations.md",
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    missing = "playwright" if sync_playwright is None else "" if CHROMIUM else "chromium"
    if missing:
        pytest.skip(f"{missing} is not installed; see make browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def filled() -> Iterator[Service]:
    """A service with several weeks of syncs."""
    with running_store() as url, started(url) as service:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            # Pictures look better with more.
            sample_history.fill(service, client, 9 if "PICTURES" in os.environ else 3)
        yield service


@pytest.fixture(scope="module")
def empty() -> Iterator[Service]:
    """A service that has received nothing."""
    with running_store() as url, started(url) as service:
        yield service


def started(store_url: str) -> Any:
    return running(
        {
            "REDIS_URL": store_url,
            "RATE_LIMIT": "off",
            "WEB_CONCURRENCY": "2",
            "READ_API_KEYS": f"{APP}:{READ_KEY}",
            "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
        }
    )


@pytest.fixture
def own_store() -> Iterator[str]:
    """A store that no other test writes to."""
    with running_store() as url:
        yield url


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page, logged in. Fails if any page logged an error."""
    contexts = []
    trouble: list[str] = []

    def open_one(service: Service, key: str | None = READ_KEY, **options: Any) -> Any:
        context = chromium.new_context(
            base_url=service.url,
            **{"viewport": DESKTOP, "locale": "en-GB", "timezone_id": "Europe/Berlin", **options},
        )
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        # Violations of the Content-Security-Policy are console errors too.
        page.on("console", lambda message: trouble.extend(_errors(message)))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        if key:
            page.goto("/login")
            page.get_by_label("Key").fill(key)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url(re.compile(r"/(\?setup=webhook)?$"))
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert trouble == []


def _errors(message: Any) -> list[str]:
    # Chromium also logs 4xx replies and failed requests, which tests provoke.
    expected = message.text.startswith("Failed to load resource: ")
    return [message.text] if message.type == "error" and not expected else []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("PICTURES")
    folder = ROOT / wanted if wanted else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def violations(page: Any) -> list[str]:
    """The violations of any axe rule."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found
        for node in violation["nodes"]
    ]


@looks
def test_pages__light_and_dark_large_and_small__have_no_axe_violations(
    filled: Service, open_page: Callable[..., Any], colours: str, size: dict[str, int]
) -> None:
    page = open_page(filled, ADMIN_KEY, color_scheme=colours, viewport=size, bypass_csp=True)
    for name, path in PAGES.items():
        page.goto(path)
        for line in page.locator("summary").all()[:6]:
            line.click()
        assert violations(page) == [], name
        assert _too_wide(page) <= 0, name
    page.goto("/syncs?problems=true")
    page.locator("summary").first.click()
    page.get_by_role("link", name=re.compile("^Show the")).first.click()
    page.wait_for_url(re.compile("/sync\\?"))
    assert violations(page) == []
    page.goto("/cohort?id=nowhere")
    assert violations(page) == []


@looks
@thorough
def test_empty_page__light_and_dark_large_and_small__has_no_axe_violations(
    empty: Service, open_page: Callable[..., Any], colours: str, size: dict[str, int]
) -> None:
    page = open_page(empty, color_scheme=colours, viewport=size, bypass_csp=True)
    page.get_by_role("heading", name="Ready for the first cohort").wait_for()
    for integration in ("Cohort webhook", "Property-based", "List-based"):
        page.get_by_role("link", name=integration).click()
        assert violations(page) == []
        assert _too_wide(page) <= 0


@thorough
@pytest.mark.parametrize("width", [320, 640], ids=["small phone", "1280 pixels at 200%"])
def test_pages__in_a_narrow_window__do_not_scroll_sideways(
    filled: Service, open_page: Callable[..., Any], width: int
) -> None:
    page = open_page(filled, ADMIN_KEY, viewport={"width": width, "height": 600})
    for name, path in PAGES.items():
        page.goto(path)
        for line in page.locator("summary").all()[:6]:
            line.click()
        assert _too_wide(page) <= 0, name


def _too_wide(page: Any) -> int:
    """By how many pixels a page is wider than its window."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return wide


def test_login_page__has_no_axe_violations(filled: Service, open_page: Callable[..., Any]) -> None:
    for colours in ("light", "dark"):
        page = open_page(filled, None, color_scheme=colours, bypass_csp=True)
        page.goto("/login")
        assert violations(page) == []
    page.get_by_label("Key").fill("wrong")
    with page.expect_response(lambda reply: reply.status == 401):
        page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").wait_for()
    assert violations(page) == []


def test_keyboard_alone__logs_in_expands_a_sync_and_logs_out(
    filled: Service, open_page: Callable[..., Any]
) -> None:
    page = open_page(filled, None)
    page.goto("/syncs")
    page.keyboard.type(READ_KEY)  # the field has the focus from the start
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"//[^/]+/syncs$"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    _tab_to(page, "document.activeElement.matches('.syncs summary')")
    page.keyboard.press("Enter")
    assert page.locator(".syncs details[open]").count() == 1
    _tab_to(page, "/^Show\\s+the/.test(document.activeElement.textContent.trim())")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/sync\?id="))
    _tab_to(page, "document.activeElement.textContent === 'Log out'")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/login"))


def _tab_to(page: Any, condition: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(condition):
            return
    raise AssertionError(f"not reachable by keyboard: {condition}")


def test_without_javascript__everything_works(
    filled: Service, open_page: Callable[..., Any]
) -> None:
    page = open_page(filled, java_script_enabled=False)
    page.get_by_label("Name", exact=True).fill("power")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="Power users").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Power users"
    assert page.locator("main time").first.inner_text()
    page.locator(".syncs summary").first.click()
    page.get_by_role("link", name=re.compile("^Show the")).first.click()
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_label("User id").fill("ann.lee@example.com")
    page.get_by_role("button", name="Look up").click()
    assert page.get_by_role("link", name="Power users").is_visible()
    page.get_by_role("button", name="Log out").click()
    assert page.get_by_role("status").inner_text() == "You are logged out."


@thorough
def test_names_and_ids__that_are_markup__stay_text(
    open_page: Callable[..., Any], own_store: str
) -> None:
    with started(own_store) as own:
        trait = f"{HOSTILE}: {HOSTILE}"
        own.post(payloads.batch([HOSTILE, "javascript:alert(1)"], trait, True))
        own.post({"type": "identify", "userId": "u", "traits": {HOSTILE: 1}})
        page = open_page(own, ADMIN_KEY)
        page.goto("/syncs")
        _reload_until(page, lambda: page.locator(".syncs > li").count() == 2)
        for path in ("/", "/syncs"):
            page.goto(path)
            for line in page.locator("summary").all():
                line.click()
            assert page.evaluate("window.broken") is None
        page.goto("/")
        page.locator(".cohorts th a").first.click()
        page.wait_for_url(re.compile("/cohort"))
        assert page.get_by_role("heading", level=1).inner_text() == HOSTILE
        page.get_by_role("link", name="javascript:alert(1)").click()
        page.wait_for_url(re.compile("/users"))
        assert page.evaluate("window.broken") is None


@thorough
def test_names_and_ids__of_white_space__are_visible_and_can_be_typed(
    open_page: Callable[..., Any], own_store: str
) -> None:
    with started(own_store) as own:
        own.post(payloads.batch([BLANK_USER, " ", "\u200b"], "  ", True))
        page = open_page(own, ADMIN_KEY, bypass_csp=True)
        page.goto("/syncs")
        _reload_until(page, lambda: page.locator(".syncs > li").count() == 1)
        user = f"/users?{urlencode({'id': BLANK_USER})}"
        for path in ("/", "/syncs", f"/cohort?id={BLANK_COHORT}", user):
            page.goto(path)
            for line in page.locator("summary").all():
                line.click()
            assert violations(page) == [], path
        page.get_by_label(re.compile("to confirm")).fill("two lines")
        page.get_by_role("button", name="Erase user").click()
        page.get_by_role("status").get_by_text("The user was erased.").wait_for()
        page.goto("/")
        page.locator(".cohorts").get_by_role("link", name=BLANK_COHORT).click()
        page.get_by_label(re.compile("to confirm")).fill(BLANK_COHORT)
        page.get_by_role("button", name="Delete cohort").click()
        page.get_by_role("status").get_by_text("is being deleted").wait_for()


def _reload_until(page: Any, condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(100)
        page.reload()
    raise AssertionError("not within 100 reloads")


@thorough
def test_first_cohort__arrives_while_the_page_is_open__appears(
    open_page: Callable[..., Any], own_store: str, pictures: Path
) -> None:
    with started(own_store) as own:
        page = open_page(own)
        page.get_by_role("heading", name="Ready for the first cohort").wait_for()
        page.screenshot(path=pictures / "empty.png")
        page.get_by_label("A curl command").click()
        own.post(payloads.batch(["u1", "u2"], "[Amplitude] Early birds: e1", True))
        page.get_by_text("Early birds").wait_for()
        assert page.get_by_role("heading", name="Ready for the first cohort").is_visible()
        page.get_by_role("link", name="Show the cohorts").click()
        page.get_by_role("link", name="Set up an integration").click()
        own.post(payloads.batch(["u1"], "[Amplitude] Night owls: n1", True))
        page.get_by_text("Night owls").wait_for()
        page.get_by_role("link", name="Show the cohorts").click()
        own.post(payloads.batch(["u3"], "[Amplitude] Early birds: e1", True))
        page.get_by_role("cell", name="3", exact=True).wait_for()


@thorough
def test_page__needs_a_reload_while_a_field_has_the_focus__waits_until_it_is_left(
    open_page: Callable[..., Any], own_store: str
) -> None:
    with started(own_store) as own:
        own.post(payloads.batch(["u1"], "[Amplitude] Early birds: e1", True))
        page = open_page(own)
        page.clock.install()
        page.goto("/?name=late")
        name = page.get_by_label("Name", exact=True)
        name.focus()
        own.post(payloads.batch(["u1"], "[Amplitude] Late risers: l1", True))
        page.clock.fast_forward(REFRESH_MS)
        page.get_by_role("definition").get_by_text("2", exact=True).wait_for()
        assert page.get_by_text("No cohorts match.").is_visible()
        name.blur()
        page.get_by_role("link", name="Late risers").wait_for()


@thorough
def test_page__that_cannot_be_refreshed__says_since_when_and_why(
    open_page: Callable[..., Any],
) -> None:
    with store_folder() as folder:
        store = start_store(folder, "--appendonly", "yes")
        try:
            with started(socket_url(folder)) as own:
                page = open_page(own, bypass_csp=True)
                page.clock.install()
                page.reload()

                def shows(text: str) -> None:
                    page.clock.fast_forward(REFRESH_MS)
                    page.get_by_role("status").get_by_text(re.compile(text)).wait_for()

                page.context.set_offline(True)
                shows(r"^Not updated since \d\d:\d\d. The service is unreachable.$")
                page.context.set_offline(False)
                store.terminate()
                store.wait(30)
                shows("The store could not be reached.$")
                assert violations(page) == []
                page.reload()
                page.get_by_role("link", name="/readyz").wait_for()
                assert violations(page) == []
                store = start_store(folder, "--appendonly", "yes")
                page.get_by_role("link", name="Cohorts", exact=True).click()
                page.get_by_role("heading", name="Ready for the first cohort").wait_for()
                page.context.set_offline(True)
                shows("The service is unreachable.$")
                page.context.set_offline(False)
                page.clock.fast_forward(REFRESH_MS)
                page.get_by_text("Not updated").wait_for(state="detached")
                page.context.clear_cookies()
                shows("You are logged out.")
        finally:
            store.kill()
            store.wait(30)


@thorough
def test_delete__asks_for_the_name_and_removes_the_cohort(
    open_page: Callable[..., Any], own_store: str
) -> None:
    with started(own_store) as own:
        own.post(payloads.batch(["u1", "u2"], "[Amplitude] Early birds: e1", True))
        page = open_page(own, ADMIN_KEY)
        page.goto("/cohort?id=e1")
        confirm = page.get_by_label(re.compile("to confirm"))
        confirm.fill("early")
        with page.expect_response(lambda reply: reply.status == 400):
            page.get_by_role("button", name="Delete cohort").click()
        assert "does not match" in page.get_by_role("alert").inner_text()
        page.get_by_label(re.compile("to confirm")).fill("Early birds")
        page.get_by_role("button", name="Delete cohort").click()
        assert "is being deleted" in page.get_by_role("status").inner_text()
        _reload_until(page, lambda: page.get_by_role("link", name="Early birds").count() == 0)


@pytest.mark.skipif("PICTURES" not in os.environ, reason="for make browser, and CI")
@pytest.mark.parametrize(
    ("name", "path", "options"),
    [
        ("cohorts", "/", {"viewport": TALL}),
        ("cohorts-dark", "/", {"color_scheme": "dark"}),
        ("cohort", "/cohort?id=a7k2mq", {"viewport": TALL}),
        ("syncs", "/syncs", {}),
        ("user", "/users?id=ann.lee@example.com", {}),
        ("health", "/health", {}),
        ("phone", "/", {"viewport": PHONE}),
    ],
)
def test_picture__of_each_page__is_taken(
    filled: Service,
    open_page: Callable[..., Any],
    pictures: Path,
    name: str,
    path: str,
    options: dict[str, Any],
) -> None:
    page = open_page(filled, **options)
    page.goto(path)
    if name == "syncs":
        page.locator("summary", has_text="failed").first.click()
    page.mouse.move(0, 0)
    page.screenshot(path=pictures / f"{name}.png")
    assert (pictures / f"{name}.png").stat().st_size > 10_000
