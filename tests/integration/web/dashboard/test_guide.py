"""The dashboard shows the pages of docs/, and its links to them lead somewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask

from app.web.dashboard import guide
from tests.integration.web.dashboard.test_views import KEYS, Browser

DOCS = Path(__file__).resolve().parents[4] / "docs"
TEMPLATES = Path(guide.__file__).with_name("templates")
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_links__between_pages__lead_to_a_page_and_a_heading() -> None:
    pages = {name: guide.page(name) for name in PAGES}
    followed = 0
    for name, rendered in pages.items():
        assert rendered, name
        title, text = rendered
        assert title
        for link in re.findall(r'href="([^"]+)"', text):
            path, _, anchor = link.partition("#")
            if ":" in path:
                continue
            target = (DOCS / name).parent.joinpath(path).resolve() if path else DOCS / name
            if guide.has_file(target.relative_to(DOCS).as_posix()):
                continue
            found = pages[target.relative_to(DOCS).as_posix()]
            assert found
            assert not anchor or f'id="{anchor}"' in found[1], f"{name} links to {link}"
            followed += 1
    assert followed > 250


def test_links__of_the_dashboard__lead_to_a_page_and_a_heading() -> None:
    links = [
        re.findall(r"'([^']+)'", arguments)
        for template in TEMPLATES.glob("*.html")
        for arguments in re.findall(r"\bdoc\(('[^)]+)\)", template.read_text())
    ]
    assert len(links) > 4
    for name, *anchor in links:
        found = guide.page(name)
        assert found, name
        assert not anchor or f'id="{anchor[0]}"' in found[1], (name, anchor)
    assert not [
        template.name
        for template in TEMPLATES.glob("*.html")
        if "<code>docs/" in template.read_text()
    ]


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(**KEYS)


def test_page__of_the_documentation__is_shown_to_who_is_logged_in(app: Flask) -> None:
    Browser(app).get("/guide/operations.md", status=303)
    page = Browser(app).log_in().get("/guide/operations.md").text
    assert '<h3 id="storedown">StoreDown</h3>' in page
    assert "<table" in page


def test_page__with_pictures__is_without_them_and_their_captions(app: Flask) -> None:
    page = Browser(app).log_in().get("/guide/dashboard.md").text
    assert "<h3" in page
    assert not re.search(r"<p></p>|<em>A user, with|pictures/", page)
    # Nothing but pictures under a heading would leave it without text.
    assert not re.search(r"</h3>\s*<h", page)


def test_page__that_links_to_a_file__leads_to_its_download(app: Flask) -> None:
    browser = Browser(app)
    browser.get("/guide/amplitude-testing.csv", status=303)
    page = browser.log_in().get("/guide/amplitude-setup.md").text
    assert 'href="amplitude-testing.csv"' in page
    with browser.get("/guide/amplitude-testing.csv") as file:
        assert file.data == (DOCS / "amplitude-testing.csv").read_bytes()
        assert file.mimetype == "text/csv"
        assert "attachment" in file.headers["Content-Disposition"]
    with browser.get("/guide/acl/reader.acl") as permissions:
        assert permissions.data == (DOCS / "acl" / "reader.acl").read_bytes()


def test_index__is_in_the_footer_and_lists_every_page_by_its_title(app: Flask) -> None:
    browser = Browser(app)
    assert 'href="/guide/">Documentation</a>' in browser.get("/login").text
    index = browser.log_in().get("/guide/").text
    listed = dict(re.findall(r'<li><a href="/guide/([^"]+)">(.+?)</a>', index))
    assert listed.keys() == {name for name in PAGES if "/" not in name} | {"decisions/README.md"}
    for name, title in listed.items():
        found = guide.page(name)
        assert found
        assert html.unescape(title) == found[0]


def test_index__has_the_groups_of_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text().partition("## Documentation")[2]
    groups = {}
    for part in re.split(r"\n(?=[A-Z][a-z ]+:\n)", readme)[1:]:
        found = re.findall(r"\(docs/([^)#]*)\)", part.partition("\n\n[")[0])
        groups[part.partition(":")[0]] = [
            f"{name}README.md" if name[-1] == "/" else name for name in found
        ]
    shown = {group: [name for name, _ in pages] for group, pages in guide.groups().items()}
    del shown["More"]
    assert shown == groups


def test_page__without_its_ending__leads_to_it(app: Flask) -> None:
    reply = Browser(app).log_in().get("/guide/refused-syncs", status=301)
    assert reply.location == "/guide/refused-syncs.md"


@pytest.mark.parametrize(
    "name", ["none.md", "none.csv", "pictures/empty.png", "acl/..", "%2e%2e/README.md"]
)
def test_page__that_is_none__is_404(app: Flask, name: str) -> None:
    Browser(app).log_in().get(f"/guide/{name}", status=404)
