"""The dashboard shows the pages of docs/, and its links to them lead somewhere."""

from __future__ import annotations

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
        title, html = rendered
        assert title
        for link in re.findall(r'href="([^"]+)"', html):
            path, _, anchor = link.partition("#")
            if ":" in path:
                continue
            target = (DOCS / name).parent.joinpath(path).resolve() if path else DOCS / name
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


@pytest.mark.parametrize("name", ["none.md", "pictures/empty.png", "acl/..", "%2e%2e/README.md"])
def test_page__that_is_none__is_404(app: Flask, name: str) -> None:
    Browser(app).log_in().get(f"/guide/{name}", status=404)
