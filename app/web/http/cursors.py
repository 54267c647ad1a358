"""Cursors: positions in lists, as opaque strings."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from typing import Any

import orjson
from marshmallow import ValidationError, fields

from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.store import COHORT_SORTS, NUMERIC_SORTS, EntryId, FeedPosition, MemberPosition

EARLIEST, LATEST = "earliest", "latest"
LIST_SORTS = [*COHORT_SORTS, *(f"-{sort}" for sort in COHORT_SORTS if sort != "id")]
_ENTRY_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")


class MemberCursor(fields.Field[MemberPosition]):
    """A position in a list of members, as returned in ``next``."""

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "format": "members-cursor",
            "example": close_cursor(["m", 0, 1767225600000, "user1@example.com"]),
        }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> MemberPosition:
        match open_cursor(value):
            case ["m", int(partition), int() | float() as score, str(user_id)] if (
                0 <= partition < 1 << 14
                and abs(score) < 1 << 53
                and not text_problem(user_id, MAX_USER_ID_BYTES)
            ):
                return MemberPosition(partition, score, user_id)
        raise ValidationError("Not a cursor of this call.")


def member_cursor(position: MemberPosition | None) -> str | None:
    """The cursor of a position in a list of members."""
    return None if position is None else close_cursor(["m", *position])


class ListCursor(fields.Field[tuple[str, Any, str]]):
    """A position in a list of cohorts: the sort order, the last cohort's sort value, and its id."""

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "format": "cohorts-cursor",
            "example": close_cursor(["l", "id", "abc123", "abc123"]),
        }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> tuple[str, Any, str]:
        match open_cursor(value):
            case ["l", str(sort), str() | int() as last, str(cohort_id)] if (
                sort in LIST_SORTS
                and isinstance(last, int if sort.removeprefix("-") in NUMERIC_SORTS else str)
            ):
                return sort, last, cohort_id
        raise ValidationError("Not a cursor of this call.")


def list_cursor(sort: str, position: tuple[Any, str] | None) -> str | None:
    """The cursor of a position in a list of cohorts."""
    return None if position is None else close_cursor(["l", sort, *position])


class StreamCursor(fields.Field[Any]):
    """A position in the change stream: ``earliest``, ``latest`` or a cursor."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "changes-cursor"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> FeedPosition | str:
        if value in (EARLIEST, LATEST):
            return str(value)
        match open_cursor(value):
            case ["c", *entries] if all(
                p is None or (isinstance(p, str) and _ENTRY_ID.fullmatch(p)) for p in entries
            ):
                return tuple(None if p is None else EntryId.parse(p) for p in entries)
        raise ValidationError("Must be earliest, latest, or a cursor of this call.")


def stream_cursor(position: Iterable[EntryId | None]) -> str:
    """The cursor of a position in the change stream."""
    return close_cursor(["c", *(None if entry is None else str(entry) for entry in position)])


_FORMATS = {"s": "syncs-cursor", "r": "requests-cursor"}


class NumberCursor(fields.Field[int]):
    """A cursor that consists of a number."""

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kind = kind

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "format": _FORMATS[self._kind],
            "example": close_cursor([self._kind, 100]),
        }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        match open_cursor(value):
            case [self._kind, int(number)] if 0 <= number < 1 << 53:
                return number
        raise ValidationError("Not a cursor of this call.")


def sync_cursor(sync_id: int | None) -> str | None:
    """The cursor of the syncs that follow a sync."""
    return None if sync_id is None else close_cursor(["s", sync_id])


def request_cursor(skip: int | None) -> str | None:
    """The cursor of the requests after the first ``skip``."""
    return None if skip is None else close_cursor(["r", skip])


def close_cursor(parts: list[Any]) -> str:
    """Encode ``parts`` as an opaque string that is safe in URLs and headers."""
    return urlsafe_b64encode(orjson.dumps(parts)).rstrip(b"=").decode()


def open_cursor(value: str) -> Any:
    """Decode the result of :func:`close_cursor`; None for any other string."""
    try:
        parts = orjson.loads(urlsafe_b64decode(value.encode() + b"=" * (-len(value) % 4)))
    except (UnicodeEncodeError, Base64Error, orjson.JSONDecodeError):
        return None
    # No cursor contains a boolean, which Python would accept as a number.
    if not isinstance(parts, list) or any(isinstance(part, bool) for part in parts):
        return None
    return parts
