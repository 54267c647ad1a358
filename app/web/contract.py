"""What each reading call takes and gives, said beside its view; and the few steps all share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from flask import Response, request
from marshmallow import Schema, ValidationError
from orjson import OPT_SORT_KEYS, dumps

from app.cohorts.cohort import MAX_TRAIT_BYTES, MAX_USER_ID_BYTES, text_problem
from app.errors import InvalidParameter, Problem
from app.web.body import places

View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"


@dataclass(frozen=True)
class Contract:
    """What a call takes and gives, for the API's description and for the tests.

    Attributes:
        query: the schema of the query's parameters.
        body: the schema of the body.
        reply: the schema of the 200's body; of one line or event where these are streamed.
        media_type: of the reply.
        problems: what it can answer beside what every call can.
    """

    query: Schema | None = None
    body: Schema | None = None
    reply: Schema | None = None
    media_type: str = JSON
    problems: tuple[type[Problem], ...] = ()


def describes(
    *problems: type[Problem],
    query: Schema | None = None,
    body: Schema | None = None,
    reply: Schema | None = None,
    media_type: str = JSON,
) -> Callable[[View], View]:
    """Say beside a view what it takes and gives."""

    def mark(view: View) -> View:
        view.contract = Contract(query, body, reply, media_type, problems)  # type: ignore[attr-defined]
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
    return _in_path("user_id", user_id, MAX_USER_ID_BYTES)


def cohort_in_path(cohort_id: str) -> str:
    """A cohort id out of the path. Raises InvalidParameter where it can't be one."""
    return _in_path("cohort_id", cohort_id, MAX_TRAIT_BYTES)


def _in_path(name: str, value: str, max_bytes: int) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        problem: str | None = "Must be valid UTF-8."
    else:
        problem = text_problem(value, max_bytes)
    if problem:
        raise InvalidParameter(errors=[{"place": name, "message": problem}])
    return value


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
