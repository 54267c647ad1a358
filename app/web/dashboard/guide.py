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
_NAME = re.compile(r"(?:decisions/)?[A-Za-z]+(?:-[a-z]+)*\.md")


@lru_cache(maxsize=8)
def page(name: str) -> tuple[str, str] | None:
    """The title and the HTML of a page, by its path in docs/; None if there is no such page."""
    from markdown_it import MarkdownIt  # here, as few workers ever show a page

    if not _exists(name):
        return None
    markdown: Any = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", _alternative_text)
    markdown.add_render_rule("fence", _code)
    tokens = markdown.parse((FOLDER / name).read_text())
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


def _exists(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and (FOLDER / name).is_file()


def _leads_somewhere(link: str, name: str) -> bool:
    """Whether a link on a page leads to another page or out, and not to a file of a checkout."""
    path = link.partition("#")[0]
    return not path or ":" in path or _exists(normpath(join(dirname(name), path)))


def _alternative_text(self: Any, tokens: Any, at: int, options: Any, env: Any) -> str:
    """Render a picture's description: pictures are not part of the package."""
    return f"<em>{escape(tokens[at].content)}</em>"


def _code(self: Any, tokens: Any, at: int, options: Any, env: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[at].content)}</code></pre>'
