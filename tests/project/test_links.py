"""Links and paths in the Markdown pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "ops/*.md", "reader/*.md", "bench/*.md", "tests/*.md")
    for page in ROOT.glob(pattern)
)
_CODE = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:app|bench|docs|ops|reader|requirements|simulator|tests)/[\w./-]+)`")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links__of_each_page__lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_paths__that_pages_name__exist() -> None:
    # CONTRIBUTING.md names files that its reader will create.
    pages = [page for page in PAGES if page.name != "CONTRIBUTING.md"]
    named = {(page, path) for page in pages for path in _PATH.findall(page.read_text())}
    assert len(named) > 100
    assert not [(page.name, path) for page, path in named if not (ROOT / path).exists()]


def test_decisions__each_page__is_in_their_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(_LINK.findall((folder / "README.md").read_text()))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}
