"""JSON replies, building blocks of their schemas, and the schema of problem documents."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import RAISE, Schema, fields
from orjson import OPT_APPEND_NEWLINE, dumps


def json_reply(document: dict[str, Any], status: int = 200) -> Response:
    """A reply with a JSON document, on a line of its own."""
    body = dumps(document, option=OPT_APPEND_NEWLINE)
    return Response(body, status, mimetype="application/json")


class Reply(Schema):
    """Base class of the schemas of replies. Undeclared members are an error."""

    class Meta:
        unknown = RAISE


def text(description: str, **kwargs: Any) -> fields.String:
    """A string field. ``example`` is shown in the API description."""
    return fields.String(required=True, metadata=_metadata(description, kwargs), **kwargs)


def ms(description: str, **kwargs: Any) -> fields.Integer:
    """A time in ms since the epoch."""
    kwargs.setdefault("example", 1767225600000)
    return count(f"{description}, ms since the epoch.", **kwargs)


def count(description: str, **kwargs: Any) -> fields.Integer:
    """A whole number."""
    kwargs.setdefault("example", 2)
    return fields.Integer(
        required=True, strict=True, metadata=_metadata(description, kwargs), **kwargs
    )


def yes_or_no(description: str, **kwargs: Any) -> fields.Boolean:
    """True or false."""
    kwargs.setdefault("example", True)
    metadata = _metadata(description, kwargs)
    return fields.Boolean(required=True, truthy={True}, falsy={False}, metadata=metadata, **kwargs)


def _metadata(description: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    example = {"example": kwargs.pop("example")} if "example" in kwargs else {}
    return {"description": description, **example}


class ErrorPlace(Reply):
    """An error at one place in a request."""

    place = text(
        "Names and list indexes from the outside in, joined by dots.", example="batch.0.userId"
    )
    message = text("What is wrong.", example="Must not be empty.")


class ProblemReply(Reply):
    """A problem document (RFC 9457)."""

    type = text("Always `about:blank`; see `reason`.", example="about:blank")
    title = text("The name of the HTTP status.", example="Bad Request")
    status = count("The HTTP status.", example=400)
    reason = text("The kind of problem, machine-readable. Also in the log line.")
    detail = text("What is wrong and what to do about it, for people.")
    requestId = text("The request's id, as in `X-Request-ID` and in the log line.")
    errors = fields.List(
        fields.Nested(ErrorPlace),
        metadata={"description": "The errors, each with its place; at most 50."},
    )
