"""What calls answer: what all replies share, errors, and what calls that write say."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, fields


class Reply(Schema):
    """A reply: all that it holds, and nothing else."""

    class Meta:
        unknown = RAISE


def text(description: str, **kwargs: Any) -> fields.String:
    """A string in replies. ``example`` is one that the API's description shows."""
    return fields.String(required=True, metadata=_metadata(description, kwargs), **kwargs)


def ms(description: str, **kwargs: Any) -> fields.Integer:
    """A time in replies, in ms since the epoch."""
    kwargs.setdefault("example", 1767225600000)
    return count(f"{description}, ms since the epoch.", **kwargs)


def count(description: str, **kwargs: Any) -> fields.Integer:
    """A whole number in replies."""
    kwargs.setdefault("example", 2)
    return fields.Integer(
        required=True, strict=True, metadata=_metadata(description, kwargs), **kwargs
    )


def yes_or_no(description: str, **kwargs: Any) -> fields.Boolean:
    """True or false in replies."""
    kwargs.setdefault("example", True)
    metadata = _metadata(description, kwargs)
    return fields.Boolean(required=True, truthy={True}, falsy={False}, metadata=metadata, **kwargs)


def _metadata(description: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    example = {"example": kwargs.pop("example")} if "example" in kwargs else {}
    return {"description": description, **example}


class ErrorPlace(Reply):
    """What is wrong at one place of a request."""

    place = text(
        "Where: names and numbers from the outside in, joined by dots.", example="batch.0.userId"
    )
    message = text("What is wrong there.", example="Must not be empty.")


class ProblemReply(Reply):
    """A problem document (RFC 9457)."""

    type = text("Always `about:blank`: `reason` says more.", example="about:blank")
    title = text("The status in words.", example="Bad Request")
    status = count("The status.", example=400)
    reason = text("Which problem it is, for machines. The log line has it too.")
    detail = text("What is wrong and what to do about it, for people.")
    requestId = text("The request's id, as in `X-Request-ID` and in the log line.")
    errors = fields.List(
        fields.Nested(ErrorPlace),
        metadata={"description": "What is wrong at each place; at most 50."},
    )
