"""A mistake: one piece of a file, replaced by another text."""

from __future__ import annotations

import difflib
from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake in a file.

    Attributes:
        path: the file, from the root of the checkout.
        start, end: what is replaced, by the position in the text.
        new: what it is replaced by.
        kind: what was done, in one or two words.
    """

    path: str
    start: int
    end: int
    new: str
    kind: str

    def planted(self, text: str) -> str:
        """The text of the file with the mistake."""
        return text[: self.start] + self.new + text[self.end :]

    def line(self, text: str) -> int:
        """The number of the line on which it begins."""
        return text.count("\n", 0, self.start) + 1

    def diff(self, text: str) -> str:
        """The lines that it removes and adds."""
        lines = difflib.ndiff(text.splitlines(), self.planted(text).splitlines())
        return "\n".join(f"  {line}" for line in lines if line[0] in "+-")
