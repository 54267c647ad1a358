"""Decode messages without the members that are not used: users may have many properties.

Decoding 10,000 users with 50 properties each would take half a million objects. Here, values that
:class:`~app.web.ingest.webhook_schema.WebhookSchema` does not read are checked to be JSON and
skipped, so they count against no limit but the size of the body. docs/decisions/accepted.md has the
measurements.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import count
from typing import Any

import msgspec
import orjson

from app.cohorts.cohort import MAX_USER_ID_BYTES
from app.errors import InvalidJson, InvalidPayload
from app.web.http.body import NEAR, not_an_object, thousands_hint

# The longest form of a user id in JSON: each byte as an escape, in quotes.
_LONGEST_ID = 6 * MAX_USER_ID_BYTES + 2
_UTF8_PIECE = 1 << 16
_NOTHING = msgspec.Raw(b"")
_BYTE = re.compile(r"\(byte (\d+)\)$")
_EXPECTED = re.compile(r"Expected `(\w+)`.*? - at `\$\.users(?:\[(\d+)\])?`$")

_INVALID = (msgspec.DecodeError, orjson.JSONDecodeError, UnicodeDecodeError)

# msgspec would only count the users once it has made all of them.
_numbers: ContextVar[Iterator[int]] = ContextVar("numbers of users")


class _TooManyUsers(Exception):
    pass


class _User(msgspec.Struct, gc=False):
    user_id: msgspec.Raw = _NOTHING

    def __post_init__(self) -> None:
        if not next(_numbers.get()):
            raise _TooManyUsers


class _Message(msgspec.Struct):
    cohort_name: msgspec.Raw = _NOTHING
    cohort_id: msgspec.Raw = _NOTHING
    in_cohort: msgspec.Raw = _NOTHING
    computed_time: msgspec.Raw = _NOTHING
    message_id: msgspec.Raw = _NOTHING
    users: list[_User] | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Message).decode
_TEXTS = [name for name in _Message.__struct_fields__ if name != "users"]


def decode_message(raw: bytes, max_users: int) -> dict[str, Any]:
    """Decode the members of a message that the schema reads; see ``app.web.http.body.decoded``.

    Lists and objects in place of a text or a number are returned empty, and an overlong user id as
    None: the schema accepts neither.

    Raises:
        InvalidJson
        InvalidPayload: not an object, users of another form, or more of them than allowed.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    _numbers.set(count(-max_users))
    try:
        _check_utf8(raw)
        message = _decode(raw)
        texts = {name: memoryview(getattr(message, name)) for name in _TEXTS}
        body = {name: _value(text) for name, text in texts.items() if text}
        if message.users is not msgspec.UNSET:
            body["users"] = [_user(user) for user in message.users]
    except _TooManyUsers:
        raise _invalid("users", f"Must hold at most {max_users:,} users.") from None
    except msgspec.ValidationError as error:
        if not (found := _EXPECTED.search(str(error))):
            raise not_an_object() from None
        kind, number = found.groups()
        place = "users" if number is None else f"users.{number}"
        what = "a list" if kind == "array" else "an object"
        raise _invalid(place, f"Must be {what}.") from None
    except (*_INVALID, RecursionError) as error:
        hint = ""
        if where := _BYTE.search(str(error)):
            at = int(where[1])
            near = (raw[max(at - NEAR, 0) : at], raw[at : at + NEAR])
            hint = thousands_hint(*(part.decode(errors="replace") for part in near))
        raise InvalidJson(f"The body is not valid JSON: {error}{hint}") from None
    return body


def _user(user: _User) -> dict[str, Any]:
    text = memoryview(user.user_id)
    if not text:
        return {}
    return {"user_id": _value(text) if len(text) <= _LONGEST_ID else None}


def _value(text: memoryview) -> Any:
    if text[0] in b"[{":
        return [] if text[0] == ord("[") else {}
    return orjson.loads(text)


def _check_utf8(raw: bytes) -> None:
    """Check all of it, in pieces. Raises UnicodeDecodeError."""
    if raw.isascii():
        return
    decode = codecs.getincrementaldecoder("utf-8")().decode
    for start in range(0, len(raw), _UTF8_PIECE):
        decode(raw[start : start + _UTF8_PIECE])
    decode(b"", final=True)


def _invalid(place: str, message: str) -> InvalidPayload:
    return InvalidPayload(errors=[{"place": place, "message": message}])
