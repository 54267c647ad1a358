"""The examples in the readers' pages, and what they say they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[3] / "docs"

_BLOCK = re.compile(r"^```([a-z]+)(?: ([a-z ]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTS = re.compile(
    r"\b(?:print|puts|console\.log|echo|var_dump|println|grep -o)\b.*?(?:#|//) (.*)$"
)


class Example(NamedTuple):
    """A fenced block: its language, what else stands in its first line, and its lines."""

    language: str
    mark: str
    code: str

    @property
    def printed(self) -> list[str]:
        """What its comments say that it prints."""
        found = (_PRINTS.search(line) for line in self.code.splitlines())
        return [match[1] for match in found if match]


def examples(page: str, language: str) -> list[Example]:
    """The examples of one language in a page of the docs."""
    text = (DOCS / page).read_text()
    blocks = [Example(*match.groups(default="")) for match in _BLOCK.finditer(text)]
    return [block for block in blocks if block.language == language]
