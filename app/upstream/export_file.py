"""The file of an export: CSV with a header line, one row for each user."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.upstream.errors import UpstreamFileInvalid

USER_ID = "user_id"
# Rows read before other work of this process gets a turn: a few ms.
ROWS_AT_ONCE = 1000


@dataclass
class Contents:
    """What is in a file.

    Attributes:
        rows: users.
        anonymous: users without an id.
        unusable: users with an id that is not accepted, such as one that is too long.
        quoted: users whose id itself begins and ends with a quote.
    """

    rows: int = 0
    anonymous: int = 0
    unusable: int = 0
    quoted: int = 0

    @property
    def is_double_quoted(self) -> bool:
        """Whether the quotes around ids are a fault of the file: all ids have them."""
        return 0 < self.quoted == self.rows - self.anonymous


class ExportFile:
    """Reads a file, any number of times, in constant memory. Raises UpstreamFileInvalid.

    Args:
        column: the column with the ids.
        breathe: called every few ms, to let other work of this process go on.
    """

    def __init__(
        self, path: Path, column: str = USER_ID, breathe: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._column = column
        self._breathe = breathe
        self._is_double_quoted = False

    def scan(self) -> Contents:
        """Check the file, and count what is in it."""
        contents = Contents()
        for user_id in self._cells():
            contents.rows += 1
            if not user_id.strip():
                contents.anonymous += 1
                continue
            contents.quoted += _is_quoted(user_id)
            contents.unusable += text_problem(user_id, MAX_USER_ID_BYTES) is not None
        self._is_double_quoted = contents.is_double_quoted
        return contents

    def user_ids(self) -> Iterator[str]:
        """The usable ids, after :meth:`scan`. An id may occur twice: Amplitude merges users."""
        for user_id in self._cells():
            if self._is_double_quoted and _is_quoted(user_id):
                user_id = user_id[1:-1]
            if user_id.strip() and text_problem(user_id, MAX_USER_ID_BYTES) is None:
                yield user_id

    def _cells(self) -> Iterator[str]:
        try:
            # A byte order mark is skipped. Strict: an unterminated quoted field means that the end
            # of the file is missing.
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, strict=True)
                header = next(rows, [])
                if self._column not in header:
                    raise UpstreamFileInvalid
                place = header.index(self._column)
                while some := list(islice(rows, ROWS_AT_ONCE)):
                    for row in some:
                        if not row:  # an empty line
                            continue
                        if len(row) != len(header):  # else the id may be in another place
                            raise UpstreamFileInvalid
                        yield row[place]
                    self._breathe()
        except (csv.Error, UnicodeDecodeError):
            raise UpstreamFileInvalid from None


def _is_quoted(user_id: str) -> bool:
    return len(user_id) > 2 and user_id[0] == user_id[-1] == '"'
