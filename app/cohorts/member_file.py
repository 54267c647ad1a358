"""Files that list the members of a cohort: CSV, or newline-delimited JSON.

Amplitude writes such files when it downloads or exports a cohort. Rows without a usable user id,
such as those of anonymous users, are counted and left out. A file is read in constant memory.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.cohorts.membership import MAX_WHOLE_ID

USERS_AT_ONCE = 5000
# After this much of a file, the users read so far are passed on, even if there are few or none:
# rows may be long, and a file that arrives slowly must not look abandoned.
BYTES_AT_ONCE = 1 << 18
MAX_ERRORS = 50
MAX_LINE_BYTES = 1 << 16
_COLUMN = "user_id"
# Files of this service have a quote before ids that a spreadsheet would treat as a formula.
_OWN_HEADERS = (["user_id", "since"], ["user_id", "reason"])


class FileFormat(StrEnum):
    """The format of a file of members."""

    CSV = "csv"
    NDJSON = "ndjson"


class InvalidFile(ValueError):
    """The file cannot be read. The message says why."""


@dataclass
class MemberFile:
    """Reads a file of members.

    Attributes:
        column: the name of the CSV column with the user ids; by default ``user_id``, in any
            spelling, such as ``User ID``.
        rejected: rows without a usable user id so far.
        without_id: of them, rows without any user id.
        errors: line and problem of the first rows with an unusable id.
    """

    format: FileFormat
    column: str | None = None
    rejected: int = 0
    without_id: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)

    def read(self, chunks: Iterable[bytes]) -> Iterator[list[str]]:
        """Yield the user ids in a file, some or none at a time. Its chunks may be of any size.

        Raises:
            InvalidFile
        """
        read_bytes = 0

        def counted() -> Iterator[bytes]:
            nonlocal read_bytes
            for chunk in chunks:
                read_bytes += len(chunk)
                yield chunk

        lines = _lines(counted())
        rows = self._csv(lines) if self.format is FileFormat.CSV else self._ndjson(lines)
        users: list[str] = []
        for line, value in rows:
            problem = text_problem(value, MAX_USER_ID_BYTES)
            if isinstance(value, str) and (not value or value.isspace()):
                self.rejected += 1
                self.without_id += 1
            elif problem is None:
                users.append(cast(str, value))
            else:
                self._reject(line, problem)
            if len(users) == USERS_AT_ONCE or read_bytes >= BYTES_AT_ONCE:
                yield users
                users, read_bytes = [], 0
        if users:
            yield users

    def _reject(self, line: int, problem: str) -> None:
        self.rejected += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append((line, problem))

    def _csv(self, lines: Iterator[str]) -> Iterator[tuple[int, str]]:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(filter(None, reader), None)  # after empty lines
            if header is None:
                raise InvalidFile("The file is empty. A header line is needed.")
            place = self._place(header)
            quoted = header in _OWN_HEADERS
            for row in reader:
                if not row:  # an empty line
                    continue
                value = row[place] if place < len(row) else ""
                yield reader.line_num, value[1:] if quoted and value[:1] == "'" else value
        except csv.Error as error:
            raise InvalidFile(f"Line {reader.line_num} is not valid CSV: {error}.") from None

    def _place(self, header: list[str]) -> int:
        wanted = self.column or _COLUMN
        if wanted in header:
            return header.index(wanted)
        if self.column is None:  # Amplitude's files spell it differently
            for place, name in enumerate(header):
                if _bare(name) == _bare(_COLUMN):
                    return place
        names = ", ".join(name[:50] for name in header[:20])
        hint = (
            ""
            if len(header) > 1 or self.column
            else " Is the first line an id? Put user_id above it."
        )
        raise InvalidFile(f"The header has no column {wanted}. It has: {names}.{hint}")

    def _ndjson(self, lines: Iterator[str]) -> Iterator[tuple[int, object]]:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise InvalidFile(f"Line {number} is not valid JSON.") from None
            if isinstance(value, dict):
                value = value.get("userId", value.get("user_id"))
            if type(value) is int and abs(value) <= MAX_WHOLE_ID:
                value = str(value)
            yield number, "" if value is None else value


def format_of(first_line: bytes) -> FileFormat | None:
    """The format of a file by its first line; None if that is neither a header nor an object."""
    line = first_line.removeprefix(codecs.BOM_UTF8).decode(errors="replace").strip()
    if line.startswith("{") and ('"userId"' in line or '"user_id"' in line):
        return FileFormat.NDJSON
    # A header with other separators counts as CSV too: the file is then refused, and not read as
    # one id per line.
    if any(_bare(name) == _bare(_COLUMN) for name in re.split("[,;\t]", line)):
        return FileFormat.CSV
    return None


def _bare(name: str) -> str:
    """A column name without case, blanks and punctuation."""
    return re.sub(r"[\W_]", "", name).lower() if name.isprintable() else name


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a text in UTF-8, each with its line ending."""
    rest, number = b"", 0
    chunks = iter(chunks)
    while True:
        chunk = next(chunks, b"")
        parts = (rest + chunk).splitlines(keepends=True) if chunk else [rest]
        # The last part may continue in the next chunk.
        rest = parts.pop() if chunk and parts else b""
        for part in parts:
            number += 1
            if len(part) > MAX_LINE_BYTES:
                raise InvalidFile(f"Line {number} is longer than {MAX_LINE_BYTES} bytes.")
            if number == 1 and part.startswith(codecs.BOM_UTF8):
                part = part[len(codecs.BOM_UTF8) :]
            try:
                if part:
                    yield part.decode()
            except UnicodeDecodeError:
                raise InvalidFile(f"Line {number} is not valid UTF-8.") from None
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidFile(f"Line {number + 1} is longer than {MAX_LINE_BYTES} bytes.")
        if not chunk:
            return
