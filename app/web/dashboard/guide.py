"""Render the pages of docs/, to which the dashboard's pages link."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

# In a checkout, a link to docs/; in an installed package, a copy.
FOLDER = Path(__file__).parents[2] / "docs"
_PAGE = re.compile(r"(?:decisions/)?[A-Za-z]+(?:-[a-z]+)*\.md")
# What pages link to: a file for Amplitude's portal, test cases, permissions for the store.
_FILE = re.compile(r"(?:acl/)?[a-z]+(?:-[a-z]+)*\.(?:acl|csv|json)")


# The list of pages, as in the README; pages that are not here follow under "More".
_GROUPS = {
    "Sending cohorts": "amplitude-setup environments refused-syncs dashboard protocol simulator",
    "Reading cohorts": "reading python-reader node completeness upstream data-model http-api",
    "Operating": "deploy configuration operations cli metrics security scaling moving",
    "Design and measurements": "overview architecture decisions/README reliability benchmarks",
}


@lru_cache(maxsize=1)
def groups() -> dict[str, list[tuple[str, str]]]:
    """The path in docs/ and the title of each page, by group.

    Of the decisions, only their index is included.
    """
    paths = [*FOLDER.glob("*.md"), FOLDER / "decisions" / "README.md"]
    titles = {path.relative_to(FOLDER).as_posix(): _title(path) for path in sorted(paths)}
    found = {
        group: [(path, titles.pop(path)) for name in names.split() if (path := f"{name}.md")]
        for group, names in _GROUPS.items()
    }
    return {**found, "More": list(titles.items())}


@lru_cache(maxsize=8)
def page(name: str) -> tuple[str, str] | None:
    """The title and the HTML of a page, by its path in docs/; None if there is no such page."""
    from markdown_it import MarkdownIt  # here, as few workers ever show a page

    if not _exists(_PAGE, name):
        return None
    markdown: Any = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("fence", _code)
    tokens = _without_pictures(markdown.parse((FOLDER / name).read_text()))
    title = ""
    for token, content in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open":
            title = title or content.content.replace("`", "")
            token.attrSet("id", anchor(content.content))
        elif token.type == "table_open":
            token.attrSet("tabindex", "0")  # scrolls on small screens, also with the keyboard
        elif token.attrs.pop("style", None):  # of a cell with numbers; pages have no inline styles
            token.attrSet("class", "num")
        for part in token.children or ():
            if part.type == "link_open" and not _leads_somewhere(part.attrs["href"], name):
                del part.attrs["href"]
    return title, markdown.renderer.render(tokens, markdown.options, {})


def anchor(heading: str) -> str:
    """The anchor of a heading, as in the links between pages."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def has_file(name: str) -> bool:
    """Whether docs/ has a file of this name to download."""
    return _exists(_FILE, name)


def _exists(names: re.Pattern[str], name: str) -> bool:
    return names.fullmatch(name) is not None and (FOLDER / name).is_file()


def _title(path: Path) -> str:
    with path.open() as file:
        return file.readline().lstrip("#").strip()


def _leads_somewhere(link: str, name: str) -> bool:
    """Whether a link on a page leads to something that is served here, or to another site.

    Others lead to files that only a checkout has.
    """
    path = link.partition("#")[0]
    target = normpath(join(dirname(name), path))
    return not path or ":" in path or _exists(_PAGE, target) or has_file(target)


def _without_pictures(tokens: list[Any]) -> list[Any]:
    """Drop the paragraphs that are pictures: these are not part of the package."""
    pictures = {
        at
        for at, token in enumerate(tokens)
        if {part.type for part in token.children or ()} == {"image"}
    }
    return [token for at, token in enumerate(tokens) if not pictures & {at - 1, at, at + 1}]


def _code(self: Any, tokens: Any, at: int, options: Any, env: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[at].content)}</code></pre>'
