"""A request's body, from the wire to a validated value."""

from __future__ import annotations

import codecs
import zlib
from typing import Any

import orjson
from flask import Request, request
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
# JSON values that a body may hold for each user that it may name, on average. Amplitude's identify
# has ten with its context. Decoded, a value takes up to a hundred bytes: without a bound, 8 MiB of
# "{}," would take some 200.
VALUES_PER_USER = 16
_LEAST_USERS = 10_000
_SCANNED = 1 << 16
# Of gzip: members that a body may have, and what is looked at in one step. The end of a member is
# found with a copy of what is left of the step.
_MOST_MEMBERS = 1000
_INFLATED = 1 << 14
_BOM = codecs.BOM_UTF8


def read_json() -> dict[str, Any]:
    """The body of the current request as a JSON object.

    Raises:
        InvalidJson, InvalidPayload: not JSON, not an object.
        Problem: what :func:`read_text` raises.
    """
    return decoded(read_text())


def read_text() -> bytes:
    """The body of the current request, decompressed; small enough to be decoded.

    Raises:
        UnsupportedMediaType: not announced as JSON in UTF-8, or compressed by other than gzip.
        BodyTooLarge: over ``MAX_BODY_BYTES``, also after decompression, or of too many values.
        BodyTimeout: not there within ``BODY_TIMEOUT_SECONDS``.
        InvalidEncoding: cut off, or not gzip.
    """
    settings = services().settings
    environ = request.environ
    if environ.get("CONTENT_TYPE") != "application/json":  # as nearly all are
        _check_media_type()
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        raise UnsupportedMediaType(
            "Content-Encoding must be gzip or none.", headers={"Accept-Encoding": "gzip"}
        )
    raw = read_raw(settings, settings.max_body_bytes)
    fair_queue.begin()
    if encoding.endswith("gzip"):
        raw = _gunzip(raw, settings.max_body_bytes)
    most = VALUES_PER_USER * max(settings.max_batch_users, _LEAST_USERS)
    if _holds_more(raw, most):
        raise BodyTooLarge(f"The body may hold at most {most} JSON values.")
    return raw


def decoded(text: bytes) -> dict[str, Any]:
    """A body as a JSON object. Raises InvalidJson, InvalidPayload."""
    try:
        value = orjson.loads(text[len(_BOM) :] if text.startswith(_BOM) else text)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidPayload(errors=[{"place": "", "message": "The body must be a JSON object."}])
    return value


def load(schema: Schema, body: dict[str, Any]) -> Any:
    """Validate a body. Raises InvalidPayload with every error and its place, at most 50."""
    try:
        return schema.load(body)
    except ValidationError as error:
        raise InvalidPayload(
            "The body is not what this call takes; errors has the places. Nothing was written.",
            errors=places(error.messages)[:MAX_ERRORS],
        ) from None


def places(messages: Any, path: str = "") -> list[dict[str, str]]:
    """Marshmallow's nested messages as a flat list of places (``batch.17.userId``)."""
    if isinstance(messages, dict):
        return [
            row
            for key, nested in messages.items()
            # what concerns an object as a whole is kept under None
            for row in places(nested, path if key is None else f"{path}.{key}".lstrip("."))
        ]
    return [{"place": path, "message": message} for message in messages]


def _check_media_type() -> None:
    mimetype = request.mimetype
    if mimetype != "application/json" and not (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    ):
        raise UnsupportedMediaType("Content-Type must be application/json.")
    charset = request.mimetype_params.get("charset", "utf-8")
    try:
        name = codecs.lookup(charset).name
    except LookupError:
        name = ""
    if name not in ("utf-8", "ascii"):
        raise UnsupportedMediaType("The charset must be utf-8.")


def read_raw(settings: Settings, limit: int) -> bytes:
    """The body of the current request as it came, of at most so many bytes.

    Raises:
        BodyTooLarge, BodyTimeout, InvalidEncoding: see :func:`read_json`.
    """
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    length = sent.content_length
    if length is not None and length > limit:
        raise _too_large(limit)
    raw: bytes | None = None
    try:
        with Timeout(settings.body_timeout_seconds, False):  # type: ignore[arg-type]
            # The server ends the stream with the body, also where it comes in chunks.
            raw = sent.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except (OSError, ParseException):
        raise InvalidEncoding("The body can't be read to its end.") from None
    if raw is None:
        seconds = settings.body_timeout_seconds
        raise BodyTimeout(f"The body did not arrive within {seconds:g} s.")
    if len(raw) > limit:
        raise _too_large(limit)
    if length is not None and len(raw) < length:
        # What is here may well be valid JSON; it is still not what the sender meant to send.
        raise InvalidEncoding("The body ended before its announced length.")
    return raw


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body may have at most {limit} bytes.")


def _gunzip(raw: bytes, limit: int) -> bytes:
    """Decompress, without ever holding more than ``limit`` bytes and one more."""
    parts: list[bytes] = []
    view, at, size = memoryview(raw), 0, 0
    for _ in range(_MOST_MEMBERS):
        if at == len(view):
            return b"".join(parts)
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = view[at : at + _INFLATED]
            if not piece:
                raise InvalidEncoding("The gzip body ends too early.")
            try:
                parts.append(member.decompress(piece, limit + 1 - size))
            except zlib.error:
                raise InvalidEncoding("The body is not valid gzip.") from None
            size += len(parts[-1])
            if size > limit:
                raise BodyTooLarge(f"The body may have at most {limit} bytes after decompression.")
            at += len(piece) - len(member.unused_data)
    raise BodyTooLarge(f"The body may have fewer than {_MOST_MEMBERS} gzip members.")


def _holds_more(raw: bytes, values: int) -> bool:
    """Whether a body is JSON of more than so many values, told before it is decoded."""
    if _marks(raw) <= values:
        return False
    # There may be marks in strings too: leave these out, a piece at a time.
    found, inside = 0, False
    text = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    for start in range(0, len(text), _SCANNED):
        parts = text[start : start + _SCANNED].split(b'"')
        found += _marks(b"".join(parts[inside::2]))
        if found > values:
            return True
        inside ^= len(parts) % 2 == 0
    return False


def _marks(text: bytes) -> int:
    """Marks that each come with another value."""
    return len(text) - len(text.translate(None, b",[{"))
