"""What each call takes and gives, said beside its view; and the few steps that reading shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from flask import Response, request
from marshmallow import Schema, ValidationError, validate
from orjson import OPT_SORT_KEYS, dumps

from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.errors import InvalidParameter, Problem
from app.web.http.body import places
from app.web.http.fields import Text, UserId

View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"


class SyncId(Text):
    """A sync's id: a number, in decimal digits only."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(16, validate=validate.Regexp(r"[0-9]+\Z"), **kwargs)


# The ids in paths.
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
    """What a call takes and gives, for the API's description and for the tests.

    Attributes:
        problems: what it can answer beside what every call can.
        query: the schema of the query's parameters.
        headers: the schema of the headers that it looks at, beside those of every call.
        body: what the body may be: one of these schemas.
        apart: what tells these apart: a body with the first of these members is of the first
            schema, one with the second of the second, and so on.
        most: the setting that says how many users the body may hold.
        reply: the schema of the reply's body; of one line or event where these are streamed.
        media_type: of the reply.
        status: of the reply.
        tagged: whether the reply has an ETag, and may be 304.
        paged: whether the reply may have a link to the next page.
        example: of the reply, where it isn't JSON.
    """

    problems: tuple[type[Problem], ...] = ()
    query: Schema | None = None
    headers: Schema | None = None
    body: tuple[Schema, ...] = ()
    apart: tuple[str, ...] = ()
    most: str = "max_batch_users"
    reply: Schema | None = None
    media_type: str = JSON
    status: int = 200
    tagged: bool = False
    paged: bool = False
    example: str | None = None


def describes(*problems: type[Problem], **contract: Any) -> Callable[[View], View]:
    """Say beside a view what it takes and gives: the attributes of :class:`Contract`."""

    def mark(view: View) -> View:
        view.contract = Contract(problems, **contract)  # type: ignore[attr-defined]
        return view

    return mark


def parameters(schema: Schema, **instead: str | None) -> dict[str, Any]:
    """The query's parameters, or what is given ``instead`` of some.

    Raises:
        InvalidParameter: with every error and its place.
    """
    given = {name: value for name, value in instead.items() if value}
    try:
        loaded: dict[str, Any] = schema.load({**request.args, **given})
    except ValidationError as error:
        raise InvalidParameter(errors=places(error.messages)) from None
    return loaded


def user_in_path(user_id: str) -> str:
    """A user id out of the path. Raises InvalidParameter where it can't be one."""
    return _in_path("user_id", user_id)


def cohort_in_path(cohort_id: str) -> str:
    """A cohort id out of the path. Raises InvalidParameter where it can't be one."""
    return _in_path("cohort_id", cohort_id)


def list_in_path(list_id: str) -> str:
    """A list id out of the path. Raises InvalidParameter where it can't be one."""
    return _in_path("list_id", list_id)


def sync_in_path(sync_id: str) -> int:
    """A sync's id out of the path. Raises InvalidParameter where it can't be one."""
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
        data: with object keys that are strings; they are sent in order.
        tagged: give it an ETag, and answer 304 to a caller who has just this already.
        next_cursor: where the next page begins, for the Link header (RFC 8288).
    """
    body = dumps(data, option=OPT_SORT_KEYS)
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
    """The address of this call, without its host, with other parameters."""
    kept: Iterable[tuple[str, str]] = (
        (name, value) for name, value in request.args.items(multi=True) if name not in changes
    )
    path = quote(request.root_path.rstrip("/") + request.path, safe="/%~@:+,=&!$'()*")
    return f"{path}?{urlencode([*kept, *changes.items()])}"
