"""The declared contract of each view, and helpers for parameters, paths and replies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from flask import Response, request
from marshmallow import Schema, ValidationError
from orjson import OPT_APPEND_NEWLINE, OPT_SORT_KEYS, dumps

from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.errors import InvalidParameter, Problem
from app.web.http.body import places
from app.web.http.fields import Text, UserId

View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"
_SYNC_ID = re.compile("[0-9]{1,16}")


class SyncId(Text):
    """A sync's id: a number in decimal digits."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(16, **kwargs)

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{_SYNC_ID.pattern}$"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not _SYNC_ID.fullmatch(text):
            raise ValidationError("Must be a number of up to 16 digits.")
        return text


# Fields of the ids in paths.
IN_PATH: dict[str, Text] = {
    "user_id": UserId(metadata={"description": "The user's id.", "example": "user1@example.com"}),
    "cohort_id": Text(
        MAX_TRAIT_BYTES, metadata={"description": "The cohort's id.", "example": "abc123"}
    ),
    "list_id": Text(
        MAX_TRAIT_BYTES,
        metadata={"description": "The list's id, which is the cohort's id.", "example": "abc123"},
    ),
    "sync_id": SyncId(metadata={"description": "The sync's id.", "example": "4711"}),
}


@dataclass(frozen=True)
class Contract:
    """What a call accepts and returns, for the API description and for tests.

    Attributes:
        problems: its error replies, besides those that every call may have.
        query: the schema of the query parameters.
        headers: the schema of the headers that only this call reads.
        body: schemas, one of which the body must match.
        upload: examples of a file that is the body, by media type.
        discriminators: members that select the schema of a body: the first member selects the
            first schema, and so on; a body with none of them selects the last one.
        user_limit: the name of the setting that limits the users in the body.
        reply: the schema of the reply, or of one event if the reply is a stream.
        media_type: of the reply.
        status: of the reply.
        tagged: the reply has an ETag, and may be 304.
        paged: the reply may have a Link to the next page.
        example: an example of a reply that isn't JSON.
    """

    problems: tuple[type[Problem], ...] = ()
    query: Schema | None = None
    headers: Schema | None = None
    body: tuple[Schema, ...] = ()
    upload: Mapping[str, str] = field(default_factory=dict)
    discriminators: tuple[str, ...] = ()
    user_limit: str = "max_batch_users"
    reply: Schema | None = None
    media_type: str = JSON
    status: int = 200
    tagged: bool = False
    paged: bool = False
    example: str | None = None


def describes(*problems: type[Problem], **contract: Any) -> Callable[[View], View]:
    """Declare the contract of a view. The arguments are the attributes of :class:`Contract`."""

    def mark(view: View) -> View:
        view.contract = Contract(problems, **contract)  # type: ignore[attr-defined]
        return view

    return mark


def parameters(schema: Schema, **overrides: str | None) -> dict[str, Any]:
    """The validated query parameters; ``overrides`` that are set replace those in the query.

    Raises:
        InvalidParameter: with every error and its place.
    """
    given = {name: value for name, value in overrides.items() if value}
    try:
        loaded: dict[str, Any] = schema.load({**request.args, **given})
    except ValidationError as error:
        raise InvalidParameter(errors=places(error.messages)) from None
    return loaded


def user_in_path(user_id: str) -> str:
    """A validated user id from the path. Raises InvalidParameter."""
    return _in_path("user_id", user_id)


def cohort_in_path(cohort_id: str) -> str:
    """A validated cohort id from the path. Raises InvalidParameter."""
    return _in_path("cohort_id", cohort_id)


def list_in_path(list_id: str) -> str:
    """A validated list id from the path. Raises InvalidParameter."""
    return _in_path("list_id", list_id)


def sync_in_path(sync_id: str) -> int:
    """A validated sync id from the path. Raises InvalidParameter."""
    return int(_in_path("sync_id", sync_id))


def _in_path(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidParameter(
            errors=[{"place": name, "message": "Must be valid UTF-8."}]
        ) from None
    try:
        return IN_PATH[name].deserialize(value)
    except ValidationError as error:
        raise InvalidParameter(errors=places(error.messages, name)) from None


def send(data: Any, *, tagged: bool = False, next_cursor: str | None = None) -> Response:
    """Reply with JSON.

    Args:
        data: all object keys must be strings; they are sent in sorted order.
        tagged: add an ETag, and reply 304 to a caller who already has this version.
        next_cursor: the cursor of the next page, for the Link header (RFC 8288).
    """
    body = dumps(data, option=OPT_SORT_KEYS | OPT_APPEND_NEWLINE)
    response = Response(body, mimetype=JSON)
    if next_cursor is not None:
        response.headers["Link"] = f'<{_this_call(cursor=next_cursor)}>; rel="next"'
    if tagged:
        response.headers["ETag"] = f'"{blake2b(body, digest_size=12).hexdigest()}"'
        response.headers["Cache-Control"] = "private, no-cache"
        if "HTTP_IF_NONE_MATCH" in request.environ:
            response.make_conditional(request)
    return response


def _this_call(**changes: str) -> str:
    """The path and query of this request with changed parameters."""
    others: Iterable[tuple[str, str]] = (
        (name, value) for name, value in request.args.items(multi=True) if name not in changes
    )
    path = quote(request.root_path.rstrip("/") + request.path, safe="/%~@:+,=&!$'()*")
    return f"{path}?{urlencode([*others, *changes.items()])}"
