"""Read, decode and validate request bodies."""

from __future__ import annotations

import codecs
import re
import zlib
from typing import Any

import orjson
from flask import Request, g, has_app_context, request
from gevent import Timeout
from gunicorn.http.errors import ParseException
from marshmallow import Schema, ValidationError

from app.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidEncoding,
    InvalidJson,
    InvalidPayload,
    UnsupportedMediaType,
)
from app.services import services
from app.settings import Settings
from app.web.http import fair_queue

MAX_ERRORS = 50
# The average number of JSON values that a body may have per user. Amplitude's identify calls have
# ten. A decoded value takes up to 100 bytes, so without a limit 8 MiB of "{}," would take 200 MiB.
VALUES_PER_USER = 16
_MIN_USERS = 10_000
_SCAN_BYTES = 1 << 16
_COUNTED_BYTES = 1 << 20
# A gzip body may consist of several members. Each step copies what follows the end of a member, so
# steps are small.
_MAX_GZIP_MEMBERS = 1000
_INFLATE_BYTES = 1 << 14
_BOM = codecs.BOM_UTF8
# A number with thousands separators, as templates print it by default, in any locale.
THOUSANDS = re.compile("[0-9]{1,3}(?:[,.' \u00a0\u2019\u202f][0-9]{3})+")
THOUSANDS_HINT = (
    ". A number is printed with thousands separators: in a FreeMarker template, print it with ?c"
)
NEAR = 40  # characters around an error that may belong to the number
# Compared as text: Python's codec registry keeps every name that it is asked for, known or not.
_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))


def read_json() -> dict[str, Any]:
    """The body of the current request as a JSON object.

    Raises:
        InvalidJson, InvalidPayload: not JSON, not an object.
        Problem: see :func:`read_text`.
    """
    return decoded(read_text())


def read_optional_json() -> dict[str, Any]:
    """As :func:`read_json`; without a body, an empty object."""
    if not request.content_length and "HTTP_TRANSFER_ENCODING" not in request.environ:
        fair_queue.begin()
        return {}
    return read_json()


def read_text() -> bytes:
    """The decompressed body of the current request, small enough to be decoded.

    Raises:
        BodyTooLarge: over ``MAX_BODY_BYTES`` before or after decompression, or too many values.
        Problem: see :func:`read_decompressed`.
    """
    settings = services().settings
    raw = read_decompressed(settings.max_body_bytes)
    max_values = _max_values(settings)
    if _has_more_values(raw, max_values):
        raise BodyTooLarge(f"The body may hold at most {max_values} JSON values.")
    return raw


def read_decompressed(limit: int) -> bytes:
    """The decompressed body of the current request.

    Raises:
        UnsupportedMediaType: not declared as JSON in UTF-8, or compressed with anything but gzip.
        BodyTooLarge: over ``limit`` bytes before or after decompression.
        BodyTimeout: not complete within ``BODY_TIMEOUT_SECONDS``.
        InvalidEncoding: truncated, or not gzip.
    """
    settings = services().settings
    environ = request.environ
    if environ.get("CONTENT_TYPE") != "application/json":  # skip parsing the usual value
        _check_media_type()
    compressed = is_gzip()
    raw = read_raw(settings, limit)
    fair_queue.begin()
    return _gunzip(raw, limit) if compressed else raw


def is_gzip() -> bool:
    """Whether the body is declared as gzip. Raises UnsupportedMediaType for other compressions."""
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding in ("gzip", "x-gzip"):
        return True
    raise UnsupportedMediaType(
        "Content-Encoding must be gzip or none.", headers={"Accept-Encoding": "gzip"}
    )


def is_small(raw: bytes) -> bool:
    """Whether a body is within the limits of :func:`read_text`.

    Commas and brackets in strings count too, so the result may be False for a small body.
    """
    settings = services().settings
    return len(raw) <= settings.max_body_bytes and _count_values(raw) <= _max_values(settings)


def _max_values(settings: Settings) -> int:
    return VALUES_PER_USER * max(settings.max_batch_users, _MIN_USERS)


def decoded(text: bytes) -> dict[str, Any]:
    """Decode a body to a JSON object. Raises InvalidJson, InvalidPayload."""
    try:
        value = orjson.loads(text[len(_BOM) :] if text.startswith(_BOM) else text)
    except orjson.JSONDecodeError as error:
        before = error.doc[max(error.pos - NEAR, 0) : error.pos]
        hint = thousands_hint(before, error.doc[error.pos : error.pos + NEAR])
        raise InvalidJson(f"The body is not valid JSON: {error}{hint}") from None
    if not isinstance(value, dict):
        raise not_an_object()
    return value


def not_an_object() -> InvalidPayload:
    """The error for JSON that is not an object."""
    return InvalidPayload(errors=[{"place": "", "message": "The body must be a JSON object."}])


def thousands_hint(before: str, after: str) -> str:
    """A hint if a number with thousands separators is where JSON becomes invalid, else ""."""
    numbers = THOUSANDS.finditer(before + after)
    inside = any(number.start() < len(before) < number.end() for number in numbers)
    return THOUSANDS_HINT if inside else ""


def load(schema: Schema, body: dict[str, Any]) -> Any:
    """Validate a body. Raises InvalidPayload with up to 50 errors and their places."""
    try:
        return schema.load(body)
    except ValidationError as error:
        keep_refused(body)
        raise InvalidPayload(
            "The body does not match what this call accepts; see errors. Nothing was written.",
            errors=places(error.messages)[:MAX_ERRORS],
        ) from None


def keep_refused(body: bytes | dict[str, Any]) -> None:
    """Keep a refused body, which may name its cohort, until the end of the request."""
    if has_app_context():
        g.refused_body = body[:_SCAN_BYTES] if isinstance(body, bytes) else body


def places(messages: Any, path: str = "") -> list[dict[str, str]]:
    """Flatten marshmallow's nested messages to places such as ``batch.17.userId``."""
    if isinstance(messages, dict):
        return [
            row
            for key, nested in messages.items()
            # errors about an object itself are filed under None
            for row in places(nested, path if key is None else f"{path}.{key}".lstrip("."))
        ]
    return [{"place": path, "message": message} for message in messages]


def _check_media_type() -> None:
    mimetype = request.mimetype
    if mimetype != "application/json" and not (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    ):
        raise UnsupportedMediaType("Content-Type must be application/json.")
    check_charset()


def check_charset() -> None:
    """Raise UnsupportedMediaType if the body is declared to be in a charset other than UTF-8."""
    if request.mimetype_params.get("charset", "utf-8").lower() not in _CHARSETS:
        raise UnsupportedMediaType("The charset must be utf-8.")


def read_raw(settings: Settings, limit: int) -> bytes:
    """The raw body of the current request, of at most ``limit`` bytes.

    Raises:
        BodyTooLarge, BodyTimeout, InvalidEncoding: see :func:`read_decompressed`.
    """
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    length = sent.content_length
    if length is not None and length > limit:
        raise _too_large(limit)
    raw: bytes | None = None
    try:
        with Timeout(settings.body_timeout_seconds, False):  # type: ignore[arg-type]
            # The server ends the stream with the body, even if it is chunked.
            raw = sent.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except (OSError, ParseException):
        raise InvalidEncoding("The body can't be read to its end.") from None
    if raw is None:
        seconds = settings.body_timeout_seconds
        raise BodyTimeout(f"The body did not arrive within {seconds:g} s.")
    if len(raw) > limit:
        raise _too_large(limit)
    if length is not None and len(raw) < length:
        # What arrived may be valid JSON, yet it is not what the sender meant to send.
        raise InvalidEncoding("The body ended before its announced length.")
    return raw


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body may have at most {limit} bytes.")


def _gunzip(raw: bytes, limit: int) -> bytes:
    """Decompress without ever holding more than ``limit`` + 1 bytes."""
    parts: list[bytes] = []
    view, at, size = memoryview(raw), 0, 0
    for _ in range(_MAX_GZIP_MEMBERS):
        if at == len(view):
            return b"".join(parts)
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = view[at : at + _INFLATE_BYTES]
            if not piece:
                raise InvalidEncoding("The gzip body is truncated.")
            try:
                parts.append(member.decompress(piece, limit + 1 - size))
            except zlib.error:
                raise InvalidEncoding("The body is not valid gzip.") from None
            size += len(parts[-1])
            if size > limit:
                raise BodyTooLarge(f"The body may have at most {limit} bytes after decompression.")
            at += len(piece) - len(member.unused_data)
    raise BodyTooLarge(f"The body must have fewer than {_MAX_GZIP_MEMBERS} gzip members.")


def _has_more_values(raw: bytes, max_values: int) -> bool:
    """Whether JSON has more values than allowed, without decoding it."""
    if len(raw) <= max_values or _count_values(raw) <= max_values:
        return False
    # Some of the characters may be within strings: leave strings out, a piece at a time.
    found, inside = 0, False
    text = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    for start in range(0, len(text), _SCAN_BYTES):
        parts = text[start : start + _SCAN_BYTES].split(b'"')
        found += _count_values(b"".join(parts[inside::2]))
        if found > max_values:
            return True
        inside ^= len(parts) % 2 == 0
    return False


def _count_values(text: bytes) -> int:
    """Count ``,``, ``[`` and ``{``: an upper bound for the number of JSON values."""
    found = 0
    for start in range(0, len(text), _COUNTED_BYTES):
        piece = text[start : start + _COUNTED_BYTES]
        found += len(piece) - len(piece.translate(None, b",[{"))
    return found
